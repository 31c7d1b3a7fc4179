"""`gateway connect -Q`: the algorithms we support, in the words of ssh(1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.config import offers
from gateway.errors import ConfigError, printable
from gateway.ssh.algorithms import COMPRESSION

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIGNATURES: Final = tuple(dict.fromkeys((*offers.HOST_KEY_ALGORITHMS, *offers.PUBKEY_ALGORITHMS)))
_CERTIFICATE: Final = "-cert-v01@openssh.com"


def _key_type(signature: str) -> str:
    """Return the type of the key that makes a signature: RSA has several (RFC 8332)."""
    return f"ssh-rsa{signature[12:]}" if signature.startswith("rsa-sha2-") else signature


_KEYS: Final = tuple(dict.fromkeys(map(_key_type, _SIGNATURES)))
_QUERIES: Final[Mapping[str, tuple[str, ...]]] = {
    "cipher": offers.CIPHERS,
    "cipher-auth": tuple(name for name in offers.CIPHERS if "gcm" in name or "poly1305" in name),
    "compression": COMPRESSION,
    "kex": offers.KEX,
    "key": _KEYS,
    "key-cert": tuple(name for name in _KEYS if name.endswith(_CERTIFICATE)),
    "key-plain": tuple(name for name in _KEYS if not name.endswith(_CERTIFICATE)),
    "key-sig": _SIGNATURES,
    "mac": offers.MACS,
    "protocol-version": ("2",),
    "sig": tuple(name for name in _SIGNATURES if not name.endswith(_CERTIFICATE)),
}
# Keywords of ssh_config(5) that take such a list ask for it too.
_KEYWORDS: Final = {
    "ciphers": "cipher",
    "kexalgorithms": "kex",
    "macs": "mac",
    "hostkeyalgorithms": "key-sig",
    "pubkeyacceptedalgorithms": "key-sig",
    "pubkeyacceptedkeytypes": "key-sig",
    "casignaturealgorithms": "sig",
}


def answer(query: str) -> tuple[str, ...]:
    """Return the names that ``-Q`` asks for. Raises `ConfigError`."""
    name = query.lower()
    if name == "help":
        return tuple(_QUERIES)
    name = _KEYWORDS.get(name, name)
    if name not in _QUERIES:
        raise ConfigError(
            f"-Q: there is no list called {printable(query, 40) or 'nothing'}",
            remedy=f"ask for one of {', '.join(_QUERIES)}",
        )
    return _QUERIES[name]
