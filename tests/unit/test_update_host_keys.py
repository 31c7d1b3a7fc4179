"""UpdateHostKeys: when it may ask and write, and what is left alone."""

import dataclasses

import pytest

from gateway.config.fields import UpdateHostKeys
from gateway.config.ssh_config import StrictHostKeyChecking
from gateway.config.trust import HostKeyChecker
from gateway.config.update_host_keys import HostKeyUpdater, replace_file
from gateway.errors import ConfigError
from gateway.ssh.algorithms import DEFAULT_HOST_KEY_ALGORITHMS, PLAIN_KEY_ALGORITHMS
from gateway.ssh.known_hosts import edit_lines
from tests.support.keys import a_private_key

TRUSTED, NEW, OLD = (a_private_key("ssh-ed25519", letter).public for letter in "tno")


@dataclasses.dataclass
class Config:
    """What an updater reads of a HostConfig."""

    known_hosts_files: tuple
    update_host_keys: UpdateHostKeys = UpdateHostKeys.YES
    batch_mode: bool = False
    host_name: str = "host"
    port: int = 22
    host_key_alias: str | None = None
    hash_known_hosts: bool = False
    host_key_algorithms: tuple = DEFAULT_HOST_KEY_ALGORITHMS
    # And a checker.
    global_known_hosts_files: tuple = ()
    strict_host_key_checking: StrictHostKeyChecking = StrictHostKeyChecking.ASK
    revoked_host_keys: tuple = ()
    required_rsa_size: int = 2048
    ca_signature_algorithms: tuple = PLAIN_KEY_ALGORITHMS


class Person:
    def __init__(self, answer=None):
        self.answer = answer
        self.heard = []

    def say(self, text):
        self.heard.append(text)

    async def ask(self, question):
        self.heard.append(question)
        return self.answer


def lines(*keys, name="host"):
    return "".join(f"{name} {key.openssh_text()}\n" for key in keys)


async def update(config, person=None, offered=(TRUSTED, NEW)):
    updater = HostKeyUpdater(config, person or Person())
    plan = updater.plan(offered)
    if plan.new or plan.deprecated:
        await updater.apply(plan)
    return plan


@pytest.mark.parametrize(("answer", "changed"), [("yes", True), ("no", False), (None, False)])
async def test_ask(tmp_path, caplog, answer, changed):
    caplog.set_level("INFO")
    file = tmp_path / "known_hosts"
    file.write_text(lines(TRUSTED, OLD))
    person = Person(answer)
    await update(Config((file,), UpdateHostKeys.ASK), person)
    assert file.read_text() == (lines(TRUSTED, NEW) if changed else lines(TRUSTED, OLD))
    assert f"added ssh-ed25519 {NEW.fingerprint}" in person.heard[0]
    assert f"removed ssh-ed25519 {OLD.fingerprint}" in person.heard[0]
    said = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert len(said) == (answer is None)
    assert all(
        "UpdateHostKeys is ask, and there is no terminal, or a session" in line for line in said
    )


@pytest.mark.parametrize(
    ("mode", "batch_mode", "wanted"),
    [
        (UpdateHostKeys.YES, True, True),
        (UpdateHostKeys.ASK, False, True),
        (UpdateHostKeys.ASK, True, False),
        (UpdateHostKeys.NO, False, False),
    ],
)
def test_when_it_is_wanted(tmp_path, mode, batch_mode, wanted):
    assert HostKeyUpdater(Config((tmp_path,), mode, batch_mode), Person()).is_wanted == wanted
    assert not HostKeyUpdater(Config((), mode, batch_mode), Person()).is_wanted


async def test_keys_offered_twice_change_nothing(tmp_path):
    file = tmp_path / "known_hosts"
    file.write_text(lines(TRUSTED, OLD))
    plan = await update(Config((file,)), offered=(TRUSTED, NEW, NEW))
    assert plan.obstacle == "the server offers a key twice"
    assert file.read_text() == lines(TRUSTED, OLD)


@pytest.mark.parametrize("offered", [(), (a_private_key("ssh-rsa").public,)])
async def test_a_server_without_usable_keys_changes_nothing(tmp_path, offered):
    file = tmp_path / "known_hosts"
    file.write_text(lines(TRUSTED))
    config = Config((file,), host_key_algorithms=("ssh-ed25519",))
    plan = await update(config, offered=offered)
    assert plan.new == plan.deprecated == ()
    assert file.read_text() == lines(TRUSTED)


async def test_what_others_wrote_in_the_meantime_stays(tmp_path):
    file = tmp_path / "known_hosts"
    file.write_text(lines(TRUSTED, OLD))
    updater = HostKeyUpdater(Config((file,)), Person())
    plan = updater.plan((TRUSTED, NEW))
    file.write_text(lines(TRUSTED, name="first") + lines(OLD, TRUSTED, NEW))
    await updater.apply(plan)
    assert file.read_text() == lines(TRUSTED, name="first") + lines(TRUSTED, NEW)


def test_what_is_no_file_is_not_replaced(tmp_path):
    """As /dev/null, which is often named so that nothing is recorded."""
    with pytest.raises(ConfigError, match="not a regular file"):
        replace_file(tmp_path, b"")
    assert tmp_path.is_dir()


@pytest.mark.parametrize("answer", ["yes", TRUSTED.fingerprint])
async def test_a_key_that_the_user_accepted_is_trusted(tmp_path, answer):
    """ssh_config(5): "already trusted or explicitly accepted by the user"."""
    file = tmp_path / "known_hosts"
    checker = HostKeyChecker(Config((file,)), Person(answer))
    await checker.check(TRUSTED)
    assert checker.may_update


async def test_a_key_that_nobody_accepted_is_not(tmp_path):
    config = Config((tmp_path / "known_hosts",))
    config.strict_host_key_checking = StrictHostKeyChecking.ACCEPT_NEW
    checker = HostKeyChecker(config, Person())
    await checker.check(TRUSTED)
    assert not checker.may_update
    other = tmp_path / "global"
    other.write_text(lines(TRUSTED))
    checker = HostKeyChecker(Config((), global_known_hosts_files=(other,)), Person())
    await checker.check(TRUSTED)
    assert not checker.may_update


@pytest.mark.parametrize(
    ("text", "remove", "add", "result"),
    [
        (b"a\nb\nc\n", {2}, ["d\n"], b"a\nc\nd\n"),
        (b"a\nb", {2}, [], b"a\n"),
        (b"a\nb", set(), ["c\n"], b"a\nb\nc\n"),
        (b"a\r\n\xff\n", {1}, [], b"\xff\n"),
        (b"", set(), ["a\n"], b"a\n"),
        (b"a\n", {1}, [], b""),
    ],
)
def test_edit_lines(text, remove, add, result):
    assert edit_lines(text, remove, add) == result
