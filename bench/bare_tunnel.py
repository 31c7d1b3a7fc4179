"""A tunnel without SSH: what a ping costs in Python at the least. No login, no windows, no errors.

    bare_tunnel listen HOST DEVICE          prints "listening on PORT", later "carrying"
    bare_tunnel connect HOST PORT DEVICE    prints "carrying"

Per packet: one readv or recv_into, one AES-GCM, one write or send, and the epoll that says when.
After a write the device is read in the same turn, as `gateway/tun/pump.py` does.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys

import pytun
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY = bytes(32)
LARGEST = 65_535
TAG_SIZE = 16
LENGTH = struct.Struct(">I")


class Tunnel:
    """A device and a socket, neither of which ever waits."""

    __slots__ = ("_fd", "_plain", "_received", "_sealed", "_seals", "_sock", "_unseals", "lost",
                 "opened", "rest", "sent")  # fmt: skip

    def __init__(self, fd: int, sock: socket.socket) -> None:
        self._fd, self._sock = fd, sock
        self._seals, self._unseals = AESGCM(KEY), AESGCM(KEY)
        self._plain, self._sealed = (
            memoryview(bytearray(LARGEST)),
            memoryview(bytearray(2 * LARGEST)),
        )
        self._received = memoryview(bytearray(8 * LARGEST))
        self.sent = self.opened = self.lost = 0  # packets; the last while the device was down
        self.rest = 0  # bytes of a packet that is not all there

    def read_device(self) -> None:
        """Send what there is."""
        plain, sealed = self._plain, self._sealed
        try:
            while True:
                length = os.readv(self._fd, (plain,))
                self.sent += 1
                stop = LENGTH.size + length + TAG_SIZE
                LENGTH.pack_into(sealed, 0, length + TAG_SIZE)
                nonce, header = self.sent.to_bytes(12, "big"), sealed[: LENGTH.size]
                self._seals.encrypt_into(nonce, plain[:length], header, sealed[LENGTH.size : stop])
                self._sock.send(sealed[:stop])
        except BlockingIOError:
            return

    def read_socket(self) -> None:
        """Write what has arrived, then send what the kernel has to say to that."""
        received = self._received
        count = self._sock.recv_into(received[self.rest :])
        if not count:
            sys.exit()
        position, end = 0, self.rest + count
        while end - position >= LENGTH.size:
            start = position + LENGTH.size
            stop = start + LENGTH.unpack_from(received, position)[0]
            if stop > end:
                break
            self.opened += 1
            nonce, packet = self.opened.to_bytes(12, "big"), received[start : stop - TAG_SIZE]
            header = received[position:start]
            self._unseals.decrypt_into(nonce, received[start:stop], header, packet)
            try:
                os.write(self._fd, packet)
            except OSError:
                self.lost += 1
            position = stop
        self.rest = end - position
        if self.rest:
            received[: self.rest] = received[position:end]
        self.read_device()


def carry(fd: int, sock: socket.socket) -> None:
    """Carry packets until the other end closes."""
    tunnel = Tunnel(fd, sock)
    handlers = {fd: tunnel.read_device, sock.fileno(): tunnel.read_socket}
    epoll = select.epoll()
    for number in handlers:
        epoll.register(number, select.EPOLLIN | select.EPOLLET)
    print("carrying", flush=True)
    while True:
        for number, _ in epoll.poll():
            handlers[number]()


def main(role: str, host: str, *words: str) -> None:
    """Open the device ``words[-1]``, connect or be connected to, and carry."""
    device = pytun.TunTapDevice(name=words[-1], flags=pytun.IFF_TUN | pytun.IFF_NO_PI)
    if role == "connect":
        sock = socket.create_connection((host, int(words[0])))
    else:
        listener = socket.create_server((host, 0))
        print(f"listening on {listener.getsockname()[1]}", flush=True)
        sock, _ = listener.accept()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    os.set_blocking(device.fileno(), False)
    carry(device.fileno(), sock)


if __name__ == "__main__":
    main(*sys.argv[1:])
