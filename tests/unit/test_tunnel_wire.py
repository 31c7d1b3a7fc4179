"""tun@openssh.com and tunnel-lease@gateway.internal, byte by byte as in PROTOCOL.md."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from gateway.errors import RemoteProtocolError
from gateway.policy.leases import Pool
from gateway.ssh import wire
from gateway.ssh.tunnel import (
    ANY_UNIT,
    LEASE_REQUEST,
    MAXIMUM_ROUTES,
    MAXIMUM_UNIT,
    OFFLOAD_CHANNEL_TYPE,
    LeaseReply,
    LeaseRequest,
    OffloadConfirmation,
    OffloadOpen,
    TunOpen,
)
from gateway.tun.superpump import LEAST_PACKET_SIZE

REPLY = LeaseReply(
    (ip_interface("10.213.0.7/24"), ip_interface("fd21:3a5c::7/64")),
    (ip_interface("10.213.0.1/24"), ip_interface("fd21:3a5c::1/64")),
    1500,
    (ip_network("10.20.0.0/16"), ip_network("fd20::/64")),
)
BYTES = (
    wire.string(b"10.213.0.7/24,fd21:3a5c::7/64")
    + wire.string(b"10.213.0.1/24,fd21:3a5c::1/64")
    + b"\0\0\x05\xdc"
    + wire.string(b"10.20.0.0/16,fd20::/64")
)


def reply(client: str, server: str, mtu: int = 1500, routes: str = "") -> bytes:
    return (
        wire.string(client.encode())
        + wire.string(server.encode())
        + wire.uint32(mtu)
        + wire.string(routes.encode())
    )


# -- tun@openssh.com -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind", "unit"),
    [
        ("00000001 7fffffff", "tun", None),
        ("00000002 7fffffff", "tap", None),
        ("00000001 00000000", "tun", 0),
        ("00000002 7ffffffd", "tap", MAXIMUM_UNIT),
    ],
)
def test_a_device_that_is_asked_for(data: str, kind: str, unit: int | None) -> None:
    asked = TunOpen.decode_untrusted(bytes.fromhex(data))
    assert (asked.kind, asked.unit, asked.problem) == (kind, unit, "")
    assert TunOpen(asked.tunnel_mode, ANY_UNIT if unit is None else unit) == asked
    assert asked.encode() == bytes.fromhex(data)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("00000000 7fffffff", "there is no tunnel mode 0"),
        ("00000003 00000000", "there is no tunnel mode 3"),
        ("00000001 7ffffffe", f"there is no unit {0x7FFFFFFE}"),
        ("00000001 ffffffff", f"there is no unit {0xFFFFFFFF}"),
    ],
)
def test_a_device_that_cannot_be(data: str, problem: str) -> None:
    assert TunOpen.decode_untrusted(bytes.fromhex(data)).problem == problem


def test_an_open_that_is_cut_or_goes_on() -> None:
    whole = TunOpen(1, 5).encode()
    for data in (*(whole[:length] for length in range(len(whole))), whole + b"\0"):
        with pytest.raises(RemoteProtocolError):
            TunOpen.decode_untrusted(data)


# -- what is asked for -----------------------------------------------------------------------------


def test_a_request() -> None:
    assert LeaseRequest(True, False).encode() == b"\1\0"
    assert LeaseRequest.decode_untrusted(b"\0\1") == LeaseRequest(False, True)
    assert LeaseRequest.decode_untrusted(b"\1\1later").later == b"later"
    for data in (b"", b"\1"):
        with pytest.raises(RemoteProtocolError):
            LeaseRequest.decode_untrusted(data)


# -- what is lent ----------------------------------------------------------------------------------


def test_a_reply_whole_cut_and_with_more() -> None:
    assert REPLY.encode() == BYTES
    assert LeaseReply.decode_untrusted(BYTES) == REPLY
    assert LeaseReply.decode_untrusted(BYTES + b"\0later") == REPLY
    for length in range(len(BYTES)):
        with pytest.raises(RemoteProtocolError):
            LeaseReply.decode_untrusted(BYTES[:length])


@pytest.mark.parametrize(
    ("client", "server", "mtu", "routes"),
    [
        ("10.213.0.7/24", "10.213.0.1/24", 576, ""),
        ("fd21::7/64", "fd21::1/64", 1280, ""),
        ("fd21::7/64,10.213.0.7/24", "fd21::1/64,10.213.0.1/24", 65535, "0.0.0.0/0,::/0"),
        ("100.64.0.3/31", "100.64.0.2/31", 1500, "126.0.0.0/7,192.0.2.1/32,2001:db8::/32"),
    ],
)
def test_replies_that_are_usable(client: str, server: str, mtu: int, routes: str) -> None:
    data = reply(client, server, mtu, routes)
    assert LeaseReply.decode_untrusted(data).encode() == data


V4 = ("10.213.0.7/24", "10.213.0.1/24")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (reply("", ""), "a lease with 0 addresses for one side"),
        (reply(V4[0], ""), "a lease with 0 addresses for one side"),
        (reply(",".join(["10.0.0.1/24"] * 3), V4[1]), "a lease with 3 addresses for one side"),
        (reply("10.213.0.7/24,10.213.0.8/24", "10.213.0.1/24,10.213.0.1/24"), "of one family"),
        (reply("10.213.0.7/24", "fd21::1/64"), "are of different networks"),
        (reply("10.213.0.7/24,fd21::7/64", "10.213.0.1/24"), "are of different networks"),
        (reply("10.213.0.7/24", "8.8.8.8/24"), "are of different networks"),
        (reply("10.213.0.7/24", "10.213.0.1/25"), "are of different networks"),
        (reply("10.213.0.7/24", "10.213.0.7/24"), "10.213.0.7 for both sides"),
        *((reply(text, text), "a lease with the address") for text in (
            "10.213.0.7", "10.213.0.7/255.255.255.0", "10.213.0.7/024", "10.213.0.007/24",
            "10.213.0.7/33", "FD21::7/64", "fd21:0::7/64", "fd21::7%eth0/64", " 10.0.0.1/24",
            "10.0.0.1/24;reboot", "a/24", "/24", "10.0.0.1/", "::ffff:10.0.0.1/128/1",
        )),
        *((reply(text, text), "a lease with an address that is for no host") for text in (
            "127.0.0.1/24", "169.254.1.1/24", "224.0.0.1/24", "0.0.0.0/24", "0.1.2.3/24",
            "240.0.0.1/24", "255.255.255.255/32", "::/64", "::1/64", "fe80::1/64", "ff02::1/64",
            "::ffff:a00:1/112", "10.0.0.1/15", "10.0.0.1/0", "fd21::1/31", "fd21::1/0",
        )),
        (reply(*V4, mtu=575), "a lease with an MTU of 575"),
        (reply(*V4, mtu=65536), "a lease with an MTU of 65536"),
        (reply("fd21::7/64", "fd21::1/64", mtu=1279), "a lease with an MTU of 1279"),
        *((reply(*V4, routes=text), "a lease with the route") for text in (
            "10.20.0.1/16", "10.20.0.0", "10.20.0.0/16 ", "10.20/16", "FD20::/64", "default",
        )),
        *((reply(*V4, routes=text), "a lease with a route to what is no host's") for text in (
            "127.0.0.0/8", "127.0.0.1/32", "169.254.0.0/16", "224.0.0.0/8", "0.0.0.0/8",
            "::1/128", "fe80::/10", "ff00::/8",
        )),
        (reply(*V4, routes=",".join(["10.0.0.0/8"] * (MAXIMUM_ROUTES + 1))), "513 routes"),
        (reply(*V4, routes=","), "empty name"),
        (wire.string(b"10.0.0.1/24\0") * 2, "not printable ASCII"),
    ],
)  # fmt: skip
def test_replies_that_nobody_acts_upon(data: bytes, problem: str) -> None:
    with pytest.raises(RemoteProtocolError, match=re.escape(problem)) as caught:
        LeaseReply.decode_untrusted(data)
    assert str(caught.value).isprintable()


def test_every_lease_of_a_pool_can_be_used() -> None:
    for networks in (["10.213.0.0/30"], ["172.16.0.0/16", "fd21::/126"], ["2001:db8::/32"]):
        pool = Pool([ip_network(text) for text in networks])
        for session in range(min(pool.capacity, 3)):
            lease = pool.lease("alice", session)
            sent = LeaseReply(lease.client_addresses, lease.server_addresses, 1500)
            assert LeaseReply.decode_untrusted(sent.encode()) == sent
            assert lease.holds(ip_address(sent.client_addresses[0].ip))


def test_routes_that_a_client_would_refuse_are_not_sent() -> None:
    usable = tuple(ip_network(f"10.{n >> 8}.{n & 255}.0/24") for n in range(MAXIMUM_ROUTES + 1))
    unusable = (ip_network("127.0.0.0/8"), ip_network("169.254.169.254/32"))
    sent = LeaseReply(REPLY.client_addresses, REPLY.server_addresses, 1500, unusable + usable)
    assert LeaseReply.decode_untrusted(sent.encode()).routes == usable[:MAXIMUM_ROUTES]


def test_the_document_has_this_example() -> None:
    """PROTOCOL.md shows the bytes of one exchange."""
    text = (Path(__file__).parents[2] / "PROTOCOL.md").read_text()
    assert LEASE_REQUEST in text
    blocks = re.findall(r"(?ms)^```hex\n(.*?)^```", text)
    shown = [
        bytes.fromhex("".join(line.partition("#")[0] for line in block.splitlines()))
        for block in blocks
    ]
    assert shown == [LeaseRequest(True, True).encode(), BYTES]


def test_the_document_has_the_least_packet_size_of_unfinished_packets() -> None:
    text = (Path(__file__).parents[2] / "PROTOCOL.md").read_text()
    section = text.partition(f"## {OFFLOAD_CHANNEL_TYPE}")[2]
    stated = re.search(r"maximum packet size, at least (\d+)", section)
    assert stated is not None
    assert int(stated[1]) == LEAST_PACKET_SIZE


def test_an_open_for_unfinished_packets() -> None:
    data = bytes.fromhex("00000001 7fffffff 0000006f") + b"later"
    request = OffloadOpen.decode_untrusted(data)
    assert (request.plain.tunnel_mode, request.plain.unit, request.offloads) == (1, None, 0x6F)
    assert request.encode() == data
    assert OffloadConfirmation.decode_untrusted(b"\0\0\0\x0f").offloads == 0x0F
    for record, length in ((OffloadOpen, 11), (OffloadConfirmation, 3)):
        with pytest.raises(RemoteProtocolError):
            record.decode_untrusted(bytes(length))
