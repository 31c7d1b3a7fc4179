"""`scripts/soak rekey`: the newest OpenSSH, load both ways, and new keys all the time.

RekeyLimit 256K on both sides. Since 10.4 OpenSSH ends a link in which anything but key exchange
comes between KEXINIT and NEWKEYS, and with load both ways there is always something that waits.
Every byte is compared, on both sides.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.interop.bulk import BLOCK_LENGTH, GIGABYTE, exchange, our_client, our_server
from tests.interop.clients import last_keys
from tests.support.programs import OpenSSH, newest_peers

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

ROLES: Final = {"client": our_client, "server": our_server}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take what `run` needs."""
    add = parser.add_argument
    add("--gigabytes", type=float, default=5, help="each way, in each role (5)")
    add("--role", action="append", choices=tuple(ROLES), help="of ours (repeatable; both)")


def run(arguments: argparse.Namespace) -> int:
    """Run it; 0 if every byte arrived as it was sent and no peer complained."""
    try:
        root = newest_peers()
    except FileNotFoundError as error:
        print(f"soak: no newest OpenSSH: {error}", file=sys.stderr)
        return 1
    with _openssh(root) as openssh:
        print(openssh.version("ssh"), flush=True)
        for role in arguments.role or ROLES:
            _run_role(role, openssh, round(arguments.gigabytes * GIGABYTE))
    return 0


@contextmanager
def _openssh(root: Path) -> Iterator[OpenSSH]:
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(dir=root, prefix="soak.")
        stack.callback(shutil.rmtree, folder)
        yield OpenSSH(Path(folder), root)


def _run_role(role: str, openssh: OpenSSH, blocks: int) -> None:
    with ROLES[role](openssh) as (port, ours, theirs):
        began_s = time.monotonic()
        exchange(port, blocks)
        taken_s = time.monotonic() - began_s
        exchanges = last_keys("\n".join(ours.lines))
        complaints = [line for line in theirs.lines if "unexpected" in line or "rror" in line]
    assert not complaints, complaints
    moved = 2 * blocks * BLOCK_LENGTH
    took = f"{moved / 2e9:.2f} GB each way in {taken_s:.0f} s, {moved / taken_s / 1e6:.0f} MB/s"
    every = f"{exchanges} key exchanges, one in {moved / exchanges / 1024:.0f} KiB"
    print(f"{role}: {took} in all; {every}; each byte compared", flush=True)
