"""The table of what is fuzzed: what was found to be different runs again, and anything besides."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import kept
from tests.fuzz.targets import TARGETS

MOST_BYTES = 1 << 20  # of everything that is kept
EVERY = pytest.mark.parametrize("name", TARGETS)


@pytest.fixture(autouse=True)
def silence():
    """The parsers say much about what is wrong."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@EVERY
def test_what_was_kept(name):
    target, inputs = TARGETS[name], kept.read(name)
    assert inputs, f"scripts/fuzz {name} --time 60 && scripts/fuzz {name} --keep"
    with target.bypass():
        for data in inputs:
            target(data)


@EVERY
def test_anything(name):
    target = TARGETS[name]

    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(st.binary(max_size=200))
    def run(data):
        target(data)

    with target.bypass():
        run()


def test_every_file_belongs_to_a_target_and_all_are_small():
    files = list(kept.CORPUS.iterdir())
    assert {path.name for path in files} == set(TARGETS)
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
