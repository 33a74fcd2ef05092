# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# Puts back what was taken down, when the device could not be had after all.

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
