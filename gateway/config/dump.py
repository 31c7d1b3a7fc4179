"""A host's configuration in the format of ``ssh -G``, one line a value (readconf.c,
dump_client_config).

Everything that we support is written, with our defaults where nothing is set. As with ssh, names of
key files stand as they were written, and other values with their tokens expanded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.config.canonical import looks_like_address
from gateway.config.fields import FIELDS
from gateway.config.ssh_config import AGENT_VARIABLE
from gateway.forward.spec import Unix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.config.sources import Settings
    from gateway.config.ssh_config import HostConfig
    from gateway.forward.spec import End


def dump(config: HostConfig, settings: Settings) -> list[str]:
    """Return the lines, keyword and value."""
    return [f"{keyword} {value}" for keyword, value in _values(config, settings)]


def _values(config: HostConfig, settings: Settings) -> Iterator[tuple[str, str]]:
    yield "host", config.alias
    yield "user", config.user
    yield "hostname", config.host_name
    yield "port", str(config.port)
    for field in FIELDS:
        shown = field.show(field.value(settings))
        if shown is not None:
            yield field.keyword, shown
    yield (
        "updatehostkeys",
        {"yes": "true", "no": "false"}.get(
            config.update_host_keys.value, config.update_host_keys.value
        ),
    )
    if config.host_key_alias is not None:
        yield "hostkeyalias", config.host_key_alias
    if config.control_path is not None:
        yield "controlpath", str(config.control_path)
    yield from _way(config, settings)
    if config.remote_command is not None:
        yield "remotecommand", config.remote_command
    yield from _session(config, settings)
    agent = settings.first("identityagent")
    if agent is not None:
        yield "identityagent", _agent(agent.one(), config)
    yield "userknownhostsfile", " ".join(map(str, config.known_hosts_files)) or "none"
    yield (
        "globalknownhostsfile",
        _written(settings, "globalknownhostsfile")
        or " ".join(map(str, config.global_known_hosts_files)),
    )
    if config.revoked_host_keys:
        yield "revokedhostkeys", " ".join(map(str, config.revoked_host_keys))
    yield from _files(config, settings)
    yield from _forwards(config)


def _forwards(config: HostConfig) -> Iterator[tuple[str, str]]:
    for forward in config.dynamic_forwards:
        yield "dynamicforward", _end(forward.listen)
    for keyword, found in (
        ("localforward", config.local_forwards),
        ("remoteforward", config.remote_forwards),
    ):
        for forward in found:
            target = "[socks]:0" if forward.target is None else _end(forward.target)
            yield keyword, f"{_end(forward.listen)} {target}"


def _end(end: End) -> str:
    return end.path if isinstance(end, Unix) else str(end)


def _session(config: HostConfig, settings: Settings) -> Iterator[tuple[str, str]]:
    local = settings.first("localcommand")
    if local is not None and local.one().lower() != "none":
        yield "localcommand", local.one()
    for pattern in config.send_env:
        yield "sendenv", pattern
    for name, value in config.set_env:
        yield "setenv", f"{name}={value}"


def _way(config: HostConfig, settings: Settings) -> Iterator[tuple[str, str]]:
    """As with ssh, all hops but the last stand as they were written, and a command does too."""
    if config.proxy_command is not None:
        yield "proxycommand", _written(settings, "proxycommand")
    elif "%" in (written := _written(settings, "proxyjump")):
        yield "proxyjump", written
    elif config.proxy_jump:
        before, comma, _ = written.rpartition(",")
        last = config.proxy_jump[-1]
        user = "" if last.user is None else f"{last.user}@"
        host = f"[{last.host}]" if looks_like_address(last.host) else last.host
        port = "" if last.port is None else f":{last.port}"
        yield "proxyjump", f"{before}{comma}{user}{host}{port}"


def _agent(written: str, config: HostConfig) -> str:
    """A variable stands for itself, as with ssh."""
    if written == AGENT_VARIABLE or (written.startswith("$") and not written.startswith("${")):
        return written
    return str(config.identity_agent or "none")


def _written(settings: Settings, slot: str) -> str:
    setting = settings.first(slot)
    return "" if setting is None else " ".join(setting.arguments)


def _files(config: HostConfig, settings: Settings) -> Iterator[tuple[str, str]]:
    if config.identity_files_are_default:
        for path in config.identity_files:
            yield "identityfile", str(path)
    for slot in ("identityfile", "certificatefile"):
        for setting in settings.all(slot):
            yield slot, setting.arguments[0]
