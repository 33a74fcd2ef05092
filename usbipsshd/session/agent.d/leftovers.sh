# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# What agents left that were killed with all their processes.

# tidy: what agents left that were killed with all their processes. Only what they note is given
# back, and only where no living one notes it, too.
tidy() {
    set +f
    set -- /run/usbipssh.*
    set -f
    for old; do
        [ -d "$old/held" ] && [ ! -L "$old" ] && [ ! -L "$old/held" ] && get "$old/held/agent" || continue
        # shellcheck disable=SC2086
        set -- $value
        [ "${3-}" = "$sys" ] && ! alive "$@" && made_by_us "$old" || continue
        # Whoever can rename it is the one to do it.
        left=/run/usbipssh.left-$main-${old##*.}
        mv -f "$old" "$left" 2>/dev/null || continue
        set +f
        set -- "$left/held/"*
        set -f
        for note; do
            id=${note##*/}
            case $id in
                port.*) let_go "$note" ;;
                *) busid "$id" && ! noted "$id" && exported "$id" && give_back "$id" 1 ;;
            esac
        done
        rm -rf "$left"
    done
}

# made_by_us FOLDER: root's, or the user's who came here by sudo.
made_by_us() {
    IFS=' ' read -r _ _ value _ <<EOT
$(ls -ldn "$1" 2>/dev/null)
EOT
    case " 0 $uid ${SUDO_UID-} " in
        *" $value "*) [ -n "$value" ] ;;
        *) return 1 ;;
    esac
}

# noted BUSID: whether a living agent has it.
noted() {
    busid=$1
    set +f
    set -- /run/usbipssh.*/"held/$busid"
    set -f
    for place; do
        [ -e "$place" ] && get "${place%/*}/agent" || continue
        # shellcheck disable=SC2086
        set -- $value
        [ "${3-}" = "$sys" ] && alive "$@" && return
    done
    return 1
}

# start_tidy: in the background, where there is anything.
start_tidy() {
    [ "$uid" = 0 ] || return
    set +f
    set -- /run/usbipssh.*/held/agent
    set -f
    [ -e "$1" ] || return
    start tidy
    process "$!" && tidying="$! $value"
}

# await_tidy: what is being given back may be what is wanted now.
await_tidy() {
    waited=0
    # shellcheck disable=SC2086
    while [ "$waited" -lt 100 ] && alive $tidying; do
        nap
    done
}
