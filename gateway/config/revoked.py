"""RevokedHostKeys: lists of keys, as text or as key revocation lists, that nobody may show.

A file that is missing or cannot be used refuses every key, as in ssh(1): `ConfigError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.config.files import read_if_exists
from gateway.errors import ConfigError, RemoteProtocolError
from gateway.ssh import krl
from gateway.ssh.certificates import Certificate
from gateway.ssh.keys import numbered_lines, read_key_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.ssh.keys import PublicKey

_REMEDY = "make a new list with ssh-keygen -k, or list the public keys as text, one a line"


class RevokedKeys:
    """What all files together revoke."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._lists = [(path, _read(path)) for path in files]

    def reason(self, key: PublicKey) -> str:
        """Say where a key or certificate, the key inside, or its CA's is revoked; or nothing."""
        for path, revoked in self._lists:
            if reason := revoked.reason(key):
                return f"RevokedHostKeys {path} ({reason})"
        return ""


class _TextList:
    """Public keys, one a line (sshkey_in_file of authfile.c)."""

    def __init__(self, blobs: set[bytes]) -> None:
        self._blobs = blobs

    def reason(self, key: PublicKey) -> str:
        plain = key.key if isinstance(key, Certificate) else key
        if key.blob in self._blobs or plain.blob in self._blobs:
            return "by itself"
        if isinstance(key, Certificate) and key.ca_key.blob in self._blobs:
            return "its CA by itself"
        return ""


def _read(path: Path) -> krl.RevocationList | _TextList:
    data = read_if_exists(path, "RevokedHostKeys")
    where = f"RevokedHostKeys {path}"
    if data is None:
        raise ConfigError("there is no such file", where=where, remedy="name one that exists")
    if not data.startswith(krl.MAGIC):
        return _TextList(_blobs(data, path, where))
    try:
        return krl.parse_krl_untrusted(data)
    except RemoteProtocolError as error:
        raise ConfigError(
            f"the key revocation list cannot be used: {error}", where=where, remedy=_REMEDY
        ) from error


def _blobs(text: bytes, path: Path, where: str) -> set[bytes]:
    found = set()
    for number, line in numbered_lines(text, str(path)):
        if line.strip() and not line.startswith("#"):
            try:
                found.add(read_key_text(line)[1])
            except (ValueError, RemoteProtocolError) as error:
                raise ConfigError(
                    f"this is not a key: {error}", where=f"{where}:{number}"
                ) from error
    return found
