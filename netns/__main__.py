"""`scripts/netns [TOPOLOGY] [HOST [COMMAND…]]`, `scripts/netns list` and `clean`; see README.md."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import NoReturn

from netns.lab import Lab, LabError, remove_abandoned, why_unusable
from netns.topologies import TOPOLOGIES, TWO_HOSTS


def explain(lab: Lab) -> None:
    print(lab.topology.drawing)
    for host in lab.hosts.values():
        print(f"  {host.name}, from another terminal: ip netns exec {host.namespace} bash")


def leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def show_all() -> None:
    for topology in TOPOLOGIES.values():
        print(f"{topology.name}: {topology.what}\n\n{topology.drawing}")


def main(arguments: list[str]) -> int:
    if arguments == ["clean"]:
        print("removed:", ", ".join(remove_abandoned()) or "nothing was left behind")
        return 0
    if arguments == ["list"]:
        show_all()
        return 0
    topology = TWO_HOSTS
    if arguments and arguments[0] in TOPOLOGIES:
        topology = TOPOLOGIES[arguments.pop(0)]
    name, *command = arguments or [topology.hosts[0]]
    if name not in topology.hosts:
        hosts, others = ", ".join(topology.hosts), ", ".join(TOPOLOGIES)
        print(
            f"netns: the lab {topology.name} has no host '{name}': name one of {hosts}; "
            f"or before it one of the labs {others}; or list, or clean",
            file=sys.stderr,
        )
        return 2
    reason = why_unusable()
    if reason is not None:
        print(f"netns: no lab on this machine: {reason}", file=sys.stderr)
        return 1
    # Ctrl-C is for the shell in the lab, and what ends us must let the lab be removed.
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
    with Lab(topology) as lab:
        if not command:
            explain(lab)
            print(f"\nA shell in {name}; the lab goes when it ends.", flush=True)
            command = [os.environ.get("SHELL", "/bin/sh")]
        return subprocess.run(lab[name].command(*command), check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as error:
        print(f"netns: {error}", file=sys.stderr)
        sys.exit(1)
