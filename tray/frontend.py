# SPDX-License-Identifier: GPL-3.0-or-later
"""The icon as the rest of the tray sees it: something that shows rows, and tells of clicks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from usbipssh_tray import icons
from usbipssh_tray.actions import Action
from usbipssh_tray.backend import library
from usbipssh_tray.backend.item import Look
from usbipssh_tray.render import Renderer
from usbipssh_tray.rows import Row
from usbipssh_tray.status import Status
from usbipssh_tray.text import _

log = logging.getLogger(__name__)

NAME = "usbipssh-tray"


class Frontend:
    """Shows what it is told, with whichever of pystray's backends.

    :meth:`show` may be called in any thread; ``act`` and ``opening`` are called in the icon's.
    """

    def __init__(
        self, act: Callable[[Action], None], opening: Callable[[tuple[str, ...]], None]
    ) -> None:
        self._renderer = Renderer(act)
        self._opening = opening
        self._rows: tuple[Row, ...] = ()
        self._status = Status.IDLE
        self._icon: Any = None
        self._stopped = False
        self._looks: dict[Status, Look] = {}
        self._images: dict[Status, Any] = {}

    def make(self, icon: Callable[..., Any], address: str) -> None:
        """Be shown by ``icon``, a class of a pystray backend; ``address`` is the session bus."""
        menu = library.pystray().Menu(lambda: self._renderer.items(self._rows))
        self._icon = icon(
            NAME,
            self._image(self._status),
            _("USB over ssh"),
            menu,
            statusnotifier_address=address,
            statusnotifier_look=self._look,
            statusnotifier_opening=self._opening,
        )

    def run(self) -> None:
        """Show the icon until :meth:`stop` or the end of the session."""
        try:
            self._icon.run()
        except Exception:
            if not self._stopped:
                raise
            # pystray's gtk backends fail at the very end where nothing shows notifications.
            log.debug("the icon's end", exc_info=True)

    def stop(self) -> None:
        """End :meth:`run`; in any thread."""
        self._stopped = True
        self._icon.stop()

    def show(self, rows: tuple[Row, ...], status: Status, title: str) -> None:
        """Show this from now on."""
        before, self._rows, self._status = self._status, rows, status
        if status is not before:
            self._icon.icon = self._image(status)
        self._icon.title = title
        self._icon.update_menu()

    def _image(self, status: Status) -> Any:
        if status not in self._images:
            self._images[status] = icons.image(status)
        return self._images[status]

    def _look(self, title: str) -> Look:
        status = self._status
        if status not in self._looks:
            self._looks[status] = Look(
                NAME,
                icon_name=icons.name(status),
                theme_path=icons.theme_path(),
                pixmaps=icons.pixmaps(status),
            )
        look = self._looks[status]
        return Look(look.id, title, look.icon_name, look.theme_path, look.pixmaps)
