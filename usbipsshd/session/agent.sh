#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
#
# All that ever runs on a remote. It is sent through ssh, read from standard input and never
# installed; usage: sh agent.sh [SYSFS_ROOT [SILENCE]], the arguments for tests. Without comments and
# indentation it must mean the same.
#
# Protocol, version 1. Lines on standard input are requests, "TAG VERB ARGS...", TAG a decimal
# number, single spaces; lines on standard output begin with the tag and each request ends with one
#   TAG ok       or      TAG fail CODE DETAIL
# where CODE is an error name of the D-Bus contract. Requests run side by side. Lines are written
# whole, at most 4096 bytes at a time; text from sysfs comes last on its line, as it is.
#
#   hello 1 UID KERNEL OSID CONNECTORS     unasked, first. CONNECTORS: perl,python3,bash or none
#   TAG list                               b BUSNUM SERIAL      each bus and its root hub's serial
#                                          d BUSID              a device; what follows is its own
#                                          a NAME VALUE         an attribute, also driver
#                                          i                    an interface; a and n are its own
#                                          n NODE               input/event3, sda1, net/eth0
#   TAG describe BUSID                     the same of one device, and
#                                          x HEX                a piece of its descriptors
#   TAG bind BUSID VID PID BUSNUM DEVNUM UNMOUNT
#                                          give that very device to usbip-host; answers with
#                                          dir FOLDER           where ssh may put its sockets
#   TAG connect BUSID perl|python3|bash ADDRESS TOKEN
#                                          connect to a socket in FOLDER (bash: a port of 127.0.0.1),
#                                          send TOKEN and a newline, give the socket to usbip-host
#   TAG release BUSID REBIND               end the connection; give the device back
#   TAG unbind BUSID                       the same whoever had exported it
#   ping                                   no tag, no answer: the peer is still there
#
# At the end of input, on HUP, INT, TERM, and when nothing was heard for $silence seconds, every
# device exported here is given back, the folder removed, and no process stays.
#
# What the kernel wants (drivers/usb/usbip/stub_main.c, stub_dev.c):
# - Nothing written to usbip-host ends in a newline.
# - A connection ends before its device is unbound: else a use after free.
# - "del" deletes a name for good only while its device is bound, and then when it is unbound or
#   pulled out. One deleted later stays, and usbip-host would take whatever is plugged in there
#   next. So it is deleted as soon as the device is bound.
# - "rebind" follows a pointer to a device that may be gone. drivers_probe does the same safely.

# shellcheck disable=SC2317 # functions are called through start, after and bounded
# shellcheck disable=SC2015 # in "a && b || c" here, c is meant to follow either

# Wildcards are switched on only where they are wanted; fields are separated by single spaces.
set -f
IFS=' '
umask 077
LC_ALL=C
export LC_ALL
unset CDPATH ENV BASH_ENV PERL5OPT PERL5LIB PERLLIB
PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin:/run/current-system/sw/bin
export PATH

sys=${1:-/sys}
# A made-up tree brings a modprobe of its own.
[ "$sys" = /sys ] || PATH=$sys/bin:$PATH
devices=$sys/bus/usb/devices
drivers=$sys/bus/usb/drivers
host=$drivers/usbip-host
silence=45
case ${2-} in
    '' | *[!0-9]*) ;;
    *) silence=$2 ;;
esac
nl='
'
main=$$
folder=
jobs=
njobs=0
watchdog=

# --- small things ---------------------------------------------------------------------------

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
    ) </dev/null >/dev/null 2>&1 &
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
    after "$limit" kill -s TERM "$child"
    wait "$child" 2>/dev/null
    result=$?
    cancel "$timer"
    return "$result"
}

# --- what a request may say -----------------------------------------------------------------

number() {
    case $1 in
        '' | *[!0-9]* | ???????????*) return 1 ;;
    esac
}

hex4() {
    case $1 in
        [0-9a-f][0-9a-f][0-9a-f][0-9a-f]) ;;
        *) return 1 ;;
    esac
}

flag() {
    case $1 in
        0 | 1) ;;
        *) return 1 ;;
    esac
}

busid() {
    case $1 in
        '' | *[!0-9.-]* | *-*-* | *..* | *.-* | *-.* | [.0-]* | *[.-] | *[.-]0*) return 1 ;;
        ????????????????????????????????*) return 1 ;;
    esac
    case ${1%%-*} in
        *.* | "$1") return 1 ;;
    esac
}

# A name that is no path: letters, digits, and none of the special ones.
plain() {
    case $1 in
        '' | *[!A-Za-z0-9._-]* | [.-]*) return 1 ;;
    esac
}

token() {
    case $1 in
        *[!0-9a-f]*) return 1 ;;
    esac
    [ "${#1}" -eq 32 ]
}

# --- listing --------------------------------------------------------------------------------

# add TEXT: put a line of the answer into the buffer. A character may be three bytes.
add() {
    if [ "$((${#out} + ${#1}))" -gt 1300 ]; then
        say "$out"
        out=
    fi
    out="$out$tag $1$nl"
}

# attributes FOLDER NAME...
attributes() {
    place=$1
    shift
    for name; do
        if [ -e "$place/$name" ] && get "$place/$name"; then
            # A USB string has 126 characters at most; anything longer is not one.
            [ "${#value}" -le 1000 ] && add "a $name $value"
        fi
    done
    driver_of "$place" && add "a driver $value"
}

# nodes_below GLOBBED-FOLDERS...: lines "INTERFACE NODE" in $nodes.
nodes_below() {
    nodes=$nl
    [ -d "$1" ] || return
    found=$(find "$@" \( -name dev -o -name ifindex \) -type f 2>/dev/null </dev/null)
    IFS=$nl
    for path in $found; do
        IFS=' '
        interface=${path#"$devices/"}
        interface=${interface%%/*}
        case $path in
            */bsg/*) ;;
            */net/*/ifindex)
                path=${path%/ifindex}
                nodes="$nodes$interface net/${path##*/}$nl"
                ;;
            */dev)
                while IFS= read -r value || [ -n "$value" ]; do
                    case $value in
                        DEVNAME=*)
                            nodes="$nodes$interface ${value#DEVNAME=}$nl"
                            break
                            ;;
                    esac
                done 2>/dev/null <"${path%/dev}/uevent"
                ;;
        esac
        IFS=$nl
    done
    IFS=' '
}

# device BUSID: its lines, and those of its interfaces.
device() {
    [ -e "$devices/$1/idVendor" ] || return
    add "d $1"
    attributes "$devices/$1" busnum devnum idVendor idProduct bcdDevice bDeviceClass \
        bDeviceSubClass bDeviceProtocol speed manufacturer product serial usbip_status
    set +f
    set -- "$devices/$1:"*
    set -f
    for place; do
        [ -d "$place" ] || continue
        add i
        attributes "$place" bInterfaceNumber bInterfaceClass bInterfaceSubClass \
            bInterfaceProtocol interface
        IFS=$nl
        for node in $nodes; do
            case $node in
                "${place##*/} "*) add "n ${node#* }" ;;
            esac
        done
        IFS=' '
    done
}

buses() {
    set +f
    set -- "$devices"/usb*
    set -f
    for place; do
        get "$place/busnum" && number "$value" || continue
        bus=$value
        get "$place/serial"
        add "b $bus $value"
    done
}

list() {
    out=
    buses
    set +f
    set -- "$devices"/[1-9]*:*/
    set -f
    nodes_below "$@"
    set +f
    set -- "$devices"/[1-9]*
    set -f
    for place; do
        id=${place##*/}
        busid "$id" && device "$id"
    done
    say "$out"
    ok
}

describe() {
    out=
    if [ ! -d "$devices/$1" ]; then
        fail DeviceNotFound "$1"
        return
    fi
    buses
    id=$1
    set +f
    set -- "$devices/$id:"*/
    set -f
    nodes_below "$@"
    device "$id"
    digits=
    IFS=" $nl"
    for byte in $({ od -An -v -tx1 "$devices/$id/descriptors" ||
        hexdump -v -e '1/1 "%02x "' "$devices/$id/descriptors"; } 2>/dev/null </dev/null); do
        digits=$digits$byte
        if [ "${#digits}" -ge 1200 ]; then
            IFS=' '
            add "x $digits"
            IFS=" $nl"
            digits=
        fi
    done
    IFS=' '
    [ -z "$digits" ] || add "x $digits"
    say "$out"
    ok
}

# --- file systems of a device ---------------------------------------------------------------

# mounts BUSID: lines "OPTIONS TYPE SOURCE ROOT MOUNTPOINT" in $mounts, last mounted first, escaped
# as the kernel does. Fails, with a reason in $why, where the device is in use in another way.
mounts() {
    mounts=
    numbers=' '
    sources=' '
    set +f
    set -- "$devices/$1:"*/
    set -f
    [ -d "$1" ] || return 0
    found=$(find "$@" -path '*/block/*' -name dev -type f 2>/dev/null </dev/null)
    IFS=$nl
    for path in $found; do
        IFS=' '
        path=${path%/dev}
        get "$path/dev" || continue
        numbers="$numbers$value "
        sources="$sources/dev/${path##*/} "
        set +f
        set -- "$path/holders/"*
        set -f
        if [ -e "$1" ]; then
            why="${path##*/} is part of ${1##*/}"
            return 1
        fi
        IFS=$nl
    done
    IFS=' '
    [ "$numbers" != ' ' ] || return 0
    while read -r source _; do
        case $sources in
            *" $source "*)
                why="$source is swap space"
                return 1
                ;;
        esac
    done 2>/dev/null </proc/swaps
    while read -r _ _ devno root point options rest; do
        rest=${rest#*- }
        type=${rest%% *}
        rest=${rest#* }
        source=${rest%% *}
        case $numbers$sources in
            *" $devno "* | *" $source "*)
                mounts="$options,${rest#* } $type $source $root $point$nl$mounts"
                ;;
        esac
    done 2>/dev/null </proc/self/mountinfo
}

# plainly TEXT: \040 and the like undone, in $value.
plainly() {
    value=$(printf '%b.' "$1")
    value=${value%.}
}

# unmount: all of $mounts, or none of them; fails with a reason in $why.
unmount() {
    IFS=$nl
    for mount in $mounts; do
        IFS=' '
        plainly "${mount##* }"
        if ! bounded 30 umount -- "$value"; then
            why="${mount##* } is in use"
            remount
            return 1
        fi
        undone="$mount$nl$undone"
        IFS=$nl
    done
    IFS=' '
}

# remount: what unmount has undone so far.
remount() {
    IFS=$nl
    for mount in $undone; do
        IFS=' '
        # shellcheck disable=SC2086 # the fields are escaped, so they hold no spaces
        set -- $mount
        plainly "$5"
        point=$value
        plainly "$3"
        waited=0
        while [ ! -e "$value" ] && [ "$waited" -lt 20 ]; do
            nap
        done
        [ "$4" != / ] || bounded 30 mount -t "$2" -o "$1" -- "$value" "$point"
        IFS=$nl
    done
    IFS=' '
}

# --- exporting ------------------------------------------------------------------------------

# listed BUSID: whether usbip-host has its name.
listed() {
    get "$host/match_busid" || return
    case " $value " in
        *" $1 "*) ;;
        *) return 1 ;;
    esac
}

# unexport BUSID: end the connection, take the device from usbip-host. A device that is gone is
# no error; one whose connection does not end is, with a reason in $why, and it stays bound.
unexport() {
    waited=0
    ended=
    while driver_of "$devices/$1" && [ "$value" = usbip-host ]; do
        get "$devices/$1/usbip_status" || value=
        if [ "$value" != 2 ]; then
            listed "$1" && put "$host/match_busid" "del $1"
            put "$host/unbind" "$1" && break
            why='usbip-host does not let go of it'
        else
            [ -n "$ended" ] || put "$devices/$1/usbip_sockfd" -1
            ended=1
            why='its connection does not end'
        fi
        [ "$waited" -lt 100 ] || return 1
        nap
    done
    listed "$1" && put "$host/match_busid" "del $1"
    return 0
}

# give_back BUSID REBIND: unexport, and with REBIND 1 let its own driver have it; fails with a
# reason in $why.
give_back() {
    unexport "$1" || return
    [ "$2" = 1 ] && [ -d "$devices/$1" ] || return 0
    driver_of "$devices/$1" || put "$sys/bus/usb/drivers_probe" "$1"
    if driver_of "$devices/$1" && [ "$value" = usbip-host ]; then
        # An older name, one that couldn't be deleted, had it taken again.
        unexport "$1" || return
    fi
    driver_of "$devices/$1" || put "$sys/bus/usb/drivers_probe" "$1"
    driver_of "$devices/$1" || put "$drivers/usb/bind" "$1"
    driver_of "$devices/$1" && [ "$value" != usbip-host ] && return
    [ -d "$devices/$1" ] || return 0
    why='no driver took it back'
    return 1
}

# same VID PID BUSNUM DEVNUM: whether the device at $at is that one.
same() {
    get "$at/idVendor" && [ "$value" = "$1" ] &&
        get "$at/idProduct" && [ "$value" = "$2" ] &&
        get "$at/busnum" && [ "$value" = "$3" ] &&
        get "$at/devnum" && [ "$value" = "$4" ]
}

# may_bind BUSID VID PID BUSNUM DEVNUM UNMOUNT: all that can be said before anything is changed.
may_bind() {
    at=$devices/$1
    undone=
    if [ "$uid" != 0 ]; then
        fail NotPermittedThere "uid $uid"
        return 1
    fi
    if [ "$connectors" = none ]; then
        fail RemoteUnsupported 'no perl, python3 or bash'
        return 1
    fi
    if [ -z "$folder" ]; then
        fail DeviceFailed 'no temporary folder'
        return 1
    fi
    if [ ! -d "$host" ]; then
        bounded 20 modprobe usbip-host
        if [ ! -d "$host" ]; then
            fail ModuleUnavailable usbip-host
            return 1
        fi
    fi
    if [ ! -d "$at" ]; then
        fail DeviceNotFound "$1"
        return 1
    fi
    if ! same "$2" "$3" "$4" "$5"; then
        fail DeviceChanged "$1"
        return 1
    fi
    if get "$at/bDeviceClass" && [ "$value" = 09 ]; then
        fail DeviceFailed 'it is a hub'
        return 1
    fi
    get "$devices/usb$4/serial"
    case $value in
        vhci_hcd*)
            fail DeviceFailed 'it is itself a remote device'
            return 1
            ;;
    esac
    if driver_of "$at" && [ "$value" = usbip-host ] && get "$at/usbip_status" &&
        [ "$value" = 2 ]; then
        fail DeviceBusy 'it is in use by another machine'
        return 1
    fi
    if ! mounts "$1"; then
        fail DeviceBusy "$why"
        return 1
    fi
    if [ -n "$mounts" ] && [ "$6" = 0 ]; then
        fail DeviceBusy 'it is mounted'
        return 1
    fi
    if ! unmount; then
        fail DeviceBusy "$why"
        return 1
    fi
}

# take BUSID: unbind it from what it has and bind it to usbip-host; fails with $code and $why.
take() {
    code=DeviceFailed
    if driver_of "$at"; then
        if [ "$value" = usbip-host ]; then
            unexport "$1" || return
        else
            put "$at/driver/unbind" "$1"
        fi
        if driver_of "$at"; then
            why="$value does not let go of it"
            return 1
        fi
    fi
    if ! put "$host/match_busid" "add $1"; then
        why='usbip-host does not take its name'
        # shellcheck disable=SC2086
        get "$host/match_busid" && set -- $value && if [ "$#" -ge 16 ]; then
            code=LimitsExceeded
            why='usbip-host takes no more than 16 devices'
        fi
        return 1
    fi
    put "$host/bind" "$1"
    if ! driver_of "$at" || [ "$value" != usbip-host ]; then
        why='usbip-host does not take it'
        return 1
    fi
    put "$host/match_busid" "del $1"
    if ! get "$at/usbip_status" || [ "$value" != 1 ]; then
        why="usbip-host reports state ${value:-none}"
        return 1
    fi
}

bind() {
    may_bind "$@" || return
    # Noted first: whatever happens to this process, the main one can undo it.
    if ! put "$folder/held/$1" "$1"; then
        fail DeviceFailed 'the temporary folder is full or gone'
        return
    fi
    if ! take "$1"; then
        reason=$why
        [ -d "$at" ] || code=DeviceNotFound
        # A name that can't be deleted may have the next device taken; then the end gives that back.
        give_back "$1" 1 && { listed "$1" || rm -f "$folder/held/$1"; }
        remount
        fail "$code" "$reason"
        return
    fi
    say "$tag dir $folder$nl$tag ok$nl"
}

# The connectors: connect, send $TOKEN, write the socket's number to $SOCKFD, end. Run by bounded,
# in a process of their own.
with_perl() {
    exec perl -e '
        use Socket;
        alarm 10;
        socket(S, PF_UNIX, SOCK_STREAM, 0) or exit 2;
        connect(S, sockaddr_un($ENV{ADDRESS})) or exit 3;
        my $t = "$ENV{TOKEN}\n";
        syswrite(S, $t) == length($t) or exit 4;
        open(F, ">", $ENV{SOCKFD}) or exit 5;
        defined(syswrite(F, fileno(S))) or exit 6;'
}

with_python3() {
    exec python3 -I -S -c '
import os, signal, socket
signal.alarm(10)
s = socket.socket(socket.AF_UNIX)
s.connect(os.environ["ADDRESS"])
s.sendall(os.environb[b"TOKEN"] + b"\n")
f = os.open(os.environ["SOCKFD"], os.O_WRONLY)
os.write(f, b"%d" % s.fileno())'
}

with_bash() {
    exec bash --norc --noprofile -c '
        exec 5<>"/dev/tcp/127.0.0.1/$ADDRESS" || exit 3
        printf "%s\n" "$TOKEN" >&5 || exit 4
        printf 5 >"$SOCKFD"'
}

connect() {
    if [ -z "$folder" ] || [ ! -e "$folder/held/$1" ]; then
        fail NotAttached "$1 is not exported here"
        return
    fi
    if [ "$2" = bash ]; then
        number "$3" && [ "$3" -ge 1 ] && [ "$3" -le 65535 ]
    else
        [ "${3%/*}" = "$folder" ] && plain "${3##*/}" && [ "${3##*/}" != held ]
    fi || {
        fail InvalidArgs address
        return
    }
    ADDRESS=$3 TOKEN=$4 SOCKFD=$devices/$1/usbip_sockfd
    export ADDRESS TOKEN SOCKFD
    bounded 10 "with_$2"
    unset TOKEN
    [ "$2" = bash ] || rm -f "$3"
    waited=0
    while [ "$result" -eq 0 ]; do
        get "$devices/$1/usbip_status" || break
        if [ "$value" = 2 ]; then
            ok
            return
        fi
        [ "$value" = 1 ] && [ "$waited" -lt 20 ] || break
        nap
    done
    if [ ! -d "$devices/$1" ]; then
        fail DeviceNotFound "$1"
    elif [ "$result" -ne 0 ]; then
        fail DeviceFailed "$2 could not hand over a connection"
    else
        fail DeviceFailed "usbip-host reports state ${value:-none}"
    fi
}

release() {
    if [ "$uid" != 0 ]; then
        fail NotPermittedThere "uid $uid"
    elif give_back "$1" "$2"; then
        [ -z "$folder" ] || rm -f "$folder/held/$1"
        ok
    else
        fail DeviceFailed "$why"
    fi
}

unbind() {
    if listed "$1" || { driver_of "$devices/$1" && [ "$value" = usbip-host ]; }; then
        release "$1" 1
    elif [ -d "$devices/$1" ]; then
        ok
    else
        fail DeviceNotFound "$1"
    fi
}

# --- beginning and end ----------------------------------------------------------------------

make_folder() {
    for base in /run "${TMPDIR-}" /tmp; do
        case $base in
            *[!A-Za-z0-9._/-]*) continue ;;
            /*) ;;
            *) continue ;;
        esac
        folder=$(mktemp -d "$base/usbipssh.XXXXXX" 2>/dev/null </dev/null) ||
            { folder=$base/usbipssh.$main && mkdir "$folder" 2>/dev/null; } || continue
        if mkdir "$folder/held" 2>/dev/null; then
            # sshd makes its sockets as the user that logged in.
            if [ "$uid" = 0 ] && number "${SUDO_UID-}" && number "${SUDO_GID-}"; then
                chown "$SUDO_UID:$SUDO_GID" "$folder"
            fi
            return
        fi
        rmdir "$folder"
    done
    folder=
}

# prepare: a folder for the first export.
prepare() {
    if [ -z "$folder" ] && [ "$uid" = 0 ]; then
        make_folder
        [ -z "$folder" ] || start_watchdog
    fi
}

# release_all: give back what is still noted, side by side; remove the folder.
release_all() {
    [ -n "$folder" ] || return
    pids=
    set +f
    set -- "$folder/held/"*
    set -f
    for note; do
        id=${note##*/}
        busid "$id" || continue
        give_back "$id" 1 </dev/null >/dev/null 2>&1 &
        pids="$pids $!"
    done
    await 25 "$pids"
    rm -rf "$folder"
}

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
    cancel "$watchdog"
    exec >/dev/null 2>&1 </dev/null
    await 20 "$jobs"
    release_all
    exit 0
}

# parent: the process id of the parent in $value.
parent() {
    read -r _ _ _ value _ </proc/self/stat
}

# watch: end the main process when nothing is heard for too long (USR1 tells that something was);
# do its work when it is gone without having done it. USR2 ends the watching.
watch() {
    nap=
    over=
    trap 'over=1; [ -z "$nap" ] || kill -s KILL "$nap"' USR2
    trap '[ -z "$nap" ] || kill -s KILL "$nap"' USR1
    while [ -z "$over" ]; do
        sleep "$silence" &
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
    read -r main _ </proc/self/stat
    release_all
}

# start_watchdog: again when there is a folder, so that it knows of it.
start_watchdog() {
    [ -z "$watchdog" ] || cancel "$watchdog"
    # Ignored until it is caught: the first may come before.
    trap '' USR1
    watch </dev/null >/dev/null 2>&1 &
    watchdog=$!
}

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
        2:describe) busid "$2" && start describe "$2" ;;
        7:bind)
            busid "$2" && hex4 "$3" && hex4 "$4" && number "$5" && number "$6" && flag "$7" &&
                prepare && start "$@"
            ;;
        5:connect)
            busid "$2" && token "$5" &&
                case $3 in
                    perl | python3 | bash) start "$@" ;;
                    *) false ;;
                esac
            ;;
        3:release) busid "$2" && flag "$3" && start "$@" ;;
        2:unbind) busid "$2" && start "$@" ;;
        *) false ;;
    esac || fail InvalidArgs request
}

hello() {
    uid=
    while read -r name _ value _; do
        if [ "$name" = Uid: ]; then
            uid=$value
            break
        fi
    done 2>/dev/null </proc/self/status
    number "$uid" || uid=$(id -u)
    get /proc/sys/kernel/osrelease
    case $value in
        '' | *[!A-Za-z0-9._+~-]*) value=unknown ;;
    esac
    kernel=$value
    os=unknown
    for file in /etc/os-release /usr/lib/os-release; do
        [ -r "$file" ] || continue
        while read -r value; do
            case $value in
                ID=*)
                    value=${value#ID=}
                    value=${value#[\"\']}
                    value=${value%[\"\']}
                    case $value in
                        '' | *[!a-z0-9._-]*) ;;
                        *) os=$value ;;
                    esac
                    ;;
            esac
        done <"$file"
        break
    done
    connectors=
    for name in perl python3 bash; do
        command -v "$name" >/dev/null 2>&1 && connectors="$connectors${connectors:+,}$name"
    done
    connectors=${connectors:-none}
    say "hello 1 $uid $kernel $os $connectors$nl"
}

trap '' PIPE
trap finish HUP INT TERM
cd /
start_watchdog
hello
# A last line without its newline was cut off and is no request.
while IFS= read -r line; do
    kill -s USR1 "$watchdog" 2>/dev/null
    case $line in
        ping) ;;
        *[!A-Za-z0-9\ ._/-]* | '' | ' '* | *' ' | *'  '*)
            tag=${line%%[!0-9]*}
            number "$tag" && fail InvalidArgs request
            ;;
        *)
            # shellcheck disable=SC2086 # no wildcards (set -f), checked characters
            request $line
            ;;
    esac
done
finish
