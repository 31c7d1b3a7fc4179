"""Which user keys may log in: sshd(8), AUTHORIZED_KEYS FILE FORMAT.

The rule above all others: a line that is not understood completely lets nobody in. An option that
cannot be honoured here makes its key useless rather than free, and the same key further down stays
useless too, for sshd would have taken the first line and its restriction. A line that is understood
and says no, by from= or expiry-time=, is passed over, as sshd does it.

Read as OpenSSH does it: auth_check_authkey_line in auth2-pubkeyfile.c, sshkey_advance_past_options
in authfile.c, sshauthopt_parse in auth-options.c, auth_authorise_keyopts in auth.c and
addr_match_list in addrmatch.c.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final, Self, TypeVar

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
    match_pattern,
    numbered_lines,
    parse_public_key_untrusted,
    read_key_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gateway.ssh.keys import PublicKey

T = TypeVar("T")

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
        "no-touch-required",
        "touch-required",
        "verify-required",
        "no-verify-required",
    }
)

_FORWARDING: Final = {"restrict": False, "no-port-forwarding": False, "port-forwarding": True}
_WITH_VALUE: Final = (
    "expiry-time",
    "from",
    "permitlisten",
    "permitopen",
    "principals",
    "tunnel",
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
    port, ``permit_listen`` those that may be listened on; None is no limit. ``port_forwarding``
    False forbids forwarding in both directions. ``tunnel`` is the number of the only tun device.

    It lets in only from an address that the patterns of ``sources`` match, and only before
    ``expires_s``, in seconds since 1970; None is no limit. See `refusal`.

    With ``cert_authority`` the key itself lets nobody in, only certificates that it signed; they
    must name one of ``principals``, or the user where it is None.
    """

    key: PublicKey
    comment: str
    line: int
    options: tuple[tuple[str, str | None], ...]
    permit_open: tuple[tuple[str, str], ...] | None = None
    permit_listen: tuple[tuple[str, str], ...] | None = None
    port_forwarding: bool = True
    tunnel: int | None = None
    sources: tuple[str, ...] | None = None
    expires_s: float | None = None
    cert_authority: bool = False
    principals: tuple[str, ...] | None = None

    def refusal(self, address: str, now_s: float) -> str:
        """Say why this line lets nobody in from this address now, or "" if it does."""
        if self.expires_s is not None and now_s >= self.expires_s:
            return f"the key of line {self.line} has expired"
        if self.sources is not None and not matches_sources(address, self.sources):
            return f"from= of line {self.line} does not name {printable(address, 64)}"
        return ""


@dataclass(frozen=True, slots=True)
class AuthorizedKeys:
    """The usable lines of one file, and one sentence for each that is not usable."""

    entries: tuple[AuthorizedKey, ...]
    problems: tuple[str, ...]
    _by_blob: Mapping[bytes, tuple[AuthorizedKey, ...]] = field(repr=False, compare=False)

    @classmethod
    def of(cls, entries: Iterable[AuthorizedKey], problems: Iterable[str] = ()) -> Self:
        """Return these lines as one list, in which the first that fits a key counts."""
        listed = tuple(entries)
        by_blob: dict[bytes, list[AuthorizedKey]] = {}
        for entry in listed:
            if not entry.cert_authority:
                by_blob.setdefault(entry.key.blob, []).append(entry)
        found = {blob: tuple(lines) for blob, lines in by_blob.items()}
        return cls(listed, tuple(problems), found)

    def find(self, key: PublicKey, address: str, now_s: float) -> AuthorizedKey | None:
        """Return the first line with this key that lets it in from this address now.

        Never one for a CA, and none for a certificate.
        """
        lines = self._by_blob.get(key.blob, ())
        return next((entry for entry in lines if not entry.refusal(address, now_s)), None)

    def why_not(self, key: PublicKey, address: str, now_s: float) -> str:
        """Say why `find` has no line for this key; for a log, never for the user."""
        refusals = [entry.refusal(address, now_s) for entry in self._by_blob.get(key.blob, ())]
        return "; ".join(refusals[:4]) or "the key is not in authorized_keys"

    def find_authority(
        self, certificate: Certificate, user_name: str, address: str, now_s: float
    ) -> tuple[AuthorizedKey, UserCertificateOptions]:
        """Return the first line whose CA lets this user in, and what the certificate allows.

        The limits of both hold. `CertificateError` says why there is none; where the certificate
        itself may be used is left to `UserCertificateOptions.allows_address`.
        """
        problem = CertificateError(f"the CA of {certificate.description} is not in authorized_keys")
        for entry in self.entries:
            if entry.cert_authority and entry.key.blob == certificate.ca_key.blob:
                accepted = (user_name,) if entry.principals is None else entry.principals
                try:
                    if refusal := entry.refusal(address, now_s):
                        raise CertificateError(refusal)
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
        return _with_options(AuthorizedKey(key, comment, number, options))
    except ValueError:
        refused[blob] = number
        raise


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


def _with_options(entry: AuthorizedKey) -> AuthorizedKey:
    """Return the entry with what its options say; of opposites the later one wins, as in sshd."""
    port_forwarding = True
    values: dict[str, list[str]] = {name: [] for name in _WITH_VALUE}
    for name, value in entry.options:
        if name in _NOT_SUPPORTED:
            raise ValueError(f"option {name} is not supported yet")
        if name in values and value is not None:
            values[name].append(value)
        elif value is not None or name in values:
            raise ValueError(f"option {printable(name, 64)} is unknown or misused")
        elif name in _FORWARDING:
            port_forwarding = _FORWARDING[name]
        elif name != "cert-authority" and name not in _WITHOUT_EFFECT:
            raise ValueError(f"option {printable(name, 64)} is unknown")
    for name in ("from", "principals", "tunnel"):
        if len(values[name]) > 1:
            raise ValueError(f"option {name} stands twice")
    cert_authority = ("cert-authority", None) in entry.options
    if values["principals"] and not cert_authority:
        raise ValueError("option principals without cert-authority")
    return replace(
        entry,
        permit_open=tuple(map(_parse_permit_open, values["permitopen"])) or None,
        permit_listen=tuple(map(_parse_permit_listen, values["permitlisten"])) or None,
        port_forwarding=port_forwarding,
        tunnel=_only(values["tunnel"], _parse_tunnel),
        sources=_only(values["from"], _parse_sources),
        expires_s=min(map(_parse_expiry_time, values["expiry-time"]), default=None),
        cert_authority=cert_authority,
        principals=_only(values["principals"], _parse_principals),
    )


def _only(values: list[str], parse: Callable[[str], T]) -> T | None:
    return parse(values[0]) if values else None


def _parse_principals(value: str) -> tuple[str, ...]:
    principals = tuple(value.split(","))
    if "" in principals:
        raise ValueError("option principals has an empty name")
    return principals


_HOST_AND_PORT: Final = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:/]+)):(\*|[0-9]{1,5})", re.ASCII)
_BLANK_OR_CONTROL: Final = re.compile(r"[\x00-\x20\x7f]")


def _parse_permit_open(value: str) -> tuple[str, str]:
    """Return host and port of "host:port", "[IPv6]:port" or with "*" for either."""
    found = _host_and_port(value)
    if found is None:
        raise ValueError(f'permitopen="{printable(value, 64)}" is not host:port')
    return found


def _parse_permit_listen(value: str) -> tuple[str, str]:
    """Return host and port of "[host:]port"; a port alone is for every host.

    sshd takes the host for a pattern; here only "*" is one, and no part of a host.
    """
    found = _host_and_port(value if ":" in value else f"*:{value}")
    if found is None or (found[0] != "*" and re.search("[*?]", found[0])):
        raise ValueError(f'permitlisten="{printable(value, 64)}" is not [host:]port')
    return found


def _host_and_port(text: str) -> tuple[str, str] | None:
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None or _BLANK_OR_CONTROL.search(text):
        return None
    host, port = found[1] or found[2], found[3]
    if len(host) > MAXIMUM_HOST_LENGTH or (port != "*" and not 1 <= int(port) <= 65535):
        return None
    return host, port if port == "*" else str(int(port))


def _parse_tunnel(value: str) -> int:
    """Return the number of a tun device."""
    if re.fullmatch("[0-9]{1,9}", value, re.ASCII) is None:
        raise ValueError(f'tunnel="{printable(value, 64)}" is not the number of a tun device')
    return int(value)


_TIME: Final = re.compile(
    r"([0-9]{4})([0-9]{2})([0-9]{2})(?:([0-9]{2})([0-9]{2})([0-9]{2})?)?([Zz]?)", re.ASCII
)


def _parse_expiry_time(value: str) -> float:
    """Return the seconds since 1970 of YYYYMMDD[HHMM[SS]][Z], in UTC or in the box's local time."""
    problem = f'expiry-time="{printable(value, 64)}" is not YYYYMMDD[HHMM[SS]][Z]'
    found = _TIME.fullmatch(value)
    if found is None:
        raise ValueError(problem)
    try:
        numbers = [int(number or 0) for number in found.groups()[:6]]
        expires = datetime(*numbers, tzinfo=UTC)  # type: ignore[misc, arg-type]
        return (expires if found[7] else expires.replace(tzinfo=None)).timestamp()
    except (ValueError, OverflowError, OSError) as exc:
        raise ValueError(problem) from exc


# ---- from= -----------------------------------------------------------------------------------


_NUMERIC: Final = re.compile(r"[0-9.]+|0[xX][^*?]*|[^*?]*:[^*?]*", re.ASCII)


def _parse_sources(value: str) -> tuple[str, ...]:
    """Return the patterns of from=; ValueError for one that nobody can have meant.

    A "!" before a pattern stays. sshd reads ``10.1`` and ``0x7f.1`` as addresses, we read neither.
    """
    patterns = tuple(value.split(","))
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        numeric = "/" in plain or _NUMERIC.fullmatch(plain)
        if not plain or _BLANK_OR_CONTROL.search(plain) or (numeric and not _is_network(plain)):
            raise ValueError(f'from="{printable(value, 64)}" has a bad pattern')
    return patterns


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return re.search("/(?![0-9]{1,3}$)", text, re.ASCII) is None


def matches_sources(address: str, patterns: tuple[str, ...]) -> bool:
    """Say whether an address is matched by a pattern of from=, and by none with a "!".

    As match_host_and_ip with UseDNS no: networks by their bits, everything else by ``*`` and ``?``
    in the text of the address. A host name matches nobody.
    """
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    matched = False
    for pattern in patterns:
        plain = pattern.removeprefix("!").lower()
        if found in ip_network(plain) if _is_network(plain) else match_pattern(str(found), plain):
            if pattern.startswith("!"):
                return False
            matched = True
    return matched
