# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# Requests bind, connect, release and unbind: a device of this machine on its usbip-host.

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
    # Also one that was given back without a driver, as its user had wished.
    if exported "$1" || keeper_of "$1" || { [ -d "$devices/$1" ] && ! driver_of "$devices/$1"; }; then
        release "$1" 1
    elif [ -d "$devices/$1" ]; then
        ok
    else
        fail DeviceNotFound "$1"
    fi
}
