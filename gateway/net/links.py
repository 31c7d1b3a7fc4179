"""The set of links that front ends ask for channels: today one, later several, or a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import ConnectionLost
from gateway.ssh.messages import DirectStreamlocal, DirectTcpip

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.net.link import Link
    from gateway.net.port import ChannelPort


class LinkSet:
    """Links that may carry a new channel; a lost link is never asked."""

    def __init__(self) -> None:
        self._links: list[Link] = []

    def add(self, link: Link) -> None:
        """Offer a link to the front ends."""
        self._links.append(link)

    def remove(self, link: Link) -> None:
        """Withdraw a link."""
        self._links.remove(link)

    def open_direct_tcpip(
        self,
        host: str,
        port: int,
        originator: tuple[str, int],
        on_opened: Callable[[ChannelPort], object],
    ) -> ChannelPort:
        """Let the far end connect to ``host``, which it resolves (RFC 4254 §7.2).

        See `Link.ask_for_channel`. Raises `ConnectionLost`.
        """
        request = DirectTcpip(host, port, *originator)
        return self._link().ask_for_channel(request.channel_type, request.encode(), on_opened)

    def open_direct_streamlocal(
        self, path: str, on_opened: Callable[[ChannelPort], object]
    ) -> ChannelPort:
        """Let the far end connect to a unix socket of its own (OpenSSH PROTOCOL §2.4).

        See `Link.ask_for_channel`. Raises `ConnectionLost`.
        """
        request = DirectStreamlocal(path, "", 0)
        return self._link().ask_for_channel(request.channel_type, request.encode(), on_opened)

    def _link(self) -> Link:
        for link in self._links:
            if not link.is_lost:
                return link
        raise ConnectionLost("there is no link to the server now")
