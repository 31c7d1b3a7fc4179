"""The inputs that are kept: for each target one file, a line of base64 for each input.

A line that begins with # says of the one below what it had once broken.
"""

from __future__ import annotations

import base64
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

CORPUS: Final = Path(__file__).parent / "corpus"


def read(name: str) -> list[bytes]:
    """Return the inputs of a target."""
    return [base64.b64decode(line) for line in _lines(name) if not line.startswith("#")]


def write(name: str, chosen: Iterable[bytes]) -> None:
    """Replace the inputs of a target, but for those of which it says what they had broken."""
    lines = _lines(name)
    lasting: list[str] = []
    for remark, line in itertools.pairwise(lines):
        if remark.startswith("#"):
            lasting += [remark, line]
    encoded = (base64.b64encode(data).decode() for data in chosen)
    rest = [line for line in encoded if line not in lasting]
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / name).write_text("\n".join([*lasting, *rest, ""]))


def _lines(name: str) -> list[str]:
    path = CORPUS / name
    return path.read_text().splitlines() if path.exists() else []
