"""The login, both sides in memory: who gets in, and as whom. Hazards T5, T8, T25-T28."""

from __future__ import annotations

import os

import pytest

from gateway import events
from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh import messages, userauth
from gateway.ssh.algorithms import (
    AEAD_CIPHERS,
    DEFAULT_CIPHERS,
    DEFAULT_KEX,
    DEFAULT_MACS,
    PLAIN_KEY_ALGORITHMS,
    Preferences,
)
from gateway.ssh.keys import PrivateKey
from gateway.ssh.numbers import Disconnect
from gateway.ssh.transport import Phase, Role
from gateway.ssh.userauth import MAXIMUM_BANNERS, MAXIMUM_FAILURES, MAXIMUM_REQUESTS, signed_data
from gateway.ssh.wire import string, text
from tests.support.pair import (
    HOST_KEY,
    USER_KEY,
    edit_kexinit,
    inject,
    local_kexinit,
    logged_in_pair,
    make_pair,
    pair_in_phase,
    take,
)

STRANGER = PrivateKey.generate(os.urandom)
SECOND = PrivateKey.generate(os.urandom)
ED25519 = "ssh-ed25519"


def of_type(found, kind):
    return [event for event in found if isinstance(event, kind)]


def request(method, specific=b"", *, user="alice", service="ssh-connection"):
    return messages.UserauthRequest(user, service, method, specific)


def query(key, algorithm=ED25519):
    fields = messages.PublickeyQuery(False, algorithm, key.public.blob)
    return request("publickey", fields.encode())


def signed(pair, key, *, signer=None, user="alice", session_id=None, algorithm=ED25519):
    """A publickey request for ``key``, signed by ``signer`` over the right data or another's."""
    session = session_id or pair.server.transport.session_id
    data = signed_data(session, "alice", "ssh-connection", ED25519, key.public.blob)
    fields = messages.PublickeyRequest(
        True, algorithm, key.public.blob, (signer or key).sign(data, ED25519)
    )
    return request("publickey", fields.encode(), user=user)


def at_the_server(**options):
    """A pair whose server waits for USERAUTH_REQUEST; what it says after that is `answers`."""
    pair = make_pair(**options)
    pair.drive(Role.SERVER, Phase.AUTH)
    take(pair.server)
    while pair.server.next_event():
        pass
    return pair


def answers(pair):
    """The events of the server since the last look."""
    return list(iter(pair.server.next_event, None))


# ---- the straight way ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 2, 7, 13, 1021])
def test_a_login_in_any_pieces(chunk):
    pair = make_pair(chunk=chunk)
    pair.pump()
    done = events.Authenticated("alice", "publickey", USER_KEY.public.fingerprint)
    assert of_type(pair.client_events, events.Authenticated) == [done]
    assert of_type(pair.server_events, events.Authenticated) == [done]
    names = [type(event).__name__ for event in pair.client_events]
    assert names == [
        "VersionReceived",
        "HostKeyReceived",
        "KeysExchanged",
        "SignatureWanted",
        "Authenticated",
    ]
    assert pair.client.transport.session_id == pair.server.transport.session_id
    assert pair.client.transport.host_key_blob == HOST_KEY.public.blob
    for side in (pair.client, pair.server):
        assert side.transport.phase is Phase.CONNECTION
        assert side.inbound._buffer is None
        assert side.outbound._wire is None


# A server of ours has no group exchange; tests/interop meets it.
TWO_SIDED_KEX = [name for name in DEFAULT_KEX if "group-exchange" not in name]
GCM = "aes128-gcm@openssh.com"
ETM, PLAIN = "hmac-sha2-256-etm@openssh.com", "hmac-sha2-512"
SUITES = [
    *((kex, GCM, GCM, None) for kex in TWO_SIDED_KEX),
    *(
        ("curve25519-sha256", to_server, to_client, mac)
        for to_server in DEFAULT_CIPHERS
        for to_client in DEFAULT_CIPHERS
        for mac in (ETM, PLAIN)
    ),
]


@pytest.mark.parametrize(("kex", "to_server", "to_client", "mac"), SUITES)
def test_every_method_and_every_cipher(kex, to_server, to_client, mac):
    macs = (mac,) if mac else DEFAULT_MACS
    pair = make_pair(client_offers=Preferences(kex=(kex,), macs=macs))
    edit_kexinit(
        pair.server,
        encryption_algorithms_client_to_server=(to_server,),
        encryption_algorithms_server_to_client=(to_client,),
    )
    pair.pump()
    for found in (pair.client_events, pair.server_events):
        assert of_type(found, events.KeysExchanged) == [
            events.KeysExchanged(
                1,
                kex,
                ED25519,
                to_server,
                to_client,
                "" if to_server in AEAD_CIPHERS else macs[0],
                "" if to_client in AEAD_CIPHERS else macs[0],
                strict=True,
            )
        ]
    local, remote = pair.open_channel()
    got = bytearray()
    remote.sink = lambda data: got.extend(data) or len(data)
    local.send(b"through it")
    pair.pump()
    assert got == b"through it"


def test_the_clients_order_decides():
    client = Preferences(kex=("curve25519-sha256", "mlkem768x25519-sha256"))
    pair = make_pair(client_offers=client)
    pair.pump()
    assert of_type(pair.client_events, events.KeysExchanged)[0].kex == "curve25519-sha256"


def test_two_links_never_share_keys():
    one, two = logged_in_pair(), logged_in_pair()
    assert one.client.transport.session_id != two.client.transport.session_id


# ---- identities ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "asked_to_sign"),
    [
        ((USER_KEY,), [0]),
        ((STRANGER, USER_KEY), [1]),
        ((STRANGER, SECOND, USER_KEY), [2]),
    ],
)
def test_keys_are_tried_in_order_and_only_the_right_one_signs(keys, asked_to_sign):
    pair = make_pair(user_keys=keys)
    pair.pump()
    wanted = of_type(pair.client_events, events.SignatureWanted)
    assert [event.identity for event in wanted] == asked_to_sign
    assert of_type(pair.server_events, events.Authenticated)[0].fingerprint == (
        USER_KEY.public.fingerprint
    )


@pytest.mark.parametrize("keys", [(), (STRANGER,), (STRANGER, SECOND)])
def test_no_right_key_ends_in_one_refusal(keys):
    pair = make_pair(user_keys=keys)
    pair.pump()
    assert of_type(pair.client_events, events.Authenticated) == []
    assert of_type(pair.client_events, events.SignatureWanted) == []
    offered = {0: "no keys", 1: "1 key", 2: "2 keys"}[len(keys)]
    assert pair.client_events[-1] == events.AuthenticationRefused(
        "alice", "publickey", f"publickey: {offered} offered", ("publickey",)
    )
    assert pair.server.transport.phase is Phase.AUTH
    assert len(of_type(pair.server_events, events.AuthenticationRefused)) == 1 + len(keys)


def test_a_skipped_identity_makes_place_for_the_next():
    pair = make_pair(user_keys=(SECOND, USER_KEY), authorize=lambda *_: True)
    pair._sign = lambda event: (
        pair.client.auth.skip_identity()
        if event.identity == 0
        else pair.client.auth.provide_signature(USER_KEY.sign(event.data, ED25519))
    )
    pair.pump()
    assert of_type(pair.server_events, events.Authenticated)[0].fingerprint == (
        USER_KEY.public.fingerprint
    )


def test_a_server_that_takes_no_keys():
    _pair, client = pair_in_phase(Role.CLIENT, Phase.AUTH)
    inject(client, messages.UserauthFailure(("password", "keyboard-interactive"), False))
    *_, last = iter(client.next_event, None)
    assert last == events.AuthenticationRefused(
        "alice",
        "none",
        "the server takes no method that may be used",
        ("password", "keyboard-interactive"),
    )


def test_a_server_that_lets_everybody_in():
    _, client = pair_in_phase(Role.CLIENT, Phase.AUTH)
    inject(client, messages.UserauthSuccess())
    *_, last = iter(client.next_event, None)
    assert last == events.Authenticated("alice", "none", "")
    assert client.transport.phase is Phase.CONNECTION


def test_a_wrong_signature_at_the_end_goes_on_with_the_next_key():
    pair = make_pair(user_keys=(SECOND, USER_KEY), authorize=lambda *_: True)
    sign = pair._sign
    pair._sign = lambda event: (
        pair.client.auth.provide_signature(STRANGER.sign(event.data, ED25519))
        if event.identity == 0
        else sign(event)
    )
    pair.pump()
    done = of_type(pair.server_events, events.Authenticated)
    assert [event.fingerprint for event in done] == [USER_KEY.public.fingerprint]
    assert "signature" in of_type(pair.server_events, events.AuthenticationRefused)[-1].reason


def test_answers_without_a_question_are_our_own_error():
    client = make_pair().client
    with pytest.raises(LocalProtocolError):
        client.auth.provide_signature(b"")
    with pytest.raises(LocalProtocolError):
        client.auth.skip_identity()
    with pytest.raises(LocalProtocolError):
        client.accept_host_key()
    with pytest.raises(LocalProtocolError):
        make_pair().server.accept_host_key()


# ---- what a server is sent -----------------------------------------------------------------------


def test_who_signed_is_who_logs_in():
    """T26: A, who may do much, is queried; B signs: the session is B's."""
    pair = at_the_server(authorize=lambda _user, key: True)
    inject(pair.server, query(USER_KEY))
    assert take(pair.server), "PK_OK for A"
    inject(pair.server, signed(pair, SECOND))
    *_, last = answers(pair)
    assert last == events.Authenticated("alice", "publickey", SECOND.public.fingerprint)


ATTEMPTS = {
    "A queried, B not authorized": lambda pair: signed(pair, STRANGER),
    "A's key, B's signature": lambda pair: signed(pair, USER_KEY, signer=STRANGER),
    "another session": lambda pair: signed(pair, USER_KEY, session_id=bytes(32)),
    "another algorithm's name": lambda pair: signed(pair, USER_KEY, algorithm="ssh-rsa"),
    "query with another algorithm": lambda pair: query(USER_KEY, "ecdsa-sha2-nistp256"),
    "a method we lack": lambda pair: request("password", b"\0" + string(b"secret")),
    "hostbased": lambda pair: request("hostbased", b"?"),
    "an empty method": lambda pair: request(""),
    "an RSA key": lambda pair: request(
        "publickey",
        messages.PublickeyQuery(
            False, "rsa-sha2-512", text("ssh-rsa") + string(b"\3") + string(b"\1" * 256)
        ).encode(),
    ),
    "a key blob that is none": lambda pair: request(
        "publickey", messages.PublickeyQuery(False, ED25519, b"\xff" * 51).encode()
    ),
    "an empty key blob": lambda pair: request(
        "publickey", messages.PublickeyQuery(False, ED25519, b"").encode()
    ),
    "a signature that is none": lambda pair: request(
        "publickey",
        messages.PublickeyRequest(True, ED25519, USER_KEY.public.blob, b"").encode(),
    ),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_bad_attempt_fails_and_the_link_lives(attempt):
    pair = at_the_server()
    inject(pair.server, query(USER_KEY))
    inject(pair.server, ATTEMPTS[attempt](pair))
    (refused,) = answers(pair)
    assert isinstance(refused, events.AuthenticationRefused)
    assert pair.server.transport.phase is Phase.AUTH
    inject(pair.server, signed(pair, USER_KEY))
    assert isinstance(answers(pair)[0], events.Authenticated)


BREACHES = {
    "the user changes": lambda pair: request("none", user="root"),
    "the user changes and signs": lambda pair: signed(pair, USER_KEY, user="root"),
    "the service changes": lambda pair: request("none", service="ssh-userauth"),
    "bytes behind the signature": lambda pair: request(
        "publickey", signed(pair, USER_KEY).method_specific + b"\0"
    ),
    "no fields": lambda pair: request("publickey"),
    "a NUL in the name": lambda pair: request("none", user="alice\0root"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_what_ends_the_link(breach):
    """T27 and T51, and malformed requests."""
    pair = at_the_server()
    inject(pair.server, query(USER_KEY))
    with pytest.raises(RemoteProtocolError):
        inject(pair.server, BREACHES[breach](pair))
    assert pair.server.transport.phase is Phase.CLOSED
    assert of_type(answers(pair), events.Authenticated) == []


def test_a_huge_user_name_is_one_failed_attempt():
    """T34."""
    pair = at_the_server()
    inject(pair.server, request("password", string(b"p" * 100_000), user="u" * 100_000))
    (refused,) = answers(pair)
    assert isinstance(refused, events.AuthenticationRefused)
    assert pair.server.transport.phase is Phase.AUTH


@pytest.mark.parametrize("service", ["ssh-connection", "", "x" * 1000])
def test_other_services_are_refused(service):
    _, server = pair_in_phase(Role.SERVER, Phase.SERVICE)
    with pytest.raises(RemoteProtocolError, match="only the service ssh-userauth") as caught:
        inject(server, messages.ServiceRequest(service))
    assert caught.value.reason_code == Disconnect.SERVICE_NOT_AVAILABLE


@pytest.mark.parametrize(
    ("attempt", "limit"),
    [
        (lambda pair: query(STRANGER), MAXIMUM_FAILURES),
        (lambda pair: signed(pair, STRANGER), MAXIMUM_FAILURES),
        (lambda pair: signed(pair, USER_KEY, signer=STRANGER), MAXIMUM_FAILURES),
        (lambda pair: request("password"), MAXIMUM_FAILURES),
        (lambda pair: query(USER_KEY), MAXIMUM_REQUESTS),
        (lambda pair: request("none"), MAXIMUM_REQUESTS),
    ],
)
def test_attempts_are_counted(attempt, limit):
    """T28: everything counts, also queries that are answered with yes."""
    pair = at_the_server()
    for _ in range(limit - 1):
        inject(pair.server, attempt(pair))
    with pytest.raises(RemoteProtocolError, match="too many attempts") as caught:
        inject(pair.server, attempt(pair))
    assert caught.value.reason_code == Disconnect.NO_MORE_AUTH_METHODS_AVAILABLE


def test_a_client_cannot_declare_itself_logged_in():
    """T25."""
    for phase in (Phase.SERVICE, Phase.AUTH):
        pair, server = pair_in_phase(Role.SERVER, phase)
        with pytest.raises(RemoteProtocolError, match="message 52 is not allowed"):
            inject(server, messages.UserauthSuccess())
        assert of_type(answers(pair), events.Authenticated) == []


# ---- what a client is sent -----------------------------------------------------------------------


def waiting_client(state):
    """A client whose login stands at ``state``."""
    pair = make_pair()
    pair._sign = lambda event: None
    if state == "service requested":
        return pair, pair.drive(Role.CLIENT, Phase.SERVICE)
    client = pair.drive(Role.CLIENT, Phase.AUTH)
    take(client)
    if state == "none sent":
        return pair, client
    inject(client, messages.UserauthFailure(("publickey",), False))
    if state == "key offered":
        return pair, client
    inject(client, messages.UserauthPkOk(ED25519, USER_KEY.public.blob))
    if state == "signature sent":
        client.auth.provide_signature(b"?")
    return pair, client


OK = messages.UserauthPkOk(ED25519, USER_KEY.public.blob)
SUCCESS = messages.UserauthSuccess()
FAILURE = messages.UserauthFailure(("publickey",), False)
UNASKED = [
    ("none sent", OK),
    ("none sent", messages.ServiceAccept("ssh-userauth")),
    ("key offered", SUCCESS),
    ("key offered", messages.UserauthPkOk(ED25519, STRANGER.public.blob)),
    ("key offered", messages.UserauthPkOk("ssh-rsa", USER_KEY.public.blob)),
    ("signature wanted", SUCCESS),
    ("signature wanted", FAILURE),
    ("signature wanted", OK),
    ("signature sent", OK),
]


@pytest.mark.parametrize(("state", "message"), UNASKED)
def test_answers_that_nobody_asked_for(state, message):
    _, client = waiting_client(state)
    assert client.auth.state.value == state
    with pytest.raises(RemoteProtocolError):
        inject(client, message)
    assert of_type(iter(client.next_event, None), events.Authenticated) == []


@pytest.mark.parametrize("service", ["ssh-connection", ""])
def test_service_accept_for_another_service(service):
    _, client = waiting_client("service requested")
    with pytest.raises(RemoteProtocolError, match="not asked for"):
        inject(client, messages.ServiceAccept(service))


def test_service_accept_before_the_host_key_is_trusted():
    pair = make_pair()
    pair.client.accept_host_key = lambda: None
    client = pair.drive(Role.CLIENT, Phase.SERVICE)
    with pytest.raises(RemoteProtocolError, match="not asked for"):
        inject(client, messages.ServiceAccept("ssh-userauth"))


def test_nothing_of_the_user_leaves_before_the_host_key_is_trusted():
    pair = make_pair()
    pair.client.accept_host_key = lambda: None
    client = pair.drive(Role.CLIENT, Phase.SERVICE)
    assert client.auth.state is userauth.ClientAuthState.NOT_STARTED
    assert client.outbound.data_to_send() is None
    assert client.outbound.packets_since_newkeys == 2, "KEXINIT and KEX_ECDH_INIT only"


def test_banners_are_shown_and_bounded():
    _, client = waiting_client("none sent")
    for number in range(MAXIMUM_BANNERS):
        inject(client, messages.UserauthBanner(f"notice {number}"))
    shown = of_type(iter(client.next_event, None), events.BannerReceived)
    assert [event.message for event in shown] == [f"notice {n}" for n in range(MAXIMUM_BANNERS)]
    with pytest.raises(RemoteProtocolError, match="banner"):
        inject(client, messages.UserauthBanner("one more"))


def test_partial_success_goes_on():
    _, client = waiting_client("signature sent")
    inject(client, messages.UserauthFailure(("password",), True))
    *_, last = iter(client.next_event, None)
    assert last == events.AuthenticationRefused(
        "alice", "publickey", "publickey: accepted, but more is asked for", ("password",)
    )


# ---- EXT_INFO (RFC 8308) -------------------------------------------------------------------------

EXTENSIONS = {"server-sig-algs": b"ssh-ed25519", "x@example.com": b"\0\xff"}


@pytest.mark.parametrize(
    ("unaware", "marker"), [("client", "ext-info-c"), ("server", "ext-info-s")]
)
def test_only_who_asks_is_told(unaware, marker):
    pair = make_pair()
    peers = {"client": pair.client, "server": pair.server}
    names = local_kexinit(peers[unaware]).kex_algorithms
    assert marker in names
    edit_kexinit(peers[unaware], kex_algorithms=tuple(name for name in names if name != marker))
    pair.pump()
    told = {side: bool(protocol.transport.peer_extensions) for side, protocol in peers.items()}
    assert told == {side: side != unaware for side in peers}


def test_our_client_takes_extensions_during_the_login():
    pair = make_pair()
    pair.pump()
    assert pair.server.transport.peer_extensions == {"ext-info-in-auth@openssh.com": b"0"}


def test_our_server_tells_its_algorithms():
    pair = make_pair()
    pair.pump()
    assert pair.client.transport.peer_extensions == {
        "server-sig-algs": ",".join(PLAIN_KEY_ALGORITHMS).encode(),
        "publickey-hostbound@openssh.com": b"0",
        "ping@openssh.com": b"0",
    }


def test_a_client_may_tell_once():
    _, server = pair_in_phase(Role.SERVER, Phase.SERVICE)
    inject(server, messages.ext_info(EXTENSIONS))
    assert server.transport.peer_extensions == EXTENSIONS
    with pytest.raises(RemoteProtocolError, match="too often"):
        inject(server, messages.ext_info(EXTENSIONS))


def test_a_server_may_tell_twice_the_second_time_during_the_login():
    _, client = waiting_client("none sent")
    before = dict(client.transport.peer_extensions)
    hostbound = {"publickey-hostbound@openssh.com": b"1", "x@example.com": b""}
    inject(client, messages.ext_info({"server-sig-algs": b"rsa-sha2-512", **hostbound}))
    assert client.transport.peer_extensions == {**before, "server-sig-algs": b"rsa-sha2-512"}
    with pytest.raises(RemoteProtocolError, match="too often"):
        inject(client, messages.ext_info(EXTENSIONS))


def test_a_server_may_not_tell_twice_before_the_login():
    _, client = pair_in_phase(Role.CLIENT, Phase.SERVICE)
    inject(client, messages.ext_info(EXTENSIONS))
    with pytest.raises(RemoteProtocolError, match="too often"):
        inject(client, messages.ext_info(EXTENSIONS))


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(
    ("announced", "body"),
    [
        (0xFFFF_FFFF, b""),
        (0xFFFF_FFFF, bytes(4096)),
        (1, b""),
        (2, text("a") + string(b"")),
        (0, text("a") + string(b"")),
        (1, text("a") + (100).to_bytes(4, "big")),
    ],
)
def test_the_count_of_extensions_must_be_true(role, announced, body):
    """T8: refused by looking at the length, not by looping."""
    _, target = pair_in_phase(role, Phase.SERVICE)
    with pytest.raises(RemoteProtocolError):
        inject(target, messages.ExtInfo(announced, body))
    assert "a" not in target.transport.peer_extensions


@pytest.mark.parametrize("role", list(Role))
def test_ext_info_is_not_for_an_open_link(role):
    _, target = pair_in_phase(role, Phase.CONNECTION)
    with pytest.raises(RemoteProtocolError, match="message 7 is not allowed"):
        inject(target, messages.ext_info(EXTENSIONS))


def test_disconnect_during_the_login_is_an_event():
    _pair, client = waiting_client("none sent")
    inject(client, messages.DisconnectMessage(Disconnect.TOO_MANY_CONNECTIONS, "come back later"))
    *_, last = iter(client.next_event, None)
    assert last == events.PeerDisconnected(Disconnect.TOO_MANY_CONNECTIONS, "come back later")
    inject(client, messages.UserauthSuccess())
    assert client.next_event() is None


def test_every_phase_is_reached_by_both_roles():
    for role in Role:
        for phase in Phase:
            if phase != Phase.CLOSED:
                assert pair_in_phase(role, phase)[1].transport.phase is phase, (role, phase)
