"""The bench's arithmetic; what it measures is nobody's business here."""

import pytest

from scripts.bench_figures import below, compare, cpu_seconds_per_gb, table


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


def test_the_bar_is_reached_at_the_bar():
    comparisons = {"get": compare([8.0], [10.0]), "put": compare([7.9], [10.0])}
    assert below(comparisons, 0.8) == ["put"]


def test_table_is_aligned_markdown():
    assert table(["case", "MB/s"], [["ssh -D", "7"], ["us", "1234"]]) == [
        "| case   | MB/s |",
        "| ------ | ---: |",
        "| ssh -D |    7 |",
        "| us     | 1234 |",
    ]
