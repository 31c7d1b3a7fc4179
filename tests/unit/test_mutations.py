"""What `scripts/mutations` breaks is still there, and so are the tests that have to see it."""

from __future__ import annotations

import ast

import pytest

from scripts.mutations import MUTATIONS, ROOT, Mutation
from tests.unit.test_hazards import ROWS, functions

TESTS = {number: cell for number, _, cell in ROWS}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.shown)
def test_it_can_be_tried(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text()
    mutated = mutation.apply(source)
    assert mutated != source
    ast.parse(mutated)
    assert mutation.tests
    for test in mutation.tests:
        path, name = test.split("::")
        assert name in functions(path), test
        assert f"`{test}`" in TESTS[mutation.hazard], test


def test_every_group_of_hazards_has_some() -> None:
    groups = [mutation.group for mutation in MUTATIONS]
    assert {group: groups.count(group) >= 3 for group in "ABCDEF"} == dict.fromkeys("ABCDEF", True)
