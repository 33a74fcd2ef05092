# SPDX-License-Identifier: GPL-3.0-or-later
"""Part of a machine's sysfs as text, for looking at it, and for unit tests of what reads it."""

from __future__ import annotations

# A perl program (base perl is on both machines) that prints one line each: `path<TAB>value` for a
# file, `path -> target` for a link. In values a final newline is dropped, and bytes other than
# printable ASCII (and the backslash) are `\\xHH`.
SNAPSHOT_SCRIPT = r"""
use strict;
use warnings;
my %seen;
sub show {
    my ($path, $value) = @_;
    $value =~ s/\n\z//;
    # Lines stay lines: anything but printable ASCII is written as \xHH.
    $value =~ s/([^\x20-\x5b\x5d-\x7e])/sprintf('\\x%02x', ord $1)/ge;
    print "$path\t$value\n";
}
sub walk {
    my ($folder) = @_;
    return if $seen{$folder}++;
    opendir(my $dir, $folder) or return;
    my @names = sort grep { !/^\.\.?$/ } readdir $dir;
    closedir $dir;
    for my $name (@names) {
        my $path = "$folder/$name";
        if (-l $path) {
            print "$path -> " . readlink($path) . "\n";
        } elsif (-d _) {
            walk($path) unless $name =~ /^(power|queue|trace|mq|stat|ep_..)$|-port\d+$/;
        } elsif (-r _ and (stat _)[2] & 0400) {
            open(my $file, '<', $path) or next;
            my $count = sysread($file, my $value, 65536);
            close $file;
            show($path, $value) if defined $count;
        }
    }
}
for my $folder ('/sys/bus/usb/devices', '/sys/bus/usb/drivers') {
    walk($folder) if -d $folder;
}
for my $link (glob '/sys/bus/usb/devices/usb*') {
    my $target = readlink $link;
    $target =~ s{^(\.\./)+}{/sys/};
    walk($target);
}
for my $folder (glob '/sys/devices/platform/vhci_hcd.*') {
    walk($folder);
}
"""
