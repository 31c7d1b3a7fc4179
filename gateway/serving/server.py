"""`gateway serve`: listening, one task per link, and the ways in which all of it changes or ends.

A composition root: it wires `net`, `ssh` and `policy` together and contains no protocol. Whatever
goes wrong in one link or channel ends that one, nothing else.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from gateway import events
from gateway.net import poller
from gateway.net.carrier import SocketCarrier
from gateway.net.listen import describe, listening_ports, open_listeners_by_name, serve
from gateway.policy.limits import Drop, Startup, source_of
from gateway.serving.link import ServerLink
from gateway.serving.shared import ServerOptions, Shared
from gateway.serving.vpn import VpnHost

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from gateway.net.carrier import Carrier

log = logging.getLogger(__name__)

DROPS_REPORTED_S: Final = 10.0  # connections closed before a login are told of together
NOT_ALLOWED: Final = b"Not allowed at this time\r\n"  # as sshd; ssh shows it


class Server:
    """All links of one `gateway serve`. ``report`` gets the events that are worth a line.

    ``refuses_new`` may say why nothing new can begin now; see `Shared`.
    """

    def __init__(
        self,
        options: ServerOptions,
        report: Callable[[events.Event], None],
        refuses_new: Callable[[], str] = str,
    ) -> None:
        self.shared = Shared(options, report, refuses_new)
        self._accepting = trio.CancelScope()
        self._listeners: list[socket.socket] = []
        self._nursery: trio.Nursery  # of the links, while `run` runs

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Listen and serve until cancelled or drained. Raises `NetworkSetupError`.

        ``ready`` is called when all that needs root is done, before the first client is accepted.
        """
        with contextlib.ExitStack() as stack:
            self._listeners = [
                stack.enter_context(listener)
                for host, port in self.shared.options.listen
                for listener in await open_listeners_by_name(host, port)
            ]
            async with trio.open_nursery() as nursery:
                if (config := self.shared.options.tunnel) is not None:
                    self.shared.vpn = VpnHost(config, listening_ports())
                    await nursery.start(self.shared.vpn.run)
                ready()
                if self.shared.vpn is not None:
                    self.shared.vpn.recall()
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._accept)
                nursery.cancel_scope.cancel()
            self._report_drops()

    async def _accept(self) -> None:
        with self._accepting:
            async with trio.open_nursery() as nursery:
                for listener in self._listeners:
                    nursery.start_soon(serve, listener, self._welcome)
                    address, port = listener.getsockname()[:2]
                    self.shared.report(events.ListenerOpened("SSH", address, port))
                ready = tuple(describe(listener.getsockname()) for listener in self._listeners)
                self.shared.report(events.ServerReady(ready))
                while True:
                    await trio.sleep(DROPS_REPORTED_S)
                    self._report_drops()

    def _report_drops(self) -> None:
        for reason, count in self.shared.dropped.items():
            log.warning("%d connections were closed: %s", count, reason.value)
            self.shared.report(events.ConnectionsDropped(reason.value, count))
        self.shared.dropped.clear()

    # -- links -------------------------------------------------------------------------------------

    def _welcome(self, sock: socket.socket, address: tuple[str, int]) -> None:
        try:
            carrier = SocketCarrier(sock, describe(address))
            local = describe(sock.getsockname())
        except OSError:  # the client left already
            sock.close()
            return
        self.serve_carrier(carrier, address[0], local)

    def serve_carrier(self, carrier: Carrier, address: str, local: str = "") -> ServerLink | None:
        """Serve what has connected, in a task of its own; None if it is dropped.

        ``address`` is where it comes from. To be called while ``run`` runs.
        """
        begun = self._begin(source_of(address))
        if isinstance(begun, Drop):
            self.shared.dropped[begun] += 1
            with contextlib.suppress(OSError):
                carrier.send(memoryview(NOT_ALLOWED))
            carrier.close()
            return None
        link = ServerLink(self.shared, carrier, address, begun, local)
        self._nursery.start_soon(self._serve_link, link)
        return link

    def _begin(self, source: str | None) -> Startup | Drop:
        if self.shared.is_draining:
            return Drop.DRAINING
        now_s = trio.current_time()
        if self.shared.penalties.refuses(source, now_s):
            return Drop.PENALTY
        return self.shared.startups.begin(source, now_s)

    async def _serve_link(self, link: ServerLink) -> None:
        try:
            await link.run()
        except Exception:  # one link's defect must not end the others
            log.exception("internal error on the link from %s", link.link.carrier.name)

    def gauges(self) -> dict[str, int]:
        """Return how many there are now of all that a peer could pile up."""
        shared = self.shared
        return {
            "links": len(shared.links),
            "startups": shared.startups.count,
            "penalties": len(shared.penalties),
            "users": len(shared.users),
            "channels": shared.channels,
            "listeners": sum(map(len, shared.forwards.values())),
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1,  # but who looks
        }

    # -- changes -----------------------------------------------------------------------------------

    def apply(self, options: ServerOptions) -> None:
        """Decide everything by new options from now on; links stay if their users may log in.

        What is listened on, and host keys and algorithms of links that exist, stay as they are.
        """
        self.shared.apply(options)
        for link in list(self.shared.links.values()):
            link.recheck()

    async def drain(self, deadline_s: float | None = None) -> None:
        """Take no new links and channels, and end all links when the last channel has ended.

        They end after ``deadline_s`` in any case, by default the limit drain_s; ``run`` returns.
        """
        shared = self.shared
        shared.is_draining = True
        for listener in self._listeners:
            poller.close(listener)
        self._accepting.cancel()
        for link in list(shared.links.values()):
            link.stop_listening("the server is about to stop")
        if shared.channels:
            with trio.move_on_after(shared.limits.drain_s if deadline_s is None else deadline_s):
                await shared.no_channels.wait()
        for link in list(shared.links.values()):
            link.link.disconnect("the server stops")
