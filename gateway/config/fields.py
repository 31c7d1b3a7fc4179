"""The keywords whose value depends on nothing else: one table of parser, default and spelling.

`FIELDS` says for each of them what it is called in `HostConfig`, what it may be, what it is if
nobody sets it, and how ``ssh -G`` writes it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gateway.config import offers, session, values
from gateway.config.canonical import CanonicalizeHostname
from gateway.config.forwards import permit_remote_open, permitted
from gateway.config.values import IpQos, RekeyLimit, TunnelDevice
from gateway.forward.permit import ANY_TARGET
from gateway.net.listen import SOCKET_MASK
from gateway.tun.packet import ANY_UNIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.config.sources import Setting, Settings

DEFAULT_METHODS: Final = ("publickey", "keyboard-interactive", "password")
# Ours: ssh's default is never to ask, and then a tunnel hangs for as long as TCP likes.
SERVER_ALIVE_INTERVAL_S: Final = 15.0
SERVER_ALIVE_COUNT_MAX: Final = 3
PASSWORD_PROMPTS: Final = 3
REQUIRED_RSA_SIZE: Final = 1024  # bits, as OpenSSH


class StrictHostKeyChecking(enum.Enum):
    """What to do with a host key that is not in known_hosts."""

    ASK = "ask"
    ACCEPT_NEW = "accept-new"
    YES = "yes"
    NO = "no"


class AddressFamily(enum.Enum):
    """Which addresses of a host to use."""

    ANY = "any"
    INET = "inet"
    INET6 = "inet6"


class LogLevel(enum.Enum):
    """How much to say, least first."""

    QUIET = "quiet"
    FATAL = "fatal"
    ERROR = "error"
    INFO = "info"
    VERBOSE = "verbose"
    DEBUG1 = "debug1"
    DEBUG2 = "debug2"
    DEBUG3 = "debug3"


class SessionType(enum.Enum):
    """Whether to open a session: NONE is -N, SUBSYSTEM -s."""

    NONE = "none"
    SUBSYSTEM = "subsystem"
    DEFAULT = "default"


class RequestTTY(enum.Enum):
    """Whether to ask for a terminal: AUTO for a shell; FORCE also if there is none here."""

    NO = "no"
    AUTO = "auto"
    YES = "yes"
    FORCE = "force"


class PubkeyMode(enum.Enum):
    """Whether to log in with keys, and whether a signature names the server's key.

    HOST_BOUND is publickey-hostbound-v00@openssh.com, UNBOUND forbids it (OpenSSH PROTOCOL §3.1).
    """

    NO = "no"
    YES = "yes"
    UNBOUND = "unbound"
    HOST_BOUND = "host-bound"


class UpdateHostKeys(enum.Enum):
    """Whether to learn the further host keys that a server tells after the login."""

    NO = "no"
    YES = "yes"
    ASK = "ask"


class Tunnel(enum.Enum):
    """Whether to open a tun device, and of which kind."""

    NO = "no"
    POINT_TO_POINT = "point-to-point"
    ETHERNET = "ethernet"


_BOTH: Final = {"true": "yes", "false": "no"}


def _choices(kind: type[enum.Enum], **aliases: str) -> dict[str, Any]:
    """Make the words of an enum, with other words for the same."""
    words = {str(member.value): member for member in kind}
    return words | {alias: words[word] for alias, word in aliases.items()}


_STRICT: Final = _choices(StrictHostKeyChecking, off="no", **_BOTH)
_FAMILIES: Final = _choices(AddressFamily)
_LOG_LEVELS: Final = _choices(LogLevel, debug="debug1", silent="quiet")
_SESSION_TYPES: Final = _choices(SessionType)
_REQUEST_TTY: Final = _choices(RequestTTY, **_BOTH)
_PUBKEY: Final = _choices(PubkeyMode, **_BOTH)
_UPDATE: Final = _choices(UpdateHostKeys, **_BOTH)
_TUNNEL: Final = _choices(Tunnel, yes="point-to-point", true="point-to-point", false="no")
_CANONICALIZE: Final = _choices(CanonicalizeHostname, **_BOTH)
# OpenSSH knows one kind of weakness so far.
_WEAK_CRYPTO: Final = {"yes": True, "true": True, "no": False, "false": False, "no-pq-kex": False}

_SHOWN_LEVELS: Final = {LogLevel.QUIET: "SILENT", LogLevel.DEBUG1: "DEBUG"}  # log.c, first names
_TRUTH: Final = {"yes": "true", "no": "false"}


def _flag(value: bool) -> str:  # noqa: FBT001 - a function of the value alone
    return "yes" if value else "no"


def _plain(value: object) -> str | None:
    return None if value is None else str(value)


def _word(value: enum.Enum) -> str:
    return str(value.value)


def _true_or_false(value: bool) -> str:  # noqa: FBT001 - a function of the value alone
    return "true" if value else "false"


def _truth(value: enum.Enum) -> str:
    """Write a choice as readconf.c does, whose yes and no are true and false."""
    return _TRUTH.get(str(value.value), str(value.value))


def _level(value: LogLevel) -> str:
    return _SHOWN_LEVELS.get(value, value.name)


def _commas(value: tuple[str, ...]) -> str:
    return ",".join(value)


def _blanks(value: tuple[str, ...]) -> str:
    return " ".join(value) or "none"


def _seconds(value: float | None) -> str:
    return str(int(value)) if value else "none"


def _interval(value: float) -> str:
    return str(int(value))


def _octal(value: int) -> str:
    return f"0{value:o}"


def _cnames(value: tuple[tuple[str, str], ...]) -> str:
    return " ".join(f"{sources}:{targets}" for sources, targets in value) or "none"


def _rekey(value: RekeyLimit) -> str:
    return f"{value.bytes or 0} {int(value.seconds or 0)}"


def _alive_interval(setting: Setting) -> float:
    return values.seconds(setting) or 0.0


@dataclass(frozen=True, slots=True)
class Field:
    """One row: a field of `HostConfig`, or with an empty name what only its reader needs.

    ``keyword`` is written as by ``ssh -G``, which leaves out what ``show`` makes None.
    """

    name: str
    keyword: str
    parse: Callable[[Setting], Any]
    default: Any
    show: Callable[[Any], str | None] = _plain

    def value(self, settings: Settings) -> Any:  # noqa: ANN401 - each row has its own type
        """Return what is configured, or the default."""
        return settings.value(self.keyword.lower(), self.parse, self.default)


def _flags(default: bool, names: Mapping[str, str]) -> tuple[Field, ...]:  # noqa: FBT001
    return tuple(
        Field(name, keyword, values.flag, default, _flag) for name, keyword in names.items()
    )


def _algorithms(
    name: str, keyword: str, what: str, supported: tuple[str, ...], default: tuple[str, ...]
) -> Field:
    return Field(name, keyword, values.algorithms(what, supported, default), default, _commas)


_OFF: Final = {
    "identities_only": "identitiesonly",
    "batch_mode": "batchmode",
    "hash_known_hosts": "hashknownhosts",
    "exit_on_forward_failure": "exitonforwardfailure",
    "gateway_ports": "gatewayports",
    "stream_local_bind_unlink": "streamlocalbindunlink",
    "proxy_use_fdpass": "proxyusefdpass",
    "stdin_null": "stdinnull",
    "permit_local_command": "permitlocalcommand",
    "enable_escape_command_line": "enableescapecommandline",
    "fork_after_authentication": "forkafterauthentication",
}
_ON: Final = {
    "password_authentication": "passwordauthentication",
    "kbd_interactive_authentication": "kbdinteractiveauthentication",
}

CANONICALIZE: Final = Field(
    "", "canonicalizehostname", values.choice(_CANONICALIZE), CanonicalizeHostname.NO, _truth
)
DOMAINS: Final = Field("", "canonicaldomains", values.domains, (), _blanks)
FALLBACK: Final = Field("", "canonicalizefallbacklocal", values.flag, True, _flag)
MAX_DOTS: Final = Field("", "canonicalizemaxdots", values.integer, 1)
CNAMES: Final = Field("", "canonicalizepermittedcnames", values.permitted_cnames, (), _cnames)
FAMILY: Final = Field(
    "address_family", "addressfamily", values.choice(_FAMILIES), AddressFamily.ANY, _word
)

_NAMES: Final = (CANONICALIZE, DOMAINS, FALLBACK, MAX_DOTS, CNAMES, FAMILY)
_CRYPTO: Final = (
    _algorithms(
        "kex_algorithms", "kexalgorithms", "key exchange method", offers.KEX, offers.DEFAULT_KEX
    ),
    _algorithms("ciphers", "ciphers", "cipher", offers.CIPHERS, offers.DEFAULT_CIPHERS),
    _algorithms("macs", "macs", "MAC", offers.MACS, offers.DEFAULT_MACS),
    _algorithms(
        "host_key_algorithms", "hostkeyalgorithms", "host key algorithm",
        offers.HOST_KEY_ALGORITHMS, offers.DEFAULT_HOST_KEY_ALGORITHMS,
    ),
    _algorithms(
        "pubkey_accepted_algorithms", "pubkeyacceptedalgorithms", "signature algorithm",
        offers.PUBKEY_ALGORITHMS, offers.DEFAULT_PUBKEY_ALGORITHMS,
    ),
    _algorithms(
        "ca_signature_algorithms", "casignaturealgorithms", "signature algorithm",
        offers.CA_SIGNATURE_ALGORITHMS, offers.DEFAULT_CA_SIGNATURE_ALGORITHMS,
    ),
    Field("required_rsa_size", "requiredrsasize", values.integer, REQUIRED_RSA_SIZE),
    Field("warn_weak_crypto", "warnweakcrypto", values.choice(_WEAK_CRYPTO), True, _flag),
)  # fmt: skip
FIELDS: Final = (
    *_NAMES,
    *_CRYPTO,
    *_flags(False, _OFF),
    *_flags(True, _ON),
    Field("", "clearallforwardings", values.flag, False, _flag),
    Field("stream_local_bind_mask", "streamlocalbindmask", values.octal, SOCKET_MASK, _octal),
    Field("permit_remote_open", "permitremoteopen", permit_remote_open, ANY_TARGET, permitted),
    Field("", "tag", values.text, None),
    Field("", "ignoreunknown", values.text, None),
    Field("bind_address", "bindaddress", values.host, None),
    Field("bind_interface", "bindinterface", values.interface, None),
    Field("tcp_keep_alive", "tcpkeepalive", values.flag, True, _true_or_false),
    Field("connection_attempts", "connectionattempts", values.positive, 1),
    Field("connect_timeout_s", "connecttimeout", values.seconds, None, _seconds),
    Field("ip_qos", "ipqos", values.ip_qos, IpQos(None, None)),
    Field(
        "pubkey_mode", "pubkeyauthentication", values.choice(_PUBKEY), PubkeyMode.YES, _truth
    ),
    Field(
        "preferred_authentications", "preferredauthentications", values.words, DEFAULT_METHODS,
        _commas,
    ),
    Field("number_of_password_prompts", "numberofpasswordprompts", values.integer,
          PASSWORD_PROMPTS),
    Field(
        "strict_host_key_checking", "stricthostkeychecking", values.choice(_STRICT),
        StrictHostKeyChecking.ASK, _truth,
    ),
    Field(
        "session_type", "sessiontype", values.choice(_SESSION_TYPES), SessionType.DEFAULT, _word
    ),
    Field("request_tty", "requesttty", values.choice(_REQUEST_TTY), RequestTTY.AUTO, _truth),
    Field("escape_char", "escapechar", session.escape_char, b"~", session.shown_escape),
    Field(
        "server_alive_interval_s", "serveraliveinterval", _alive_interval,
        SERVER_ALIVE_INTERVAL_S, _interval,
    ),
    Field(
        "server_alive_count_max", "serveralivecountmax", values.integer, SERVER_ALIVE_COUNT_MAX
    ),
    Field("rekey_limit", "rekeylimit", values.rekey_limit, RekeyLimit(None, None), _rekey),
    Field("tunnel", "tunnel", values.choice(_TUNNEL), Tunnel.NO, _truth),
    Field(
        "tunnel_device", "tunneldevice", values.tunnel_device, TunnelDevice(ANY_UNIT, ANY_UNIT)
    ),
    Field("log_level", "loglevel", values.choice(_LOG_LEVELS), LogLevel.INFO, _level),
)  # fmt: skip
# Its default depends on other keywords: `ssh_config` decides.
UPDATE_HOST_KEYS: Final = Field("", "updatehostkeys", values.choice(_UPDATE), None, _truth)
