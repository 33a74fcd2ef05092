# SPDX-License-Identifier: GPL-3.0-or-later
"""Logins that are signed by a caller's own ssh-agent."""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence

from usbipsshd.callersagent import AgentGone, CallersAgent
from usbipsshd.errors import Code, UsbipError
from usbipsshd.signer import (
    EXTENSION,
    FAILURE,
    REQUEST_IDENTITIES,
    SIGN_REQUEST,
    SIGN_RESPONSE,
    SUCCESS,
    BadMessage,
    Signer,
    SigningKey,
    check_binding,
    identities_answer,
    read_sign_request,
    string,
)
from usbipsshd.sshconfig import Hop
from usbipsshd.way import OwnKeys

log = logging.getLogger(__name__)


class AgentSigner(Signer):
    """Passes on a session's requests for logins, and nothing else, to a caller's agent.

    ``keys`` are the daemon's own, which come first. The agent is told which host a login is for,
    unless that is a ``jump`` host: it can be told once.
    """

    def __init__(
        self, agent: CallersAgent, keys: Sequence[SigningKey], remote: str, *, jump: bool = False
    ) -> None:
        super().__init__(keys, remote)
        self._agent = agent
        self._jump = jump

    async def reply(self, message: bytes) -> bytes:  # noqa: PLR0911
        """See :class:`usbipsshd.signer.Signer`."""
        try:
            if message[0] == EXTENSION:
                check_binding(message[1:])
                taken = not self._jump and await self._agent.bind(message[1:])
                return bytes([SUCCESS if taken else FAILURE])
            if message[0] == REQUEST_IDENTITIES:
                theirs = [(blob, "") for blob in await self._agent.keys()]
                return identities_answer([*self.offered(), *theirs])
            if message[0] == SIGN_REQUEST:
                blob, data, flags = read_sign_request(message[1:])
                if self.key(blob) is None:
                    return await self._theirs(blob, data, flags)
        except (BadMessage, struct.error) as error:
            log.warning("%s: refused a signature: %s", self.remote, error)
            return bytes([FAILURE])
        except AgentGone:
            log.warning("%s: the caller's ssh-agent does not answer", self.remote)
            if message[0] == REQUEST_IDENTITIES:
                return identities_answer(self.offered())
            return bytes([FAILURE])
        return await super().reply(message)

    async def _theirs(self, blob: bytes, data: bytes, flags: int) -> bytes:
        signature = await self._agent.sign(blob, data, flags) if self.spend() else b""
        return bytes([SIGN_RESPONSE]) + string(signature) if signature else bytes([FAILURE])


class AgentKeys:
    """Signs with a caller's agent; see :class:`usbipsshd.way.Signers`.

    Jump hosts are of root's choosing, and logged in to as root's configuration says, too.
    """

    def __init__(self, agent: CallersAgent, own: OwnKeys) -> None:
        self._agent = agent
        self._own = own

    async def to(self, hop: Hop, remote: str, *, jump: bool) -> Signer:
        """See :class:`usbipsshd.way.Signers`."""
        if self._agent.gone:
            # What is kept tries again and again; the remote need not be troubled for that.
            raise self.refused(remote)
        keys = await self._own.keys(hop) if jump else []
        return AgentSigner(self._agent, keys, remote, jump=jump)

    def refused(self, remote: str) -> UsbipError:
        """See :class:`usbipsshd.way.Signers`."""
        again = ""
        if self._agent.spent:
            again = ", or ask again: one for certain hosts only (ssh-add -h) is good for one login"
        if self._agent.gone:
            text = (
                f"The ssh-agent that was passed along for {remote} does not answer any more; "
                "ask again with one that runs."
            )
        elif self._agent.empty:
            text = (
                f"The ssh-agent that was passed along for {remote} offers no key; "
                f"unlock it, or add one with ssh-add{again}."
            )
        else:
            text = (
                f"{remote} accepts no key of the ssh-agent that was passed along; add one that "
                f"it knows with ssh-add{again}."
            )
        return UsbipError(Code.SSH_AUTH_FAILED, text)
