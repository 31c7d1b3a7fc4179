"""Certificates for host and user keys: OpenSSH's PROTOCOL.certkeys.

A `Certificate` is a `PublicKey` whose blob is the whole certificate, so that it goes wherever a key
goes: it is offered, compared and asked for a signature in the same way, under algorithm names that
end in -cert-v01@openssh.com. The signatures made with it are those of the key inside.

To parse one says that it is well-formed and that its CA has signed it; nothing more. Whether that
CA is trusted is for known_hosts and authorized_keys to say, and whether the certificate is good for
this host, this user and this moment for `check_for_host` and `check_for_user`. The CA's key is read
by a parser that knows no certificates, so none can be signed by another.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from gateway.errors import ConfigError, RemoteProtocolError, printable
from gateway.ssh.keys import (
    KEY_TYPES,
    MAXIMUM_BLOB_LENGTH,
    KeySizeError,
    PublicKey,
    PublicKeyError,
    match_pattern,
    numbered_lines,
    parse_public_key_untrusted,
    read_key_name,
    read_key_text,
)
from gateway.ssh.keytypes import certificate_name
from gateway.ssh.wire import Reader, string

if TYPE_CHECKING:
    from collections.abc import Collection

    from gateway.ssh.keys import PrivateKey

# As OpenSSH.
MAXIMUM_PRINCIPALS: Final = 256  # sshkey.h, SSHKEY_CERT_MAX_PRINCIPALS

# Our own choices.
MAXIMUM_OPTIONS: Final = 256
MAXIMUM_CERTIFICATE_FILE_BYTES: Final = 1 << 16

_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class CertificateError(RemoteProtocolError):
    """A certificate is well-formed but not good for this: a sentence that says why."""


class CertificateKind(IntEnum):
    """What a certificate is for."""

    USER = 1
    HOST = 2


@dataclass(frozen=True, slots=True)
class Certificate(PublicKey):
    """A public key that a CA has signed, with what the CA says about it.

    ``algorithm`` and ``blob`` are the certificate's own; ``key`` is the plain key inside. Times are
    seconds since 1970: valid from ``valid_after`` on and no more at ``valid_before``. The options
    are in their order, with their undecoded values.
    """

    key: PublicKey = field(compare=False)
    serial: int = field(compare=False)
    kind: CertificateKind = field(compare=False)
    key_id: str = field(compare=False)
    principals: tuple[str, ...] = field(compare=False)
    valid_after: int = field(compare=False)
    valid_before: int = field(compare=False)
    critical_options: tuple[tuple[str, bytes], ...] = field(compare=False)
    extensions: tuple[tuple[str, bytes], ...] = field(compare=False)
    ca_key: PublicKey = field(compare=False)
    ca_signature_algorithm: str = field(compare=False)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the key inside, as ssh prints it for certificates too."""
        return self.key.fingerprint

    @property
    def signature_algorithms(self) -> tuple[str, ...]:
        """The names under which this certificate can be agreed on, the preferred one first."""
        return tuple(map(certificate_name, self.key.signature_algorithms))

    @property
    def description(self) -> str:
        """What the certificate is called, safe to print."""
        return f'the certificate "{printable(self.key_id, 64)}" (serial {self.serial})'


@dataclass(frozen=True, slots=True)
class UserCertificateOptions:
    """What a certificate allows its user: PROTOCOL.certkeys, critical options and extensions.

    ``source_addresses`` are the only networks to log in from; None is from anywhere, and an empty
    tuple from nowhere.
    """

    force_command: str | None
    source_addresses: tuple[_Network, ...] | None
    verification_required: bool
    touch_required: bool
    port_forwarding: bool
    pty: bool

    def allows_address(self, address: str) -> bool:
        """Say whether the user may log in from this address, which has no port."""
        if self.source_addresses is None:
            return True
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self.source_addresses)


# ---- reading -----------------------------------------------------------------

_PLAIN_TYPES: Final = {certificate_name(name): kind for name, kind in KEY_TYPES.items()}


def parse_key_or_certificate_untrusted(blob: bytes) -> PublicKey:
    """Return the key or the `Certificate` in ``blob``: what a peer may show as its key.

    The errors are those of `parse_public_key_untrusted`.
    """
    name = read_key_name(Reader(blob))
    if is_certificate_type(name):
        return parse_certificate_untrusted(blob)
    return parse_public_key_untrusted(blob)


def is_certificate_type(name: str) -> bool:
    """Say whether this is the type of a certificate that we can read."""
    return name in _PLAIN_TYPES


def parse_certificate_untrusted(blob: bytes) -> Certificate:
    """Return the certificate in ``blob``, signed by the CA that it names.

    `KeySizeError` if a key is too short or too long, `PublicKeyError` if it is malformed, if its
    signature is wrong or of an algorithm with SHA-1, or if it is no certificate.
    """
    if len(blob) > MAXIMUM_BLOB_LENGTH:
        raise PublicKeyError(f"a certificate of {len(blob)} bytes")
    name = read_key_name(Reader(blob))
    try:
        return _parse_fields(name, blob)
    except KeySizeError:
        raise
    except RemoteProtocolError as exc:
        raise PublicKeyError(f"a malformed {name}: {exc}", name) from exc


def _parse_fields(name: str, blob: bytes) -> Certificate:
    """PROTOCOL.certkeys, "New public key formats"; the plain key's blob is put together again."""
    plain_type = _PLAIN_TYPES.get(name)
    if plain_type is None:
        raise PublicKeyError("it is no certificate of a type that is supported")
    fields = Reader(blob)
    fields.string()  # the name
    fields.string()  # the nonce
    start = len(blob) - fields.remaining
    verifier = plain_type.parse_public(fields)
    end = len(blob) - fields.remaining
    plain_blob = string(plain_type.name.encode()) + blob[start:end]
    serial = fields.uint64()
    kind = _read_kind(fields)
    key_id = fields.loose_text()
    principals = _read_principals(Reader(fields.string()))
    valid_after, valid_before = fields.uint64(), fields.uint64()
    critical_options = _read_options("critical option", Reader(fields.string()))
    extensions = _read_options("extension", Reader(fields.string()))
    fields.string()  # reserved
    ca_key = _read_ca_key(fields.string())
    signed = blob[: len(blob) - fields.remaining]
    signature = fields.string()
    fields.end()
    ca_key.verify(signature, signed)
    return Certificate(
        name,
        blob,
        verifier,
        key=PublicKey(plain_type.name, plain_blob, verifier),
        serial=serial,
        kind=kind,
        key_id=key_id,
        principals=principals,
        valid_after=valid_after,
        valid_before=valid_before,
        critical_options=critical_options,
        extensions=extensions,
        ca_key=ca_key,
        ca_signature_algorithm=Reader(signature).text(),
    )


def _read_kind(fields: Reader) -> CertificateKind:
    number = fields.uint32()
    try:
        return CertificateKind(number)
    except ValueError:
        raise PublicKeyError(f"it is of kind {number}, neither user nor host") from None


def _read_principals(fields: Reader) -> tuple[str, ...]:
    principals: list[str] = []
    while fields.remaining:
        if len(principals) == MAXIMUM_PRINCIPALS:
            raise PublicKeyError(f"more than {MAXIMUM_PRINCIPALS} principals")
        principals.append(fields.text())
    return tuple(principals)


def _read_options(what: str, fields: Reader) -> tuple[tuple[str, bytes], ...]:
    """Names in ascending order, each once; otherwise two readers could see two certificates."""
    options: list[tuple[str, bytes]] = []
    while fields.remaining:
        if len(options) == MAXIMUM_OPTIONS:
            raise PublicKeyError(f"more than {MAXIMUM_OPTIONS} {what}s")
        name, value = fields.text(), fields.string()
        if options and name.encode() <= options[-1][0].encode():
            raise PublicKeyError(f"the {what} {printable(name, 64)} is out of order or repeated")
        options.append((name, value))
    return tuple(options)


def _read_ca_key(blob: bytes) -> PublicKey:
    if read_key_name(Reader(blob)) in _PLAIN_TYPES:
        raise PublicKeyError("it is signed by a certificate, not by a key")
    return parse_public_key_untrusted(blob)


# ---- is it good for this? ----------------------------------------------------


def check_for_host(certificate: Certificate, host: str, now_s: float) -> None:
    """Raise `CertificateError` unless it is good for ``host``, a name in lower case, no port.

    As sshkey_cert_check_host: a principal may hold wildcards. Stricter than OpenSSH before 10.3:
    without any principal it is good for no host.
    """
    _check_kind_and_time(certificate, CertificateKind.HOST, now_s)
    for name, _ in certificate.critical_options:
        raise CertificateError(
            f"{certificate.description} has the critical option {printable(name, 64)}, "
            f"which is unknown for hosts"
        )
    if not any(match_pattern(host, principal) for principal in certificate.principals):
        raise _wrong_principal(certificate, printable(host))


def check_for_user(
    certificate: Certificate, accepted_principals: Collection[str], now_s: float
) -> UserCertificateOptions:
    """Return what the certificate allows; `CertificateError` unless a principal is accepted.

    Principals are compared whole, as they are: no wildcard, and a comma is a character like others
    (CVE-2026-35414). Without any principal it is good for nobody (CVE-2024-7594).
    """
    _check_kind_and_time(certificate, CertificateKind.USER, now_s)
    options = _user_options(certificate)
    if not any(principal in accepted_principals for principal in certificate.principals):
        raise _wrong_principal(certificate, " or ".join(map(printable, accepted_principals)))
    return options


def _check_kind_and_time(certificate: Certificate, kind: CertificateKind, now_s: float) -> None:
    what = certificate.description
    if certificate.kind is not kind:
        raise CertificateError(f"{what} is not for {kind.name.lower()}s")
    if now_s < certificate.valid_after:
        raise CertificateError(f"{what} is not valid yet")
    if now_s >= certificate.valid_before:
        raise CertificateError(f"{what} has expired")


def _wrong_principal(certificate: Certificate, wanted: str) -> CertificateError:
    names = printable(", ".join(certificate.principals)) or "nobody"
    return CertificateError(f"{certificate.description} is for {names}, not for {wanted}")


def _user_options(certificate: Certificate) -> UserCertificateOptions:
    """An unknown critical option refuses the certificate, an unknown extension means nothing."""
    force_command: str | None = None
    source_addresses: tuple[_Network, ...] | None = None
    verification_required = False
    for name, data in certificate.critical_options:
        try:
            if name == "force-command":
                force_command = _option_text(data)
            elif name == "source-address":
                source_addresses = _parse_networks(_option_text(data))
            elif name == "verify-required" and not data:
                verification_required = True
            else:
                raise ValueError("is unknown")
        except (ValueError, RemoteProtocolError) as exc:
            raise CertificateError(
                f"the critical option {printable(name, 64)} of {certificate.description} {exc}"
            ) from exc
    extensions = {name for name, _ in certificate.extensions}
    return UserCertificateOptions(
        force_command=force_command,
        source_addresses=source_addresses,
        verification_required=verification_required,
        touch_required="no-touch-required" not in extensions,
        port_forwarding="permit-port-forwarding" in extensions,
        pty="permit-pty" in extensions,
    )


def _option_text(data: bytes) -> str:
    fields = Reader(data)
    text = fields.text()
    fields.end()
    return text


_NETWORK: Final = re.compile(r"[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?", re.ASCII)


def _parse_networks(text: str) -> tuple[_Network, ...]:
    """Return the networks of "address/length,…" (addr_match_cidr_list); "" is none at all."""
    networks = []
    for word in text.split(",") if text else ():
        if _NETWORK.fullmatch(word) is None:
            raise ValueError(f"is not a list of networks: {printable(text)}")
        try:
            networks.append(ipaddress.ip_network(word))
        except ValueError as exc:
            raise ValueError(f"is not a list of networks: {printable(text)}") from exc
    return tuple(networks)


# ---- our own certificates ----------------------------------------------------


def with_certificate(private_key: PrivateKey, certificate: Certificate) -> PrivateKey:
    """Return the private key with ``certificate`` as its public half.

    `ConfigError` if the certificate is for another key.
    """
    if certificate.key.blob != private_key.public.blob:
        raise ConfigError(
            f"{certificate.description} is for the key {certificate.fingerprint}, "
            f"not for {private_key.public.fingerprint}"
        )
    return replace(private_key, public=certificate)


def parse_public_key_file_untrusted(text: bytes, where: str = "") -> PublicKey:
    """Return the key or certificate of a .pub file; `ConfigError` says what is wrong.

    The first line that is neither blank nor a comment counts. ``where`` is the file's name.
    """
    if len(text) > MAXIMUM_CERTIFICATE_FILE_BYTES:
        raise ConfigError("the file is too large to be a public key", where=where)
    for _, line in numbered_lines(text, where):
        if line.strip(" \t") and not line.lstrip(" \t").startswith("#"):
            try:
                _, blob, _ = read_key_text(line)
                return parse_key_or_certificate_untrusted(blob)
            except RemoteProtocolError as exc:
                raise ConfigError(f"the public key cannot be used: {exc}", where=where) from exc
    raise ConfigError("the file holds no public key", where=where)
