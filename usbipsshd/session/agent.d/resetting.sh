# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# Request reset.

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
