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

POST_QUANTUM_KEX: Final = ("mlkem768x25519-sha256",)  # draft-ietf-sshm-mlkem-hybrid-kex
DEFAULT_SERVER_KEX: Final = (
    *POST_QUANTUM_KEX,
    "curve25519-sha256",  # RFC 8731
    "curve25519-sha256@libssh.org",
)
DEFAULT_KEX: Final = (
    *DEFAULT_SERVER_KEX,
    "ecdh-sha2-nistp256",  # RFC 5656
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group-exchange-sha256",  # RFC 4419
    "diffie-hellman-group16-sha512",  # RFC 8268
    "diffie-hellman-group18-sha512",
    "diffie-hellman-group14-sha256",
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

# The order is for processors with AES instructions; `without_aes` has the one for others.
AEAD_CIPHERS: Final = (
    "aes128-gcm@openssh.com",  # RFC 5647
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",  # OpenSSH PROTOCOL.chacha20poly1305
)
DEFAULT_CIPHERS: Final = (*AEAD_CIPHERS, "aes128-ctr", "aes192-ctr", "aes256-ctr")  # RFC 4344
DEFAULT_SERVER_MACS: Final = (
    "hmac-sha2-256-etm@openssh.com",  # OpenSSH PROTOCOL §1.5
    "hmac-sha2-512-etm@openssh.com",
)
DEFAULT_MACS: Final = (*DEFAULT_SERVER_MACS, "hmac-sha2-256", "hmac-sha2-512")  # RFC 6668

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
    macs: tuple[str, ...] = DEFAULT_MACS


SERVER_PREFERENCES: Final = Preferences(kex=DEFAULT_SERVER_KEX, macs=DEFAULT_SERVER_MACS)
# Post-quantum key exchange only, and nothing that ssh-audit fails, warns about or has a note on: no
# ECDSA, and no ChaCha20, which a client without strict key exchange would use at its peril
# (CVE-2023-48795).
STRICT_SERVER_PREFERENCES: Final = Preferences(
    kex=POST_QUANTUM_KEX,
    host_key=("ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256"),
    ciphers=tuple(name for name in DEFAULT_CIPHERS if not name.startswith("chacha20")),
    macs=DEFAULT_SERVER_MACS,
)
STRICT_RSA_BITS: Final = 3072  # ssh-audit warns about fewer: 112 bits of symmetric strength


def without_aes(ciphers: tuple[str, ...]) -> tuple[str, ...]:
    """Reorder for a processor that has no AES instructions: ChaCha20 first."""
    return tuple(sorted(ciphers, key=lambda name: not name.startswith("chacha20")))


@dataclass(frozen=True, slots=True)
class Chosen:
    """What both sides agreed on."""

    kex: str
    host_key: str
    cipher_client_to_server: str
    cipher_server_to_client: str
    mac_client_to_server: str = ""
    mac_server_to_client: str = ""


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

    def first_common(what: str, field: str) -> str:
        return _first_common(what, getattr(client, field), getattr(server, field))

    def mac_for(cipher: str, field: str) -> str:
        """An AEAD cipher has its own integrity: the MAC lists do not count (PROTOCOL §1.6)."""
        return "" if cipher in AEAD_CIPHERS else first_common("MAC", field)

    outgoing = first_common("cipher", "encryption_algorithms_client_to_server")
    incoming = first_common("cipher", "encryption_algorithms_server_to_client")
    first_common("compression", "compression_algorithms_client_to_server")
    first_common("compression", "compression_algorithms_server_to_client")
    return Chosen(
        first_common("key exchange method", "kex_algorithms"),
        first_common("host key algorithm", "server_host_key_algorithms"),
        outgoing,
        incoming,
        mac_for(outgoing, "mac_algorithms_client_to_server"),
        mac_for(incoming, "mac_algorithms_server_to_client"),
    )


def guess_was_wrong(client: KexInit, server: KexInit) -> bool:
    """Say whether a packet sent with first_kex_packet_follows must be ignored (RFC 4253 §7)."""
    return (
        client.kex_algorithms[:1] != server.kex_algorithms[:1]
        or client.server_host_key_algorithms[:1] != server.server_host_key_algorithms[:1]
    )
