# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# How vhci is handled: its ports, and the notes of those that are ours.
#
# What the kernel wants (vhci_sysfs.c):
# - Reading vhci's status while the module is being loaded can halt a 6.1 kernel.
# - While a port is in state 5 its file does not tell which device it is getting.

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

# count_free: how many ports of each pool are free, in $hs and $ss.
count_free() {
    hs=0
    ss=0
    ports
    while read -r _ pool state _; do
        case $pool:$state in
            hs:4) hs=$((hs + 1)) ;;
            ss:4) ss=$((ss + 1)) ;;
        esac
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
