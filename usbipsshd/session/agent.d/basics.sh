# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# Small things that every part uses: answers, files, drivers, time, processes.

# Write lines that end in a newline, at once.
say() {
    printf %s "$1" 2>/dev/null
}

ok() {
    say "$tag ok$nl"
}

# fail CODE DETAIL
fail() {
    say "$tag fail $1 $2$nl"
}

# get FILE: its first line in $value; fails where there is none.
get() {
    value=
    # The file may vanish at any moment; read fails at a last line without a newline, too.
    { IFS= read -r value <"$1"; } 2>/dev/null
    [ -n "$value" ]
}

# put FILE TEXT: without a newline.
put() {
    { printf %s "$2" >"$1"; } 2>/dev/null
}

# driver_of FOLDER: the driver's name in $value; empty and false where there is none.
driver_of() {
    value=
    here=$PWD
    if cd -P "$1/driver" 2>/dev/null; then
        value=${PWD##*/}
        cd "$here" 2>/dev/null || cd /
    fi
    [ -n "$value" ]
}

# nap: about 0.1 s, added to $waited in tenths of a second.
nap() {
    if sleep 0.1 2>/dev/null; then
        waited=$((waited + 1))
    else
        sleep 1
        waited=$((waited + 10))
    fi
}

# after SECONDS COMMAND...: run a command later, in the background; its id in $timer.
# USR2 cancels it and leaves no sleep behind, whenever it comes: nobody above has a trap for it, so
# before the trap here is set it simply ends the process. (A signal that the parent catches is lost
# in some shells when it comes right after the fork; for the same reason the sleep gets a KILL.)
after() {
    (
        nap=
        over=
        trap 'over=1; [ -z "$nap" ] || kill -s KILL "$nap"' USR2
        sleep "$1" &
        nap=$!
        [ -z "$over" ] || kill -s KILL "$nap"
        wait "$nap"
        # A signal ends the waiting before the sleep is collected.
        wait "$nap"
        [ -z "$over" ] || exit 0
        shift
        "$@"
    ) </dev/null >/dev/null 2>&1 9>&- &
    timer=$!
}

# cancel ID: of a timer.
cancel() {
    kill -s USR2 "$1" 2>/dev/null
    wait "$1" 2>/dev/null
}

# bounded SECONDS COMMAND...: its status; it is told to end when its time is over.
bounded() {
    limit=$1
    shift
    "$@" </dev/null >/dev/null 2>&1 &
    child=$!
    after "$limit" end "$child"
    wait "$child" 2>/dev/null
    result=$?
    cancel "$timer"
    return "$result"
}

# end ID: tell a process to, also one that is stopped.
end() {
    kill -s TERM "$1"
    kill -s CONT "$1"
}

# process ID: its start time in $value; false where it has ended.
process() {
    value=
    number "$1" && get "/proc/$1/stat" || return
    # shellcheck disable=SC2086
    set -- ${value##*") "}
    [ "$1" != Z ] && [ "$1" != X ] && value=${20}
}

# alive ID START: whether that very process still runs.
alive() {
    number "${2-}" && process "$1" && [ "$value" = "$2" ]
}

# self: this process's id in $value, also in a subshell.
self() {
    read -r value _ </proc/self/stat
}
