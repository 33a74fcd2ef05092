# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of remotes while something else happens to what it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from unit.made import HOST_KEY, refused, run

from usbipsshd import remotelist
from usbipsshd.errors import Code
from usbipsshd.remotelist import MAX_ROUNDS, RemoteList
from usbipsshd.remotes import RemoteStore, fingerprint


class Root:
    """A caller who may do everything."""

    uid = 0

    async def require(self, *_: object) -> None:
        """Nothing is asked."""


@dataclass
class Things:
    """Attachments or hubs, of which more may begin while one is detached."""

    begins: int = 0
    there: list[SimpleNamespace] = field(default_factory=list)

    def begin(self, remote: str = "pi") -> None:
        self.there.append(SimpleNamespace(remote=remote))

    def __iter__(self) -> Any:
        return iter(list(self.there))

    async def detach(self, thing: SimpleNamespace, _by: int) -> None:
        self.there.remove(thing)
        if self.begins:
            self.begins -= 1
            self.begin()


class Links:
    """What is dropped, and what was heard again of which remote."""

    def __init__(self) -> None:
        self.ways = None
        self.dropped: list[str] = []

    async def drop(self, name: str) -> None:
        self.dropped.append(name)

    def to(self, _remote: object) -> Any:
        return SimpleNamespace(forget_trouble=lambda: None)


@pytest.fixture
def store(tmp_path: Path) -> RemoteStore:
    made = RemoteStore(tmp_path / "etc", tmp_path / "state", ())
    made.add("pi", {"address": "root@192.0.2.7"})
    return made


def listing(
    store: RemoteStore, attachments: Things, hubs: Things | None = None, links: Links | None = None
) -> RemoteList:
    """The list, with what is attached."""
    return RemoteList(
        store=store,
        links=cast(Any, links or Links()),
        attachments=cast(Any, attachments),
        hubs=cast(Any, hubs or Things()),
        launcher=cast(Any, None),
    )


def test_what_begins_while_a_remote_is_removed_is_detached_too(store: RemoteStore) -> None:
    attachments, hubs, links = Things(begins=3), Things(begins=1), Links()
    attachments.begin()
    attachments.begin("other")
    hubs.begin()
    run(listing(store, attachments, hubs, links).remove_remote(cast(Any, Root()), "pi"))
    assert [one.remote for one in attachments] == ["other"]
    assert not list(hubs)
    assert not list(store)
    assert links.dropped == ["pi"]


def test_a_remote_that_is_always_used_anew_stays(store: RemoteStore) -> None:
    attachments, links = Things(begins=10 * MAX_ROUNDS), Links()
    attachments.begin()

    async def main() -> None:
        with refused(Code.DEVICE_BUSY, "pi"):
            await listing(store, attachments, links=links).remove_remote(cast(Any, Root()), "pi")

    run(main())
    assert [remote.name for remote in store] == ["pi"]
    assert not links.dropped


def _replace(store: RemoteStore) -> None:
    store.remove("pi")
    store.add("pi", {"address": "root@192.0.2.8"})


@pytest.mark.parametrize(
    ("meanwhile", "code"),
    [
        pytest.param(lambda store: store.remove("pi"), Code.UNKNOWN_REMOTE, id="removed"),
        pytest.param(_replace, Code.UNKNOWN_REMOTE, id="replaced"),
        pytest.param(lambda store: None, None, id="nothing"),
    ],
)
def test_a_key_is_trusted_only_for_the_remote_it_was_fetched_from(
    store: RemoteStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[RemoteStore], None],
    code: Code | None,
) -> None:
    async def fetch(*_: object) -> str:
        meanwhile(store)
        return HOST_KEY

    monkeypatch.setattr(remotelist, "fetch_host_key", fetch)
    list_ = listing(store, Things())

    async def main() -> None:
        trusting = list_.trust_host_key(cast(Any, Root()), "pi", fingerprint(HOST_KEY))
        if code is None:
            await trusting
        else:
            with refused(code, "pi"):
                await trusting

    run(main())
    pins = tmp_path / "state/host-keys"
    kept = [path.name for path in pins.iterdir()] if pins.is_dir() else []
    assert kept == ([] if code else ["pi"])
