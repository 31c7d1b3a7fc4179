"""The user's keys, from files and from an agent: public halves now, signatures when one is wanted.

An identity file may also be a public key, or only have one beside it (FILE.pub): then the agent
signs, and the file says which of its keys to offer.
"""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.errors import ConfigError
from gateway.net.agent import Agent, AgentError
from gateway.ssh.certificates import Certificate, parse_public_key_file_untrusted
from gateway.ssh.keyfiles import (
    PrivateKeyFile,
    WrongPassphrase,
    parse_private_key_file_untrusted,
)
from gateway.ssh.keys import (
    PublicKeyError,
    parse_public_key_untrusted,
    plain_name,
    read_key_text,
    rsa_bits,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.config.ssh_config import HostConfig
    from gateway.config.trust import Person
    from gateway.ssh.agent import AgentIdentity, SessionBinding
    from gateway.ssh.keys import PrivateKey, PublicKey

KEY_FILE_LIMIT: Final = 1024 * 1024  # bytes
PUBLIC_KEY_LIMIT: Final = 32 * 1024
_HALF: Final = "it is a public key, and the agent does not hold the other half"


@dataclass(frozen=True, slots=True)
class _Identity:
    """A key, and who can sign with it: the agent, a file, or the one after the other."""

    key: PublicKey
    file: PrivateKeyFile | None = None
    in_agent: bool = False
    problem: str = ""
    """Why the private half in a file cannot be used, should the agent not hold it."""


class Identities:
    """The keys to offer, in order, and why others are not among them.

    ``agent_socket`` is the path of the agent's socket, None for no agent. The agent is asked in
    `prepare`, when the host is known; `aclose` lets go of it.
    """

    def __init__(self, config: HostConfig, person: Person, agent_socket: str | None = None) -> None:
        self._person = person
        self._required_rsa_size = config.required_rsa_size
        self._batch_mode = config.batch_mode
        self._attempts = config.number_of_password_prompts
        self._identities_only = config.identities_only
        self._agent_socket = agent_socket if config.pubkey_authentication else None
        self._agent: Agent | None = None
        self._private_keys: dict[bytes, PrivateKey] = {}
        self.problems: list[str] = []
        self._files: list[_Identity] = []
        for path in config.identity_files if config.pubkey_authentication else ():
            try:
                found = _load(path)
            except FileNotFoundError:
                if not config.identity_files_are_default:
                    self.problems.append(f"{path}: there is no such file")
            except ConfigError as error:
                self.problems.append(str(error))
            else:
                if self._is_too_short(found.key, str(path)):
                    continue
                if found.problem and agent_socket is None:
                    self.problems.append(found.problem)
                if all(found.key != other.key for other in self._files):
                    self._files.append(found)
        self._certificates = self._load_certificates(config)
        self._offered = [identity for identity in self._files if identity.file is not None]

    def _is_too_short(self, key: PublicKey, where: str) -> bool:
        """Apply RequiredRSASize; a key that it rules out is a problem to report."""
        bits = rsa_bits(_plain(key))
        if bits is None or bits >= self._required_rsa_size:
            return False
        self.problems.append(
            f"{where}: RSA of {bits} bits, and RequiredRSASize asks for {self._required_rsa_size}"
        )
        return True

    def _load_certificates(self, config: HostConfig) -> list[Certificate]:
        """Read CertificateFile, and FILE-cert.pub beside each identity file (ssh(1), -i)."""
        found = []
        beside = [Path(f"{path}-cert.pub") for path in config.identity_files]
        for path in (*config.certificate_files, *beside):
            try:
                certificate = _load_certificate(path)
            except FileNotFoundError:
                continue
            except ConfigError as error:
                self.problems.append(str(error))
            else:
                if certificate not in found:
                    found.append(certificate)
        return found

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """What may be offered to a server; after `prepare` the agent's keys are among it."""
        return tuple(identity.key for identity in self._offered)

    async def prepare(self, binding: SessionBinding) -> tuple[PublicKey, ...]:
        """Ask the agent for its keys, for use with this host; return all keys in their order.

        As ssh(1): keys of files that the agent holds, other keys of the agent, other files.
        """
        held = await self._ask_agent(binding)
        files = {identity.key.blob: identity for identity in self._files}
        in_both, in_agent = [], []
        for found in held:
            if self._is_too_short(found.key, "the agent's key " + found.key.fingerprint):
                continue
            identity = files.pop(found.key.blob, None)
            if identity is not None:
                in_both.append(replace(identity, in_agent=True))
            elif not self._identities_only:
                in_agent.append(_Identity(found.key, in_agent=True))
        if self._agent_socket is not None:
            self.problems += [identity.problem for identity in files.values() if identity.problem]
        in_files = [identity for identity in files.values() if identity.file is not None]
        plain = in_both + in_agent + in_files
        self._offered = []
        for identity in plain:
            self._offered += [
                replace(identity, key=certificate)
                for certificate in self._certificates
                if certificate.key == identity.key
                and all(certificate != other.key for other in plain)
            ]
            self._offered.append(identity)
        return self.public_keys

    async def _ask_agent(self, binding: SessionBinding) -> tuple[AgentIdentity, ...]:
        if self._agent_socket is None:
            return ()
        try:
            self._agent = await Agent.connect(self._agent_socket)
            await self._agent.bind_session(binding)
            return await self._agent.identities()
        except AgentError as error:
            self._person.say(f"warning: {error}")
            await self.aclose()
            return ()

    async def aclose(self) -> None:
        """Let go of the agent."""
        if self._agent is not None:
            agent, self._agent = self._agent, None
            await agent.aclose()

    async def sign(
        self,
        identity: int,
        data: bytes,
        algorithm: str,
        in_thread: Callable[[Callable[[], PrivateKey]], Awaitable[PrivateKey]],
    ) -> bytes | None:
        """Sign with the identity of this number; None if that is not possible.

        ``in_thread`` runs what takes long: deriving a key from a passphrase.
        """
        chosen = self._offered[identity]
        if chosen.in_agent and self._agent is not None:
            try:
                return await self._sign_by_agent(self._agent, chosen, data, algorithm)
            except AgentError as error:
                self._person.say(f"warning: {error}")
                self.problems.append(str(error))
        if chosen.file is None:
            return None
        blob = _plain(chosen.key).blob
        key = self._private_keys.get(blob)
        if key is None:
            key = await self._unlock(chosen.file, in_thread)
            if key is None:
                return None
            self._private_keys[blob] = key
        return key.sign(data, plain_name(algorithm))

    async def _sign_by_agent(
        self, agent: Agent, chosen: _Identity, data: bytes, algorithm: str
    ) -> bytes:
        """A certificate from a file is signed for with the key, which is what the agent has."""
        if chosen.key in self._certificates:
            return await agent.sign(_plain(chosen.key), data, plain_name(algorithm))
        return await agent.sign(chosen.key, data, algorithm)

    async def _unlock(
        self,
        file: PrivateKeyFile,
        in_thread: Callable[[Callable[[], PrivateKey]], Awaitable[PrivateKey]],
    ) -> PrivateKey | None:
        try:
            if not file.is_encrypted:
                return file.decrypt()
            for _ in range(self._attempts):
                prompt = f"Enter passphrase for key '{file.where}': "
                passphrase = None if self._batch_mode else await self._person.ask_secret(prompt)
                if passphrase is None:
                    self.problems.append(
                        f"{file.where}: the key needs its passphrase and there is no terminal, "
                        "or nothing was answered"
                    )
                    return None
                if not passphrase:
                    break
                try:
                    return await in_thread(_Decryption(file, passphrase))
                except WrongPassphrase:
                    self._person.say("the passphrase is wrong")
            self.problems.append(f"{file.where}: the passphrase was not given")
        except ConfigError as error:
            self.problems.append(str(error))
        return None


class _Decryption:
    """A call of ``decrypt`` whose repr shows no passphrase."""

    def __init__(self, file: PrivateKeyFile, passphrase: str) -> None:
        self._file = file
        self._passphrase = passphrase

    def __call__(self) -> PrivateKey:
        return self._file.decrypt(self._passphrase)


def _load(path: Path) -> _Identity:
    """Read an identity file, or the public key beside it.

    Raises `FileNotFoundError` if there is neither, and `ConfigError` for everything else.
    """
    if key := load_public_key_file(path):
        return _Identity(key, problem=f"{path}: {_HALF}")
    problem: FileNotFoundError | ConfigError
    file = None
    try:
        file = load_private_key_file(path)
    except (FileNotFoundError, ConfigError) as error:
        problem = error
    else:
        if file.public_key is not None:
            return _Identity(file.public_key, file)
        problem = ConfigError(
            "the encrypted key does not show its public key",
            where=str(path),
            remedy=f"`ssh-keygen -y -f {shlex.quote(str(path))}` prints it, for {path}.pub",
        )
    key = load_public_key_file(Path(f"{path}.pub"))
    if key is None:
        raise problem
    if file is not None:
        return _Identity(key, file.with_public_key(key))
    missing = isinstance(problem, FileNotFoundError)
    return _Identity(key, problem=f"{path}: {_HALF}" if missing else str(problem))


def _plain(key: PublicKey) -> PublicKey:
    return key.key if isinstance(key, Certificate) else key


def _load_certificate(path: Path) -> Certificate:
    """Read a user certificate. Raises `FileNotFoundError`, or `ConfigError`."""
    try:
        with path.open("rb") as file:
            content = file.read(PUBLIC_KEY_LIMIT)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(
            f"the certificate cannot be read: {error.strerror}", where=str(path)
        ) from error
    key = parse_public_key_file_untrusted(content, str(path))
    if not isinstance(key, Certificate):
        raise ConfigError(
            "this is a key, not a certificate",
            where=str(path),
            remedy="name it with -i, and what ssh-keygen -s made with CertificateFile",
        )
    return key


def load_public_key_file(path: Path) -> PublicKey | None:
    """Read a file that holds a public key; None if it is something else, or not there."""
    try:
        with path.open("rb") as file:
            content = file.read(PUBLIC_KEY_LIMIT).decode()
        _, blob, _ = read_key_text(content.strip())
        return parse_public_key_untrusted(blob)
    except (OSError, ValueError, PublicKeyError):
        return None


def load_private_key_file(path: Path) -> PrivateKeyFile:
    """Read a key file that only its owner may read (authfile.c, sshkey_perm_ok).

    Raises `FileNotFoundError`, and `ConfigError` for everything else.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(KEY_FILE_LIMIT + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(
            f"the key file cannot be read: {error.strerror}",
            where=str(path),
            remedy="check its owner and permissions, or name another one with -i FILE",
        ) from error
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and status.st_mode & 0o077:
        raise ConfigError(
            f"other users may read this private key (mode {stat.S_IMODE(status.st_mode):04o})",
            where=str(path),
            remedy=f"chmod 600 {path}",
        )
    return parse_private_key_file_untrusted(content, str(path))
