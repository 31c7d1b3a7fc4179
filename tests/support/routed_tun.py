"""A carrier and its tunnel on one machine: ``python -m tests.support.routed_tun SERVER PORT``.

Connects to a server that echoes, makes the plan of a full tunnel through a real tun device, with a
subnet that the server itself is in, and says which way packets go and whether the carrier still
works. Waits for a line, then kills itself.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytun  # type: ignore[import-not-found, import-untyped, unused-ignore]
import trio

from gateway.tun.guardian import Guardian
from gateway.tun.plan import Carrier, Wanted, client_plan

SO_MARK = 36
WAYS = {
    "server": "10.20.1.1",
    "carrier": "10.20.1.1 mark {mark}",
    "subnet": "10.20.7.7",
    "excluded": "10.20.5.5",
    "neighbour": "10.99.0.2",
    "internet": "192.0.2.1",
    "internet6": "2001:db8::1",
    "neighbour6": "fd99::2",
}


def way(text: str) -> str:
    """Return the device a packet would leave through, or what the kernel says instead."""
    command = ["ip", "-j", "route", "get", *text.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip()
    device: str = json.loads(done.stdout)[0]["dev"]
    return device


async def main(server: str, port: int) -> None:
    said: dict[str, Any] = {}
    async with Guardian() as guardian:
        with socket.socket() as carrier:
            carrier.setsockopt(socket.SOL_SOCKET, SO_MARK, guardian.table)
            carrier.connect((server, port))
            carrier.settimeout(3)
            tun = pytun.TunTapDevice(name="tun0", flags=pytun.IFF_TUN | pytun.IFF_NO_PI)
            wanted = Wanted(
                "tun0",
                (ip_interface("10.8.0.2/32"),),
                1400,
                (ip_network("10.20.0.0/16"),),
                (ip_network("10.20.5.0/24"),),
                full_tunnel=True,
            )
            ours = Carrier(ip_address(server), port, carrier.getsockname()[1])
            facts = await guardian.facts()
            await guardian.apply(client_plan(wanted, ours, guardian.table, facts))
            carrier.sendall(b"still here")
            said["echo"] = carrier.recv(100).decode()
            said |= {name: way(text.format(mark=guardian.table)) for name, text in WAYS.items()}
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.sendto(b"through the tunnel", (server, port))
            said["tunnelled"] = tun.read(1500)[28:].decode()
            print(json.dumps(said), flush=True)  # noqa: T201 - a program
            sys.stdin.readline()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
