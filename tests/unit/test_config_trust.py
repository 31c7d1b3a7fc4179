"""Trust in host keys and host certificates, with one sentence for every refusal."""

import dataclasses

import pytest

from gateway.config.ssh_config import StrictHostKeyChecking
from gateway.config.trust import HostKeyChecker
from gateway.errors import ConfigError, HostKeyError
from gateway.ssh.algorithms import DEFAULT_HOST_KEY_ALGORITHMS, PLAIN_KEY_ALGORITHMS
from gateway.ssh.certificates import parse_certificate_untrusted
from gateway.ssh.krl import MAGIC
from gateway.ssh.wire import string, uint32
from tests.support.keys import PRIVATE_TYPES, a_certificate, a_private_key

KEY = a_private_key("ssh-ed25519")
CA = a_private_key("ssh-ed25519", "c")
OTHER = a_private_key("ssh-ed25519", "o")


@dataclasses.dataclass
class Config:
    """What a checker reads of a HostConfig."""

    known_hosts_files: tuple
    global_known_hosts_files: tuple = ()
    host_name: str = "host"
    port: int = 22
    host_key_algorithms: tuple = DEFAULT_HOST_KEY_ALGORITHMS
    strict_host_key_checking: StrictHostKeyChecking = StrictHostKeyChecking.YES
    batch_mode: bool = False
    hash_known_hosts: bool = False
    host_key_alias: str | None = None
    revoked_host_keys: tuple = ()
    required_rsa_size: int = 2048
    ca_signature_algorithms: tuple = PLAIN_KEY_ALGORITHMS


class Person:
    def __init__(self, *answers):
        self.answers = list(answers)
        self.heard = []

    def say(self, text):
        self.heard.append(text)

    async def ask(self, question):
        self.heard.append(question)
        return self.answers.pop(0) if self.answers else None

    async def ask_secret(self, prompt):
        raise AssertionError(prompt)


@pytest.fixture
def known_hosts(tmp_path):
    return tmp_path / "known_hosts"


def certificate(key=KEY, **fields):
    return parse_certificate_untrusted(a_certificate(key.public, CA, **fields))


def line(key, names="host", marker=""):
    return f"{marker} {names} {key.public.openssh_text()}\n".lstrip()


async def refusal(known_hosts, text, key, **settings):
    known_hosts.write_text(text)
    person = Person()
    with pytest.raises(HostKeyError) as caught:
        await HostKeyChecker(Config((known_hosts,), **settings), person).check(key)
    assert str(caught.value).isprintable()
    assert known_hosts.read_text() == text
    return str(caught.value)


@pytest.mark.parametrize("name", PRIVATE_TYPES)
async def test_a_certificate_of_a_known_ca(known_hosts, name):
    known_hosts.write_text(line(CA, marker="@cert-authority"))
    person = Person()
    checker = HostKeyChecker(Config((known_hosts,)), person)
    await checker.check(certificate(a_private_key(name)))
    assert person.heard == []
    assert known_hosts.read_text() == line(CA, marker="@cert-authority")
    assert checker.host_key_algorithms() == DEFAULT_HOST_KEY_ALGORITHMS


async def test_the_plain_key_of_a_certificate_may_be_known(known_hosts):
    known_hosts.write_text(line(KEY))
    await HostKeyChecker(Config((known_hosts,)), Person()).check(certificate())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"valid": (0, 1)}, 'the certificate "the id" (serial 7) has expired'),
        ({"principals": (b"other",)}, 'the certificate "the id" (serial 7) is for other, not for'),
        ({"kind": 1}, 'the certificate "the id" (serial 7) is not for hosts'),
    ],
)
async def test_a_certificate_that_does_not_count(known_hosts, fields, reason):
    text = line(CA, marker="@cert-authority")
    message = await refusal(known_hosts, text, certificate(**fields))
    assert "is not known and StrictHostKeyChecking is yes" in message
    assert reason in message
    only = ("ssh-ed25519-cert-v01@openssh.com",)
    message = await refusal(known_hosts, text, certificate(**fields), host_key_algorithms=only)
    assert message.startswith("the certificate of host does not count (")
    assert reason in message


async def test_changed_and_revoked_certificates(known_hosts):
    assert "THE HOST KEY OF host HAS CHANGED" in await refusal(
        known_hosts, line(OTHER), certificate()
    )
    text = line(CA, marker="@cert-authority") + line(CA, "*", "@revoked")
    message = await refusal(known_hosts, text, certificate())
    assert message.startswith(f"the CA of the host key of host, {CA.public.fingerprint}, is marked")
    text = line(CA, marker="@cert-authority") + line(KEY, "*", "@revoked")
    message = await refusal(known_hosts, text, certificate())
    assert message.startswith(f"the host key of host, {KEY.public.fingerprint}, is marked")


async def test_the_plain_key_is_asked_for_and_remembered(known_hosts):
    person = Person("yes")
    config = Config((known_hosts,), strict_host_key_checking=StrictHostKeyChecking.ASK)
    await HostKeyChecker(config, person).check(certificate())
    assert "no @cert-authority line for this host has its CA's key" in person.heard[0]
    assert known_hosts.read_text() == line(KEY)


@pytest.mark.parametrize("name", PRIVATE_TYPES)
async def test_a_changed_key_of_each_type(known_hosts, name):
    key = a_private_key(name, "o")
    message = await refusal(known_hosts, line(a_private_key(name)), key.public)
    assert "THE HOST KEY OF host HAS CHANGED" in message
    assert key.public.fingerprint in message
    assert a_private_key(name).public.fingerprint in message


# ---- the keywords that concern the server's key --------------------------------------------------


def checker(tmp_path, key, **settings):
    """A checker whose known_hosts has ``key`` for the host called "host"."""
    known = tmp_path / "known"
    known.write_text(f"host {key.openssh_text()}\n")
    return HostKeyChecker(Config((known,), **settings), Person())


async def test_host_key_alias_stands_for_host_and_port(tmp_path):
    key = a_private_key("ssh-ed25519").public
    settings = {"host_name": "192.0.2.1", "port": 2222}
    await checker(tmp_path, key, host_key_alias="host", **settings).check(key)
    with pytest.raises(HostKeyError, match="is not known"):
        await checker(tmp_path, key, **settings).check(key)


async def test_revoked_host_keys(tmp_path):
    key, other = a_private_key("ssh-ed25519").public, a_private_key("ecdsa-sha2-nistp256").public
    revoked = tmp_path / "revoked"
    revoked.write_text(f"# lost\n{other.openssh_text()} comment\n")
    await checker(tmp_path, key, revoked_host_keys=(revoked,)).check(key)
    with pytest.raises(HostKeyError, match="RevokedHostKeys"):
        await checker(tmp_path, other, revoked_host_keys=(revoked,)).check(other)


async def test_a_key_revocation_list(tmp_path):
    key, other = a_private_key("ssh-ed25519").public, a_private_key("ecdsa-sha2-nistp256").public
    revoked = tmp_path / "krl"
    header = MAGIC + uint32(1) + bytes(24) + string(b"") + string(b"")
    revoked.write_bytes(header + b"\2" + string(string(other.blob)))
    text = tmp_path / "text"
    text.write_text("# nobody\n")
    files = (text, revoked)
    await checker(tmp_path, key, revoked_host_keys=files).check(key)
    with pytest.raises(HostKeyError, match=r"RevokedHostKeys .*krl \(by itself\)"):
        await checker(tmp_path, other, revoked_host_keys=files).check(other)


@pytest.mark.parametrize("content", [None, b"SSHKRL\n\0binary", b"not a key\n"])
def test_a_revocation_list_that_cannot_be_used_refuses_everything(tmp_path, content):
    revoked = tmp_path / "revoked"
    if content is not None:
        revoked.write_bytes(content)
    with pytest.raises(ConfigError, match="RevokedHostKeys"):
        checker(tmp_path, a_private_key("ssh-ed25519").public, revoked_host_keys=(revoked,))


async def test_required_rsa_size(tmp_path):
    key = a_private_key("ssh-rsa").public
    await checker(tmp_path, key, required_rsa_size=2048).check(key)
    with pytest.raises(HostKeyError, match="RequiredRSASize"):
        await checker(tmp_path, key, required_rsa_size=4096).check(key)
