# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# Requests connect, release and unbind: the connection of what is exported, and its end.

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
