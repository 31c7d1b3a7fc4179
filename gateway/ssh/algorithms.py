"""Algorithm names, our order of preference, and negotiation (RFC 4253 §7.1).

To add an algorithm: its name goes into a tuple here, its code into the table of the same kind
(`kex.METHODS`, `ciphers.CIPHERS`, `keytypes.KEY_TYPES`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.errors import RemoteProtocolError, printable
from gateway.ssh.numbers import Disconnect

if TYPE_CHECKING:
    from gateway.ssh.messages import KexInit

DEFAULT_KEX: Final = (
    "mlkem768x25519-sha256",  # draft-ietf-sshm-mlkem-hybrid-kex
    "curve25519-sha256",  # RFC 8731
    "curve25519-sha256@libssh.org",
)

# In OpenSSH's order (KEX_DEFAULT_PK_ALG in myproposal.h), certificates first. Never SHA-1.
PLAIN_KEY_ALGORITHMS: Final = (
    "ssh-ed25519",  # RFC 8709
    "ecdsa-sha2-nistp256",  # RFC 5656
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",  # PROTOCOL.u2f
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",  # RFC 8332
    "rsa-sha2-256",
)
DEFAULT_USER_KEY_ALGORITHMS: Final = (
    "ssh-ed25519-cert-v01@openssh.com",  # PROTOCOL.certkeys
    "ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "ecdsa-sha2-nistp384-cert-v01@openssh.com",
    "ecdsa-sha2-nistp521-cert-v01@openssh.com",
    "sk-ssh-ed25519-cert-v01@openssh.com",
    "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "rsa-sha2-512-cert-v01@openssh.com",
    "rsa-sha2-256-cert-v01@openssh.com",
    *PLAIN_KEY_ALGORITHMS,
)
DEFAULT_HOST_KEY_ALGORITHMS: Final = DEFAULT_USER_KEY_ALGORITHMS
DEFAULT_CIPHERS: Final = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")  # RFC 5647

# An AEAD cipher brings its own integrity and the MAC list is then ignored (OpenSSH PROTOCOL §1.6),
# but some peers refuse an empty list. Never used: every cipher of ours is an AEAD.
PLACEHOLDER_MACS: Final = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-256")

COMPRESSION: Final = ("none",)

# Markers in kex_algorithms that say what a side can do; they are never chosen (RFC 8308 §2.1,
# OpenSSH PROTOCOL §1.10), so nothing but `negotiate` may look for a common name.
EXT_INFO_C: Final = "ext-info-c"
EXT_INFO_S: Final = "ext-info-s"
STRICT_C: Final = "kex-strict-c-v00@openssh.com"
STRICT_S: Final = "kex-strict-s-v00@openssh.com"
_MARKERS: Final = frozenset((EXT_INFO_C, EXT_INFO_S, STRICT_C, STRICT_S))


@dataclass(frozen=True, slots=True)
class Preferences:
    """What one side offers, in its order."""

    kex: tuple[str, ...] = DEFAULT_KEX
    host_key: tuple[str, ...] = DEFAULT_HOST_KEY_ALGORITHMS
    ciphers: tuple[str, ...] = DEFAULT_CIPHERS


@dataclass(frozen=True, slots=True)
class Chosen:
    """What both sides agreed on."""

    kex: str
    host_key: str
    cipher_client_to_server: str
    cipher_server_to_client: str


def _first_common(what: str, client: tuple[str, ...], server: tuple[str, ...]) -> str:
    for name in client:
        if name in server and name not in _MARKERS:
            return name
    raise RemoteProtocolError(
        f"no {what} in common: the client offers {printable(','.join(client) or 'nothing')}, "
        f"the server offers {printable(','.join(server) or 'nothing')}",
        Disconnect.KEY_EXCHANGE_FAILED,
    )


def negotiate(client: KexInit, server: KexInit) -> Chosen:
    """Choose by RFC 4253 §7.1: the client's first name that the server has too."""
    chosen = Chosen(
        _first_common("key exchange method", client.kex_algorithms, server.kex_algorithms),
        _first_common(
            "host key algorithm",
            client.server_host_key_algorithms,
            server.server_host_key_algorithms,
        ),
        _first_common(
            "cipher",
            client.encryption_algorithms_client_to_server,
            server.encryption_algorithms_client_to_server,
        ),
        _first_common(
            "cipher",
            client.encryption_algorithms_server_to_client,
            server.encryption_algorithms_server_to_client,
        ),
    )
    _first_common(
        "compression",
        client.compression_algorithms_client_to_server,
        server.compression_algorithms_client_to_server,
    )
    _first_common(
        "compression",
        client.compression_algorithms_server_to_client,
        server.compression_algorithms_server_to_client,
    )
    return chosen


def guess_was_wrong(client: KexInit, server: KexInit) -> bool:
    """Say whether a packet sent with first_kex_packet_follows must be ignored (RFC 4253 §7)."""
    return (
        client.kex_algorithms[:1] != server.kex_algorithms[:1]
        or client.server_host_key_algorithms[:1] != server.server_host_key_algorithms[:1]
    )
