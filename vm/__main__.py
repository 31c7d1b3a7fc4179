"""`scripts/vm-test`, whose head says what it needs; the Vagrantfile's, which machines there are."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from vm.host import CannotRun, check_tools, libvirt
from vm.machines import (
    BOX,
    BOX_FILE,
    CACHE,
    NAMES,
    ROOT,
    ChildError,
    VagrantError,
    box_is_known,
    environment,
    machines,
    remove_box,
    remove_leftovers,
    vagrant,
)
from vm.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable

CANNOT_RUN = 3
BOX_PYTHON = (3, 11)
_BEGAN = time.time()


class Report:
    """One line for each step, with its time; ``failed`` are the names of those that did not go."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self._began = time.monotonic()

    def step(self, name: str, action: Callable[[], str | None]) -> bool:
        """Do something and report it; say whether it went."""
        began = time.monotonic()
        try:
            note, word = action() or "", "ok  "
        except (AssertionError, ChildError, VagrantError, subprocess.SubprocessError) as error:
            note, word = str(error), "FAIL"
            self.failed.append(name)
        print(f"{word} {time.monotonic() - began:6.1f} s  {name}{note and f': {note}'}", flush=True)
        return word == "ok  "

    def end(self) -> int:
        """The last line, and the exit status."""
        result = f"failed: {', '.join(self.failed)}" if self.failed else "all passed"
        print(f"vm-test: {result}, in {(time.monotonic() - self._began) / 60:.1f} min")
        return 1 if self.failed else 0


def script(name: str) -> str:
    """Run one of our scripts to its end; return its last line."""
    done = subprocess.run(
        [ROOT / "scripts" / name],
        env=os.environ | {"PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise VagrantError(done.stdout.strip())
    return done.stdout.strip().splitlines()[-1].partition(": ")[2]


def check_python() -> None:
    """Raise `CannotRun` where wheels that are made here would not fit our box."""
    if environment()["LAB_BOX"] == BOX and sys.version_info[:2] != BOX_PYTHON:
        raise CannotRun(
            "the box has Python 3.11, and wheels made by another do not fit it: "
            "rm -r .venv, then PYTHON=python3.11 scripts/setup"
        )


def up() -> None:
    """Start all machines, beside each other."""
    vagrant("up")


def destroy() -> None:
    """Remove them."""
    vagrant("destroy", "--force")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/vm-test",
        description="Make client, jump box and target as virtual machines, try every way through "
        "the jump box, and remove them. .lab/vagrant.log has what Vagrant says.",
    )
    parser.add_argument("names", nargs="*", metavar="SCENARIO", choices=[*SCENARIOS, []],
                        help=f"only these: {', '.join(SCENARIOS)}")  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="leave the machines as they are, up")
    return parser.parse_args()


def try_all(report: Report, names: list[str], *, keep: bool) -> None:
    """Make the machines, try the scenarios, and remove them in any case."""
    remove_leftovers()
    if BOX_FILE.exists() and BOX_FILE.stat().st_mtime > _BEGAN:
        remove_box()  # one of before, by the name that the new one has
    had_box = box_is_known()
    with contextlib.ExitStack() as stack:
        if not keep:
            if not had_box:
                stack.callback(remove_box)
            stack.callback(remove_leftovers)
            stack.callback(report.step, "destroy", destroy)
        if not report.step("up", up):
            return
        found = machines()
        assert set(found) == set(NAMES)
        for name in names:
            report.step(name, partial(SCENARIOS[name], found))


def main() -> int:
    arguments = parse()
    CACHE.mkdir(exist_ok=True)
    report = Report()
    try:
        check_tools()
        check_python()
        needed = ["wheels"]
        if environment()["LAB_BOX"] == BOX and not BOX_FILE.exists():
            needed.insert(0, "build-box")
        if not all(report.step(name, partial(script, name)) for name in needed):
            return report.end()
        with libvirt(CACHE / "libvirt.json", keep=arguments.keep):
            try_all(report, arguments.names or list(SCENARIOS), keep=arguments.keep)
    except CannotRun as error:
        print(f"vm-test: cannot run here: {error}")
        return CANNOT_RUN
    return report.end()


def leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    sys.exit(main())
