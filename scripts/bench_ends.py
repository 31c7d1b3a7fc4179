"""The two ends of a measured transfer, each in a process of its own; standard library only.

    bench_ends.py server                          prints "listening on PORT", serves until ended
    bench_ends.py client JSON                     does one measurement, prints its result as JSON

What a client asks of the server is one line: ``get N``, ``put N`` or ``echo``. Both ends are
cheaper than anything between them: the sender uses sendfile from memory, the sink reads into one
buffer.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import threading
import time

BLOCK = 8 << 20  # the file that is sent over and over
RECEIVE = 256 << 10  # fits the L2 cache
ECHO_BYTES = 64


# ---- both ----------------------------------------------------------------------------------------


def make_block() -> int:
    """A file in memory with BLOCK random bytes."""
    fd = os.memfd_create("bench")
    os.truncate(fd, BLOCK)
    os.pwrite(fd, os.urandom(1 << 20) * (BLOCK >> 20), 0)
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


def set_blocking_for_good(sock: socket.socket) -> None:
    """Blocking in the kernel, not with a poll() before each call, which Python's timeouts cost."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# ---- server --------------------------------------------------------------------------------------


def serve_connection(sock: socket.socket, block: int) -> None:
    with sock:
        set_blocking_for_good(sock)
        request = b""
        while not request.endswith(b"\n"):
            byte = sock.recv(1)
            if not byte:
                return
            request += byte
        match request.split():
            case [b"get", count]:
                send_bytes(sock, block, int(count))
            case [b"put", count]:
                receive_bytes(sock, int(count))
                sock.send(b"k")
            case [b"echo"]:
                while data := sock.recv(ECHO_BYTES):
                    sock.send(data)


def serve_until_closed(sock: socket.socket, block: int) -> None:
    try:
        serve_connection(sock, block)
    except OSError:
        return  # the client measured enough and left


def serve() -> None:
    block = make_block()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(f"listening on {listener.getsockname()[1]}", flush=True)
        while True:
            sock = listener.accept()[0]
            threading.Thread(target=serve_until_closed, args=(sock, block), daemon=True).start()


# ---- client --------------------------------------------------------------------------------------


def connect(entry: int, target: int, *, through_socks: bool) -> socket.socket:
    """A connection to the data server at ``target``, through the proxy or relay at ``entry``."""
    sock = socket.create_connection(("127.0.0.1", entry))
    set_blocking_for_good(sock)
    if through_socks:
        sock.send(b"\x05\x01\x00")
        method = sock.recv(2)
        sock.send(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + target.to_bytes(2, "big"))
        reply = sock.recv(10)
        if method != b"\x05\x00" or reply[:2] != b"\x05\x00":
            raise ConnectionError(f"the proxy said {method!r} {reply!r}")
    return sock


def measure_bulk(sock: socket.socket, task: str, count: int) -> float:
    """Megabytes (10^6) in a second, from the request to the last byte or to the sink's receipt."""
    block = make_block() if task == "put" else -1
    started = time.perf_counter()
    sock.send(f"{task} {count}\n".encode())
    if task == "get":
        receive_bytes(sock, count)
    else:
        send_bytes(sock, block, count)
        if sock.recv(1) != b"k":
            raise ConnectionError("the sink did not get everything")
    return count / (time.perf_counter() - started) / 1e6


def measure_echo(sock: socket.socket, count: int) -> float:
    """Median microseconds of a 64-byte question and answer."""
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
        took.append(time.perf_counter() - started)
    return statistics.median(took) * 1e6


def measure(task: str, entry: int, target: int, *, through_socks: bool, count: int) -> float:
    if task == "connect":
        took = []
        for _ in range(count):
            started = time.perf_counter()
            with connect(entry, target, through_socks=through_socks):
                took.append(time.perf_counter() - started)
        return statistics.median(took) * 1e6
    with connect(entry, target, through_socks=through_socks) as sock:
        if task == "echo":
            return measure_echo(sock, count)
        return measure_bulk(sock, task, count)


def main() -> None:
    if sys.argv[1] == "server":
        serve()
    else:
        print(json.dumps(measure(**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
