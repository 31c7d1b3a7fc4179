"""What ssh_config(5) and the command line say about one host, as typed values.

First `sources` collects the settings that apply, then the table in `keywords` decides which of them
we cannot honour (an error) and which we drop with a warning, then each supported one gets its type.
A value is only looked at if it applies and wins: a mistake in another host's block does not matter.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.config import values
from gateway.config.addresses import (
    ListenAddress,
    check_host_name,
    check_real_host,
    check_user_name,
)
from gateway.config.keywords import Kind
from gateway.config.lines import expand_tokens, parse_option, quoted
from gateway.config.sources import (
    SYSTEM_DIRECTORY,
    Environment,
    Reader,
    Setting,
    Settings,
)
from gateway.config.values import RekeyLimit
from gateway.errors import printable
from gateway.ssh.algorithms import (
    DEFAULT_CIPHERS,
    DEFAULT_HOST_KEY_ALGORITHMS,
    DEFAULT_KEX,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "AddressFamily",
    "Environment",
    "HostConfig",
    "ListenAddress",
    "LogLevel",
    "RekeyLimit",
    "SessionType",
    "StrictHostKeyChecking",
    "default_files",
    "parse_option",
    "quoted",
    "read_host_config",
]

SSH_PORT: Final = 22  # RFC 4253 §4.1
# ssh(1) tries RSA first; we begin with the one that everybody should have.
DEFAULT_IDENTITIES: Final = ("id_ed25519", "id_ecdsa", "id_rsa")
DEFAULT_KNOWN_HOSTS: Final = ("known_hosts", "known_hosts2")
DEFAULT_GLOBAL_KNOWN_HOSTS: Final = ("ssh_known_hosts", "ssh_known_hosts2")
DEFAULT_METHODS: Final = ("publickey", "keyboard-interactive", "password")
# Ours: ssh's default is never to ask, and then a tunnel hangs for as long as TCP likes.
SERVER_ALIVE_INTERVAL_S: Final = 15.0
SERVER_ALIVE_COUNT_MAX: Final = 3
PASSWORD_PROMPTS: Final = 3


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
    """Whether to open a session: NONE is -N."""

    NONE = "none"
    DEFAULT = "default"


_STRICT: Final = {
    "ask": StrictHostKeyChecking.ASK,
    "accept-new": StrictHostKeyChecking.ACCEPT_NEW,
    "yes": StrictHostKeyChecking.YES,
    "true": StrictHostKeyChecking.YES,
    "no": StrictHostKeyChecking.NO,
    "off": StrictHostKeyChecking.NO,
    "false": StrictHostKeyChecking.NO,
}
_FAMILIES: Final = {family.value: family for family in AddressFamily}
_LOG_LEVELS: Final = {level.value: level for level in LogLevel} | {"debug": LogLevel.DEBUG1}
_SESSION_TYPES: Final = {session.value: session for session in SessionType}
# readconf.c, multistate_pubkey_auth; the last two choose a detail of the signature.
_PUBLIC_KEY: Final = {
    "yes": True,
    "true": True,
    "no": False,
    "false": False,
    "unbound": True,
    "host-bound": True,
}
_FORWARD_SLOTS: Final = ("dynamicforward", "localforward", "remoteforward", "tunnel")


@dataclass(frozen=True, slots=True)
class HostConfig:
    """Everything that is configured for one host; files are named, not opened."""

    alias: str
    host_name: str
    user: str
    port: int
    address_family: AddressFamily
    bind_address: str | None
    identity_files: tuple[Path, ...]
    identity_files_are_default: bool
    identities_only: bool
    pubkey_authentication: bool
    password_authentication: bool
    kbd_interactive_authentication: bool
    preferred_authentications: tuple[str, ...]
    number_of_password_prompts: int
    batch_mode: bool
    known_hosts_files: tuple[Path, ...]
    global_known_hosts_files: tuple[Path, ...]
    strict_host_key_checking: StrictHostKeyChecking
    hash_known_hosts: bool
    dynamic_forwards: tuple[ListenAddress, ...]
    exit_on_forward_failure: bool
    gateway_ports: bool
    session_type: SessionType
    server_alive_interval_s: float  # 0 switches the probes off
    server_alive_count_max: int
    connect_timeout_s: float | None
    rekey_limit: RekeyLimit
    kex_algorithms: tuple[str, ...]
    host_key_algorithms: tuple[str, ...]
    ciphers: tuple[str, ...]
    log_level: LogLevel
    warnings: tuple[str, ...]


def default_files(home: Path) -> tuple[Path, ...]:
    """Return the user's and the system's configuration file, as far as they exist."""
    candidates = (home / ".ssh" / "config", SYSTEM_DIRECTORY / "ssh_config")
    return tuple(path for path in candidates if _exists(path))


def read_host_config(
    alias: str,
    *,
    files: Sequence[Path],
    command_line: Sequence[tuple[str, str]] = (),
    environment: Environment,
) -> HostConfig:
    """Read what applies to the host called ``alias``.

    A value in ``command_line`` is text as in a file: that of -o comes from `parse_option`; one that
    stands for itself, as the argument of -i, goes through `quoted`. Raises `ConfigError`.
    """
    check_host_name(alias, where="destination")
    settings = Settings()
    reader = Reader(alias, environment, settings)
    reader.read_command_line(command_line)
    for path in files:
        reader.read_file(path)
    if reader.wants_final_pass:
        final = Reader(alias, environment, settings, final_host=_host_name(alias, settings))
        for path in files:
            final.read_file(path)
    if settings.value("clearallforwardings", values.flag, default=False):
        settings.drop(_FORWARD_SLOTS)
    warnings = _apply_table(settings)
    return _resolve(alias, settings, environment, warnings)


def _apply_table(settings: Settings) -> list[str]:
    """Refuse what must not be ignored, and say what is."""
    warnings: list[str] = []
    for setting in settings:
        keyword = setting.keyword
        value = " ".join(setting.arguments)
        if value.lower() in keyword.harmless:
            continue
        if keyword.kind is Kind.REFUSED:
            raise setting.wrong(f"{printable(value, 80)}: {keyword.reason}", keyword.remedy)
        if keyword.kind is Kind.WARNED:
            warnings.append(f"{setting.where} {printable(value, 80)}: ignored: {keyword.reason}")
    return warnings


def _resolve(
    alias: str, settings: Settings, environment: Environment, warnings: list[str]
) -> HostConfig:
    host_name = _host_name(alias, settings)
    port = settings.value("port", values.port, SSH_PORT)
    tokens = _tokens(alias, host_name, port, environment)
    user = _user(settings, tokens, environment)
    tokens |= {"r": user, "C": _connection_hash(tokens, user)}
    identities = _identity_files(settings, tokens, environment, warnings)
    default_interval_s: float | None = SERVER_ALIVE_INTERVAL_S
    interval_s = settings.value("serveraliveinterval", values.seconds, default_interval_s)
    value = settings.value
    return HostConfig(
        alias=alias,
        host_name=host_name,
        user=user,
        port=port,
        address_family=value("addressfamily", values.choice(_FAMILIES), AddressFamily.ANY),
        bind_address=settings.value("bindaddress", values.host, None),
        identity_files=identities,
        identity_files_are_default=settings.first("identityfile") is None,
        identities_only=value("identitiesonly", values.flag, default=False),
        pubkey_authentication=value(
            "pubkeyauthentication", values.choice(_PUBLIC_KEY), default=True
        ),
        password_authentication=value("passwordauthentication", values.flag, default=True),
        kbd_interactive_authentication=value(
            "kbdinteractiveauthentication", values.flag, default=True
        ),
        preferred_authentications=value("preferredauthentications", values.words, DEFAULT_METHODS),
        number_of_password_prompts=value(
            "numberofpasswordprompts", values.integer, PASSWORD_PROMPTS
        ),
        batch_mode=value("batchmode", values.flag, default=False),
        known_hosts_files=_known_hosts(settings, tokens, environment),
        global_known_hosts_files=_global_known_hosts(settings, environment),
        strict_host_key_checking=value(
            "stricthostkeychecking", values.choice(_STRICT), StrictHostKeyChecking.ASK
        ),
        hash_known_hosts=value("hashknownhosts", values.flag, default=False),
        dynamic_forwards=tuple(map(values.listen_address, settings.all("dynamicforward"))),
        exit_on_forward_failure=value("exitonforwardfailure", values.flag, default=False),
        gateway_ports=value("gatewayports", values.flag, default=False),
        session_type=value("sessiontype", _session_type, SessionType.DEFAULT),
        server_alive_interval_s=interval_s or 0.0,
        server_alive_count_max=value("serveralivecountmax", values.integer, SERVER_ALIVE_COUNT_MAX),
        connect_timeout_s=settings.value("connecttimeout", values.seconds, None),
        rekey_limit=value("rekeylimit", values.rekey_limit, RekeyLimit(None, None)),
        kex_algorithms=value(
            "kexalgorithms", values.algorithms("key exchange method", DEFAULT_KEX), DEFAULT_KEX
        ),
        host_key_algorithms=value(
            "hostkeyalgorithms",
            values.algorithms("host key algorithm", DEFAULT_HOST_KEY_ALGORITHMS),
            DEFAULT_HOST_KEY_ALGORITHMS,
        ),
        ciphers=value("ciphers", values.algorithms("cipher", DEFAULT_CIPHERS), DEFAULT_CIPHERS),
        log_level=value("loglevel", values.choice(_LOG_LEVELS), LogLevel.INFO),
        warnings=tuple(warnings),
    )


def _session_type(setting: Setting) -> SessionType:
    if setting.one().lower() == "subsystem":
        raise setting.wrong("subsystems are not supported", "write none or default, or use ssh")
    return values.choice(_SESSION_TYPES)(setting)


def _host_name(alias: str, settings: Settings) -> str:
    setting = settings.first("hostname")
    if setting is None:
        return check_real_host(alias, where="destination")
    expanded = expand_tokens(setting.one(), {"h": alias}, setting.where)
    return check_real_host(expanded, where=setting.where)


def _tokens(alias: str, host_name: str, port: int, environment: Environment) -> dict[str, str]:
    """Make the table of TOKENS in ssh_config(5), but for %r and %C, which need the user."""
    return {
        "d": str(environment.home),
        "h": host_name,
        "i": str(environment.uid),
        "j": "",  # what ProxyJump says, which is refused
        "k": alias,
        "L": environment.local_hostname.partition(".")[0],
        "l": environment.local_hostname,
        "n": alias,
        "p": str(port),
        "u": environment.local_user,
    }


def _connection_hash(tokens: Mapping[str, str], user: str) -> str:
    hashed = "".join((tokens["l"], tokens["h"], tokens["p"], user, tokens["j"]))
    return hashlib.sha1(
        hashed.encode("utf-8", "surrogateescape"), usedforsecurity=False
    ).hexdigest()


def _user(settings: Settings, tokens: Mapping[str, str], environment: Environment) -> str:
    setting = settings.first("user")
    if setting is None:
        return environment.local_user
    name = setting.one()
    if not setting.on_command_line:  # what came from there stands for itself (CVE-2026-35386)
        name = expand_tokens(name, tokens, setting.where)
    return check_user_name(name, where=setting.where)


def _identity_files(
    settings: Settings, tokens: Mapping[str, str], environment: Environment, warnings: list[str]
) -> tuple[Path, ...]:
    found = settings.all("identityfile")
    if not found:
        return tuple(environment.home / ".ssh" / name for name in DEFAULT_IDENTITIES)
    files: list[Path] = []
    for setting in found:
        name = setting.one()
        if name.lower() == "none":
            continue
        path = values.expand_path(setting, name, tokens, environment)
        if not _exists(path):
            warnings.append(f"{setting.where} {printable(str(path))}: there is no such file")
        files.append(path)
    return tuple(files)


def _known_hosts(
    settings: Settings, tokens: Mapping[str, str], environment: Environment
) -> tuple[Path, ...]:
    setting = settings.first("userknownhostsfile")
    if setting is None:
        return tuple(environment.home / ".ssh" / name for name in DEFAULT_KNOWN_HOSTS)
    return tuple(
        values.expand_path(setting, name, tokens, environment) for name in _file_names(setting)
    )


def _global_known_hosts(settings: Settings, environment: Environment) -> tuple[Path, ...]:
    """Only ``~`` is expanded in these (ssh.c, tilde_expand_paths)."""
    setting = settings.first("globalknownhostsfile")
    if setting is None:
        return tuple(environment.system_directory / name for name in DEFAULT_GLOBAL_KNOWN_HOSTS)
    return tuple(
        Path(values.expand_home(setting, name, environment)) for name in _file_names(setting)
    )


def _file_names(setting: Setting) -> tuple[str, ...]:
    """Return the names of a list of files; ``none`` alone is the empty one (parse_char_array)."""
    if any(not name for name in setting.arguments):
        raise setting.wrong("a file name is empty", "remove the empty quotes")
    if all(name.lower() != "none" for name in setting.arguments):
        return setting.arguments
    if len(setting.arguments) > 1:
        raise setting.wrong("none stands beside file names", "write none alone, or the files")
    return ()


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True
