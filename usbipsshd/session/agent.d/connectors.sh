# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
#
# The programs that connect a socket and hand it to the kernel: they connect, send $TOKEN, write the
# first of $TEXTS that the kernel takes to $TARGET, the socket's number in place of "@"; end. Which one
# is being tried is noted in $NOTE, if that is not empty. Texts are separated by ";". Run by bounded, in
# a process of their own.

# shellcheck disable=SC2016,SC2089,SC2090 # texts for other shells
# A sh that has the connection as its input: it is one socket in both directions.
hand_over='exec 2>/dev/null; printf "%s\n" "$TOKEN" >&0 || exit 4; IFS=";"; for t in $TEXTS; do [ -z "$NOTE" ] || printf %s "$t" >"$NOTE"; printf %s "${t%@*}0${t#*@}" >"$TARGET" && exit 0; done; exit 6'

with_perl() {
    exec perl -e '
        use Socket;
        alarm 10;
        my $unix = $ENV{ADDRESS} =~ m(/);
        socket(S, $unix ? PF_UNIX : PF_INET, SOCK_STREAM, 0) or exit 2;
        connect(S, $unix ? sockaddr_un($ENV{ADDRESS})
            : sockaddr_in($ENV{ADDRESS}, INADDR_LOOPBACK)) or exit 3;
        my $t = "$ENV{TOKEN}\n";
        syswrite(S, $t) == length($t) or exit 4;
        for my $text (split /;/, $ENV{TEXTS}) {
            if ($ENV{NOTE}) {
                open(N, ">", $ENV{NOTE}) && defined(syswrite(N, $text)) or exit 7;
                close(N);
            }
            $text =~ s/@/fileno(S)/e;
            open(F, ">", $ENV{TARGET}) or exit 5;
            exit 0 if defined(syswrite(F, $text));
        }
        exit 6;'
}

# Dots stand for the indentation, which does not travel.
with_python3() {
    exec python3 -I -S -c '
import os, re, signal, socket
signal.alarm(10)
a = os.environ["ADDRESS"]
s = socket.socket(socket.AF_UNIX if "/" in a else socket.AF_INET)
s.connect(a if "/" in a else ("127.0.0.1", int(a)))
s.sendall(os.environb[b"TOKEN"] + b"\n")
exec(re.sub("(?m)^[.]+", lambda dots: " " * len(dots[0]), """
for t in os.environ["TEXTS"].split(";"):
.if os.environ["NOTE"]:
..with open(os.environ["NOTE"], "w") as n:
...n.write(t)
.f = os.open(os.environ["TARGET"], os.O_WRONLY)
.try:
..os.write(f, t.replace("@", str(s.fileno())).encode())
..os._exit(0)
.except OSError:
..os.close(f)
os._exit(6)
"""))'
}

# shellcheck disable=SC2016,SC2090
# With nofork the program gets the socket itself. What is in HAND_OVER needs no quotes in socat's.
with_socat() {
    HAND_OVER=$hand_over
    export HAND_OVER
    case $ADDRESS in
        */*) exec socat "UNIX-CONNECT:$ADDRESS" 'SYSTEM:eval $HAND_OVER,nofork' ;;
        *) exec socat "TCP4-CONNECT:127.0.0.1:$ADDRESS" 'SYSTEM:eval $HAND_OVER,nofork' ;;
    esac
}

# shellcheck disable=SC2016
# ncat stays in between, but its program has the socket, too: under which number, /proc tells. Before the
# kernel has it ncat is stopped, and then killed: it must not read what is the kernel's from then on.
with_ncat() {
    case $ADDRESS in
        */*) set -- -U "$ADDRESS" ;;
        *) set -- 127.0.0.1 "$ADDRESS" ;;
    esac
    exec ncat "$@" -c '
        for s in 3 4 5 6 7 8 9; do
            [ -S "/proc/self/fd/$s" ] || continue
            printf "%s\n" "$TOKEN" >&"$s" || exit
            kill -s STOP "$PPID" || exit
            while read -r _ _ state _ <"/proc/$PPID/stat"; do
                case $state in
                    [RSD]) ;;
                    *) break ;;
                esac
            done
            IFS=";"
            for t in $TEXTS; do
                [ -z "$NOTE" ] || printf %s "$t" >"$NOTE"
                printf %s "${t%@*}$s${t#*@}" >"$TARGET" && kill -s KILL "$PPID" && exit
            done
            kill -s CONT "$PPID"
            exit
        done'
}

with_bash() {
    exec bash --norc --noprofile -c '
        exec 5<>"/dev/tcp/127.0.0.1/$ADDRESS" || exit 3
        printf "%s\n" "$TOKEN" >&5 || exit 4
        IFS=";"
        for t in $TEXTS; do
            [ -z "$NOTE" ] || printf %s "$t" >"$NOTE"
            printf %s "${t%@*}5${t#*@}" >"$TARGET" && exit
        done
        exit 6'
}

with_busybox() {
    exec busybox nc 127.0.0.1 "$ADDRESS" -e sh -c "$hand_over"
}

# hand CONNECTOR ADDRESS TOKEN TARGET TEXTS NOTE: run the connector; its status in $result.
hand() {
    ADDRESS=$2 TOKEN=$3 TARGET=$4 TEXTS=$5 NOTE=$6
    export ADDRESS TOKEN TARGET TEXTS NOTE
    bounded 10 "with_$1"
    unset TOKEN
    # ncat ends well whatever became of its program.
    case $1:$result in
        ncat:137) result=0 ;;
        ncat:0) result=1 ;;
    esac
    case $2 in
        */*) rm -f "$2" ;;
    esac
}

# fits CONNECTOR ADDRESS: whether it is one of ours that the connector can reach.
fits() {
    case $1:$2 in
        bash:*/* | busybox:*/*) false ;;
        *:*/*) [ "${2%/*}" = "$folder" ] && plain "${2##*/}" && [ "${2##*/}" != held ] ;;
        *) number "$2" && [ "$2" -ge 1 ] && [ "$2" -le 65535 ] ;;
    esac
}
