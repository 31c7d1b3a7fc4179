"""Every wrong form of every message, into a live link, wherever it may come (T29, T49, T51).

The phase table says where that is, so a new message is here by itself. To the samples come the
messages of a real login, whose fields lead further.
"""

from __future__ import annotations

import pytest

from gateway import events
from gateway.errors import RemoteProtocolError
from gateway.ssh import messages, wire
from gateway.ssh.algorithms import Preferences
from gateway.ssh.packets import MAXIMUM_DATA
from gateway.ssh.transport import ALLOWED, Phase, Role
from tests.support.pair import (
    REKEYING,
    SpyInbound,
    edit_kexinit,
    inject,
    log_in,
    make_pair,
    make_unstrict,
    take,
)
from tests.support.words import Snapshot
from tests.support.wrong_bytes import MESSAGES, sample, wrong_forms, wrong_numbers

PLACES = [
    (phase, role)
    for phase in Phase
    for role in Role
    if ALLOWED[phase][role]
]  # fmt: skip
QUICK = Preferences(kex=("curve25519-sha256",))


def live(role, phase):
    """Return one side of a pair in a phase; on an open link it has a channel, number 0."""
    pair = make_pair(client_offers=QUICK)
    if phase in (Phase.KEX, Phase.NEWKEYS):
        make_unstrict(pair.client)
        make_unstrict(pair.server)
    if phase in REKEYING:
        log_in(pair)
        (pair.server if role is Role.CLIENT else pair.client).transport.start_rekey(0.0)
    target = pair.drive(role, phase)
    if phase is Phase.CONNECTION:
        pair.pump()
        pair.open_channel()
        target.connection.channels[0].send_request("exec")
    while target.next_event():
        pass
    take(target)
    return pair, target


class Recorder(SpyInbound):
    """Keeps the payloads."""

    __slots__ = ("payloads",)

    def __init__(self):
        super().__init__()
        self.payloads = []

    def next_payload(self):
        """See `Inbound`."""
        payload = super().next_payload()
        if payload is not None:
            self.payloads.append(bytes(payload))
        return payload


def login_of(role):
    """What one side gets in a login and in one more key exchange, as payloads."""
    pair = make_pair(client_offers=QUICK)
    target = pair.client if role is Role.CLIENT else pair.server
    spy = target.inbound = target.transport.inbound = Recorder()
    log_in(pair)
    pair.client.transport.start_rekey(0.0)
    pair.pump()
    return spy.payloads


LOGINS = {role: login_of(role) for role in Role}


def bases(role, phase):
    """The messages that may come there: (class, payload)."""
    allowed = ALLOWED[phase][role]
    for record in MESSAGES:
        if record.number not in allowed:
            continue
        at_channel = {"recipient_channel": 0} if hasattr(record, "recipient_channel") else {}
        yield record, sample(record, **at_channel).encode()
    for number in sorted(allowed):
        records = [record for record in MESSAGES if record.number == number]
        for payload in dict.fromkeys(p for p in LOGINS[role] if p[0] == number):
            yield records[0], payload


def forms_of(record, payload):
    """Wrong forms of a message; of a long one the lengths that are near its fields."""
    if len(payload) < 200:
        yield from wrong_forms(record, payload)
        return
    yield from (payload[:at] for at in range(1, len(payload), 7))
    yield from (changed for _, _, changed in wrong_numbers(record, payload))


class Work:
    """Counts what is taken from messages."""

    def __init__(self, monkeypatch):
        self.taken = 0
        take_field = wire.Reader.take

        def counting(reader, length):
            self.taken += 1
            return take_field(reader, length)

        monkeypatch.setattr(wire.Reader, "take", counting)


@pytest.mark.parametrize(("phase", "role"), PLACES, ids=lambda value: value.value.replace(" ", "-"))
def test_every_wrong_form_of_every_message(phase, role, monkeypatch):
    work = Work(monkeypatch)
    _pair, target = live(role, phase)
    before = Snapshot(target)
    refused = 0
    for record, payload in bases(role, phase):
        for form in forms_of(record, payload):
            work.taken = 0
            try:
                inject(target, form)
            except RemoteProtocolError:
                refused += 1
                assert target.transport.phase is Phase.CLOSED
                assert take(target), "DISCONNECT"
            assert work.taken <= len(form) + 300, form
            seen = set(map(type, iter(target.next_event, None)))
            assert not seen & {events.Authenticated, events.HostKeyReceived} or form == payload
            if target.transport.phase is not phase:
                before.restore()
    assert refused > 3


# ---- answers that have to fit --------------------------------------------------------------------


@pytest.mark.parametrize("size", [MAXIMUM_DATA, MAXIMUM_DATA + 1, 262_134])
@pytest.mark.parametrize("rekeying", [False, True])
def test_the_largest_ping(size, rekeying):
    """Its echo has other padding where the ciphers of the directions differ; it has to fit too."""
    pair = make_pair()
    edit_kexinit(
        pair.client,
        encryption_algorithms_client_to_server=("chacha20-poly1305@openssh.com",),
        encryption_algorithms_server_to_client=("aes128-ctr",),
        mac_algorithms_server_to_client=("hmac-sha2-256",),
    )
    log_in(pair)
    if rekeying:
        pair.server.transport.start_rekey(0.0)
    pair.client.outbound.append(messages.Ping(b"p" * size).encode())
    if size > MAXIMUM_DATA:
        with pytest.raises(RemoteProtocolError, match=f"a ping with {size} bytes"):
            pair.pump()
        return
    pair.pump()
    (pong,) = (event for event in pair.client_events if isinstance(event, events.PongReceived))
    assert pong.data == b"p" * size
