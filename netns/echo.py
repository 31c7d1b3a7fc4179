"""A server that sends back what it gets, and what asks it: `python -IS netns/echo.py` says "ready".

It answers at every address of its host, IPv4 and IPv6, TCP and UDP: at one port with the same
bytes, at the other with the address it sees its peer come from. A datagram is answered from the
address that it was sent to.
"""

from __future__ import annotations

import random
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["tcp", "udp"]
ECHO_PORT = 7  # RFC 862
WHO_PORT = 8
LARGEST_DATAGRAM = 65535
CHUNK = 1 << 16
STREAMS = 8  # at once, in `echo_each`
DATAGRAMS = 32
DATAGRAM_BYTES = 1 << 16  # what a socket keeps for who is slow
_NOISE = random.Random(0).randbytes(2 * LARGEST_DATAGRAM)


class WrongBytesError(Exception):
    """What came back is not what was sent."""


# ---- asking, from the network of the calling thread ----------------------------------------------


def echo(kind: Kind, address: str, size: int, timeout_s: float) -> None:
    """Send ``size`` bytes, with UDP as one datagram, and get just these back.

    Raise `OSError` when there is no answer in time or no way there, `WrongBytesError` for others.
    """
    data = noise(size)
    with _connect(kind, address, ECHO_PORT, timeout_s) as sock:
        if kind == "udp":
            sock.send(data)
            found = sock.recv(LARGEST_DATAGRAM)
        else:
            found = _through_stream(sock, data)
    _expect(found, size)


def echo_each(kind: Kind, address: str, sizes: Sequence[int], timeout_s: float) -> None:
    """Send data of each size, no two of which are the same, and get just these back.

    With UDP each is a datagram, and many are on their way. With TCP each is written and waited for,
    by a few connections at once, so that segments have all sizes too. Errors are those of `echo`.
    """
    if kind == "udp":
        with _connect(kind, address, ECHO_PORT, timeout_s) as sock:
            _each_as_datagram(sock, sizes)
        return
    with ExitStack() as stack:
        socks = [
            stack.enter_context(_connect(kind, address, ECHO_PORT, timeout_s))
            for _ in range(STREAMS)
        ]
        for sock in socks:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sizes), STREAMS):
            pairs = list(zip(socks, sizes[start : start + STREAMS]))  # noqa: B905 - the last may be fewer
            for sock, size in pairs:
                sock.sendall(noise(size))
            for sock, size in pairs:
                _expect(receive(sock, size), size)


def _each_as_datagram(sock: socket.socket, sizes: Sequence[int]) -> None:
    waiting: set[int] = set()
    for size in (*sizes, None):
        while waiting and (
            size is None or len(waiting) == DATAGRAMS or sum(waiting) + size > DATAGRAM_BYTES
        ):
            data = sock.recv(LARGEST_DATAGRAM)
            if len(data) not in waiting:
                raise WrongBytesError(f"nobody waits for the {len(data)} bytes that came back")
            waiting.remove(len(data))
            _expect(data, len(data))
        if size is not None:
            sock.send(noise(size))
            waiting.add(size)


def receive(sock: socket.socket, size: int) -> bytes:
    """As many bytes, or fewer if the stream ends."""
    found = bytearray()
    while len(found) < size and (chunk := sock.recv(size - len(found))):
        found += chunk
    return bytes(found)


def noise(size: int) -> bytes:
    """Bytes that other sizes do not have, fast for those of datagrams."""
    if size > LARGEST_DATAGRAM:
        return random.Random(size).randbytes(size)
    return _NOISE[size : 2 * size]


def _expect(found: bytes, size: int) -> None:
    data = noise(size)
    if found != data:
        at = next((n for n, pair in enumerate(zip(found, data)) if pair[0] != pair[1]), "none")  # noqa: B905 - lengths may differ
        raise WrongBytesError(f"{len(found)} bytes came back of {size}; the first wrong is {at}")


def seen_as(kind: Kind, address: str, timeout_s: float) -> str:
    """The address that the host at ``address`` sees us come from."""
    with _connect(kind, address, WHO_PORT, timeout_s) as sock:
        sock.send(b"who")
        return sock.recv(CHUNK).decode()


def _connect(kind: Kind, address: str, port: int, timeout_s: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    type_ = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
    sock = socket.socket(family, type_)
    sock.settimeout(timeout_s)
    try:
        sock.connect((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def _through_stream(sock: socket.socket, data: bytes) -> bytes:
    found = bytearray()
    failed: list[OSError] = []

    def send() -> None:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            failed.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        while chunk := sock.recv(CHUNK):
            found += chunk
    finally:
        sender.join()
    if failed:
        raise failed[0]
    return bytes(found)


# ---- answering -----------------------------------------------------------------------------------


def _listen(type_: socket.SocketKind, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, type_)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::", port))
    return sock


def _seen(peer: tuple[str, ...]) -> bytes:
    return peer[0].removeprefix("::ffff:").encode()


def _answer_stream(sock: socket.socket, peer: tuple[str, ...], port: int) -> None:
    with sock:
        try:
            if port == WHO_PORT:
                sock.recv(CHUNK)
                sock.sendall(_seen(peer))
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := sock.recv(CHUNK):
                sock.sendall(data)
        except OSError:
            return  # the peer is gone


def _serve_streams(listener: socket.socket, port: int) -> None:
    while True:
        arguments = (*listener.accept(), port)
        threading.Thread(target=_answer_stream, args=arguments, daemon=True).start()


def _serve_datagrams(sock: socket.socket, port: int) -> None:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    while True:
        data, ancillary, _, peer = sock.recvmsg(LARGEST_DATAGRAM, socket.CMSG_SPACE(20))
        # struct in6_pktinfo: the address it was sent to, and the device, which routes are to find
        source = [(level, type_, value[:16] + bytes(4)) for level, type_, value in ancillary]
        try:
            sock.sendmsg([_seen(peer) if port == WHO_PORT else data], source, 0, peer)
        except OSError:
            continue  # no way back


def main() -> None:
    threads = []
    for port in (ECHO_PORT, WHO_PORT):
        listener = _listen(socket.SOCK_STREAM, port)
        listener.listen(64)
        threads += [
            threading.Thread(target=_serve_streams, args=(listener, port)),
            threading.Thread(
                target=_serve_datagrams, args=(_listen(socket.SOCK_DGRAM, port), port)
            ),
        ]
    for thread in threads:
        thread.start()
    print("ready", flush=True)


if __name__ == "__main__":
    main()
