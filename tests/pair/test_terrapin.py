"""Terrapin (CVE-2023-48795), the attack itself, by a man in the middle without keys. Hazard T1.

He puts one IGNORE in front of NEWKEYS, which is still in clear, and so moves the receiver's count
of packets on by one; then he deletes the first packet that is encrypted, EXT_INFO, and the counts
agree again. What the cipher makes its nonce or its MAC of tells whether that is noticed.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from gateway import events
from gateway.errors import RemoteProtocolError
from gateway.ssh import messages
from gateway.ssh.algorithms import STRICT_C, STRICT_S, Preferences
from gateway.ssh.numbers import Msg
from gateway.ssh.transport import Phase, Role
from tests.support.pair import Pair, feed, frame, log_in, make_pair, make_unstrict, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.ssh.protocol import Protocol

CHACHA = Preferences(ciphers=("chacha20-poly1305@openssh.com",))
CTR_ETM = Preferences(ciphers=("aes256-ctr",), macs=("hmac-sha2-256-etm@openssh.com",))
CTR_MAC = Preferences(ciphers=("aes256-ctr",), macs=("hmac-sha2-256",))
GCM = Preferences(ciphers=("aes256-gcm@openssh.com",))
OFFERS = [CHACHA, CTR_ETM, CTR_MAC, GCM]
NAMES = ["chacha20-poly1305", "aes-ctr with etm", "aes-ctr with mac", "aes-gcm"]
BOTH = frozenset(Role)
TOWARD = [frozenset((Role.CLIENT,)), frozenset((Role.SERVER,)), BOTH]
IGNORE = messages.Ignore(b"").encode()
offers = pytest.mark.parametrize("offered", OFFERS, ids=NAMES)
toward = pytest.mark.parametrize("victims", TOWARD, ids=["client", "server", "both"])


@dataclasses.dataclass
class Direction:
    """What the man in the middle knows of one direction: what is in clear, and packets' sizes."""

    target: Protocol
    is_attacked: bool
    rewrite: Callable[[messages.KexInit], messages.KexInit] | None = None
    """What is done to a KEXINIT, if anything."""
    sizes: list[int] = dataclasses.field(default_factory=list)
    is_encrypted: bool = False
    deleted: int = 0
    inserted: int = 0
    failure: RemoteProtocolError | None = None

    def watch(self, source):
        """Know where packets end. On the wire their timing and size tell it."""
        seal = type(source.outbound)._seal

        class Sizes(type(source.outbound)):
            __slots__ = ()

            def _seal(_outbound, payload):
                before = _outbound._end
                seal(_outbound, payload)
                self.sizes.append(_outbound._end - before)

        source.outbound.__class__ = Sizes
        return self

    def pass_on(self, data):
        """Deliver what may go through, as it is or not."""
        if data.startswith(b"SSH-"):
            line, _, data = data.partition(b"\n")
            self.deliver(line + b"\n")
            self.sizes.insert(0, len(data) - sum(self.sizes))  # KEXINIT was sealed before we came
        while data:
            size = self.sizes.pop(0)
            self.packet(data[:size])
            data = data[size:]

    def packet(self, packet):
        if self.is_encrypted:
            if self.is_attacked and not self.deleted:
                self.deleted += 1
                return
        elif packet[5] == Msg.NEWKEYS:
            self.is_encrypted = True
            if self.is_attacked:
                self.inserted += 1
                self.deliver(frame(IGNORE))
        elif packet[5] == Msg.KEXINIT and self.rewrite is not None:
            kexinit = messages.KexInit.decode_untrusted(packet[5 : -packet[4]])
            packet = frame(self.rewrite(kexinit).encode())
        self.deliver(packet)

    def deliver(self, data):
        if self.target.transport.phase is Phase.CLOSED:
            return
        try:
            feed(self.target, data)
        except RemoteProtocolError as error:
            self.failure = error


def attack(pair: Pair, victims, rewrite=None):
    """Carry bytes until nothing moves, through the man in the middle; return the two directions."""
    to_client = Direction(pair.client, Role.CLIENT in victims, rewrite).watch(pair.server)
    to_server = Direction(pair.server, Role.SERVER in victims, rewrite).watch(pair.client)
    moved = True
    while moved:
        moved = False
        for source, direction in ((pair.client, to_server), (pair.server, to_client)):
            if data := take(source):
                moved = True
                direction.pass_on(data)
            pair._collect()
    return {Role.CLIENT: to_client, Role.SERVER: to_server}


def pair_of(offered, *, unstrict=()):
    pair = make_pair(client_offers=offered, server_offers=offered)
    for side in unstrict:
        make_unstrict(getattr(pair, side))
    return pair


def side_of(pair, role):
    return pair.client if role is Role.CLIENT else pair.server


@offers
@pytest.mark.parametrize("unstrict", [(), ("client",), ("server",), ("client", "server")])
def test_a_man_in_the_middle_who_only_listens_is_no_matter(offered, unstrict):
    pair = pair_of(offered, unstrict=unstrict)
    directions = attack(pair, frozenset())
    assert {d.failure for d in directions.values()} == {None}
    assert pair.client.transport.phase is Phase.CONNECTION is pair.server.transport.phase
    assert pair.client.transport.strict is (not unstrict)
    assert pair.client.transport.peer_extensions
    assert pair.server.transport.peer_extensions


@offers
@toward
def test_with_strict_key_exchange_whoever_is_attacked_ends_it_at_the_ignore(offered, victims):
    pair = pair_of(offered)
    directions = attack(pair, victims)
    found = {role for role, direction in directions.items() if direction.failure}
    assert found == victims or (found and victims == BOTH), "the first ends it for both"
    for role in found:
        assert directions[role].inserted == 1
        assert "message 2 is not allowed now (phase: newkeys strict)" in str(
            directions[role].failure
        )
    for side in (pair.client, pair.server):
        assert side.transport.phase is Phase.CLOSED
    told = pair.client_events + pair.server_events
    assert not any(isinstance(event, events.Authenticated) for event in told)


@toward
def test_without_strict_the_attack_is_real_with_chacha20(victims):
    """Neither side can notice: logged in, and who was attacked knows no extension of its peer."""
    pair = pair_of(CHACHA, unstrict=("client", "server"))
    directions = attack(pair, victims)
    for role in Role:
        attacked = role in victims
        assert directions[role].failure is None
        assert directions[role].deleted == directions[role].inserted == attacked
        assert bool(side_of(pair, role).transport.peer_extensions) is not attacked
        assert side_of(pair, role).transport.phase is Phase.CONNECTION
    pair.client_events.clear()
    pair.server_events.clear()
    local, remote = pair.open_channel()
    got = bytearray()
    remote.sink = lambda data: got.extend(data) or len(data)
    local.send(b"and it goes on")
    pair.pump()
    assert got == b"and it goes on"


@pytest.mark.parametrize("old", ["client", "server"])
def test_one_side_without_strict_is_as_none(old):
    """Ours offers it, but a peer that does not know it protects nobody: the attack is real."""
    pair = pair_of(CHACHA, unstrict=(old,))
    directions = attack(pair, BOTH)
    assert [d.deleted for d in directions.values()] == [1, 1]
    assert {d.failure for d in directions.values()} == {None}
    assert pair.client.transport.peer_extensions == {} == pair.server.transport.peer_extensions
    assert pair.client.transport.phase is Phase.CONNECTION is pair.server.transport.phase


def test_without_strict_ctr_with_etm_sees_nothing_wrong_with_the_mac_but_reads_noise():
    """The MAC counts packets, and agrees; the key stream counts blocks, and does not.

    So what comes after the missing packet decrypts to noise, which is hardly ever a packet.
    """
    noise = 0
    for _ in range(30):
        pair = pair_of(CTR_ETM, unstrict=("client", "server"))
        directions = attack(pair, frozenset((Role.SERVER,)))
        assert directions[Role.SERVER].deleted == 1
        assert pair.server.transport.phase is not Phase.CONNECTION, "nobody logs in"
        assert pair.server.transport.peer_extensions == {}
        failure = str(directions[Role.SERVER].failure)
        assert "tag is wrong" not in failure, "the MAC did not notice"
        noise += failure.startswith(("padding_length", "message"))
    assert noise > 20


@pytest.mark.parametrize("offered", [CTR_MAC, GCM], ids=["aes-ctr with mac", "aes-gcm"])
@toward
def test_without_strict_other_ciphers_notice_the_gap(offered, victims):
    """AES-GCM counts its own packets; a MAC of the plaintext sees the key stream gone astray."""
    pair = pair_of(offered, unstrict=("client", "server"))
    directions = attack(pair, victims)
    failures = [str(d.failure) for d in directions.values() if d.failure]
    assert failures
    for failure in failures:
        assert "tag is wrong" in failure or "packet_length" in failure
    for role in victims:
        assert side_of(pair, role).transport.peer_extensions == {}
        assert side_of(pair, role).transport.phase is not Phase.CONNECTION


@offers
def test_the_offer_of_strict_cannot_be_taken_away(offered):
    """He strips the markers from both KEXINITs first: the exchange hash covers them."""

    def strip(kexinit):
        names = tuple(n for n in kexinit.kex_algorithms if n not in (STRICT_C, STRICT_S))
        assert names != kexinit.kex_algorithms
        return dataclasses.replace(kexinit, kex_algorithms=names)

    pair = pair_of(offered)
    directions = attack(pair, BOTH, strip)
    assert not pair.server.transport.strict
    assert "signature" in str(directions[Role.CLIENT].failure)
    assert pair.client.transport.phase is Phase.CLOSED
    told = pair.client_events + pair.server_events
    assert not any(
        isinstance(event, events.HostKeyReceived | events.Authenticated) for event in told
    )


def test_what_is_agreed_on_when_a_peer_has_no_strict_key_exchange():
    """With our own preferences a cipher that notices comes first."""
    for old in ("client", "server"):
        pair = make_pair()
        make_unstrict(getattr(pair, old))
        log_in(pair)
        assert "gcm" in pair.client.transport.chosen.cipher_client_to_server
