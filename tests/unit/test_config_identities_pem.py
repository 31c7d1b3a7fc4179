"""Key files in PEM and PKCS#8 as identities: the public key of an encrypted one is in FILE.pub."""

import dataclasses

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from gateway.config.identities import Identities
from gateway.ssh.keyfiles import parse_private_key_file_untrusted


@dataclasses.dataclass
class Config:
    """What identities are made from."""

    identity_files: tuple
    batch_mode: bool = False
    number_of_password_prompts: int = 3
    pubkey_authentication: bool = True
    identity_files_are_default: bool = False
    identities_only: bool = False
    certificate_files: tuple = ()
    required_rsa_size: int = 1024


class Person:
    def say(self, text):
        pass

    async def ask_secret(self, prompt):
        return "secret"


KEY = rsa.generate_private_key(65537, 2048)
PLAIN = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
LOCKED = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
PUBLIC = parse_private_key_file_untrusted(PLAIN).public_key


def identities(path, text):
    path.write_bytes(text)
    path.chmod(0o600)
    return Identities(Config((path,)), Person())


def test_a_plain_file(tmp_path):
    assert identities(tmp_path / "id", PLAIN).public_keys == (PUBLIC,)


def test_an_encrypted_file_with_its_public_key(tmp_path):
    (tmp_path / "id.pub").write_text(f"{PUBLIC.openssh_text()} me\n")
    assert identities(tmp_path / "id", LOCKED).public_keys == (PUBLIC,)


def test_an_encrypted_file_without_its_public_key(tmp_path):
    found = identities(tmp_path / "id", LOCKED)
    assert found.public_keys == ()
    (problem,) = found.problems
    assert "does not show its public key" in problem
    assert "ssh-keygen -y -f" in problem


def test_a_public_key_file_that_cannot_be_used(tmp_path):
    (tmp_path / "id.pub").write_text("ssh-rsa AAAA\n")
    found = identities(tmp_path / "id", LOCKED)
    assert found.public_keys == ()
    assert "does not show its public key" in found.problems[0]
