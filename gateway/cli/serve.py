"""`gateway serve`: a jump box from flags alone."""

from __future__ import annotations

import argparse
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway import events
from gateway.cli.terminal import EXIT_FAILURE, Parser, run, say, start_logging
from gateway.config.addresses import (
    ALL_INTERFACES,
    HostPort,
    ListenAddress,
    check_real_host,
    is_address,
)
from gateway.config.identities import load_private_key_file
from gateway.errors import ConfigError, printable
from gateway.policy.rules import EVERYTHING_BUT_THE_BOX, Action, Rule, parse_target
from gateway.server import Server, ServerOptions
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


def _parser() -> Parser:
    parser = Parser(
        prog="gateway serve",
        description="The SSH server of a jump box: tunnels for the keys you name, and no shell.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--listen", action="append", metavar="ADDRESS:PORT",
        help="accept SSH here (repeatable; default *:2222); port 0 takes a free one")  # fmt: skip
    add("--host-key", required=True, type=Path, metavar="FILE",
        help="the server's private key; made if the file is missing")  # fmt: skip
    add("--authorized-keys", required=True, type=Path, metavar="FILE",
        help="who may log in: any user name is taken, the key decides")  # fmt: skip
    add("--permit-open", action="append", default=[], metavar="HOST:PORT",
        help="a target that may be opened (repeatable, * allowed); without any, everything "
        "but the box itself, link-local addresses and ports for mail")  # fmt: skip
    add("--host", action="append", default=[], metavar="NAME=ADDRESS",
        help="a name that only this server resolves (repeatable)")  # fmt: skip
    for what, (known, _) in _ALGORITHMS.items():
        add(f"--{what}", metavar="LIST", help=f"of: {','.join(known)}")
    add("--rekey-bytes", type=int, metavar="BYTES", help=argparse.SUPPRESS)
    add("-v", dest="verbose", action="count", default=0, help="say more")
    return parser


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
    try:
        keys = parse_authorized_keys(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(
            f"the list of keys cannot be read: {error.strerror}",
            where=str(path),
            remedy="name a file of public keys, one a line, with --authorized-keys FILE",
        ) from error
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


def _permit_open(text: str) -> Rule:
    target = str(HostPort.parse(text, where="--permit-open"))
    to = (parse_target(target, where="--permit-open"),)
    return Rule(f"--permit-open {target}", True, Action.OPEN, to)


def _options(arguments: argparse.Namespace) -> ServerOptions:
    listen = [
        ListenAddress.parse(text, where="--listen", lowest_port=0)
        for text in arguments.listen or ["*:2222"]
    ]
    rules = tuple(map(_permit_open, arguments.permit_open)) or (EVERYTHING_BUT_THE_BOX,)
    return ServerOptions(
        tuple((address.host or ALL_INTERFACES, address.port) for address in listen),
        (_load_host_key(arguments.host_key),),
        _load_authorized_keys(arguments.authorized_keys),
        rules,
        dict(map(_parse_host, arguments.host)),
        RekeyLimit(bytes=arguments.rekey_bytes),
        _preferences(arguments),
    )


def _report(event: events.Event) -> None:
    match event:
        case events.ListenerOpened(_, address, port):
            shown = f"[{address}]" if ":" in address else address
            say(f"listening on {shown}:{port}")
        case events.LinkOpened(link_id, peer, user_name, fingerprint):
            say(f"link {link_id}: {printable(user_name, 64)} from {peer} with {fingerprint}")
        case events.Decision(link_id, _, _, action, target, allowed, rule):
            level = logging.INFO if allowed else logging.WARNING
            verdict = "allowed" if allowed else "refused"
            log.log(level, "link %d: %s %s %s: %s", link_id, action, target, verdict, rule)
        case events.ChannelEnded(link_id, _, requested, dialled, bytes_in, bytes_out, reason):
            log.info(
                "link %d: %s (%s) %s: %d bytes out, %d back",
                link_id,
                requested,
                dialled,
                reason,
                bytes_in,
                bytes_out,
            )
        case events.LinkClosed(link_id, peer, reason):
            log.info("link %d: %s closed: %s", link_id, peer, reason)


async def _serve(options: ServerOptions) -> int:
    await Server(options, _report).run()
    return 0


def run_serve(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    try:
        parsed = _parser().parse_args(arguments)
        start_logging((logging.WARNING, logging.INFO, logging.DEBUG)[min(parsed.verbose, 2)])
        options = _options(parsed)
    except ConfigError as error:
        say(str(error))
        return EXIT_FAILURE
    for key in options.host_keys:
        say(f"host key {key.public.algorithm} {key.public.fingerprint}")
    return run(partial(_serve, options), after_signal=0)
