"""The hops on the way to a host: ProxyJump, resolved as ssh does it, each hop by its own block.

ssh(1) makes a ProxyCommand of a ProxyJump: it runs itself with ``-W`` for the last hop, and hands
the hops before that on with ``-J``. So a hop has the configuration files, its own ``Host`` block
and what stands beside its name in the list; the options of our command line are not for it, except
-F. A hop whose block has a ProxyJump, and that has no hop before it in the list, brings its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.config.lines import quoted
from gateway.config.ssh_config import SSH_PORT, read_host_config
from gateway.errors import ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gateway.config.addresses import Destination
    from gateway.config.ssh_config import Environment, HostConfig

MAXIMUM_HOPS: Final = 16  # our choice; ssh has no limit
# What -W implies (ssh.c, main): no session and no forwarding but the one to the next hop.
_ONLY_A_WAY: Final = (("SessionType", "none"), ("ClearAllForwardings", "yes"))


def hops_to(
    config: HostConfig, *, files: Sequence[Path], environment: Environment
) -> tuple[HostConfig, ...]:
    """Return the hosts to log in to before ``config``'s own, in the order of connecting.

    Raises `ConfigError`.
    """

    def read(hop: Destination, before: Sequence[Destination]) -> HostConfig:
        options = list(_ONLY_A_WAY)
        if hop.user is not None:
            options.append(("User", quoted(hop.user)))
        if hop.port is not None:
            options.append(("Port", str(hop.port)))
        if before:
            options.append(("ProxyJump", quoted(",".join(map(_written, before)))))
        return read_host_config(
            hop.host, files=files, command_line=options, environment=environment
        )

    route = [config]
    while hops := route[0].proxy_jump:
        *before, hop = hops
        _check(route, hop)
        route.insert(0, read(hop, before))
    return tuple(route[:-1])


def _check(route: Sequence[HostConfig], hop: Destination) -> None:
    """Refuse a hop to the host itself, as ssh does, and a way without an end, in which ssh stays.

    Two hops may have the same name, as 127.0.0.1 has on each machine, but not for ever.
    """
    config = route[0]
    is_same_host = config.host_name == hop.host and config.port == (hop.port or SSH_PORT)
    if is_same_host and hop.user in (None, config.user):
        way = f"{printable(hop.host)} → {printable(config.alias)}"
    elif len(route) > MAXIMUM_HOPS:
        way = " → ".join(printable(host.alias) for host in route[:4]) + " → …"
    else:
        return
    raise ConfigError(
        f"the way goes in a circle: {way}",
        where=f"ProxyJump for {printable(config.alias)}",
        remedy=f"write ProxyJump none for {printable(hop.host)}, or exclude it: Host * !{hop.host}",
    )


def _written(hop: Destination) -> str:
    user = "" if hop.user is None else f"{hop.user}@"
    host = f"[{hop.host}]" if ":" in hop.host else hop.host
    return f"{user}{host}" + ("" if hop.port is None else f":{hop.port}")
