"""The limits of `gateway serve`, on a clock that tests move. Hazards T28, T30, T31 and T67."""

from __future__ import annotations

import os
import time

import pytest
import trio
import trio.testing

from gateway import events
from gateway.errors import AuthenticationError, ChannelOpenError, ConnectionLost
from gateway.policy.limits import UNDISTURBED_S, Drop, Limits
from gateway.serving import link as link_module
from gateway.serving.link import GRACE_JITTER_MS
from gateway.serving.server import DROPS_REPORTED_S
from gateway.ssh.authorized_keys import parse_authorized_keys
from gateway.ssh.keys import PrivateKey
from gateway.ssh.numbers import Disconnect, OpenFailure
from tests.support.serving import (
    ALICE_KEY,
    BOB_KEY,
    KeyDialogue,
    TestPeople,
    make_options,
    make_people,
    running_box,
)

STRANGER = PrivateKey.generate(os.urandom)


def limited(**limits):
    return running_box(make_options(limits=Limits(**limits)))


async def refused(box, key=STRANGER, **more):
    """Let a login fail, and its link end."""
    client = box.connect(key, **more)
    with pytest.raises((AuthenticationError, ConnectionLost)):
        await client.log_in_with_keys()
    client.link.close()
    await client.link.ended.wait()
    await trio.testing.wait_all_tasks_blocked()
    return client


async def settle():
    """Let everything happen that needs no time."""
    await trio.testing.wait_all_tasks_blocked()


# ---- before the login ----------------------------------------------------------------------------


async def test_clients_that_do_not_log_in_are_told_so_each_at_a_time_of_its_own(autojump_clock):
    """T30."""
    async with limited(login_grace_s=60) as box:
        began_s = trio.current_time()
        took_s = []

        async def wait(client):
            await client.link.ended.wait()
            took_s.append(trio.current_time() - began_s)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(wait, box.connect(address=f"192.0.2.{number}"))
        assert 60 <= min(took_s) < max(took_s) < 60 + GRACE_JITTER_MS / 1000
        await settle()
        assert "no login within 60 s" in box.of_type(events.LinkClosed)[0].reason
        assert box.of_type(events.LinkClosed)[0].penalty == "grace_exceeded"
        assert box.server.shared.startups.count == 0


async def test_who_has_logged_in_stays(autojump_clock):
    async with limited(login_grace_s=60) as box:
        client = await box.log_in()
        await trio.sleep(7200)
        assert client.link.failure is None
        assert box.server.shared.startups.count == 0


async def test_startups_are_limited_and_told_of_together(autojump_clock):
    async with limited(startups_begin=3, startups_full=3, per_source_startups=99) as box:
        waiting = [box.connect(address=f"192.0.2.{number}") for number in range(3)]
        await settle()
        for number in range(200):
            dropped = box.connect(address=f"198.51.100.{number}")
            await dropped.link.ended.wait()
        assert len(box.server.shared.links) == 3
        assert not box.of_type(events.ConnectionsDropped)
        await trio.sleep(DROPS_REPORTED_S + 1)
        (told,) = box.of_type(events.ConnectionsDropped)
        assert (told.count, told.reason) == (
            200, "too many connections that have not logged in"
        )  # fmt: skip
        waiting[0].link.close()
        await settle()
        await box.log_in(address="198.51.100.1")


async def test_one_address_cannot_take_all_startups(autojump_clock):
    async with limited(per_source_startups=2) as box:
        for _ in range(5):
            box.connect(address="2001:db8::1")
        await settle()
        assert len(box.server.shared.links) == 2
        assert await box.log_in(address="2001:db8:0:1::1"), "another /64"
        with pytest.raises(ConnectionLost):
            await box.log_in(address="2001:db8::2")


async def test_who_holds_on_makes_room_for_a_login_and_is_told_why(autojump_clock):
    """T30: with every slot taken by others, whatever they hold on with."""
    async with limited(startups_begin=3, startups_full=3) as box:
        waiting = [box.connect(address=f"192.0.2.{number}") for number in range(3)]
        await settle()
        with pytest.raises(ConnectionLost):
            await box.log_in(address="198.51.100.1")
        await trio.sleep(UNDISTURBED_S)
        await box.log_in(address="198.51.100.1")
        assert "others wait" in str(waiting[0].link.failure)
        assert [client.link.failure for client in waiting[1:]] == [None, None]
        assert box.server.shared.startups.count == 2
        await trio.sleep(DROPS_REPORTED_S + 1)
        assert {event.reason: event.count for event in box.of_type(events.ConnectionsDropped)} == {
            Drop.STARTUPS.value: 1, Drop.OUSTED.value: 1
        }  # fmt: skip


async def test_who_is_ousted_before_it_was_served_at_all_leaves_nothing(autojump_clock):
    """All come in one moment: a source with more of them than another has no time of its own."""
    async with limited(startups_begin=3, startups_full=3, per_source_startups=9) as box:
        greedy = [box.connect() for _ in range(3)]
        client = box.connect(address="198.51.100.1")
        await client.log_in_with_keys()
        await settle()
        assert [client.link.failure is None for client in greedy] == [False, True, True]
        assert box.server.shared.startups.count == 2


async def test_200_links_that_break_off_at_any_step_leave_nothing(autojump_clock):
    """T31."""
    async with limited(per_source_startups=99, penalties=False) as box:
        for steps in range(200):
            client = box.connect()
            with trio.move_on_after(0):
                for _ in range(steps % 40):
                    await trio.lowlevel.checkpoint()
            client.carrier.close()
        await settle()
        assert box.server.shared.startups.count == 0
        assert box.server.shared.startups._by_source == {}


async def test_attempts_are_limited_and_the_client_is_told(autojump_clock):
    strangers = [PrivateKey.generate(os.urandom) for _ in range(5)]
    async with limited(max_auth_tries=3) as box:
        client = box.connect(*strangers)
        with pytest.raises(ConnectionLost, match="too many attempts to log in"):
            await client.log_in_with_keys()
        code = int(Disconnect.NO_MORE_AUTH_METHODS_AVAILABLE)
        assert f"reason code {code}" in str(client.link.failure)
        attempts = box.of_type(events.LoginAttempted)
        assert [event.number for event in attempts] == [1, 2, 3]
        assert {event.result for event in attempts} == {"refused"}
        assert [event.fingerprint for event in attempts] == [
            key.public.fingerprint for key in strangers[:3]
        ]


async def test_an_address_whose_logins_fail_has_to_wait(autojump_clock):
    """Three failures of 5 s each reach the threshold of 15 s; the sum is enforced."""
    async with limited() as box:
        await refused(box)
        await refused(box)
        await box.log_in()
        await refused(box)
        with pytest.raises(ConnectionLost):
            await box.log_in()
        assert await box.log_in(address="192.0.2.8"), "another address"
        await trio.sleep(15)
        assert await box.log_in()
        assert box.of_type(events.ConnectionsDropped)[0].reason == (
            "the address has a penalty for failed logins"
        )


async def test_the_loopback_has_no_penalty(autojump_clock):
    async with limited(per_source_startups=2) as box:
        for _ in range(10):
            await refused(box, address="127.0.0.1")
        assert await box.log_in(address="127.0.0.1")


async def test_a_link_that_only_connects_costs_little(autojump_clock):
    async with limited() as box:
        for _ in range(14):
            client = box.connect()
            await settle()
            client.link.close()
            await settle()
        assert await box.log_in()


# ---- users ---------------------------------------------------------------------------------------


async def test_links_of_a_user(autojump_clock):
    async with limited(links_per_user=2) as box:
        first, _ = await box.log_in(), await box.log_in()
        third = await box.log_in()
        await third.link.ended.wait()
        assert "links_per_user" in str(third.link.failure)
        assert f"reason code {int(Disconnect.TOO_MANY_CONNECTIONS)}" in str(third.link.failure)
        assert await box.log_in(BOB_KEY, user_name="bob")
        first.link.close()
        await settle()
        fourth = await box.log_in()
        await settle()
        assert fourth.link.failure is None


async def test_channels_of_a_user_over_all_links():
    async with limited(channels_per_user=2) as box:
        first, second = await box.log_in(), await box.log_in()
        kept = [await first.link.open_channel("session", b"") for _ in range(2)]
        with pytest.raises(ChannelOpenError) as caught:
            await second.link.open_channel("session", b"")
        assert caught.value.reason_code == OpenFailure.RESOURCE_SHORTAGE
        assert "channels_per_user" in caught.value.description
        with pytest.raises(ChannelOpenError, match="channels_per_user"):
            await second.open("127.0.0.1", 1)
        kept[0].close()
        await settle()
        assert await second.link.open_channel("session", b"")
        assert box.server.shared.users.counts("alice") == (2, 2)


async def test_opens_in_a_second(autojump_clock):
    async with limited(opens_per_second_per_user=3) as box:
        client = await box.log_in()

        async def refusal():
            with pytest.raises(ChannelOpenError) as caught:
                await client.open("127.0.0.1", 99999)  # never dialled
            return caught.value

        assert {(await refusal()).reason_code for _ in range(6)} == {OpenFailure.CONNECT_FAILED}
        error = await refusal()
        assert error.reason_code == OpenFailure.RESOURCE_SHORTAGE
        assert "opens_per_second_per_user" in error.description
        await trio.sleep(0.4)
        assert (await refusal()).reason_code == OpenFailure.CONNECT_FAILED
        assert (await refusal()).reason_code == OpenFailure.RESOURCE_SHORTAGE
        assert box.server.shared.channels == 0


# ---- time ----------------------------------------------------------------------------------------


async def test_an_idle_link_ends_and_one_with_a_channel_does_not(autojump_clock):
    async with limited(idle_timeout_s=100) as box:
        idle, busy = await box.log_in(), await box.log_in()
        channel = await busy.link.open_channel("session", b"")
        began_s = trio.current_time()
        await idle.link.ended.wait()
        assert trio.current_time() - began_s == pytest.approx(100)
        assert "idle timeout" in str(idle.link.failure)
        await trio.sleep(300)
        assert busy.link.failure is None
        channel.close()
        began_s = trio.current_time()
        await trio.sleep(90)
        assert busy.link.failure is None
        await busy.link.ended.wait()
        assert trio.current_time() - began_s == pytest.approx(100)


async def test_the_maximum_lifetime_ends_busy_links_too(autojump_clock):
    async with limited(maximum_lifetime_s=1000) as box:
        client = await box.log_in()
        await client.link.open_channel("session", b"")
        began_s = trio.current_time()
        await client.link.ended.wait()
        assert trio.current_time() - began_s == pytest.approx(1000)
        assert "maximum lifetime" in str(client.link.failure)


async def test_ends_that_come_before_the_clock_is_looked_at_anyway(autojump_clock):
    """Between two looks at the clock: a login, the last channel's end, and a reload."""
    async with limited(idle_timeout_s=2) as box:
        client = await box.log_in()
        began_s = trio.current_time()
        await client.link.ended.wait()
        assert trio.current_time() - began_s == pytest.approx(2)
        client = await box.log_in()
        channel = await client.link.open_channel("session", b"")
        await trio.sleep(12.5)  # the clock was looked at half a second ago
        channel.close()
        began_s = trio.current_time()
        await client.link.ended.wait()
        assert trio.current_time() - began_s == pytest.approx(2)
        box.server.apply(make_options())
        client, began_s = await box.log_in(), trio.current_time()
        await trio.sleep(1)
        box.server.apply(make_options(limits=Limits(maximum_lifetime_s=3)))
        await client.link.ended.wait()
        assert trio.current_time() - began_s == pytest.approx(3)


async def test_a_link_ends_when_its_certificate_expires(autojump_clock, monkeypatch):
    started_s = time.time()
    people = make_people(expires_s=started_s + 3600)
    async with running_box(make_options(people=people)) as box:
        began_s = trio.current_time()

        class Clock:
            @staticmethod
            def time():
                return started_s + trio.current_time() - began_s

        monkeypatch.setattr(link_module, "time", Clock)
        client = await box.log_in()
        await client.link.open_channel("session", b"")
        await client.link.ended.wait()
        assert trio.current_time() - began_s == pytest.approx(3600)
        assert "the certificate of this login has expired" in str(client.link.failure)


# ---- several keys together (T27, T28, T87) -------------------------------------------------------


def with_required_keys(count):
    return make_options(people=make_people(required=count))


async def test_two_keys_together(autojump_clock):
    async with running_box(with_required_keys(2)) as box:
        await box.log_in(ALICE_KEY, BOB_KEY)
        results = [event.result for event in box.of_type(events.LoginAttempted)]
        assert results[0] == "partial"
        assert results[-1] == "accepted"
        (opened,) = box.of_type(events.LinkOpened)
        assert opened.fingerprint == BOB_KEY.public.fingerprint
        assert opened.also == (ALICE_KEY.public.fingerprint,)


async def test_the_same_key_twice_is_one_key(autojump_clock):
    async with running_box(with_required_keys(2)) as box:
        for keys in ((ALICE_KEY,), (ALICE_KEY, ALICE_KEY), (STRANGER, ALICE_KEY, STRANGER)):
            client = box.connect(*keys)
            with pytest.raises(AuthenticationError):
                await client.log_in(KeyDialogue(*keys), 30.0)
            client.link.close()
        assert not box.of_type(events.LinkOpened)


async def test_the_restrictions_of_every_key_hold():
    """T87: alice's line forbids forwarding; it does so whichever key signs first."""
    free, restricted = ALICE_KEY.public.openssh_text(), BOB_KEY.public.openssh_text()
    authorized = parse_authorized_keys(f"{free}\nrestrict {restricted}\n", "keys")
    people = TestPeople(authorized, required=2)
    async with running_box(make_options(people=people)) as box:
        for keys in ((ALICE_KEY, BOB_KEY), (BOB_KEY, ALICE_KEY)):
            client = await box.log_in(*keys)
            with pytest.raises(ChannelOpenError, match="forbid forwarding"):
                await client.open("127.0.0.1", 1)
