"""`scripts/soak`: a VPN killed at hundreds of random moments; see `tests.support.moments`.

Others are `scripts/soak rekey` and `scripts/soak dheat`: see `soak_rekey.py` and `soak_dheat.py`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from gateway.tun.journal import FOLDER_VARIABLE
from netns.lab import Lab, why_unusable
from netns.topologies import ROUTED
from scripts import soak_dheat, soak_rekey
from tests.support.moments import Moments
from tests.support.vpn import running_site

KINDS = ("serve", "debian", "newest")
OTHERS = {"rekey": soak_rekey, "dheat": soak_dheat}


def main() -> int:
    """Run what the arguments say; 0 if all was well."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=__doc__.partition(": ")[2].partition(";")[0]
    )
    add = parser.add_argument
    add("--count", type=int, default=500, help="moments (500)")
    add("--seed", type=int, default=random.randrange(1 << 32), help="to have the same ones again")
    add("--server", choices=KINDS, default="serve", help="serve, or a stock sshd's age (serve)")
    add("--end", action="append", choices=tuple(Moments.ENDS),
        help="what is killed (repeatable; by default all that this server allows)")  # fmt: skip
    others = parser.add_subparsers(title="instead of that")
    for name, module in OTHERS.items():
        what = (module.__doc__ or "").splitlines()[0].partition(": ")[2]
        other = others.add_parser(name, help=what, description=what)
        module.add_arguments(other)
        other.set_defaults(run=module.run)
    parser.set_defaults(run=_run_moments)
    arguments = parser.parse_args()
    return int(arguments.run(arguments))


def _run_moments(arguments: argparse.Namespace) -> int:
    """0 if every moment left both hosts as they were."""
    if reason := why_unusable():
        print(f"soak: no lab on this machine: {reason}", file=sys.stderr)
        return 1
    possible = [end for end in Moments.ENDS if arguments.server == "serve" or "server" not in end]
    ends = tuple(arguments.end or possible)
    print(f"seed {arguments.seed}", flush=True)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Lab(ROUTED) as lab:
        os.environ[FOLDER_VARIABLE] = folder
        with running_site(arguments.server, lab, Path(folder) / "keys") as site:
            moments = itertools.islice(itertools.cycle(ends), arguments.count)
            Moments(site, arguments.seed).run(moments, _say)
    taken_s = time.monotonic() - began_s
    print(f"{arguments.count} moments in {taken_s:.0f} s: both hosts were as before after each")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
