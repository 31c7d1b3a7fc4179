"""One host to log in to: what it takes, what the person is asked, and why it did not work."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from gateway.config.fields import PubkeyMode
from gateway.config.identities import Identities
from gateway.config.questions import Questions, login_methods, why_not
from gateway.config.trust import HostKeyChecker
from gateway.config.update_host_keys import HostKeyUpdater
from gateway.errors import AuthenticationError, GatewayError, RemoteProtocolError, printable
from gateway.net.login import ClientLink
from gateway.ssh import hostkeys
from gateway.ssh.algorithms import Preferences
from gateway.ssh.protocol import ClientSetup
from gateway.ssh.transport import RekeyLimit
from gateway.ssh.userauth import PUBLICKEY, LoginPreferences

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway import events
    from gateway.config.ssh_config import HostConfig
    from gateway.config.trust import Person
    from gateway.net.carrier import Carrier
    from gateway.ssh.agent import SessionBinding
    from gateway.ssh.keys import PrivateKey, PublicKey

log = logging.getLogger(__name__)


class HostLogin:
    """A host of the way, with its own keys, known_hosts and agent; `Dialogue` of its link."""

    def __init__(self, config: HostConfig, person: Person) -> None:
        self.config = config
        self._person = person
        self._checker = HostKeyChecker(config, person)
        agent_socket = None if config.identity_agent is None else str(config.identity_agent)
        self._identities = Identities(config, person, agent_socket)
        self._questions = Questions(config, person)

    @property
    def problems(self) -> tuple[str, ...]:
        """What in known_hosts could not be used."""
        return self._checker.problems

    @property
    def name(self) -> str:
        """The host as messages name it."""
        return f"{self.config.host_name} port {self.config.port}"

    def link(self, carrier: Carrier) -> ClientLink:
        """Make the link to it, which is to be run and then logged in."""
        config = self.config
        setup = ClientSetup(
            config.user,
            self._identities.public_keys,
            Preferences(
                config.kex_algorithms,
                self._checker.host_key_algorithms(),
                config.ciphers,
                config.macs,
            ),
            RekeyLimit(config.rekey_limit.bytes, config.rekey_limit.seconds),
            LoginPreferences(
                login_methods(config),
                config.number_of_password_prompts,
                config.pubkey_accepted_algorithms,
                config.pubkey_mode is not PubkeyMode.UNBOUND,
            ),
        )
        return ClientLink(
            setup,
            carrier,
            alive_interval_s=config.server_alive_interval_s,
            alive_count_max=config.server_alive_count_max,
            warns_of_weak_crypto=config.warn_weak_crypto,
        )

    async def log_in(self, client: ClientLink, timeout_s: float) -> events.Authenticated:
        """Log in over a running link. Raises `GatewayError` with one sentence for the user."""
        try:
            login = await client.log_in(self, timeout_s)
        except AuthenticationError as error:
            raise self._explained(error) from error
        finally:
            await self._identities.aclose()
        for problem in self._identities.problems:  # a refused login names them itself
            log.warning("%s", problem)
        return login

    def _explained(self, error: AuthenticationError) -> AuthenticationError:
        """Say what was tried and what could be."""
        config, problems = self.config, self._identities.problems
        taken = error.methods_that_can_continue
        tried = str(error)
        if problems:
            tried += f" ({'; '.join(problems)})"
        methods = [printable(name, 64) for name in taken]
        for at, method in enumerate(taken):
            if reason := why_not(config, method):
                methods[at] += f" ({reason})"
        remedy = "check the user name, and the password with the server's administrator"
        if PUBLICKEY in taken:
            remedy = "put your public key into its authorized_keys, or name another key with "
            remedy += "-i FILE"
            if not self._identities.public_keys:
                remedy = "name your key with -i FILE, or make one with: ssh-keygen -t ed25519"
        return AuthenticationError(
            f"{config.user}@{self.name} refused the login: {tried}; "
            f"the server takes: {', '.join(methods) or 'nothing'}: {remedy}",
            taken,
        )

    def host_keys_update(self, client: ClientLink) -> Callable[[], Awaitable[None]] | None:
        """Return what records the server's host keys, if that is wanted: a function to run."""
        updater = HostKeyUpdater(self.config, self._person)
        if not updater.is_wanted:
            return None
        if not self._checker.may_update:
            log.info("the host keys are not updated: this one was not known before")
            return None
        return partial(_update_host_keys, client, updater)

    # -- what the link asks: see `gateway.net.login.Dialogue` --------------------------------------

    async def trust(self, key: PublicKey) -> None:
        """See `Dialogue`."""
        await self._checker.check(key)

    async def identities(self, binding: SessionBinding) -> tuple[PublicKey, ...]:
        """See `Dialogue`."""
        return await self._identities.prepare(binding)

    async def sign(self, identity: int, data: bytes, algorithm: str) -> bytes | None:
        """See `Dialogue`."""
        return await self._identities.sign(identity, data, algorithm, _in_thread)

    async def password(self, attempt: int) -> str | None:
        """See `Dialogue`."""
        return await self._questions.password(attempt)

    async def answers(self, wanted: events.AnswersWanted) -> tuple[str, ...] | None:
        """See `Dialogue`."""
        return await self._questions.answers(wanted)

    def banner(self, text: str) -> None:
        """See `Dialogue`."""
        for line in text.splitlines()[:100]:
            self._person.say(printable(line))


async def _in_thread(function: Callable[[], PrivateKey]) -> PrivateKey:
    return await trio.to_thread.run_sync(function)


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
