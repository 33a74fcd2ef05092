# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# What is mounted from a device, swapped to it, or built on top of it.

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
