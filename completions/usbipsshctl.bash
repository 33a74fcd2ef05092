# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
# bash: what usbipsshctl itself says may stand there.

_usbipsshctl() {
    local word
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        COMPREPLY+=("$(printf %q "$word")")
    done < <("$1" complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -F _usbipsshctl usbipsshctl
