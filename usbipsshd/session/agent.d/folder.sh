# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# The folder of this agent: its sockets, and notes of what it has taken.

make_folder() {
    for base in /run "${TMPDIR-}" /tmp; do
        case $base in
            *[!A-Za-z0-9._/-]*) continue ;;
            /*) ;;
            *) continue ;;
        esac
        folder=$(mktemp -d "$base/usbipssh.XXXXXX" 2>/dev/null </dev/null) ||
            { folder=$base/usbipssh.$main && mkdir "$folder" 2>/dev/null; } || continue
        if mkdir "$folder/held" 2>/dev/null && process "$main" &&
            put "$folder/held/agent" "$main $value $sys"; then
            # Held open by every process of the agent; the keepers see its end when all are gone.
            mkfifo "$folder/held/life" 2>/dev/null </dev/null && exec 9<>"$folder/held/life"
            # sshd makes its sockets as the user that logged in.
            if [ "$uid" = 0 ] && number "${SUDO_UID-}" && number "${SUDO_GID-}"; then
                chown "$SUDO_UID:$SUDO_GID" "$folder"
            fi
            return
        fi
        rm -rf "$folder"
    done
    folder=
}

# prepare: a folder for the first export.
prepare() {
    if [ -z "$folder" ] && [ "$uid" = 0 ]; then
        make_folder
        [ -z "$folder" ] || start_watchdog
    fi
}

# release_all: give back what is still noted, side by side; remove the folder.
release_all() {
    [ -n "$folder" ] || return
    pids=
    set +f
    set -- "$folder/held/"*
    set -f
    for note; do
        id=${note##*/}
        case $id in
            port.*) let_go "$note" </dev/null >/dev/null 2>&1 & ;;
            *)
                busid "$id" || continue
                { give_back "$id" 1; forget "$id"; } </dev/null >/dev/null 2>&1 &
                ;;
        esac
        pids="$pids $!"
    done
    await 25 "$pids"
    # Those whose process was too late, too.
    for note; do
        id=${note##*/}
        busid "$id" && forget "$id"
    done
    rm -rf "$folder"
}
