"""The arithmetic of the bench: medians over interleaved rounds, ratios, a table. No I/O."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

Samples = dict[str, list[float]]
"""Case name to one figure for each round."""


@dataclass(frozen=True)
class Comparison:
    """A case next to its peer, whose figures were taken in the same rounds."""

    median: float
    peer_median: float
    ratio_of_medians: float
    median_of_ratios: float


def compare(own: list[float], peer: list[float]) -> Comparison:
    """The rounds belong together pairwise: what disturbs one of a pair disturbs both."""
    if len(own) != len(peer) or not own:
        raise ValueError(f"{len(own)} rounds against {len(peer)}")
    median, peer_median = statistics.median(own), statistics.median(peer)
    return Comparison(
        median,
        peer_median,
        divide(median, peer_median),
        statistics.median(divide(a, b) for a, b in zip(own, peer, strict=True)),
    )


def divide(numerator: float, denominator: float) -> float:
    """A ratio; infinite where the peer's figure was too small to be measured."""
    return numerator / denominator if denominator else float("inf")


def cpu_seconds_per_gb(before_s: float, after_s: float, byte_count: int) -> float:
    """CPU seconds for 10^9 bytes."""
    return (after_s - before_s) / byte_count * 1e9


def below(comparisons: dict[str, Comparison], bar: float) -> list[str]:
    """The names of those whose median of ratios misses the bar."""
    return [name for name, found in comparisons.items() if found.median_of_ratios < bar]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table, readable as it stands: first column left, the others right."""
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]

    def line(cells: list[str]) -> str:
        texts = [
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(texts) + " |"

    rule = [("-" * (width - 1) + ":") if column else "-" * width
            for column, width in enumerate(widths)]  # fmt: skip
    return [line(head), line(rule), *(line(row) for row in rows)]
