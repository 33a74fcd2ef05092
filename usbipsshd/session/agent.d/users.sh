# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# Who uses what is on a device.

# used: whether a process uses any of it; says in $why which and what.
used() {
    set -- -e /proc/
    IFS=$nl
    for mount in $mounts; do
        plainly "${mount##* }"
        set -- "$@" -e "-> $value"
    done
    IFS=' '
    for source in $sources; do
        set -- "$@" -e "-> $source"
    done
    set +f
    # shellcheck disable=SC2010 # what is listed has plain names
    found=$(ls -l /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/exe /proc/[0-9]*/fd 2>/dev/null |
        grep -F "$@")
    set -f
    pid=
    while IFS= read -r line; do
        case $line in
            /proc/*/fd:)
                pid=${line#/proc/}
                pid=${pid%/fd:}
                continue
                ;;
            */proc/*' -> '*)
                pid=${line%% -> *}
                pid=${pid##*/proc/}
                pid=${pid%/*}
                ;;
            *' -> '*) ;;
            *) continue ;;
        esac
        line=${line#* -> }
        case $sources in
            *" $line "*) point=$line ;;
            *) below "$line" || continue ;;
        esac
        by "$pid"
        return
    done <<EOT
$found
EOT
    # Files that are mapped into memory and closed.
    IFS=$nl
    for mount in $mounts; do
        IFS=' '
        plainly "${mount##* }"
        point=$value
        set +f
        found=$(grep -l -s -F -e " ${point%/}/" /proc/[0-9]*/maps)
        set -f
        if [ -n "$found" ]; then
            found=${found%%"$nl"*}
            found=${found#/proc/}
            by "${found%/maps}"
            return
        fi
        IFS=$nl
    done
    IFS=' '
    return 1
}

# by PID: it uses $point.
by() {
    get "/proc/$1/comm" || value=something
    why="$value (process $1) uses $point"
}
