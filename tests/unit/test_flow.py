"""Windows by measurement: on simulated paths, and the bookkeeping by itself."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ssh.flow import (
    ANSWER_DEADLINE_S,
    CALM_S,
    INITIAL_WINDOW,
    MAXIMUM_WINDOW,
    MINIMUM_TARGET,
    OFTEN,
    PROBE_BYTES,
    UNLIMITED,
    PathMeter,
)
from gateway.ssh.windows import (
    DEFAULT_WINDOW,
    MINIMUM_WINDOW,
    Budget,
    ReceiveWindow,
    Shares,
    fair_level,
)
from tests.support.path import Sim, Upload, line

MIB = 1024 * 1024
SLOW = 2.5e6  # 20 Mbit/s in bytes/s
RTT_S = 0.04


# ---- paths ---------------------------------------------------------------------------------------
def test_a_long_fat_path_is_filled_in_steps():
    sim = Sim()
    link = line(sim, 1e9, 0.1)
    download = link.download()
    sim.run(0.6)
    before = download.bytes_in
    sim.run(1.0)
    assert (download.bytes_in - before) / 0.4 >= 100e6
    sizes = [target_in for _, target_in, _ in link.targets if target_in < 10 * MIB]
    assert all(new <= 4.5 * old for old, new in pairwise(sizes))
    sim.run(2.0)
    assert download.largest <= MAXIMUM_WINDOW


@pytest.mark.parametrize("rtt_s", [0.035, RTT_S, 0.055, 0.1])
@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_slow_line_is_full_and_its_queue_short(direction, rtt_s):
    sim = Sim()
    link = line(sim, SLOW, rtt_s)
    if direction == "download":
        download = link.download()
        link.echo()
        sim.run(30)
        carried = download.bytes_in
    else:
        upload = Upload(link)
        link.echo()
        sim.run(30)
        carried = upload.delivered
    assert carried / 30 >= 0.95 * SLOW
    assert link.echo_p95_s() <= 2.5 * rtt_s


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_route_that_changes_and_ten_minutes_of_load(direction):
    sim = Sim()
    link = line(sim, SLOW, RTT_S)
    download = link.download() if direction == "download" else None
    upload = Upload(link) if download is None else None

    def carried(since_s, until_s):
        sim.run(since_s)
        before = download.bytes_in if download else upload.delivered
        sim.run(until_s)
        return ((download.bytes_in if download else upload.delivered) - before) / (
            until_s - since_s
        )

    sim.run(60)
    link.up.delay_s = link.down.delay_s = 0.06
    assert carried(61, 65) >= 0.5 * SLOW
    assert carried(90, 120) >= 0.9 * SLOW
    link.up.delay_s = link.down.delay_s = 0.02
    assert carried(150, 180) >= 0.95 * SLOW
    assert link.meter.min_rtt_s < 0.05
    assert carried(180, 600) >= 0.95 * SLOW
    limit = 3 * SLOW * RTT_S + SLOW * 0.0075
    index = 1 if download else 2
    late = sorted(target[index] for target in link.targets if target[0] > 180)
    assert late[int(len(late) * 0.98)] <= limit
    assert max(target[index] for target in link.targets if target[0] > 1) <= 4.5 * SLOW * 0.12


def test_twenty_bulk_channels_share_and_a_late_one_gets_its_share():
    sim = Sim()
    link = line(sim, 10 * SLOW, RTT_S)
    downloads = [link.download() for _ in range(20)]
    for _ in range(5):
        link.echo()
    sim.run(5)
    before = [download.bytes_in for download in downloads]
    sim.run(15)
    carried = [download.bytes_in - old for download, old in zip(downloads, before, strict=True)]
    assert min(carried) >= 0.7 * max(carried)
    assert sum(carried) >= 0.95 * 10 * 10 * SLOW
    late = link.download()
    sim.run(17)
    before = [download.bytes_in for download in [late, *downloads]]
    sim.run(27)
    carried = [d.bytes_in - old for d, old in zip([late, *downloads], before, strict=True)]
    assert 0.7 <= carried[0] / (sum(carried) / len(carried)) <= 1.3


def test_channels_that_use_little_keep_small_windows_and_take_no_share():
    sim = Sim()
    link = line(sim, SLOW, RTT_S)
    bulk, stream = link.download(), link.download(rate=0.3e6)
    link.echo()
    sim.run(20)
    assert stream.bytes_in >= 0.95 * 0.3e6 * 20
    assert bulk.bytes_in + stream.bytes_in >= 0.95 * SLOW * 20
    assert stream.window.size <= 2 * MINIMUM_TARGET


@pytest.mark.parametrize("share", [0.005, 0.05, 0.3, 1.0])
def test_noise_of_a_scheduler_does_not_throttle_loopback(share):
    sim = Sim()

    def noise():
        return sim.random.random() * 0.005 if sim.random.random() < share else 0.0

    link = line(sim, 600e6, 0.0001, jitter=noise)
    download = link.download()
    sim.run(3)
    assert min(target for now_s, target, _ in link.targets if now_s > 0.3) >= 1.5e6
    assert download.bytes_in >= 0.9 * 3 * 600e6


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("direction", ["download", "upload"])
def test_an_rtt_that_jumps_does_not_shrink_the_target(direction, seed):
    sim = Sim(seed)
    link = line(sim, SLOW, 0.01, jitter=lambda: sim.random.uniform(0, 0.06))
    if direction == "download":
        download = link.download()
        sim.run(40)
        assert download.bytes_in >= 0.85 * 40 * SLOW
    else:
        upload = Upload(link)
        sim.run(40)
        assert upload.delivered >= 0.85 * 40 * SLOW


def test_slow_readers_stay_within_the_budget():
    sim = Sim()
    total = 8 * MIB
    process = Budget(total)
    users = [Budget(parent=process) for _ in range(5)]
    links = [line(sim, 100e6, RTT_S, Budget(parent=user)) for user in users]
    fast = line(sim, 10e6, RTT_S, Budget(parent=Budget(parent=process)))
    slow = [link.download(reads=False) for link in links for _ in range(100)]
    for download in slow[1:]:
        sim.every(0.1, lambda download=download: download.read(2000))
    other = fast.download()
    largest = 0

    def look():
        nonlocal largest
        exposed = sum(one.window.granted + one.window.held for one in [*slow, other])
        largest = max(largest, exposed)
        assert process.used <= total

    sim.every(0.05, look)
    sim.run(3)
    before, size = other.bytes_in, slow[0].window.size
    sim.run(13)
    assert largest <= total + 501 * MINIMUM_WINDOW
    assert slow[0].window.size <= size
    assert other.bytes_in - before >= 0.95 * 10 * 10e6
    for download in slow:
        download.line.shares.close(download.window)
    fast.shares.close(other.window)
    assert process.used == 0


@pytest.mark.parametrize("rtt_s", [0.03, 0.036, RTT_S, 0.044, 0.05])
def test_both_directions_at_once(rtt_s):
    """Two-way traffic compresses acknowledgements (Zhang 1991): no window fills both ways.

    Which direction gets less, and how much less, depends on the first rounds.
    """
    sim = Sim()
    link = line(sim, SLOW, rtt_s)
    download, upload = link.download(), Upload(link)
    link.echo()
    sim.run(60)
    down, up = download.bytes_in / 60 / SLOW, upload.delivered / 60 / SLOW
    assert min(down, up) >= 0.6
    assert down + up >= 1.5
    assert link.echo_p95_s() <= 4 * rtt_s


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_the_queue_settles_when_the_line_gets_slower(direction):
    sim = Sim()
    link = line(sim, SLOW, RTT_S)
    if direction == "download":
        link.download()
        pipe = link.down
    else:
        Upload(link)
        pipe = link.up
    sim.run(18)
    pipe.rate = SLOW / 10
    sim.run(26)
    for now_s in range(26, 40):
        sim.run(now_s)
        assert pipe.queue_s <= 0.4  # MINIMUM_WINDOW takes 0.26 s
    pipe.rate = SLOW
    sim.run(45)
    before = pipe.carried
    sim.run(50)
    assert pipe.carried - before >= 0.9 * 5 * SLOW


def test_a_peer_that_answers_no_probe_gets_the_default():
    sim = Sim()
    link = line(sim, 100e6, RTT_S, answers=False)
    download, upload = link.download(), Upload(link)
    sim.run(ANSWER_DEADLINE_S + 3)
    assert download.window.size == DEFAULT_WINDOW
    assert link.meter.send_until == UNLIMITED
    assert link.probes == 1
    before = download.bytes_in, upload.delivered
    sim.run(ANSWER_DEADLINE_S + 5)
    assert download.bytes_in - before[0] >= 1.3 * DEFAULT_WINDOW / RTT_S
    assert upload.delivered - before[1] >= 1.3 * DEFAULT_WINDOW / RTT_S


def test_a_peer_that_stops_answering_and_begins_again():
    sim = Sim()
    link = line(sim, SLOW, RTT_S)
    upload = Upload(link)
    sim.run(5)
    link.answers = False
    sim.run(20)
    assert link.meter.is_lost
    before = upload.delivered
    sim.run(25)
    assert upload.delivered - before >= 0.95 * 5 * SLOW


# ---- probes --------------------------------------------------------------------------------------
def test_probes_are_asked_for_while_data_flows():
    meter = PathMeter()
    assert not meter.probe_due(0.0, 0, 0)
    assert meter.probe_due(0.0, 0, 1)  # anything, since the link was idle
    meter.probe_sent(0.0, 0, 1)
    assert not meter.probe_due(5.0, MIB, MIB)  # one is on its way
    assert meter.probe_answered(5.0, MIB)
    assert not meter.probe_due(5.0, 0, 1)
    meter.probe_sent(5.0, MIB, MIB)
    meter.probe_answered(5.001, MIB)
    assert not meter.probe_due(5.005, 2 * MIB, MIB)  # too soon
    assert meter.probe_due(5.011, 2 * MIB, MIB)
    assert not meter.probe_due(5.5, MIB + PROBE_BYTES - 1, MIB)
    assert meter.probe_due(6.1, MIB + 1, MIB)


def test_sending_is_unlimited_until_an_answer_came():
    meter = PathMeter()
    assert meter.send_until == UNLIMITED
    meter.probe_sent(0.0, 0, 10)
    assert meter.send_until == UNLIMITED
    meter.probe_answered(RTT_S, 0)
    assert meter.send_until == 10 + meter.send_step
    assert meter.probe_due(RTT_S, 0, meter.send_until)
    meter.probe_sent(RTT_S, 0, meter.send_until)
    assert meter.send_until == 10 + 2 * meter.send_step


def test_an_answer_nobody_asked_for_changes_nothing():
    meter = PathMeter()
    assert not meter.probe_answered(1.0, 0)
    assert meter.send_until == UNLIMITED
    assert meter.target_in == INITIAL_WINDOW


def test_an_upload_never_waits_for_a_probe_that_is_not_sent():
    """Whenever a sender stops, either a probe is due or one is on its way."""
    sim = Sim()
    link = line(sim, SLOW, RTT_S, jitter=lambda: sim.random.uniform(0, 0.02))
    Upload(link)

    def look():
        if link.bytes_out >= link.meter.send_until:
            assert link.meter._probes

    sim.every(0.001, look)
    sim.every(3.0, lambda: setattr(link.up, "rate", sim.random.choice([SLOW / 50, SLOW, 8 * SLOW])))
    sim.run(60)


# ---- windows, shares, the budget -----------------------------------------------------------------
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["receive", "read", "resize"]), st.integers(0, 300_000)),
        max_size=80,
    )
)
def test_credit_is_conserved_and_progress_always_possible(steps):
    shares = Shares(PathMeter(), Budget())
    budget = Budget(256 * 1024)
    size = MINIMUM_WINDOW + budget.take(INITIAL_WINDOW - MINIMUM_WINDOW)
    window = ReceiveWindow(size)
    largest = given_credit = size
    received = 0
    for what, count in steps:
        if what == "receive":
            taken = min(count, window.granted)
            received += taken
            window.received(taken)
        elif what == "read":
            given_credit += shares.consumed(window, min(count, window.held))
        else:
            window.resize(max(count, MINIMUM_WINDOW), budget)
            given_credit += window.credit()
        largest = max(largest, window.size)
        assert window.granted == given_credit - received >= 0
        assert window.granted + window.held <= largest
        assert window.granted + window.held <= MINIMUM_WINDOW + window.charged
        assert window.size <= MINIMUM_WINDOW + window.charged
        assert budget.used == window.charged <= budget.total
        assert window.granted or window.held
    given_credit += shares.consumed(window, window.held)
    assert window.granted * 2 >= window.size


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=40), st.floats(0, 1e9))
def test_shares_are_max_min_fair(demands, target):
    level = fair_level(target, demands)
    given_bytes = sum(min(demand, level) for demand in demands)
    assert given_bytes <= target * 1.0001 + 0.01
    if sum(demands) > target * 1.0001 + 0.01:
        assert given_bytes >= target * 0.9999 - 0.01


def test_a_round_costs_what_is_active():
    shares = Shares(PathMeter(), Budget())
    windows = [shares.open() for _ in range(1000)]
    windows[0].received(100)
    shares.consumed(windows[0], 100)
    assert shares.end_round() == []
    assert [window.size for window in windows[:2]] == [MINIMUM_WINDOW, windows[1].granted]
    assert not shares._active


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40 * MIB), st.booleans()), max_size=60))
def test_a_budget_returns_to_zero_and_nobody_takes_all(steps):
    process = Budget(64 * MIB)
    users = [Budget(parent=process) for _ in range(3)]
    links = [Budget(parent=users[number % 3]) for number in range(6)]
    for number, count, is_back in steps:
        link = links[number]
        if is_back:
            link.give_back(min(count, link.used))
        else:
            before = link.used
            taken = link.take(count)
            assert 0 <= taken <= count
            assert link.used == before + taken
            assert link.used <= process.total - process.used or taken == 0
        assert process.used == sum(user.used for user in users) <= process.total
        for user in users:
            assert user.used <= process.total // 2
    for link in links:
        link.give_back(link.used)
    assert process.used == 0
    assert not any(user.used for user in users)


def test_a_greedy_link_leaves_half_and_the_next_gets_half_of_that():
    process = Budget(64 * MIB)
    links = [Budget(parent=Budget(parent=process)) for _ in range(3)]
    assert [link.take(64 * MIB) // MIB for link in links] == [32, 16, 8]
    assert [link.limit() // MIB for link in links] == [20, 12, 8]
    for _ in range(10):  # as end_round does
        for link in links:
            link.give_back(max(link.used - link.limit(), 0))
            link.take(64 * MIB)
    assert [round(link.used / MIB) for link in links] == [16, 16, 16]


def test_idle_channels_leave_the_budget_to_the_busy_one():
    sim = Sim()
    link = line(sim, 100e6, RTT_S, Budget(parent=Budget(parent=Budget())))
    for _ in range(1000):
        link.shares.open()
    download = link.download()
    sim.run(2)
    before = download.bytes_in
    sim.run(5)
    assert download.bytes_in - before >= 0.95 * 3 * 100e6


def test_channels_that_are_opened_at_once_share_before_they_are_used():
    """Credit given at the open cannot be taken back, and a browser opens twenty at a time."""
    shares = Shares(PathMeter(), Budget())
    windows = [shares.open() for _ in range(20)]
    assert windows[0].granted == INITIAL_WINDOW
    assert windows[-1].granted == MINIMUM_WINDOW
    assert sum(window.granted for window in windows) < 4 * INITIAL_WINDOW
    windows[3].received(1)
    shares.consumed(windows[3], 1)
    for window in windows:
        shares.close(window)
    assert shares.open().granted == INITIAL_WINDOW


def test_a_key_exchange_makes_an_answer_worthless_and_frequent_ones_end_the_measuring():
    meter = PathMeter()
    now_s, data = 0.0, 0

    def answer(*, disturbed, rtt_s=0.02):
        nonlocal now_s, data
        meter.probe_sent(now_s, data, 0)
        if disturbed:
            meter.disturbed(now_s + rtt_s / 2)
        now_s, data = now_s + rtt_s, data + 200_000
        return meter.probe_answered(now_s, data)

    answer(disturbed=False)
    answer(disturbed=False)
    target, rtt_s = meter.target_in, meter.min_rtt_s
    assert not answer(disturbed=True, rtt_s=0.5)
    assert (meter.target_in, meter.min_rtt_s, meter.rtt_s) == (target, rtt_s, rtt_s)
    for _ in range(OFTEN - 1):
        assert not meter.is_lost
        answer(disturbed=True)
    assert meter.is_lost
    assert meter.send_until > 1 << 40, "no limit, as for a peer that does not answer"
    assert answer(disturbed=False), "shares are to be set anew"
    assert meter.is_lost
    now_s += CALM_S
    answer(disturbed=False)
    assert not meter.is_lost
