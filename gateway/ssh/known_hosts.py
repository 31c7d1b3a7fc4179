"""Which host keys are trusted: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT.

The decisions are those of OpenSSH's hostfile.c and check_host_key in sshconnect.c, and one that is
stricter: a revocation for the host's name without the port counts on every port. A line that cannot
be read is a problem to show and nothing else: it neither trusts a key nor revokes one.

A certificate is good if a @cert-authority line for the host has its CA's key and the certificate is
for this host and this moment. If not, then as in ssh the plain key inside is judged instead, as if
it had been shown alone; `Verdict.certificate_problem` says what was wrong.

A key of a type that we cannot use is recorded all the same. A host of which only an RSA key is
known and that suddenly shows an ed25519 key has CHANGED, as in ssh: otherwise whoever is in the
middle would only have to offer another type to turn a loud refusal into a first meeting.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import enum
import hmac
import os
import re
import string as characters
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from gateway.errors import ConfigError, RemoteProtocolError, printable
from gateway.ssh.certificates import (
    Certificate,
    CertificateError,
    check_for_host,
    is_certificate_type,
)
from gateway.ssh.keys import (
    KEY_TYPES,
    KeySizeError,
    fingerprint,
    key_type_of,
    match_pattern,
    numbered_lines,
    parse_public_key_untrusted,
    plain_name,
    read_key_text,
    split_words,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from gateway.ssh.keys import PublicKey

# As OpenSSH.
DEFAULT_PORT: Final = 22
HASH_MAGIC: Final = "|1|"  # hostfile.h
HASH_LENGTH: Final = 20  # SHA-1, for the salt too
MAXIMUM_PATTERN_LENGTH: Final = 1022  # match.c, sub[1024]
MAXIMUM_SIMPLE_NAMES: Final = 2  # a host and its address

# Our own choice.
MAXIMUM_LINE_LENGTH: Final = 65536


class Marker(enum.Enum):
    """What stands before the names of a line."""

    NONE = ""
    CERT_AUTHORITY = "@cert-authority"
    REVOKED = "@revoked"


class Status(enum.Enum):
    """What the files say about a host key."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class _HashedName:
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KnownHostEntry:
    """One line: its place, its marker, and the key that it records, of whatever type."""

    file: str
    line: int
    marker: Marker
    algorithm: str
    blob: bytes = field(repr=False)
    _names: tuple[str, ...] | _HashedName = field(repr=False)  # patterns in lower case

    @property
    def fingerprint(self) -> str:
        """The recorded key's fingerprint."""
        return fingerprint(self.blob)

    @property
    def place(self) -> str:
        """The file and the line's number."""
        return f"{self.file}:{self.line}"

    @property
    def is_simple(self) -> bool:
        """Whether the names are such as ssh itself writes (clientloop.c, hostspec_is_complex)."""
        names = self._names
        return isinstance(names, _HashedName) or (
            len(names) <= MAXIMUM_SIMPLE_NAMES and not any(set("*?") & set(name) for name in names)
        )

    def matches(self, name: str) -> bool:
        """Say whether this line is about ``name``, which is in the form of `host_name`."""
        if isinstance(self._names, _HashedName):
            return _hash(name, self._names.salt) == self._names.digest
        matched = False
        for pattern in self._names:
            if match_pattern(name, pattern.removeprefix("!")):
                if pattern.startswith("!"):
                    return False
                matched = True
        return matched


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the files say about one key of one host.

    ``entry`` is the line that decided: the key itself or its CA (KNOWN), its revocation or its
    CA's (REVOKED), the key recorded instead (CHANGED, of the same type if there is one), or None
    (UNKNOWN). ``other_keys`` are the lines with other keys for this host; with UNKNOWN, for its
    name without the port. ``key`` is what was judged: the certificate, or the plain key inside it
    if no CA vouches for it.
    """

    status: Status
    name: str
    key: PublicKey
    entry: KnownHostEntry | None = None
    other_keys: tuple[KnownHostEntry, ...] = ()
    certificate_problem: str = ""


@dataclass(frozen=True, slots=True)
class HostKeyUpdate:
    """What UpdateHostKeys changes: keys to record, if the server proves them, and lines to remove.

    Both are empty where there is nothing to do, or where ``obstacle`` says why it must not be done.
    """

    new: tuple[PublicKey, ...] = ()
    deprecated: tuple[KnownHostEntry, ...] = ()
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class KnownHosts:
    """The lines of all known_hosts files, in order, and a sentence for each one not usable."""

    entries: tuple[KnownHostEntry, ...] = ()
    problems: tuple[str, ...] = ()

    @classmethod
    def parse(cls, files: Iterable[tuple[str, str | bytes]]) -> Self:
        """Read files given as (name, text); only a file of absurd size raises `ConfigError`."""
        entries = []
        problems = []
        for file, text in files:
            for number, line in numbered_lines(text, file):
                try:
                    entry = _parse_line(file, number, line)
                except (ValueError, RemoteProtocolError) as exc:
                    problems.append(f"{printable(file)}:{number}: {exc}, line ignored")
                else:
                    if entry is not None:
                        entries.append(entry)
        return cls(tuple(entries), tuple(problems))

    def lookup(self, host: str, port: int, key: PublicKey, now_s: float) -> Verdict:
        """Judge the key or certificate that ``host`` showed at ``now_s``, seconds since 1970.

        For a HostKeyAlias give that name and port 22.
        """
        name = host_name(host, port)
        here = tuple(self._matching(name))
        bare = () if port == DEFAULT_PORT else tuple(self._matching(host_name(host, DEFAULT_PORT)))
        revoked = {key.blob}
        if isinstance(key, Certificate):
            revoked |= {key.key.blob, key.ca_key.blob}
        for entry in (*here, *bare):
            if entry.marker is Marker.REVOKED and entry.blob in revoked:
                return Verdict(Status.REVOKED, name, key, entry)
        if not isinstance(key, Certificate):
            return _judge_plain(name, key, here, bare)
        problem = "no @cert-authority line for this host has its CA's key"
        for entry in (*here, *bare):
            if entry.marker is Marker.CERT_AUTHORITY and entry.blob == key.ca_key.blob:
                try:
                    check_for_host(key, _lower(host), now_s)
                except CertificateError as exc:
                    problem = str(exc)
                    break
                return Verdict(Status.KNOWN, name, key, entry)
        verdict = _judge_plain(name, key.key, here, bare)
        return dataclasses.replace(verdict, certificate_problem=problem)

    def plan_update(self, host: str, port: int, offered: Sequence[PublicKey]) -> HostKeyUpdate:
        """Compare what a trusted server offers with the user's files (clientloop.c, hostkeys_find).

        Only lines that ssh wrote itself, and keys that nobody else has, are touched: if one is not
        so, nothing is done. Lines with a key of a type that we do not know do not count.
        """
        name = host_name(host, port)
        blobs = {key.blob for key in offered}
        here: list[KnownHostEntry] = []
        elsewhere: list[KnownHostEntry] = []
        for entry in self.entries:
            if entry.algorithm in KEY_TYPES:
                (here if entry.matches(name) else elsewhere).append(entry)
        recorded = {entry.blob for entry in here}
        new = tuple(key for key in offered if key.blob not in recorded)
        deprecated = tuple(entry for entry in here if entry.blob not in blobs)
        if len(blobs) < len(offered):
            return HostKeyUpdate(obstacle="the server offers a key twice")
        if not offered or not (new or deprecated):
            return HostKeyUpdate()
        for entry in here:
            if entry.marker is not Marker.NONE:
                return HostKeyUpdate(obstacle=f"{entry.place} has a marker")
            if not entry.is_simple:
                return HostKeyUpdate(obstacle=f"{entry.place} has wildcards or several names")
        for entry in elsewhere:
            if entry.blob in blobs or entry.blob in recorded:
                return HostKeyUpdate(obstacle=f"{entry.place} has such a key under another name")
        return HostKeyUpdate(new, deprecated)

    def lines_to_remove(self, host: str, port: int, blobs: Container[bytes]) -> set[int]:
        """Return the numbers of the lines that record one of the keys for the host."""
        name = host_name(host, port)
        return {
            entry.line
            for entry in self.entries
            if entry.marker is Marker.NONE and entry.blob in blobs and entry.matches(name)
        }

    def host_key_algorithms_for(
        self, host: str, port: int, preferred: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Order ``preferred`` so that a known key is asked for, as order_hostkeyalgs of ssh.

        Certificates come first too where a CA is known for the host, and where the plain key is.
        """
        entries = tuple(self._matching(host_name(host, port)))
        known = {entry.algorithm for entry in _plain(entries)}
        has_authority = any(entry.marker is Marker.CERT_AUTHORITY for entry in entries)
        if not preferred or plain_name(key_type_of(preferred[0])) in known:
            return preferred

        def is_last(algorithm: str) -> bool:
            kind = key_type_of(algorithm)
            return plain_name(kind) not in known and not (
                has_authority and is_certificate_type(kind)
            )

        return tuple(sorted(preferred, key=is_last))

    def _matching(self, name: str) -> Iterator[KnownHostEntry]:
        return (entry for entry in self.entries if entry.matches(name))


def host_name(host: str, port: int) -> str:
    """Return the name that files use: lower case, and "[host]:port" unless the port is 22."""
    host = _lower(host)
    return host if port == DEFAULT_PORT else f"[{host}]:{port}"


_UNWRITABLE: Final = re.compile(r"[^!-~]|[,*?!|#@]|^\[.*\]")


def format_line(
    host: str,
    port: int,
    key: PublicKey,
    *,
    hashed: bool = False,
    randbytes: Callable[[int], bytes] = os.urandom,
) -> str:
    """Return the line, with its newline, that makes ``key`` known for the host.

    A name that would mean something else in the file is a `ConfigError`.
    """
    name = host_name(host, port)
    if not host or _UNWRITABLE.search(host):
        raise ConfigError(f"the host name {printable(host)!r} cannot stand in known_hosts")
    if hashed:
        salt = randbytes(HASH_LENGTH)
        name = f"{HASH_MAGIC}{_base64(salt)}|{_base64(_hash(name, salt))}"
    return f"{name} {key.openssh_text()}\n"


def edit_lines(text: bytes, remove: Container[int], add: Iterable[str]) -> bytes:
    """Return a file's text without the lines of these numbers, from 1, and with others at its end.

    All other lines stay as they are.
    """
    lines = text.split(b"\n")
    kept = b"\n".join(line for number, line in enumerate(lines, start=1) if number not in remove)
    if kept and not kept.endswith(b"\n"):
        kept += b"\n"
    return kept + "".join(add).encode()


def _judge_plain(
    name: str,
    key: PublicKey,
    here: tuple[KnownHostEntry, ...],
    bare: tuple[KnownHostEntry, ...],
) -> Verdict:
    """Judge a key that is not revoked by the lines for the name, and for it without the port."""
    others = tuple(entry for entry in _plain(here) if entry.blob != key.blob)
    bare_others = tuple(entry for entry in _plain(bare) if entry.blob != key.blob)
    for entry in _plain(here):
        if entry.blob == key.blob:
            return Verdict(Status.KNOWN, name, key, entry, others)
    if others:
        same_type = (entry for entry in others if entry.algorithm == key.algorithm)
        return Verdict(Status.CHANGED, name, key, next(same_type, others[0]), others)
    for entry in _plain(bare):  # as ssh: "found matching key w/out port"
        if entry.blob == key.blob:
            return Verdict(Status.KNOWN, name, key, entry, bare_others)
    return Verdict(Status.UNKNOWN, name, key, None, bare_others)


def _plain(entries: Iterable[KnownHostEntry]) -> Iterator[KnownHostEntry]:
    return (entry for entry in entries if entry.marker is Marker.NONE)


def _parse_line(file: str, number: int, text: str) -> KnownHostEntry | None:
    """Return the entry, or None for a blank line or a comment; ValueError says what is wrong."""
    if len(text) > MAXIMUM_LINE_LENGTH:
        raise ValueError(f"longer than {MAXIMUM_LINE_LENGTH} characters")
    if "\0" in text:
        raise ValueError("holds a NUL")
    text = text.strip(" \t")
    if not text or text.startswith("#"):
        return None
    marker = Marker.NONE
    if text.startswith("@"):
        word, *rest = split_words(text, 2)
        try:
            marker = Marker(word)
        except ValueError:
            raise ValueError(f"unknown marker {printable(word, 64)}") from None
        text = "".join(rest)
        if text.startswith("@"):
            raise ValueError("more than one marker")
    names, *rest = split_words(text, 2) or ("",)
    algorithm, blob, _ = read_key_text("".join(rest))
    if algorithm in KEY_TYPES:
        with contextlib.suppress(KeySizeError):  # recorded like a key of another type
            parse_public_key_untrusted(blob)
    return KnownHostEntry(file, number, marker, algorithm, blob, _parse_names(names))


def _parse_names(names: str) -> tuple[str, ...] | _HashedName:
    if names.startswith("|"):
        return _parse_hashed_name(names)
    patterns = tuple(_lower(names).split(","))
    longest = max(len(pattern.removeprefix("!")) for pattern in patterns)
    if longest > MAXIMUM_PATTERN_LENGTH:
        raise ValueError(f"a host name of {longest} characters")
    return patterns


def _parse_hashed_name(name: str) -> _HashedName:
    """Only the form that host_hash in hostfile.c writes itself; one name for each line."""
    encoded = name.removeprefix(HASH_MAGIC).split("|")
    if name.startswith(HASH_MAGIC) and len(encoded) == 2:
        salt, digest = (base64.b64decode(part, validate=True) for part in encoded)
        canonical = f"{HASH_MAGIC}{_base64(salt)}|{_base64(digest)}"
        if name == canonical and len(salt) == len(digest) == HASH_LENGTH:
            return _HashedName(salt, digest)
    raise ValueError("a malformed hashed host name")


def _hash(name: str, salt: bytes) -> bytes:
    return hmac.digest(salt, name.encode("utf-8", "surrogatepass"), "sha1")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


_LOWER: Final = str.maketrans(characters.ascii_uppercase, characters.ascii_lowercase)


def _lower(text: str) -> str:
    """Only ASCII letters: ``str.lower`` would make a "k" of the Kelvin sign."""
    return text.translate(_LOWER)
