# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# Requests list and describe: what is plugged in, read from sysfs.

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
