"""What `gateway serve` says about refusals: bounded, and nothing is left out silently."""

from __future__ import annotations

import logging

import pytest

from gateway import events
from gateway.cli.serve_report import MOST, PERIOD_S, Report


def refusal(link_id, number=0):
    return events.Decision(link_id, number, "alice", "open", f"x port {number}", False, "denied")


def closed(link_id):
    return events.LinkClosed(link_id, "192.0.2.1 port 5", "gone", 0, 0)


@pytest.fixture
def report(caplog):
    """A report at the time ``now_s``."""
    caplog.set_level(logging.INFO, "gateway.cli.serve_report")
    made = Report(lambda: made.now_s)
    made.now_s = 100.0
    return made


def test_a_link_with_many_refusals_gets_a_few_lines_and_a_number(report, caplog):
    for number in range(10_000):
        report(refusal(1, number))
    report(refusal(2))
    assert caplog.messages == [
        *(f"link 1: open x port {number} refused: denied" for number in range(MOST)),
        "link 2: open x port 0 refused: denied",
    ]
    caplog.clear()
    report(closed(1))
    report(closed(2))
    assert caplog.messages == [
        f"link 1: {10_000 - MOST} more were refused",
        "link 1: 192.0.2.1 port 5 closed: gone",
        "link 2: 192.0.2.1 port 5 closed: gone",
    ]
    assert not report._refusals, "who is gone is forgotten"


def test_after_a_period_refusals_are_shown_again(report, caplog):
    for _ in range(MOST + 3):
        report(refusal(1))
    report.now_s += PERIOD_S
    caplog.clear()
    report(refusal(1, 7))
    assert caplog.messages == [
        "link 1: 3 more were refused",
        "link 1: open x port 7 refused: denied",
    ]


def test_what_is_allowed_is_no_warning(report, caplog):
    report(events.Decision(1, 0, "alice", "open", "x port 1", True, "r1"))
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("INFO", "link 1: open x port 1 allowed: r1")
    ]
