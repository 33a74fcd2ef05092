# SPDX-License-Identifier: GPL-3.0-or-later
# fish: what usbipsshctl itself says may stand there.

function __usbipsshctl_candidates
    set -l words (commandline -opc)
    set -l program $words[1]
    set -e words[1]
    set -l current (commandline -ct)
    $program complete -- $words "$current" 2>/dev/null
end
complete -c usbipsshctl -f -a '(__usbipsshctl_candidates)'
