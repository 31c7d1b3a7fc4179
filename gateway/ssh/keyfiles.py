"""Private key files: openssh-key-v1 (OpenSSH's PROTOCOL.key), PEM and PKCS#8.

A key file is the user's own text, so everything wrong with it is a `ConfigError` with a remedy,
never a protocol error. Every other format is refused by its name. The file is unwrapped at once,
which gives the public key of openssh-key-v1 and of every file that is not encrypted; the private
part is opened by `PrivateKeyFile.decrypt`. An encrypted PEM or PKCS#8 file does not show its public
key: it may stand in a .pub file beside it, see `PrivateKeyFile.with_public_key`.

Deriving a key from a passphrase is slow on purpose. bcrypt takes about 8 ms for a round on a 2-core
machine, so 0.13 s for the 16 rounds of OpenSSH 9.2, 0.2 s for today's default of 24, and 4 s for
the most that is accepted; the most for PKCS#8 is about as long. It lets other threads run
meanwhile; call `PrivateKeyFile.decrypt` in one.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import os
import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Never, Protocol

import bcrypt
from cryptography.exceptions import InternalError, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR

from gateway.errors import ConfigError, RemoteProtocolError, printable
from gateway.ssh.keys import (
    KEY_TYPES,
    KeySizeError,
    PublicKeyError,
    UnsupportedKeyError,
    parse_public_key_untrusted,
    read_private_key_untrusted,
)
from gateway.ssh.keytypes import private_wire
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
MAXIMUM_ITERATIONS: Final = 10_000_000  # of PBKDF2, about 4 s
MAXIMUM_SCRYPT_COST: Final = 1 << 21  # N times r times p: 256 MiB, about 1 s

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


class _Content(Protocol):
    """The private part of a file, in its format."""

    @property
    def is_encrypted(self) -> bool:
        """Whether ``open`` needs a passphrase."""

    def open(self, passphrase: bytes) -> PrivateKey:
        """Return the key; `InvalidTag` if the passphrase is wrong, else `RemoteProtocolError`."""


@dataclass(frozen=True, slots=True)
class PrivateKeyFile:
    """A key file; `decrypt` gives the private key, with its comment.

    ``public_key`` is None where the file does not show it before it is decrypted.
    """

    public_key: PublicKey | None
    where: str
    _content: _Content = field(repr=False)

    @property
    def is_encrypted(self) -> bool:
        """Whether `decrypt` needs a passphrase."""
        return self._content.is_encrypted

    def with_public_key(self, public_key: PublicKey) -> PrivateKeyFile:
        """Return the same file with what its .pub file says; `decrypt` checks that they fit."""
        return dataclasses.replace(self, public_key=public_key)

    def decrypt(self, passphrase: str | bytes | None = None) -> PrivateKey:
        """Return the private key; `WrongPassphrase`, or `ConfigError` if the file is damaged.

        A file that is not encrypted ignores the passphrase. Takes up to 4 s, see above.
        """
        if not self.is_encrypted:
            passphrase = b""
        elif not passphrase:
            raise WrongPassphrase("the key needs its passphrase", where=self.where)
        elif isinstance(passphrase, str):
            passphrase = passphrase.encode("utf-8", "surrogatepass")
        try:
            private_key = self._content.open(passphrase)
        except InvalidTag as exc:
            raise WrongPassphrase("the passphrase is wrong", where=self.where) from exc
        except RemoteProtocolError as exc:
            raise _explained(exc, self.where) from exc
        if self.public_key is not None and private_key.public != self.public_key:
            raise ConfigError("its public and private key are not a pair", where=self.where)
        return private_key


def parse_private_key_file_untrusted(text: bytes, where: str = "") -> PrivateKeyFile:
    """Read the clear part of a key file; `ConfigError` says what is wrong and what to do.

    ``where`` is the file's name, for messages.
    """
    if len(text) > MAXIMUM_FILE_BYTES:
        raise ConfigError("the file is too large to be a private key", where=where)
    text = text.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if not text.startswith((BEGIN, *_PEM_BEGINNINGS)):
        _refuse_format(text, where)
    try:
        if text.startswith(BEGIN):
            return _parse_content(Reader(_unwrap(text, where)), where)
        return _parse_pem(text, where)
    except PublicKeyError as exc:
        raise _explained(exc, where) from exc
    except RemoteProtocolError as exc:
        raise ConfigError(f"the file is damaged or cut off: {exc}", where=where) from exc


def _explained(error: RemoteProtocolError, where: str) -> ConfigError:
    """Say what is wrong with a key, and what to do about it."""
    match error:
        case UnsupportedKeyError(algorithm=algorithm) if algorithm in KEY_TYPES:
            return ConfigError(
                f"this belongs to a security key ({algorithm}), which only an agent can use",
                where=where,
                remedy=f"`ssh-add {_shell_name(where)}` adds it to the agent",
            )
        case UnsupportedKeyError(algorithm=algorithm):
            problem = f"keys of type {algorithm} are not supported"
            return ConfigError(problem, where=where, remedy=_MAKE_ONE)
        case KeySizeError():
            return ConfigError(str(error), where=where, remedy=_MAKE_ONE)
    return ConfigError(f"the key is damaged: {error}", where=where)


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


# ---- openssh-key-v1, outside in ----------------------------------------------


@dataclass(frozen=True, slots=True)
class _OpensshContent:
    protection: _Protection | None
    sealed: bytes

    @property
    def is_encrypted(self) -> bool:
        return self.protection is not None

    def open(self, passphrase: bytes) -> PrivateKey:
        """PROTOCOL.key §3; the two check numbers are equal if the passphrase was right."""
        section = self.sealed
        if self.protection is not None:
            section = self.protection.open(passphrase, section)
        fields = Reader(section)
        if fields.uint32() != fields.uint32():
            if self.is_encrypted:
                raise InvalidTag
            raise RemoteProtocolError("its two check numbers differ")
        private_key = read_private_key_untrusted(fields)
        comment = fields.string().decode("utf-8", "replace")
        padding = fields.rest()
        if padding != bytes(range(1, 256))[: len(padding)]:
            raise RemoteProtocolError("its padding is not 1, 2, 3, …")
        return dataclasses.replace(private_key, comment=comment)


def _unwrap(text: bytes, where: str) -> bytes:
    """Return what the base64 between the two lines holds.

    More lenient than ssh, which refuses CRLF and a missing last newline: neither can change a
    key.
    """
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
    if KEY_TYPES[public_key.algorithm].parse_private is None:
        raise UnsupportedKeyError("only a handle", public_key.algorithm)
    protection = _parse_protection(cipher_name, kdf_name, kdf_options, where)
    block_length, tag_length = PLAIN_BLOCK_LENGTH, 0
    if protection is not None:
        block_length, tag_length = AES_BLOCK_LENGTH, protection.cipher.tag_length
    section = fields.string()
    if not section or len(section) % block_length:
        raise RemoteProtocolError(f"a private section of {len(section)} bytes")
    sealed = section + fields.take(tag_length)
    fields.end()
    return PrivateKeyFile(public_key, where, _OpensshContent(protection, sealed))


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


# ---- PEM (RFC 1421, PKCS#1, SEC 1) and PKCS#8 (RFC 5958) ----------------------

_PEM_LABELS: Final = (
    b"RSA PRIVATE KEY",
    b"EC PRIVATE KEY",
    b"PRIVATE KEY",
    b"ENCRYPTED PRIVATE KEY",
)
_EC_PARAMETERS: Final = b"-----BEGIN EC PARAMETERS-----"  # written by "openssl ecparam -genkey"
_EC_BEGINNING: Final = b"-----BEGIN EC PRIVATE KEY-----"
_PEM_BEGINNINGS: Final = (
    _EC_PARAMETERS,
    *(b"-----BEGIN " + label + b"-----" for label in _PEM_LABELS),
)
_PEM_ENCRYPTED: Final = re.compile(rb"\s*Proc-Type: *4,ENCRYPTED[ \t]*\r?\n")
_DEK_INFO: Final = re.compile(
    rb"DEK-Info: *([A-Za-z0-9-]+),([0-9A-Fa-f]+)[ \t]*\r?\n[ \t]*\r?\n([A-Za-z0-9+/=\s]*)"
)
_DEK_IV_DIGITS: Final[Mapping[bytes, int]] = {  # the ciphers of RFC 1423 that are supported
    b"AES-128-CBC": 32,
    b"AES-256-CBC": 32,
    b"DES-EDE3-CBC": 16,
}


@dataclass(frozen=True, slots=True)
class _PemContent:
    text: bytes
    is_encrypted: bool

    def open(self, passphrase: bytes) -> PrivateKey:
        """Have the library read it; what it finds passes through our own checks."""
        # Few files are PEM, and this module costs every start as much as all our messages.
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            load_pem_private_key,
        )

        try:
            key = load_pem_private_key(
                self.text,
                passphrase if self.is_encrypted else None,
                unsafe_skip_rsa_key_validation=True,
            )
        except (ValueError, TypeError) as exc:
            if self.is_encrypted:
                raise InvalidTag from exc
            raise RemoteProtocolError("it cannot be decoded") from exc
        except InternalError as exc:  # an error inside OpenSSL
            raise RemoteProtocolError("it cannot be decoded") from exc
        except UnsupportedAlgorithm as exc:
            raise UnsupportedKeyError("of a kind that is not supported", "unknown") from exc
        return read_private_key_untrusted(Reader(private_wire(key)))


def _parse_pem(text: bytes, where: str) -> PrivateKeyFile:
    if text.startswith(_EC_PARAMETERS):
        text = b"".join(text.partition(_EC_BEGINNING)[1:])
    label = text[len(b"-----BEGIN ") :].partition(b"-----")[0]
    end = b"-----END " + label + b"-----"
    body, found, _ = text.partition(end)
    if not found or label not in _PEM_LABELS:
        raise ConfigError("the file is cut off: its END line is missing", where=where)
    body = body[len(b"-----BEGIN ") + len(label) + len(b"-----") :]
    is_encrypted = label.startswith(b"ENCRYPTED")
    headers: tuple[bytes, ...] = ()
    if is_encrypted:
        _check_cost(body, where)
    elif found_type := _PEM_ENCRYPTED.match(body):
        is_encrypted = True
        headers, body = _read_dek_info(body[found_type.end() :], where)
    lines = (b"-----BEGIN " + label + b"-----", *headers, *map(bytes.strip, body.splitlines()), end)
    content = _PemContent(b"\n".join((*lines, b"")), is_encrypted)
    return PrivateKeyFile(None if is_encrypted else content.open(b"").public, where, content)


def _read_dek_info(text: bytes, where: str) -> tuple[tuple[bytes, ...], bytes]:
    """Return the headers of an encrypted key in the one form they can have, and what follows.

    The library takes the length of the initialisation vector on trust.
    """
    found = _DEK_INFO.fullmatch(text)
    if found is None:
        raise ConfigError("the file is damaged: its DEK-Info is malformed", where=where)
    cipher, iv, body = found.groups()
    if cipher not in _DEK_IV_DIGITS:
        raise ConfigError(
            f"the file is encrypted with {printable(cipher, 64)}, which is not supported",
            where=where,
            remedy=f"`ssh-keygen -p -f {_shell_name(where)}` changes that",
        )
    if len(iv) != _DEK_IV_DIGITS[cipher]:
        raise ConfigError("the file is damaged: its DEK-Info is malformed", where=where)
    return (b"Proc-Type: 4,ENCRYPTED", b"DEK-Info: " + cipher + b"," + iv.upper(), b""), body


_DER_INTEGER: Final = 0x02
_DER_SEQUENCE: Final = 0x30
_SCRYPT: Final = bytes.fromhex("2b06010401da47040b")  # RFC 7914 §7: 1.3.6.1.4.1.11591.4.11


def _check_cost(encoded: bytes, where: str) -> None:
    """Refuse a PKCS#8 file whose passphrase would take minutes (RFC 8018, appendix A).

    The file is SEQUENCE { SEQUENCE { scheme, parameters }, … }. The parameters are those of the
    derivation, a salt and then its numbers, or for PBES2 they are SEQUENCE { derivation, its
    parameters }, ….
    """
    try:
        content = base64.b64decode(b"".join(encoded.split()), validate=True)
    except ValueError as exc:
        raise ConfigError("the file is damaged: it is not base64", where=where) from exc
    _, file = _der(Reader(content))
    _, algorithm = _der(file)
    _, name = _der(algorithm)
    _, parameters = _der(algorithm)
    tag, first = _der(parameters)
    if tag == _DER_SEQUENCE:
        _, name = _der(first)
        _, parameters = _der(first)
        _der(parameters)  # the salt
    numbers = []
    while parameters.remaining:
        tag, value = _der(parameters)
        if tag != _DER_INTEGER:
            break
        numbers.append(int.from_bytes(value.rest(), "big"))
    is_scrypt = name.rest() == _SCRYPT
    if not numbers or 0 in numbers or (is_scrypt and not _is_power_of_two(numbers[0])):
        raise RemoteProtocolError("the numbers of its key derivation make no sense")
    cost = math.prod(numbers[:3]) if is_scrypt else numbers[0]
    if cost > (MAXIMUM_SCRYPT_COST if is_scrypt else MAXIMUM_ITERATIONS):
        raise ConfigError(
            "to derive its key from the passphrase would take too long",
            where=where,
            remedy=f"`openssl pkcs8 -topk8 -in {_shell_name(where)} -out NEWFILE` changes that",
        )


def _is_power_of_two(number: int) -> bool:
    return number > 1 and number & (number - 1) == 0


def _der(fields: Reader) -> tuple[int, Reader]:
    """Take one DER value: its tag, and what is in it (X.690 §8.1)."""
    tag = fields.byte()
    length = fields.byte()
    if length & 0x80:
        length = int.from_bytes(fields.take(length & 0x7F), "big")
    return tag, Reader(fields.take(length))


# ---- every other format ------------------------------------------------------

_IMPORT: Final = "`ssh-keygen -i -f {file}` converts it"
_PUTTYGEN: Final = "`puttygen {file} -O private-openssh-new -o NEWFILE` converts it"
_GIVE_PRIVATE: Final = "name the private key, usually the same name without .pub"

# First bytes of the file; what it is; the remedy.
_FOREIGN_FORMATS: Final = (
    (b"-----BEGIN DSA PRIVATE KEY-----", "a DSA key in old PEM format", _MAKE_ONE),
    (b"PuTTY-User-Key-File-", "a key in PuTTY format", _PUTTYGEN),
    (b"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY", "a key in SSH.COM format", _IMPORT),
    (b"---- BEGIN SSH2 PUBLIC KEY", "a public key in RFC 4716 format", _GIVE_PRIVATE),
    (b"-----BEGIN PUBLIC KEY-----", "a public key in PEM format", _GIVE_PRIVATE),
    (b"-----BEGIN RSA PUBLIC KEY-----", "a public key in PEM format", _GIVE_PRIVATE),
    (b"-----BEGIN CERTIFICATE-----", "an X.509 certificate", _GIVE_PRIVATE),
    (b"SSH PRIVATE KEY FILE FORMAT 1.1", "a key of SSH version 1", _MAKE_ONE),
    (b"ssh-", "a public key", _GIVE_PRIVATE),
    (b"ecdsa-sha2-", "a public key", _GIVE_PRIVATE),
    (b"sk-", "a public key", _GIVE_PRIVATE),
    (b"\xff\xfe", "UTF-16 text", "save it as plain text (UTF-8)"),
    (b"\xfe\xff", "UTF-16 text", "save it as plain text (UTF-8)"),
    (b"0\x82", "a key in binary DER format", "`openssl pkey -inform DER` makes it PEM"),
)


def _refuse_format(text: bytes, where: str) -> Never:
    """Say what the file is instead, and how to make one that can be used."""
    if not text:
        raise ConfigError("the file is empty", where=where)
    for prefix, what, template in _FOREIGN_FORMATS:
        if text.startswith(prefix):
            remedy = template.format(file=_shell_name(where))
            raise ConfigError(f"this is {what}", where=where, remedy=remedy)
    raise ConfigError("this is not a private key", where=where, remedy=_MAKE_ONE)


def _shell_name(where: str) -> str:
    return shlex.quote(where) if where else "FILE"
