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
#   hello 1 UID KERNEL OSID CONNECTORS     unasked, first. CONNECTORS: perl,python3,socat,
#                                          ncat,bash,busybox, those that are there, or none
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
#   TAG connect BUSID CONNECTOR ADDRESS TOKEN
#                                          connect to a socket in FOLDER or to a port of 127.0.0.1
#                                          (bash and busybox: only that),
#                                          send TOKEN and a newline, give the socket to usbip-host
#   TAG release BUSID REBIND               end the connection; give the device back
#   TAG port BUSID SPEED                   for a device of the other end, which has BUSID there: see
#                                          that vhci has a port for SPEED (1, 2, 3 or 5); answers with
#                                          dir FOLDER           where ssh may put its sockets
#   TAG attach BUSID DEVID SPEED CONNECTOR ADDRESS TOKEN
#                                          connect as above, give the socket to vhci, wait for the
#                                          device; answers with
#                                          at BUSID PORT        where it is here
#   TAG look BUSID                         describe what is on that port, and keep it awake
#   TAG detach BUSID                       free that port
#   TAG unbind BUSID                       the same whoever had exported it
#   TAG reset BUSID VID PID BUSNUM DEVNUM  reset the port of that very device
#   TAG facts                              m loaded|there|missing   usbip-host; loads nothing
#                                          s COUNT              bus ids in match_busid
#                                          l OSID               what its system is like, best first
#                                          dir FOLDER           as bind; none without root
#   TAG watch                              changed              each time a USB device or interface
#                                                               came or went, until the end
#   ping                                   no tag; answers "pong": both are still there
#
# At the end of input, on HUP, INT, TERM, and when nothing was heard for $silence seconds, every
# device exported here is given back, every port taken here freed, the folder removed, and no
# process stays.
#
# An agent that was killed with all its processes leaves its folder in /run; the next one finds it
# there and gives back what it says. Nothing may be sent before hello: a shell's head may read ahead.
#
# What the kernel wants (drivers/usb/usbip/stub_main.c, stub_dev.c):
# - Nothing written to usbip-host ends in a newline.
# - A connection ends before its device is unbound: else a use after free.
# - A name added to match_busid is taken out by "rebind" alone. "del" of a name that is bound wears it
#   out: it stays, and no device in that port can be exported again before a restart.
# - The name of a bound device must stay: unbinding looks it up, and halts when it is gone.
# - "rebind" follows a pointer to the device that usbip-host had last under that name. While its node
#   below /dev/bus/usb is open somewhere that device stays in memory, even when it was pulled out (and
#   rebind then does nothing but take out the name; before 5.1 it did more). The same goes for its hub.
#   So a process keeps both open as long as a device is exported. Without it, rebind is written only
#   for a device that is there and was unbound a moment ago. Else the name stays: harmless, since the
#   usual driver comes first, and the next export of that port takes it out.
# - Unloading the module follows the same pointers, and never happens here.
# What it wants of who imports (vhci_sysfs.c):
# - Reading vhci's status while the module is being loaded can halt a 6.1 kernel.
# - While a port is in state 5 its file does not tell which device it is getting.

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
usbfs=/dev/bus/usb
[ "$sys" = /sys ] || usbfs=$sys/fake/usb
# Seconds. A ping comes every three; one that a cut of five swallows is sent again after up to nine.
silence=13
case ${2-} in
    '' | *[!0-9]*) ;;
    *) silence=$2 ;;
esac
nl='
'
tab='	'
main=$$
folder=
jobs=
njobs=0
watchdog=
watcher=
tidying=

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
    after "$limit" kill -s TERM "$child"
    wait "$child" 2>/dev/null
    result=$?
    cancel "$timer"
    return "$result"
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

connector() {
    case $1 in
        perl | python3 | socat | ncat | bash | busybox) ;;
        *) return 1 ;;
    esac
}

# As vhci numbers them: low, full, high and super speed.
speed() {
    case $1 in
        [1235]) ;;
        *) return 1 ;;
    esac
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

# device BUSID: its lines, and those of its interfaces; false where it is none (any more).
device() {
    [ -e "$devices/$1/idVendor" ] || return 1
    add "d $1"
    attributes "$devices/$1" busnum devnum idVendor idProduct bcdDevice bDeviceClass \
        bDeviceSubClass bDeviceProtocol bConfigurationValue speed manufacturer product serial usbip_status
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
    return 0
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
    if ! device "$id"; then
        # It went meanwhile: nothing is said of it.
        fail DeviceNotFound "$id"
        return
    fi
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

# plainly TEXT: \040 and the like undone, in $value.
plainly() {
    value=$(printf '%b.' "$1")
    value=${value%.}
}

# mounts BUSID: what is on the device, also by way of partitions, dm, md and loop devices:
#   $blocks   lines "NUMBER NAME FOLDER", those on top of others first
#   $sources  their nodes
#   $swaps    nodes and files, one on a line
#   $mounts   lines "OPTIONS TYPE SOURCE ROOT MOUNTPOINT", last mounted first, escaped as in /proc
mounts() {
    blocks=
    sources=' '
    mounts=
    swaps=
    set +f
    set -- "$devices/$1:"*/
    set -f
    [ -d "$1" ] || return 0
    found=$(find "$@" -path '*/block/*' -name dev -type f 2>/dev/null </dev/null)
    IFS=$nl
    # shellcheck disable=SC2086
    set -- $found
    IFS=' '
    [ "$#" -ne 0 ] || return 0
    for path; do
        add_block "${path%/dev}" ........
    done
    mounted
    # An image file on one of them, in use as a device.
    passes=.....
    while [ -n "$passes" ] && add_loops; do
        passes=${passes#.}
        mounted
    done
}

# add_block FOLDER DEPTH: it and what is on top of it. One may come twice: what it is made of is then
# still below it.
add_block() {
    [ -n "$2" ] && get "$1/dev" || return 0
    number=$value
    name=${1##*/}
    blocks="$number $name $1$nl$blocks"
    sources="$sources/dev/$name "
    get "$1/dm/name" && sources="$sources/dev/mapper/$value "
    set +f
    set -- "${2#.}" "$1"/holders/* "$1/$name"*/partition
    set -f
    for path; do
        [ -e "$path" ] && add_block "${path%/partition}" "$1"
    done
}

add_loops() {
    more=1
    set +f
    set -- "$sys"/block/loop*/loop/backing_file
    set -f
    for path; do
        get "$path" && below "$value" || continue
        path=${path%/loop/backing_file}
        case $sources in
            *" /dev/${path##*/} "*) ;;
            *)
                add_block "$path" ........
                more=0
                ;;
        esac
    done
    return "$more"
}

# below PATH: whether it is on one of $mounts, which is then $point.
below() {
    IFS=$nl
    for mount in $mounts; do
        IFS=' '
        case ${mount##* } in
            *\\*)
                what=$1
                plainly "${mount##* }"
                point=$value
                value=$what
                ;;
            *) point=${mount##* } ;;
        esac
        case $1 in
            "$point" | "${point%/}/"*) return ;;
        esac
        IFS=$nl
    done
    IFS=' '
    return 1
}

# mounted: $mounts and $swaps of $blocks.
mounted() {
    mounts=
    swaps=
    while read -r _ _ number root point options rest; do
        rest=${rest#*- }
        type=${rest%% *}
        rest=${rest#* }
        source=${rest%% *}
        case $nl$blocks$sources in
            *"$nl$number "* | *" $source "*)
                mounts="$options,${rest#* } $type $source $root $point$nl$mounts"
                ;;
        esac
    done 2>/dev/null </proc/self/mountinfo
    while IFS=" $tab" read -r source _; do
        case $sources in
            *" $source "*) swaps="$source$nl$swaps" ;;
            *)
                plainly "$source"
                below "$value" && swaps="$source$nl$swaps"
                ;;
        esac
    done 2>/dev/null </proc/swaps
    return 0
}

# used: whether a process uses any of it; says in $why which and what.
used() {
    set -- -e /proc/
    IFS=$nl
    for mount in $mounts; do
        plainly "${mount##* }"
        set -- "$@" -e "-> $value"
    done
    IFS=' '
    for source in $sources; do
        set -- "$@" -e "-> $source"
    done
    set +f
    # shellcheck disable=SC2010 # what is listed has plain names
    found=$(ls -l /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/exe /proc/[0-9]*/fd 2>/dev/null |
        grep -F "$@")
    set -f
    pid=
    while IFS= read -r line; do
        case $line in
            /proc/*/fd:)
                pid=${line#/proc/}
                pid=${pid%/fd:}
                continue
                ;;
            */proc/*' -> '*)
                pid=${line%% -> *}
                pid=${pid##*/proc/}
                pid=${pid%/*}
                ;;
            *' -> '*) ;;
            *) continue ;;
        esac
        line=${line#* -> }
        case $sources in
            *" $line "*) point=$line ;;
            *) below "$line" || continue ;;
        esac
        by "$pid"
        return
    done <<EOT
$found
EOT
    # Files that are mapped into memory and closed.
    IFS=$nl
    for mount in $mounts; do
        IFS=' '
        plainly "${mount##* }"
        point=$value
        set +f
        found=$(grep -l -s -F -e " ${point%/}/" /proc/[0-9]*/maps)
        set -f
        if [ -n "$found" ]; then
            found=${found%%"$nl"*}
            found=${found#/proc/}
            by "${found%/maps}"
            return
        fi
        IFS=$nl
    done
    IFS=' '
    return 1
}

# by PID: it uses $point.
by() {
    get "/proc/$1/comm" || value=something
    why="$value (process $1) uses $point"
}

# kind FOLDER: how a block device is taken down: crypt, lvm, dm, md, loop; false where nothing is to do.
kind() {
    kind=
    case ${1##*/} in
        dm-*)
            kind=dm
            get "$1/dm/uuid" && case $value in
                CRYPT-*) command -v cryptsetup >/dev/null && kind=crypt ;;
                LVM-*) command -v lvchange >/dev/null && kind=lvm ;;
            esac
            get "$1/dm/name"
            ;;
        md*) [ -d "$1/md" ] && kind=md ;;
        loop*) [ -d "$1/loop" ] && get "$1/loop/backing_file" && kind=loop ;;
    esac
    [ -n "$kind" ]
}

# stacked: whether any of $blocks is on top of another.
stacked() {
    case $nl$blocks in
        *" dm-"* | *" md"* | *" loop"*) ;;
        *) return 1 ;;
    esac
}

# can_unmount: whether all of it can be taken down, before anything is.
can_unmount() {
    used && return 1
    IFS=$nl
    for block in $blocks; do
        IFS=' '
        if kind "${block##* }"; then
            case $kind in
                crypt) tool=cryptsetup ;;
                lvm) tool=lvchange ;;
                dm) tool=dmsetup ;;
                md) tool=mdadm ;;
                loop) tool=losetup ;;
            esac
            if ! command -v "$tool" >/dev/null; then
                why="it is part of ${block##*/}, and there is no $tool"
                return 1
            fi
        fi
        IFS=$nl
    done
    IFS=' '
}

# unmount: all of it, or nothing; fails with a reason in $why.
unmount() {
    [ -n "$blocks" ] || return 0
    can_unmount || return
    IFS=$nl
    for source in $swaps; do
        IFS=' '
        plainly "$source"
        if ! bounded 20 swapoff -- "$value"; then
            why="$value is swap space in use"
            remount
            return 1
        fi
        undone="swap $source$nl$undone"
        IFS=$nl
    done
    IFS=' '
    # A file system that holds a loop device's file comes after that.
    passes=...
    while [ -n "$mounts" ]; do
        if [ -z "$passes" ]; then
            remount
            return 1
        fi
        passes=${passes#.}
        unmount_once
        take_down loop
    done
    # Nothing can be in the way from here on. An encrypted one could not be opened again.
    if ! take_down 'dm crypt lvm md loop'; then
        remount
        return 1
    fi
}

# unmount_once: those of $mounts that can be, leaving the others there.
unmount_once() {
    left=
    IFS=$nl
    for mount in $mounts; do
        IFS=' '
        # shellcheck disable=SC2086 # the fields are escaped, so they hold no spaces
        set -- $mount
        plainly "$3"
        source=$value
        plainly "$5"
        point=$value
        again=$mount
        loop=$sys/block/${source#/dev/}/loop
        if get "$loop/backing_file"; then
            image=$(printf %s "$value" | sed "s/\\\\/&134/g; s/ /\\\\040/g; s/$tab/\\\\011/g")
            get "$loop/offset"
            again="$1,loop,offset=${value:-0} $2 $image $4 $5"
        fi
        case $point in
            /media/* | /run/media/*) udisks "$source" ;;
            *) false ;;
        esac || bounded 20 umount -- "$point" ||
            {
                why="$point is in use"
                left="$left$mount$nl"
                IFS=$nl
                continue
            }
        # A loop device may go with what was mounted from it.
        [ -e "$loop/backing_file" ] && again=$mount
        undone="mount $again$nl$undone"
        IFS=$nl
    done
    IFS=' '
    mounts=$left
}

# udisks NODE: unmounts what it has mounted, and its folder goes, too.
udisks() {
    command -v udisksctl >/dev/null && bounded 20 udisksctl unmount --no-user-interaction -b "$1"
}

# take_down KINDS: those of $blocks.
take_down() {
    IFS=$nl
    for block in $blocks; do
        IFS=' '
        place=${block##* }
        if [ -e "$place/dev" ] && kind "$place"; then
            label=$value
            node=/dev/${place##*/}
            case " $1 " in
                *" $kind "*) take_down_one || return ;;
            esac
        fi
        IFS=$nl
    done
    IFS=' '
}

take_down_one() {
    redo=
    case $kind in
        crypt) bounded 20 cryptsetup close "$label" ;;
        lvm) bounded 20 lvchange -an "/dev/mapper/$label" && redo="lvm $label" ;;
        dm)
            table=$(dmsetup table "$label" 2>/dev/null)
            bounded 20 dmsetup remove --retry "$label" && case $table in
                *"$nl"* | '') ;;
                *) redo="dm $label $table" ;;
            esac
            ;;
        md)
            set +f
            set -- "$place/slaves/"*
            set -f
            members=
            for each; do
                members="$members /dev/${each##*/}"
            done
            bounded 20 mdadm --stop "$node" && redo="md $node$members"
            ;;
        loop)
            get "$place/loop/offset"
            bounded 20 losetup -d "$node" && redo="loop $node ${value:-0} $label"
            ;;
    esac
    # Some tools only ask for it, and it is done a moment later.
    waited=0
    while [ -e "$place/dev" ] && kind "$place"; do
        if [ -z "$redo" ] && [ "$kind" != crypt ] || [ "$waited" -ge 20 ]; then
            why="${node#/dev/} is in use"
            return 1
        fi
        nap
    done
    [ -z "$redo" ] || undone="$redo$nl$undone"
}

# remount: put back what unmount has undone so far, as far as that can be.
remount() {
    [ -n "$undone" ] || return
    # The device has just been given back, and its disks take a moment.
    waited=0
    IFS=$nl
    for block in $blocks; do
        IFS=' '
        block=${block#* }
        block=${block%% *}
        case $block in
            dm-* | md* | loop*) ;;
            *)
                while [ ! -b "/dev/$block" ] && [ -d "$at" ] && [ "$waited" -lt 50 ]; do
                    nap
                done
                ;;
        esac
        IFS=$nl
    done
    for mount in $undone; do
        IFS=' '
        rest=${mount#* }
        # shellcheck disable=SC2086
        set -- $mount
        case $1 in
            mount)
                plainly "$6"
                point=$value
                plainly "$4"
                waited=0
                while [ ! -e "$value" ] && [ "$waited" -lt 20 ]; do
                    nap
                done
                # udisks has removed it.
                case $point in
                    /media/* | /run/media/*) [ -d "$point" ] || mkdir -p -- "$point" ;;
                esac
                [ "$5" != / ] || bounded 30 mount -t "$3" -o "$2" -- "$value" "$point"
                ;;
            swap)
                plainly "$2"
                bounded 10 swapon -- "$value"
                ;;
            lvm) bounded 20 lvchange -ay "/dev/mapper/$2" ;;
            dm) bounded 20 dmsetup create "$2" --table "${rest#* }" ;;
            md)
                shift
                bounded 20 mdadm --assemble "$@"
                ;;
            loop)
                rest=${rest#* }
                bounded 10 losetup -o "$3" "$2" "${rest#* }"
                ;;
        esac
        IFS=$nl
    done
    IFS=' '
    undone=
}

# facts: what there is to export with.
facts() {
    out=
    count=0
    if [ -d "$host" ]; then
        add "m loaded"
        if get "$host/match_busid"; then
            # shellcheck disable=SC2086
            set -- $value
            count=$#
        fi
    elif bounded 10 modprobe -n -q usbip-host; then
        add "m there"
    else
        add "m missing"
    fi
    add "s $count"
    for file in /etc/os-release /usr/lib/os-release; do
        [ -r "$file" ] || continue
        while read -r value; do
            case $value in
                ID_LIKE=*)
                    value=${value#ID_LIKE=}
                    value=${value#[\"\']}
                    value=${value%[\"\']}
                    for word in $value; do
                        case $word in
                            '' | *[!a-z0-9._-]*) ;;
                            *) add "l $word" ;;
                        esac
                    done
                    ;;
            esac
        done <"$file"
        break
    done
    [ -z "$folder" ] || add "dir $folder"
    say "$out"
    ok
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

# exported BUSID: whether usbip-host has the device.
exported() {
    driver_of "$devices/$1" && [ "$value" = usbip-host ]
}

# nodes_of BUSID: the device's node in $node, that of the hub it is plugged into in $hub.
nodes_of() {
    hub=
    case $1 in
        *.*) set -- "$1" "${1%.*}" ;;
        *) set -- "$1" "usb${1%%-*}" ;;
    esac
    for each in "$2" "$1"; do
        get "$devices/$each/busnum" && number "$value" || return
        node=00$value
        node=${node#"${node%???}"}
        [ "$value" -lt 1000 ] || node=$value
        get "$devices/$each/devnum" && number "$value" || return
        value=00$value
        node=$usbfs/$node/${value#"${value%???}"}
        [ -r "$node" ] || return
        [ -n "$hub" ] || hub=$node
    done
}

# hold BUSID: start a process that keeps the nodes open; its id in $keeper, else empty.
hold() {
    keeper=
    [ -p "$folder/held/life" ] && nodes_of "$1" || return
    keep "$1" </dev/null >/dev/null 2>&1 3<"$node" 4<"$hub" &
    keeper=$!
}

# keep BUSID: in that process. When no agent is left it does an agent's work for this device.
keep() {
    trap '' HUP INT TERM
    exec 9>&-
    read -r _ <"$folder/held/life"
    self
    main=$value
    # Its own nodes are open, whatever the note says.
    process "$main" && put "$folder/held/$1" "$main $value"
    give_back "$1" 1
    rm -f "$folder/held/$1"
    set +f
    set -- "$folder/held"/[0-9]*
    set -f
    [ -e "$1" ] || rm -rf "$folder"
    exit 0
}

# keeper_of BUSID: the process that keeps its nodes open in $keeper; false where there is none.
keeper_of() {
    keeper=
    [ -n "$folder" ] && get "$folder/held/$1" || return
    # shellcheck disable=SC2086
    set -- $value
    alive "$@" && keeper=$1
}

# forget BUSID: it is exported no longer.
forget() {
    if keeper_of "$1"; then
        self
        [ "$keeper" = "$value" ] || kill -s KILL "$keeper" 2>/dev/null
    fi
    [ -z "$folder" ] || rm -f "$folder/held/$1"
}

# unexport BUSID: end the connection, take the device from usbip-host; $was tells whether it had it.
# A device that is gone is no error; one whose connection does not end is, with a reason in $why,
# and it stays bound.
unexport() {
    waited=0
    ended=
    was=
    while exported "$1"; do
        get "$devices/$1/usbip_status" || value=
        if [ "$value" != 2 ]; then
            put "$host/unbind" "$1" && was=1 && break
            why='usbip-host does not let go of it'
        else
            [ -n "$ended" ] || put "$devices/$1/usbip_sockfd" -1
            ended=1
            why='its connection does not end'
        fi
        [ "$waited" -lt 100 ] || return 1
        nap
    done
    return 0
}

# clear BUSID: take its name out, if it is sure what the kernel's pointer points to. $open tells
# that the nodes of the device that was just unbound are open.
clear() {
    listed "$1" && ! exported "$1" || return
    safe=
    [ -n "$was" ] && [ -d "$devices/$1" ] && safe=1
    if [ -n "$modern" ]; then
        { [ -n "$was" ] && [ -n "$open" ]; } || keeper_of "$1" && safe=1
    fi
    [ -n "$safe" ] || return
    put "$host/rebind" "$1"
    # Left behind by a rebind that failed; del takes it out from then on.
    listed "$1" && ! exported "$1" && put "$host/match_busid" "del $1"
}

# give_back BUSID REBIND: unexport, and let its own driver have it; with REBIND 0 it has none in the
# end. Fails with a reason in $why.
give_back() {
    open=
    if nodes_of "$1"; then
        { open=1 && give_back_held "$@"; } 3<"$node" 4<"$hub"
        result=$?
        [ -z "$open" ] || return "$result"
    fi
    give_back_held "$@"
}

give_back_held() {
    unexport "$1" || return
    clear "$1"
    [ -d "$devices/$1" ] || return 0
    if [ "$2" = 0 ]; then
        # Only what clear gave to it.
        [ -z "$was" ] || ! driver_of "$devices/$1" || put "$devices/$1/driver/unbind" "$1"
        return 0
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

# meant BUSID VID PID BUSNUM DEVNUM: whether it is there, is that one, and anybody's to take.
meant() {
    at=$devices/$1
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
    if exported "$1" && get "$at/usbip_status" && [ "$value" = 2 ]; then
        fail DeviceBusy 'it is in use by another machine'
        return 1
    fi
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
        fail RemoteUnsupported 'nothing that connects'
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
    meant "$@" || return
    mounts "$1"
    if [ "$6" = 0 ] && { [ -n "$mounts$swaps" ] || stacked; }; then
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
    if exported "$1"; then
        # Somebody left it; as it is ready, nothing is gained by taking it anew.
        get "$at/usbip_status" && [ "$value" = 1 ] && exported "$1" && return
        give_back "$1" 1 || return
    fi
    if driver_of "$at"; then
        put "$at/driver/unbind" "$1"
        if driver_of "$at"; then
            why="$value does not let go of it"
            return 1
        fi
    fi
    listed "$1"
    before=$?
    if ! put "$host/match_busid" "add $1"; then
        why='usbip-host does not take its name'
        # shellcheck disable=SC2086
        get "$host/match_busid" && set -- $value && if [ "$#" -ge 16 ]; then
            code=LimitsExceeded
            why='usbip-host takes no more than 16 devices'
        fi
        return 1
    fi
    if ! put "$host/bind" "$1" || ! exported "$1"; then
        why='usbip-host does not take it'
        # Worn out by a "del" of something that was bound.
        [ "$before" -ne 0 ] || why='usbip-host takes nothing in that port before a restart there'
        return 1
    fi
    if ! get "$at/usbip_status" || [ "$value" != 1 ]; then
        why="usbip-host reports state ${value:-none}"
        return 1
    fi
}

bind() {
    await_tidy
    may_bind "$@" || return
    # Noted first: whatever happens to this process, the main one can undo it.
    if ! put "$folder/held/$1" -; then
        remount
        fail DeviceFailed 'the temporary folder is full or gone'
        return
    fi
    hold "$1"
    taker=$keeper
    if ! take "$1"; then
        reason=$why
        [ -d "$at" ] || code=DeviceNotFound
        give_back "$1" 1 && rm -f "$folder/held/$1"
        [ -z "$taker" ] || kill -s KILL "$taker" 2>/dev/null
        remount
        fail "$code" "$reason"
        return
    fi
    [ -z "$taker" ] || { process "$taker" && put "$folder/held/$1" "$taker $value"; }
    say "$tag dir $folder$nl$tag ok$nl"
}

# The connectors: connect, send $TOKEN, write the first of $TEXTS that the kernel takes to $TARGET, the
# socket's number in place of "@"; end. Which one is being tried is noted in $NOTE, if that is not
# empty. Texts are separated by ";". Run by bounded, in a process of their own.
# shellcheck disable=SC2016,SC2089,SC2090 # texts for other shells
# A sh that has the connection as its input: it is one socket in both directions.
hand_over='exec 2>/dev/null; printf "%s\n" "$TOKEN" >&0 || exit 4; IFS=";"; for t in $TEXTS; do [ -z "$NOTE" ] || printf %s "$t" >"$NOTE"; printf %s "${t%@*}0${t#*@}" >"$TARGET" && exit 0; done; exit 6'

with_perl() {
    exec perl -e '
        use Socket;
        alarm 10;
        my $unix = $ENV{ADDRESS} =~ m(/);
        socket(S, $unix ? PF_UNIX : PF_INET, SOCK_STREAM, 0) or exit 2;
        connect(S, $unix ? sockaddr_un($ENV{ADDRESS})
            : sockaddr_in($ENV{ADDRESS}, INADDR_LOOPBACK)) or exit 3;
        my $t = "$ENV{TOKEN}\n";
        syswrite(S, $t) == length($t) or exit 4;
        for my $text (split /;/, $ENV{TEXTS}) {
            if ($ENV{NOTE}) {
                open(N, ">", $ENV{NOTE}) && defined(syswrite(N, $text)) or exit 7;
                close(N);
            }
            $text =~ s/@/fileno(S)/e;
            open(F, ">", $ENV{TARGET}) or exit 5;
            exit 0 if defined(syswrite(F, $text));
        }
        exit 6;'
}

# Dots stand for the indentation, which does not travel.
with_python3() {
    exec python3 -I -S -c '
import os, re, signal, socket
signal.alarm(10)
a = os.environ["ADDRESS"]
s = socket.socket(socket.AF_UNIX if "/" in a else socket.AF_INET)
s.connect(a if "/" in a else ("127.0.0.1", int(a)))
s.sendall(os.environb[b"TOKEN"] + b"\n")
exec(re.sub("(?m)^[.]+", lambda dots: " " * len(dots[0]), """
for t in os.environ["TEXTS"].split(";"):
.if os.environ["NOTE"]:
..with open(os.environ["NOTE"], "w") as n:
...n.write(t)
.f = os.open(os.environ["TARGET"], os.O_WRONLY)
.try:
..os.write(f, t.replace("@", str(s.fileno())).encode())
..os._exit(0)
.except OSError:
..os.close(f)
os._exit(6)
"""))'
}

# shellcheck disable=SC2016,SC2090
# With nofork the program gets the socket itself. What is in HAND_OVER needs no quotes in socat's.
with_socat() {
    HAND_OVER=$hand_over
    export HAND_OVER
    case $ADDRESS in
        */*) exec socat "UNIX-CONNECT:$ADDRESS" 'SYSTEM:eval $HAND_OVER,nofork' ;;
        *) exec socat "TCP4-CONNECT:127.0.0.1:$ADDRESS" 'SYSTEM:eval $HAND_OVER,nofork' ;;
    esac
}

# shellcheck disable=SC2016
# ncat stays in between, but its program has the socket, too: under which number, /proc tells. It is
# killed before it can read what is the kernel's from now on.
with_ncat() {
    case $ADDRESS in
        */*) set -- -U "$ADDRESS" ;;
        *) set -- 127.0.0.1 "$ADDRESS" ;;
    esac
    exec ncat "$@" -c '
        for s in 3 4 5 6 7 8 9; do
            [ -S "/proc/self/fd/$s" ] || continue
            printf "%s\n" "$TOKEN" >&"$s" || exit
            IFS=";"
            for t in $TEXTS; do
                [ -z "$NOTE" ] || printf %s "$t" >"$NOTE"
                printf %s "${t%@*}$s${t#*@}" >"$TARGET" && kill -s KILL "$PPID" && exit
            done
            exit
        done'
}

with_bash() {
    exec bash --norc --noprofile -c '
        exec 5<>"/dev/tcp/127.0.0.1/$ADDRESS" || exit 3
        printf "%s\n" "$TOKEN" >&5 || exit 4
        IFS=";"
        for t in $TEXTS; do
            [ -z "$NOTE" ] || printf %s "$t" >"$NOTE"
            printf %s "${t%@*}5${t#*@}" >"$TARGET" && exit
        done
        exit 6'
}

with_busybox() {
    exec busybox nc 127.0.0.1 "$ADDRESS" -e sh -c "$hand_over"
}

# hand CONNECTOR ADDRESS TOKEN TARGET TEXTS NOTE: run the connector; its status in $result.
hand() {
    ADDRESS=$2 TOKEN=$3 TARGET=$4 TEXTS=$5 NOTE=$6
    export ADDRESS TOKEN TARGET TEXTS NOTE
    bounded 10 "with_$1"
    unset TOKEN
    [ "$1:$result" != ncat:137 ] || result=0
    case $2 in
        */*) rm -f "$2" ;;
    esac
}

# fits CONNECTOR ADDRESS: whether it is one of ours that the connector can reach.
fits() {
    case $1:$2 in
        bash:*/* | busybox:*/*) false ;;
        *:*/*) [ "${2%/*}" = "$folder" ] && plain "${2##*/}" && [ "${2##*/}" != held ] ;;
        *) number "$2" && [ "$2" -ge 1 ] && [ "$2" -le 65535 ] ;;
    esac
}

connect() {
    if [ -z "$folder" ] || [ ! -e "$folder/held/$1" ]; then
        fail NotAttached "$1 is not exported here"
        return
    fi
    if ! fits "$2" "$3"; then
        fail InvalidArgs address
        return
    fi
    hand "$2" "$3" "$4" "$devices/$1/usbip_sockfd" @ ''
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
        forget "$1"
        ok
    else
        fail DeviceFailed "$why"
    fi
}

unbind() {
    if exported "$1" || keeper_of "$1"; then
        release "$1" 1
    elif [ -d "$devices/$1" ]; then
        ok
    else
        fail DeviceNotFound "$1"
    fi
}

# --- resetting ------------------------------------------------------------------------------

# USBDEVFS_RESET on the node (linux/usbdevice_fs.h): drivers that know of resets stay bound, and disks
# mounted. 2 where the device came back as another one, which the kernel then takes anew (ENODEV).
reset_with_perl() {
    exec perl -e '
        open(N, "+<", $ENV{NODE}) or exit 1;
        defined(ioctl(N, $ENV{CODE} + 0, 0)) or exit($! == 19 ? 2 : 1);'
}

reset_with_python3() {
    exec python3 -I -S -c '
import fcntl, os, sys
try: fcntl.ioctl(os.open(os.environ["NODE"], os.O_RDWR), int(os.environ["CODE"]), 0)
except OSError as error: sys.exit(2 if error.errno == 19 else 1)'
}

# reset_node: by the ioctl; false where nothing here can do that.
reset_node() {
    # _IO has other bits there (asm/ioctl.h).
    case $(uname -m) in
        alpha* | mips* | ppc* | sparc*) CODE=536892692 ;;
        *) CODE=21780 ;;
    esac
    NODE=$node
    export NODE CODE
    for name in perl python3; do
        command -v "$name" >/dev/null || continue
        bounded 15 "reset_with_$name"
        case $result in
            0 | 2) return ;;
        esac
    done
    return 1
}

# reset_by_sysfs BUSID: without a program for ioctl. To take its authorization and give it back pulls the
# device out for its drivers, and resets no more than its configuration. (To switch its port off and on
# would do more, and where the host controller tells nothing of it, lose the device.)
reset_by_sysfs() {
    if exported "$1" && ! give_back "$1" 1; then
        code=DeviceFailed
        return 1
    fi
    mounts "$1"
    if [ -n "$mounts$swaps" ] || stacked; then
        code=DeviceBusy
        why='it is mounted'
        return 1
    fi
    code=DeviceFailed
    why='nothing there can reset it'
    put "$at/authorized" 0 && put "$at/authorized" 1
}

reset() {
    if [ "$uid" != 0 ]; then
        fail NotPermittedThere "uid $uid"
        return
    fi
    meant "$@" || return
    # After a reset of its own that failed usbip-host does nothing with it any more.
    if exported "$1" && get "$at/usbip_status" && [ "$value" = 3 ] && ! give_back "$1" 1; then
        fail DeviceFailed "$why"
        return
    fi
    driver_of "$at"
    had=$value
    if { ! nodes_of "$1" || ! reset_node; } && ! reset_by_sysfs "$1"; then
        fail "$code" "$why"
        return
    fi
    waited=0
    until [ -e "$at/idVendor" ] && { [ -z "$had" ] || driver_of "$at"; }; do
        if [ "$waited" -ge 80 ]; then
            fail DeviceFailed 'it did not come back'
            return
        fi
        nap
    done
    ok
}

# --- importing ------------------------------------------------------------------------------

# vhci: its folder in $vhci; false where the module is not there, or only just being loaded.
vhci() {
    get "$sys/module/vhci_hcd/initstate" && [ "$value" != live ] && return 1
    for vhci in "$sys/devices/platform/vhci_hcd.0" "$sys/devices/platform/vhci_hcd"; do
        [ -e "$vhci/attach" ] && return
    done
    return 1
}

load_vhci() {
    vhci && return
    bounded 20 modprobe vhci-hcd
    waited=0
    until vhci; do
        [ -d "$sys/module/vhci_hcd" ] && [ "$waited" -lt 50 ] || return
        nap
    done
}

# ports: lines "PORT POOL STATE DEVID BUSID" in $ports, numbers without zeros in front, DEVID in hex.
# Before 4.13 there is no column for the pool, and the last one tells the bus id all the same.
ports() {
    ports=
    vhci || return
    set +f
    set -- "$vhci/status" "$vhci"/status.*
    set -f
    for place; do
        [ -e "$place" ] || continue
        while read -r pool port state speed devid rest; do
            case $pool in
                hs | ss) ;;
                *)
                    rest="$devid $rest"
                    devid=$speed
                    speed=$state
                    state=$port
                    port=$pool
                    pool=hs
                    ;;
            esac
            number "$port" && number "$state" || continue
            port=${port#"${port%%[!0]*}"}
            ports="$ports${port:-0} $pool ${state#"${state%%[!0]*}"} $devid ${rest##* }$nl"
        done 2>/dev/null <"$place"
    done
}

# free_ports SPEED: up to 16 that a device of SPEED may have, in $free.
free_ports() {
    case $1 in
        [123]) wanted=hs ;;
        *) wanted=ss ;;
    esac
    free=
    count=0
    ports
    while read -r port pool state _; do
        if [ "$pool:$state" = "$wanted:4" ] && [ "$count" -lt 16 ]; then
            free="$free${free:+ }$port"
            count=$((count + 1))
        fi
    done <<EOT
$ports
EOT
}

# at_port PORT DEVID: the port's state in $state, the bus id here of the device in $at, empty before it
# has one; false where the port is free or has another device.
at_port() {
    at=
    ports
    while read -r port pool state devid busid; do
        [ "$port" = "$1" ] || continue
        case $state in
            5 | 7) return ;;
            6)
                [ "$((0x$devid))" = "$2" ] || return
                busid "$busid" && at=$busid
                return 0
                ;;
        esac
        return 1
    done <<EOT
$ports
EOT
    return 1
}

# A note is "PORT @ DEVID SPEED" while the port is being taken, and "PORT + DEVID SPEED" once it was.

# let_go NOTE: free the port that it names; fails with a reason in $why where it stays taken.
let_go() {
    get "$1" || value=
    note=$1
    # shellcheck disable=SC2086
    set -- $value
    waited=0
    told=
    while number "${3-}" && at_port "$1" "$3"; do
        if [ -z "$told" ] && { [ "$2" = + ] || [ "$state" = 6 ]; }; then
            put "$vhci/detach" "$1"
            told=1
        fi
        if [ "$waited" -ge 50 ]; then
            why='its port does not come free'
            return 1
        fi
        nap
    done
    rm -f "$note"
}

# here BUSID: the device of that port is $at.
here() {
    [ -n "$folder" ] && get "$folder/held/port.$1" || return
    # shellcheck disable=SC2086
    set -- $value
    [ "${2-}" = + ] && at_port "$1" "$3" && [ -n "$at" ]
}

port() {
    if [ "$uid" != 0 ]; then
        fail NotPermittedThere "uid $uid"
    elif [ "$connectors" = none ]; then
        fail RemoteUnsupported 'nothing that connects'
    elif [ -z "$folder" ]; then
        fail DeviceFailed 'no temporary folder'
    elif ! load_vhci; then
        fail ModuleUnavailable vhci-hcd
    else
        await_tidy
        free_ports "$2"
        if [ -z "$free" ]; then
            fail NoFreePort "$wanted"
        else
            say "$tag dir $folder$nl$tag ok$nl"
        fi
    fi
}

attach() {
    if [ -z "$folder" ] || [ -e "$folder/held/port.$1" ]; then
        fail AlreadyAttached "$1"
        return
    fi
    if ! fits "$4" "$5"; then
        fail InvalidArgs address
        return
    fi
    free_ports "$3"
    texts=
    for port in $free; do
        texts="$texts${texts:+;}$port @ $2 $3"
    done
    if [ -z "$texts" ]; then
        fail NoFreePort "$wanted"
        return
    fi
    mine=$folder/held/port.$1
    hand "$4" "$5" "$6" "$vhci/attach" "$texts" "$mine"
    get "$mine" || value=
    taken=${value%% *}
    if [ "$result" -ne 0 ] || [ -z "$taken" ]; then
        let_go "$mine"
        [ "$result" -ne 6 ] || { fail NoFreePort "$wanted"; return; }
        fail DeviceFailed "$4 could not hand over a connection"
        return
    fi
    put "$mine" "$taken + $2 $3"
    waited=0
    code=DeviceFailed
    reason='it went away while it was being started'
    while at_port "$taken" "$2"; do
        if [ -n "$at" ] && get "$devices/$at/idVendor"; then
            awake "$at"
            say "$tag at $at $taken$nl$tag ok$nl"
            return
        fi
        if [ "$waited" -ge 150 ]; then
            code=TimedOut
            reason='it did not answer there'
            break
        fi
        nap
    done
    let_go "$mine"
    fail "$code" "$reason"
}

# awake BUSID: USB/IP carries no wakeup, and udev may have asked for the device to be suspended.
awake() {
    get "$devices/$1/power/control" && [ "$value" = auto ] && put "$devices/$1/power/control" on
}

look() {
    if here "$1"; then
        awake "$at"
        describe "$at"
    else
        fail NotAttached "$1"
    fi
}

detach() {
    if [ -z "$folder" ] || [ ! -e "$folder/held/port.$1" ]; then
        fail NotAttached "$1"
    elif let_go "$folder/held/port.$1"; then
        ok
    else
        fail DeviceFailed "$why"
    fi
}

# --- what comes and goes --------------------------------------------------------------------

# A uevent socket (netlink family 15, group 1): one line 0.2 s after the last of a burst, or after
# 2 s, and one at the start, for what came before; an error is ENOBUFS, events that were lost. Ends
# when the main process is gone.
watch_with_perl() {
    exec perl -e '
        socket(S, 16, 3, 15) && bind(S, pack("SSLL", 16, 0, 0, 1)) or exit 3;
        my ($line, $main, $first) = ("$ENV{TAG} changed\n", $ENV{MAIN}, time);
        while (kill 0, $main) {
            my $in = "";
            vec($in, fileno(S), 1) = 1;
            my $found = select($in, undef, undef, $first ? 0.2 : 5);
            if ($found > 0) {
                my $event;
                $first ||= time if !defined(recv(S, $event, 65536, 0)) ||
                    $event =~ /\0ACTION=(add|remove)\0/ && $event =~ /\0SUBSYSTEM=usb\0/;
            }
            if ($first && ($found < 1 || time - $first >= 2)) {
                syswrite(STDOUT, $line) or exit;
                $first = 0;
            }
        }'
}

# Dots stand for the indentation, which does not travel.
watch_with_python3() {
    exec python3 -I -S -c '
import os, re, select, socket, time
s = socket.socket(16, 3, 15)
s.bind((0, 1))
line, main, first = os.environb[b"TAG"] + b" changed\n", int(os.environ["MAIN"]), time.time()
exec(re.sub("(?m)^[.]+", lambda dots: " " * len(dots[0]), """
while True:
.os.kill(main, 0)
.found = select.select([s], [], [], 0.2 if first else 5)[0]
.if found:
..try:
...event = s.recv(65536)
..except OSError:
...event = b"\\0ACTION=add\\0SUBSYSTEM=usb\\0"
..if re.search(b"\\0ACTION=(add|remove)\\0", event) and b"\\0SUBSYSTEM=usb\\0" in event:
...first = first or time.time()
.if first and (not found or time.time() - first >= 2):
..os.write(1, line)
..first = 0
"""))'
}

# The same by a pipe with a name, which is gone as soon as both ends are open.
watch_with_udevadm() {
    pipe=$(mktemp -d 2>/dev/null </dev/null) && mkfifo "$pipe/events" || return
    udevadm monitor --kernel --subsystem-match=usb >"$pipe/events" &
    children=$!
    {
        rm -rf "$pipe"
        while read -r _ action _; do
            case $action in
                add | remove) ;;
                *) continue ;;
            esac
            sleep 0.2 || sleep 1
            say "$TAG changed$nl" || break
        done
    } <"$pipe/events" &
    children="$children $!"
    while main_lives; do
        rest
    done
    # shellcheck disable=SC2086
    kill -s KILL $children
    exit 0
}

# fingerprint: of what is plugged in, in $value.
fingerprint() {
    print=
    set +f
    set -- "$devices"/[1-9]*
    set -f
    for place; do
        get "$place/devnum"
        print="$print${place##*/}/$value "
    done
    value=$print
}

# Who is told looks for themselves, and may see what comes and goes before our next look; that one
# tells again.
watch_by_looking() {
    again=
    while main_lives; do
        rest
        fingerprint
        if [ "$value" != "$known" ]; then
            known=$value
            again=1
            say "$TAG changed$nl"
        elif [ "$again" ]; then
            again=
            say "$TAG changed$nl"
        fi
    done
}

# rest: some seconds; a signal shortens them.
rest() {
    if [ "$sys" = /sys ]; then sleep 5 & else sleep 1 & fi
    nap=$!
    [ -z "$stop" ] || kill -s KILL "$nap"
    wait "$nap"
    wait "$nap"
}

main_lives() {
    [ -z "$stop" ] && parent && [ "$value" = "$main" ]
}

# watch: in a process of its own, until USR2.
watch() {
    TAG=$tag MAIN=$main
    export TAG MAIN
    exec 9>&- </dev/null 2>/dev/null
    children=
    nap=
    stop=
    trap 'stop=1; kill -s KILL $children $nap' USR2
    if [ "$sys" = /sys ]; then
        for name in perl python3; do
            command -v "$name" >/dev/null || continue
            "watch_with_$name" &
            children=$!
            [ -z "$stop" ] || kill -s KILL "$children"
            wait "$children"
            wait "$children"
            main_lives || exit 0
            children=
        done
        if command -v udevadm >/dev/null; then
            watch_with_udevadm
        fi
    fi
    watch_by_looking
    exit 0
}

start_watch() {
    if [ -n "$watcher" ]; then
        fail InvalidArgs 'watching already'
        return
    fi
    fingerprint
    known=$value
    watch &
    watcher=$!
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
        if mkdir "$folder/held" 2>/dev/null && process "$main" &&
            put "$folder/held/agent" "$main $value $sys"; then
            # Held open by every process of the agent; the keepers see its end when all are gone.
            mkfifo "$folder/held/life" 2>/dev/null </dev/null && exec 9<>"$folder/held/life"
            # sshd makes its sockets as the user that logged in.
            if [ "$uid" = 0 ] && number "${SUDO_UID-}" && number "${SUDO_GID-}"; then
                chown "$SUDO_UID:$SUDO_GID" "$folder"
            fi
            return
        fi
        rm -rf "$folder"
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
        case $id in
            port.*) let_go "$note" </dev/null >/dev/null 2>&1 & ;;
            *)
                busid "$id" || continue
                { give_back "$id" 1; forget "$id"; } </dev/null >/dev/null 2>&1 &
                ;;
        esac
        pids="$pids $!"
    done
    await 25 "$pids"
    # Those whose process was too late, too.
    for note; do
        id=${note##*/}
        busid "$id" && forget "$id"
    done
    rm -rf "$folder"
}

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
    for name in perl python3 socat ncat bash; do
        # What busybox's "command -v" names may be a file that nobody can run.
        value=$(command -v "$name" 2>/dev/null) && [ -x "$value" ] &&
            connectors="$connectors${connectors:+,}$name"
    done
    if [ -z "$connectors" ] && command -v busybox >/dev/null 2>&1; then
        case $(busybox nc --help 2>&1 </dev/null) in
            *'-e PROG'*) connectors=busybox ;;
        esac
    fi
    connectors=${connectors:-none}
    modern=
    case $kernel in
        [0-4].* | 5.0 | 5.0[!0-9]*) ;;
        [0-9]*) modern=1 ;;
    esac
    say "hello 1 $uid $kernel $os $connectors$nl"
}

trap '' PIPE
trap finish HUP INT TERM
cd /
start_watchdog
hello
start_tidy
# A last line without its newline was cut off and is no request.
while IFS= read -r line; do
    kill -s USR1 "$watchdog" 2>/dev/null
    case $line in
        ping) say "pong$nl" ;;
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
