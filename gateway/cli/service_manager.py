"""What `gateway serve` tells systemd when that has started it: sd_notify(3).

Theory of operation: NOTIFY_SOCKET names a unix socket, and what is to be said is one datagram of
NAME=value lines. That it comes from our process is seen by its pid (NotifyAccess=main). The
watchdog's message is sent by a task of trio's, so its silence says that the event loop stands
still, whatever else of the process may live. Started by anybody else, all of this does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, Final, Self

import trio

if TYPE_CHECKING:
    from collections.abc import MutableMapping

SEND_S: Final = 1.0  # a manager that is this far behind is not waited for


class ServiceManager:
    """Whoever waits to hear how we are, perhaps nobody. ``watchdog_s`` is 0 without a watchdog."""

    def __init__(self, address: str = "", watchdog_s: float = 0) -> None:
        """``address`` is the socket's, an abstract one with @ before it."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> Self:
        """Take what sd_notify(3) and sd_watchdog_enabled(3) read out of the environment.

        Programs that we start do not find it there.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        pid = environment.pop("WATCHDOG_PID", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        is_for_us = pid in {"", str(os.getpid())} and microseconds.isdecimal()
        return cls(address, int(microseconds) / 1e6 if is_for_us else 0)

    def ready(self, status: str) -> None:
        """All is set up, or read again."""
        self._tell(SEND_S, READY=1, STATUS=status)

    def reloading(self) -> None:
        """The configuration is about to be read again; `ready` comes after it."""
        self._tell(SEND_S, RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._tell(SEND_S, STOPPING=1, STATUS=status)

    async def keep_alive(self) -> None:
        """Tell twice in the watchdog's time that the event loop lives, until cancelled."""
        while self.watchdog_s and self._address:
            self._tell(0, WATCHDOG=1)  # the next one comes soon
            await trio.sleep(self.watchdog_s / 2)

    def _tell(self, wait_s: float, **values: int | str) -> None:
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in values.items())
        with (
            contextlib.suppress(OSError),  # nobody hears us: that ends nothing here
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            sock.settimeout(wait_s)
            sock.sendto(text.encode(), self._address)
