# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# The process that sees to the end when nothing is heard, or the main process is gone.

# parent: the process id of the parent in $value.
parent() {
    read -r _ _ _ value _ </proc/self/stat
}

# guard: end the main process when nothing is heard for too long (USR1 tells that something was);
# do its work when it is gone without having done it. USR2 ends the watching.
guard() {
    nap=
    over=
    trap 'over=1; [ -z "$nap" ] || kill -s KILL "$nap"' USR2
    trap '[ -z "$nap" ] || kill -s KILL "$nap"' USR1
    while [ -z "$over" ]; do
        sleep "$silence" 9>&- &
        nap=$!
        [ -z "$over" ] || kill -s KILL "$nap"
        if wait "$nap"; then
            parent
            [ "$value" != "$main" ] || kill -s TERM "$main"
            # Some shells act on a signal only when their read returns.
            waited=0
            while parent && [ "$value" = "$main" ] && [ -z "$over" ]; do
                [ "$waited" -lt 30 ] || kill -s KILL "$main"
                nap
            done
            [ -n "$over" ] || main_is_gone
            exit 0
        fi
        wait "$nap"
    done
}

# In the watchdog, which is the last process left; its timers then tell it instead.
main_is_gone() {
    trap '' HUP INT TERM USR1
    trap - USR2
    self
    main=$value
    release_all
}

# start_watchdog: again when there is a folder, so that it knows of it.
start_watchdog() {
    [ -z "$watchdog" ] || cancel "$watchdog"
    # Ignored until it is caught: the first may come before.
    trap '' USR1
    guard </dev/null >/dev/null 2>&1 &
    watchdog=$!
}
