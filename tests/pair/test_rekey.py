"""Renewing keys under load: by bytes, packets and seconds, from either side or both (T13, T14)."""

from __future__ import annotations

import os

import pytest

from gateway import events
from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh import messages, packets
from gateway.ssh.numbers import Disconnect, Msg
from gateway.ssh.packets import DATA_LIMIT
from gateway.ssh.transport import (
    BYTES_PER_REKEY_TOKEN,
    KEX_TIMEOUT_S,
    REKEY_TOKENS,
    Phase,
    RekeyLimit,
    Role,
)
from tests.support.pair import (
    assert_only_kex_between_kexinit_and_newkeys,
    feed,
    inject,
    local_kexinit,
    log_in,
    logged_in_pair,
    make_pair,
    pair_in_phase,
    spy_on,
    take,
)

NEVER = RekeyLimit()


def collect(channel):
    got = bytearray()
    channel.sink = lambda data: got.extend(data) or len(data)
    return got


def spied_pair(client_limit=NEVER, server_limit=NEVER):
    """A logged-in pair and what each side has received, by message number, since then."""
    pair = make_pair(rekey_limit=client_limit, server_rekey_limit=server_limit)
    client_got, server_got = spy_on(pair.client), spy_on(pair.server)
    log_in(pair)
    client_got.clear()
    server_got.clear()
    return pair, client_got, server_got


def carry_both_ways(pair, size):
    """Send ``size`` random bytes each way at once over one channel; compare them."""
    local, remote = pair.open_channel()
    upload, download = os.urandom(size), os.urandom(size)
    at_server, at_client = collect(remote), collect(local)
    sent = [0, 0]
    for _ in range(200_000):
        sent[0] += local.send(memoryview(upload)[sent[0] :])
        sent[1] += remote.send(memoryview(download)[sent[1] :])
        pair._carry(pair.client, pair.server)
        pair._carry(pair.server, pair.client)
        if sent == [size, size]:
            break
    pair.pump()
    assert at_server == upload
    assert at_client == download


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (RekeyLimit(bytes=64 * 1024), NEVER),
        (NEVER, RekeyLimit(bytes=64 * 1024)),
        (RekeyLimit(bytes=64 * 1024), RekeyLimit(bytes=64 * 1024)),
        (RekeyLimit(bytes=1), NEVER),
        (RekeyLimit(packets=3), RekeyLimit(packets=5)),
    ],
)
def test_two_way_load_is_exact_while_keys_change(client, server):
    pair, client_got, server_got = spied_pair(client, server)
    carry_both_ways(pair, 2 * 1024 * 1024)
    assert client_got.count(Msg.NEWKEYS) == server_got.count(Msg.NEWKEYS) >= 3
    for numbers in (client_got, server_got):
        assert_only_kex_between_kexinit_and_newkeys(numbers)


def test_both_start_at_the_same_moment_and_one_exchange_follows():
    pair, client_got, server_got = spied_pair()
    pair.client.transport.start_rekey(0.0)
    pair.server.transport.start_rekey(0.0)
    pair.client.transport.start_rekey(0.0)  # asked again: nothing happens
    pair.pump()
    assert client_got == [Msg.KEXINIT, Msg.KEX_ECDH_REPLY, Msg.NEWKEYS]
    assert server_got == [Msg.KEXINIT, Msg.KEX_ECDH_INIT, Msg.NEWKEYS]
    for found in (pair.client_events, pair.server_events):
        assert [event.count for event in found] == [2]


@pytest.mark.parametrize("role", Role)
def test_by_seconds(role):
    limit = RekeyLimit(seconds=3600)
    pair, client_got, _ = spied_pair(*((limit, NEVER) if role is Role.CLIENT else (NEVER, limit)))
    side = pair.client if role is Role.CLIENT else pair.server
    for now_s, exchanges in ((3599, 0), (3601, 1), (7000, 1), (7202, 2)):
        pair.now_s = now_s
        side.tick(now_s)
        pair.pump()
        assert client_got.count(Msg.NEWKEYS) == exchanges


def test_by_the_ciphers_own_limit():
    pair, client_got, _ = spied_pair()
    local, _ = pair.open_channel()
    pair.client.outbound.bytes_since_newkeys = pair.client.outbound.cipher.rekey_after_bytes
    local.send(b"x")
    pair.pump()
    pair.server.outbound.append(messages.Ignore(b"").encode())  # limits are looked at per batch
    pair.pump()
    assert client_got.count(Msg.NEWKEYS) == 1


def test_long_before_the_sequence_number_wraps():
    """T21: 2^31 packets."""
    pair, client_got, _ = spied_pair()
    pair.client.inbound.packets_since_newkeys = 2**31 - 1
    pair.server.outbound.append(messages.Ignore(b"").encode())
    pair.pump()
    assert client_got.count(Msg.NEWKEYS) == 1


def test_keys_really_change():
    pair = logged_in_pair()
    before = [side.outbound.cipher for side in (pair.client, pair.server)]
    session = pair.client.transport.session_id
    pair.client.transport.start_rekey(0.0)
    pair.pump()
    after = [side.outbound.cipher for side in (pair.client, pair.server)]
    assert all(one is not two for one, two in zip(before, after, strict=True))
    assert before[0]._fixed != after[0]._fixed
    assert pair.client.transport.session_id == session == pair.server.transport.session_id


# ---- while an exchange runs ----------------------------------------------------------------------


def test_from_our_kexinit_on_nothing_else_leaves():
    pair, _, server_got = spied_pair()
    local, _remote = pair.open_channel()
    second = pair.client.connection.open_channel("test", b"")
    pair.pump()
    server_got.clear()
    client = pair.client
    client.transport.start_rekey(0.0)
    assert client.transport.kex_is_running
    assert not client.outbound.accepts_data
    assert not local.room()
    assert local.send(b"data") == 0
    local.send_request("x")
    client.connection.send_global_request("keepalive@openssh.com")
    client.connection.open_channel("test", b"")
    client.connection.abandon(second)
    local.send_eof()
    client.connection.close(local)
    feed(pair.server, take(client))
    assert server_got == [Msg.KEXINIT]
    pair.pump()
    assert server_got == [
        Msg.KEXINIT,
        Msg.KEX_ECDH_INIT,
        Msg.NEWKEYS,
        Msg.CHANNEL_REQUEST,
        Msg.GLOBAL_REQUEST,
        Msg.CHANNEL_OPEN,
        Msg.CHANNEL_EOF,
        Msg.CHANNEL_CLOSE,
    ]


def test_data_is_received_until_the_peers_own_kexinit():
    pair = logged_in_pair()
    local, remote = pair.open_channel()
    at_client = collect(local)
    pair.client.transport.start_rekey(0.0)
    for _ in range(10):
        remote.send(b"0123456789")
        pair._carry(pair.server, pair.client)
    assert at_client == b"0123456789" * 10
    assert pair.client.transport.phase is Phase.CONNECTION
    pair.pump()
    remote.send(b"and after")
    pair.pump()
    assert at_client == b"0123456789" * 10 + b"and after"


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("phase", [Phase.REKEY, Phase.REKEY_NEWKEYS])
@pytest.mark.parametrize("number", [Msg.CHANNEL_DATA, Msg.GLOBAL_REQUEST, Msg.KEXINIT, Msg.PING])
def test_what_the_peer_may_not_send_after_its_kexinit(role, phase, number):
    """T13b, and never a second KEXINIT."""
    _, target = pair_in_phase(role, phase)
    with pytest.raises(RemoteProtocolError, match=f"message {number} is not allowed"):
        inject(target, bytes((number,)) + bytes(16))


@pytest.mark.parametrize("role", Role)
def test_a_peer_that_never_answers(role):
    """T13a: writers wait, and at last the link ends."""
    pair = logged_in_pair()
    pair.open_channel()
    side = pair.client if role is Role.CLIENT else pair.server
    side.transport.start_rekey(100.0)
    side.tick(100.0 + KEX_TIMEOUT_S)
    with pytest.raises(RemoteProtocolError, match="left a key exchange unanswered") as caught:
        side.tick(100.5 + KEX_TIMEOUT_S)
    assert caught.value.reason_code == Disconnect.KEY_EXCHANGE_FAILED
    assert side.transport.phase is Phase.CLOSED


def test_replies_that_wait_for_new_keys_leave_in_order():
    pair, client_got, _ = spied_pair()
    pair.open_channel()
    client_got.clear()
    server = pair.server
    server.transport.start_rekey(0.0)
    data = []
    pair.client.connection._handlers[Msg.PONG] = lambda payload: data.append(payload[5:])
    for number in range(500):
        inject_ping = messages.Ping(number.to_bytes(2, "big")).encode()
        pair.client.outbound._seal(inject_ping)
    feed(server, take(pair.client))
    assert len(server.outbound._lane) == 500
    assert server.may_read, "the peer's KEXINIT must still be read"
    pair.pump()
    assert data == [number.to_bytes(2, "big") for number in range(500)]
    assert server.outbound._lane_bytes == 0
    assert server.outbound.accepts_data
    assert_only_kex_between_kexinit_and_newkeys(client_got)


def test_the_lane_has_an_end(monkeypatch):
    """A peer that asks and asks while it leaves our KEXINIT unanswered."""
    monkeypatch.setattr(packets, "LANE_HARD_LIMIT", 100_000)
    pair = logged_in_pair()
    pair.server.transport.start_rekey(0.0)
    with pytest.raises(RemoteProtocolError, match="more and more replies"):
        inject(pair.server, *[messages.Ping(bytes(1000))] * 1000)
    assert pair.server.outbound._lane_bytes < 110_000
    assert pair.server.transport.phase is Phase.CLOSED


def test_a_full_buffer_has_place_for_a_key_exchange():
    pair, client_got, _ = spied_pair()
    local, remote = pair.open_channel()
    got = collect(local)
    sent = remote.send(bytes(2 * DATA_LIMIT))
    assert DATA_LIMIT <= sent < 2 * DATA_LIMIT
    assert not pair.server.outbound.accepts_data
    pair.server.transport.start_rekey(0.0)
    pair.pump()
    assert len(got) == sent
    assert client_got[-1] == Msg.NEWKEYS
    assert pair.server.outbound.accepts_data


# ---- abuse (T14) ---------------------------------------------------------------------------------


def test_a_peer_that_rekeys_for_nothing_runs_out_of_tokens():
    pair = logged_in_pair()
    done = 0

    def rekey():
        nonlocal done
        while done < 1000:
            pair.client.transport.start_rekey(0.0)
            pair.pump()
            done += 1

    with pytest.raises(RemoteProtocolError, match="again and again"):
        rekey()
    assert REKEY_TOKENS <= done <= 1.5 * REKEY_TOKENS, "what rekeying moves counts for little"


def test_waiting_or_moving_data_earns_tokens():
    pair = logged_in_pair()
    local, remote = pair.open_channel()
    collect(remote)
    for turn in range(3 * int(REKEY_TOKENS)):
        if turn % 2:
            pair.now_s += 2
        else:
            local.send(bytes(2 * BYTES_PER_REKEY_TOKEN))
        pair.client.transport.start_rekey(pair.now_s)
        pair.pump()


def test_honest_rekeys_every_256_kib_never_run_out():
    """The time stands still, so that nothing but the data earns tokens."""
    pair = make_pair(rekey_limit=RekeyLimit(bytes=256 * 1024), server_rekey_limit=NEVER)
    server_got = spy_on(pair.server)
    log_in(pair)
    local, remote = pair.open_channel()
    total = 0

    def count(data):
        nonlocal total
        total += len(data)
        return len(data)

    remote.sink = count
    chunk = bytes(256 * 1024)
    while total < 100 * 1000 * 1000:
        local.send(chunk)
        pair.pump()
    assert server_got.count(Msg.KEXINIT) > 2 * REKEY_TOKENS
    tokens = pair.server.transport._rekey_tokens
    assert tokens > REKEY_TOKENS - 2, "not a slow decline either"


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("phase", [Phase.SERVICE, Phase.AUTH])
def test_nobody_rekeys_before_the_login(role, phase):
    pair, target = pair_in_phase(role, phase)
    with pytest.raises(RemoteProtocolError, match="message 20 is not allowed"):
        inject(target, local_kexinit(make_pair().client))
    with pytest.raises(LocalProtocolError):
        pair.client.transport.start_rekey(0.0)


def test_limits_are_not_looked_at_before_the_login():
    pair = make_pair(rekey_limit=RekeyLimit(bytes=1, seconds=0.0, packets=1))
    pair.client.tick(1000.0)
    while Phase.CONNECTION not in (pair.client.transport.phase, pair.server.transport.phase):
        pair._carry(pair.client, pair.server)
        pair._carry(pair.server, pair.client)
        pair._collect()
        for side in (pair.client, pair.server):
            if side.transport.phase is not Phase.CONNECTION:
                assert side.transport._kex_count <= 1
    pair.pump()
    kinds = [type(event) for event in pair.client_events]
    assert kinds.index(events.KeysExchanged) < kinds.index(events.Authenticated)
