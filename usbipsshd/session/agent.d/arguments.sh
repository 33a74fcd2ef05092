# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# What a request may say: each is true for a word that is one.

number() {
    case $1 in
        '' | *[!0-9]* | ???????????*) return 1 ;;
    esac
}

hex4() {
    case $1 in
        [0-9a-f][0-9a-f][0-9a-f][0-9a-f]) ;;
        *) return 1 ;;
    esac
}

flag() {
    case $1 in
        0 | 1) ;;
        *) return 1 ;;
    esac
}

busid() {
    case $1 in
        '' | *[!0-9.-]* | *-*-* | *..* | *.-* | *-.* | [.0-]* | *[.-] | *[.-]0*) return 1 ;;
        ????????????????????????????????*) return 1 ;;
    esac
    case ${1%%-*} in
        *.* | "$1") return 1 ;;
    esac
}

# A name that is no path: letters, digits, and none of the special ones.
plain() {
    case $1 in
        '' | *[!A-Za-z0-9._-]* | [.-]*) return 1 ;;
    esac
}

token() {
    case $1 in
        *[!0-9a-f]*) return 1 ;;
    esac
    [ "${#1}" -eq 32 ]
}

connector() {
    case $1 in
        perl | python3 | socat | ncat | bash | busybox) ;;
        *) return 1 ;;
    esac
}

# As vhci numbers them: low, full, high and super speed.
speed() {
    case $1 in
        [1235]) ;;
        *) return 1 ;;
    esac
}
