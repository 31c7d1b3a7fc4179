"""Hostile packets in a tunnel, from either end of it and from the hosts: see tests/HAZARDS.md.

What a scripted client sends is followed by a ping: when that is answered, all before was judged.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import struct
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.hostile import (
    ICMP,
    ears,
    framed,
    hostile_client,
    hostile_server,
    icmpv6,
    mouth,
    ping_packet,
    send_nonsense,
)
from tests.support.packets import ipv4, ipv6
from tests.support.programs import GATEWAY, eventually
from tests.support.vpn import PORT, Site, running_site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.lab import Host, Lab

pytestmark = pytest.mark.netns

FLOWS = 60
CONFIG = f"""
[[rules]]
allow = "tun"
to = ["10.20.0.0/24", "fd20::/64", "10.213.0.0/24", "fdb3:d38b:9530::/64"]
[tunnel]
pool = ["10.213.0.0/24", "fdb3:d38b:9530::/64"]
flows_per_client = {FLOWS}
"""
TARGET = ("10.20.0.2", "fd20::2")
SUBNETS = "10.20.0.0/24,fd20::/64"
MARKER = b"hostile packet.."


@pytest.fixture(scope="module")
def lab(routed: Lab) -> Lab:
    for name in ("target", "other", "server"):
        routed[name].start_echo()
    return routed


@pytest.fixture(scope="module")
def site(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site("serve", lab, tmp_path_factory.mktemp("keys"), CONFIG) as site:
        yield site


# ---- what was lost, and why ----------------------------------------------------------------------


def lost(text: str) -> Counter[str]:
    """Read a line that says how many packets were lost, by reason."""
    listed = text.partition("packets lost")[2].partition(": ")[2]
    return Counter({why: int(count) for count, why in re.findall(r"(\d+) ([a-z ]+)", listed)})


def ended_tunnels(site: Site, user: str) -> list[str]:
    """What the audit log says of them."""
    lines = (site.keys.folder / "audit" / "audit-000001.jsonl").read_text().splitlines()
    return [
        record["reason"]
        for record in map(json.loads, lines)
        if record["kind"] == "channel.close" and record["user"] == user
    ]


@contextlib.contextmanager
def losses_of(site: Site, user: str) -> Iterator[Counter[str]]:
    """Have, after the with block, in which one tunnel of a user ends, what was lost in it."""
    found: Counter[str] = Counter()
    before = len(ended_tunnels(site, user))
    yield found
    eventually(lambda: len(ended_tunnels(site, user)) == before + 1, "the record of its end")
    found.update(lost(ended_tunnels(site, user)[-1]))


# ---- T69: what is no packet ----------------------------------------------------------------------


def nonsense(ours: str, theirs: str) -> list[bytes]:
    """Messages that are wrong in one way each."""
    packet = ping_packet(ours, theirs, MARKER)
    message = framed(packet)
    return [
        b"",
        message[:3],
        message[:4],
        framed(ipv4(ours, theirs, b"")),
        b"\0\0\0\x02" + ipv6("fd00::1", "fd00::2", MARKER),
        b"\0\0\0\x0a" + ipv6("fd00::1", "fd00::2", MARKER),  # Linux' number
        message + packet,
        message + message,
        message[:40],
        message[40:],
    ]


async def test_nonsense_from_a_client(site: Site) -> None:
    with losses_of(site, "alice") as losses:
        async with hostile_client(site, "alice") as alice:
            messages = nonsense(alice.ipv4, TARGET[0])
            messages += [random.randbytes(number % 1600) for number in range(10_000)]
            for message in messages:
                await alice.send(message)
            for ours, theirs in zip((alice.ipv4, alice.ipv6), TARGET, strict=True):
                assert await alice.is_answered(ours, theirs)
            assert len(alice.received) == 2
    assert losses.total() == len(messages)
    assert losses["no more than a header"] >= 1
    assert losses["address family and packet disagree"] > 1000
    assert losses["malformed"] > 1000


async def test_nonsense_from_a_server(site: Site) -> None:
    client = site.client
    with site.server.inside():
        listener = socket.create_server(("", 0))
    with listener:
        port = listener.getsockname()[1]
        options = [str(port) if word == str(PORT) else word for word in site.options()]
        connect = client.start(*GATEWAY, "connect", "-v", "-N", "-w", "any", *options)
        async with hostile_server(listener) as server:
            connect.wait_for_line("tunnel through tun0", 10)
            client.run("ip", "address", "add", "10.1.1.1", "peer", "10.1.1.2", "dev", "tun0")
            client.run("ip", "link", "set", "tun0", "up", "mtu", "20000")
            messages = nonsense("10.1.1.2", "10.1.1.1")
            messages += [random.randbytes(number % 1600) for number in range(10_000)]
            for message in messages:
                await server.send(message)
            assert await server.is_answered("10.1.1.2", "10.1.1.1")
            large = ping_packet("10.1.1.2", "10.1.1.1", bytes(16_381 - 44) + MARKER)
            assert len(await server.answer(large, bytes(16_381 - 44) + MARKER)) == 16_381
        connect.process.wait(60)
    said = connect.wait_for_line("packets lost in the tunnel: .*", 5)[0]
    assert lost(said).total() == len(messages)


def test_nonsense_from_the_hosts(site: Site) -> None:
    """Packet sockets send what no kernel would, out of the tun devices of both sides."""
    with losses_of(site, "root") as losses, site.vpn("--vpn", SUBNETS, "--mtu", "20000") as connect:
        site.server.run("ip", "link", "set", "tun0", "mtu", "20000")
        for host in (site.client, site.server):
            with mouth(host, "tun0") as sock:
                sock.send(ipv4("10.213.0.2", "10.213.0.1", b""))
            send_nonsense(host, "tun0", (1 + number % 1500 for number in range(10_000)))
        for address in TARGET:
            assert site.client.ping(address, 3).received == 3
            site.client.echo("tcp", address, 300_000)
        large = site.client.ping("10.213.0.1", 3, size=16_381 - 28, dont_fragment=True)
        assert large.received == 3
    said = lost(connect.wait_for_line("packets lost in the tunnel: .*", 5)[0])
    for side in (losses, said):
        assert side["no more than a header"] >= 1
        assert side["malformed"] > 1000


# ---- T70, T79, T80: what a client may not send ---------------------------------------------------


async def test_a_source_of_somebody_else(site: Site, lab: Lab) -> None:
    with losses_of(site, "alice") as losses:
        async with hostile_client(site, "alice") as alice, hostile_client(site, "bob") as bob:
            forged = {
                TARGET[0]: (bob.ipv4, alice.server_ipv4, "10.20.0.9", "10.99.2.2", "127.0.0.1"),
                TARGET[1]: (bob.ipv6, alice.server_ipv6, "fd20::9", "fd99:2::2", "::1", "fe80::1"),
            }
            with ears(lab["target"], "eth0") as heard:
                for destination, sources in forged.items():
                    for source in sources:
                        await alice.send(framed(ping_packet(source, destination, MARKER)))
                assert await alice.is_answered(alice.ipv4, TARGET[0])
                assert not [packet for packet in heard.heard() if MARKER in packet]
            assert await bob.is_answered(bob.ipv4, TARGET[0])
            assert len(bob.received) == 1, "nor an answer for somebody who did not ask"
    assert losses == {"source address of somebody else": sum(map(len, forged.values()))}


def syn(ours: str, theirs: str, port: int) -> bytes:
    """A TCP segment that asks for a connection; its checksum is nobody's business here."""
    segment = struct.pack(">HHIIBBHHH", 40_000, port, 1, 0, 5 << 4, 2, 65_535, 0, 0)
    return ipv4(ours, theirs, segment + MARKER, socket.IPPROTO_TCP)


def datagram(ours: str, theirs: str, port: int) -> bytes:
    data = struct.pack(">HHHH", 40_000, port, 8 + len(MARKER), 0) + MARKER
    return ipv4(ours, theirs, data, socket.IPPROTO_UDP)


async def test_what_no_rule_names(site: Site, lab: Lab) -> None:
    """Other clients, although a rule does; the server's services, and what is for neighbours."""
    server = lab["server"]
    with losses_of(site, "alice") as losses:
        async with hostile_client(site, "alice") as alice, hostile_client(site, "bob") as bob:
            elsewhere = [
                ping_packet(alice.ipv4, destination, MARKER)
                for destination in (bob.ipv4, *lab["other"].addresses[:1], *server.addresses[::2])
            ]
            elsewhere += [
                ping_packet(alice.ipv6, destination, MARKER)
                for destination in (bob.ipv6, *lab["other"].addresses[1:], *server.addresses[1::2])
            ]
            elsewhere += [
                ipv4(alice.ipv4, destination, MARKER)
                for destination in ("224.0.0.1", "255.255.255.255", "127.0.0.1", "10.213.0.255")
            ]
            elsewhere += [
                icmpv6(alice.ipv6, "ff02::1", bytes([kind, 0]) + bytes(14) + MARKER)
                for kind in (133, 134, 135, 136, 137)
            ]
            stopped_later = [
                syn(alice.ipv4, alice.server_ipv4, PORT),
                datagram(alice.ipv4, alice.server_ipv4, 7),
                *(
                    icmpv6(alice.ipv6, TARGET[1], bytes([kind, 0]) + bytes(14) + MARKER)
                    for kind in (133, 134, 135, 136, 137)
                ),
                ipv4(alice.ipv4, TARGET[0], bytes([5, 0]) + bytes(6) + MARKER, ICMP),
            ]
            listening = [(lab["target"], "eth0"), (lab["other"], "eth0"), (server, "eth0")]
            with contextlib.ExitStack() as stack:
                heard = [stack.enter_context(ears(*device)) for device in listening]
                for packet in (*elsewhere, *stopped_later):
                    await alice.send(framed(packet))
                for ours, theirs in zip((alice.ipv4, alice.ipv6), TARGET, strict=True):
                    assert await alice.is_answered(ours, theirs)
                assert not [one for ear in heard for one in ear.heard() if MARKER in one]
            assert len(alice.received) == 2, "no answer but to the two pings"
            assert await bob.is_answered(bob.ipv4, TARGET[0])
            assert len(bob.received) == 1
    assert losses == {"destination not allowed": len(elsewhere)}


def dropped_at_input(server: Host) -> int:
    """How many packets of clients our table has stopped before this machine could look at them."""
    listed = json.loads(server.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    rules = (item["rule"] for item in listed if "rule" in item)
    return sum(
        part["counter"]["packets"]
        for rule in rules
        if rule["chain"] == "incoming" and {"drop": None} in rule["expr"]
        for part in rule["expr"]
        if "counter" in part
    )


async def test_a_tunnel_in_the_tunnel_is_not_unpacked(site: Site, lab: Lab) -> None:
    """Stopped in the input hook, which comes before every protocol that could unpack it."""
    async with hostile_client(site, "alice") as alice:
        four = ping_packet("10.20.0.9", TARGET[0], MARKER)
        six = ping_packet("fd20::9", TARGET[1], MARKER)
        to_server = (alice.ipv4, alice.server_ipv4)
        packed = [
            ipv4(*to_server, four, socket.IPPROTO_IPIP),
            ipv4(*to_server, six, socket.IPPROTO_IPV6),
            ipv4(*to_server, b"\0\0\x08\0" + four, socket.IPPROTO_GRE),
            ipv4(*to_server, b"\0\0\x86\xdd" + six, socket.IPPROTO_GRE),
            ipv4(*to_server, struct.pack(">II", 1, 1) + four, socket.IPPROTO_ESP),
            ipv4(*to_server, bytes([4, 4]) + bytes(22) + four, socket.IPPROTO_AH),
            ipv6(alice.ipv6, alice.server_ipv6, six, socket.IPPROTO_IPV6),
            ipv6(alice.ipv6, alice.server_ipv6, four, socket.IPPROTO_IPIP),
            ipv6(alice.ipv6, alice.server_ipv6, b"\0\0\x86\xdd" + six, socket.IPPROTO_GRE),
        ]
        before = dropped_at_input(lab["server"])
        with ears(lab["target"], "eth0") as heard:
            for packet in packed:
                await alice.send(framed(packet))
            for ours, theirs in zip((alice.ipv4, alice.ipv6), TARGET, strict=True):
                assert await alice.is_answered(ours, theirs)
            assert not [packet for packet in heard.heard() if MARKER in packet]
        assert len(alice.received) == 2
        assert dropped_at_input(lab["server"]) - before == len(packed)


# ---- T72: sizes ----------------------------------------------------------------------------------

NO_ICMP = """
table inet hazard {
    chain output {
        type filter hook output priority 0;
        icmp type destination-unreachable counter drop
        icmpv6 type packet-too-big counter drop
    }
}
"""
NARROW = 1300
TOO_LARGE = ("unreachable 4", "too big 0")


@pytest.fixture
def narrow(lab: Lab) -> Iterator[None]:
    """Between the server and the target there is room for less than in the tunnel."""
    lab["server"].run("ip", "link", "set", "eth1", "mtu", str(NARROW))
    yield
    lab["server"].run("ip", "link", "set", "eth1", "mtu", "1500")


@pytest.mark.usefixtures("narrow")
def test_sizes_that_do_not_fit(site: Site, lab: Lab) -> None:
    server, client = lab["server"], site.client
    with site.vpn("--vpn", SUBNETS):
        for address in TARGET:  # the segments fit, though nobody may say what does not
            server.run("sh", "-c", f"nft -f - <<'E'{NO_ICMP}E")
            try:
                client.echo("tcp", address, 2_000_000)
            finally:
                server.run("nft", "delete", "table", "inet", "hazard")
        for address, headers, told in zip(TARGET, (28, 48), TOO_LARGE, strict=True):
            for size in range(1200, 1501, 20):
                found = client.ping(address, 1, size=size - headers, dont_fragment=True)
                assert found.received == (size <= NARROW), size
                assert list(found.errors.values()) == ([] if size <= NARROW else [told]), size


def test_the_smallest_mtu_of_ipv6(site: Site) -> None:
    with site.vpn("--vpn", SUBNETS, "--mtu", "1280"):
        for size, count in ((1280, 1), (1281, 0)):
            found = site.client.ping(TARGET[1], 1, size=size - 48, dont_fragment=True)
            assert found.received == count
        for address in TARGET:
            site.client.echo("tcp", address, 2_000_000)
            site.client.echo("udp", address, 8000)


# ---- T74, T82: NAT -------------------------------------------------------------------------------


def test_a_port_is_not_shadowed(site: Site, lab: Lab) -> None:
    """A client's source port is that on which the server listens; CVE-2021-3773."""
    target = lab["target"]
    with site.vpn("--vpn", SUBNETS):
        with target.inside():
            listener = socket.create_server(("10.20.0.2", 0))
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with listener, udp, site.client.inside():
            there = listener.getsockname()
            udp.bind(there)
            udp.settimeout(30)
            for _ in range(20):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
                    ours.bind(("", PORT))
                    ours.sendto(b"shadow", there)
                    assert udp.recvfrom(100)[1][1] != PORT
            with socket.socket() as ours:
                ours.bind(("", PORT))
                ours.settimeout(30)
                ours.connect(there)
                with listener.accept()[0] as accepted:
                    assert accepted.getpeername()[1] != PORT
                    listener.close()
                    assert banner(target, there) == b"SSH-2.0-gateway"


def banner(host: Host, source: tuple[str, int]) -> bytes:
    """Who answers at the server's port, for whom the client has just talked to."""
    with host.inside():
        sock = socket.socket()
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(source)
        sock.settimeout(30)
        sock.connect(("10.20.0.1", PORT))
        return sock.recv(15)


async def test_one_client_with_too_many_flows(site: Site) -> None:
    alice = replace(site, user="alice")
    with alice.vpn("--vpn", SUBNETS), contextlib.ExitStack() as stack:
        with site.client.inside():
            sockets = [
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                for _ in range(3 * FLOWS)
            ]
        for sock in sockets:
            sock.connect((TARGET[0], 7))
            sock.send(b"a flow")
        async with hostile_client(site, "bob") as bob:
            for ours, theirs in zip((bob.ipv4, bob.ipv6), TARGET, strict=True):
                assert await bob.is_answered(ours, theirs), "others go on"
        first, *others = sockets
        first.settimeout(30)
        assert first.recv(100) == b"a flow"
        first.send(b"again")
        assert first.recv(100) == b"again", "and so does what there is"
        assert sum(map(has_answer, others)) < FLOWS


def has_answer(sock: socket.socket) -> bool:
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        return sock.recv(100) == b"a flow"
    return False
