"""Logins that ssh can make, over the wire: a real ssh-agent, stock sshd, and AsyncSSH as a server.

OpenSSH's server needs PAM for passwords of its own and for keyboard-interactive, so AsyncSSH is the
peer for those. There is no terminal here: whoever is asked, is asked through SSH_ASKPASS.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import itertools
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import asyncssh
import pytest

from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import KEY_TYPES, PrivateKey
from tests.interop.targets import need
from tests.support.programs import (
    GATEWAY,
    client_options,
    make_keys,
    running,
    running_gateway_serve,
    running_sshd,
)

pytestmark = [pytest.mark.interop]

USER = getpass.getuser()


# ---- our client, run to its end ------------------------------------------------------------------


class Login:
    """`gateway connect … echo in`, without a terminal and with an environment of its own."""

    def __init__(self, folder, port, user=USER):
        self.folder = folder
        self.port = port
        self.user = user
        self.environment = {}

    def run(self, *options):
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SSH_", "DISPLAY", "WAYLAND"))
        }
        settings = [*options, "StrictHostKeyChecking=accept-new", "GlobalKnownHostsFile=none"]
        settings.append(f"UserKnownHostsFile={self.folder / 'known_hosts'}")
        arguments = [item for setting in settings for item in ("-o", setting)]
        return subprocess.run(
            [*GATEWAY, "connect", "-F", "none", "-n", "-p", str(self.port), *arguments,
             f"{self.user}@127.0.0.1", "echo", "in"],
            capture_output=True, text=True, timeout=60, start_new_session=True, check=False,
            stdin=subprocess.DEVNULL, env=environment | self.environment,
        )  # fmt: skip

    def works(self, *options):
        result = self.run(*options)
        assert (result.returncode, result.stdout) == (0, "in\n"), result.stderr
        return result.stderr

    def refused(self, *options):
        result = self.run(*options)
        assert "Traceback" not in result.stderr
        assert (result.returncode, result.stdout) == (255, ""), result.stderr
        return result.stderr

    def answer_with(self, *answers, status=0):
        """Let SSH_ASKPASS give these answers, one after the other; the last one for ever."""
        asked = self.folder / "asked"
        script = self.folder / "askpass"
        lines = "".join(
            f"{at}) echo '{answer}';;\n" for at, answer in enumerate(answers[:-1], start=1)
        )
        script.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$1\" >>{asked}\necho >>{asked}.count\n"
            f"case $(wc -l <{asked}.count) in\n{lines}"
            f"*) echo '{answers[-1]}';;\nesac\nexit {status}\n"
        )
        script.chmod(0o700)
        self.environment |= {"SSH_ASKPASS": str(script), "SSH_ASKPASS_REQUIRE": "force"}

    @property
    def asked(self):
        """What was asked so far."""
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []


# ---- agents --------------------------------------------------------------------------------------


class SshAgent:
    """A running ssh-agent and ssh-add for it."""

    def __init__(self, program, socket_path, folder):
        self.program = program
        self.path = socket_path
        self._folder = folder

    def add(self, *arguments, **environment):
        """Run ssh-add; nothing of the user's own environment reaches it."""
        subprocess.run(
            ["ssh-add", *map(str, arguments)],
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder), "SSH_AUTH_SOCK": self.path,
                 **environment},
            check=True, capture_output=True, stdin=subprocess.DEVNULL, start_new_session=True,
            timeout=20,
        )  # fmt: skip


@pytest.fixture
def agent(tmp_path):
    need("ssh-agent")
    need("ssh-add")
    path = tmp_path / "agent.socket"
    with running("ssh-agent", "-d", "-a", str(path)) as program:
        program.wait_line("SSH_AUTH_SOCK")
        yield SshAgent(program, str(path), tmp_path)


@pytest.fixture
def keys(tmp_path):
    return make_keys(tmp_path / "keys")


@pytest.fixture
def sshd(keys):
    need("sshd")
    with running_sshd(keys) as endpoint:
        yield endpoint


@pytest.fixture
def login(tmp_path, sshd):
    return Login(tmp_path, sshd.port)


NO_FILES = "IdentityFile=none"


def test_a_key_of_the_agent(login, agent, keys):
    agent.add("-q", keys.user)
    login.environment["SSH_AUTH_SOCK"] = agent.path
    assert "warning: the ssh-agent" not in login.works(NO_FILES)
    agent.program.wait_line("process_ext_session_bind: recorded")


@pytest.mark.parametrize("certified", [False, True])
@pytest.mark.parametrize(("kind", "name"), [("ed25519", "ssh-ed25519"),
                                            ("ecdsa", "ecdsa-sha2-nistp256"),
                                            ("rsa", "ssh-rsa")])  # fmt: skip
def test_every_kind_of_key_in_the_agent(keys, agent, tmp_path, kind, name, certified):
    need("sshd")
    if name not in KEY_TYPES or (certified and not find_spec("gateway.ssh.certificates")):
        pytest.skip(f"{kind} keys or certificates are not supported yet")

    def keygen(*arguments):
        subprocess.run(["ssh-keygen", "-q", *arguments], check=True, stdin=subprocess.DEVNULL)

    key, authority, extra = tmp_path / "key", tmp_path / "authority", ""
    keygen("-t", kind, "-N", "", "-f", key)
    if certified:
        keygen("-t", "ed25519", "-N", "", "-f", authority)
        keygen("-s", authority, "-I", "test", "-n", USER, f"{key}.pub")
        extra = f"TrustedUserCAKeys {authority}.pub"
    else:
        keys.authorized.write_text(Path(f"{key}.pub").read_text())
    agent.add("-q", key)
    with running_sshd(keys, extra) as sshd:
        login = Login(tmp_path, sshd.port)
        login.environment["SSH_AUTH_SOCK"] = agent.path
        login.works(NO_FILES)


def test_a_key_that_may_only_be_used_for_this_host(login, agent, keys, tmp_path):
    """The agent signs only for a session that was bound to the host, in the bound form."""
    known, other = tmp_path / "destinations", tmp_path / "others"
    public = subprocess.run(
        ["ssh-keygen", "-y", "-f", keys.host], capture_output=True, text=True, check=True
    ).stdout
    known.write_text(f"jump {public}")
    stranger = PrivateKey.generate(os.urandom)
    other.write_text(f"jump {stranger.public.openssh_text()}\n")
    login.environment["SSH_AUTH_SOCK"] = agent.path
    agent.add("-q", "-H", other, "-h", "jump", keys.user)
    assert "publickey: " in login.refused(NO_FILES)
    agent.add("-q", "-D")
    agent.add("-q", "-H", known, "-h", "jump", keys.user)
    login.works(NO_FILES)


def test_the_public_half_of_a_file_chooses_the_agents_key(login, agent, keys):
    agent.add("-q", keys.user)
    keys.user.unlink()
    login.environment["SSH_AUTH_SOCK"] = agent.path
    login.works(f"IdentityFile={keys.user}", "IdentitiesOnly=yes")
    login.works(f"IdentityFile={keys.user}.pub", "IdentitiesOnly=yes")
    assert "no keys offered" in login.refused(NO_FILES, "IdentitiesOnly=yes")


def test_a_locked_agent(login, agent, keys, tmp_path):
    agent.add("-q", keys.user)
    askpass = tmp_path / "lock"
    askpass.write_text("#!/bin/sh\necho secret\n")
    askpass.chmod(0o700)
    agent.add("-x", SSH_ASKPASS=str(askpass), SSH_ASKPASS_REQUIRE="force")
    login.environment["SSH_AUTH_SOCK"] = agent.path
    assert "publickey: no keys offered" in login.refused(NO_FILES)
    login.works(f"IdentityFile={keys.user}")
    agent.add("-X", SSH_ASKPASS=str(askpass), SSH_ASKPASS_REQUIRE="force")
    login.works(NO_FILES)


def test_an_agent_that_hangs(login, keys, tmp_path):
    path = tmp_path / "hanging"
    login.environment["SSH_AUTH_SOCK"] = str(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        started = time.monotonic()
        said = login.works(f"IdentityFile={keys.user}")
        assert time.monotonic() - started < 40
    warnings = [line for line in said.splitlines() if "ssh-agent" in line]
    assert len(warnings) == 1
    assert "did not answer within 4 s: going on without it" in warnings[0]


def test_a_socket_that_nobody_serves(login, keys, tmp_path):
    login.environment["SSH_AUTH_SOCK"] = str(tmp_path / "gone")
    said = login.works(f"IdentityFile={keys.user}")
    assert f"warning: the ssh-agent at {tmp_path / 'gone'} cannot be reached" in said


def test_a_passphrase_through_askpass(login, keys, tmp_path):
    locked = tmp_path / "locked"
    shutil.copy(keys.user, locked)
    locked.chmod(0o600)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-a", "1", "-P", "", "-N", "open sesame", "-f", locked],
        check=True, stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    login.answer_with("wrong", "open sesame")
    login.works(f"IdentityFile={locked}")
    assert login.asked == [f"Enter passphrase for key '{locked}': "] * 2


def test_two_keys_that_are_both_needed(keys, tmp_path):
    need("sshd")
    second = PrivateKey.generate(os.urandom)
    path = tmp_path / "second"
    path.touch(mode=0o600)
    path.write_bytes(encode_private_key_file(second))
    with keys.authorized.open("a") as file:
        file.write(second.public.openssh_text() + "\n")
    with running_sshd(keys, "AuthenticationMethods publickey,publickey") as sshd:
        login = Login(tmp_path, sshd.port)
        both = (f"IdentityFile={keys.user}", f"IdentityFile={path}")
        said = login.works(*both, "LogLevel=VERBOSE")
        assert "publickey accepted; the server asks for more: publickey" in said
        login.works(*reversed(both))
        sentence = login.refused(both[0])
        assert "publickey: accepted, but more is asked for; the server takes: publickey" in sentence


def test_stock_ssh_binds_its_signature_to_our_server(keys):
    need("ssh")
    with running_gateway_serve(keys) as server:
        options = [*client_options(server), "-o", "IdentityAgent=none"]
        with running("ssh", "-vvv", "-N", *options, "root@127.0.0.1") as program:
            program.wait_line("using publickey-hostbound-v00@openssh.com")
            program.wait_line("Authenticated to")


# ---- AsyncSSH as the server ----------------------------------------------------------------------


class Rules(asyncssh.SSHServer):
    """A server that wants these methods, one after the other."""

    def __init__(self, order, authorized):
        self._left = list(order)
        self._authorized = authorized
        self._questions = []

    def connection_made(self, conn):
        succeed = conn.send_userauth_success

        async def send_success():
            self._left.pop(0)
            if self._left:
                conn.send_userauth_failure(partial_success=True)
            else:
                await succeed()

        conn.send_userauth_success = send_success

    def begin_auth(self, _username):
        return True

    def _takes(self, method):
        return bool(self._left) and method in self._left[0].split("|")

    def public_key_auth_supported(self):
        return self._takes("publickey")

    def password_auth_supported(self):
        return self._takes("password")

    def kbdint_auth_supported(self):
        return self._takes("keyboard-interactive")

    def validate_public_key(self, _username, key):
        return key == self._authorized

    def validate_password(self, _username, password):
        if password == "expired":
            raise asyncssh.PasswordChangeRequired("choose a new one")
        return password == "right"

    def get_kbdint_challenge(self, _username, _lang, _submethods):
        self._questions = [("\x1b[2JCode: ", False), ("Colour: ", True)]
        return "Two questions", "Be\x1b]0;evil\x07 careful\nand quick", "", self._questions

    def validate_kbdint_response(self, _username, responses):
        return list(responses) == ["123456", "blue"]


async def echo(process):
    process.stdout.write("in\n")
    process.exit(0)


@contextlib.contextmanager
def running_asyncssh(keys, *order):
    """Serve in a thread; yield the port."""
    authorized = asyncssh.read_public_key(keys.user.with_suffix(".pub"))
    ports, started, loop = [], threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve():
        server = await asyncssh.create_server(
            lambda: Rules(order, authorized),
            "127.0.0.1",
            0,
            server_host_keys=[asyncssh.read_private_key(keys.host)],
            process_factory=echo,
        )
        ports.append(server.sockets[0].getsockname()[1])
        started.set()
        await stop.wait()
        server.close()
        await server.wait_closed()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(60)
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@contextlib.contextmanager
def asyncssh_login(keys, tmp_path, *order):
    with running_asyncssh(keys, *order) as port:
        yield Login(tmp_path, port, "alice")


PROMPT = "alice@127.0.0.1's password: "
ANSWERS = ("123456", "blue")


def test_a_password(keys, tmp_path):
    with asyncssh_login(keys, tmp_path, "password") as login:
        login.answer_with("right")
        said = login.works(NO_FILES)
        assert login.asked == [PROMPT]
        assert "right" not in said


def test_a_wrong_password_three_times(keys, tmp_path):
    with asyncssh_login(keys, tmp_path, "password") as login:
        login.answer_with("wrong")
        sentence = login.refused(NO_FILES)
        assert login.asked == [PROMPT] * 3
        assert sentence.count("permission denied, please try again") == 2
        assert "password: refused 3 times; the server takes: password" in sentence


def test_number_of_password_prompts(keys, tmp_path):
    with asyncssh_login(keys, tmp_path, "password") as login:
        login.answer_with("wrong", "right")
        assert "password: refused;" in login.refused(NO_FILES, "NumberOfPasswordPrompts=1")
        assert len(login.asked) == 1


def test_an_expired_password(keys, tmp_path):
    with asyncssh_login(keys, tmp_path, "password") as login:
        login.answer_with("expired")
        assert "password: it has expired" in login.refused(NO_FILES)
        assert len(login.asked) == 1


def test_an_askpass_that_is_cancelled(keys, tmp_path):
    with asyncssh_login(keys, tmp_path, "password") as login:
        login.answer_with("right", status=1)
        assert "password: nothing was answered" in login.refused(NO_FILES)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("BatchMode=yes", "password (BatchMode is yes)"),
        ("PasswordAuthentication=no", "password (PasswordAuthentication is no)"),
        ("PreferredAuthentications=publickey", "password (not among PreferredAuthentications)"),
    ],
)
def test_nobody_is_asked_when_that_is_switched_off(keys, tmp_path, setting, reason):
    with asyncssh_login(keys, tmp_path, "password") as login:
        login.answer_with("right")
        assert f"the server takes: {reason}" in login.refused(NO_FILES, setting)
        assert login.asked == []


def test_questions_of_the_server(keys, tmp_path):
    with asyncssh_login(keys, tmp_path, "keyboard-interactive") as login:
        login.answer_with(*ANSWERS)
        said = login.works(NO_FILES)
        assert login.asked == [
            r"(alice@127.0.0.1) \x1b[2JCode: ",
            "(alice@127.0.0.1) Colour: ",
        ]
        assert "gateway: Two questions\n" in said
        assert "gateway: Be\\x1b]0;evil\\x07 careful\ngateway: and quick\n" in said
        assert "\x1b" not in said


def test_wrong_answers(keys, tmp_path):
    with asyncssh_login(keys, tmp_path, "keyboard-interactive") as login:
        login.answer_with("no")
        assert "keyboard-interactive: refused 3 times" in login.refused(NO_FILES)
        assert len(login.asked) == 6


@pytest.mark.parametrize(
    "order",
    [
        ("publickey", "password"),
        ("password", "publickey"),
        ("publickey", "keyboard-interactive"),
        ("password", "keyboard-interactive", "publickey"),
    ],
)
def test_more_than_one_proof(keys, tmp_path, order):
    answers = []
    for method in order:
        answers += {"password": ["right"], "keyboard-interactive": ANSWERS}.get(method, [])
    with asyncssh_login(keys, tmp_path, *order) as login:
        login.answer_with(*answers)
        said = login.works(f"IdentityFile={keys.user}", "LogLevel=VERBOSE")
        for method, following in itertools.pairwise(order):
            assert f"{method} accepted; the server asks for more: {following}" in said
        assert len(login.asked) == len(answers)


def test_the_preferred_method_comes_first(keys, tmp_path):
    with asyncssh_login(keys, tmp_path, "publickey|password|keyboard-interactive") as login:
        login.answer_with("right")
        login.works(f"IdentityFile={keys.user}", "PreferredAuthentications=password,publickey")
        assert login.asked == [PROMPT]
        login.works(f"IdentityFile={keys.user}")
        assert login.asked == [PROMPT]


def test_the_agents_key_at_another_server(keys, tmp_path, agent):
    agent.add("-q", keys.user)
    with asyncssh_login(keys, tmp_path, "publickey") as login:
        login.environment["SSH_AUTH_SOCK"] = agent.path
        login.works(NO_FILES)


# ---- when SSH_ASKPASS is used --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "is_asked"),
    [
        ({"SSH_ASKPASS_REQUIRE": "force"}, True),
        ({"SSH_ASKPASS_REQUIRE": "FORCE"}, True),
        ({"DISPLAY": ":0"}, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True),
        ({"DISPLAY": ":0", "SSH_ASKPASS_REQUIRE": "prefer"}, True),
        ({"SSH_ASKPASS_REQUIRE": "prefer"}, False),
        ({"DISPLAY": ":0", "SSH_ASKPASS_REQUIRE": "never"}, False),
        ({"DISPLAY": ""}, False),
        ({}, False),
    ],
)
def test_without_a_terminal(keys, tmp_path, environment, is_asked):
    with asyncssh_login(keys, tmp_path, "password") as login:
        login.answer_with("right")
        del login.environment["SSH_ASKPASS_REQUIRE"]
        login.environment |= environment
        if is_asked:
            login.works(NO_FILES)
        else:
            assert "password: nothing was answered" in login.refused(NO_FILES)
        assert login.asked == [PROMPT] * is_asked


def test_an_askpass_that_is_not_there(keys, tmp_path):
    with asyncssh_login(keys, tmp_path, "password") as login:
        login.environment = {"SSH_ASKPASS_REQUIRE": "force", "SSH_ASKPASS": str(Path("/nowhere"))}
        sentence = login.refused(NO_FILES)
        assert "warning: /nowhere (SSH_ASKPASS) cannot be run" in sentence


@pytest.mark.parametrize("script", ["yes", "head -c 2000 /dev/zero | tr '\\0' x", "exit 3"])
def test_an_askpass_that_says_too_much_or_nothing(keys, tmp_path, script):
    with asyncssh_login(keys, tmp_path, "password") as login:
        login.answer_with("right")
        (tmp_path / "askpass").write_text(f"#!/bin/sh\n{script}\n")
        assert "password: nothing was answered" in login.refused(NO_FILES)


def test_the_host_key_may_be_looked_at_through_askpass(login, keys):
    login.answer_with("no", "yes")
    files = f"IdentityFile={keys.user}"
    assert "the host key was not accepted" in login.refused("StrictHostKeyChecking=ask", files)
    assert "is not known." in login.asked[0]
    login.works("StrictHostKeyChecking=ask", files)


def test_ctrl_c_ends_the_askpass_too(keys, tmp_path):
    with running_asyncssh(keys, "password") as port:
        script, pid = tmp_path / "askpass", tmp_path / "pid"
        script.write_text(f"#!/bin/sh\necho $$ >{pid}.new\nmv {pid}.new {pid}\nexec sleep 100\n")
        script.chmod(0o700)
        arguments = ["-F", "none", "-N", "-p", str(port), "-o", NO_FILES, "-o",
                     f"UserKnownHostsFile={tmp_path / 'known'}", "-o",
                     "StrictHostKeyChecking=accept-new"]  # fmt: skip
        with running(
            *GATEWAY, "connect", *arguments, "alice@127.0.0.1",
            SSH_ASKPASS=str(script), SSH_ASKPASS_REQUIRE="force", SSH_AUTH_SOCK="",
        ) as program:  # fmt: skip
            deadline = time.monotonic() + 20
            while not pid.exists():
                assert time.monotonic() < deadline, program.lines
                time.sleep(0.02)
            program.signal(signal.SIGINT)
            assert program.wait() == 255
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
