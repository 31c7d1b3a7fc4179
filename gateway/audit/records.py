"""The records of the audit log, and their one line of JSON.

Every field is text, a number, a boolean or a tuple of texts; there is no field for a secret or a
key's bytes. Names end in their unit (``_s`` seconds). Text may come from a peer: it is cut here
and escaped by JSON. Certificate serials are text, since JSON readers keep 53 bits of a number.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, ClassVar, Final

from gateway.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA_VERSION: Final = 1
MAXIMUM_TEXT: Final = 512  # characters of one text, before escaping
MAXIMUM_TEXTS: Final = 64  # texts of one field; the rest is counted
DAY_S: Final = 86_400
PREFIX_BITS: Final = {4: 24, 6: 64}  # what counts as one source in ``noise``

Value = str | int | float | bool | tuple[str, ...]


class ChannelClass(StrEnum):
    """What a channel is for; a client's ``-D`` is direct-tcpip on the wire."""

    DIRECT_TCPIP = "direct-tcpip"
    FORWARDED_TCPIP = "forwarded-tcpip"
    STREAMLOCAL = "streamlocal"
    SESSION = "session"
    TUN = "tun"
    UNKNOWN = "unknown"


class AuthResult(StrEnum):
    """How one attempt to log in ended; partial: accepted, and more is required."""

    ACCEPTED = "accepted"
    PARTIAL = "partial"
    REFUSED = "refused"


class Side(StrEnum):
    """Who ended a connection."""

    CLIENT = "client"
    SERVER = "server"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Record:
    """Base of all records."""

    kind: ClassVar[str] = ""

    @property
    def pre_auth(self) -> bool:
        """Whether a stranger caused it: such records may use only a part of the buffer."""
        return False

    @property
    def repeat_key(self) -> tuple[str, str, str] | None:
        """(kind, who, why) of a record that is counted when it repeats too often, else None."""
        return None


# ---- the server ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerStart(Record):
    """The server is ready; ``host_keys`` are fingerprints."""

    kind: ClassVar[str] = "server.start"
    version: str
    pid: int
    listen: tuple[str, ...]
    host_keys: tuple[str, ...]
    config_sha256: str = ""


@dataclass(frozen=True, slots=True)
class ServerStop(Record):
    """The server has ended; so many connections were open when its end began."""

    kind: ClassVar[str] = "server.stop"
    reason: str
    duration_s: float
    connections: int = 0


@dataclass(frozen=True, slots=True)
class ConfigReload(Record):
    """The configuration was read again; with a ``problem`` the old one stays."""

    kind: ClassVar[str] = "config.reload"
    config_sha256: str
    applied: bool
    problem: str = ""


# ---- one connection ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConnOpen(Record):
    """A connection on which somebody logs in; ``in`` is from the client.

    ``hassh``: see `hassh`. ``post_quantum``: the key exchange is a hybrid with ML-KEM or sntrup.
    """

    kind: ClassVar[str] = "conn.open"
    conn_id: int
    source: str
    source_port: int
    local: str
    local_port: int
    client_version: str
    hassh: str
    kex: str
    host_key: str
    cipher_in: str
    cipher_out: str
    mac_in: str
    mac_out: str
    strict: bool
    post_quantum: bool


@dataclass(frozen=True, slots=True)
class ConnClose(Record):
    """A connection ended; ``user`` is empty if nobody logged in. Bytes are those of the carrier."""

    kind: ClassVar[str] = "conn.close"
    conn_id: int
    source: str
    user: str
    rekeys: int
    bytes_in: int
    bytes_out: int
    duration_s: float
    reason: str
    side: Side
    penalty: str = ""

    @property
    def pre_auth(self) -> bool:
        """Nobody logged in."""
        return not self.user


@dataclass(frozen=True, slots=True)
class Auth(Record):
    """One attempt to log in. ``authority`` is the fingerprint of the certificate's CA key."""

    kind: ClassVar[str] = "auth"
    conn_id: int
    source: str
    user: str
    method: str
    result: AuthResult
    attempt: int
    reason: str = ""
    key_type: str = ""
    fingerprint: str = ""
    certificate_id: str = ""
    certificate_serial: str = ""
    authority: str = ""
    principals: tuple[str, ...] = ()

    @property
    def pre_auth(self) -> bool:
        """Only an accepted login is somebody's."""
        return self.result is not AuthResult.ACCEPTED

    @property
    def repeat_key(self) -> tuple[str, str, str] | None:
        """Guessing is counted by source prefix and method."""
        if self.result is not AuthResult.REFUSED:
            return None
        return self.kind, source_prefix(self.source), self.method


@dataclass(frozen=True, slots=True)
class PolicyDecision(Record):
    """Policy spoke: ``rule`` is the id that the user was shown, ``object`` what was asked."""

    kind: ClassVar[str] = "policy.decision"
    conn_id: int
    user: str
    rule: str
    action: str
    subject: str
    object: str
    allowed: bool
    reason: str = ""

    @property
    def repeat_key(self) -> tuple[str, str, str] | None:
        """A scan through the box is counted by connection and rule."""
        return None if self.allowed else (self.kind, f"connection {self.conn_id}", self.rule)


@dataclass(frozen=True, slots=True)
class Abuse(Record):
    """A user looks around: so many different targets came to nothing within a minute."""

    kind: ClassVar[str] = "abuse"
    conn_id: int
    user: str
    what: str
    targets: int
    example: str


@dataclass(frozen=True, slots=True)
class ChannelOpen(Record):
    """A channel is connected: to the address ``dialled``, after ``connect_s``."""

    kind: ClassVar[str] = "channel.open"
    conn_id: int
    channel_id: int
    user: str
    channel_class: ChannelClass
    requested: str
    dialled: str
    originator: str
    connect_s: float
    rule: str = ""


@dataclass(frozen=True, slots=True)
class ChannelClose(Record):
    """A channel is over; bytes are the payload, ``in`` from the client."""

    kind: ClassVar[str] = "channel.close"
    conn_id: int
    channel_id: int
    user: str
    channel_class: ChannelClass
    requested: str
    dialled: str
    bytes_in: int
    bytes_out: int
    duration_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class ChannelFail(Record):
    """A channel that was allowed came to nothing; ``dialled`` is what was tried last."""

    kind: ClassVar[str] = "channel.fail"
    conn_id: int
    channel_id: int
    user: str
    channel_class: ChannelClass
    requested: str
    dialled: str
    originator: str
    reason: str
    rule: str = ""


@dataclass(frozen=True, slots=True)
class ListenerAdd(Record):
    """A port is listened on for a client (RFC 4254 §7.1), as ``rule`` allows.

    For a unix socket ``bind`` is its path and ``port`` is 0 (OpenSSH PROTOCOL §2.4).
    """

    kind: ClassVar[str] = "listener.add"
    conn_id: int
    user: str
    bind: str
    port: int
    rule: str


@dataclass(frozen=True, slots=True)
class ListenerRemove(Record):
    """Such a listener is closed; ``rule`` is what had allowed it."""

    kind: ClassVar[str] = "listener.remove"
    conn_id: int
    user: str
    bind: str
    port: int
    reason: str
    rule: str


@dataclass(frozen=True, slots=True)
class Noise(Record):
    """What strangers did in one minute, counted; ``source`` is a prefix."""

    kind: ClassVar[str] = "noise"
    source: str
    reason: str
    count: int

    @property
    def pre_auth(self) -> bool:
        """Strangers only."""
        return True


# ---- the log about itself ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogFile(Record):
    """The first line of every file; ``epoch`` is that of the next checkpoint.

    ``prev`` is the hash of the last line of ``previous``, and so stands for that whole file. When
    this line is ``keep_days`` old, the files before it may be removed; with 0 they may never.
    """

    kind: ClassVar[str] = "log.file"
    number: int
    previous: str
    epoch: int
    keep_days: int = 0


@dataclass(frozen=True, slots=True)
class LogRetired(Record):
    """The files up to this number are removed, for their time is over.

    ``first_seq`` and ``first_prev`` are ``seq`` and ``prev`` of the line with which the log begins
    from then on; ``keep_days`` is what that line says.
    """

    kind: ClassVar[str] = "log.retired"
    through: int
    first_seq: int
    first_prev: str
    keep_days: int


@dataclass(frozen=True, slots=True)
class LogCheckpoint(Record):
    """The log up to here is sealed; ``mac`` is added by `chain`."""

    kind: ClassVar[str] = "log.checkpoint"
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class LogRecovered(Record):
    """A start found something wrong at the end of the log; what was cut off is in ``kept_as``."""

    kind: ClassVar[str] = "log.recovered"
    file: str
    problem: str
    bytes: int = 0
    sha256: str = ""
    kept_as: str = ""


@dataclass(frozen=True, slots=True)
class LogFailed(Record):
    """The log could not be written for a time; new logins and channels were refused."""

    kind: ClassVar[str] = "log.failed"
    error: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class LogDropped(Record):
    """So many records found no room in the buffer and are missing here."""

    kind: ClassVar[str] = "log.dropped"
    pre_auth_records: int
    other_records: int


@dataclass(frozen=True, slots=True)
class LogRepeated(Record):
    """So many more records like some above, in one minute, were not written one by one."""

    kind: ClassVar[str] = "log.repeated"
    of: str
    source: str
    reason: str
    count: int
    by_strangers: bool

    @property
    def pre_auth(self) -> bool:
        """As the records that it counts."""
        return self.by_strangers


# ---- their line ----------------------------------------------------------------------------------

_NAMES: Final = {
    record_type: tuple(field.name for field in fields(record_type))
    for record_type in Record.__subclasses__()
}
_ENCODE: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def encode(record: Record, seq: int, wall_ns: int, monotonic_ns: int, prev: str) -> bytes:
    """Return the JSON object of a record, without the end of the line.

    Times are in nanoseconds, ``wall_ns`` since 1970 in UTC; ``prev`` is the line before's hash.
    """
    line: dict[str, object] = {
        "v": SCHEMA_VERSION,
        "seq": seq,
        "time": rfc3339(wall_ns),
        "mono_us": monotonic_ns // 1000,
        "prev": prev,
        "kind": record.kind,
    }
    for name in _NAMES[type(record)]:
        line[name] = _bounded(getattr(record, name))
    return _ENCODE(line).encode("ascii")  # what is not between space and ~ is escaped


def decode(line: bytes) -> dict[str, object]:
    """Return the fields of a line. Raises ValueError, in words, if it is no record of ours."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("this is not JSON") from None
    if not isinstance(found, dict) or found.get("v") != SCHEMA_VERSION:
        raise ValueError(f"this is not a record of schema version {SCHEMA_VERSION}")
    for name, wanted in (("seq", int), ("time", str), ("prev", str), ("kind", str)):
        if type(found.get(name)) is not wanted:
            raise ValueError(f"the record has no usable {name!r}")
    return found


def rfc3339(wall_ns: int) -> str:
    """Return a time as text, in UTC with microseconds."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1000:06d}Z"


def seconds_of(time: object) -> float:
    """Return the seconds since 1970 of what `rfc3339` makes. Raises ValueError."""
    found = datetime.fromisoformat(str(time))
    if found.tzinfo is None:
        raise ValueError("a time without its zone")
    return found.timestamp()


def is_over(header: dict[str, object], at_s: float) -> bool:
    """Say whether the files before the one that begins with ``header`` may be removed."""
    keep_days = header.get("keep_days")
    if type(keep_days) is not int or keep_days < 1:
        return False
    return at_s - seconds_of(header["time"]) >= keep_days * DAY_S


def hassh(
    kex: Sequence[str], ciphers: Sequence[str], macs: Sequence[str], comp: Sequence[str]
) -> str:
    """Return the HASSH of a client's KEXINIT: MD5 of its lists, each from client to server.

    Source: https://github.com/salesforce/hassh
    """
    text = ";".join(",".join(names) for names in (kex, ciphers, macs, comp))
    return hashlib.md5(text.encode("utf-8", "replace"), usedforsecurity=False).hexdigest()


def source_prefix(address: str) -> str:
    """Return the network that counts as one source, or the text itself if it is no address."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return printable(address, 64)
    return str(ip_network((found, PREFIX_BITS[found.version]), strict=False))


class Tally:
    """Counts of (kind, who, why) over one period; the table is bounded."""

    def __init__(self, maximum: int = 1024) -> None:
        self._maximum = maximum
        self._counts: dict[tuple[str, str, str], int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, key: tuple[str, str, str]) -> int:
        """Count one; return the count. When the table is full, all others count as one."""
        if key not in self._counts and len(self._counts) >= self._maximum:
            key = (key[0], "others", "")
        count = self._counts[key] = self._counts.get(key, 0) + 1
        return count

    def take(self) -> dict[tuple[str, str, str], int]:
        """Return the counts and begin again."""
        counts, self._counts = self._counts, {}
        return counts


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _bounded(value: Value) -> Value:
    if isinstance(value, str):
        return value if len(value) <= MAXIMUM_TEXT else value[:MAXIMUM_TEXT] + "…"
    if isinstance(value, tuple):
        texts = tuple(str(_bounded(text)) for text in value[:MAXIMUM_TEXTS])
        more = len(value) - len(texts)
        return (*texts, f"… and {more} more") if more else texts
    return round(value, 6) if isinstance(value, float) else value
