"""The bench's arithmetic; what it measures is nobody's business here."""

import pytest

from bench.figures import (
    AT_LEAST,
    AT_MOST,
    PEER,
    Bar,
    Column,
    Table,
    compare,
    cpu_seconds_per_gb,
    judge,
    percentile,
    results_table,
    table,
)


def test_rounds_are_compared_pairwise():
    found = compare([100.0, 50.0, 220.0], [100.0, 100.0, 200.0])
    assert (found.median, found.peer_median) == (100.0, 100.0)
    assert found.ratio_of_medians == 1.0
    assert found.median_of_ratios == 1.0
    slower_machine = compare([80.0, 8.0, 160.0], [100.0, 10.0, 200.0])
    assert slower_machine.median_of_ratios == pytest.approx(0.8)


@pytest.mark.parametrize(("own", "peer"), [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_must_belong_together(own, peer):
    with pytest.raises(ValueError, match="rounds against"):
        compare(own, peer)


def test_a_peer_too_cheap_to_measure():
    assert compare([1.0], [0.0]).median_of_ratios == float("inf")


def test_cpu_seconds_for_a_gigabyte():
    assert cpu_seconds_per_gb(10.0, 10.25, 250_000_000) == pytest.approx(1.0)


RESULTS = {
    "MB/s": {"us": [80.0, 8.0, 160.0], "us [old]": [70.0, 7.0, 70.0], "ssh": [100.0, 10.0, 200.0]},
    "idle ms": {"us": [40.0, 40.0, 41.0]},
    "loaded ms": {"us": [120.0, 119.0, 124.0]},
    "start ms": {"us": [350.0, 340.0], "ssh": [100.0, 80.0]},
}


@pytest.mark.parametrize(
    ("bar", "figure", "reached"),
    [
        (Bar("us", "MB/s", AT_LEAST, 0.8, "ssh"), 0.8, True),
        (Bar("us", "MB/s", AT_LEAST, 0.81, "ssh"), 0.8, False),
        (Bar("us", "MB/s", AT_LEAST, 79), 80.0, True),
        (Bar("us", "idle ms", AT_MOST, 39), 40.0, False),
        (Bar("us", "loaded ms", AT_MOST, 3, against_measure="idle ms"), 3.0, True),
        (Bar("us", "start ms", AT_MOST, 250, "ssh", difference=True), 255.0, False),
    ],
)
def test_a_bar_is_reached_at_the_bar(bar, figure, reached):
    [verdict] = judge([bar], RESULTS, [""])
    assert (verdict.figure, verdict.reached) == (pytest.approx(figure), reached)


def test_a_bar_holds_in_each_tree_and_is_left_out_where_nothing_was_measured():
    bars = [Bar("us", "MB/s", AT_LEAST, 0.8, "ssh"), Bar("us", "RSS MB", AT_MOST, 70)]
    found = judge(bars, RESULTS, ["", " [old]"])
    assert [(verdict.case, verdict.reached) for verdict in found] == [
        ("us", True),
        ("us [old]", False),
    ]


def test_a_table_of_results_has_a_cell_only_where_there_is_a_figure():
    shown = Table("bulk", (Column("MB/s", "MB/s"), Column("x", "MB/s", PEER), Column("yy", "none")))
    assert results_table(shown, {"us": "ssh"}, {"MB/s": {"ssh": [10.0], "us": [8.0]}}) == [
        "| bulk | MB/s |    x | yy |",
        "| ---- | ---: | ---: | -: |",
        "| ssh  | 10.0 |      |    |",
        "| us   | 8.00 | 0.80 |    |",
    ]
    assert results_table(Table("nothing", (Column("y", "none"),)), {}, {}) == []


@pytest.mark.parametrize(("percent", "figure"), [(0, 1.0), (50, 2.5), (95, 3.85), (100, 4.0)])
def test_percentiles_lie_between_their_neighbours(percent, figure):
    assert percentile([3.0, 1.0, 4.0, 2.0], percent) == pytest.approx(figure)


def test_table_is_aligned_markdown():
    assert table(["case", "MB/s"], [["ssh -D", "7"], ["us", "1234"]]) == [
        "| case   | MB/s |",
        "| ------ | ---: |",
        "| ssh -D |    7 |",
        "| us     | 1234 |",
    ]
