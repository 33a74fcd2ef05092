# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# Requests port, attach, look and detach: a device of the other end on this vhci.

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
