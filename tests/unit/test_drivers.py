# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel's own tables say a device would become; they look as depmod writes them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from unit.made import captured, raw_descriptors, run

from usbipsshd import drivers
from usbipsshd.descriptors import Summary, summarize
from usbipsshd.drivers import Drivers, is_harmless
from usbipsshd.localusb import LocalUsb

RELEASE = "6.1.0-56-amd64"

ALIAS = """\
# Aliases extracted from modules themselves.
alias pci:v00008086d0000A282sv*sd*bc*sc*i* some_pci_thing
alias usb:v0B95p1790d*dc*dsc*dp*icFFiscFFip00in* ax88179_178a
alias usb:v0BDAp8153d*dc*dsc*dp*ic02isc06ip00in* cdc_ether
alias usb:v0BDAp8153d*dc*dsc*dp*icFFisc*ip*in* r8152
alias usb:v0403p6001d*dc*dsc*dp*ic*isc*ip*in* ftdi_sio
alias usb:v1199p68A3d*dc*dsc*dp*icFFiscFFipFFin07* sierra_net
alias usb:v1199p68A3d*dc*dsc*dp*icFFiscFFipFFin* sierra
alias usb:v*p*d*dc*dsc*dp*ic08isc06ip50in* usb_storage
alias usb:v*p*d*dc*dsc*dp*ic01isc01ip*in* snd_usb_audio
alias usb:v17CCp1969d*dc*dsc*dp*ic*isc*ip*in* snd_usb_caiaq
alias usb:v056Ap*d*dc*dsc*dp*icFFisc*ip*in* some_tablet
alias usb:v0DF6p0056d010[0-9A-F]*dc*dsc*dp*ic*isc*ip*in* asix
alias usb:v0CF3p9271d*dcFFdscFFdpFFic*isc*ip*in* ath9k_htc
alias usb:v2357p010Cd*dc*dsc*dp*ic*isc*ip*in* 8188eu
alias usb:v1209p0001d*dc*dsc*dp*ic*isc*ip*in* nowhere
alias usb:v0BB4p0A00dwhat is this
"""
DEP = """\
kernel/drivers/net/usb/ax88179_178a.ko: kernel/drivers/net/usb/usbnet.ko kernel/drivers/net/mii.ko
kernel/drivers/net/usb/cdc_ether.ko.xz: kernel/drivers/net/usb/usbnet.ko.xz
kernel/drivers/net/usb/r8152.ko.zst: kernel/drivers/net/mii.ko.zst
kernel/drivers/net/usb/asix.ko:
kernel/drivers/net/usb/sierra_net.ko: kernel/drivers/net/usb/usbnet.ko
kernel/drivers/usb/serial/sierra.ko: kernel/drivers/usb/serial/usbserial.ko
kernel/drivers/usb/serial/ftdi_sio.ko: kernel/drivers/usb/serial/usbserial.ko
kernel/drivers/usb/storage/usb-storage.ko: kernel/drivers/scsi/scsi_mod.ko
kernel/sound/usb/snd-usb-audio.ko: kernel/sound/core/snd.ko
kernel/sound/usb/caiaq/snd-usb-caiaq.ko: kernel/sound/core/snd.ko
kernel/drivers/input/tablet/some-tablet.ko:
kernel/drivers/net/wireless/ath/ath9k/ath9k_htc.ko:
updates/dkms/8188eu.ko: kernel/net/wireless/cfg80211.ko
"""
BUILT_IN = (
    "hid.license=GPL\0usblp.alias=usb:v*p*d*dc*dsc*dp*ic07isc01ip01in*\0usblp.license=GPL\0"
    "xpad.license=GPL\0xpad.alias=usb:v2DC8p*d*dc*dsc*dp*icFFisc5Dip01in*\0"
    "xpad.alias=usb:v20D6p*d*dc*dsc*dp*icFFiscD0ip01in*\0xpad.file=drivers/input/joystick/xpad\0"
)
BUILT_IN_PATHS = "kernel/drivers/usb/class/usblp.ko\nkernel/drivers/input/joystick/xpad.ko\n"


def tables(place: Path, alias: str = ALIAS) -> Path:
    """A folder as /lib/modules."""
    folder = place / RELEASE
    folder.mkdir(parents=True)
    (folder / "modules.alias").write_text(alias)
    (folder / "modules.dep").write_text(DEP)
    (folder / "modules.builtin.modinfo").write_text(BUILT_IN)
    (folder / "modules.builtin").write_text(BUILT_IN_PATHS)
    return place


def device(
    ids: tuple[int, int], *triples: tuple[int, int, int], own: tuple[int, int, int] = (0, 0, 0)
) -> Summary:
    return summarize(raw_descriptors(*ids, *(triples or ((255, 255, 0),)), own=own))


def strict(one: Drivers, summary: Summary) -> bool:
    found: list[bool] = []

    async def ask() -> None:
        found.append(await one.can_type_or_network(summary))

    run(ask())
    return found[0]


AX88179 = (0x0B95, 0x1790)


@pytest.mark.parametrize(
    ("summary", "takers"),
    [
        pytest.param(device(AX88179), ["ax88179_178a"], id="a network adapter"),
        pytest.param(device((0x0BDA, 0x8153), (255, 255, 0)), ["r8152"], id="another"),
        pytest.param(
            device((0x0BDA, 0x8153), (255, 255, 0), (2, 6, 0)),
            ["cdc_ether", "r8152"],
            id="two drivers",
        ),
        pytest.param(device((0x0B95, 0x1791)), [], id="another product"),
        pytest.param(device((0x0B96, 0x1790)), [], id="another vendor"),
        pytest.param(device(AX88179, (255, 255, 1)), [], id="another protocol"),
        pytest.param(device((0x0403, 0x6001), (255, 255, 255)), [], id="serial"),
        pytest.param(
            device((0x1199, 0x68A3), *[(255, 255, 255)] * 3), [], id="a modem's serial interfaces"
        ),
        pytest.param(
            device((0x1199, 0x68A3), *[(255, 255, 255)] * 8),
            ["sierra_net"],
            id="the interface with the number that is the network",
        ),
        pytest.param(device((0x0781, 0x5581), (8, 6, 0x50)), [], id="a stick"),
        pytest.param(
            device(AX88179, (8, 6, 0x50), (255, 255, 0)), ["ax88179_178a"], id="beside a disk"
        ),
        pytest.param(device((0x046D, 1), (1, 1, 0)), [], id="sound"),
        pytest.param(device((0x17CC, 0x1969), (1, 1, 0)), ["snd_usb_caiaq"], id="sound and keys"),
        pytest.param(device((0x056A, 0x1234), (255, 0, 0)), ["some_tablet"], id="any product"),
        pytest.param(device((0x0DF6, 0x0056)), ["asix"], id="within a range of versions"),
        pytest.param(
            device((0x0CF3, 0x9271), own=(255, 255, 255)), ["ath9k_htc"], id="the device's class"
        ),
        pytest.param(device((0x0CF3, 0x9271)), [], id="not the device's class"),
        pytest.param(device((0x2357, 0x010C)), ["8188eu"], id="not built with the kernel"),
        pytest.param(device((0x1209, 0x0001)), ["nowhere"], id="nobody knows from where"),
        pytest.param(device((1, 2), (7, 1, 1)), [], id="a printer, built in"),
        pytest.param(device((0x2DC8, 2), (255, 0x5D, 1)), ["xpad"], id="a gamepad, built in"),
        pytest.param(device((0x20D6, 2), (255, 0xD0, 1)), ["xpad"], id="its second pattern"),
        pytest.param(device((0x0BB4, 0x0A00)), [], id="a line that makes no sense"),
    ],
)
def test_which_drivers_would_take_it(tmp_path: Path, summary: Summary, takers: list[str]) -> None:
    one = Drivers(RELEASE, [tables(tmp_path)])
    assert one.strict_takers(summary) == takers
    assert strict(one, summary) is (bool(takers) or summary.can_type_or_network)


def test_every_configuration_and_alternate_setting_counts(tmp_path: Path) -> None:
    one = Drivers(RELEASE, [tables(tmp_path)])
    stick = raw_descriptors(*AX88179, (8, 6, 0x50))
    network = raw_descriptors(*AX88179, (255, 255, 0))
    second = stick[:17] + b"\x02" + stick[18:] + network[18:]
    assert not strict(one, summarize(stick))
    assert strict(one, summarize(second))
    alternate = bytes([9, 4, 0, 1, 0, 255, 255, 0, 0])
    length = len(stick[18:] + alternate).to_bytes(2, "little")
    assert strict(one, summarize(stick[:20] + length + stick[22:] + alternate))


def test_a_version_that_is_not_in_the_range(tmp_path: Path) -> None:
    one = Drivers(RELEASE, [tables(tmp_path)])
    raw = raw_descriptors(0x0DF6, 0x0056, (255, 255, 0))
    assert summarize(raw).bcd_device == 0x0100
    assert not strict(one, summarize(raw[:12] + b"\x00\x02" + raw[14:]))


def test_the_first_place_that_has_this_kernel(tmp_path: Path) -> None:
    (tmp_path / "hidden" / "5.10.0").mkdir(parents=True)
    places = [tmp_path / "nowhere", tmp_path / "hidden", tables(tmp_path / "modules")]
    assert strict(Drivers(RELEASE, places), device(AX88179))


def test_entries_that_lie_across_the_blocks_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tables(tmp_path)
    for size in range(200, 260, 7):
        monkeypatch.setattr(drivers, "BLOCK", size)
        one = Drivers(RELEASE, [place])
        assert one.strict_takers(device(AX88179)) == ["ax88179_178a"], size
        assert one.strict_takers(device((0x20D6, 2), (255, 0xD0, 1))) == ["xpad"], size
        assert one.strict_takers(device((0x0403, 0x6001))) == [], size


def test_without_tables_the_classes_decide_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Drivers(RELEASE, [tmp_path])
    with caplog.at_level(logging.WARNING):
        assert not strict(one, device(AX88179))
        assert strict(one, device((0x046D, 0xC31C), (3, 1, 1)))
        assert not strict(one, device((0x0781, 0x5581), (8, 6, 0x50)))
    (told,) = caplog.messages
    assert RELEASE in told


@pytest.mark.parametrize("content", ["", "x" * 300_000, "alias usb:v0B95p1790d*dc* x\n" * 9])
def test_a_table_that_is_none(tmp_path: Path, content: str) -> None:
    one = Drivers(RELEASE, [tables(tmp_path, content)])
    assert not strict(one, device(AX88179))
    assert strict(one, device((0x046D, 0xC31C), (3, 1, 1)))


def test_drivers_whose_place_is_not_known_are_not_harmless(tmp_path: Path) -> None:
    place = tables(tmp_path)
    (place / RELEASE / "modules.dep").unlink()
    (place / RELEASE / "modules.builtin").unlink()
    assert strict(Drivers(RELEASE, [place]), device((0x0403, 0x6001)))


@pytest.mark.parametrize(
    ("path", "harmless"),
    [
        ("kernel/drivers/usb/serial/cp210x.ko", True),
        ("kernel/drivers/usb/serial/cp210x.ko.xz", True),
        ("kernel/drivers/usb/storage/uas.ko", True),
        ("kernel/drivers/media/usb/uvc/uvcvideo.ko", True),
        ("kernel/drivers/net/usb/asix.ko", False),
        ("kernel/drivers/input/misc/keyspan_remote.ko", False),
        ("kernel/drivers/hid/usbhid/usbhid.ko", False),
        ("kernel/drivers/bluetooth/btusb.ko", False),
        ("kernel/drivers/media/rc/mceusb.ko", False),
        ("kernel/drivers/media/usb/dvb-usb/dvb-usb-dib0700.ko", False),
        ("kernel/drivers/usb/misc/ftdi-elan.ko", False),
        ("kernel/drivers/usb/misc/ldusb.ko", True),
        ("kernel/drivers/usb/atm/cxacru.ko", False),
        ("kernel/drivers/mmc/host/vub300.ko", False),
        ("kernel/drivers/misc/cardreader/rtsx_usb.ko", True),
        ("kernel/drivers/usb/host/u132-hcd.ko", False),
        ("kernel/drivers/staging/r8188eu/r8188eu.ko", False),
        ("updates/dkms/drivers/usb/serial/cp210x.ko", False),
        ("extra/cp210x.ko", False),
        ("drivers/usb/serial/cp210x.ko", False),
        ("", False),
    ],
)
def test_what_is_known_to_be_harmless(path: str, harmless: bool) -> None:
    assert is_harmless(path) is harmless


@pytest.mark.parametrize("busid", ["1-1", "1-3.1", "2-2", "1-3"])
def test_what_a_device_is_called_as_the_kernel_calls_it(tmp_path: Path, busid: str) -> None:
    usb = LocalUsb(captured("pi-before", tmp_path))
    files = usb.path(busid).glob("*:*/modalias")
    called = sorted(file.read_text().strip() for file in files)
    assert called
    assert list(summarize(usb.descriptors(busid)).modaliases) == called
