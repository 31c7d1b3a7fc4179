"""`scripts/fuzz`: the targets of `tests.fuzz.targets` under atheris, a fuzzer guided by coverage.

    scripts/fuzz --list
    scripts/fuzz TARGET ... --time SECONDS      or --runs N, of each; without a target: all
    scripts/fuzz TARGET FILE                    one input again, with its traceback
    scripts/fuzz TARGET ... --keep              choose the inputs that stay in tests/fuzz/corpus

Each target runs in a process of its own and begins with its seeds, with what is kept and with what
it has found before (.fuzz/TARGET). What ends it, an exception that is not allowed, more than
SLOWEST_S or too much memory, is left in .fuzz/TARGET.crash-* and .fuzz/TARGET.log.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.fuzz import kept

if TYPE_CHECKING:
    from types import FrameType

    from tests.fuzz.targets import Target

FOLDER: Final = Path(".fuzz")
SLOWEST_S: Final = 20  # an input that takes longer hangs
TOLD_S: Final = 0.1  # slower ones are told of
MEMORY_MIB: Final = 2048


def main() -> int:
    """Run it; 0 if nothing was found."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("targets", nargs="*", metavar="TARGET")
    add("--list", action="store_true", help="name the targets")
    add("--runs", type=int, default=0, help="inputs for each target")
    add("--time", type=int, default=0, help="seconds for each target (60, without --runs)")
    add("--seed", type=int, default=1, help="of the fuzzer's choices (1)")
    add("--keep", action="store_true", help="choose what stays in the repository")
    add("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return _fuzz(arguments.targets[0], arguments)
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - a child imports it instrumented

    names = arguments.targets or list(TARGETS)
    if len(names) == 2 and names[0] in TARGETS and Path(names[1]).is_file():
        with TARGETS[names[0]].bypass():
            TARGETS[names[0]](Path(names[1]).read_bytes())
        return 0
    if unknown := set(names) - set(TARGETS):
        parser.error(f"there is no target {' '.join(sorted(unknown))}: see --list")
    if arguments.list:
        print("\n".join(TARGETS))
        return 0
    if arguments.keep:
        for name in names:
            print(f"{name}: {_keep(name, TARGETS[name])}", flush=True)
        return 0
    if not arguments.time and not arguments.runs:
        arguments.time = 60
    print(f"{'target':24}{'inputs':>11}{'a second':>10}{'edges':>8}{'slowest':>10}", flush=True)
    return max([_watch(name, TARGETS[name], arguments) for name in names])


# ---- one target ----------------------------------------------------------------------------------


def _watch(name: str, target: Target, arguments: argparse.Namespace) -> int:
    """Fuzz a target in a process of its own and tell how it went."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    with target.bypass():
        for data in (*target.seeds(), *kept.read(name)):
            (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
    log = FOLDER / f"{name}.log"
    command = [sys.executable, "-m", "scripts.fuzz", "--child", name]
    for option in ("runs", "time", "seed"):
        command += [f"--{option}", str(getattr(arguments, option))]
    with log.open("wb") as output:
        began_s = time.monotonic()
        status = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
        taken_s = time.monotonic() - began_s
    text = log.read_text(errors="replace")
    inputs = int((re.findall(r"number_of_executed_units: (\d+)", text) or ["0"])[-1])
    edges = (re.findall(r"cov: (\d+)", text) or ["?"])[-1]
    slowest = (re.findall(r"slowest: (\S+ s)", text) or ["< 0.1 s"])[-1]
    print(f"{name:24}{inputs:11}{inputs / taken_s:10.0f}{edges:>8}{slowest:>10}", flush=True)
    if status:
        print(f"    it ended with status {status}: {log}", flush=True)
    return 1 if status else 0


def _fuzz(name: str, arguments: argparse.Namespace) -> int:
    """Fuzz in this process, which ends with it."""
    import atheris  # noqa: PLC0415 - only here; CI has none

    with atheris.instrument_imports(include=["gateway"]):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415
    logging.disable()
    target, slowest_s = TARGETS[name], TOLD_S

    def one(data: bytes) -> None:
        nonlocal slowest_s
        began_s = time.process_time()
        target(data)
        taken_s = time.process_time() - began_s
        if taken_s > slowest_s:
            slowest_s = taken_s
            print(f"slowest: {taken_s:.2f} s", data.hex(), file=sys.stderr, flush=True)

    options = [
        f"-runs={arguments.runs or -1}", f"-max_total_time={arguments.time}",
        f"-max_len={target.longest}", f"-seed={arguments.seed}",
        f"-timeout={SLOWEST_S}", f"-rss_limit_mb={MEMORY_MIB}", "-print_final_stats=1",
        "-len_control=0", f"-artifact_prefix={FOLDER / name}.", str(FOLDER / name),
    ]  # fmt: skip
    with target.bypass():
        atheris.Setup([sys.argv[0], *options], one)
        atheris.Fuzz()
    return 0


# ---- what is kept --------------------------------------------------------------------------------


def _keep(name: str, target: Target) -> str:
    """Choose few of the inputs so that every step from line to line is still taken, small first."""
    chosen: list[bytes] = []
    seen: set[tuple[object, int, int]] = set()
    found = {path.read_bytes() for path in (FOLDER / name).glob("*")} | set(kept.read(name))
    with target.bypass():
        for data in sorted(found, key=lambda data: (len(data), data)):
            steps = _steps(target, data)
            if not steps <= seen:
                seen |= steps
                chosen.append(data)
    kept.write(name, chosen)
    return f"{len(chosen)} of {len(found)} inputs"


def _steps(target: Target, data: bytes) -> set[tuple[object, int, int]]:
    """Return the pairs of lines of our own that follow each other in a run."""
    steps: set[tuple[object, int, int]] = set()
    ours = f"{Path('gateway').resolve()}/"

    def trace(frame: FrameType, _event: str, _argument: object) -> Any:  # noqa: ANN401 - of typeshed
        last = frame.f_lineno

        def step(_frame: FrameType, event: str, _argument: object) -> Any:  # noqa: ANN401
            nonlocal last
            if event == "line":
                steps.add((frame.f_code, last, frame.f_lineno))
                last = frame.f_lineno
            return step

        return step if frame.f_code.co_filename.startswith(ours) else None

    sys.settrace(trace)
    try:
        target(data)
    finally:
        sys.settrace(None)
    return steps


if __name__ == "__main__":
    sys.exit(main())
