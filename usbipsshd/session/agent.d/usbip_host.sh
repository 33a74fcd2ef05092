# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# How usbip-host is handled: its names, who keeps a device in memory, how it lets go.
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
