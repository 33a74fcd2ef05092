# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# Which requests there are, and how they run side by side.

# forget_done: drop finished jobs from the list.
forget_done() {
    # Asking for the jobs makes every shell collect those that are done.
    jobs >/dev/null 2>&1
    running=
    njobs=0
    for pid in $jobs; do
        if kill -s 0 "$pid" 2>/dev/null; then
            running="$running $pid"
            njobs=$((njobs + 1))
        fi
    done
    jobs=$running
}

# start VERB ARGS...: in the background.
start() {
    if [ "$njobs" -ge 16 ]; then
        forget_done
        if [ "$njobs" -ge 128 ]; then
            fail LimitsExceeded 'too many requests at once'
            return
        fi
    fi
    "$@" </dev/null 2>/dev/null &
    jobs="$jobs $!"
    njobs=$((njobs + 1))
}

# request TAG VERB ARGS...
request() {
    tag=$1
    number "$tag" || return
    shift
    case $#:${1-} in
        1:list) start list ;;
        1:facts)
            prepare
            start facts
            ;;
        1:watch) start_watch ;;
        2:describe) busid "$2" && start describe "$2" ;;
        7:bind)
            busid "$2" && hex4 "$3" && hex4 "$4" && number "$5" && number "$6" && flag "$7" &&
                prepare && start "$@"
            ;;
        5:connect)
            busid "$2" && token "$5" && connector "$3" && start "$@"
            ;;
        6:reset)
            busid "$2" && hex4 "$3" && hex4 "$4" && number "$5" && number "$6" && start "$@"
            ;;
        3:release) busid "$2" && flag "$3" && start "$@" ;;
        3:port) busid "$2" && speed "$3" && prepare && start "$@" ;;
        7:attach)
            busid "$2" && number "$3" && speed "$4" && token "$7" && connector "$5" && start "$@"
            ;;
        2:look | 2:detach) busid "$2" && start "$@" ;;
        2:unbind) busid "$2" && start "$@" ;;
        *) false ;;
    esac || fail InvalidArgs request
}
