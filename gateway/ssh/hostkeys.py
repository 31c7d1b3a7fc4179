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

    from gateway.ssh.keys import PublicKey

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
        data = wire.text(PROVE) + wire.string(session_id) + wire.string(key.blob)
        key.verify(reader.string(), data)
    reader.end()
