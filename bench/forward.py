"""Bulk through -L and -R, each direction, and through -L with two jumps.

-L: client process ─► ssh or gateway connect ═ SSH ═► sshd or gateway serve ─► data server
-R: client process ─► sshd or gateway serve ═ SSH ═► ssh or gateway connect ─► data server

-J: the same as -L, and the client logs in twice before, to the same server: three layers of SSH.

As with `socks`, all is on 127.0.0.1 and shares its cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.figures import AT_LEAST, Bar
from bench.programs import SAME_CIPHER, Bed, Spec
from bench.rounds import Command, Option
from bench.socks import bulk_part, bulk_table

if TYPE_CHECKING:
    import argparse

WAYS = {"-L": ("-L", 0), "-R": ("-R", 0), "-J -L": ("-L", 2)}
"""What is told of a way: its option, and how many jumps there are."""
DIRECTIONS = {"get": "get (data server → client)", "put": "put (client → data server)"}
SERVERS = ("sshd", "serve")


def specs(bed: Bed) -> list[Spec]:
    found = []
    for way, (option, jumps) in WAYS.items():
        peer = f"ssh {way} → sshd"
        found.append(Spec(peer, "ssh", "sshd", SAME_CIPHER, forward=option, jumps=jumps))
        found += [
            Spec(
                f"connect {way} → {server}{tree}", "connect", server, SAME_CIPHER, peer,
                tree=path, forward=option, jumps=jumps,
            )
            for tree, path in bed.trees.items()
            for server in SERVERS
        ]  # fmt: skip
    return found


def bars(_options: argparse.Namespace) -> list[Bar]:
    return [
        Bar(f"connect {way} → sshd", f"{direction} MB/s", AT_LEAST, 1.0, f"ssh {way} → sshd")
        for way in WAYS
        for direction in DIRECTIONS
    ]


COMMAND = Command(
    name="forward",
    what="bulk through -L, -R and two jumps",
    parts=tuple(bulk_part(direction, specs) for direction in DIRECTIONS),
    options=(Option("size", 256, "MB", "a transfer"),),
    tables=tuple(
        bulk_table(direction, head, with_limit=False) for direction, head in DIRECTIONS.items()
    ),
    bars=bars,
    notes=(
        "medians; size in MB; MB = 10^6, GB = 10^9 bytes; one cipher for all",
        "x ssh: the ratio of the medians, and the median of the ratios of each round",
    ),
    rounds=5,
    budget_s=100.0,
)
