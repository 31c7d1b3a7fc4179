"""Which user keys may log in: sshd(8), AUTHORIZED_KEYS FILE FORMAT.

The rule above all others: a line that is not understood completely lets nobody in. An option that
cannot be honoured here makes its key useless rather than free, and the same key further down stays
useless too, for sshd would have taken the first line and its restriction.

Read as OpenSSH does it: auth_check_authkey_line in auth2-pubkeyfile.c, sshkey_advance_past_options
in authfile.c and sshauthopt_parse in auth-options.c.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from gateway.errors import ConfigError, RemoteProtocolError, printable
from gateway.ssh.certificates import (
    Certificate,
    CertificateError,
    UserCertificateOptions,
    check_for_user,
    is_certificate_type,
)
from gateway.ssh.keys import (
    UnsupportedKeyError,
    numbered_lines,
    parse_public_key_untrusted,
    read_key_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.ssh.keys import PublicKey

# As OpenSSH.
MAXIMUM_HOST_LENGTH: Final = 1024  # NI_MAXHOST - 1

# Our own choices.
MAXIMUM_LINE_LENGTH: Final = 8192
MAXIMUM_KEYS: Final = 10_000

# Options about things that do not exist here: there is no shell, no pty, no agent, no X11.
_WITHOUT_EFFECT: Final = frozenset(
    prefix + name
    for prefix in ("", "no-")
    for name in ("pty", "x11-forwarding", "agent-forwarding", "user-rc")
)

# Options of OpenSSH that would restrict or change something and are not done here.
_NOT_SUPPORTED: Final = frozenset(
    {
        "command",
        "environment",
        "expiry-time",
        "from",
        "no-touch-required",
        "permitlisten",
        "touch-required",
        "tunnel",
        "verify-required",
        "no-verify-required",
    }
)

# Word of options: blanks only inside quotes, where \" does not end them. Both patterns are
# possessive, so that no second reading of the same text is ever tried.
_OPTIONS: Final = re.compile(r'(?>\\"|"(?>\\"|[^"])*+"|[^ \t"])*+')
_OPTION: Final = re.compile(r'([A-Za-z0-9@._-]++)(?:="((?>\\"|[^"])*+)")?+')
_KEY_TYPE_PREFIXES: Final = ("ssh-", "ecdsa-", "sk-", "rsa-", "webauthn-")  # no option starts so


@dataclass(frozen=True, slots=True)
class AuthorizedKey:
    """A key that may log in, and what it is limited to.

    ``permit_open`` lists the only (host, port) pairs that may be opened, with "*" for every host or
    port; None is no limit. ``port_forwarding`` False forbids forwarding in both directions.

    With ``cert_authority`` the key itself lets nobody in, only certificates that it signed; they
    must name one of ``principals``, or the user where it is None.
    """

    key: PublicKey
    comment: str
    permit_open: tuple[tuple[str, str], ...] | None
    port_forwarding: bool
    line: int
    options: tuple[tuple[str, str | None], ...]
    cert_authority: bool = False
    principals: tuple[str, ...] | None = None

    @property
    def tunnel_forwarding(self) -> bool:
        """Whether a tun device may be asked for: no, if anything limits what may be reached."""
        return self.port_forwarding and self.permit_open is None


@dataclass(frozen=True, slots=True)
class AuthorizedKeys:
    """The usable lines of one file, and one sentence for each that is not usable."""

    entries: tuple[AuthorizedKey, ...]
    problems: tuple[str, ...]
    _by_blob: Mapping[bytes, AuthorizedKey] = field(repr=False, compare=False)

    @classmethod
    def of(cls, entries: Iterable[AuthorizedKey], problems: Iterable[str] = ()) -> Self:
        """Return these lines as one list, in which the first line of a key counts."""
        listed = tuple(entries)
        by_blob: dict[bytes, AuthorizedKey] = {}
        for entry in listed:
            if not entry.cert_authority:
                by_blob.setdefault(entry.key.blob, entry)
        return cls(listed, tuple(problems), by_blob)

    def find(self, key: PublicKey) -> AuthorizedKey | None:
        """Return the first line with this key; never one for a CA, and none for a certificate."""
        return self._by_blob.get(key.blob)

    def find_authority(
        self, certificate: Certificate, user_name: str, now_s: float
    ) -> tuple[AuthorizedKey, UserCertificateOptions]:
        """Return the first line whose CA lets this user in, and what the certificate allows.

        The limits of both hold. `CertificateError` says why there is none; the user's address is
        left to `UserCertificateOptions.allows_address`.
        """
        problem = CertificateError(f"the CA of {certificate.description} is not in authorized_keys")
        for entry in self.entries:
            if entry.cert_authority and entry.key.blob == certificate.ca_key.blob:
                accepted = (user_name,) if entry.principals is None else entry.principals
                try:
                    return entry, check_for_user(certificate, accepted, now_s)
                except CertificateError as exc:
                    problem = exc
        raise problem


def parse_authorized_keys(text: str | bytes, where: str) -> AuthorizedKeys:
    """Read a file's text; only one of absurd size raises `ConfigError`.

    ``where`` is the file's name, for the problems.
    """
    entries: list[AuthorizedKey] = []
    problems: list[str] = []
    refused: dict[bytes, int] = {}  # keys whose first line cannot be honoured
    for number, line in numbered_lines(text, where):
        try:
            entry = _parse_line(number, line, refused)
            if entry is not None and len(entries) == MAXIMUM_KEYS:
                raise ValueError(f"more than {MAXIMUM_KEYS} keys")
        except (ValueError, RemoteProtocolError) as exc:
            problems.append(f"{printable(where)}, line {number}: {exc}, key ignored")
        else:
            if entry is not None:
                entries.append(entry)
    return AuthorizedKeys.of(entries, problems)


def parse_authorized_key(text: str) -> AuthorizedKey:
    """Read one line that has to be a key. `ConfigError` says what is wrong."""
    try:
        entry = None if "\n" in text else _parse_line(1, text, {})
    except (ValueError, RemoteProtocolError) as exc:
        raise ConfigError(str(exc)) from exc
    if entry is None:
        raise ConfigError("this is not one line with a key")
    return entry


def _parse_line(number: int, text: str, refused: dict[bytes, int]) -> AuthorizedKey | None:
    """Return the key, or None for a blank line or a comment; ValueError says what is wrong."""
    if len(text) > MAXIMUM_LINE_LENGTH:
        raise ValueError(f"longer than {MAXIMUM_LINE_LENGTH} characters")
    if "\0" in text:
        raise ValueError("holds a NUL")
    text = text.strip(" \t")
    if not text or text.startswith("#"):
        return None
    option_text = ""
    if not text.startswith(_KEY_TYPE_PREFIXES):
        option_text = _options_word(text)
        text = text[len(option_text) :]
    name, blob, comment = read_key_text(text)
    if is_certificate_type(name):
        raise ValueError("a certificate cannot stand here, only its key or its CA's")
    try:
        key = parse_public_key_untrusted(blob)
    except UnsupportedKeyError as exc:
        raise ValueError(f"keys of type {name} are not supported") from exc
    if blob in refused:
        raise ValueError(f"line {refused[blob]} has the same key with other options")
    try:
        options = _split_options(option_text)
        permit_open, port_forwarding = _apply_options(options)
        principals = _principals(options)
    except ValueError:
        refused[blob] = number
        raise
    cert_authority = ("cert-authority", None) in options
    return AuthorizedKey(
        key, comment, permit_open, port_forwarding, number, options, cert_authority, principals
    )


def _options_word(text: str) -> str:
    """Return the options at the front of ``text``, up to the first blank that is not in quotes."""
    found = _OPTIONS.match(text)
    end = found.end() if found else 0
    if text[end : end + 1] == '"':
        raise ValueError("a quote is not closed")
    return text[:end]


def _split_options(text: str) -> tuple[tuple[str, str | None], ...]:
    """Return names in lower case with their values, without quotes, or None."""
    options: list[tuple[str, str | None]] = []
    at = 0
    while text:
        found = _OPTION.match(text, at)
        if found is None:
            raise ValueError(f"malformed options {printable(text, 64)}")
        name, value = found.groups()
        options.append((name.lower(), None if value is None else value.replace('\\"', '"')))
        at = found.end()
        if at == len(text):
            break
        if text[at] != ",":
            raise ValueError(f"malformed option {printable(name, 64)}")
        at += 1
    return tuple(options)


def _apply_options(
    options: tuple[tuple[str, str | None], ...],
) -> tuple[tuple[tuple[str, str], ...] | None, bool]:
    """Return ``permit_open`` and ``port_forwarding``; later options win, as in sshd."""
    permit_open: list[tuple[str, str]] = []
    port_forwarding = True
    for name, value in options:
        if name == "permitopen" and value is not None:
            permit_open.append(_parse_permit_open(value))
        elif name == "principals" and value is not None:
            pass  # see _principals
        elif name in _NOT_SUPPORTED:
            raise ValueError(f"option {name} is not supported yet")
        elif value is not None or name in {"permitopen", "principals"}:
            raise ValueError(f"option {printable(name, 64)} is unknown or misused")
        elif name in {"restrict", "no-port-forwarding"}:
            port_forwarding = False
        elif name == "port-forwarding":
            port_forwarding = True
        elif name != "cert-authority" and name not in _WITHOUT_EFFECT:
            raise ValueError(f"option {printable(name, 64)} is unknown")
    return tuple(permit_open) or None, port_forwarding


def _principals(options: tuple[tuple[str, str | None], ...]) -> tuple[str, ...] | None:
    """Return the principals that a CA's line names, or None; only a CA's may name any."""
    values = [value for name, value in options if name == "principals" and value is not None]
    if not values:
        return None
    if len(values) > 1:
        raise ValueError("option principals stands twice")
    if ("cert-authority", None) not in options:
        raise ValueError("option principals without cert-authority")
    principals = tuple(values[0].split(","))
    if "" in principals:
        raise ValueError("option principals has an empty name")
    return principals


_HOST_AND_PORT: Final = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:/]+)):(\*|[0-9]{1,5})", re.ASCII)
_BLANK_OR_CONTROL: Final = re.compile(r"[\x00-\x20\x7f]")


def _parse_permit_open(value: str) -> tuple[str, str]:
    """Return host and port of "host:port", "[IPv6]:port" or with "*" for either."""
    found = _HOST_AND_PORT.fullmatch(value)
    if found is None or _BLANK_OR_CONTROL.search(value):
        raise ValueError(f'permitopen="{printable(value, 64)}" is not host:port')
    host = found[1] or found[2]
    port = found[3]
    if len(host) > MAXIMUM_HOST_LENGTH or (port != "*" and not 1 <= int(port) <= 65535):
        raise ValueError(f'permitopen="{printable(value, 64)}" is not host:port')
    return host, port if port == "*" else str(int(port))
