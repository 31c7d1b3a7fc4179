"""Keys with passphrases, keys that cannot be used, and the trust in host keys (T83, T88)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.ssh.keys import PrivateKey
from tests.interop.targets import need
from tests.support.programs import GATEWAY, USER, Terminal, make_keys, run_gateway

if TYPE_CHECKING:
    from tests.support.programs import Endpoint

HOST = f"{USER}@127.0.0.1"
PASSPHRASE = "correct horse"


def keygen(*arguments: str) -> str:
    result = subprocess.run(
        [need("ssh-keygen"), *arguments], capture_output=True, text=True, check=False
    )
    return result.stdout


class Login:
    """One user's files, and `gateway connect` with them."""

    def __init__(self, server: Endpoint, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.known_hosts = folder / "known_hosts"
        self.key = folder / "id_ed25519"
        self.key.write_bytes(server.keys.user.read_bytes())
        self.key.chmod(0o600)
        self.host_name = f"[127.0.0.1]:{server.port}"

    def options(self, *settings: str, key: Path | None = None) -> list[str]:
        return [
            "-F", "none", "-p", str(self.server.port), "-i", str(key or self.key),
            "-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={self.known_hosts}",
            "-o", "GlobalKnownHostsFile=none", *(f"-o{text}" for text in settings),
        ]  # fmt: skip

    def trust(self) -> None:
        """Record the right host key."""
        self.record(self.host_key())

    def record(self, key: str, marker: str = "") -> None:
        with self.known_hosts.open("a") as file:
            file.write(f"{marker}{self.host_name} {key}\n")

    def host_key(self) -> str:
        return " ".join(keygen("-y", "-f", str(self.server.keys.host)).split()[:2])

    def fingerprint(self) -> str:
        return keygen("-l", "-f", str(self.server.keys.host)).split()[1]

    def connect(self, *settings: str, key: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run `echo in` without a terminal."""
        return run_gateway("connect", *self.options(*settings, key=key), HOST, "echo", "in")

    def ssh(self, *settings: str) -> subprocess.CompletedProcess[str]:
        """Run `echo in` with ssh(1)."""
        return subprocess.run(
            [need("ssh"), *self.options("BatchMode=yes", *settings), HOST, "echo", "in"],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip

    def terminal(self, *settings: str) -> Terminal:
        return Terminal(*GATEWAY, "connect", *self.options(*settings), HOST, "echo in")

    def refused(self, *settings: str, key: Path | None = None) -> str:
        """Fail to connect; return the last line, which is the sentence for the user."""
        result = self.connect(*settings, key=key)
        assert (result.returncode, result.stdout) == (255, ""), result
        return result.stderr.splitlines()[-1]


@pytest.fixture
def login(sshd: Endpoint, tmp_path: Path) -> Login:
    """Files that trust nothing yet."""
    return Login(sshd, tmp_path)


@pytest.fixture
def trusting(login: Login) -> Login:
    """Files with the right host key."""
    login.trust()
    return login


# -- the user's keys -------------------------------------------------------------------------------


@pytest.fixture
def encrypted(trusting: Login) -> Login:
    """The key has a passphrase."""
    keygen("-p", "-N", PASSPHRASE, "-f", str(trusting.key))
    assert trusting.key.read_bytes() != trusting.server.keys.user.read_bytes()
    return trusting


def test_a_passphrase_wrong_then_right(encrypted: Login) -> None:
    with encrypted.terminal() as terminal:
        terminal.expect(f"Enter passphrase for key '{encrypted.key}': ")
        terminal.type("wrong horse")
        terminal.expect("the passphrase is wrong")
        terminal.expect("Enter passphrase for key")
        terminal.type(PASSPHRASE)
        terminal.expect("in\n")
        assert terminal.wait() == 0
        assert "horse" not in terminal.shown


def test_a_passphrase_wrong_three_times(encrypted: Login) -> None:
    with encrypted.terminal() as terminal:
        for _ in range(3):
            terminal.expect("Enter passphrase for key")
            terminal.type("wrong horse")
            terminal.expect("the passphrase is wrong")
        assert terminal.wait() == 255
        assert "the passphrase was not given" in terminal.shown


def test_ctrl_c_instead_of_a_passphrase_leaves_the_terminal_as_it_was(encrypted: Login) -> None:
    with encrypted.terminal() as terminal:
        assert terminal.echoes
        terminal.expect("Enter passphrase for key")
        assert not terminal.echoes
        terminal.press("\x03")
        assert terminal.wait(60) == 255
        assert "Traceback" not in terminal.shown
        assert terminal.echoes


def test_a_passphrase_that_nobody_can_be_asked_for(encrypted: Login) -> None:
    assert "needs its passphrase and there is no terminal" in encrypted.refused()


def test_a_passphrase_that_may_not_be_asked_for(encrypted: Login) -> None:
    with encrypted.terminal("BatchMode=yes") as terminal:
        assert terminal.wait() == 255
        assert "Enter passphrase" not in terminal.shown


def test_a_key_that_others_may_read(trusting: Login) -> None:
    trusting.key.chmod(0o644)
    sentence = trusting.refused()
    assert f"chmod 600 {trusting.key}" in sentence
    assert "mode 0644" in sentence


def test_a_key_that_is_a_folder(trusting: Login) -> None:
    folder = trusting.folder / "folder"
    folder.mkdir()
    assert f"{folder}: the key file cannot be read" in trusting.refused(key=folder)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_key_that_may_not_be_read(trusting: Login) -> None:
    trusting.key.chmod(0)
    assert "the key file cannot be read: Permission denied" in trusting.refused()


def test_a_key_that_does_not_exist(trusting: Login) -> None:
    missing = trusting.folder / "missing"
    assert f"{missing}: there is no such file" in trusting.refused(key=missing)


def test_a_key_file_with_something_else_in_it(trusting: Login) -> None:
    trusting.key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")
    assert str(trusting.key) in trusting.refused()


def test_a_key_that_the_server_does_not_know(trusting: Login) -> None:
    stranger = make_keys(trusting.folder / "stranger").user
    sentence = trusting.refused(key=stranger)
    assert "refused the login" in sentence
    assert "1 key offered; the server takes: publickey" in sentence
    assert "put your public key into its authorized_keys" in sentence


def test_a_second_key_when_the_first_is_not_known(trusting: Login) -> None:
    stranger = make_keys(trusting.folder / "stranger").user
    result = run_gateway(
        "connect", "-i", str(stranger), *trusting.options(), HOST, "echo", "in"
    )  # fmt: skip
    assert (result.stdout, result.returncode) == ("in\n", 0)


# -- host keys that are not known ------------------------------------------------------------------


def test_an_unknown_host_and_no_terminal(login: Login) -> None:
    sentence = login.refused()
    assert login.fingerprint() in sentence
    assert "StrictHostKeyChecking=accept-new" in sentence
    assert not login.known_hosts.exists()


@pytest.mark.parametrize("answers", [["yes"], ["YES"], ["what?", "", "yes"], ["fingerprint"]])
def test_an_unknown_host_that_the_user_accepts(login: Login, answers: list[str]) -> None:
    fingerprint = login.fingerprint()
    with login.terminal() as terminal:
        terminal.expect(re.escape(fingerprint))
        terminal.expect(r"\(yes/no/fingerprint\)\? ")
        for answer in answers[:-1]:
            terminal.type(answer)
            terminal.expect("Please type 'yes', 'no' or the fingerprint: ")
        terminal.type(fingerprint if answers[-1] == "fingerprint" else answers[-1])
        terminal.expect("in\n")
        assert terminal.wait() == 0
    assert login.known_hosts.read_text() == f"{login.host_name} {login.host_key()}\n"


@pytest.mark.parametrize("answer", ["no", "NO", "\x04"])
def test_an_unknown_host_that_the_user_does_not_accept(login: Login, answer: str) -> None:
    with login.terminal() as terminal:
        terminal.expect(r"\(yes/no/fingerprint\)\? ")
        terminal.type(answer)
        assert terminal.wait() == 255
        assert "Traceback" not in terminal.shown
    assert not login.known_hosts.exists()


def test_an_unknown_host_in_batch_mode(login: Login) -> None:
    with login.terminal("BatchMode=yes") as terminal:
        assert terminal.wait() == 255
        assert "yes/no" not in terminal.shown
        assert login.fingerprint() in terminal.shown


def test_an_unknown_host_when_checking_is_strict(login: Login) -> None:
    sentence = login.refused("StrictHostKeyChecking=yes")
    assert login.fingerprint() in sentence
    assert "StrictHostKeyChecking is yes" in sentence


@pytest.mark.parametrize("hashed", ["no", "yes"])
def test_accept_new_records_what_ssh_keygen_and_ssh_find(login: Login, hashed: str) -> None:
    assert keygen("-F", login.host_name, "-f", str(login.known_hosts)) == ""
    result = login.connect("StrictHostKeyChecking=accept-new", f"HashKnownHosts={hashed}")
    assert (result.stdout, result.returncode) == ("in\n", 0)
    assert login.known_hosts.read_text().startswith("|1|" if hashed == "yes" else login.host_name)
    assert login.host_key() in keygen("-F", login.host_name, "-f", str(login.known_hosts))
    assert login.ssh("StrictHostKeyChecking=yes").stdout == "in\n"
    assert login.connect("StrictHostKeyChecking=yes").stdout == "in\n"
    assert len(login.known_hosts.read_text().splitlines()) == 1


def test_quiet_means_that_nothing_is_said(login: Login) -> None:
    result = login.connect("StrictHostKeyChecking=accept-new", "LogLevel=QUIET")
    assert (result.stdout, result.stderr) == ("in\n", "")
    assert login.known_hosts.exists()


def test_accept_new_after_a_last_line_without_its_end(login: Login) -> None:
    login.known_hosts.write_text("# no newline at the end")
    assert login.connect("StrictHostKeyChecking=accept-new").returncode == 0
    assert login.connect("StrictHostKeyChecking=yes").returncode == 0
    assert len(login.known_hosts.read_text().splitlines()) == 2


def test_a_record_that_cannot_be_written_is_a_warning(login: Login) -> None:
    login.known_hosts = Path("/proc/no-such-folder/known_hosts")
    result = login.connect("StrictHostKeyChecking=accept-new")
    assert (result.stdout, result.returncode) == ("in\n", 0)
    assert "could not be saved" in result.stderr


@pytest.mark.parametrize("hashed", ["no", "yes"])
def test_what_ssh_records_is_found(login: Login, hashed: str) -> None:
    result = login.ssh("StrictHostKeyChecking=accept-new", f"HashKnownHosts={hashed}")
    assert result.stdout == "in\n"
    assert login.connect("StrictHostKeyChecking=yes").stdout == "in\n"


def test_names_that_ssh_keygen_hashed_are_found(trusting: Login) -> None:
    keygen("-H", "-f", str(trusting.known_hosts))
    assert trusting.known_hosts.read_text().startswith("|1|")
    assert trusting.connect("StrictHostKeyChecking=yes").stdout == "in\n"


# -- host keys that are wrong ----------------------------------------------------------------------


def _another_key() -> tuple[str, str]:
    public = PrivateKey.generate(os.urandom).public
    return public.openssh_text(), public.fingerprint


@pytest.mark.parametrize("strict", ["yes", "ask", "accept-new", "no"])
@pytest.mark.parametrize("hashed", [False, True])
def test_a_changed_host_key(login: Login, strict: str, hashed: bool) -> None:
    text, recorded = _another_key()
    login.known_hosts.write_text("# a comment\n")
    login.record(text)
    if hashed:
        keygen("-H", "-f", str(login.known_hosts))
    before = login.known_hosts.read_text()
    sentence = login.refused(f"StrictHostKeyChecking={strict}")
    assert "HAS CHANGED" in sentence
    assert login.fingerprint() in sentence
    assert recorded in sentence
    assert f"{login.known_hosts}:2" in sentence
    assert f"ssh-keygen -f {login.known_hosts} -R '{login.host_name}'" in sentence
    assert login.known_hosts.read_text() == before


def test_the_remedy_for_a_changed_host_key_is_one(login: Login) -> None:
    login.record(_another_key()[0])
    remedy = login.refused().rpartition("with: ")[2].replace("'", "").split()
    assert remedy[0] == "ssh-keygen"
    keygen(*remedy[1:])
    assert login.connect("StrictHostKeyChecking=accept-new").stdout == "in\n"


def test_a_revoked_host_key(trusting: Login) -> None:
    trusting.record(trusting.host_key(), "@revoked ")
    sentence = trusting.refused("StrictHostKeyChecking=accept-new")
    assert "revoked" in sentence
    assert f"{trusting.known_hosts}:2" in sentence


def test_known_hosts_that_cannot_be_read_is_not_trust(login: Login) -> None:
    login.known_hosts.mkdir()
    sentence = login.refused("StrictHostKeyChecking=accept-new")
    assert "the file cannot be read" in sentence
