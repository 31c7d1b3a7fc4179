"""What ssh_config(5) and the command line say about one host, as typed values.

First `sources` collects the settings that apply, then the table in `keywords` decides which of them
we cannot honour (an error) and which we drop with a warning, then each supported one gets its type:
by its row in `fields`, or here if it depends on others.
A value is only looked at if it applies and wins: a mistake in another host's block does not matter.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.config import fields, values
from gateway.config.addresses import (
    Destination,
    check_host_name,
    check_real_host,
    check_user_name,
    parse_jumps,
)
from gateway.config.canonical import CanonicalizeHostname, Rules, canonical_host
from gateway.config.fields import (
    AddressFamily,
    LogLevel,
    PubkeyMode,
    RequestTTY,
    SessionType,
    StrictHostKeyChecking,
    Tunnel,
    UpdateHostKeys,
)
from gateway.config.forwards import forwards
from gateway.config.keywords import Kind
from gateway.config.lines import expand_tokens, parse_option, quoted
from gateway.config.session import send_env, set_env
from gateway.config.sources import (
    JUMP,
    SYSTEM_DIRECTORY,
    Environment,
    Reader,
    Setting,
    Settings,
)
from gateway.config.tokens import LocalCommand, ShellTokens, jump_host, make_tokens
from gateway.config.values import IpQos, RekeyLimit, TunnelDevice
from gateway.errors import printable
from gateway.forward.spec import Kind as ForwardKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.forward.permit import Permitted
    from gateway.forward.spec import Forward

__all__ = [
    "AddressFamily",
    "Environment",
    "HostConfig",
    "IpQos",
    "LogLevel",
    "PubkeyMode",
    "ReadSettings",
    "RekeyLimit",
    "RequestTTY",
    "SessionType",
    "StrictHostKeyChecking",
    "Tunnel",
    "UpdateHostKeys",
    "default_files",
    "parse_option",
    "quoted",
    "read_host_config",
    "read_settings",
    "resolve",
]

SSH_PORT: Final = 22  # RFC 4253 §4.1
# ssh(1) tries RSA first; we begin with the one that everybody should have.
DEFAULT_IDENTITIES: Final = ("id_ed25519", "id_ecdsa", "id_rsa")
DEFAULT_KNOWN_HOSTS: Final = ("known_hosts", "known_hosts2")
DEFAULT_GLOBAL_KNOWN_HOSTS: Final = ("ssh_known_hosts", "ssh_known_hosts2")
AGENT_VARIABLE: Final = "SSH_AUTH_SOCK"

FAMILIES: Final = {
    AddressFamily.ANY: socket.AF_UNSPEC,
    AddressFamily.INET: socket.AF_INET,
    AddressFamily.INET6: socket.AF_INET6,
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
    bind_interface: str | None
    proxy_jump: tuple[Destination, ...]  # the hops in between, in the order of connecting
    proxy_command: str | None  # with its tokens expanded: for a shell
    proxy_use_fdpass: bool
    connection_attempts: int
    tcp_keep_alive: bool
    ip_qos: IpQos
    identity_files: tuple[Path, ...]
    identity_files_are_default: bool
    identities_only: bool
    certificate_files: tuple[Path, ...]
    identity_agent: Path | None  # the agent's socket; None: ask no agent
    pubkey_mode: PubkeyMode
    pubkey_accepted_algorithms: tuple[str, ...]
    password_authentication: bool
    kbd_interactive_authentication: bool
    preferred_authentications: tuple[str, ...]
    number_of_password_prompts: int
    batch_mode: bool
    known_hosts_files: tuple[Path, ...]
    global_known_hosts_files: tuple[Path, ...]
    strict_host_key_checking: StrictHostKeyChecking
    hash_known_hosts: bool
    host_key_alias: str | None  # the name in known_hosts, instead of host_name and port
    revoked_host_keys: tuple[Path, ...]
    update_host_keys: UpdateHostKeys
    ca_signature_algorithms: tuple[str, ...]
    required_rsa_size: int  # bits, of every RSA key of either side
    local_forwards: tuple[Forward, ...]
    remote_forwards: tuple[Forward, ...]
    dynamic_forwards: tuple[Forward, ...]
    permit_remote_open: Permitted
    control_path: Path | None  # None: a name of ours
    has_control_socket: bool
    exit_on_forward_failure: bool
    gateway_ports: bool
    stream_local_bind_mask: int
    stream_local_bind_unlink: bool
    tunnel: Tunnel
    tunnel_device: TunnelDevice
    session_type: SessionType
    remote_command: str | None
    request_tty: RequestTTY
    send_env: tuple[str, ...]  # patterns of names
    set_env: tuple[tuple[str, str], ...]
    escape_char: bytes | None
    enable_escape_command_line: bool
    permit_local_command: bool
    local_command: LocalCommand | None  # None also if it is not permitted
    stdin_null: bool
    fork_after_authentication: bool
    server_alive_interval_s: float  # 0 switches the probes off
    server_alive_count_max: int
    connect_timeout_s: float | None
    rekey_limit: RekeyLimit
    kex_algorithms: tuple[str, ...]
    host_key_algorithms: tuple[str, ...]
    ciphers: tuple[str, ...]
    macs: tuple[str, ...]
    warn_weak_crypto: bool
    log_level: LogLevel
    warnings: tuple[str, ...]

    @property
    def pubkey_authentication(self) -> bool:
        """Whether to offer keys at all."""
        return self.pubkey_mode is not PubkeyMode.NO


def default_files(home: Path, given: str | None = None) -> tuple[Path, ...]:
    """Return the file that -F names, or the user's and the system's as far as they exist."""
    if given is not None:
        return () if given == "none" else (Path(given),)
    candidates = (home / ".ssh" / "config", SYSTEM_DIRECTORY / "ssh_config")
    return tuple(path for path in candidates if _exists(path))


def read_host_config(
    alias: str,
    *,
    files: Sequence[Path],
    command_line: Sequence[tuple[str, str]] = (),
    command: str | None = None,
    environment: Environment,
) -> HostConfig:
    """Read what applies to the host called ``alias``.

    A value in ``command_line`` is text as in a file: that of -o comes from `parse_option`; one that
    stands for itself, as the argument of -i, goes through `quoted`. ``command`` is the remote one.
    Raises `ConfigError`.
    """
    read = read_settings(
        alias, files=files, command_line=command_line, command=command, environment=environment
    )
    return resolve(read, environment)


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """What was read for a host, before its values are looked at."""

    alias: str
    host_name: str
    settings: Settings


def read_settings(
    alias: str,
    *,
    files: Sequence[Path],
    command_line: Sequence[tuple[str, str]] = (),
    command: str | None = None,
    defaults: Sequence[tuple[str, str]] = (),
    environment: Environment,
) -> ReadSettings:
    """Collect the settings that apply to a host, in the two passes of ssh; see `read_host_config`.

    ``defaults`` are written as ``command_line``, and hold for what is set nowhere.

    The name of the host is settled between the two: no later HostName changes it (ssh.c, main).
    """
    check_host_name(alias, where="destination")
    settings = Settings()
    reader = Reader(alias, environment, settings, command=command)
    reader.read_command_line(command_line)
    for path in files:
        reader.read_file(path)
    rules = _canonical_rules(settings)
    setting = settings.first("hostname")
    host_name = canonical_host(
        _host_name(alias, settings),
        rules,
        environment.resolve,
        "destination" if setting is None else setting.where,
    )
    if reader.wants_final_pass or rules.mode is not CanonicalizeHostname.NO:
        final = Reader(alias, environment, settings, command=command, final_host=host_name)
        for path in files:
            final.read_file(path)
    reader.read_command_line(defaults)
    if settings.value("clearallforwardings", values.flag, default=False):
        settings.drop(_FORWARD_SLOTS)
    return ReadSettings(alias, host_name, settings)


def _canonical_rules(settings: Settings) -> Rules:
    proxy = settings.proxy()
    return Rules(
        fields.CANONICALIZE.value(settings),
        fields.DOMAINS.value(settings),
        fields.FALLBACK.value(settings),
        fields.MAX_DOTS.value(settings),
        fields.CNAMES.value(settings),
        FAMILIES[fields.FAMILY.value(settings)],
        proxy is not None and proxy.arguments[0].lower() != "none",
    )


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


def resolve(read: ReadSettings, environment: Environment) -> HostConfig:
    """Give the settings of a host their types. Raises `ConfigError`."""
    alias, host_name, settings = read.alias, read.host_name, read.settings
    warnings = _apply_table(settings)
    port = settings.value("port", values.port, SSH_PORT)
    key_alias = settings.value("hostkeyalias", _host_key_alias, None)
    tokens = make_tokens(
        environment,
        alias=alias,
        host_name=host_name,
        port=str(port),
        user=environment.local_user,
        host_key_alias=key_alias or alias,
        jump_host=jump_host(settings),
    )
    user = _user(settings, tokens, environment)
    tokens = make_tokens(
        environment,
        alias=alias,
        host_name=host_name,
        port=str(port),
        user=user,
        host_key_alias=key_alias or alias,
        jump_host=jump_host(settings),
    )
    return HostConfig(
        alias=alias,
        host_name=host_name,
        user=user,
        port=port,
        host_key_alias=key_alias,
        proxy_jump=_proxy_jump(settings, tokens),
        proxy_command=_proxy_command(settings, tokens),
        identity_files=_identity_files(settings, tokens, environment, warnings),
        identity_files_are_default=settings.first("identityfile") is None,
        certificate_files=_existing_files(
            settings.all("certificatefile"), tokens, environment, warnings
        ),
        identity_agent=_identity_agent(settings, tokens, environment),
        known_hosts_files=_known_hosts(settings, tokens, environment),
        global_known_hosts_files=_global_known_hosts(settings, environment),
        revoked_host_keys=_revoked(settings, tokens, environment),
        update_host_keys=_update_host_keys(settings),
        local_forwards=forwards(ForwardKind.LOCAL, settings, tokens, environment),
        remote_forwards=forwards(ForwardKind.REMOTE, settings, tokens, environment),
        dynamic_forwards=forwards(ForwardKind.DYNAMIC, settings, tokens, environment),
        control_path=_control_path(settings, tokens, environment),
        has_control_socket=settings.value("controlpath", _is_wanted, default=True),
        remote_command=_remote_command(settings, tokens),
        send_env=send_env(settings.all("sendenv")),
        set_env=set_env(settings.first("setenv"), tokens, environment.variables),
        local_command=_local_command(settings, tokens),
        warnings=tuple(warnings),
        **{field.name: field.value(settings) for field in fields.FIELDS if field.name},
    )


def _host_name(alias: str, settings: Settings) -> str:
    setting = settings.first("hostname")
    if setting is None:
        return check_real_host(alias, where="destination")
    expanded = expand_tokens(setting.one(), {"h": alias}, setting.where)
    return check_real_host(expanded, where=setting.where)


def _host_key_alias(setting: Setting) -> str:
    return check_host_name(setting.one(), where=setting.where).lower()


def _user(settings: Settings, tokens: Mapping[str, str], environment: Environment) -> str:
    setting = settings.first("user")
    if setting is None:
        return environment.local_user
    name = setting.one()
    if not setting.on_command_line:  # what came from there stands for itself (CVE-2026-35386)
        usable = {letter: value for letter, value in tokens.items() if letter not in "rC"}
        name = expand_tokens(name, usable, setting.where, environment.variables)
    return check_user_name(name, where=setting.where)


def _remote_command(settings: Settings, tokens: Mapping[str, str]) -> str | None:
    """Expand the command, which the server gives to a shell."""
    setting = settings.first("remotecommand")
    if setting is None or setting.one().lower() == "none":
        return None
    return expand_tokens(setting.one(), ShellTokens(tokens, setting.where), setting.where)


def _local_command(settings: Settings, tokens: Mapping[str, str]) -> LocalCommand | None:
    setting = settings.first("localcommand")
    if setting is None or setting.one().lower() == "none":
        return None
    if not settings.value("permitlocalcommand", values.flag, default=False):
        return None
    return LocalCommand(setting.one(), tokens, setting.where)


def _proxy_jump(settings: Settings, tokens: Mapping[str, str]) -> tuple[Destination, ...]:
    setting = settings.proxy()
    if setting is None or setting.keyword.slot != JUMP:
        return ()
    text = setting.one()
    if not setting.on_command_line:
        text = expand_tokens(text, _proxy_tokens(tokens), setting.where)
    return parse_jumps(text, where=setting.where)


def _proxy_command(settings: Settings, tokens: Mapping[str, str]) -> str | None:
    """Expand the command, whose values the user's shell is going to see."""
    setting = settings.proxy()
    if setting is None or setting.keyword.slot == JUMP or setting.one().lower() == "none":
        return None
    checked = ShellTokens(_proxy_tokens(tokens), setting.where)
    return expand_tokens(setting.one(), checked, setting.where)


def _proxy_tokens(tokens: Mapping[str, str]) -> dict[str, str]:
    """Return what a way to the server may be made of (sshconnect.c, expand_proxy_command)."""
    return {letter: tokens[letter] for letter in "hknpr"}


def _update_host_keys(settings: Settings) -> UpdateHostKeys:
    """Unless it is set, learn keys only into the usual file and without the DNS (readconf.c)."""
    chosen: UpdateHostKeys | None = fields.UPDATE_HOST_KEYS.value(settings)
    if chosen is not None:
        return chosen
    dns = settings.first("verifyhostkeydns")
    uses_dns = dns is not None and dns.arguments not in {("no",), ("false",)}
    if uses_dns or settings.first("userknownhostsfile") is not None:
        return UpdateHostKeys.NO
    return UpdateHostKeys.YES


def _identity_agent(
    settings: Settings, tokens: Mapping[str, str], environment: Environment
) -> Path | None:
    """Return the agent's socket: a path, or what a variable names (ssh.c, IdentityAgent)."""
    setting = settings.first("identityagent")
    name = f"${AGENT_VARIABLE}" if setting is None else setting.one()
    if name == AGENT_VARIABLE:
        name = f"${name}"
    if setting is not None and name.lower() == "none":
        return None
    if name.startswith("$") and not name.startswith("${"):
        value = environment.variables.get(name[1:], "")
        return Path(value) if value else None
    return None if setting is None else values.expand_path(setting, name, tokens, environment)


def _is_wanted(setting: Setting) -> bool:
    return setting.one().lower() != "none"


def _control_path(
    settings: Settings, tokens: Mapping[str, str], environment: Environment
) -> Path | None:
    setting = settings.first("controlpath")
    if setting is None or not _is_wanted(setting):
        return None
    return values.expand_path(setting, setting.one(), tokens, environment)


def _existing_files(
    found: Sequence[Setting],
    tokens: Mapping[str, str],
    environment: Environment,
    warnings: list[str],
) -> tuple[Path, ...]:
    """Expand the names of files, and warn of those that do not exist; none is no file."""
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


def _identity_files(
    settings: Settings, tokens: Mapping[str, str], environment: Environment, warnings: list[str]
) -> tuple[Path, ...]:
    found = settings.all("identityfile")
    if not found:
        return tuple(environment.home / ".ssh" / name for name in DEFAULT_IDENTITIES)
    return _existing_files(found, tokens, environment, warnings)


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


def _revoked(
    settings: Settings, tokens: Mapping[str, str], environment: Environment
) -> tuple[Path, ...]:
    setting = settings.first("revokedhostkeys")
    if setting is None:
        return ()
    return tuple(
        values.expand_path(setting, name, tokens, environment) for name in _file_names(setting)
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
