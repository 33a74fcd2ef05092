# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# Request facts: what there is to export and to import with.

# facts: what there is to export and to import with.
facts() {
    out=
    count=0
    if [ -d "$host" ]; then
        add "m loaded"
        if get "$host/match_busid"; then
            # shellcheck disable=SC2086
            set -- $value
            count=$#
        fi
    elif bounded 10 modprobe -n -q usbip-host; then
        add "m there"
    else
        add "m missing"
    fi
    add "s $count"
    if vhci; then
        add "v loaded"
        count_free
        add "p $hs $ss"
    elif bounded 10 modprobe -n -q vhci-hcd; then
        add "v there"
    else
        add "v missing"
    fi
    for file in /etc/os-release /usr/lib/os-release; do
        [ -r "$file" ] || continue
        while read -r value; do
            case $value in
                ID_LIKE=*)
                    value=${value#ID_LIKE=}
                    value=${value#[\"\']}
                    value=${value%[\"\']}
                    for word in $value; do
                        case $word in
                            '' | *[!a-z0-9._-]*) ;;
                            *) add "l $word" ;;
                        esac
                    done
                    ;;
            esac
        done <"$file"
        break
    done
    [ -z "$folder" ] || add "dir $folder"
    say "$out"
    ok
}
