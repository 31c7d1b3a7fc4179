"""A server with two clients' devices and no SSH: ``python -m tests.support.routing_server``.

Applies the server's plans, then reads lines of JSON: {"tun": 0, "send": "hex"} writes a packet as
if it came from that client, {"tun": 0, "read_s": 0.2} answers with those that came for it, as hex.
"""

from __future__ import annotations

import json
import os
import select
import sys
from ipaddress import ip_address, ip_network
from typing import Any

import pytun  # type: ignore[import-not-found, import-untyped, unused-ignore]
import trio

from gateway.tun.guardian import Guardian
from gateway.tun.server_plan import server_base_plan, server_plan

POOL = (ip_network("10.8.0.0/24"), ip_network("fd08::/64"))
HERE = (ip_address("10.8.0.1"), ip_address("fd08::1"))
CLIENTS = (
    (ip_address("10.8.0.2"), ip_address("fd08::2")),
    (ip_address("10.8.0.3"), ip_address("fd08::3")),
)
LISTENING = 33_000
FLOWS = 5


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201 - a program


def packets(device: int, read_s: float) -> list[str]:
    """Return what comes out of a device until nothing does for a while."""
    found = []
    while select.select([device], [], [], read_s)[0]:
        found.append(os.read(device, 65_536).hex())
    return found


async def main() -> None:
    async with Guardian() as guardian:
        facts = await guardian.facts()
        await guardian.apply(
            server_base_plan(POOL, [22, LISTENING], guardian.table, facts, flows_per_client=FLOWS)
        )
        flags = pytun.IFF_TUN | pytun.IFF_NO_PI
        tuns = [pytun.TunTapDevice(flags=flags) for _ in CLIENTS]
        for tun, client in zip(tuns, CLIENTS, strict=True):
            await guardian.apply(server_plan(tun.name, HERE, client, 1400, facts))
        say("ready")
        for line in sys.stdin:
            asked = json.loads(line)
            descriptor = tuns[asked["tun"]].fileno()
            if "send" in asked:
                os.write(descriptor, bytes.fromhex(asked["send"]))
            else:
                say(packets(descriptor, asked["read_s"]))


if __name__ == "__main__":
    trio.run(main)
