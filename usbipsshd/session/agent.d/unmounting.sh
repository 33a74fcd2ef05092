# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# Takes down what is on a device, all of it or nothing.

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
