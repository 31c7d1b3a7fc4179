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

from netns.lab import Lab, why_unusable
from netns.state import difference
from netns.topologies import ROUTED
from tests.interop.targets import need
from tests.support.programs import (
    Keys,
    Program,
    eventually,
    make_keys,
    running,
    running_gateway_serve,
    running_sshd,
    running_sshd_in,
    sshd_path,
)
from tests.support.proxies import running_microsocks

ROOT = Path(__file__).parent.parent
PAGE = b"<p>the intranet page</p>"
FIXED_PORTS = (6000, 2222, 8080, 8081, 8000, 9000, 9050)

pytestmark = [pytest.mark.interop, pytest.mark.alone]


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
        config, permits = "", ["--permit-open", "intranet.example:80"]
        if sshd_path() is not None:
            server = stack.enter_context(running_sshd(keys))
            permits += ["--permit-open", f"127.0.0.1:{server.port}"]
            config += f"Host server\n  HostName 127.0.0.1\n  Port {server.port}\n  User root\n"
        host = ("--host", "intranet.example=127.0.0.2")
        jump = stack.enter_context(running_gateway_serve(keys, *host, *permits))
        config = f"Host jump\n  HostName 127.0.0.1\n  Port {jump.port}\n{config}"
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
    with staying(home, f".venv/bin/{BOX}", r"listening on .*:2222"):
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


@contextlib.contextmanager
def far_away(home):
    """A lab in which jump and server are another host, with a network behind it: client, server."""
    if reason := why_unusable():
        pytest.skip(f"no network-namespace lab: {reason}")
    config, known_hosts = home / ".ssh" / "config", home / ".ssh" / "known_hosts"
    before = {path: path.read_text() for path in (config, known_hosts) if path.exists()}
    try:
        with Lab(ROUTED) as lab:
            known_hosts.write_text("")
            client, server = lab["client"], lab["server"]
            address = server.ipv4()
            config.write_text(before[config].replace("127.0.0.1", address))
            yield client, server
    finally:
        for path, text in before.items():
            path.write_text(text)


@contextlib.contextmanager
def in_host(host, home, command, ready):
    with host.inside(), staying(home, command, ready) as program:
        yield program


def vpn(home):
    with (
        far_away(home) as (client, server),
        in_host(server, home, SERVE_VPN, r"listening on .*:2222"),
    ):
        before = client.snapshot()
        with in_host(client, home, VPN, "tunnel through tun0"):
            assert client.ping("10.20.0.2", 3).received == 3
        assert difference(before, client.snapshot()) == ""


def vpn_with_sshd(home):
    if sshd_path() is None:
        pytest.skip("sshd is not installed")
    with far_away(home) as (client, server), contextlib.ExitStack() as stack:
        sshd = stack.enter_context(running_sshd_in(server, Keys(home / ".ssh")))
        config = home / ".ssh" / "config"
        head, _, tail = config.read_text().partition("Host server\n")
        config.write_text(
            head + re.sub(r"Port \d+", f"Port {sshd.port}", f"Host server\n{tail}", count=1)
        )
        before = server.snapshot()
        with in_host(client, home, VPN_WITH_SSHD, "tunnel through tun0"):
            assert client.ping("10.20.0.2", 3).received == 3
        eventually(lambda: not difference(before, server.snapshot()), "sshd's side is undone")


def cleanup(home):
    result = shell(home, CLEANUP)
    assert result.returncode == 0, result.stderr


LOCAL = ".venv/bin/gateway connect -N -L 8080:intranet.example:80 alice@jump"
REMOTE = ".venv/bin/gateway connect -N -R 9000:localhost:8000 server"
STDIO = ".venv/bin/gateway connect -W intranet.example:80 alice@jump"
LIST = ".venv/bin/gateway forward alice@jump list"
ADD = ".venv/bin/gateway forward alice@jump add -L 8081:intranet.example:80"
CANCEL = ".venv/bin/gateway forward alice@jump cancel -L 8081"


def local_forward(home):
    with staying(home, LOCAL, "forward to intranet.example port 80 on localhost:8080"):
        assert shell(home, "curl -sS http://localhost:8080/").stdout.encode() == PAGE
        assert shell(home, LIST).stdout == "-L 8080:[intranet.example]:80\n"
        assert shell(home, ADD).returncode == 0
        assert shell(home, "curl -sS http://localhost:8081/").stdout.encode() == PAGE
        assert shell(home, CANCEL).returncode == 0
        assert shell(home, "curl -sS http://localhost:8081/").returncode == 7
        assert shell(home, LIST).stdout == "-L 8080:[intranet.example]:80\n"


def remote_forward(home):
    if sshd_path() is None:
        pytest.skip("sshd is not installed")
    page = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    try:
        with staying(home, REMOTE, "forward to localhost port 8000 on port 9000 of the server"):
            assert shell(home, "curl -sS http://localhost:9000/").stdout.encode() == PAGE
    finally:
        page.shutdown()
        page.server_close()


def stdio_forward(home):
    result = shell(home, STDIO, input="GET / HTTP/1.0\r\n\r\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.encode().endswith(PAGE)


def remote_command(home):
    if sshd_path() is None:
        pytest.skip("sshd is not installed")
    result = shell(home, ".venv/bin/gateway connect server uptime", stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    assert "load average" in result.stdout


def uptime(command, *programs, proxy_port=None):
    """A command on the far side, perhaps through a proxy on that port."""

    def run(home):
        for program in programs:
            need(program)
        if sshd_path() is None:
            pytest.skip("sshd is not installed")
        with contextlib.ExitStack() as stack:
            if proxy_port is not None:
                stack.enter_context(running_microsocks(at=proxy_port))
            result = shell(home, command, stdin=subprocess.DEVNULL)
        assert result.returncode == 0, result.stderr
        assert "load average" in result.stdout

    return run


def torsocks(home):
    for program in ("torsocks", "microsocks"):
        need(program)
    with (
        far_away(home) as (client, server),
        in_host(server, home, f".venv/bin/{BOX}", r"listening on .*:2222"),
    ):
        proxy = client.start("microsocks", "-p", "9050")
        try:
            eventually(lambda: ":9050" in client.run("ss", "-ltnH").stdout, "it listens")
            with in_host(client, home, TORSOCKS, PROXY_IS_UP):
                curl = "curl -sS --socks5-hostname localhost:6000 http://127.0.0.1/"
                with client.inside():
                    assert shell(home, curl).returncode == 97  # the box itself
        finally:
            proxy.stop()


JUMP = ".venv/bin/gateway connect -J alice@jump server uptime"
SSH_W = '.venv/bin/gateway connect -o ProxyCommand="ssh -W %h:%p alice@jump" server uptime'
VIA = ".venv/bin/gateway connect --via socks5h://localhost:9050 server uptime"
NETCAT = '.venv/bin/gateway connect -o ProxyCommand="nc -X 5 -x localhost:9050 %h %p" server uptime'
TORSOCKS = "torsocks .venv/bin/gateway connect -N -D 6000 -p 2222 alice@jump"
SSH_JUMP = "ssh -J alice@jump server uptime"
BOX = "gateway serve --listen '*:2222' --host-key host_key --authorized-keys authorized_keys"
SERVE_VPN = f".venv/bin/{BOX} --permit-tunnel"
VPN = ".venv/bin/gateway connect --vpn 10.20.0.0/24 -p 2222 alice@jump"
VPN_WITH_SSHD = ".venv/bin/gateway connect --vpn 10.20.0.0/24 --remote-setup root@server"
CLEANUP = ".venv/bin/gateway cleanup"

ACTIONS = {
    LOCAL: local_forward,
    REMOTE: remote_forward,
    STDIO: stdio_forward,
    LIST: local_forward,
    ADD: local_forward,
    CANCEL: local_forward,
    SERVE_VPN: vpn,
    VPN: vpn,
    VPN_WITH_SSHD: vpn_with_sshd,
    CLEANUP: cleanup,
    "scripts/demo": demo,
    "scripts/test": test_script,
    "scripts/setup": setup,
    ".venv/bin/gateway connect -N -D 6000 alice@jump": proxy,
    CURL: proxy,
    "chromium --proxy-server=socks5://localhost:6000": chromium,
    "printf 'Host office\\n  HostName jump\\n  User alice\\n  DynamicForward 6000\\n' "
    ">> ~/.ssh/config": from_config,
    ".venv/bin/gateway connect -N office": from_config,
    f".venv/bin/{BOX}": serve,
    ".venv/bin/gateway connect -N -D 6000 -p 2222 alice@jump": through_the_box(
        ".venv/bin/gateway connect -N -D 6000 -p 2222 alice@jump"
    ),
    "ssh -N -D 6000 -p 2222 alice@jump": through_the_box("ssh -N -D 6000 -p 2222 alice@jump"),
    INIT: init,
    SERVE: forward,
    EXPLAIN: explain,
    FORWARD: forward,
    ".venv/bin/gateway connect server uptime": remote_command,
    JUMP: uptime(JUMP),
    SSH_W: uptime(SSH_W),
    VIA: uptime(VIA, "microsocks", proxy_port=9050),
    NETCAT: uptime(NETCAT, "microsocks", "nc", proxy_port=9050),
    TORSOCKS: torsocks,
    SSH_JUMP: uptime(SSH_JUMP),
}


def test_every_command_has_an_action():
    assert set(readme_commands()) == set(ACTIONS)


@pytest.mark.parametrize("command", list(ACTIONS))
def test_command(world, command):
    ACTIONS[command](world)
