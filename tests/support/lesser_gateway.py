"""`gateway` that has less: `python -m tests.support.lesser_gateway HOW ARGUMENT...`.

``whole``: its kernel has no offload, so that its device is given and gives finished packets only.
``older``: it does not know the channel for unfinished packets.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from unittest import mock

from gateway.ssh import tunnel

if TYPE_CHECKING:
    from collections.abc import Callable


def whole() -> None:
    from gateway.tun.device import Device  # noqa: PLC0415 - `older` must be first

    made = Device.__init__

    def make(self: Device, mode: Any, device: Any, offloads: int | None) -> None:
        made(self, mode, device, None if offloads is None else 0)

    mock.patch.object(Device, "__init__", make).start()


def older() -> None:
    mock.patch.object(tunnel, "OFFLOAD_CHANNEL_TYPE", "unknown@gateway.internal").start()


HOW: dict[str, Callable[[], None]] = {"whole": whole, "older": older}

if __name__ == "__main__":
    HOW[sys.argv.pop(1)]()
    from gateway.cli import main

    sys.exit(main())
