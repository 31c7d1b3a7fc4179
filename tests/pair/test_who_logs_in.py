"""What a login tells about users, what it counts, and which keys and signatures it takes.

Hazards T26-T28, T33-T35 and T37. The people are those of a configuration, as for `gateway serve`.
"""

from __future__ import annotations

import itertools
import sys

import pytest

from gateway import events
from gateway.config.server_config import Authority, ServerConfig, UserConfig
from gateway.errors import RemoteProtocolError
from gateway.policy.rules import Policy
from gateway.serving.people import ConfiguredPeople
from gateway.ssh import keytypes, messages
from gateway.ssh.authorized_keys import parse_authorized_keys
from gateway.ssh.certificates import CertificateError, parse_certificate_untrusted
from gateway.ssh.numbers import Disconnect
from gateway.ssh.transport import Phase, Role
from gateway.ssh.userauth import MAXIMUM_FAILURES, MAXIMUM_REQUESTS, signed_data
from gateway.ssh.wire import string
from tests.support.keys import (
    SK_ECDSA,
    SK_ED25519,
    SecurityKey,
    a_certificate,
    a_private_key,
    options,
)
from tests.support.pair import inject, make_pair, take

ADDRESS, NOW = "192.0.2.7", 1_800_000_000.0
ALICE, SECOND = a_private_key("ssh-ed25519", "a"), a_private_key("ssh-ed25519", "b")
STRANGER, OTHER_CA = a_private_key("ssh-ed25519", "s"), a_private_key("ssh-ed25519", "x")
CA = a_private_key("ssh-ed25519", "c")
P256, P384 = a_private_key("ecdsa-sha2-nistp256"), a_private_key("ecdsa-sha2-nistp384")
RSA = a_private_key("ssh-rsa")
SECURITY_KEYS = [SecurityKey(SK_ED25519), SecurityKey(SK_ECDSA)]


def people_of(required=1):
    """alice with many keys, some of which may not be used now, and a CA for alice alone."""
    keys = "".join(
        f"{limits} {key.public.openssh_text()}\n"
        for limits, key in (
            ("", ALICE), ("", SECOND), ("", P256), ("", RSA),
            ("", SECURITY_KEYS[0]), ("", SECURITY_KEYS[1]),
            ('from="198.51.100.0/24"', a_private_key("ssh-ed25519", "f")),
            ('expiry-time="20200101"', a_private_key("ssh-ed25519", "e")),
        )
    )  # fmt: skip
    user = UserConfig(frozenset(), parse_authorized_keys(keys, "keys"), required)
    config = ServerConfig(
        (), (), {"alice": user}, Policy((), lambda _: False),
        authorities=(Authority(CA.public, frozenset({"alice"})),),
    )  # fmt: skip
    return ConfiguredPeople(config)


def at_the_server(required=1):
    """A pair whose server waits for USERAUTH_REQUEST."""
    people = people_of(required)

    def authorize(user_name, key):
        try:
            grant = people.admit(user_name, key, ADDRESS, NOW)
        except CertificateError:
            return 0
        return grant.required_keys if grant else 0

    pair = make_pair(authorize=authorize)
    pair.drive(Role.SERVER, Phase.AUTH)
    take(pair.server)
    events_of(pair)
    return pair


def events_of(pair):
    """The events of the server since the last look."""
    return list(iter(pair.server.next_event, None))


def request(method, specific=b"", *, user="alice"):
    return messages.UserauthRequest(user, "ssh-connection", method, specific)


def query(public, *, user="alice", algorithm=""):
    fields = messages.PublickeyQuery(
        False, algorithm or public.signature_algorithms[0], public.blob
    )
    return request("publickey", fields.encode(), user=user)


def to_sign(pair, public, algorithm, user="alice"):
    session_id = pair.server.transport.session_id
    return signed_data(session_id, user, "ssh-connection", algorithm, public.blob)


def with_signature(public, algorithm, signature, *, user="alice"):
    fields = messages.PublickeyRequest(True, algorithm, public.blob, signature)
    return request("publickey", fields.encode(), user=user)


def signed(pair, key, *, user="alice"):
    algorithm = key.public.signature_algorithms[0]
    data = to_sign(pair, key.public, algorithm, user)
    return with_signature(key.public, algorithm, key.sign(data, algorithm), user=user)


def certificate(**fields):
    fields = {"kind": 1, "principals": (b"alice",)} | fields
    ca = fields.pop("ca", CA)
    return parse_certificate_untrusted(a_certificate(STRANGER.public, ca, **fields))


# ---- T33: which users there are ------------------------------------------------------------------

ATTEMPTS = {
    "none": lambda pair, user: request("none", user=user),
    "a password": lambda pair, user: request("password", b"\0" + string(b"secret"), user=user),
    "questions": lambda pair, user: request("keyboard-interactive", bytes(8), user=user),
    "another method": lambda pair, user: request("gssapi-with-mic", bytes(4), user=user),
    "a query": lambda pair, user: query(STRANGER.public, user=user),
    "a signature": lambda pair, user: signed(pair, STRANGER, user=user),
    "a wrong signature": lambda pair, user: with_signature(
        STRANGER.public, "ssh-ed25519", string(b"ssh-ed25519") + string(bytes(64)), user=user
    ),
    "a key from elsewhere": lambda pair, user: query(
        a_private_key("ssh-ed25519", "f").public, user=user
    ),
    "a key of the past": lambda pair, user: query(
        a_private_key("ssh-ed25519", "e").public, user=user
    ),
    "a key of a kind unheard of": lambda pair, user: request(
        "publickey", messages.PublickeyQuery(False, "x", string(b"x")).encode(), user=user
    ),
    "a certificate of a strange CA": lambda pair, user: query(
        certificate(ca=OTHER_CA), user=user
    ),
    "an expired certificate": lambda pair, user: query(certificate(valid=(0, 1)), user=user),
    "another one's certificate": lambda pair, user: query(
        certificate(principals=(b"bob",)), user=user
    ),
}  # fmt: skip


def answer_and_work(pair, message):
    """What the server answers, and how many calls of functions that took."""
    calls = 0

    def count(_frame, what, _argument):
        nonlocal calls
        calls += what in ("call", "c_call")

    sent = []
    pair.server.auth._send = sent.append
    sys.setprofile(count)
    try:
        inject(pair.server, message)
    finally:
        sys.setprofile(None)
    (refused,) = events_of(pair)
    assert isinstance(refused, events.AuthenticationRefused)
    return sent, calls


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_nobody_learns_which_users_there_are(attempt, monkeypatch):
    """T33: byte for byte the same answer, after the same work and as many signatures verified.

    Work is counted in calls, so that no noise hides it. Two things take longer to look at where
    the user exists: a key of hers that she may use elsewhere only, and a good certificate for
    somebody else. Who has one of those knows the people anyway.
    """
    verified = []
    check = keytypes._Ed25519Verifier.check
    monkeypatch.setattr(
        keytypes._Ed25519Verifier, "check", lambda *args: verified.append(1) or check(*args)
    )
    found, counts = {}, []
    for user in ("nobody", "alice", "nobody"):  # what is computed once is computed in the first
        pair = at_the_server()
        message = ATTEMPTS[attempt](pair, user)
        verified.clear()
        found[user] = answer_and_work(pair, message)
        counts.append(len(verified))
    (alices, work), (nobodys, other_work) = found["alice"], found["nobody"]
    failure = messages.UserauthFailure(("publickey",), partial_success=False).encode()
    assert alices == nobodys == [failure]
    assert len(set(counts)) == 1
    if attempt not in ("a key from elsewhere", "another one's certificate"):
        assert abs(work - other_work) <= 2, (work, other_work)


# ---- T26 to T28: whose login it is, and how often it may be tried --------------------------------


def test_a_user_that_changes_after_a_partial_success_ends_the_link():
    """T27: what alice's key has proved never counts for another name."""
    pair = at_the_server(required=2)
    inject(pair.server, signed(pair, ALICE))
    assert isinstance(events_of(pair)[-1], events.PartiallyAuthenticated)
    with pytest.raises(RemoteProtocolError, match="user name changed"):
        inject(pair.server, signed(pair, SECOND, user="bob"))
    assert pair.server.transport.phase is Phase.CLOSED
    assert events_of(pair) == []


def test_a_key_that_was_only_queried_is_no_second_proof():
    """T26: A is queried and answered with yes; B signs once: one of two keys has signed."""
    pair = at_the_server(required=2)
    inject(pair.server, query(ALICE.public))
    inject(pair.server, signed(pair, SECOND))
    (partial,) = events_of(pair)
    assert partial == events.PartiallyAuthenticated(
        "publickey", ("publickey",), SECOND.public.fingerprint
    )
    inject(pair.server, signed(pair, ALICE))
    (done,) = events_of(pair)
    assert (done.fingerprint, done.before) == (
        ALICE.public.fingerprint, (SECOND.public.fingerprint,)
    )  # fmt: skip


def again(pair, attempt, limit):
    for _ in range(limit):
        inject(pair.server, attempt(pair))
    raise AssertionError("never told to stop")


@pytest.mark.parametrize(
    "attempt",
    [lambda pair: signed(pair, ALICE), lambda pair: query(ALICE.public)],
    ids=["signed again", "queried again"],
)
def test_attempts_after_a_partial_success_are_counted(attempt):
    """T28: one key again and again is one success, and then failures like any others."""
    pair = at_the_server(required=2)
    inject(pair.server, signed(pair, ALICE))
    with pytest.raises(RemoteProtocolError, match="too many attempts") as caught:
        again(pair, attempt, MAXIMUM_FAILURES)
    assert caught.value.reason_code == Disconnect.NO_MORE_AUTH_METHODS_AVAILABLE


def test_no_mixture_of_attempts_is_endless():
    """T28: what is refused, what is answered with yes and "none", in turns."""
    pair = at_the_server(required=3)
    inject(pair.server, signed(pair, ALICE))
    turns = itertools.cycle((query(SECOND.public), request("none"), query(P256.public)))
    with pytest.raises(RemoteProtocolError, match="too many attempts"):
        again(pair, lambda _: next(turns), MAXIMUM_REQUESTS)


# ---- T34: huge credentials -----------------------------------------------------------------------

HUGE = 200_000


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: request("password", b"\0" + string(b"p" * HUGE)),
        lambda: request("none", user="u" * HUGE),
        lambda: request("m" * HUGE),
        lambda: request("keyboard-interactive", string(b"l" * HUGE) + string(b"")),
        lambda: request("publickey", messages.PublickeyQuery(False, "a" * HUGE, b"").encode()),
        lambda: request(
            "publickey", messages.PublickeyQuery(False, "ssh-ed25519", b"k" * HUGE).encode()
        ),
    ],
    ids=["password", "user", "method", "questions", "algorithm", "key"],
)
def test_huge_credentials_are_one_failed_attempt(attempt):
    pair = at_the_server()
    inject(pair.server, attempt())
    (refused,) = events_of(pair)
    assert isinstance(refused, events.AuthenticationRefused)
    assert pair.server.transport.phase is Phase.AUTH


# ---- T35 and T37: the algorithm of a signature, and the touch of a security key ------------------


def rsa_with_sha1(pair):
    data = to_sign(pair, RSA.public, "ssh-rsa")
    signature = RSA.sign(data, "rsa-sha2-256")
    return with_signature(RSA.public, "ssh-rsa", string(b"ssh-rsa") + signature[16:])


def another_curve(pair):
    """A nistp384 signature, over data that names its algorithm, for the nistp256 key."""
    data = to_sign(pair, P256.public, "ecdsa-sha2-nistp384")
    signature = P384.sign(data, "ecdsa-sha2-nistp384")
    return with_signature(P256.public, "ecdsa-sha2-nistp384", signature)


def another_curves_signature(pair):
    data = to_sign(pair, P256.public, "ecdsa-sha2-nistp256")
    return with_signature(
        P256.public, "ecdsa-sha2-nistp256", P384.sign(data, "ecdsa-sha2-nistp384")
    )


def sha256_for_sha512(pair):
    data = to_sign(pair, RSA.public, "rsa-sha2-512")
    return with_signature(RSA.public, "rsa-sha2-512", RSA.sign(data, "rsa-sha2-256"))


@pytest.mark.parametrize(
    "attempt", [rsa_with_sha1, another_curve, another_curves_signature, sha256_for_sha512]
)
def test_a_signature_of_another_algorithm_lets_nobody_in(attempt):
    """T35: the one that the request names is one that the key makes, and that of the signature."""
    pair = at_the_server()
    inject(pair.server, attempt(pair))
    (refused,) = events_of(pair)
    assert isinstance(refused, events.AuthenticationRefused)
    for key in (RSA, P256):
        pair = at_the_server()
        inject(pair.server, signed(pair, key))
        assert isinstance(events_of(pair)[-1], events.Authenticated)


@pytest.mark.parametrize("key", SECURITY_KEYS, ids=lambda key: key.public.algorithm)
@pytest.mark.parametrize("how", ["key", "certificate"])
def test_a_security_key_that_nobody_touched_lets_nobody_in(key, how):
    """T37: also with a certificate that would allow it, for no line of ours can."""
    shown = key.public
    if how == "certificate":
        blob = a_certificate(
            shown, CA, kind=1, principals=(b"alice",),
            extensions=options((b"no-touch-required", b"")),
        )  # fmt: skip
        shown = parse_certificate_untrusted(blob)
    algorithm = shown.signature_algorithms[0]
    for flags, expected in ((0, events.AuthenticationRefused), (1, events.Authenticated)):
        pair = at_the_server()
        data = to_sign(pair, shown, algorithm)
        inject(pair.server, with_signature(shown, algorithm, key.sign(data, flags)))
        assert isinstance(events_of(pair)[-1], expected)
