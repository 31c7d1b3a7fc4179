"""From nothing to a login: gateway init, serve --check, serve -c, explain, and the signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from gateway.cli.explain import run_explain
from gateway.cli.serve import run_serve, serve_until_signal, summary
from gateway.cli.service_manager import ServiceManager
from gateway.config.gateway_toml import read_gateway_toml
from gateway.config.server_config import ServerConfig, TunnelConfig
from gateway.config.toml_shape import Authority, File, Rule, Tunnel, User
from gateway.policy.leases import DEFAULT_POOL
from gateway.policy.limits import Limits
from tests.interop.targets import Target, echo, need
from tests.support.programs import (
    GATEWAY,
    USER,
    Endpoint,
    Keys,
    client_options,
    make_keys,
    run_gateway,
    running,
    running_connect,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a default identity."""
    monkeypatch.setenv("HOME", str(tmp_path))
    make_keys(tmp_path / ".ssh")
    return tmp_path


def init(folder: Path, *options: str) -> list[str]:
    result = run_gateway("init", str(folder), *options)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def refused(*arguments: str) -> str:
    result = run_gateway(*arguments)
    assert (result.returncode, result.stdout) == (255, "")
    return result.stderr


# -- gateway init ----------------------------------------------------------------------------------


def test_init_makes_files_for_their_owner_only_and_says_what_to_do(home: Path) -> None:
    box = home / "box"
    lines = init(box, "--user", "alice")
    modes = {str(path.relative_to(box)): path.stat().st_mode & 0o777 for path in box.rglob("*")}
    assert modes == {
        "gateway.toml": 0o600,
        "host_ed25519": 0o600,
        "host_ed25519.pub": 0o600,
        "users": 0o700,
        "users/alice.keys": 0o600,
    }
    config = read_gateway_toml(box / "gateway.toml")
    [key] = config.host_keys
    [entry] = config.users["alice"].keys.entries
    identity = (home / ".ssh" / "id_ed25519.pub").read_text().strip()
    assert entry.key.openssh_text() == identity
    host = socket.gethostname()
    assert lines == [
        f"made {box}/gateway.toml; begin with:",
        f"  gateway serve -c {box}/gateway.toml",
        f"  gateway connect -N -D 6000 -p 2222 alice@{host}",
        f"the host key is {key.public.fingerprint}; a line for the clients' known_hosts:",
        f"  [{host.lower()}]:2222 {key.public.openssh_text()}",
    ]
    assert config.warnings == ()


@pytest.mark.parametrize(
    "user", ["alice", "a.b", "DOMAIN\\alice", "b\u00f6b", "user@example.org", "\U0001f600"]
)
def test_any_user_name_stands_in_the_file_as_it_is(home: Path, user: str) -> None:
    init(home / "box", "--user", user, "--key", str(home / ".ssh" / "id_ed25519"))
    assert list(read_gateway_toml(home / "box" / "gateway.toml").users) == [user]


def test_the_file_shows_every_key(home: Path) -> None:
    init(home / "box", "--user", "alice")
    path = home / "box" / "gateway.toml"
    text = path.read_text()
    tables = (File, User, Authority, Rule, Tunnel)
    keys = {key for table in tables for key in table.model_fields}
    keys -= {"users", "rules", "authorities", "limits", "names", "tunnel"}  # tables
    keys -= {"principals"}  # in words
    keys |= set(Limits.__dataclass_fields__)
    shown = set(re.findall(r"(?m)^(?:# )?([a-z_]+) = ", text)) | {"deny"}
    assert keys - shown == set()
    # The limits that it shows are the ones that hold.
    head, _, limits = text.partition("# [limits]")
    path.write_text(f"{head}[limits]" + limits.replace("\n# ", "\n"))
    assert path.read_text().count("\n# ") < text.count("\n# ") - len(Limits.__dataclass_fields__)
    assert read_gateway_toml(path).limits == Limits()
    # And so do the ones of the VPN, with the rule for it.
    vpn, tunnel = text.index('# [[rules]]\n# id = "vpn"'), text.index("# [tunnel]")
    end = text.index("\n\n", tunnel)
    shown = re.sub("(?m)^# (?!Addresses)", "", text[vpn:end])
    path.write_text(text[:vpn] + shown + text[end:])
    config = read_gateway_toml(path)
    assert config.tunnel == TunnelConfig(DEFAULT_POOL, leases=home / "box" / "leases.json")
    assert config.policy.rules[-1].rule_id == "vpn"
    pool = " and ".join(map(str, DEFAULT_POOL))
    assert f"addresses for a VPN of {pool}, MTU 1500, going on with the server's" in summary(config)


def test_init_never_overwrites(home: Path) -> None:
    box = home / "box"
    init(box)
    before = {path: path.read_bytes() for path in box.rglob("*") if path.is_file()}
    for path in before:
        for other in before:
            if other != path:
                other.unlink(missing_ok=True)
        path.write_bytes(b"mine")
        # The name of the user's file depends on who runs this.
        sentence = refused("init", str(box))
        assert sentence == (
            f"gateway: {path}: it is there already, and nothing is overwritten: "
            "name another folder, or move it away\n"
        )
        assert path.read_bytes() == b"mine"
        assert [other for other in before if other.exists()] == [path], "nothing else is made"


def test_init_says_what_is_missing(home: Path) -> None:
    nothing = home / "nothing"
    assert refused("init", "x", "--key", str(nothing)) == (
        f"gateway: --key {nothing}: there is no public key, and none beside it in FILE.pub: "
        "name a file like ~/.ssh/id_ed25519.pub\n"
    )
    assert "the user name a b contains a blank" in refused("init", "x", "--user", "a b")
    assert "no file can be named after ..: write another" in refused("init", "x", "--user", "..")
    assert "the files cannot be made: Not a directory: name a folder" in refused(
        "init", str(home / ".ssh" / "id_ed25519" / "box")
    )
    for path in (home / ".ssh").iterdir():
        path.unlink()
    assert refused("init", "x") == (
        f"gateway: {home}/.ssh: there is no public key: "
        "make one with `ssh-keygen -t ed25519`, or name one with --key FILE\n"
    )


# -- serve -c and explain --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--check"], "--check goes with -c FILE only: see gateway serve --help"),
        (["-c", "x", "--listen", "*:1"],
         ("with -c FILE everything else stands in FILE, and no flag goes with it but -v: "
         "see gateway serve --help")),
        (["-c", "x", "--rekey-bytes", "1"],
         ("with -c FILE everything else stands in FILE, and no flag goes with it but -v: "
         "see gateway serve --help")),
        ([], ("these arguments are required, or else -c FILE: --host-key, --authorized-keys: "
         "see gateway serve --help")),
        (["--host-key", "x"], ("these arguments are required, or else -c FILE: "
         "--authorized-keys: see gateway serve --help")),
        (["-c", "/no/such"], ("/no/such: the configuration cannot be read: No such file or "
         "directory: check its name, its owner and its permissions")),
    ],
)  # fmt: skip
def test_flags_and_a_file_exclude_each_other(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("gateway.cli.serve.start_logging", lambda _level: None)
    assert run_serve(arguments) == 255
    assert capsys.readouterr() == ("", f"gateway: {sentence}\n")


def test_check_says_what_would_be_done_and_the_warnings(home: Path) -> None:
    init(home / "box", "--user", "alice")
    path = home / "box" / "gateway.toml"
    [key] = read_gateway_toml(path).host_keys
    path.write_text(path.read_text().replace('"*:22", ', '"*:*", '))
    result = run_gateway("serve", "-c", str(path), "--check")
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        "listen on *:2222",
        f"host key ssh-ed25519 {key.public.fingerprint}",
        "key exchange mlkem768x25519-sha256, curve25519-sha256, curve25519-sha256@libssh.org",
        "users: 1, keys: 1, authorities: 0",
        "rules: 1, names: 0",
        "run as who starts it",
        "no addresses for a VPN",
        "no audit log",
    ]
    assert re.fullmatch(
        rf"gateway: warning: {path}:\d+: rules\[0\]\.to: rule usual lets those it names .*\n",
        result.stderr,
    )
    path.write_text(re.sub(r"(?m)^# (audit(?:_keep_days)? =)", r"\1", path.read_text()))
    result = run_gateway("serve", "-c", str(path), "--check")
    assert result.stdout.splitlines()[-1] == f"audit log in {path.parent}/audit, kept for 400 days"
    assert not (path.parent / "audit").exists(), "only looked at"


def test_every_error_has_a_line_of_its_own(home: Path) -> None:
    init(home / "box", "--user", "alice")
    path = home / "box" / "gateway.toml"
    path.write_text("listn = 1\n" + path.read_text() + "[limits]\ndrain = 1\n")
    lines = refused("serve", "-c", str(path), "--check").splitlines()
    assert [line.split(": there")[0] for line in lines] == [
        f"gateway: {path}:1: listn",
        f"gateway: {path}:{len(path.read_text().splitlines())}: limits.drain",
    ]


def test_explain_names_the_rule(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    init(home / "box", "--user", "alice")
    path = home / "box" / "gateway.toml"
    path.write_text(
        path.read_text() + '[[rules]]\nid = "database"\nallow = "open"\nto = ["192.0.2.7:5432"]\n'
    )
    result = run_gateway("explain", "-c", str(path), "alice", "open", "192.0.2.7:5432")
    assert (result.returncode, result.stderr) == (0, "")
    assert "database" in result.stdout
    assert "WORD: see gateway explain --help" in refused("explain", "alice")
    monkeypatch.chdir(home / "box")  # where gateway.toml needs no -c
    assert run_explain(["alice", "open", "192.0.2.7:5433"]) == 0
    assert "denied" in capsys.readouterr().out
    assert run_explain(["-c", "other.toml", "alice", "open", "a:1"]) == 255
    assert "other.toml: the configuration cannot be read" in capsys.readouterr().err


# -- the real thing --------------------------------------------------------------------------------


@pytest.fixture
def served(home: Path) -> Iterator[tuple[Path, Endpoint]]:
    """What `gateway init` made, listening on a free port of the loopback, which may be reached."""
    box = home / "box"
    init(box, "--user", "alice")
    path = box / "gateway.toml"
    text = path.read_text().replace('"*:2222"]  ', '"127.0.0.1:0"]')
    path.write_text(text + '[[rules]]\nid = "me"\nallow = "open"\nto = ["127.0.0.1:*"]\n')
    run_gateway("serve", "-c", str(path), "--check")
    with running(*GATEWAY, "serve", "-v", "-c", str(path)) as program:
        port = int(program.wait_line(r"listening on 127\.0\.0\.1:(\d+)")[1])
        yield path, Endpoint(program, port, Keys(home / ".ssh"))


def through(server: Endpoint, port: int, data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [need("ssh"), *client_options(server), "-W", f"127.0.0.1:{port}", "alice@127.0.0.1"],
        input=data, capture_output=True, timeout=30, check=False,
    )  # fmt: skip


def test_a_stock_ssh_logs_in_and_reaches_a_target(served: tuple[Path, Endpoint]) -> None:
    _, server = served
    with running(need("ssh"), "-v", "-N", *client_options(server), "alice@127.0.0.1") as program:
        program.wait_line("Entering interactive session|pledge: network")
        server.program.wait_line(r"link \d+: alice from 127\.0\.0\.1")
    with Target(echo) as target:
        result = through(server, target.port, b"there and back")
    assert (result.returncode, result.stdout) == (0, b"there and back"), result.stderr


def test_strict_is_post_quantum_or_nothing(home: Path) -> None:
    init(home / "box", "--user", USER)
    path = home / "box" / "gateway.toml"
    text = path.read_text().replace('"*:2222"', '"127.0.0.1:0"')
    path.write_text(text.replace('algorithms = "default"', 'algorithms = "strict"'))
    with running(*GATEWAY, "serve", "-c", str(path)) as program:
        port = int(program.wait_line(r"listening on 127\.0\.0\.1:(\d+)")[1])
        server = Endpoint(program, port, Keys(home / ".ssh"))
        with running_connect(server, "-v") as proxy:
            proxy.program.wait_line("mlkem768x25519-sha256")
        result = subprocess.run(
            [need("ssh"), *client_options(server), "-o", "KexAlgorithms=curve25519-sha256",
             "-N", f"{USER}@127.0.0.1"],
            capture_output=True, timeout=30, check=False,
        )  # fmt: skip
    assert result.returncode == 255
    assert b"no matching key exchange method found" in result.stderr


def test_sighup_takes_a_good_file_and_refuses_a_bad_one(served: tuple[Path, Endpoint]) -> None:
    path, server = served
    good = path.read_text()
    path.write_text("listn = 1\n" + good)
    server.program.signal(signal.SIGHUP)
    server.program.wait_line(r"gateway\.toml:1: listn: there is no such key: did you mean listen")
    server.program.wait_line("not read again, everything stays as it was")
    with Target(echo) as target:
        assert through(server, target.port, b"still").stdout == b"still"
        path.write_text(good.replace('to = ["127.0.0.1:*"]', 'to = ["127.0.0.1:1"]'))
        server.program.signal(signal.SIGHUP)
        server.program.wait_line(r"gateway\.toml: read again")
        result = through(server, target.port, b"no longer")
    assert result.returncode == 255
    assert b"denied" in result.stderr
    server.program.signal(signal.SIGTERM)
    assert server.program.wait(60) == 0
    assert not [line for line in server.program.lines if "Traceback" in line]


# -- signals, with a server that only remembers ----------------------------------------------------


class Remembering:
    """A `gateway.cli.serve.Running` without sockets."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.changed = trio.Event()

    def note(self, what: object) -> None:
        """Remember, and wake who waits."""
        self.told.append(what)
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, count: int) -> None:
        """Wait until so much was told."""
        while len(self.told) < count:
            await self.changed.wait()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve."""
        ready()
        self.note("run")
        await trio.sleep_forever()

    def apply(self, config: ServerConfig) -> None:
        """Take a configuration."""
        self.note(config)

    def gauges(self) -> dict[str, int]:
        """Have some of everything."""
        self.note("gauges")
        return {"links": 3, "tasks": 14}

    async def drain(self, deadline_s: float | None = None) -> None:
        """Wait for somebody who cancels, or for the deadline."""
        self.note(("drain", deadline_s))
        assert deadline_s is not None
        await trio.sleep(deadline_s)
        self.note("drained")


@pytest.fixture
def config(home: Path) -> ServerConfig:
    """What `gateway init` makes."""
    init(home / "box", "--user", "alice")
    return replace(read_gateway_toml(home / "box" / "gateway.toml"), limits=Limits(drain_s=7))


@pytest.fixture
async def server() -> Remembering:
    """A server that only remembers."""
    return Remembering()


async def test_sigterm_drains_to_its_deadline(
    server: Remembering, config: ServerConfig, autojump_clock: trio.testing.MockClock
) -> None:
    results = []
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            results.append(await serve_until_signal(server, config, None))

        nursery.start_soon(serve)
        await server.until(1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert results == [0]
    assert server.told == ["run", ("drain", 7), "drained"]


async def test_a_second_sigterm_ends_at_once(server: Remembering, config: ServerConfig) -> None:
    with trio.fail_after(5):  # of the seven that it would take
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_until_signal, server, config, None)
            await server.until(1)
            os.kill(os.getpid(), signal.SIGTERM)
            await server.until(2)
            os.kill(os.getpid(), signal.SIGTERM)
    assert server.told[-1] != "drained"


async def test_sigusr1_says_what_there_is(
    server: Remembering, config: ServerConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_until_signal, server, config, None)
        await server.until(1)
        os.kill(os.getpid(), signal.SIGUSR1)
        await server.until(2)
        nursery.cancel_scope.cancel()
    assert "now: links 3, tasks 14\n" in capsys.readouterr().err


async def test_sighup_applies_what_was_read(
    server: Remembering, config: ServerConfig, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "box" / "gateway.toml"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_until_signal, server, config, path)
        await server.until(1)
        path.write_text(path.read_text().replace("*:2222", "*:2223") + "[limits]\ndrain_s = 0\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await server.until(2)
        os.kill(os.getpid(), signal.SIGTERM)
    applied = server.told[1]
    assert isinstance(applied, ServerConfig)
    assert (applied.limits.drain_s, applied.listen) == (0, config.listen)
    assert server.told[-1] == "drained"
    said = capsys.readouterr().err
    assert f"warning: {path}: listen: changed, and kept as before until a restart\n" in said
    assert f"gateway: {path}: read again\n" in said


class Told(ServiceManager):
    """A service manager that notes beside what the server does."""

    def __init__(self, server: Remembering) -> None:
        super().__init__()
        self._server = server

    def ready(self, status: str) -> None:
        """All is set up."""
        self._server.note(f"ready, {status}")

    def reloading(self) -> None:
        """The configuration is read again."""
        self._server.note("reloading")

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._server.note("stopping")


async def test_the_service_manager_hears_each_change(
    server: Remembering, config: ServerConfig, home: Path
) -> None:
    path = home / "box" / "gateway.toml"
    manager = Told(server)

    def become() -> None:
        server.note("another user")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_until_signal, server, config, path, None, become, manager)
        await server.until(3)
        path.write_text(path.read_text() + "[limits]\ndrain_s = 0\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await server.until(6)
        path.write_text("nonsense")
        os.kill(os.getpid(), signal.SIGHUP)
        await server.until(8)
        os.kill(os.getpid(), signal.SIGTERM)
    ready = "ready, serving; users: 1, rules: 1"
    applied = server.told.pop(4)
    assert isinstance(applied, ServerConfig)
    assert server.told == [
        "another user", ready, "run", "reloading", ready,
        "reloading", ready,  # with what it had
        "stopping", ("drain", 0), "drained",
    ]  # fmt: skip
