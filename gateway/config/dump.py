"""A host's configuration in the format of ``ssh -G``, one line a value (readconf.c,
dump_client_config).

Everything that we support is written, with our defaults where nothing is set. As with ssh, names of
key files stand as they were written, and other values with their tokens expanded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.config.fields import FIELDS
from gateway.config.ssh_config import AGENT_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.config.sources import Settings
    from gateway.config.ssh_config import HostConfig


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
    if config.remote_command is not None:
        yield "remotecommand", config.remote_command
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
    for address in config.dynamic_forwards:
        host = address.host
        yield "dynamicforward", str(address.port) if host is None else f"[{host}]:{address.port}"


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
