"""`gateway connect`: one link, the proxies in front of it, and perhaps a command.

A composition root: it wires `config`, `net`, `proxy` and `ssh` together and contains no protocol.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from gateway import events
from gateway.config.fields import PubkeyMode
from gateway.config.identities import Identities
from gateway.config.questions import Questions, login_methods, why_not
from gateway.config.ssh_config import FAMILIES
from gateway.config.trust import HostKeyChecker
from gateway.config.update_host_keys import HostKeyUpdater
from gateway.errors import (
    AuthenticationError,
    ChannelOpenError,
    ConnectionLost,
    GatewayError,
    RemoteProtocolError,
    printable,
)
from gateway.net import poller
from gateway.net.carrier import SocketCarrier
from gateway.net.dial import DialError, DialOptions, NameResolutionError, dial
from gateway.net.links import LinkSet
from gateway.net.listen import open_listeners
from gateway.net.login import ClientLink
from gateway.net.session import run_command
from gateway.proxy.socks import SocksProxy
from gateway.ssh import hostkeys
from gateway.ssh.algorithms import Preferences
from gateway.ssh.protocol import ClientSetup
from gateway.ssh.transport import RekeyLimit
from gateway.ssh.userauth import PUBLICKEY, LoginPreferences

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from gateway.config.addresses import ListenAddress
    from gateway.config.ssh_config import HostConfig
    from gateway.config.trust import Person
    from gateway.ssh.agent import SessionBinding
    from gateway.ssh.keys import PrivateKey, PublicKey

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 30.0  # when ConnectTimeout is not set; ssh(1) waits for TCP's own
ATTEMPT_PAUSE_S: Final = 1.0  # between ConnectionAttempts, as OpenSSH
_NO_WAY: Final = "there is no way to that network from here"
_DIAL_REMEDIES: Final = {
    errno.ECONNREFUSED: "nothing listens there; is the port right and the SSH server running?",
    errno.ETIMEDOUT: "no answer; is the host up and does a firewall let you through?",
    errno.ENETUNREACH: _NO_WAY,
    errno.EHOSTUNREACH: _NO_WAY,
    errno.EADDRNOTAVAIL: "the bind address (-b) is not one of this machine",
    errno.ENODEV: "there is no such interface (-B); ip link shows those of this machine",
    errno.EPERM: "with -B this needs the capability CAP_NET_RAW",
}


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """What `gateway connect` was told. ``stdin`` is a descriptor, or None for no input.

    ``ready`` is called when the login is made and the proxies are up.
    """

    config: HostConfig
    runs_session: bool
    command: str | None = None
    stdin: int | None = None
    ready: Callable[[], None] | None = None


class _Dialogue:
    """Answers what a login asks: see `gateway.net.login.Dialogue`."""

    def __init__(
        self, checker: HostKeyChecker, identities: Identities, config: HostConfig, person: Person
    ) -> None:
        self._checker = checker
        self._identities = identities
        self._questions = Questions(config, person)
        self._person = person

    async def trust(self, key: PublicKey) -> None:
        await self._checker.check(key)

    async def identities(self, binding: SessionBinding) -> tuple[PublicKey, ...]:
        return await self._identities.prepare(binding)

    async def sign(self, identity: int, data: bytes, algorithm: str) -> bytes | None:
        return await self._identities.sign(identity, data, algorithm, _in_thread)

    async def password(self, attempt: int) -> str | None:
        return await self._questions.password(attempt)

    async def answers(self, wanted: events.AnswersWanted) -> tuple[str, ...] | None:
        return await self._questions.answers(wanted)

    def banner(self, text: str) -> None:
        for line in text.splitlines()[:100]:
            self._person.say(printable(line))


async def _in_thread(function: Callable[[], PrivateKey]) -> PrivateKey:
    return await trio.to_thread.run_sync(function)


async def connect(
    options: ClientOptions, person: Person, report: Callable[[events.Event], None]
) -> int:
    """Connect, log in, and serve until the link or the command ends.

    Returns the command's exit status. Raises `GatewayError` with one sentence for the user.
    """
    config = options.config
    timeout_s = config.connect_timeout_s or CONNECT_TIMEOUT_S
    checker = HostKeyChecker(config, person)
    agent_socket = None if config.identity_agent is None else str(config.identity_agent)
    identities = Identities(config, person, agent_socket)
    for problem in checker.problems:
        log.warning("%s", problem)
    listeners = [(forward, _listen(forward, config)) for forward in config.dynamic_forwards]
    sock, started_s = await _dial(config, timeout_s)
    carrier = SocketCarrier(sock, _name(config))
    client = ClientLink(
        ClientSetup(
            config.user,
            identities.public_keys,
            Preferences(
                config.kex_algorithms, checker.host_key_algorithms(), config.ciphers, config.macs
            ),
            RekeyLimit(config.rekey_limit.bytes, config.rekey_limit.seconds),
            LoginPreferences(
                login_methods(config),
                config.number_of_password_prompts,
                config.pubkey_accepted_algorithms,
                config.pubkey_mode is not PubkeyMode.UNBOUND,
            ),
        ),
        carrier,
        alive_interval_s=config.server_alive_interval_s,
        alive_count_max=config.server_alive_count_max,
        warns_of_weak_crypto=config.warn_weak_crypto,
    )
    outcome: int | GatewayError
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        try:
            spent_s = trio.current_time() - started_s
            dialogue = _Dialogue(checker, identities, config, person)
            try:
                login = await client.log_in(dialogue, timeout_s - spent_s)
            finally:
                await identities.aclose()
        except AuthenticationError as error:
            outcome = _explained(error, config, identities)
        except GatewayError as error:
            outcome = error
        else:
            _warn_of_problems(identities)
            updater = HostKeyUpdater(config, person)
            if updater.is_wanted and checker.may_update:
                nursery.start_soon(_update_host_keys, client, updater)
            elif updater.is_wanted:
                log.info("the host keys are not updated: this one was not known before")
            outcome = await _serve(options, client, login, listeners, report)
        client.link.close()
        nursery.cancel_scope.cancel()
    if isinstance(outcome, GatewayError):
        raise outcome
    return outcome


async def _update_host_keys(client: ClientLink, updater: HostKeyUpdater) -> None:
    """Record which host keys the server offers and proves, and forget those it has no longer."""
    await client.host_keys_offered.wait()
    session_id = client.link.protocol.transport.session_id
    try:
        update = updater.plan(hostkeys.offered_keys_untrusted(client.offered_host_keys))
        if update.new:
            request = hostkeys.prove_request(update.new)
            reply = await client.link.global_request(hostkeys.PROVE, request)
            if not reply.success:
                raise RemoteProtocolError("the server does not prove them")
            hostkeys.check_proofs_untrusted(reply.response_specific, update.new, session_id)
    except GatewayError as error:
        log.info("the host keys are not updated: %s", error)
        return
    if update.new or update.deprecated:
        await updater.apply(update)
    elif update.obstacle:
        log.info("the host keys are not updated: %s", update.obstacle)
    else:
        log.debug("all host keys of the server are recorded")


def _name(config: HostConfig) -> str:
    return f"{config.host_name} port {config.port}"


def _warn_of_problems(identities: Identities) -> None:
    """Say which keys could not be used, although the login went well without them.

    A refused login names them in its own sentence.
    """
    for problem in identities.problems:
        log.warning("%s", problem)


async def _dial(config: HostConfig, timeout_s: float) -> tuple[socket.socket, float]:
    """Connect, as often as ConnectionAttempts says; return the socket and when it was begun."""
    options = DialOptions(
        FAMILIES[config.address_family],
        config.bind_address,
        timeout_s=timeout_s,
        bind_interface=config.bind_interface,
        traffic_class=config.ip_qos.bulk,
        keep_alive=config.tcp_keep_alive,
    )
    attempt = 0
    while True:
        attempt += 1
        started_s = trio.current_time()
        try:
            return await dial(config.host_name, config.port, options), started_s
        except NameResolutionError as error:
            raise ConnectionLost(
                f"cannot find {config.host_name}: {error.text}: check the name, or your DNS"
            ) from error
        except DialError as error:
            if attempt >= config.connection_attempts:
                raise ConnectionLost(
                    f"cannot connect to {_name(config)}: {error.text}: {_dial_remedy(error)}"
                ) from error
            log.info("cannot connect to %s: %s", _name(config), error.text)
        await trio.sleep(ATTEMPT_PAUSE_S)


def _dial_remedy(error: DialError) -> str:
    return _DIAL_REMEDIES.get(error.error_number, "check the address and the port")


def _explained(
    error: AuthenticationError, config: HostConfig, identities: Identities
) -> AuthenticationError:
    """Say what was tried and what could be."""
    taken = error.methods_that_can_continue
    tried = str(error)
    if identities.problems:
        tried += f" ({'; '.join(identities.problems)})"
    methods = [printable(name, 64) for name in taken]
    for at, method in enumerate(taken):
        if reason := why_not(config, method):
            methods[at] += f" ({reason})"
    remedy = "check the user name, and the password with the server's administrator"
    if PUBLICKEY in taken:
        remedy = "put your public key into its authorized_keys, or name another key with -i FILE"
        if not identities.public_keys:
            remedy = "name your key with -i FILE, or make one with: ssh-keygen -t ed25519"
    return AuthenticationError(
        f"{config.user}@{_name(config)} refused the login: {tried}; "
        f"the server takes: {', '.join(methods) or 'nothing'}: {remedy}",
        taken,
    )


def _listen(forward: ListenAddress, config: HostConfig) -> list[socket.socket]:
    """Bind a proxy's port; without a bind address it is loopback, unless GatewayPorts says all."""
    host = forward.host
    if host is None and config.gateway_ports:
        host = "*"
    return open_listeners(host, forward.port)


async def _serve(
    options: ClientOptions,
    client: ClientLink,
    login: events.Authenticated,
    listeners: list[tuple[ListenAddress, list[socket.socket]]],
    report: Callable[[events.Event], None],
) -> int | GatewayError:
    """Open the proxies and wait for the end: of the command, or of the link."""
    link = client.link
    links = LinkSet()
    links.add(link)
    report(events.LinkOpened(link.link_id, link.carrier.name, login.user_name, login.fingerprint))
    proxy = SocksProxy(links)
    outcome: int | GatewayError = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.run, [sock for _, sockets in listeners for sock in sockets])
        for forward, sockets in listeners:
            port = sockets[0].getsockname()[1]
            report(events.ListenerOpened("SOCKS proxy", forward.host or "localhost", port))
        if options.ready is not None:
            options.ready()
        try:
            if options.runs_session:
                outcome = await run_command(link, options.command, options.stdin)
            else:
                await link.ended.wait()
                outcome = link.failure or ConnectionLost("the link was closed")
        except ChannelOpenError as error:
            outcome = ChannelOpenError(
                error.reason_code, f"the server opens no session: {error}: use -N for a tunnel only"
            )
        except GatewayError as error:
            outcome = error
        for _, sockets in listeners:
            for listener in sockets:
                poller.close(listener)
        nursery.cancel_scope.cancel()
    return outcome
