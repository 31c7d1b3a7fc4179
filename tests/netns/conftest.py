"""The labs as fixtures; where there can be none, the tests say why and skip."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from netns.lab import Lab, why_unusable
from netns.topologies import TWO_HOSTS

if TYPE_CHECKING:
    from collections.abc import Iterator

why_not = functools.cache(why_unusable)


@pytest.fixture
def two_hosts() -> Iterator[Lab]:
    if reason := why_not():
        pytest.skip(f"no network-namespace lab: {reason}")
    with Lab(TWO_HOSTS) as lab:
        yield lab
