"""Targets that parse what a peer, a proxy, a SOCKS client or a tunnel's far end says."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from gateway.socks.client import Socks4aClient, Socks5Client
from gateway.socks.http_connect import HttpConnect
from gateway.socks.server import EARLY_DATA_LIMIT, SocksServer
from gateway.ssh import hostkeys, messages
from gateway.ssh.keys import PrivateKey
from gateway.ssh.tunnel import LeaseReply, LeaseRequest, OffloadConfirmation, OffloadOpen, TunOpen
from gateway.ssh.wire import string, uint32
from gateway.tun import virtio
from gateway.tun.packet import FAMILY_INET, FAMILY_INET6, Addresses, judge_frame, judge_ip
from gateway.tun.remote import parse_probe_untrusted
from tests.fuzz.links import pieces_of
from tests.support.offload_rules import may_reach_a_device
from tests.support.packets import TCP, ipv4, ipv6, syn, udp
from tests.support.wrong_bytes import RECORDS, head, sample

if TYPE_CHECKING:
    from collections.abc import Iterator

# ---- messages ------------------------------------------------------------------------------------


def message(data: bytes) -> None:
    """The first byte chooses the message; what is read is written again and read as the same."""
    if not data:
        return
    record = RECORDS[data[0] % len(RECORDS)]
    body = data[1:] if head(record) else data[2:]
    found = record.decode_untrusted(body)
    assert record.decode_untrusted(found.encode()) == found
    assert repr(found)
    if isinstance(found, messages.ExtInfo):
        assert len(messages.extensions_untrusted(found)) <= len(body)
    elif isinstance(found, messages.UserauthInfoRequest):
        assert len(messages.prompts_untrusted(found)) <= messages.MAXIMUM_PROMPTS


def message_seeds() -> Iterator[bytes]:
    samples = [sample(record) for record in RECORDS]
    samples += [
        messages.ext_info({"server-sig-algs": b"ssh-ed25519", "ping@openssh.com": b"0"}),
        messages.info_request("name", "words", [("Password: ", False), ("Code: ", True)]),
        messages.info_response(("one", "two")),
    ]
    for value in samples:
        body = value.encode() if head(type(value)) else b"\0" + value.encode()
        yield bytes((RECORDS.index(type(value)),)) + body


HOST_KEY = PrivateKey.generate(lambda length: b"h" * length)


def host_keys(data: bytes) -> None:
    """The first byte chooses: an offer of host keys, what proves them, what asks for proofs."""
    kind, rest = data[:1], data[1:]
    if kind == b"\0":
        for key in hostkeys.offered_keys_untrusted(rest):
            assert key.blob in rest
    elif kind == b"\1":
        hostkeys.check_proofs_untrusted(rest, (HOST_KEY.public,), b"s" * 32)
    else:
        assert len(hostkeys.proofs_untrusted(rest, (HOST_KEY,), b"s" * 32, "ssh-ed25519")) <= 200


def host_key_seeds() -> Iterator[bytes]:
    asked = hostkeys.prove_request((HOST_KEY.public,))
    yield b"\0" + hostkeys.offer((HOST_KEY,)) * 3
    yield b"\1" + hostkeys.proofs_untrusted(asked, (HOST_KEY,), b"s" * 32, "ssh-ed25519")
    yield b"\2" + asked


# ---- SOCKS and HTTP ------------------------------------------------------------------------------


def socks_server(data: bytes) -> None:
    """The first byte says in which pieces a client's bytes arrive."""
    server = SocksServer()
    for piece in pieces_of(data):
        server.receive(piece[: server.room])
        assert EARLY_DATA_LIMIT >= server.room >= 0
    request = server.request
    if request is not None:
        assert 0 < request.port < 65536
        assert request.host.isprintable()
        early = server.early_data()
        assert data.endswith(early) or not server.room
        server.succeed()
        assert server.data_to_send()


def socks_server_seeds() -> Iterator[bytes]:
    port = b"\0\x50"
    for step in b"\0\x3f":
        pre = bytes((step,))
        yield pre + b"\5\1\0\5\1\0\3\x0bexample.org" + port + b"early"
        yield pre + b"\5\2\0\2\5\1\0\1\x7f\0\0\1" + port
        yield pre + b"\5\1\0\5\1\0\4" + bytes(15) + b"\1" + port
        yield pre + b"\4\1" + port + b"\x0a\0\0\1user\0"
        yield pre + b"\4\1" + port + b"\0\0\0\1user\0example.org\0early"
        yield pre + b"GET / HTTP/1.1\r\n"


MAKERS = (
    lambda: Socks5Client("host.example", 22),
    lambda: Socks5Client("host.example", 22, "alice", "secret"),
    lambda: Socks4aClient("host.example", 22, "alice"),
    lambda: HttpConnect("host.example", 22, "alice", "secret"),
)


def upstream(data: bytes) -> None:
    """The first byte chooses the protocol, the second the pieces in which the proxy answers."""
    if len(data) < 2:
        return
    client = MAKERS[data[0] % len(MAKERS)]()
    client.data_to_send()
    waiting = b""
    for piece in pieces_of(data[1:]):
        waiting += piece
        used = client.receive(waiting)
        assert 0 <= used <= len(waiting)
        waiting = waiting[used:]
        client.data_to_send()
        if client.is_done:
            return
        assert not waiting


def upstream_seeds() -> Iterator[bytes]:
    yield b"\0\x3f\5\0\5\0\0\1\0\0\0\0\0\0SSH-2.0-x\r\n"
    yield b"\1\0\5\2\1\0\5\0\0\3\4name\0\0"
    yield b"\1\x3f\5\2\1\1"
    yield b"\0\x3f\5\0\5\5\0\1\0\0\0\0\0\0"
    yield b"\2\x3f\0\x5a" + bytes(6)
    yield b"\2\0\0\x5b" + bytes(6)
    yield b"\3\x3fHTTP/1.1 200 Connected\r\nVia: x\r\n\r\nSSH-2.0-x\r\n"
    yield b"\3\0HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 407 no\r\nContent-Length: 3\r\n\r\nabc"
    yield b"\3\x3fHTTP/1.1 502 no\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


# ---- the tunnel ----------------------------------------------------------------------------------

REQUESTS = (TunOpen, OffloadOpen, OffloadConfirmation, LeaseRequest, LeaseReply)


def tunnel_request(data: bytes) -> None:
    """The first byte chooses which request or reply follows."""
    if not data:
        return
    kind = REQUESTS[data[0] % len(REQUESTS)]
    found = kind.decode_untrusted(data[1:])
    assert kind.decode_untrusted(found.encode()) == found
    if isinstance(found, TunOpen):
        assert found.problem.isprintable()
        assert found.kind in ("", "tun", "tap")


def tunnel_request_seeds() -> Iterator[bytes]:
    yield b"\0" + TunOpen(1, 3).encode()
    yield b"\1" + OffloadOpen(1, 3, 15).encode()
    yield b"\2" + OffloadConfirmation(15).encode()
    yield b"\3" + LeaseRequest(True, False, b"later").encode()
    both = [string(b"10.213.0.%d/24,fd21::%d/64" % (last, last)) for last in (7, 1)]
    yield b"\4" + b"".join(both) + uint32(1500) + string(b"10.0.0.0/8,fd00::/8")


ADDRESSES = Addresses(lambda _source, _destination: None)


def tunnel_packet(data: bytes) -> None:
    """A packet as sshd sends it, and a frame: what passes can be looked at further."""
    view = memoryview(data)
    if judge_ip(view) is None:
        packet = view[4:]
        assert len(packet) > (20 if packet[0] >> 4 == 4 else 40)
        assert ADDRESSES.judge(packet) is None
    assert (judge_frame(view) is None) == (len(data) > 14)


def tunnel_packet_seeds() -> Iterator[bytes]:
    yield FAMILY_INET + udp("10.0.0.1", 1, "10.0.0.2", 2, b"data")
    yield FAMILY_INET6 + udp("fd00::1", 1, "fd00::2", 2, b"data")
    yield FAMILY_INET + syn("10.0.0.1", 1, "10.0.0.2", 2, 1460)
    yield FAMILY_INET + bytes(20)


MTU = 1500


def virtio_record(data: bytes) -> None:
    """A record of a tunnel between gateways, judged twice."""
    passes = virtio.judge(memoryview(data), MTU) is None
    assert passes == (len(data) > virtio.SIZE and may_reach_a_device(data, MTU))


def virtio_seeds() -> Iterator[bytes]:
    tcp = bytes(12) + bytes([5 << 4]) + bytes(7) + bytes(900)
    datagram = struct.pack(">HHHH", 1, 2, 908, 0) + bytes(900)
    for version, start in ((4, 20), (6, 40)):
        make = ipv4 if version == 4 else ipv6
        ends = ("10.0.0.1", "10.0.0.2") if version == 4 else ("fd00::1", "fd00::2")
        whole = make(*ends, tcp, TCP)
        header = virtio.HEADER.pack
        yield header(0, 0, 0, 0, 0, 0) + whole
        yield header(1, 1 if version == 4 else 4, start + 20, 300, start, 16) + whole
        yield header(1, 5, start + 8, 300, start, 6) + make(*ends, datagram)
        yield header(1, 0, 0, 0, start + 28, 6) + make(*ends, datagram)


def probe(data: bytes) -> None:
    """What a host says of itself before it is set up for a VPN."""
    host = parse_probe_untrusted(data)
    assert all(len(name) <= 100 for name in host.tools)


def probe_seeds() -> Iterator[bytes]:
    yield (
        b"Welcome\nuid=0\ntool=ip\ntool=nft\ndevice=tun0\nipv4/ip_forward:1\n"
        b"ipv6/conf/eth0/accept_ra:1\ndefault via fe80::1 dev eth0 proto ra metric 1\n"
    )
