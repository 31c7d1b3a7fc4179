"""Private key files: openssh-key-v1, as OpenSSH's PROTOCOL.key describes it.

A key file is the user's own text, so everything wrong with it is a `ConfigError` with a remedy,
never a protocol error. Every other format is refused by its name. The file is unwrapped at once,
which gives the public key; the private section is opened by `PrivateKeyFile.decrypt`.

bcrypt is slow on purpose: about 8 ms for a round on a 2-core machine, so 0.13 s for the 16 rounds
of OpenSSH 9.2, 0.2 s for today's default of 24, and 4 s for the most that is accepted. It lets
other threads run meanwhile; call `PrivateKeyFile.decrypt` in one.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Never

import bcrypt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR

from gateway.errors import ConfigError, RemoteProtocolError, printable
from gateway.ssh.keys import (
    KEY_TYPES,
    PublicKeyError,
    UnsupportedKeyError,
    parse_public_key_untrusted,
    read_private_key_untrusted,
)
from gateway.ssh.wire import Reader, string, uint32

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.ssh.keys import PrivateKey, PublicKey

# From PROTOCOL.key and OpenSSH's sshkey.c.
BEGIN: Final = b"-----BEGIN OPENSSH PRIVATE KEY-----"
END: Final = b"-----END OPENSSH PRIVATE KEY-----"
MAGIC: Final = b"openssh-key-v1\0"
LINE_LENGTH: Final = 70
PLAIN_BLOCK_LENGTH: Final = 8

# Our own choices.
MAXIMUM_FILE_BYTES: Final = 1 << 20
MAXIMUM_ROUNDS: Final = 500  # about 4 s
SALT_LENGTHS: Final = range(8, 65)  # every known program writes 16

_MAKE_ONE: Final = "`ssh-keygen -t ed25519` makes a key that can be used"


class WrongPassphrase(ConfigError):
    """The key file is encrypted and the passphrase is missing or wrong."""


@dataclass(frozen=True, slots=True)
class _FileCipher:
    key_length: int
    iv_length: int
    tag_length: int
    open: Callable[[bytes, bytes, bytes], bytes]  # key, IV, ciphertext with its tag


def _open_ctr(key: bytes, iv: bytes, sealed: bytes) -> bytes:
    decryptor = Cipher(AES(key), CTR(iv)).decryptor()
    return decryptor.update(sealed) + decryptor.finalize()


def _open_cbc(key: bytes, iv: bytes, sealed: bytes) -> bytes:
    decryptor = Cipher(AES(key), CBC(iv)).decryptor()
    return decryptor.update(sealed) + decryptor.finalize()


def _open_gcm(key: bytes, iv: bytes, sealed: bytes) -> bytes:
    return AESGCM(key).decrypt(iv, sealed, None)


AES_BLOCK_LENGTH: Final = 16

FILE_CIPHERS: Final[Mapping[str, _FileCipher]] = {
    "aes256-ctr": _FileCipher(32, 16, 0, _open_ctr),  # ssh-keygen since 7.6
    "aes192-ctr": _FileCipher(24, 16, 0, _open_ctr),
    "aes128-ctr": _FileCipher(16, 16, 0, _open_ctr),
    "aes256-cbc": _FileCipher(32, 16, 0, _open_cbc),  # ssh-keygen 6.5 to 7.5
    "aes192-cbc": _FileCipher(24, 16, 0, _open_cbc),
    "aes128-cbc": _FileCipher(16, 16, 0, _open_cbc),
    "aes256-gcm@openssh.com": _FileCipher(32, 12, 16, _open_gcm),
    "aes128-gcm@openssh.com": _FileCipher(16, 12, 16, _open_gcm),
}


@dataclass(frozen=True, slots=True)
class _Protection:
    cipher: _FileCipher
    salt: bytes
    rounds: int

    def open(self, passphrase: bytes, sealed: bytes) -> bytes:
        """Return the private section; `InvalidTag` where the cipher notices a wrong passphrase."""
        cipher = self.cipher
        length = cipher.key_length + cipher.iv_length
        derived = bcrypt.kdf(passphrase, self.salt, length, self.rounds, ignore_few_rounds=True)
        return cipher.open(derived[: cipher.key_length], derived[cipher.key_length :], sealed)


@dataclass(frozen=True, slots=True)
class PrivateKeyFile:
    """A key file whose public key is known; `decrypt` gives the private key, with its comment."""

    public_key: PublicKey
    where: str
    _protection: _Protection | None = field(repr=False)
    _sealed: bytes = field(repr=False)

    @property
    def is_encrypted(self) -> bool:
        """Whether `decrypt` needs a passphrase."""
        return self._protection is not None

    def decrypt(self, passphrase: str | bytes | None = None) -> PrivateKey:
        """Return the private key; `WrongPassphrase`, or `ConfigError` if the file is damaged.

        A file that is not encrypted ignores the passphrase. Takes up to 4 s, see above.
        """
        section = self._sealed
        if self._protection is not None:
            if not passphrase:
                raise WrongPassphrase("the key needs its passphrase", where=self.where)
            if isinstance(passphrase, str):
                passphrase = passphrase.encode("utf-8", "surrogatepass")
            try:
                section = self._protection.open(passphrase, section)
            except InvalidTag as exc:
                raise self._wrong_passphrase() from exc
        try:
            private_key = self._read_section(Reader(section))
        except RemoteProtocolError as exc:
            raise ConfigError(f"the key is damaged: {exc}", where=self.where) from exc
        if private_key.public != self.public_key:
            raise ConfigError("its public and private key are not a pair", where=self.where)
        return private_key

    def _read_section(self, fields: Reader) -> PrivateKey:
        """PROTOCOL.key §3; the two check numbers are equal if the passphrase was right."""
        if fields.uint32() != fields.uint32():
            if self.is_encrypted:
                raise self._wrong_passphrase()
            raise ConfigError("the key is damaged: its two check numbers differ", where=self.where)
        private_key = read_private_key_untrusted(fields)
        comment = fields.string().decode("utf-8", "replace")
        padding = fields.rest()
        if padding != bytes(range(1, 256))[: len(padding)]:
            raise RemoteProtocolError("its padding is not 1, 2, 3, …")
        return dataclasses.replace(private_key, comment=comment)

    def _wrong_passphrase(self) -> WrongPassphrase:
        return WrongPassphrase("the passphrase is wrong", where=self.where)


def parse_private_key_file_untrusted(text: bytes, where: str = "") -> PrivateKeyFile:
    """Read the clear part of a key file; `ConfigError` says what is wrong and what to do.

    ``where`` is the file's name, for messages.
    """
    content = _unwrap(text, where)
    try:
        return _parse_content(Reader(content), where)
    except UnsupportedKeyError as exc:
        problem = f"keys of type {exc.algorithm} are not supported yet"
        raise ConfigError(problem, where=where, remedy=_MAKE_ONE) from exc
    except PublicKeyError as exc:
        raise ConfigError(f"the key is damaged: {exc}", where=where) from exc
    except RemoteProtocolError as exc:
        raise ConfigError(f"the file is damaged or cut off: {exc}", where=where) from exc


def encode_private_key_file(
    private_key: PrivateKey, comment: str = "", *, randbytes: Callable[[int], bytes] = os.urandom
) -> bytes:
    """Return an unencrypted file that ssh and `parse_private_key_file_untrusted` can read."""
    section = randbytes(4) * 2 + private_key.private_section()
    section += string(comment.encode("utf-8", "replace"))
    section += bytes(range(1, 1 + -len(section) % PLAIN_BLOCK_LENGTH))
    content = b"".join(
        (
            MAGIC,
            string(b"none"),  # cipher
            string(b"none"),  # key derivation
            string(b""),  # its options
            uint32(1),  # number of keys
            string(private_key.public.blob),
            string(section),
        )
    )
    encoded = base64.b64encode(content)
    lines = [encoded[at : at + LINE_LENGTH] for at in range(0, len(encoded), LINE_LENGTH)]
    return b"\n".join((BEGIN, *lines, END, b""))


# ---- the clear part, outside in ----------------------------------------------


def _unwrap(text: bytes, where: str) -> bytes:
    """Return what the base64 between the two lines holds.

    More lenient than ssh, which refuses CRLF and a missing last newline: neither can change a
    key.
    """
    if len(text) > MAXIMUM_FILE_BYTES:
        raise ConfigError("the file is too large to be a private key", where=where)
    text = text.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if not text.startswith(BEGIN):
        _refuse_format(text, where)
    body, found, _ = text[len(BEGIN) :].partition(END)
    if not found:
        raise ConfigError("the file is cut off: its END line is missing", where=where)
    try:
        content = base64.b64decode(b"".join(body.split()), validate=True)
    except ValueError as exc:
        raise ConfigError("the file is damaged: it is not base64", where=where) from exc
    if not content.startswith(MAGIC):
        raise ConfigError("the file is damaged: it does not hold openssh-key-v1", where=where)
    return content[len(MAGIC) :]


def _parse_content(fields: Reader, where: str) -> PrivateKeyFile:
    """PROTOCOL.key §1."""
    cipher_name = fields.string()
    kdf_name = fields.string()
    kdf_options = Reader(fields.string())
    number_of_keys = fields.uint32()
    if number_of_keys != 1:
        raise ConfigError(f"the file holds {number_of_keys} keys instead of one", where=where)
    public_key = parse_public_key_untrusted(fields.string())
    protection = _parse_protection(cipher_name, kdf_name, kdf_options, where)
    block_length, tag_length = PLAIN_BLOCK_LENGTH, 0
    if protection is not None:
        block_length, tag_length = AES_BLOCK_LENGTH, protection.cipher.tag_length
    section = fields.string()
    if not section or len(section) % block_length:
        raise RemoteProtocolError(f"a private section of {len(section)} bytes")
    sealed = section + fields.take(tag_length)
    fields.end()
    return PrivateKeyFile(public_key, where, protection, sealed)


def _parse_protection(
    cipher_name: bytes, kdf_name: bytes, options: Reader, where: str
) -> _Protection | None:
    file = _shell_name(where)
    if cipher_name == kdf_name == b"none":
        options.end()
        return None
    cipher = FILE_CIPHERS.get(cipher_name.decode("ascii", "replace"))
    if cipher is None:
        raise ConfigError(
            f"the file is encrypted with {printable(cipher_name, 64)}, which is not supported",
            where=where,
            remedy=f"`ssh-keygen -p -Z aes256-ctr -f {file}` changes that",
        )
    if kdf_name != b"bcrypt":
        raise ConfigError(
            f"its passphrase is derived with {printable(kdf_name, 64)}, which is not supported",
            where=where,
            remedy=f"`ssh-keygen -p -f {file}` changes that",
        )
    salt = options.string()
    rounds = options.uint32()
    options.end()
    if len(salt) not in SALT_LENGTHS:
        raise ConfigError(f"the file is damaged: a salt of {len(salt)} bytes", where=where)
    if not 1 <= rounds <= MAXIMUM_ROUNDS:
        raise ConfigError(
            f"its passphrase takes {rounds} rounds of bcrypt; 1 to {MAXIMUM_ROUNDS} are accepted",
            where=where,
            remedy=f"`ssh-keygen -p -a 100 -f {file}` changes that",
        )
    return _Protection(cipher, salt, rounds)


# ---- every other format ------------------------------------------------------

_CONVERT: Final = "`ssh-keygen -p -f {file}` converts it"
_IMPORT: Final = "`ssh-keygen -i -f {file}` converts it"
_PUTTYGEN: Final = "`puttygen {file} -O private-openssh-new -o NEWFILE` converts it"
_GIVE_PRIVATE: Final = "name the private key, usually the same name without .pub"

# First bytes of the file; what it is; the key type, where the format tells; the remedy.
_FOREIGN_FORMATS: Final = (
    (b"-----BEGIN RSA PRIVATE KEY-----", "an RSA key in old PEM format", "ssh-rsa", _CONVERT),
    (b"-----BEGIN DSA PRIVATE KEY-----", "a DSA key in old PEM format", "ssh-dss", _CONVERT),
    (b"-----BEGIN EC PRIVATE KEY-----", "an ECDSA key in old PEM format", "ecdsa-sha2", _CONVERT),
    (b"-----BEGIN EC PARAMETERS-----", "an ECDSA key in old PEM format", "ecdsa-sha2", _CONVERT),
    (b"-----BEGIN PRIVATE KEY-----", "a key in PKCS#8 format", "", _CONVERT),
    (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", "an encrypted key in PKCS#8 format", "", _CONVERT),
    (b"PuTTY-User-Key-File-", "a key in PuTTY format", "", _PUTTYGEN),
    (b"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY", "a key in SSH.COM format", "", _IMPORT),
    (b"---- BEGIN SSH2 PUBLIC KEY", "a public key in RFC 4716 format", "", _GIVE_PRIVATE),
    (b"-----BEGIN PUBLIC KEY-----", "a public key in PEM format", "", _GIVE_PRIVATE),
    (b"-----BEGIN RSA PUBLIC KEY-----", "a public key in PEM format", "", _GIVE_PRIVATE),
    (b"-----BEGIN CERTIFICATE-----", "an X.509 certificate", "", _GIVE_PRIVATE),
    (b"SSH PRIVATE KEY FILE FORMAT 1.1", "a key of SSH version 1", "ssh-rsa1", _MAKE_ONE),
    (b"ssh-", "a public key", "", _GIVE_PRIVATE),
    (b"ecdsa-sha2-", "a public key", "", _GIVE_PRIVATE),
    (b"sk-", "a public key", "", _GIVE_PRIVATE),
    (b"\xff\xfe", "UTF-16 text", "", "save it as plain text (UTF-8)"),
    (b"\xfe\xff", "UTF-16 text", "", "save it as plain text (UTF-8)"),
    (b"0\x82", "a key in binary DER format", "", "`openssl pkey -inform DER` makes it PEM"),
)


def _refuse_format(text: bytes, where: str) -> Never:
    """Say what the file is instead, and how to make one that can be used."""
    if not text:
        raise ConfigError("the file is empty", where=where)
    for prefix, what, key_type, template in _FOREIGN_FORMATS:
        if text.startswith(prefix):
            remedy = template.format(file=_shell_name(where))
            if key_type and key_type not in KEY_TYPES and template != _MAKE_ONE:
                remedy += f", but keys of that type are not supported yet: {_MAKE_ONE}"
            raise ConfigError(f"this is {what}", where=where, remedy=remedy)
    raise ConfigError("this is not a private key", where=where, remedy=_MAKE_ONE)


def _shell_name(where: str) -> str:
    return shlex.quote(where) if where else "FILE"
