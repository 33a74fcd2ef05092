#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
#
# All that ever runs on a remote. It is sent through ssh, read from standard input and never
# installed; usage: sh agent.sh [SYSFS_ROOT [SILENCE]], the arguments for tests. Its parts are in
# agent.d (put together by script.py). Without comments and indentation it must mean the same.
#
# Protocol, version 1. Lines on standard input are requests, "TAG VERB ARGS...", TAG a decimal
# number, single spaces; lines on standard output begin with the tag and each request ends with one
#   TAG ok       or      TAG fail CODE DETAIL
# where CODE is an error name of the D-Bus contract. Requests run side by side. Lines are written
# whole, at most 4096 bytes at a time; text from sysfs comes last on its line, as it is.
#
#   hello 1 UID KERNEL OSID CONNECTORS     unasked, first. CONNECTORS: perl,python3,socat,
#                                          ncat,bash,busybox, those that are there, or none
#   TAG list                               b BUSNUM SERIAL      each bus and its root hub's serial
#                                          d BUSID              a device; what follows is its own
#                                          a NAME VALUE         an attribute, also driver
#                                          i                    an interface; a and n are its own
#                                          n NODE               input/event3, sda1, net/eth0
#   TAG describe BUSID                     the same of one device, and
#                                          x HEX                a piece of its descriptors
#   TAG bind BUSID VID PID BUSNUM DEVNUM UNMOUNT
#                                          give that very device to usbip-host; answers with
#                                          dir FOLDER           where ssh may put its sockets
#   TAG connect BUSID CONNECTOR ADDRESS TOKEN
#                                          connect to a socket in FOLDER or to a port of 127.0.0.1
#                                          (bash and busybox: only that),
#                                          send TOKEN and a newline, give the socket to usbip-host
#   TAG release BUSID REBIND               end the connection; give the device back
#   TAG port BUSID SPEED                   for a device of the other end, which has BUSID there: see
#                                          that vhci has a port for SPEED (1, 2, 3 or 5); answers with
#                                          dir FOLDER           where ssh may put its sockets
#   TAG attach BUSID DEVID SPEED CONNECTOR ADDRESS TOKEN
#                                          connect as above, give the socket to vhci, wait for the
#                                          device; answers with
#                                          at BUSID PORT        where it is here
#   TAG look BUSID                         describe what is on that port, and keep it awake
#   TAG detach BUSID                       free that port
#   TAG unbind BUSID                       the same whoever had exported it
#   TAG reset BUSID VID PID BUSNUM DEVNUM  reset the port of that very device
#   TAG facts                              m loaded|there|missing   usbip-host; loads nothing
#                                          s COUNT              bus ids in match_busid
#                                          v loaded|there|missing   the same for vhci-hcd
#                                          p HS SS              its free ports, where it is loaded
#                                          l OSID               what its system is like, best first
#                                          dir FOLDER           as bind; none without root
#   TAG watch                              changed              each time a USB device or interface
#                                                               came or went, until the end
#   ping                                   no tag; answers "pong": both are still there
#
# At the end of input, on HUP, INT, TERM, and when nothing was heard for $silence seconds, every
# device exported here is given back, every port taken here freed, the folder removed, and no
# process stays.
#
# An agent that was killed with all its processes leaves its folder in /run; the next one finds it
# there and gives back what it says. Nothing may be sent before hello: a shell's head may read ahead.

# shellcheck source-path=SCRIPTDIR
# shellcheck disable=SC2317 # functions are called through start, after and bounded
# shellcheck disable=SC2015 # in "a && b || c" here, c is meant to follow either

# Wildcards are switched on only where they are wanted; fields are separated by single spaces.
set -f
IFS=' '
umask 077
LC_ALL=C
export LC_ALL
unset CDPATH ENV BASH_ENV PERL5OPT PERL5LIB PERLLIB
PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin:/run/current-system/sw/bin
export PATH

sys=${1:-/sys}
# A made-up tree brings a modprobe of its own.
[ "$sys" = /sys ] || PATH=$sys/bin:$PATH
devices=$sys/bus/usb/devices
drivers=$sys/bus/usb/drivers
host=$drivers/usbip-host
usbfs=/dev/bus/usb
[ "$sys" = /sys ] || usbfs=$sys/fake/usb
# Seconds. A ping comes every three; one that a cut of five swallows is sent again after up to nine.
silence=13
case ${2-} in
    '' | *[!0-9]*) ;;
    *) silence=$2 ;;
esac
nl='
'
tab='	'
main=$$
folder=
jobs=
njobs=0
watchdog=
watcher=
tidying=

# The parts, in this order. In what is sent and installed each stands in place of its line.
. "$(dirname "$0")/agent.d/basics.sh"
. "$(dirname "$0")/agent.d/arguments.sh"
. "$(dirname "$0")/agent.d/listing.sh"
. "$(dirname "$0")/agent.d/filesystems.sh"
. "$(dirname "$0")/agent.d/users.sh"
. "$(dirname "$0")/agent.d/unmounting.sh"
. "$(dirname "$0")/agent.d/remounting.sh"
. "$(dirname "$0")/agent.d/facts.sh"
. "$(dirname "$0")/agent.d/usbip_host.sh"
. "$(dirname "$0")/agent.d/connectors.sh"
. "$(dirname "$0")/agent.d/exporting.sh"
. "$(dirname "$0")/agent.d/resetting.sh"
. "$(dirname "$0")/agent.d/vhci.sh"
. "$(dirname "$0")/agent.d/importing.sh"
. "$(dirname "$0")/agent.d/hotplug.sh"
. "$(dirname "$0")/agent.d/folder.sh"
. "$(dirname "$0")/agent.d/leftovers.sh"
. "$(dirname "$0")/agent.d/ending.sh"
. "$(dirname "$0")/agent.d/watchdog.sh"
. "$(dirname "$0")/agent.d/requests.sh"
. "$(dirname "$0")/agent.d/greeting.sh"

trap '' PIPE
trap finish HUP INT TERM
cd /
start_watchdog
hello
start_tidy
# A last line without its newline was cut off and is no request.
while IFS= read -r line; do
    kill -s USR1 "$watchdog" 2>/dev/null
    case $line in
        ping) say "pong$nl" ;;
        *[!A-Za-z0-9\ ._/-]* | '' | ' '* | *' ' | *'  '*)
            tag=${line%%[!0-9]*}
            number "$tag" && fail InvalidArgs request
            ;;
        *)
            # shellcheck disable=SC2086 # no wildcards (set -f), checked characters
            request $line
            ;;
    esac
done
finish
