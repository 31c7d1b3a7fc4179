"""`scripts/soak dheat`: ssh-audit attacks `gateway serve`, and others log in and work meanwhile.

Key exchanges as fast as they can be begun (DHEat, CVE-2002-20001), with what costs the server most
of what it offers by itself and of what it can offer, and connections without any. ssh-audit has
a lower priority, so that on a machine with few processors it is the server that is measured.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns.lab import Lab, why_unusable
from netns.topologies import TWO_HOSTS
from tests.support.audited import PROMISED_S, SAFE_RATE, attacked, told

if TYPE_CHECKING:
    import argparse

BEFORE_S: Final = 5.0
LARGEST: Final = "diffie-hellman-group18-sha512"
# By ssh-audit's options, with their value, what serve is told.
ATTACKS: Final = {
    ("--dheat", "10"): (),
    ("--dheat", f"10:{LARGEST}:4"): ("--kex", f"mlkem768x25519-sha256,curve25519-sha256,{LARGEST}"),
    ("--conn-rate-test", "10"): (),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take what `run` needs."""
    parser.add_argument("--seconds", type=float, default=60, help="of each attack (60)")


def run(arguments: argparse.Namespace) -> int:
    """Run it; 0 if nobody else had to wait and ssh-audit was content."""
    if reason := why_unusable():
        print(f"soak: no lab on this machine: {reason}", file=sys.stderr)
        return 1
    status = 0
    for (option, value), served in ATTACKS.items():
        with (
            tempfile.TemporaryDirectory() as folder,
            Lab(TWO_HOSTS) as lab,
            attacked(lab, Path(folder) / "keys", *served) as box,
        ):
            outcome = box.attack(option, value, arguments.seconds, BEFORE_S)
        print(f"ssh-audit {option} {value}: {told(outcome)}", flush=True)
        if outcome.served_per_s >= SAFE_RATE or max(outcome.logins_s) >= PROMISED_S:
            status = 1
    return status
