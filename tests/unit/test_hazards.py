"""The table of hazards names tests that exist, and says plainly where there is none."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "tests/HAZARDS.md").read_text().splitlines()
    if line.startswith("| T")
]

PEERS = range(1, 69)  # transport, logins, channels, forwarding
TUNNEL = (69, 70, 71, 72, 74, 78, 79, 80, 82, 93)
TRUST = range(83, 93)


@cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, kinds))


def test_every_hazard_has_one_row() -> None:
    assert [row[0] for row in ROWS] == [f"T{number}" for number in (*PEERS, *TUNNEL, *TRUST)]
    assert {len(row) for row in ROWS} == {3}


def test_every_row_names_tests_that_exist_or_says_why_there_is_none() -> None:
    for number, must_hold, tests in ROWS:
        named = re.findall(r"`(tests/[^`]+)`", tests)
        assert must_hold.endswith("."), number
        assert named or tests.startswith("no test: "), number
        for name in named:
            path, function = name.split("::")
            assert function in functions(path), name
            assert function.startswith("test_"), name
        assert len(named) == len(set(named)), number


def test_nothing_is_left_for_later() -> None:
    assert not [number for number, _, tests in ROWS if "open: issue" in tests]
