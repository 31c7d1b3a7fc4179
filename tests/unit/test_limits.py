"""Startups, penalties and users: counted right, and bounded. Hazards T30, T31, T67."""

from __future__ import annotations

import random

import pytest

from gateway.policy import limits as module
from gateway.policy.limits import (
    MAXIMUM_IDLE_USERS,
    MAXIMUM_SOURCES,
    SCAN_TARGETS,
    UNDISTURBED_S,
    Drop,
    Limits,
    Offence,
    Penalties,
    Startup,
    Startups,
    UserCounters,
    source_of,
)


def never(_count):
    """Dice for which nothing is dropped that need not be."""
    return 99


def always(_count):
    return 0


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("", None),
        ("a socket", None),
    ],
)
def test_what_counts_as_one_source(address, source):
    assert source_of(address) == source


# ---- startups ------------------------------------------------------------------------------------


def begin(startups, count, now_s=0.0):
    """Let so many begin, each from a source of its own, whatever the dice say."""
    return [startups._add(f"source {number}", now_s) for number in range(count)]


def test_startups_are_dropped_early_and_at_random_as_sshd_does():
    """sshd_config(5): 30 % at 10 of 10:30:100, growing linearly to all at 100."""

    def first_kept(count):
        """Return the lowest number of the dice with which nobody has to go for one more."""
        for number in range(101):
            startups = Startups(Limits(), lambda _below, number=number: number)
            begin(startups, count)
            if not ousted_by(startups, None, 60.0):
                return number
        raise AssertionError

    assert first_kept(9) == 0
    assert first_kept(10) == 30
    assert first_kept(55) == 65
    assert first_kept(99) == 99
    full = Startups(Limits(), lambda _below: 100)
    begin(full, 100)
    assert len(ousted_by(full, None, 60.0)) == 1


def test_one_source_has_a_part_of_the_startups_only():
    startups = Startups(Limits(per_source_startups=2), never)
    first, _, _ = (startups.begin(source, 0.0) for source in "aab")
    assert startups.begin("a", 0.1) is Drop.SOURCE
    assert startups.count == 3, "who was dropped is not counted"
    startups.end(first)
    startups.end(first)
    assert startups.count == 2, "an end counts once"
    assert isinstance(startups.begin("a", 0.1), Startup)


def ousted_by(startups, source, now_s):
    """Let one begin; return who had to go."""
    gone = []
    for startup in startups._waiting:
        startup.oust = lambda startup=startup: gone.append(startup)
    assert isinstance(startups.begin(source, now_s), Startup)
    return gone


def test_who_came_first_of_the_greediest_source_makes_room():
    startups = Startups(Limits(), always)
    old = startups._add("old", 0.0)
    greedy = [startups._add("greedy", now_s) for now_s in (1.0, 2.0, 3.0)]
    begin(startups, 6, 4.0)
    assert ousted_by(startups, "new", 10.0) == [greedy[0]]
    assert ousted_by(startups, None, 10.0) == [greedy[1]]
    assert ousted_by(startups, None, 10.0) == [old], "all have one: the oldest"
    assert startups.count == 10


def test_a_source_with_its_part_makes_room_itself():
    startups = Startups(Limits(per_source_startups=2), never)
    other, first, _ = (startups.begin(source, 0.0) for source in "baa")
    assert ousted_by(startups, "a", UNDISTURBED_S) == [first]
    assert other in startups._waiting
    assert startups._by_source == {"a": 2, "b": 1}


def test_nobody_is_ousted_before_a_login_had_its_time():
    """Or in a rush of logins each would end the one before it, and none would be done."""
    startups = Startups(Limits(), always)
    begin(startups, 10)
    for number in range(90):
        assert ousted_by(startups, f"new {number}", UNDISTURBED_S - 0.01) == []
    assert startups.begin("new", UNDISTURBED_S - 0.01) is Drop.STARTUPS
    assert len(ousted_by(startups, "new", UNDISTURBED_S)) == 1


def test_but_a_source_with_more_of_them_is_at_any_time():
    startups = Startups(Limits(), always)
    begin(startups, 8)
    greedy = [startups._add("greedy", 0.0) for _ in range(2)]
    assert ousted_by(startups, "new", 0.0) == [greedy[0]]
    assert ousted_by(startups, "new", 0.0) == [], "it has as many now"


def test_who_holds_on_never_keeps_others_out():
    """400 from as many sources hold on with the default limits, and come again at once."""
    startups = Startups(Limits(), random.Random(1).randrange)
    for second in range(4):
        for number in range(400):
            startups.begin(f"source {number}", 10.0 * second)
    assert startups.count > 90
    for number in range(200):
        came = startups.begin("user", 1000.0 + number)
        assert isinstance(came, Startup)
        startups.end(came)


def test_a_flood_of_sources_leaves_nothing_behind():
    startups = Startups(Limits(), random.Random(1).randrange)
    for number in range(20_000):
        startups.begin(f"source {number}", number / 1000)
        assert len(startups._by_source) <= startups.count <= 100
    for startup in list(startups._waiting):
        startups.end(startup)
    assert (startups.count, startups._by_source) == (0, {})


# ---- penalties -----------------------------------------------------------------------------------


def test_penalties_add_up_and_little_is_forgiven():
    penalties = Penalties(Limits())
    penalties.penalise("a", Offence.AUTHFAIL, 0)
    penalties.penalise("a", Offence.AUTHFAIL, 0)
    assert not penalties.refuses("a", 0.1), "10 s is below the minimum of 15 s"
    penalties.penalise("a", Offence.AUTHFAIL, 0)
    assert penalties.refuses("a", 0.1)
    assert not penalties.refuses("b", 0.1)
    assert penalties.refuses("a", 14.9)
    assert not penalties.refuses("a", 15.0)
    assert len(penalties) == 0


def test_a_penalty_never_lasts_longer_than_the_maximum():
    penalties = Penalties(Limits())
    for _ in range(1000):
        penalties.penalise("a", Offence.CRASH, 100)
    assert penalties.refuses("a", 699)
    assert not penalties.refuses("a", 700)
    assert len(penalties._queue) == 0


def test_offences_cost_what_sshd_makes_them_cost():
    seconds = {offence.name: offence.value for offence in Offence}
    assert seconds == {"CRASH": 90, "AUTHFAIL": 5, "NOAUTH": 1, "GRACE_EXCEEDED": 10}


def test_penalties_can_be_switched_off_also_while_some_run():
    penalties = Penalties(Limits())
    penalties.penalise("a", Offence.CRASH, 0)
    assert penalties.refuses("a", 1)
    penalties.limits = Limits(penalties=False)
    assert not penalties.refuses("a", 1)
    penalties.penalise("b", Offence.CRASH, 0)
    assert len(penalties) == 1


def test_who_is_not_told_apart_has_no_penalty():
    penalties = Penalties(Limits())
    penalties.penalise(None, Offence.CRASH, 0)
    assert not penalties.refuses(None, 0)
    assert len(penalties) == 0


def test_a_flood_of_sources_pushes_out_those_that_are_free_first(monkeypatch):
    assert MAXIMUM_SOURCES == 65_536
    monkeypatch.setattr(module, "MAXIMUM_SOURCES", 1000)
    penalties = Penalties(Limits())
    penalties.penalise("bad", Offence.CRASH, 0)
    for number in range(20_000):
        penalties.penalise(f"source {number}", Offence.GRACE_EXCEEDED, 0.0001 * number)
        assert len(penalties) <= 1000
        assert len(penalties._queue) <= 2001
        assert len(penalties._active) <= 1000
    assert penalties.refuses("bad", 2.5), "the worst one stayed"
    assert "source 19999" in penalties._until_s
    assert not penalties.refuses("bad", 90)
    assert len(penalties) == 0


def test_one_source_again_and_again_does_not_grow_the_queue(monkeypatch):
    monkeypatch.setattr(module, "MAXIMUM_SOURCES", 1000)
    penalties = Penalties(Limits())
    penalties.penalise("first", Offence.NOAUTH, 0)
    for number in range(20_000):
        penalties.penalise("b", Offence.NOAUTH, 0.00001 * number)
        assert len(penalties._queue) <= 2001
    assert len(penalties) == 2


# ---- users ---------------------------------------------------------------------------------------


def test_links_and_channels_of_a_user_are_limited():
    users = UserCounters(Limits(links_per_user=2, channels_per_user=3))
    assert [users.open_link("alice", 0) for _ in range(2)] == ["", ""]
    assert "links_per_user" in users.open_link("alice", 0)
    assert users.open_link("bob", 0) == ""
    assert [users.open_channel("alice", 0) for _ in range(3)] == [""] * 3
    assert "channels_per_user" in users.open_channel("alice", 0)
    assert users.open_channel("bob", 0) == ""
    assert users.counts("alice") == (2, 3)
    users.close_channel("alice")
    assert users.open_channel("alice", 0) == ""
    users.close_link("alice")
    assert users.open_link("alice", 0) == ""
    assert users.counts("carol") == (0, 0)


def test_opens_are_limited_by_a_bucket_of_twice_the_rate():
    users = UserCounters(Limits(opens_per_second_per_user=10))
    users.open_link("alice", 0)

    def opened_at(now_s):
        count = 0
        while not users.open_channel("alice", now_s):
            users.close_channel("alice")
            count += 1
        return count

    assert opened_at(0) == 20
    assert "opens_per_second_per_user" in users.open_channel("alice", 0.05)
    assert opened_at(1.001) == 10
    assert opened_at(100) == 20
    users.close_link("alice")
    users.open_link("alice", 100)
    assert opened_at(100) == 0, "a new link brings no new bucket"


def test_many_targets_that_come_to_nothing_are_a_scan_told_once_a_minute():
    users = UserCounters(Limits())
    users.open_link("alice", 0.0)
    users.open_link("bob", 0.0)

    def told(name, number, now_s):
        return users.miss(name, f"10.0.0.{number} port 22", now_s)

    assert not any(told("alice", 1, 0.0) for _ in range(1000)), "one target again and again"
    for number in range(2, SCAN_TARGETS):
        assert not told("alice", number, 1.0)
        assert not told("bob", number, 1.0)
    assert told("alice", SCAN_TARGETS, 59.0)
    assert not any(told("alice", number, 59.0) for number in range(200, 2000))
    assert len(users._users["alice"].missed) == SCAN_TARGETS
    assert not told("bob", 200, 60.0), "those of the last minute do not count"
    assert [told("alice", number, 60.0) for number in range(SCAN_TARGETS)].index(True) == 49


def test_a_flood_of_users_is_forgotten_but_for_those_with_links():
    users = UserCounters(Limits())
    users.open_link("alice", 0)
    users.open_channel("alice", 0)
    for number in range(MAXIMUM_IDLE_USERS * 2):
        users.open_link(f"user {number}", 0)
        users.close_link(f"user {number}")
        assert len(users) <= MAXIMUM_IDLE_USERS + 1
    assert users.counts("alice") == (1, 1)
