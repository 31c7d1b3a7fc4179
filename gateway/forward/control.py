"""The control socket of a running `gateway connect`: its forwardings listed, added, cancelled.

One connection carries one request and its reply, each a line of JSON:

    {"do": "list"}                                           {"forwards": [{…}, …]}
    {"do": "add", "kind": "L", "forward": "8080:web:80"}     {"forwards": [{…}]}
    {"do": "cancel", "kind": "L", "forward": "8080"}         {"forwards": []}
                                                             {"error": "…"}

``kind`` is ssh's option and ``forward`` its argument; a forwarding that is up has its ``port`` too,
and whether the server has ``chosen`` that. The file is for its user alone, in a folder
that is so too, and who connects is asked for by name of the kernel (SO_PEERCRED): the same user, or
root. A request is bounded in length and in time, and so many are taken at once.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from gateway.errors import ConnectionLost, GatewayError, NetworkSetupError, printable
from gateway.forward.spec import Kind, Tcp
from gateway.net.dial import DialError, connect_unix
from gateway.net.listen import EXHAUSTED_PAUSE_S, open_unix_listener

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.forward.table import Active, Table

log = logging.getLogger(__name__)

REQUEST_LIMIT: Final = 8 * 1024  # bytes
REPLY_LIMIT: Final = 1024 * 1024
PATIENCE_S: Final = 10.0  # for a request, and for a reader of its reply
ANSWER_TIMEOUT_S: Final = 60.0  # of who asks: the server may have to be asked in between
MAXIMUM_CLIENTS: Final = 16
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: struct ucred, unix(7)


class Refused(GatewayError):
    """What was asked for cannot be done."""


# ---- the side that has the forwardings -----------------------------------------------------------


def is_dead(path: Path) -> bool:
    """Say whether this is a socket on which nobody listens any more."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):  # connect(2) says the same of any file
            return False
        connect_unix(str(path)).close()
    except DialError as error:
        return error.error_number == errno.ECONNREFUSED
    except OSError:
        return False
    return False


async def serve_control(
    path: Path, table: Table, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Listen, then answer requests until cancelled. A socket that cannot be made is told of."""
    try:
        listener, file = open_unix_listener(str(path))
    except NetworkSetupError as error:
        log.warning("there is no control socket: %s", error)
        task_status.started()
        return
    log.info("control socket: %s", path)
    task_status.started()
    try:
        with trio.socket.from_stdlib_socket(listener) as accepting:
            async with trio.open_nursery() as nursery:
                await _accept(accepting, table, nursery)
    finally:
        file.remove()


async def _accept(accepting: trio.socket.SocketType, table: Table, nursery: trio.Nursery) -> None:
    clients = trio.Semaphore(MAXIMUM_CLIENTS)

    async def serve(client: trio.socket.SocketType) -> None:
        try:
            await _serve_client(client, table)
        finally:
            clients.release()

    while True:
        await clients.acquire()
        try:
            client, _ = await accepting.accept()
        except OSError as error:  # descriptors ran out
            clients.release()
            log.info("control socket: %s", error.strerror)
            await trio.sleep(EXHAUSTED_PAUSE_S)
        else:
            nursery.start_soon(serve, client)


async def _serve_client(client: trio.socket.SocketType, table: Table) -> None:
    with client:
        try:
            if not _is_ours(client):
                log.warning("control socket: somebody else than its user has connected: refused")
                return
            with trio.fail_after(PATIENCE_S):
                line = await _read_line(client)
            reply = await _reply(line, table)
            stream = trio.SocketStream(client)
            with trio.fail_after(PATIENCE_S):
                await stream.send_all(json.dumps(reply).encode() + b"\n")
        except (OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
            log.debug("control socket: %s", error)
        except Exception:
            log.exception("internal error while a control request was served")


def _is_ours(sock: trio.socket.SocketType | socket.socket) -> bool:
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(found)
    return uid in (0, os.geteuid())


async def _read_line(client: trio.socket.SocketType) -> bytes:
    line = bytearray()
    while b"\n" not in line and len(line) < REQUEST_LIMIT:
        data = await client.recv(REQUEST_LIMIT - len(line))
        if not data:
            break
        line += data
    return bytes(line)


async def _reply(line: bytes, table: Table) -> dict[str, Any]:
    try:
        what, kind, text = _request_untrusted(line)
        match what:
            case "list":
                return {"forwards": [_shown(found) for found in table.active]}
            case "add":
                return {"forwards": [_shown(await table.add(kind, text))]}
            case _:
                await table.cancel(kind, text)
                return {"forwards": []}
    except GatewayError as error:
        return {"error": str(error)}


def _request_untrusted(line: bytes) -> tuple[str, Kind, str]:
    """Return what is to be done, and with what. Raises `Refused`."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    match request:
        case {"do": "list"}:
            return "list", Kind.LOCAL, ""
        case {
            "do": "add" | "cancel" as what,
            "kind": "L" | "R" | "D" as kind,
            "forward": str(text),
        }:
            return what, Kind(kind), text
    raise Refused("this is no request that is known here")


def _shown(active: Active) -> dict[str, Any]:
    listens = active.forward.listen
    is_chosen = isinstance(listens, Tcp) and not listens.port
    return {"forward": str(active.forward), "port": active.port, "chosen": is_chosen}


# ---- the side that asks --------------------------------------------------------------------------


class Shown(NamedTuple):
    """A forwarding of a reply: in ssh's words, what listens, and whether the server chose that."""

    forward: str
    port: int
    chosen: bool


def ask(path: Path, request: dict[str, str]) -> list[Shown]:
    """Send a request and return the forwardings of the reply, which can be shown as they are.

    Raises `Refused`, or `ConnectionLost`, also where the one who listens is another user.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(ANSWER_TIMEOUT_S)
        try:
            sock.connect(str(path))
            if not _is_ours(sock):
                raise ConnectionLost(f"{path}: another user listens there: it is not asked")
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as stream:
                line = stream.readline(REPLY_LIMIT)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise ConnectionLost(f"no gateway connect listens on {path}: is it running?") from error
        except OSError as error:
            raise ConnectionLost(f"{path}: {error.strerror or error}") from error
    try:
        return _forwards_untrusted(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise ConnectionLost(f"{path}: there was no answer that is known here") from error


def _forwards_untrusted(reply: object) -> list[Shown]:
    """Read a reply. Raises `Refused`, or `ValueError`."""
    match reply:
        case {"error": str(error)}:
            raise Refused(printable(error))
        case {"forwards": list(found)}:
            return [_shown_untrusted(one) for one in found]
    raise ValueError("neither an error nor forwardings")


def _shown_untrusted(found: object) -> Shown:
    match found:
        case {"forward": str(forward), "port": int(port), "chosen": bool(chosen)}:
            return Shown(printable(forward), port, chosen)
    raise ValueError("no forwarding")
