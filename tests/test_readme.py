"""Every command of README.md is run here, as it is written, in a home folder made for it."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.programs import (
    Program,
    make_keys,
    running,
    running_gateway_serve,
    running_sshd,
    sshd_path,
)

ROOT = Path(__file__).parent.parent
PAGE = b"<p>the intranet page</p>"
FIXED_PORTS = (6000, 2222, 8080)

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]


def readme_commands():
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_arguments):
        pass


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A home folder, a jump box called jump, a login called server, and a page behind the box."""
    if os.getuid() != 0:
        pytest.skip("needs root: the page's port is 80")
    for port in FIXED_PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                pytest.skip(f"port {port}, which README.md uses, is taken on this machine")
    home = tmp_path_factory.mktemp("home")
    keys = make_keys(home / ".ssh")
    shutil.copy(keys.authorized, home / "authorized_keys")
    page = http.server.ThreadingHTTPServer(("127.0.0.2", 80), Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    with contextlib.ExitStack() as stack:
        stack.callback(page.server_close)
        stack.callback(page.shutdown)
        jump = stack.enter_context(
            running_gateway_serve(
                keys,
                "--host",
                "intranet.example=127.0.0.2",
                "--permit-open",
                "intranet.example:80",
            )
        )
        config = f"Host jump\n  HostName 127.0.0.1\n  Port {jump.port}\n"
        if sshd_path() is not None:
            server = stack.enter_context(running_sshd(keys))
            config += f"Host server\n  HostName 127.0.0.1\n  Port {server.port}\n  User root\n"
        config += "Host *\n  StrictHostKeyChecking accept-new\n"
        config += f"  UserKnownHostsFile {keys.known_hosts}\n  IdentityFile {keys.user}\n"
        (keys.folder / "config").write_text(config)
        (keys.folder / "config").chmod(0o600)
        (home / "bin").mkdir()
        # ssh(1) takes the home folder from the password file, not from HOME.
        wrapper = home / "bin" / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -v -F {keys.folder}/config "$@"\n')
        wrapper.chmod(0o755)
        (home / ".venv").symlink_to(ROOT / ".venv")
        (home / "scripts").symlink_to(ROOT / "scripts")
        yield home


def shell(home, command, **options):
    environment = {**os.environ, "HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}"}
    return subprocess.run(
        ["sh", "-c", command],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        **options,
    )


@contextlib.contextmanager
def staying(home, command, ready):
    with running(
        "sh", "-c", f"cd {home} && exec {command}",
        HOME=str(home), PATH=f"{home}/bin:{os.environ['PATH']}",
    ) as program:  # fmt: skip
        program.wait_line(ready)
        yield program


PROXY_IS_UP = r"SOCKS proxy on localhost:6000|Entering interactive session"
CURL = "curl --socks5-hostname localhost:6000 http://intranet.example/"


def setup(home):
    result = shell(ROOT, "scripts/setup")
    assert result.returncode == 0, result.stderr


def demo(home):
    program = Program("scripts/demo", PYTHONUNBUFFERED="1")
    try:
        program.wait_line("Try next", 60)
        program.signal(signal.SIGINT)
        assert program.wait() in (0, 130), program.lines
    finally:
        program.stop()
    assert any("fetched" in line for line in program.lines)


def test_script(home):
    result = shell(ROOT, "scripts/test --collect-only -q tests/test_readme.py")
    assert result.returncode == 0, result.stdout + result.stderr


test_script.__test__ = False


def proxy(home):
    with staying(home, ".venv/bin/gateway connect -N -D 6000 alice@jump", PROXY_IS_UP):
        result = shell(home, CURL)
        assert result.stdout.encode() == PAGE, result.stderr


def chromium(home):
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    with staying(home, ".venv/bin/gateway connect -N -D 6000 alice@jump", PROXY_IS_UP):
        browser = "chromium --proxy-server=socks5://localhost:6000"
        result = shell(
            home,
            f"{browser} --headless --no-sandbox --disable-gpu --dump-dom http://intranet.example/",
        )
        assert PAGE.decode() in result.stdout, result.stderr


def from_config(home):
    config = home / ".ssh" / "config"
    before = config.read_text()
    [append] = [line for line in readme_commands() if line.startswith("printf")]
    try:
        assert shell(home, append).returncode == 0
        # ssh(1)'s rule: the first value wins, and "Host jump" is another name than "office".
        text = config.read_text().replace("HostName jump", "HostName 127.0.0.1")
        port = re.search(r"Port (\d+)", before)[1]
        config.write_text(text + f"  Port {port}\n")
        with staying(home, ".venv/bin/gateway connect -N office", PROXY_IS_UP):
            assert shell(home, CURL).stdout.encode() == PAGE
    finally:
        config.write_text(before)


@contextlib.contextmanager
def jump_box(home):
    [command] = [line for line in readme_commands() if "gateway serve --listen" in line]
    with staying(home, command, r"listening on .*:2222"):
        yield


def serve(home):
    with jump_box(home):
        key = home / "host_key"
        assert key.stat().st_mode & 0o777 == 0o600


def through_the_box(command):
    def run(home):
        with jump_box(home), staying(home, command, PROXY_IS_UP):
            result = shell(home, "curl -sS --socks5-hostname localhost:6000 http://127.0.0.1/")
            assert result.returncode == 97  # the box itself is not reachable without a rule

    return run


INIT = ".venv/bin/gateway init box --user alice"
SERVE = ".venv/bin/gateway serve -c box/gateway.toml"
EXPLAIN = ".venv/bin/gateway explain -c box/gateway.toml alice open intranet.example:80"
FORWARD = "ssh -N -L 8080:intranet.example:80 -p 2222 alice@jump"
INTRANET = """
[[rules]]
id = "intranet"
allow = "open"
to = ["intranet.example:80"]
[names]
"intranet.example" = "127.0.0.2"
"""


def init(home):
    shutil.rmtree(home / "box", ignore_errors=True)
    result = shell(home, INIT)
    assert result.returncode == 0, result.stderr
    assert "gateway serve -c box/gateway.toml" in result.stdout
    with (home / "box" / "gateway.toml").open("a") as file:
        file.write(INTRANET)


def explain(home):
    init(home)
    result = shell(home, EXPLAIN)
    assert (result.returncode, "intranet" in result.stdout) == (0, True), result.stderr


def forward(home):
    init(home)
    known_hosts = home / ".ssh" / "known_hosts"
    before = known_hosts.read_text() if known_hosts.exists() else ""
    known_hosts.write_text("")  # another key was at this port
    try:
        with (
            staying(home, SERVE, r"listening on .*:2222"),
            staying(home, FORWARD, "Entering interactive session"),
        ):
            result = shell(home, "curl -sS http://localhost:8080/")
            assert result.stdout.encode() == PAGE, result.stderr
    finally:
        known_hosts.write_text(before)


def remote_command(home):
    if sshd_path() is None:
        pytest.skip("sshd is not installed")
    result = shell(home, ".venv/bin/gateway connect server uptime", stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    assert "load average" in result.stdout


ACTIONS = {
    "scripts/demo": demo,
    "scripts/test": test_script,
    "scripts/setup": setup,
    ".venv/bin/gateway connect -N -D 6000 alice@jump": proxy,
    CURL: proxy,
    "chromium --proxy-server=socks5://localhost:6000": chromium,
    "printf 'Host office\\n  HostName jump\\n  User alice\\n  DynamicForward 6000\\n' "
    ">> ~/.ssh/config": from_config,
    ".venv/bin/gateway connect -N office": from_config,
    ".venv/bin/gateway serve --listen '*:2222' --host-key host_key "
    "--authorized-keys authorized_keys": serve,
    ".venv/bin/gateway connect -N -D 6000 -p 2222 alice@jump": through_the_box(
        ".venv/bin/gateway connect -N -D 6000 -p 2222 alice@jump"
    ),
    "ssh -N -D 6000 -p 2222 alice@jump": through_the_box("ssh -N -D 6000 -p 2222 alice@jump"),
    INIT: init,
    SERVE: forward,
    EXPLAIN: explain,
    FORWARD: forward,
    ".venv/bin/gateway connect server uptime": remote_command,
}


def test_every_command_has_an_action():
    assert set(readme_commands()) == set(ACTIONS)


@pytest.mark.parametrize("command", list(ACTIONS))
def test_command(world, command):
    ACTIONS[command](world)
