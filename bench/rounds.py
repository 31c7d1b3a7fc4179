"""What all commands share: the programs take turns, round by round; then the tables and the bars.

A command is data: parts, each of which measures one thing of one case, and what to make of the
figures. What disturbs the machine disturbs all cases of a round, so ratios are of one round.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import (
    Bar,
    Results,
    Table,
    Verdict,
    bars_table,
    compare,
    judge,
    results_table,
)
from bench.programs import (
    LIMIT,
    SAME_CIPHER,
    Bed,
    Case,
    Spec,
    ask,
    fail,
    say,
    start,
    start_data_server,
)
from gateway.ssh.algorithms import DEFAULT_CIPHERS
from tests.support.programs import make_keys

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).resolve().parent.parent
WARM_UP_BYTES = 16_000_000
WARM_UP_BYTES_OF_A_LINE = 200_000


@dataclass(frozen=True)
class Part:
    """One thing to measure: of which cases, and how. Its figures are filed by measure.

    A case is started once and stays for all rounds, unless the part starts its own (``is_fresh``).
    """

    name: str
    specs: Callable[[Bed], list[Spec]]
    measure: Callable[[Run, Spec], dict[str, float]]
    is_fresh: bool = False


@dataclass(frozen=True)
class Option:
    """A number that a command takes."""

    name: str
    default: int
    unit: str
    what: str


@dataclass(frozen=True)
class Command:
    """A command of the bench. ``budget_s``: no further round after it, unless so many are asked."""

    name: str
    what: str
    parts: tuple[Part, ...]
    options: tuple[Option, ...]
    tables: tuple[Table, ...]
    bars: Callable[[argparse.Namespace], list[Bar]]
    notes: tuple[str, ...]
    rounds: int
    budget_s: float


class Run:
    """A command while it measures."""

    def __init__(self, bed: Bed, options: argparse.Namespace, stack: ExitStack) -> None:
        self.bed = bed
        self.options = options
        self._stack = stack
        self._cases: dict[Spec, Case] = {}

    def case(self, spec: Spec) -> Case:
        """The case of a spec, started if it does not run yet, and warm."""
        if spec not in self._cases:
            self._cases[spec] = found = start(self._stack, self.bed, spec)
            if found.entry_port:
                warm_up(found, self.bed)
        return self._cases[spec]


def warm_up(case: Case, bed: Bed) -> None:
    size = WARM_UP_BYTES if case.spec.line is None else WARM_UP_BYTES_OF_A_LINE
    for direction in ("get", "put"):
        ask(case, direction, bed.bulk_port, count=size)
    ask(case, "echo", bed.echo_port, count=20)


# ---- rounds --------------------------------------------------------------------------------------


def execute(command: Command, options: argparse.Namespace) -> int:
    """Measure and report; the exit status."""
    trees = {"": ROOT} | {f" [{path.name}]": path.resolve() for path in options.tree}
    parts = [part for part in command.parts if not options.part or part.name in options.part]
    results: Results = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-bench-")))
        bulk_port, echo_port = start_data_server(stack), start_data_server(stack)
        bed = Bed(folder, make_keys(folder / "keys"), bulk_port, echo_port, trees, {})
        planned = [(part, chosen(part.specs(bed), options.only)) for part in parts]
        if not any(specs for _, specs in planned):
            fail(f"no case is named {options.only!r}")
        run = Run(bed, options, stack)
        say("starting the programs")
        for part, specs in planned:
            for spec in specs if not part.is_fresh else ():
                run.case(spec)
        rounds = measure_rounds(command, run, planned, results)
    facts = machine_facts(bed)
    peers = {spec.name: spec.peer for _, specs in planned for spec in specs}
    verdicts = judge(command.bars(options), results, list(trees))
    document = {
        "facts": facts,
        "options": {option.name: getattr(options, option.name) for option in command.options},
        "rounds": rounds,
        "figures": results,
        "against_ssh": comparisons(results, peers),
        "bars": [asdict(verdict) for verdict in verdicts],
    }
    if options.json:
        print(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        print("\n".join(report(command, document, results, peers, verdicts)))
    return checked(verdicts) if options.check else 0


def chosen(specs: list[Spec], only: str) -> list[Spec]:
    """The cases with a text in their names, their peers, and the limit."""
    named = {spec.name for spec in specs if only in spec.name}
    wanted = named | {spec.peer for spec in specs if spec.name in named}
    if named:
        wanted.add(LIMIT)
    return [spec for spec in specs if spec.name in wanted]


def measure_rounds(
    command: Command, run: Run, planned: list[tuple[Part, list[Spec]]], results: Results
) -> int:
    """Go round until it is enough; the number of rounds."""
    started_s = time.monotonic()
    rounds = 0
    while rounds < (run.options.rounds or command.rounds):
        for part, specs in planned:
            for spec in specs:
                for measure, figure in part.measure(run, spec).items():
                    results.setdefault(measure, {}).setdefault(spec.name, []).append(figure)
        rounds += 1
        say(f"round {rounds} done")
        if not run.options.rounds and time.monotonic() - started_s > command.budget_s:
            break
    return rounds


def checked(verdicts: list[Verdict]) -> int:
    """1 if this tree, not one that is measured beside it, misses a bar."""
    own = [verdict for verdict in verdicts if not verdict.case.endswith("]")]
    if not own:
        fail("--check: no bar's figures were taken")
    missed = [verdict for verdict in own if not verdict.reached]
    for verdict in missed:
        say(f"{verdict.measure}, {verdict.case}: {verdict.figure:.3g}, the bar is {verdict.bar}")
    return 1 if missed else 0


# ---- the report ----------------------------------------------------------------------------------


def machine_facts(bed: Bed) -> dict[str, str]:
    version = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr
    asked = subprocess.run(
        ["ssh", "-G", "-F", "none", "localhost"], capture_output=True, text=True, check=False
    ).stdout
    kernel = ".".join(platform.release().split(".")[:2])
    lists = [line.split()[1] for line in asked.splitlines() if line.startswith("ciphers ")]
    facts = {
        "machine": f"{os.cpu_count()} cores, Linux {kernel}, Python {platform.python_version()}",
        "congestion control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "peer": version.split(",")[0].strip(),
        "same cipher": SAME_CIPHER,
        "default ciphers": f"ssh {''.join(lists).split(',')[0]}, gateway {DEFAULT_CIPHERS[0]}",
    }
    for name, language in bed.languages.items():
        facts[f"{name} between"] = f"in {language}"
    return facts


def comparisons(results: Results, peers: dict[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    """Each figure next to its peer's, by measure and case."""
    return {
        measure: {
            name: asdict(compare(own, figures[peers[name]]))
            for name, own in figures.items()
            if peers.get(name) in figures
        }
        for measure, figures in results.items()
    }


def report(
    command: Command,
    document: dict[str, object],
    results: Results,
    peers: dict[str, str],
    verdicts: list[Verdict],
) -> Iterable[str]:
    facts, options = document["facts"], document["options"]
    assert isinstance(facts, dict)
    assert isinstance(options, dict)
    yield from (f"{name}: {fact}" for name, fact in facts.items())
    shown = ", ".join(f"{name} {value}" for name, value in options.items())
    yield f"scripts/bench {command.name}, {document['rounds']} rounds; {shown}"
    yield from command.notes
    for each in command.tables:
        lines = results_table(each, peers, results)
        if lines:
            yield ""
            yield from lines
    if verdicts:
        yield ""
        yield from bars_table(verdicts)
