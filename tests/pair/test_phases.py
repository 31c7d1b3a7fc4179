"""Every message in every phase, and everything that may go wrong before the login.

Hazards T1-T6, T11, T15-T20 and T24.
"""

from __future__ import annotations

import dataclasses
import os

import pytest

from gateway import events
from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh import algorithms, messages
from gateway.ssh.algorithms import STRICT_C, STRICT_S, Preferences
from gateway.ssh.kex import (
    MLKEM768_CIPHERTEXT_SIZE,
    MLKEM768_PUBLIC_SIZE,
    Mlkem768X25519,
)
from gateway.ssh.keys import PrivateKey
from gateway.ssh.numbers import Disconnect, Msg
from gateway.ssh.transport import (
    ALLOWED,
    MAXIMUM_LINE_LENGTH,
    MAXIMUM_PRE_VERSION_LINES,
    Phase,
    Role,
)
from tests.support.pair import (
    HOST_KEY,
    edit_kexinit,
    feed,
    inject,
    local_kexinit,
    log_in,
    logged_in_pair,
    make_pair,
    make_unstrict,
    pair_in_phase,
    spy_on,
    take,
)
from tests.support.words import Snapshot

PACKET_PHASES = [phase for phase in Phase if phase not in (Phase.VERSION, Phase.CLOSED)]
ROLES = list(Role)
STRICT_PHASES = [Phase.KEX_STRICT, Phase.NEWKEYS_STRICT]
HARMLESS = [
    messages.Ignore(b"x"),
    messages.Unimplemented(0),
    messages.Debug(False, "x"),
]


def by_name(value):
    return getattr(value, "value", None) or type(value).__name__


# ---- the gate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES, ids=by_name)
@pytest.mark.parametrize("phase", PACKET_PHASES, ids=by_name)
def test_exactly_the_numbers_in_the_table_pass_the_gate(phase, role):
    _, target = pair_in_phase(role, phase)
    take(target)
    before = Snapshot(target)
    for number in range(256):
        refusal = ""
        try:
            inject(target, bytes((number,)) + b"\xff" * 11)
        except RemoteProtocolError as error:
            refusal = str(error)
        gate_refused = "is not allowed now" in refusal
        assert gate_refused == (number not in ALLOWED[phase][role]), (number, refusal)
        if refusal:
            assert target.transport.phase is Phase.CLOSED
            assert take(target), "DISCONNECT"
        before.restore()


@pytest.mark.parametrize("role", ROLES, ids=by_name)
def test_the_refused_peer_is_told_why(role):
    pair, target = pair_in_phase(role, Phase.AUTH)
    with pytest.raises(RemoteProtocolError, match="message 90 is not allowed now"):
        inject(target, messages.ChannelOpen("session", 0, 1, 32768))
    peer = pair.server if role is Role.CLIENT else pair.client
    feed(peer, take(target))
    *_, last = iter(peer.next_event, None)
    assert last == events.PeerDisconnected(
        Disconnect.PROTOCOL_ERROR, "message 90 is not allowed now (phase: auth)"
    )
    assert peer.transport.phase is Phase.CLOSED


@pytest.mark.parametrize("role", ROLES, ids=by_name)
def test_a_closed_link_ignores_everything(role):
    _pair, target = pair_in_phase(role, Phase.CONNECTION)
    target.disconnect("done")
    for number in (Msg.KEXINIT, Msg.CHANNEL_OPEN, Msg.CHANNEL_DATA, Msg.DISCONNECT, 0, 255):
        inject(target, bytes((number,)))
    assert target.next_event() is None
    assert target.transport.phase is Phase.CLOSED


def test_no_phase_before_the_login_knows_a_connection_message():
    before = [p for p in Phase if p not in (Phase.CONNECTION, Phase.REKEY, Phase.REKEY_NEWKEYS)]
    for phase in before:
        for role in Role:
            assert not any(number >= 80 for number in ALLOWED[phase][role]), (phase, role)


def test_messages_that_only_the_other_role_may_send_are_in_no_table():
    client_only = {Msg.SERVICE_REQUEST, Msg.USERAUTH_REQUEST, Msg.KEX_ECDH_INIT}
    server_only = {
        Msg.SERVICE_ACCEPT,
        Msg.USERAUTH_SUCCESS,
        Msg.USERAUTH_FAILURE,
        Msg.USERAUTH_PK_OK,
        Msg.USERAUTH_BANNER,
        Msg.KEX_ECDH_REPLY,
    }
    for phase in Phase:
        assert not ALLOWED[phase][Role.CLIENT] & client_only
        assert not ALLOWED[phase][Role.SERVER] & server_only


# ---- strict key exchange (T1-T6) -----------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES, ids=by_name)
@pytest.mark.parametrize("message", HARMLESS, ids=by_name)
def test_strict_nothing_may_come_before_kexinit(role, message):
    pair = make_pair()
    target, peer = (pair.client, pair.server) if role is Role.CLIENT else (pair.server, pair.client)
    version, _, _ = take(peer).partition(b"\n")
    feed(target, version + b"\n")
    inject(target, message)
    with pytest.raises(RemoteProtocolError, match="KEXINIT was not the first packet"):
        inject(target, local_kexinit(peer))
    assert target.transport.phase is Phase.CLOSED


@pytest.mark.parametrize("role", ROLES, ids=by_name)
@pytest.mark.parametrize("phase", STRICT_PHASES, ids=by_name)
@pytest.mark.parametrize("message", HARMLESS, ids=by_name)
def test_strict_nothing_harmless_between_kexinit_and_newkeys(role, phase, message):
    _, target = pair_in_phase(role, phase)
    with pytest.raises(RemoteProtocolError, match="not allowed now"):
        inject(target, message)


@pytest.mark.parametrize("role", ROLES, ids=by_name)
@pytest.mark.parametrize("phase", [Phase.KEX, Phase.NEWKEYS], ids=by_name)
@pytest.mark.parametrize("message", HARMLESS, ids=by_name)
def test_without_strict_harmless_messages_do_pass(role, phase, message):
    _pair, target = pair_in_phase(role, phase)
    assert not target.transport.strict
    inject(target, message)
    assert target.transport.phase is phase


@pytest.mark.parametrize("old", ["client", "server", "both"])
def test_a_peer_without_the_marker_works_and_sequence_numbers_run_on(old):
    pair = make_pair()
    for side in ("client", "server"):
        if old in (side, "both"):
            make_unstrict(getattr(pair, side))
    log_in(pair)
    assert not pair.client.transport.strict
    assert not pair.server.transport.strict
    before = pair.client.outbound.sequence_number
    assert before > 3
    pair.client.transport.start_rekey(0.0)
    pair.pump()
    assert pair.client.outbound.sequence_number > before
    local, _ = pair.open_channel()
    assert local.send(b"x") == 1


def test_strict_every_newkeys_resets_each_direction_by_itself():
    pair = logged_in_pair()
    assert pair.client.transport.strict
    for starter in (pair.client, pair.server, pair.client):
        pair.open_channel()
        client_sent = pair.client.outbound.sequence_number
        assert client_sent > 0
        starter.transport.start_rekey(0.0)
        pair.pump()
        for side in (pair.client, pair.server):
            assert side.outbound.sequence_number == 0, "nothing followed NEWKEYS"
            assert side.inbound.sequence_number == 0
    pair.open_channel()
    assert pair.client.outbound.sequence_number == 1


def test_the_two_directions_reset_independently():
    _pair, server = pair_in_phase(Role.SERVER, Phase.NEWKEYS_STRICT)
    assert server.outbound.sequence_number == 1, "EXT_INFO, under the new keys"
    assert server.inbound.sequence_number == 2, "KEXINIT and KEX_ECDH_INIT, in clear"


@pytest.mark.parametrize("role", ROLES, ids=by_name)
@pytest.mark.parametrize("phase", [Phase.KEXINIT, *STRICT_PHASES, Phase.KEX, Phase.NEWKEYS])
def test_ext_info_in_clear_is_refused_and_teaches_nothing(role, phase):
    _, target = pair_in_phase(role, phase)
    with pytest.raises(RemoteProtocolError, match="message 7 is not allowed"):
        inject(target, messages.ext_info({"server-sig-algs": b"ssh-rsa"}))
    assert target.transport.peer_extensions == {}


@pytest.mark.parametrize("phase", [Phase.KEXINIT, *STRICT_PHASES, Phase.KEX, Phase.NEWKEYS])
def test_a_login_in_clear_is_refused(phase):
    _pair, server = pair_in_phase(Role.SERVER, phase)
    with pytest.raises(RemoteProtocolError, match="message 50 is not allowed"):
        inject(server, messages.UserauthRequest("mallory", "ssh-connection", "none"))
    assert server.auth.user_name is None


# ---- negotiation ---------------------------------------------------------------------------------


def test_a_right_guess_is_used():
    pair = make_pair(client_offers=Preferences(host_key=("ssh-ed25519",)))
    edit_kexinit(pair.client, first_kex_packet_follows=True)
    log_in(pair)


@pytest.mark.parametrize("strict", [True, False])
def test_of_a_wrong_guess_exactly_one_packet_is_ignored(strict):
    """T15: curve25519 is guessed and its packet sent; both then choose ML-KEM."""
    pair = make_pair(server_offers=Preferences(kex=("mlkem768x25519-sha256",)))
    if not strict:
        make_unstrict(pair.client)
    names = local_kexinit(pair.client).kex_algorithms
    edit_kexinit(
        pair.client,
        kex_algorithms=("curve25519-sha256", *names),
        first_kex_packet_follows=True,
    )
    pair.client.outbound._seal(messages.KexEcdhInit(bytes(32)).encode())
    received = spy_on(pair.server)
    log_in(pair)
    assert received.count(Msg.KEX_ECDH_INIT) == 2


def test_a_wrong_guess_of_the_server_is_ignored_once():
    pair = make_pair(client_offers=Preferences(kex=("curve25519-sha256",)))
    edit_kexinit(pair.server, first_kex_packet_follows=True)
    pair.server.outbound._seal(messages.KexEcdhReply(b"?", b"?", b"?").encode())
    log_in(pair)


def test_after_the_ignored_guess_the_next_bad_packet_counts():
    pair = make_pair(server_offers=Preferences(kex=("mlkem768x25519-sha256",)))
    names = local_kexinit(pair.client).kex_algorithms
    edit_kexinit(
        pair.client,
        kex_algorithms=("curve25519-sha256", *names),
        first_kex_packet_follows=True,
    )
    feed(pair.server, take(pair.client))
    inject(pair.server, messages.KexEcdhInit(bytes(32)))
    assert pair.server.transport.phase is Phase.KEX_STRICT
    with pytest.raises(RemoteProtocolError, match="32 bytes instead of 1216"):
        inject(pair.server, messages.KexEcdhInit(bytes(32)))


@pytest.mark.parametrize("marker", ["ext-info-c", "ext-info-s", STRICT_C, STRICT_S])
def test_markers_are_never_chosen(marker):
    client = local_kexinit(make_pair().client)
    server = local_kexinit(make_pair().server)
    first = dataclasses.replace(client, kex_algorithms=(marker, "curve25519-sha256"))
    other = dataclasses.replace(server, kex_algorithms=(marker, "curve25519-sha256"))
    assert algorithms.negotiate(first, other).kex == "curve25519-sha256"
    only = dataclasses.replace(client, kex_algorithms=(marker,))
    with pytest.raises(RemoteProtocolError, match="no key exchange method in common"):
        algorithms.negotiate(only, other)


NOTHING_IN_COMMON = [
    ("key exchange method", {"kex_algorithms": ("diffie-hellman-group1-sha1",)}),
    ("host key algorithm", {"server_host_key_algorithms": ("ssh-dss", "ssh-rsa")}),
    ("cipher", {"encryption_algorithms_client_to_server": ("3des-cbc", "none")}),
    ("cipher", {"encryption_algorithms_server_to_client": ("aes128-cbc",)}),
    ("compression", {"compression_algorithms_client_to_server": ("zlib",)}),
    ("compression", {"compression_algorithms_server_to_client": ("zlib@openssh.com",)}),
    ("compression", {"compression_algorithms_server_to_client": ()}),
]


@pytest.mark.parametrize("role", ROLES, ids=by_name)
@pytest.mark.parametrize(("what", "offer"), NOTHING_IN_COMMON)
def test_nothing_in_common_is_a_sentence_that_names_both_sides(role, what, offer):
    """T11 and T23: also a peer that compresses only, or offers none but broken algorithms."""
    pair = make_pair()
    target, peer = (pair.client, pair.server) if role is Role.CLIENT else (pair.server, pair.client)
    edit_kexinit(peer, **offer)
    with pytest.raises(RemoteProtocolError, match=f"no {what} in common") as caught:
        feed(target, take(peer))
    assert caught.value.reason_code == Disconnect.KEY_EXCHANGE_FAILED
    assert ",".join(*offer.values()) in str(caught.value)


def test_what_we_offer_is_never_compression_or_an_empty_list():
    for side in (make_pair().client, make_pair().server):
        offer = local_kexinit(side)
        assert offer.compression_algorithms_client_to_server == ("none",)
        assert offer.compression_algorithms_server_to_client == ("none",)
        assert offer.mac_algorithms_client_to_server
        assert not offer.first_kex_packet_follows


def test_an_empty_mac_list_does_not_matter_to_an_aead_cipher():
    pair = make_pair()
    edit_kexinit(pair.server, mac_algorithms_client_to_server=())
    log_in(pair)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (b"curve25519-sha256,", "empty name"),
        (b",curve25519-sha256", "empty name"),
        (b",", "empty name"),
        ("curve25519-sha256,é".encode(), "ASCII"),
        (b"curve25519-sha256\0", "ASCII"),
        (b"", "no key exchange method in common"),
        (b"x" * 65536, "no key exchange method in common"),
        (b",".join([b"n%d" % n for n in range(10_000)]), "no key exchange method in common"),
    ],
)
def test_name_lists_at_their_edges(names, problem):
    pair, server = pair_in_phase(Role.SERVER, Phase.KEXINIT)
    offer = local_kexinit(pair.client).encode()
    old = messages.wire.name_list(local_kexinit(pair.client).kex_algorithms)
    with pytest.raises(RemoteProtocolError, match=problem) as caught:
        inject(server, offer.replace(old, messages.wire.string(names)))
    assert len(str(caught.value)) < 1000


def test_a_list_with_a_name_twice_is_fine():
    pair = make_pair()
    names = local_kexinit(pair.client).kex_algorithms
    edit_kexinit(pair.client, kex_algorithms=names + names)
    log_in(pair)


# ---- identification strings (T18) ----------------------------------------------------------------

VERSIONS = [
    (b"SSH-2.0-x\r\n", None),
    (b"SSH-2.0-x\n", None),
    (b"SSH-2.0-" + b"v" * 245 + b"\r\n", None),
    (b"SSH-1.99-old\r\n", None),
    (b"SSH-2.0-with a comment\r\n", None),
    (b"SSH-2.0-" + b"v" * 246 + b"\r\n", "version is not 2.0"),
    (b"SSH-1.5-x\r\n", "version is not 2.0"),
    (b"SSH-3.0-x\r\n", "version is not 2.0"),
    (b"SSH-2.0-a\0b\r\n", "not printable ASCII"),
    (b"SSH-2.0-\x1b[2J\r\n", "not printable ASCII"),
    ("SSH-2.0-é\r\n".encode(), "not printable ASCII"),
    (b"SSH-2.0-" + b"v" * 4000, f"more than {MAXIMUM_LINE_LENGTH} bytes"),
    (b"SSH-2.0-" + b"\r" * 4000, f"more than {MAXIMUM_LINE_LENGTH} bytes"),
    (b"hello\r\n" * (MAXIMUM_PRE_VERSION_LINES + 1), "does not speak SSH: it says 'hello'"),
    (b"\n" * (MAXIMUM_PRE_VERSION_LINES + 1), "does not speak SSH"),
]


def feed_all(protocol, pieces):
    for piece in pieces:
        feed(protocol, piece)


@pytest.mark.parametrize("step", [1, 4096])
@pytest.mark.parametrize(("line", "problem"), VERSIONS)
def test_identification_strings(line, problem, step):
    client = make_pair().client
    pieces = [line[at : at + step] for at in range(0, len(line), step)]
    if problem is None:
        feed_all(client, pieces)
        assert client.transport.phase is Phase.KEXINIT
        assert client.next_event() == events.VersionReceived(line.strip().decode())
        return
    with pytest.raises(RemoteProtocolError, match=problem):
        feed_all(client, pieces)
    assert client.transport.phase is Phase.CLOSED


def test_a_client_reads_over_lines_before_the_version():
    client = make_pair().client
    feed(client, b"Welcome\r\nto this\n" + b"x" * 1000 + b"\nSSH-2.0-x\r\n")
    assert client.transport.phase is Phase.KEXINIT


@pytest.mark.parametrize("line", [b"\r\n", b"GET / HTTP/1.1\r\n", b"hello\nSSH-2.0-x\r\n"])
def test_a_server_takes_no_line_before_the_version(line):
    with pytest.raises(RemoteProtocolError, match="does not speak SSH"):
        feed(make_pair().server, line)


def test_a_version_without_its_end_waits():
    client = make_pair().client
    feed(client, b"SSH-2.0-x\r")
    assert client.transport.phase is Phase.VERSION


# ---- public values (T19) -------------------------------------------------------------------------

SMALL_ORDER = [  # RFC 7748 §7; the points that every X25519 maps to zero
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]
CURVE, HYBRID = "curve25519-sha256", "mlkem768x25519-sha256"
LENGTHS = {
    (CURVE, Role.SERVER): 32,
    (CURVE, Role.CLIENT): 32,
    (HYBRID, Role.SERVER): MLKEM768_PUBLIC_SIZE + 32,
    (HYBRID, Role.CLIENT): MLKEM768_CIPHERTEXT_SIZE + 32,
}


def in_kex(method, role):
    pair = make_pair(client_offers=Preferences(kex=(method,)))
    return pair, pair.drive(role, Phase.KEX_STRICT)


def public_value(pair, role, value):
    """The message in which ``role`` gets the peer's public value."""
    if role is Role.SERVER:
        return messages.KexEcdhInit(value)
    return messages.KexEcdhReply(HOST_KEY.public.blob, value, b"")


@pytest.mark.parametrize("role", ROLES, ids=by_name)
@pytest.mark.parametrize("method", [CURVE, HYBRID])
@pytest.mark.parametrize("change", [-1, +1, "none", "other", "64 KiB"])
def test_public_values_of_a_wrong_length(role, method, change):
    right = LENGTHS[method, role]
    other = LENGTHS[HYBRID if method == CURVE else CURVE, role]
    length = (
        {"none": 0, "other": other, "64 KiB": 65536}.get(change)
        if isinstance(change, str)
        else right + change
    )
    pair, target = in_kex(method, role)
    with pytest.raises(RemoteProtocolError, match=f"has {length} bytes instead of {right}"):
        inject(target, public_value(pair, role, bytes(length)))
    assert target.transport.session_id == b""


@pytest.mark.parametrize("role", ROLES, ids=by_name)
@pytest.mark.parametrize("point", SMALL_ORDER, ids=lambda point: point.hex()[:8])
@pytest.mark.parametrize("method", [CURVE, HYBRID])
def test_points_of_small_order(role, point, method):
    pair, target = in_kex(method, role)
    value = point
    if method == HYBRID:
        if role is Role.SERVER:
            value = Mlkem768X25519(os.urandom).start()[:MLKEM768_PUBLIC_SIZE] + point
        else:
            value = bytes(MLKEM768_CIPHERTEXT_SIZE) + point
    with pytest.raises(RemoteProtocolError, match="small order") as caught:
        inject(target, public_value(pair, role, value))
    assert caught.value.reason_code == Disconnect.KEY_EXCHANGE_FAILED
    assert target.transport.session_id == b""


def test_a_malformed_mlkem_public_key():
    """FIPS 203 §7.2: coefficients of 4095 are not reduced modulo 3329."""
    _pair, server = in_kex(HYBRID, Role.SERVER)
    value = b"\xff" * MLKEM768_PUBLIC_SIZE + b"\x09" + bytes(31)
    with pytest.raises(RemoteProtocolError, match="ML-KEM public key is malformed"):
        inject(server, messages.KexEcdhInit(value))


# ---- host keys (T20) -----------------------------------------------------------------------------


def test_another_host_key_at_a_rekey_ends_the_link():
    pair = logged_in_pair()
    another = PrivateKey.generate(lambda n: bytes(range(n)))
    pair.server.transport._host_keys = {another.public.algorithm: another}
    pair.client.transport.start_rekey(0.0)
    with pytest.raises(RemoteProtocolError, match="another host key") as caught:
        pair.pump()
    assert caught.value.reason_code == Disconnect.HOST_KEY_NOT_VERIFIABLE
    assert pair.client.transport.phase is Phase.CLOSED


@pytest.mark.parametrize("flaw", ["signature of another key", "no signature", "no key", "type"])
def test_a_host_key_that_is_not_proved(flaw):
    pair = make_pair()
    client = pair.drive(Role.CLIENT, Phase.KEX_STRICT)
    feed(pair.server, take(client))
    reply = messages.KexEcdhReply(HOST_KEY.public.blob, b"\x09" * 1120, b"")
    another = PrivateKey.generate(lambda n: bytes(range(n)))
    changes = {
        "signature of another key": {"signature": another.sign(b"x", "ssh-ed25519")},
        "no signature": {},
        "no key": {"server_host_key": b""},
        "type": {"server_host_key": messages.wire.text("ssh-rsa") + bytes(8)},
    }
    with pytest.raises(RemoteProtocolError):
        inject(client, dataclasses.replace(reply, **changes[flaw]))
    assert client.next_event() is None, "nobody is asked to trust it"
    with pytest.raises(LocalProtocolError):
        client.accept_host_key()
