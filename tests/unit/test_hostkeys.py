"""hostkeys-00 and hostkeys-prove-00 (OpenSSH PROTOCOL §2.5)."""

from __future__ import annotations

import os

import pytest

from gateway.errors import RemoteProtocolError
from gateway.ssh import wire
from gateway.ssh.hostkeys import (
    MAXIMUM_KEYS,
    PROVE,
    check_proofs_untrusted,
    offered_keys_untrusted,
    prove_request,
)
from tests.support.keys import PRIVATE_TYPES, a_private_key

KEYS = [a_private_key(name) for name in PRIVATE_TYPES]
PUBLIC = [key.public for key in KEYS]
SESSION = os.urandom(32)


def proofs(keys, session_id=SESSION, name=PROVE):
    return b"".join(
        wire.string(
            key.sign(
                wire.text(name) + wire.string(session_id) + wire.string(key.public.blob),
                key.public.signature_algorithms[0],
            )
        )
        for key in keys
    )


def test_offer_and_proofs():
    assert offered_keys_untrusted(prove_request(PUBLIC)) == tuple(PUBLIC)
    check_proofs_untrusted(proofs(KEYS), PUBLIC, SESSION)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        proofs(KEYS[:-1]),
        proofs(KEYS)[:-1],
        proofs(KEYS) + b"\0",
        proofs([*KEYS[1:], KEYS[0]]),
        proofs(KEYS, session_id=bytes(32)),
        proofs(KEYS, name="hostkeys-00@openssh.com"),
    ],
)
def test_bad_proofs(bad):
    with pytest.raises(RemoteProtocolError):
        check_proofs_untrusted(bad, PUBLIC, SESSION)


def test_unknown_types_are_left_out_and_too_many_refused():
    unknown = wire.string(wire.text("ssh-future") + b"anything")
    assert offered_keys_untrusted(unknown + prove_request(PUBLIC[:1])) == (PUBLIC[0],)
    with pytest.raises(RemoteProtocolError, match="more than"):
        offered_keys_untrusted(prove_request(PUBLIC[:1] * (MAXIMUM_KEYS + 1)))
    with pytest.raises(RemoteProtocolError):
        offered_keys_untrusted(prove_request(PUBLIC)[:-1])
