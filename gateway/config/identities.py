"""The user's key files: public halves now, private halves when a server wants them."""

from __future__ import annotations

import os
import shlex
import stat
from typing import TYPE_CHECKING, Final

from gateway.errors import ConfigError
from gateway.ssh.certificates import Certificate, parse_public_key_file_untrusted
from gateway.ssh.keyfiles import (
    PrivateKeyFile,
    WrongPassphrase,
    parse_private_key_file_untrusted,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gateway.config.ssh_config import HostConfig
    from gateway.config.trust import Person
    from gateway.ssh.keys import PrivateKey, PublicKey

KEY_FILE_LIMIT: Final = 1024 * 1024  # bytes


class Identities:
    """The keys to offer, in order, and why others are not among them."""

    def __init__(self, config: HostConfig, person: Person) -> None:
        self._person = person
        self._batch_mode = config.batch_mode
        self._attempts = config.number_of_password_prompts
        self._files: list[PrivateKeyFile] = []
        self._keys: dict[int, PrivateKey] = {}
        self.problems: list[str] = []
        for path in config.identity_files if config.pubkey_authentication else ():
            try:
                found = _with_public_key(load_private_key_file(path), path)
            except FileNotFoundError:
                if not config.identity_files_are_default:
                    self.problems.append(f"{path}: there is no such file")
            except ConfigError as error:
                self.problems.append(str(error))
            else:
                if found.public_key is None:
                    self.problems.append(
                        f"{path}: the encrypted key does not show its public key: "
                        f"`ssh-keygen -y -f {shlex.quote(str(path))}` prints it, for {path}.pub"
                    )
                elif found.public_key not in self.public_keys:
                    self._files.append(found)

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """What may be offered to a server."""
        return tuple(file.public_key for file in self._files if file.public_key is not None)

    async def sign(
        self,
        identity: int,
        data: bytes,
        in_thread: Callable[[Callable[[], PrivateKey]], Awaitable[PrivateKey]],
    ) -> bytes | None:
        """Sign with the identity of this number; None if its passphrase did not come.

        ``in_thread`` runs what takes long: deriving a key from a passphrase.
        """
        key = self._keys.get(identity)
        if key is None:
            key = await self._unlock(self._files[identity], in_thread)
            if key is None:
                return None
            self._keys[identity] = key
        return key.sign(data, key.public.signature_algorithms[0])

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
                        f"{file.where}: the key needs its passphrase and there is no terminal"
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


def _with_public_key(file: PrivateKeyFile, path: Path) -> PrivateKeyFile:
    """Take the public key from FILE.pub where the private key's file does not show it."""
    if file.public_key is not None:
        return file
    public = path.with_name(path.name + ".pub")
    try:
        with public.open("rb") as stream:
            text = stream.read(KEY_FILE_LIMIT)
    except OSError:
        return file
    key = parse_public_key_file_untrusted(text, str(public))
    return file.with_public_key(key.key if isinstance(key, Certificate) else key)


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
