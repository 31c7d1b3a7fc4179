"""What is taken out of the way of the fuzzer, each for as long as a target runs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING
from unittest import mock

from gateway.audit import chain as audit_chain
from gateway.ssh import keyfiles, keys
from gateway.ssh.ciphers import NoCipher
from gateway.ssh.keys import SignatureError
from gateway.ssh.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def signatures() -> Iterator[None]:
    """Every signature that can be read is right."""
    verify = keys.PublicKey.verify

    def lenient(self, *arguments, **flags):
        with contextlib.suppress(SignatureError):
            verify(self, *arguments, **flags)

    with mock.patch.object(keys.PublicKey, "verify", lenient):
        yield


@contextlib.contextmanager
def link() -> Iterator[None]:
    """Signatures, and all new keys are none: packets stay in clear."""

    def no_cipher(_transport, *, client_to_server):
        return NoCipher()

    with signatures(), mock.patch.object(Transport, "_cipher", no_cipher):
        yield


@contextlib.contextmanager
def slow_passphrases() -> Iterator[None]:
    """What may take 4 s for a passphrase is over at once, by lower bounds."""
    with (
        mock.patch.object(keyfiles, "MAXIMUM_ROUNDS", 1),
        mock.patch.object(keyfiles, "MAXIMUM_ITERATIONS", 1 << 8),
        mock.patch.object(keyfiles, "MAXIMUM_SCRYPT_COST", 1 << 8),
    ):
        yield


HASH = audit_chain.GENESIS
MAC = "0" * 64


@contextlib.contextmanager
def chain() -> Iterator[None]:
    """All lines of an audit log have one hash and all checkpoints one MAC."""
    with (
        mock.patch.object(audit_chain, "digest", return_value=HASH),
        mock.patch.object(audit_chain.SealKey, "mac", return_value=MAC),
        mock.patch.object(audit_chain, "MAXIMUM_EPOCH", 100),
    ):
        yield
