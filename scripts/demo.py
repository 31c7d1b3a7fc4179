"""The demo: a jump box, a private web page behind it, and a proxy through it, all on this machine.

curl ─ SOCKS ─► gateway connect ═ SSH ═► gateway serve ─ TCP ─► web page
                localhost:6000           127.0.0.1:…            intranet.demo, a name that
                                                                only the jump box knows
"""

from __future__ import annotations

import argparse
import base64
import http.client
import os
import queue
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from child import Child, ChildError

from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey
from gateway.ssh.keys import fingerprint as key_fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator

GATEWAY = str(Path(sys.executable).with_name("gateway"))
PAGE_NAME = "intranet.demo"
ABSENT_NAME = "no-such-host.invalid"  # RFC 6761 §6.4: never exists
READY_TIMEOUT_S = 20
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FETCH_TIMEOUT_S = 30  # a resolver without network may think for a while

SOCKS_REPLIES = {  # RFC 1928 §6
    1: "general failure",
    2: "not allowed by the jump box's rules",
    3: "network unreachable",
    4: "no such name, or host unreachable",
    5: "connection refused",
    6: "timed out",
    7: "command not supported",
    8: "address type not supported",
}


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class SocksRefused(Exception):
    """The proxy answered, and the answer was no."""

    def __init__(self, reply: int) -> None:
        super().__init__(f"{SOCKS_REPLIES.get(reply, 'unknown reply')} (SOCKS reply {reply:02})")


@dataclass(frozen=True)
class Running:
    """What has been started and may be asked."""

    page_port: int
    proxy_port: int
    children: tuple[Child, ...]


# ---- the page and the keys -----------------------------------------------------------------------


class PrivatePage(BaseHTTPRequestHandler):
    """One page, which says who asked for it."""

    def do_GET(self) -> None:
        body = (
            f"This page is private: only the jump box can reach {PAGE_NAME}.\n"
            f"You asked for {self.headers['Host']}, and the request came from the jump box, "
            f"{self.client_address[0]} port {self.client_address[1]}.\n"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing: the demo itself tells what happened."""


@contextmanager
def private_page() -> Iterator[int]:
    """Serve the page on a free port of 127.0.0.1 and give the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), PrivatePage) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="private page")
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def make_login(folder: Path) -> tuple[Path, Path]:
    """Write a throw-away user key and the authorized_keys that lets it in."""
    key = PrivateKey.generate(os.urandom)
    identity, authorized = folder / "id_ed25519", folder / "authorized_keys"
    identity.touch(mode=0o600)
    identity.write_bytes(encode_private_key_file(key, comment="demo"))
    authorized.write_text(key.public.openssh_text().strip() + "\n")
    return identity, authorized


def fingerprint(known_hosts: Path) -> str:
    """The SHA256 fingerprint of the one host key that the client has recorded."""
    try:
        return key_fingerprint(base64.b64decode(known_hosts.read_text().split()[2]))
    except (OSError, IndexError, ValueError) as error:
        raise DemoError(f"the client recorded no host key in {known_hosts}: {error}") from error


# ---- a SOCKS5 client in forty lines, so that curl is not needed ----------------------------------


def socks_connect(proxy_port: int, host: str, port: int) -> socket.socket:
    """A connection to ``host``, a name that the far side resolves; SocksRefused says why not."""
    connection = socket.create_connection(("localhost", proxy_port), FETCH_TIMEOUT_S)
    try:
        connection.sendall(b"\x05\x01\x00")
        if receive(connection, 2) != b"\x05\x00":
            raise DemoError("the proxy does not speak SOCKS5 without a password")
        name = host.encode("ascii")
        connection.sendall(
            b"\x05\x01\x00\x03" + bytes([len(name)]) + name + struct.pack(">H", port)
        )
        _, reply, _, address_type = receive(connection, 4)
        if reply != 0:
            raise SocksRefused(reply)
        receive(connection, {1: 4, 4: 16}.get(address_type, 0) + 2)  # the bound address and port
    except BaseException:
        connection.close()
        raise
    return connection


def receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise DemoError("the proxy closed the connection without an answer")
        data += more
    return data


def fetch(proxy_port: int, host: str, port: int) -> str:
    """The text of http://host:port/ through the proxy."""
    connection = http.client.HTTPConnection(host, port)
    connection.sock = socks_connect(proxy_port, host, port)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        if response.status != 200:
            raise DemoError(f"http://{host}:{port}/ answered {response.status} {response.reason}")
        return response.read().decode()
    except http.client.HTTPException as error:
        raise DemoError(f"http://{host}:{port}/ sent no web page: {error!r}") from error
    finally:
        connection.close()


# ---- the demo ------------------------------------------------------------------------------------


def say(step: str, text: str) -> None:
    print(f"  {step:<13} {text}", flush=True)


def choose_port(wanted: int) -> int:
    """``wanted``, or a free port when somebody has it already."""
    for port in (wanted, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as listener:
                chosen: int = listener.getsockname()[1]
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            print(f"Port {wanted} cannot be used ({reason}), a free one is taken instead.")
            continue
        return chosen
    raise DemoError("127.0.0.1 has no free port")


def start(
    folder: Path, wanted_port: int, ended: queue.SimpleQueue[Child], stack: ExitStack
) -> Running:
    """Page, jump box and client, each told about as soon as it is ready; ``stack`` ends them."""
    page_port = stack.enter_context(private_page())
    say("private page", f"http://127.0.0.1:{page_port}/, which only the jump box calls {PAGE_NAME}")

    identity, authorized_keys = make_login(folder)
    serve = [GATEWAY, "serve", "--listen", "127.0.0.1:0"]
    serve += ["--host-key", str(folder / "host_key"), "--authorized-keys", str(authorized_keys)]
    serve += ["--host", f"{PAGE_NAME}=127.0.0.1"]
    serve += ["--permit-open", f"{PAGE_NAME}:{page_port}", "--permit-open", f"{ABSENT_NAME}:80"]
    jump_box = stack.enter_context(Child("gateway serve", serve, on_end=ended.put))
    ready = jump_box.wait_for_line(r"listening on 127\.0\.0\.1:(\d+)", READY_TIMEOUT_S)
    say("jump box", f"gateway serve, listening on 127.0.0.1:{ready[1]}, no shell, no root")

    proxy_port = choose_port(wanted_port)
    known_hosts = folder / "known_hosts"
    connect = [GATEWAY, "connect", "-N", "-D", str(proxy_port), "-p", ready[1], "-i", str(identity)]
    connect += ["-F", "none", "-o", f"UserKnownHostsFile={known_hosts}"]
    connect += ["-o", "StrictHostKeyChecking=accept-new", "-o", "IdentitiesOnly=yes"]
    client = stack.enter_context(
        Child("gateway connect", [*connect, "demo@127.0.0.1"], on_end=ended.put)
    )
    client.wait_for_line(rf"SOCKS proxy on \S+:{proxy_port}\b", READY_TIMEOUT_S)
    say("login", f"demo@127.0.0.1 with a throw-away key; host key {fingerprint(known_hosts)}")
    say("proxy", f"gateway connect, SOCKS on localhost:{proxy_port}")
    return Running(page_port, proxy_port, (jump_box, client))


def show(running: Running) -> None:
    """Fetch the page, then two things that cannot be had, and print what the proxy said."""
    started = time.perf_counter()
    try:
        page = fetch(running.proxy_port, PAGE_NAME, running.page_port)
    except SocksRefused as refused:
        raise DemoError(f"the proxy did not reach {PAGE_NAME}: {refused}") from refused
    say("fetched", f"http://{PAGE_NAME}:{running.page_port}/ in {since(started)}:")
    say("", page.splitlines()[0])

    for host, port in ((ABSENT_NAME, 80), (PAGE_NAME, 22)):
        started = time.perf_counter()
        try:
            socks_connect(running.proxy_port, host, port).close()
        except SocksRefused as refused:
            say("told why not", f"{host}:{port} in {since(started)}: {refused}")
        else:
            raise DemoError(f"the proxy says that it reached {host}:{port}, which cannot be")


def since(started: float) -> str:
    return f"{(time.perf_counter() - started) * 1000:.0f} ms"


def try_next(running: Running) -> None:
    print(f"""
Try next, in another terminal:
  curl --socks5-hostname localhost:{running.proxy_port} http://{PAGE_NAME}:{running.page_port}/
  chromium --proxy-server=socks5://localhost:{running.proxy_port}    and open the same address
""")


def stop(_signal_number: int, _frame: object) -> NoReturn:
    """Ctrl-C and its like: once, so that impatience does not cut the cleaning up short."""
    for number in STOPPING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(arguments: argparse.Namespace) -> None:
    ended: queue.SimpleQueue[Child] = queue.SimpleQueue()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-demo-")))
        running = start(folder, arguments.port, ended, stack)
        try:
            show(running)
        except (DemoError, OSError) as error:
            words = "\n".join(child.last_words() for child in running.children)
            raise DemoError(f"{error}\n{words}") from error
        try_next(running)
        if arguments.once:
            return
        try:
            print("Ctrl-C ends it all and leaves nothing behind.", flush=True)
            child = ended.get()
        except KeyboardInterrupt:
            print("\nStopped.")
            return
        raise child.error(f"ended by itself with status {child.process.returncode}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true", help="end after the first fetch")
    parser.add_argument("--port", type=int, default=6000, help="port of the proxy (default 6000)")
    arguments = parser.parse_args()
    for number in STOPPING_SIGNALS:
        signal.signal(number, stop)
    try:
        run(arguments)
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 130
    except (DemoError, ChildError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
