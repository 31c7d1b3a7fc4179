"""Ends a guardian at each of its steps in turn: ``python -m tests.support.guardian_faults PLAN``.

Runs inside a network namespace. For n = 1, 2, … a child makes a plan and undoes it, and kills
itself just before its n-th line of the journal or change in the kernel. Then another one cleans up
as `gateway cleanup` does, and is killed on its way, and a last one finishes: the state of the
namespace has to be what it was. Prints how many points there were.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from gateway.tun import keeper, netlink, sysctls
from gateway.tun.journal import Journal, Process
from netns.state import difference, take_snapshot
from tests.support.guarded import PLANS

if TYPE_CHECKING:
    from collections.abc import Callable

# Where a guardian changes something: the journal's file, and the kernel.
PLACES = (
    (Journal, "_append"),
    (Journal, "remove"),
    (netlink.Kernel, "_change"),
    (netlink.Kernel, "_set_link"),
    (netlink, "_nft"),
    (netlink, "write_setting"),
    (sysctls, "write_setting"),
    (keeper, "write_setting"),
)


def kill_at(point: int) -> None:
    """Kill this process before one of the calls that change something, counted from 1."""
    passed = 0

    def pass_point() -> None:
        nonlocal passed
        passed += 1
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            pass_point()
            return function(*arguments, **named)

        return call

    for owner, name in PLACES:
        setattr(owner, name, watched(getattr(owner, name)))


def make_and_undo(plan: str) -> None:
    worker = keeper.Keeper(Process.of(os.getpid()))
    table, _ = worker.begin()
    worker.apply(list(PLANS[plan](table, worker.facts())))
    worker.end()


def clean_up() -> None:
    worker = keeper.Keeper(Process.of(os.getpid()))
    report = worker.clean_up()
    worker.close()
    if report.failed:
        raise SystemExit(f"could not be undone: {report.failed}")


def survives(work: Callable[[], None], point: int) -> bool:
    """Run a child that dies at a point; say whether it came to its end instead."""
    child = os.fork()
    if not child:
        try:
            kill_at(point)
            work()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in {0, -signal.SIGKILL}:
        raise SystemExit(f"point {point}: the child failed with {status}")
    return status == 0


def main(plan: str) -> None:
    before = take_snapshot()
    point = 1
    while not survives(lambda: make_and_undo(plan), point):
        # Another place on its way each time: 11 has no factor in common with how a step repeats.
        survives(clean_up, 1 + point % 11)
        clean_up()
        if wrong := difference(before, take_snapshot()):
            raise SystemExit(f"point {point}:\n{wrong}")
        point += 1
    if wrong := difference(before, take_snapshot()):
        raise SystemExit(f"at the end:\n{wrong}")
    print(f"{point - 1} points")  # noqa: T201 - a program


if __name__ == "__main__":
    main(sys.argv[1])
