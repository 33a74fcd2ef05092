# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# Request watch: tells that something comes or goes.

# A uevent socket (netlink family 15, group 1): one line 0.2 s after the last of a burst, or after
# 2 s, and one at the start, for what came before; an error is ENOBUFS, events that were lost. Ends
# when the main process is gone.
watch_with_perl() {
    exec perl -e '
        socket(S, 16, 3, 15) && bind(S, pack("SSLL", 16, 0, 0, 1)) or exit 3;
        my ($line, $main, $first) = ("$ENV{TAG} changed\n", $ENV{MAIN}, time);
        while (kill 0, $main) {
            my $in = "";
            vec($in, fileno(S), 1) = 1;
            my $found = select($in, undef, undef, $first ? 0.2 : 5);
            if ($found > 0) {
                my $event;
                $first ||= time if !defined(recv(S, $event, 65536, 0)) ||
                    $event =~ /\0ACTION=(add|remove)\0/ && $event =~ /\0SUBSYSTEM=usb\0/;
            }
            if ($first && ($found < 1 || time - $first >= 2)) {
                syswrite(STDOUT, $line) or exit;
                $first = 0;
            }
        }'
}

# Dots stand for the indentation, which does not travel.
watch_with_python3() {
    exec python3 -I -S -c '
import os, re, select, socket, time
s = socket.socket(16, 3, 15)
s.bind((0, 1))
line, main, first = os.environb[b"TAG"] + b" changed\n", int(os.environ["MAIN"]), time.time()
exec(re.sub("(?m)^[.]+", lambda dots: " " * len(dots[0]), """
while True:
.os.kill(main, 0)
.found = select.select([s], [], [], 0.2 if first else 5)[0]
.if found:
..try:
...event = s.recv(65536)
..except OSError:
...event = b"\\0ACTION=add\\0SUBSYSTEM=usb\\0"
..if re.search(b"\\0ACTION=(add|remove)\\0", event) and b"\\0SUBSYSTEM=usb\\0" in event:
...first = first or time.time()
.if first and (not found or time.time() - first >= 2):
..os.write(1, line)
..first = 0
"""))'
}

# The same by a pipe with a name, which is gone as soon as both ends are open.
watch_with_udevadm() {
    pipe=$(mktemp -d 2>/dev/null </dev/null) && mkfifo "$pipe/events" || return
    udevadm monitor --kernel --subsystem-match=usb >"$pipe/events" &
    children=$!
    {
        rm -rf "$pipe"
        while read -r _ action _; do
            case $action in
                add | remove) ;;
                *) continue ;;
            esac
            sleep 0.2 || sleep 1
            say "$TAG changed$nl" || break
        done
    } <"$pipe/events" &
    children="$children $!"
    while main_lives; do
        rest
    done
    # shellcheck disable=SC2086
    kill -s KILL $children
    exit 0
}

# fingerprint: of what is plugged in, in $value.
fingerprint() {
    print=
    set +f
    set -- "$devices"/[1-9]*
    set -f
    for place; do
        get "$place/devnum"
        print="$print${place##*/}/$value "
    done
    value=$print
}

# Who is told looks for themselves, and may see what comes and goes before our next look; that one
# tells again.
watch_by_looking() {
    again=
    while main_lives; do
        rest
        fingerprint
        if [ "$value" != "$known" ]; then
            known=$value
            again=1
            say "$TAG changed$nl"
        elif [ "$again" ]; then
            again=
            say "$TAG changed$nl"
        fi
    done
}

# rest: some seconds; a signal shortens them.
rest() {
    if [ "$sys" = /sys ]; then sleep 5 & else sleep 1 & fi
    nap=$!
    [ -z "$stop" ] || kill -s KILL "$nap"
    wait "$nap"
    wait "$nap"
}

main_lives() {
    [ -z "$stop" ] && parent && [ "$value" = "$main" ]
}

# watch: in a process of its own, until USR2.
watch() {
    TAG=$tag MAIN=$main
    export TAG MAIN
    exec 9>&- </dev/null 2>/dev/null
    children=
    nap=
    stop=
    trap 'stop=1; kill -s KILL $children $nap' USR2
    if [ "$sys" = /sys ]; then
        for name in perl python3; do
            command -v "$name" >/dev/null || continue
            "watch_with_$name" &
            children=$!
            [ -z "$stop" ] || kill -s KILL "$children"
            wait "$children"
            wait "$children"
            main_lives || exit 0
            children=
        done
        if command -v udevadm >/dev/null; then
            watch_with_udevadm
        fi
    fi
    watch_by_looking
    exit 0
}

start_watch() {
    if [ -n "$watcher" ]; then
        fail InvalidArgs 'watching already'
        return
    fi
    fingerprint
    known=$value
    watch &
    watcher=$!
}
