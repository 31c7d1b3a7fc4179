"""The known_hosts files of the user and of the system: is this the server that it was last time?"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, Protocol

from gateway.config.files import read_if_exists
from gateway.config.revoked import RevokedKeys
from gateway.config.ssh_config import StrictHostKeyChecking
from gateway.errors import ConfigError, HostKeyError
from gateway.ssh.certificates import Certificate
from gateway.ssh.keys import rsa_bits
from gateway.ssh.known_hosts import KnownHosts, Status, Verdict, format_line, host_name

if TYPE_CHECKING:
    from gateway.config.ssh_config import HostConfig
    from gateway.ssh.keys import PublicKey

DEFAULT_PORT: Final = 22  # a HostKeyAlias stands in known_hosts without a port


class Person(Protocol):
    """Whoever can be asked and told."""

    def say(self, text: str) -> None:
        """Show one line."""

    async def ask(self, question: str) -> str | None:
        """Return a line that was typed, or None if there is no terminal."""

    async def ask_secret(self, prompt: str) -> str | None:
        """Return a line that was typed unseen, or None if there is no terminal."""


def recorded_as(config: HostConfig) -> tuple[str, int]:
    """Return the host and the port under which known_hosts has its keys."""
    if config.host_key_alias:
        return config.host_key_alias, DEFAULT_PORT
    return config.host_name, config.port


class HostKeyChecker:
    """Decides about host keys as StrictHostKeyChecking says (sshconnect.c, check_host_key)."""

    def __init__(self, config: HostConfig, person: Person) -> None:
        self._config = config
        self._person = person
        self._host, self._port = recorded_as(config)
        self.may_update = False
        """UpdateHostKeys: the user, or a file of the user's, has vouched for the plain key."""
        self._revoked = RevokedKeys(config.revoked_host_keys)
        files = (*config.known_hosts_files, *config.global_known_hosts_files)
        self._known = KnownHosts.parse(
            [
                (str(path), text)
                for path in files
                if (text := read_if_exists(path, "UserKnownHostsFile")) is not None
            ]
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """Lines that could not be used."""
        return self._known.problems

    def host_key_algorithms(self) -> tuple[str, ...]:
        """Return the configured algorithms, those of recorded keys first."""
        return self._known.host_key_algorithms_for(
            self._host, self._port, self._config.host_key_algorithms
        )

    async def check(self, key: PublicKey) -> None:
        """Return if the key is trusted; raise `HostKeyError` with the reason otherwise.

        A certificate that no CA in the files vouches for is judged as its plain key, as ssh does.
        """
        verdict = self._known.lookup(self._host, self._port, key, time.time())
        self._check_strength(key)
        self._check_revoked_files(key)
        self._check_allowed(verdict)
        match verdict.status:
            case Status.KNOWN:
                files = map(str, self._config.known_hosts_files)
                plain = not isinstance(verdict.key, Certificate)
                self.may_update = plain and _file(verdict) in files
                return
            case Status.REVOKED:
                raise HostKeyError(_revoked(verdict))
            case Status.CHANGED:
                raise HostKeyError(self._changed(verdict, verdict.key))
            case Status.UNKNOWN:
                await self._meet(verdict, verdict.key)

    def _check_strength(self, key: PublicKey) -> None:
        """RequiredRSASize, and CASignatureAlgorithms for certificates (ssh_config(5))."""
        allowed = self._config.ca_signature_algorithms
        if isinstance(key, Certificate) and key.ca_signature_algorithm not in allowed:
            raise HostKeyError(
                f"the certificate of {self._host} is signed with {key.ca_signature_algorithm}, "
                f"which CASignatureAlgorithms does not have"
            )
        bits = rsa_bits(key.key if isinstance(key, Certificate) else key)
        if bits is not None and bits < self._config.required_rsa_size:
            raise HostKeyError(
                f"the host key of {self._host} is RSA of {bits} bits, and RequiredRSASize asks "
                f"for {self._config.required_rsa_size}"
            )

    def _check_revoked_files(self, key: PublicKey) -> None:
        """RevokedHostKeys: the key, a certificate, its key, and its CA's."""
        if reason := self._revoked.reason(key):
            raise HostKeyError(
                f"the host key of {self._host}, {key.fingerprint}, is revoked in {reason}: "
                f"do not connect, and ask the server's administrator"
            )

    def _check_allowed(self, verdict: Verdict) -> None:
        """A key without its certificate must itself be one of HostKeyAlgorithms, as in ssh 10."""
        if verdict.certificate_problem and not any(
            name in self._config.host_key_algorithms for name in verdict.key.signature_algorithms
        ):
            raise HostKeyError(
                f"the certificate of {verdict.name} does not count "
                f"({verdict.certificate_problem}), and HostKeyAlgorithms has no "
                f"{verdict.key.algorithm} keys without one"
            )

    def _changed(self, verdict: Verdict, key: PublicKey) -> str:
        recorded = verdict.entry.fingerprint if verdict.entry else "another key"
        name = host_name(self._host, self._port)
        file = verdict.entry.file if verdict.entry else ""
        return (
            f"THE HOST KEY OF {name} HAS CHANGED: it shows {key.fingerprint}, but "
            f"{_place(verdict)} records {recorded}: somebody may be between you and the server; "
            f"if its administrator "
            f"confirms the new key, remove the old one with: ssh-keygen -f {file} -R '{name}'"
        )

    async def _meet(self, verdict: Verdict, key: PublicKey) -> None:
        """An unknown key: ask, accept or refuse."""
        what = f"the host key of {verdict.name}, {key.algorithm} {key.fingerprint},"
        if verdict.certificate_problem:
            what += f" whose certificate does not count ({verdict.certificate_problem}),"
        match self._config.strict_host_key_checking:
            case StrictHostKeyChecking.YES:
                raise HostKeyError(
                    f"{what} is not known and StrictHostKeyChecking is yes: add it to "
                    f"known_hosts, or use -o StrictHostKeyChecking=accept-new"
                )
            case StrictHostKeyChecking.ASK:
                await self._ask(what, key)
                self.may_update = True
        self._remember(verdict.name, key)

    async def _ask(self, what: str, key: PublicKey) -> None:
        question = f"{what[0].upper()}{what[1:]} is not known.\nConnect (yes/no/fingerprint)? "
        answer = None if self._config.batch_mode else await self._person.ask(question)
        while answer is not None:
            if answer.strip().lower() == "yes" or answer.strip() == key.fingerprint:
                return
            if answer.strip().lower() == "no":
                raise HostKeyError("the host key was not accepted: nothing was sent")
            answer = await self._person.ask("Please type 'yes', 'no' or the fingerprint: ")
        raise HostKeyError(
            f"{what} is not known and there is no terminal to ask: "
            "compare the fingerprint, then use -o StrictHostKeyChecking=accept-new"
        )

    def _remember(self, name: str, key: PublicKey) -> None:
        if not self._config.known_hosts_files:
            return
        path = self._config.known_hosts_files[0]
        try:
            line = format_line(
                self._host,
                self._port,
                key,
                hashed=self._config.hash_known_hosts,
            )
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write(line.encode())
        except (OSError, ConfigError) as error:
            self._person.say(f"warning: the host key could not be saved in {path}: {error}")
        else:
            self._person.say(f"added {name} ({key.algorithm} {key.fingerprint}) to {path}")


def _revoked(verdict: Verdict) -> str:
    what = f"the host key of {verdict.name}, {verdict.key.fingerprint},"
    if (
        isinstance(verdict.key, Certificate)
        and verdict.entry
        and verdict.entry.blob == verdict.key.ca_key.blob
    ):
        what = f"the CA of the host key of {verdict.name}, {verdict.entry.fingerprint},"
    return (
        f"{what} is marked as revoked in {_place(verdict)}: do not connect, and ask the server's "
        f"administrator"
    )


def _file(verdict: Verdict) -> str:
    return verdict.entry.file if verdict.entry else ""


def _place(verdict: Verdict) -> str:
    return verdict.entry.place if verdict.entry else "known_hosts"
