"""SECURITY.md names tests and scripts that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_what_shows_it_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    named = set(re.findall(r"(?:tests|scripts)/[\w/.]*\w", text))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
