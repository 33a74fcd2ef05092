# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# The end: waits for what is under way, and gives everything back.

# await SECONDS PIDS: wait for children; those that are not done by then are told to end.
await() {
    late=
    trap 'late=1' ALRM
    after "$1" kill -s ALRM "$main"
    for pid in $2; do
        while [ -z "$late" ]; do
            wait "$pid" 2>/dev/null
            # Interrupted, or ended by a signal, which a second wait would tell again.
            [ "$?" -gt 128 ] && kill -s 0 "$pid" 2>/dev/null || break
        done
        [ -z "$late" ] || kill -s TERM "$pid" 2>/dev/null
    done
    cancel "$timer"
}

# The end, in the main process.
finish() {
    # For the children from here on, too: what is half given back must be finished.
    trap '' HUP INT TERM
    # In bash a signal comes in the middle of the read that has another one.
    IFS=' '
    cancel "$watchdog"
    [ -z "$watcher" ] || cancel "$watcher"
    exec >/dev/null 2>&1 </dev/null
    await 20 "$jobs"
    release_all
    exit 0
}
