"""`gateway serve` from flags alone, for a first try: the same records as from a file."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.cli.terminal import say
from gateway.config.addresses import (
    HostPort,
    check_real_host,
    is_address,
    parse_listen_address,
)
from gateway.config.checked_files import FILE_LIMIT, UNCHANGED, read_checked_file
from gateway.config.identities import load_private_key_file
from gateway.config.interfaces import own_subnets
from gateway.config.ordinary_user import find_ordinary_user
from gateway.config.server_config import ANY_USER, ServerConfig, TunnelConfig, UserConfig
from gateway.errors import ConfigError, printable
from gateway.net.listen import is_own_address
from gateway.policy.leases import DEFAULT_POOL, check_pool_is_apart
from gateway.policy.rules import EVERYTHING_BUT_THE_BOX, Action, Policy, Rule, parse_target
from gateway.ssh import algorithms
from gateway.ssh.algorithms import Preferences
from gateway.ssh.authorized_keys import parse_authorized_keys
from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey
from gateway.ssh.transport import RekeyLimit

if TYPE_CHECKING:
    from gateway.ssh.authorized_keys import AuthorizedKeys

log = logging.getLogger(__name__)

# What may be chosen, best first, and what is offered without a choice. A server has no group
# exchange: it would need a list of primes of its own.
_ALGORITHMS: Final = {
    "kex": (
        tuple(name for name in algorithms.DEFAULT_KEX if "group-exchange" not in name),
        algorithms.SERVER_PREFERENCES.kex,
    ),
    "ciphers": (algorithms.DEFAULT_CIPHERS, algorithms.SERVER_PREFERENCES.ciphers),
    "macs": (algorithms.DEFAULT_MACS, algorithms.SERVER_PREFERENCES.macs),
}


def add_flags(parser: argparse.ArgumentParser) -> list[str]:
    """Add the flags that stand for a file; return where their values go."""
    before = set(vars(parser.parse_args([])))
    add = parser.add_argument
    add("--listen", action="append", metavar="ADDRESS:PORT",
        help="accept SSH here (repeatable; default *:2222); port 0 takes a free one")  # fmt: skip
    add("--host-key", type=Path, metavar="FILE",
        help="the server's private key; made if the file is missing")  # fmt: skip
    add("--authorized-keys", type=Path, metavar="FILE",
        help="who may log in: any user name is taken, the key decides")  # fmt: skip
    add("--permit-open", action="append", metavar="HOST:PORT",
        help="a target that may be opened (repeatable, * allowed); without any, everything "
        "but the box itself, link-local addresses and ports for mail")  # fmt: skip
    add("--permit-listen", action="append", metavar="HOST:PORT",
        help="an address and port that clients may have listened on (repeatable, * allowed; "
        "localhost is the loopback); without any, none")  # fmt: skip
    add("--permit-tunnel", action="store_true", default=None,
        help="let everybody use tun and tap devices, with addresses of "
        f"{' and '.join(map(str, DEFAULT_POOL))}")  # fmt: skip
    add("--host", action="append", metavar="NAME=ADDRESS",
        help="a name that only this server resolves (repeatable)")  # fmt: skip
    add("--user", metavar="NAME",
        help="the ordinary user as whom the server goes on when root has started it")  # fmt: skip
    for what, (known, _) in _ALGORITHMS.items():
        add(f"--{what}", metavar="LIST", help=f"of: {','.join(known)}")
    add("--rekey-bytes", type=int, metavar="BYTES", help=argparse.SUPPRESS)
    return sorted(set(vars(parser.parse_args([]))) - before)


def config_from_flags(arguments: argparse.Namespace) -> ServerConfig:
    """Read what the flags name. Raises `ConfigError`."""
    missing = [
        flag
        for flag, value in (
            ("--host-key", arguments.host_key),
            ("--authorized-keys", arguments.authorized_keys),
        )
        if value is None
    ]
    if missing:
        raise ConfigError(
            f"these arguments are required, or else -c FILE: {', '.join(missing)}",
            remedy="see gateway serve --help",
        )
    return ServerConfig(
        listen=tuple(
            parse_listen_address(text, where="--listen") for text in arguments.listen or ["*:2222"]
        ),
        policy=_policy(arguments),
        tunnel=_tunnel() if arguments.permit_tunnel else None,
        names=dict(map(_parse_host, arguments.host or [])),
        rekey_limit=RekeyLimit(bytes=arguments.rekey_bytes),
        run_as=_ordinary_user(arguments.user),
        preferences=_preferences(arguments),
        host_keys=(_load_host_key(arguments.host_key),),
        users={ANY_USER: UserConfig(frozenset(), _load_authorized_keys(arguments.authorized_keys))},
    )


def _policy(arguments: argparse.Namespace) -> Policy:
    """Return a rule for each flag; to open, by default one for everything but the box itself."""
    opens = (_permit(Action.OPEN, text) for text in arguments.permit_open or ())
    rules = tuple(opens) or (EVERYTHING_BUT_THE_BOX,)
    rules += tuple(_permit(Action.LISTEN, text) for text in arguments.permit_listen or ())
    if arguments.permit_tunnel:
        targets = (parse_target("*", Action.TUN),)
        rules += (Rule("--permit-tunnel", allow=True, action=Action.TUN, to=targets),)
    return Policy(rules, is_own_address)


def _ordinary_user(name: str | None) -> str | None:
    if name is not None:
        find_ordinary_user(name, where="--user")
    return name


def _tunnel() -> TunnelConfig:
    try:
        check_pool_is_apart(DEFAULT_POOL, own_subnets())
    except ConfigError as error:
        raise ConfigError(
            error.problem,
            where="--permit-tunnel",
            remedy="use -c FILE with a pool of your own under [tunnel]",
        ) from error
    return TunnelConfig(DEFAULT_POOL)


def _permit(action: Action, text: str) -> Rule:
    where = f"--permit-{action.value}"
    target = str(HostPort.parse(text, where=where))
    to = (parse_target(target, action, where=where),)
    return Rule(f"{where} {target}", allow=True, action=action, to=to)


def _preferences(arguments: argparse.Namespace) -> Preferences:
    """Return what the server offers; every name must be one that we have."""
    chosen = []
    for what, (known, default) in _ALGORITHMS.items():
        names = tuple(getattr(arguments, what).split(",")) if getattr(arguments, what) else default
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"{printable(name, 80)} is not one of ours",
                    where=f"--{what}",
                    remedy=f"choose from {', '.join(known)}",
                )
        chosen.append(names)
    return Preferences(kex=chosen[0], ciphers=chosen[1], macs=chosen[2])


def _load_host_key(path: Path) -> PrivateKey:
    try:
        file = load_private_key_file(path)
    except FileNotFoundError:
        return _make_host_key(path)
    if file.is_encrypted:
        raise ConfigError(
            "the host key has a passphrase, and a server cannot be asked for one",
            where=str(path),
            remedy=f"remove it with: ssh-keygen -p -f {path}",
        )
    return file.decrypt()


def _make_host_key(path: Path) -> PrivateKey:
    key = PrivateKey.generate(os.urandom)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode_private_key_file(key))
    except OSError as error:
        raise ConfigError(
            f"the host key cannot be made: {error.strerror}",
            where=str(path),
            remedy="name a file in a folder that you may write, with --host-key FILE",
        ) from error
    say(f"made the host key {path}")
    return key


def _load_authorized_keys(path: Path) -> AuthorizedKeys:
    content = read_checked_file(path, UNCHANGED, FILE_LIMIT, "the list of keys")
    keys = parse_authorized_keys(content, str(path))
    for problem in keys.problems:
        log.warning("%s", problem)
    if not keys.entries:
        raise ConfigError(
            "it holds no usable key, so nobody could log in",
            where=str(path),
            remedy="add a line like the one in ~/.ssh/id_ed25519.pub",
        )
    return keys


def _parse_host(text: str) -> tuple[str, str]:
    name, equals, address = text.partition("=")
    where = f"--host {printable(text, 80)}"
    if not equals or not is_address(address):
        raise ConfigError("this is not NAME=ADDRESS", where=where, remedy="as in db=10.0.0.5")
    return check_real_host(name, where=where).rstrip("."), address
