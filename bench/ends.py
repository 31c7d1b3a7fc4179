"""The two ends of what is measured, each in a process of its own; standard library only.

    ends.py server PORT [ADDRESS]           prints "listening on PORT", serves until ended
    ends.py client JSON                     does one measurement, prints its result as JSON

What a client asks of the server is one line: ``get N``, ``put N``, ``sink SECONDS`` or ``echo``.
Both ends are cheaper than anything between them: the sender uses sendfile from memory, the sink
reads into one buffer.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 8 << 20  # the file that is sent over and over
RECEIVE = 256 << 10  # fits the L2 cache
ECHO_BYTES = 64
ENDLESS = 1 << 50
LATE_S = 60.0  # after this an answer counts as lost
SLOW_READ = 1024  # bytes in a second
SMALL_BUFFER = 8 << 10  # so that a slow reader's kernel does not read for it
STAMP = struct.Struct("d")

Outcome = dict[str, float | list[float]]

# ---- both ----------------------------------------------------------------------------------------


def block_bytes() -> bytes:
    """The same random bytes in every process."""
    return random.Random(1).randbytes(1 << 20) * (BLOCK >> 20)


def make_block() -> int:
    """A file in memory with BLOCK bytes."""
    fd = os.memfd_create("bench")
    os.truncate(fd, BLOCK)
    os.pwrite(fd, block_bytes(), 0)
    return fd


def send_bytes(sock: socket.socket, block: int, count: int) -> None:
    sent = 0
    while sent < count:
        offset = sent % BLOCK
        sent += os.sendfile(sock.fileno(), block, offset, min(BLOCK - offset, count - sent))


def receive_bytes(sock: socket.socket, count: int) -> None:
    buffer = memoryview(bytearray(RECEIVE))
    received = 0
    while received < count:
        length = sock.recv_into(buffer)
        if not length:
            raise ConnectionError(f"the transfer ended after {received} of {count} bytes")
        received += length


def receive_line(sock: socket.socket) -> bytes:
    """A line without its end; empty when there is none."""
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            return b""
        line += byte
    return line[:-1]


def set_blocking_for_good(sock: socket.socket) -> None:
    """Blocking in the kernel, not with a poll() before each call, which Python's timeouts cost."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# ---- server --------------------------------------------------------------------------------------


def sink(sock: socket.socket, seconds: float) -> None:
    """Say how many bytes came within a time; go on reading, so that nobody is reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 100_000))
    buffer = memoryview(bytearray(RECEIVE))
    deadline = time.perf_counter() + seconds
    received, told = 0, False
    while True:
        try:
            length = sock.recv_into(buffer)
        except BlockingIOError:
            length = -1
        if not length:
            return
        if told:
            continue
        if time.perf_counter() < deadline:
            received += max(length, 0)
        else:
            sock.send(b"%d\n" % received)
            told = True


def serve_connection(sock: socket.socket, block: int) -> None:
    with sock:
        set_blocking_for_good(sock)
        match receive_line(sock).split():
            case [b"get", count]:
                send_bytes(sock, block, int(count))
            case [b"put", count]:
                receive_bytes(sock, int(count))
                sock.send(b"k")
            case [b"sink", seconds]:
                sink(sock, float(seconds))
            case [b"echo"]:
                while data := sock.recv(ECHO_BYTES):
                    sock.send(data)


def serve_until_closed(sock: socket.socket, block: int) -> None:
    try:
        serve_connection(sock, block)
    except OSError:
        return  # the client measured enough and left


def serve(port: int, host: str = "127.0.0.1") -> None:
    block = make_block()
    with socket.create_server((host, port), backlog=1024) as listener:
        print(f"listening on {listener.getsockname()[1]}", flush=True)
        while True:
            sock = listener.accept()[0]
            threading.Thread(target=serve_until_closed, args=(sock, block), daemon=True).start()


# ---- client: one stream --------------------------------------------------------------------------


def connect(
    entry: int,
    target: int,
    *,
    through_socks: bool,
    receive_buffer: int = 0,
    host: str = "127.0.0.1",
) -> socket.socket:
    """A connection to the data server at ``target``, through the proxy or relay at ``entry``."""
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect((host, entry))
    set_blocking_for_good(sock)
    if through_socks:
        sock.send(b"\x05\x01\x00")
        method = sock.recv(2)
        sock.send(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + target.to_bytes(2, "big"))
        reply = sock.recv(10)
        if method != b"\x05\x00" or reply[:2] != b"\x05\x00":
            raise ConnectionError(f"the proxy said {method!r} {reply!r}")
    return sock


def get(sock: socket.socket, count: int) -> Outcome:
    """Megabytes (10^6) in a second, from the request to the last byte."""
    started = time.perf_counter()
    sock.send(b"get %d\n" % count)
    receive_bytes(sock, count)
    return {"MB/s": count / (time.perf_counter() - started) / 1e6}


def put(sock: socket.socket, count: int) -> Outcome:
    """The same, to the sink's receipt."""
    block = make_block()
    started = time.perf_counter()
    sock.send(b"put %d\n" % count)
    send_bytes(sock, block, count)
    if sock.recv(1) != b"k":
        raise ConnectionError("the sink did not get everything")
    return {"MB/s": count / (time.perf_counter() - started) / 1e6}


def echo(sock: socket.socket, count: int) -> Outcome:
    """Microseconds of each 64-byte question and answer, one after the other."""
    sock.send(b"echo\n")
    data, took = bytes(ECHO_BYTES), []
    for _ in range(count):
        started = time.perf_counter()
        sock.send(data)
        missing = ECHO_BYTES
        while missing:
            length = len(sock.recv(missing))
            if not length:
                raise ConnectionError("the echo ended")
            missing -= length
        took.append((time.perf_counter() - started) * 1e6)
    return {"µs": took}


def stalled(sock: socket.socket, count: int, read_first: int, pause_s: float) -> Outcome:
    """Read some, stop, read the rest, and compare every byte."""
    expected = block_bytes()
    buffer = memoryview(bytearray(RECEIVE))
    sock.send(b"get %d\n" % count)
    received, has_paused = 0, False
    while received < count:
        if received >= read_first and not has_paused:
            time.sleep(pause_s)
            has_paused = True
        place = received % BLOCK
        length = sock.recv_into(buffer[: BLOCK - place])
        if not length:
            raise ConnectionError(f"the transfer ended after {received} of {count} bytes")
        if bytes(buffer[:length]) != expected[place : place + length]:
            raise ConnectionError(f"other bytes than were sent, after {received}")
        received += length
    return {"bytes": received}


# ---- client: several streams, in one loop --------------------------------------------------------


def poller_of(socks: list[socket.socket], events: int) -> tuple[select.epoll, dict[int, int]]:
    """A poller and the index of the socket of each descriptor."""
    poller = select.epoll()
    for sock in socks:
        sock.setblocking(False)
        poller.register(sock, events)
    return poller, {sock.fileno(): index for index, sock in enumerate(socks)}


def bulk_get(socks: list[socket.socket], seconds: float) -> Outcome:
    """Bytes of each stream from the requests on, for a time; then all are cut."""
    buffer = memoryview(bytearray(RECEIVE))
    counts = [0.0] * len(socks)
    for sock in socks:
        sock.send(b"get %d\n" % ENDLESS)
    poller, places = poller_of(socks, select.EPOLLIN)
    deadline = time.perf_counter() + seconds
    while (left := deadline - time.perf_counter()) > 0:
        for descriptor, _ in poller.poll(left):
            index = places[descriptor]
            length = socks[index].recv_into(buffer)
            if not length:
                raise ConnectionError("a download ended")
            counts[index] += length
    return {"bytes": counts}


def bulk_put(socks: list[socket.socket], seconds: float) -> Outcome:
    """Bytes of each stream that reached the sink within a time from its request's arrival."""
    block = make_block()
    counts = [0.0] * len(socks)
    for sock in socks:
        sock.send(b"sink %.3f\n" % seconds)
    poller, places = poller_of(socks, select.EPOLLIN | select.EPOLLOUT)
    waiting = len(socks)
    deadline = time.perf_counter() + seconds + LATE_S
    while waiting:
        if time.perf_counter() > deadline:
            raise TimeoutError("an upload's sink did not answer")
        for descriptor, events in poller.poll(1.0):
            index = places[descriptor]
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                counts[index] = float(receive_answer(socks[index]))
                poller.unregister(descriptor)
                waiting -= 1
                continue
            try:
                os.sendfile(descriptor, block, 0, RECEIVE)
            except BlockingIOError:
                continue
    return {"bytes": counts}


def receive_answer(sock: socket.socket) -> int:
    sock.setblocking(True)
    line = receive_line(sock)
    if not line:
        raise ConnectionError("an upload ended without the sink's answer")
    return int(line)


def paced_echo(
    socks: list[socket.socket], seconds: float, interval_s: float, wait_s: float
) -> Outcome:
    """Microseconds of 64-byte echoes sent by the clock, whether earlier ones are back or not.

    The streams take turns within an interval: all at once they would wait for each other, since
    sshd leaves Nagle's algorithm on.
    """
    for sock in socks:
        echo(sock, 1)
    print("ready", flush=True)
    time.sleep(wait_s)
    poller, places = poller_of(socks, select.EPOLLIN)
    partial = [b""] * len(socks)
    took: list[float] = []
    sent = 0
    due_s = time.perf_counter()
    end_s = due_s + seconds
    while True:
        now_s = time.perf_counter()
        if due_s <= now_s and due_s < end_s:
            sock = socks[sent % len(socks)]
            sock.send(STAMP.pack(time.perf_counter()).ljust(ECHO_BYTES))
            sent += 1
            due_s += interval_s / len(socks)
        elif due_s >= end_s and (len(took) == sent or now_s > end_s + LATE_S):
            break
        wait_s = (due_s if due_s < end_s else end_s + LATE_S) - time.perf_counter()
        for descriptor, _ in poller.poll(max(wait_s, 0)):
            index = places[descriptor]
            data = socks[index].recv(4096)
            if not data:
                raise ConnectionError("an echo ended")
            now_s = time.perf_counter()
            data = partial[index] + data
            while len(data) >= ECHO_BYTES:
                took.append((now_s - STAMP.unpack_from(data)[0]) * 1e6)
                data = data[ECHO_BYTES:]
            partial[index] = data
    if len(took) < sent:
        raise TimeoutError(f"{sent - len(took)} of {sent} echoes did not come back")
    return {"µs": took}


def hold(socks: list[socket.socket]) -> Outcome:
    """Use each stream once, say so, and hold them until standard input ends."""
    for sock in socks:
        echo(sock, 1)
    print("ready", flush=True)
    sys.stdin.read()
    return {"streams": len(socks)}


def slow(socks: list[socket.socket], seconds: float) -> Outcome:
    """Read a kilobyte in a second from each of the endless downloads."""
    for sock in socks:
        sock.send(b"get %d\n" % ENDLESS)
        sock.setblocking(False)
    received = 0
    next_s = time.perf_counter()
    end_s = next_s + seconds
    while next_s < end_s:
        for sock in socks:
            try:
                received += len(sock.recv(SLOW_READ))
            except BlockingIOError:
                continue
        next_s += 1.0
        time.sleep(max(next_s - time.perf_counter(), 0))
    return {"bytes": received}


# ---- client: what was asked for ------------------------------------------------------------------

ONE_STREAM: dict[str, Callable[..., Outcome]] = {
    "get": get,
    "put": put,
    "echo": echo,
    "stalled": stalled,
}
STREAMS: dict[str, Callable[..., Outcome]] = {
    "bulk get": bulk_get,
    "bulk put": bulk_put,
    "paced echo": paced_echo,
    "hold": hold,
    "slow": slow,
}


def measure(
    task: str,
    entry: int,
    target: int,
    *,
    through_socks: bool,
    streams: int = 1,
    host: str = "127.0.0.1",
    **options: float,
) -> Outcome:
    def dial(receive_buffer: int = 0) -> socket.socket:
        return connect(
            entry, target, through_socks=through_socks, receive_buffer=receive_buffer, host=host
        )

    if task == "connect":
        took = []
        for _ in range(int(options["count"])):
            started = time.perf_counter()
            with dial():
                took.append((time.perf_counter() - started) * 1e6)
        return {"µs": took}
    if task in ONE_STREAM:
        with dial() as sock:
            return ONE_STREAM[task](sock, **options)
    socks = [dial(SMALL_BUFFER if task == "slow" else 0) for _ in range(streams)]
    return STREAMS[task](socks, **options)


def main() -> None:
    if sys.argv[1] == "server":
        serve(int(sys.argv[2]), *sys.argv[3:])
    else:
        print(json.dumps(measure(**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
