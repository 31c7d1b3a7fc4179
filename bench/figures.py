"""The arithmetic of the bench: medians over interleaved rounds, ratios, bars, tables. No I/O."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

Results = dict[str, dict[str, list[float]]]
"""Measure ("get MB/s") → case name → one figure for each round."""


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


def percentile(figures: list[float], percent: float) -> float:
    """The figure below which ``percent`` of them are, between two neighbours in proportion."""
    if not figures:
        raise ValueError("no figures")
    ordered = sorted(figures)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def cpu_seconds_per_gb(before_s: float, after_s: float, byte_count: float) -> float:
    """CPU seconds for 10^9 bytes."""
    return (after_s - before_s) / byte_count * 1e9


# ---- bars ----------------------------------------------------------------------------------------

AT_LEAST, AT_MOST = "≥", "≤"


@dataclass(frozen=True)
class Bar:
    """What a case has to reach, by itself or next to another figure of the same rounds.

    ``against`` names the other case, ``against_measure`` the other measure; either alone will do.
    With ``difference`` the bar is for what is more than the other figure, not for the ratio.
    """

    case: str
    measure: str
    relation: str
    limit: float
    against: str = ""
    against_measure: str = ""
    difference: bool = False

    @property
    def is_absolute(self) -> bool:
        """Whether it stands for itself."""
        return not (self.against or self.against_measure)


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured: medians, and the median of what each round gave."""

    measure: str
    case: str
    own: float
    other: float | None
    figure: float
    bar: str
    reached: bool


def judge(bars: list[Bar], results: Results, suffixes: list[str]) -> list[Verdict]:
    """A verdict for each bar whose figures were taken, in every tree (its cases' suffix)."""
    found = []
    for bar in bars:
        for suffix in suffixes:
            verdict = judge_one(bar, results, suffix)
            if verdict is not None:
                found.append(verdict)
    return found


def judge_one(bar: Bar, results: Results, suffix: str) -> Verdict | None:
    own = results.get(bar.measure, {}).get(bar.case + suffix)
    if not own:
        return None
    if bar.is_absolute:
        other_median, figure = None, statistics.median(own)
    else:
        there = results.get(bar.against_measure or bar.measure, {})
        name = bar.against or bar.case
        other = there.get(name + suffix) or there.get(name)
        if not other:
            return None
        pairs = list(zip(own, other, strict=True))
        other_median = statistics.median(other)
        figure = statistics.median(a - b if bar.difference else divide(a, b) for a, b in pairs)
    reached = figure >= bar.limit if bar.relation == AT_LEAST else figure <= bar.limit
    beside = f" x {bar.against or bar.against_measure}" if not bar.is_absolute else ""
    if bar.difference:
        beside = f" more than {bar.against or bar.against_measure}"
    return Verdict(bar.measure, bar.case + suffix, statistics.median(own), other_median, figure,
                   f"{bar.relation} {bar.limit:g}{beside}", reached)  # fmt: skip


def bars_table(verdicts: list[Verdict]) -> list[str]:
    """The verdicts, to be pasted into PERFORMANCE.md."""
    head = ["measure", "case", "here", "next to", "figure", "bar", ""]
    rows = [
        [
            verdict.measure,
            verdict.case,
            number(verdict.own),
            "" if verdict.other is None else number(verdict.other),
            number(verdict.figure),
            verdict.bar,
            "OK" if verdict.reached else "missed",
        ]
        for verdict in verdicts
    ]
    return table(head, rows)


# ---- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column: a measure's median or, with ``against``, its relation to another case.

    ``against`` is a case, or PEER for the case that each is compared with.
    """

    head: str
    measure: str
    against: str = ""
    of_medians: bool = False


PEER = "the peer of each case"


@dataclass(frozen=True)
class Table:
    """A table of the cases that have figures for its first measure."""

    head: str
    columns: tuple[Column, ...]


def cell(column: Column, case: str, peers: dict[str, str], results: Results) -> str:
    """A median, or the median of the ratios of each round; empty where there is none."""
    figures = results.get(column.measure, {})
    own = figures.get(case)
    if not own:
        return ""
    if not column.against:
        return number(statistics.median(own))
    other = figures.get(peers.get(case, "") if column.against == PEER else column.against)
    if not other:
        return ""
    found = compare(own, other)
    return f"{found.ratio_of_medians if column.of_medians else found.median_of_ratios:.2f}"


def results_table(shown: Table, peers: dict[str, str], results: Results) -> list[str]:
    """A line for each case, in the order in which they were measured; none without figures."""
    names: dict[str, None] = {}
    for column in shown.columns:
        names |= dict.fromkeys(results.get(column.measure, {}))
    rows = [[name, *(cell(column, name, peers, results) for column in shown.columns)]
            for name in names]  # fmt: skip
    return table([shown.head, *(column.head for column in shown.columns)], rows) if rows else []


def number(value: float) -> str:
    """Three significant digits, and no decimals from a hundred on."""
    for decimals, below in ((3, 0.1), (2, 10.0), (1, 100.0)):
        if abs(value) < below:
            return f"{value:.{decimals}f}"
    return f"{value:.0f}"


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
