"""A tunnel without SSH: what a ping costs in Python at the least. No login, no windows, no errors.

    bare_tunnel listen HOST DEVICE          prints "listening on PORT", later "carrying"
    bare_tunnel connect HOST PORT DEVICE    prints "carrying"

Per packet: one readv or recv_into, one AES-GCM, one write or send, and the epoll that says when.
After a write the device is read in the same turn, as `gateway/tun/pump.py` does.
"""

from __future__ import annotations

import contextlib
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


def carry(fd: int, sock: socket.socket) -> None:
    """Carry packets between a device and a socket that never wait, until the other end closes."""
    seal, unseal = AESGCM(KEY).encrypt_into, AESGCM(KEY).decrypt_into
    plain, sealed = memoryview(bytearray(LARGEST)), memoryview(bytearray(2 * LARGEST))
    received = memoryview(bytearray(8 * LARGEST))
    sent_count = received_count = 0
    rest = 0  # bytes of a packet that is not all there

    def read_device() -> None:
        nonlocal sent_count
        with contextlib.suppress(BlockingIOError):
            while True:
                length = os.readv(fd, (plain,))
                sent_count += 1
                stop = LENGTH.size + length + TAG_SIZE
                LENGTH.pack_into(sealed, 0, length + TAG_SIZE)
                nonce = sent_count.to_bytes(12, "big")
                seal(nonce, plain[:length], sealed[: LENGTH.size], sealed[LENGTH.size : stop])
                sock.send(sealed[:stop])

    def read_socket() -> None:
        nonlocal received_count, rest
        count = sock.recv_into(received[rest:])
        if not count:
            sys.exit()
        position, end = 0, rest + count
        while end - position >= LENGTH.size:
            stop = position + LENGTH.size + LENGTH.unpack_from(received, position)[0]
            if stop > end:
                break
            received_count += 1
            nonce = received_count.to_bytes(12, "big")
            header, packet = received[position:][: LENGTH.size], received[position:stop][4:]
            unseal(nonce, packet, header, packet[:-TAG_SIZE])
            with contextlib.suppress(OSError):  # the device is down
                os.write(fd, packet[:-TAG_SIZE])
            position = stop
        rest = end - position
        received[:rest] = received[position:end]
        read_device()

    handlers = {fd: read_device, sock.fileno(): read_socket}
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
