"""What `gateway serve` says about each event, on standard error.

What a user has refused is a warning, at most MOST of them for a link in PERIOD_S. Of the others
there is a number, with the first one after the period or at the end of the link, so that nobody
fills a disk or hides something by asking a million times.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from gateway import events
from gateway.cli.terminal import say
from gateway.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

PERIOD_S: Final = 60.0
MOST: Final = 20


class Report:
    """Says what happens. The state is two numbers for each link that had something refused."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._refusals: dict[int, tuple[float, int]] = {}  # by link: since when, how many

    def __call__(self, event: events.Event) -> None:
        """Say what is to be said about an event."""
        match event:
            case events.ListenerOpened(_, address, port):
                shown = f"[{address}]" if ":" in address else address
                say(f"listening on {shown}:{port}")
            case events.LinkOpened(link_id, peer, user_name, fingerprint):
                say(f"link {link_id}: {printable(user_name, 64)} from {peer} with {fingerprint}")
            case events.Decision(link_id, _, _, action, target, allowed, rule):
                if allowed:
                    log.info("link %d: %s %s allowed: %s", link_id, action, target, rule)
                elif self._count(link_id) <= MOST:
                    log.warning("link %d: %s %s refused: %s", link_id, action, target, rule)
            case events.ChannelEnded(link_id, _, requested, dialled, bytes_in, bytes_out, reason):
                log.info(
                    "link %d: %s (%s) %s: %d bytes out, %d back",
                    link_id,
                    requested,
                    dialled,
                    reason,
                    bytes_in,
                    bytes_out,
                )
            case events.LinkClosed(link_id, peer, reason):
                self._say_more(link_id)
                log.info("link %d: %s closed: %s", link_id, peer, reason)

    def _count(self, link_id: int) -> int:
        """Count a refusal; return how many there were in this period."""
        now_s = self._monotonic_s()
        began_s, count = self._refusals.get(link_id, (now_s, 0))
        if now_s - began_s >= PERIOD_S:
            self._say_more(link_id)
            began_s, count = now_s, 0
        self._refusals[link_id] = began_s, count + 1
        return count + 1

    def _say_more(self, link_id: int) -> None:
        _, count = self._refusals.pop(link_id, (0.0, 0))
        if count > MOST:
            log.warning("link %d: %d more were refused", link_id, count - MOST)
