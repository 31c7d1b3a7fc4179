"""hostkeys-00@openssh.com and hostkeys-prove-00@openssh.com (OpenSSH PROTOCOL §2.5).

After the login a server tells all its host keys. A client that wants to know them asks for a
proof: a signature by each over the name of the request, the session identifier and the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.errors import RemoteProtocolError
from gateway.ssh import wire
from gateway.ssh.keys import UnsupportedKeyError, parse_public_key_untrusted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.ssh.keys import PrivateKey, PublicKey

OFFER: Final = "hostkeys-00@openssh.com"
PROVE: Final = "hostkeys-prove-00@openssh.com"
MAXIMUM_KEYS: Final = 32  # our choice; a server has a handful


def offered_keys_untrusted(request_specific: bytes) -> tuple[PublicKey, ...]:
    """Return the keys of an offer; those of a type that we do not know are left out."""
    reader = wire.Reader(request_specific)
    keys: list[PublicKey] = []
    for _ in range(MAXIMUM_KEYS):
        if not reader.remaining:
            return tuple(keys)
        try:
            keys.append(parse_public_key_untrusted(reader.string()))
        except UnsupportedKeyError:
            continue
    raise RemoteProtocolError(f"the server offers more than {MAXIMUM_KEYS} host keys")


def prove_request(keys: Sequence[PublicKey]) -> bytes:
    """Return the request-specific fields that ask for the proofs."""
    return b"".join(wire.string(key.blob) for key in keys)


def check_proofs_untrusted(
    response_specific: bytes, keys: Sequence[PublicKey], session_id: bytes
) -> None:
    """Raise `RemoteProtocolError` unless every key signed, in order."""
    reader = wire.Reader(response_specific)
    for key in keys:
        key.verify(reader.string(), _signed_data(key, session_id))
    reader.end()


def offer(keys: Sequence[PrivateKey]) -> bytes:
    """Return the request-specific fields of an offer of these keys."""
    return b"".join(wire.string(key.public.blob) for key in keys)


def proofs_untrusted(
    request_specific: bytes,
    keys: Sequence[PrivateKey],
    session_id: bytes,
    host_key_algorithm: str,
) -> bytes:
    """Sign for every key that the client asks about; it may ask about each key once.

    ``host_key_algorithm`` is the one of the key exchange: a key that knows several signs with it.
    """
    by_blob = {key.public.blob: key for key in keys}
    reader = wire.Reader(request_specific)
    proofs = b""
    while reader.remaining:
        key = by_blob.pop(reader.string(), None)
        if key is None:
            raise RemoteProtocolError("a proof is wanted of a host key that is not ours")
        known = key.public.signature_algorithms
        algorithm = host_key_algorithm if host_key_algorithm in known else known[0]
        proofs += wire.string(key.sign(_signed_data(key.public, session_id), algorithm))
    return proofs


def _signed_data(key: PublicKey, session_id: bytes) -> bytes:
    return wire.text(PROVE) + wire.string(session_id) + wire.string(key.blob)
