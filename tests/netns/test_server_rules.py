"""The server's rules in the kernel: what a client may send through it, and what may reach one.

The server of the lab has two clients, which are tun devices that the test writes packets into and
reads them from; the lab's other host stands for everything behind the server, and outside.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from netns.lab import Lab, ip
from netns.state import difference
from netns.topologies import TWO_HOSTS
from tests.netns.conftest import why_not
from tests.support.packets import GRE, UDP, echo_request, packet, payload_of, syn, udp
from tests.support.routing_server import FLOWS, LISTENING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.lab import Host

pytestmark = pytest.mark.netns

A, B = ("10.8.0.2", "fd08::2"), ("10.8.0.3", "fd08::3")
SERVER = ("10.8.0.1", "fd08::1")
QUIET_S = 0.15  # nothing in this time means nothing will come: the kernel drops at once

# A socket in a host: its port, then for each line on its input the datagrams that came, and from
# whom; the line may ask it to send one first.
SOCKET = """
import json, select, socket, sys
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], int(sys.argv[2])))
print(sock.getsockname()[1], flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "to" in asked:
        sock.sendto(asked["data"].encode(), tuple(asked["to"]))
    got = []
    while select.select([sock], [], [], asked["read_s"])[0]:
        data, peer = sock.recvfrom(2000)
        got.append([data.decode(), *peer[:2]])
    print(json.dumps(got), flush=True)
"""


class Talker:
    """A program in a host that is asked in lines of JSON."""

    def __init__(self, host: Host, *command: str) -> None:
        self.process = subprocess.Popen(
            host.command(sys.executable, *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = json.loads(self.process.stdout.readline())

    def ask(self, **request: Any) -> Any:
        self.tell(**request)
        return json.loads(self.process.stdout.readline())

    def tell(self, **request: Any) -> None:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        self.process.stdout.close()


class World:
    """The server with its two clients, and sockets of the host behind it."""

    def __init__(self, lab: Lab) -> None:
        self.behind, self.server = lab["client"], lab["server"]
        self.clients = Talker(self.server, "-m", "tests.support.routing_server")
        self.sockets = {
            address: Talker(self.behind, "-c", SOCKET, address, "0")
            for address in (self.behind.ipv4(), self.behind.ipv6())
        }
        self.own = Talker(self.server, "-c", SOCKET, "0.0.0.0", "0")

    def send(self, client: int, data: bytes) -> None:
        self.clients.tell(tun=client, send=data.hex())

    def came_for(self, client: int) -> list[bytes]:
        """What comes out of a client's device, but for the kernel's own multicast reports."""
        came = (bytes.fromhex(p) for p in self.clients.ask(tun=client, read_s=QUIET_S))
        return [data for data in came if data[0] >> 4 == 4 or data[8:24] != bytes(16)]

    def end(self) -> None:
        for talker in (*self.sockets.values(), self.own, self.clients):
            talker.end()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if reason := why_not[False]():
        pytest.skip(f"no network-namespace lab: {reason}")
    with pytest.MonkeyPatch.context() as patch, Lab(TWO_HOSTS) as lab:
        patch.setenv("GATEWAY_RUN_DIR", str(tmp_path_factory.mktemp("run") / "run"))
        # The host behind could send to clients: nothing but the server's rules is in its way.
        for route, family in (("10.8.0.0/24", "ipv4"), ("fd08::/64", "ipv6")):
            via = getattr(lab["server"], family)()
            ip("-n", lab["client"].namespace, "route", "add", route, "via", via)
        before = lab["server"].snapshot()
        world = World(lab)
        yield world
        world.end()
        assert difference(before, lab["server"].snapshot()) == ""


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_a_client_reaches_what_is_behind_and_hears_the_answer(world: World, family: int) -> None:
    """T74: the source port is none that the server listens near, whatever the client chose."""
    address = list(world.sockets)[family]
    target = world.sockets[address]
    world.send(0, udp(A[family], LISTENING, address, target.first, b"question"))
    ((data, sender, port),) = target.ask(read_s=QUIET_S)
    assert (data, sender) == ("question", list(world.server.addresses)[family])
    assert port > LISTENING
    target.ask(to=[sender, port], data="answer", read_s=0)
    (answer,) = world.came_for(0)
    protocol, payload = payload_of(answer)
    assert (protocol, payload[8:]) == (UDP, b"answer")
    assert struct.unpack("!HH", payload[:4]) == (target.first, LISTENING)


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_nobody_reaches_a_client_who_was_not_asked(world: World, family: int) -> None:
    """T73, T74, T79: not the network outside, and not another client."""
    outside = list(world.sockets.values())[family]
    outside.ask(to=[A[family], 5353], data="hello", read_s=0)
    world.send(1, udp(B[family], 5353, A[family], 5353, b"hello"))
    world.send(1, echo_request(B[family], A[family]))
    assert world.came_for(0) == []


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_a_source_that_is_not_the_client_s_goes_nowhere(world: World, family: int) -> None:
    """T70, by the kernel as well: another client's, and one of the pool that nobody has."""
    address = list(world.sockets)[family]
    target = world.sockets[address]
    nobody = ("10.8.0.200", "fd08::200")[family]
    for source in (B[family], nobody):
        world.send(0, udp(source, 5353, address, target.first, b"spoofed"))
    assert target.ask(read_s=QUIET_S) == []


def test_the_server_itself_answers_echo_and_nothing_else(world: World) -> None:
    """T79, T80: no service of the server, and no tunnel in the tunnel is opened there."""
    for family in (0, 1):
        world.send(0, echo_request(A[family], SERVER[family]))
        (reply,) = world.came_for(0)
        assert payload_of(reply)[1][0] == (0, 129)[family]
    inner = udp("192.0.2.1", 1, world.behind.ipv4(), world.own.first, b"decapsulated")
    world.send(0, packet(A[0], SERVER[0], GRE, b"\0\0\x08\0" + inner))
    for address in (SERVER[0], world.server.ipv4()):
        world.send(0, udp(A[0], 5353, address, world.own.first, b"hello"))
    assert world.own.ask(read_s=QUIET_S) == []
    assert world.came_for(0) == []


def test_segments_fit_both_ways(world: World) -> None:
    """T72: the client's device has 1400 bytes, the network behind 1500."""
    with _sniffing(world.behind) as sniffer:
        world.send(0, syn(A[0], 5000, world.behind.ipv4(), 9, 60_000))
        mss = sniffer.stdout.readline()
    assert mss == "1360\n"


def test_a_client_has_so_many_connections_and_no_more(world: World) -> None:
    """T82; another client has its own."""
    address = world.behind.ipv4()
    target = world.sockets[address]
    for port in range(6000, 6000 + 3 * FLOWS):
        world.send(1, udp(B[0], port, address, target.first, b"flow"))
    assert len(target.ask(read_s=QUIET_S)) == FLOWS
    world.send(0, udp(A[0], LISTENING, address, target.first, b"another"))
    assert [data for data, *_ in target.ask(read_s=QUIET_S)] == ["another"]


def test_a_machine_that_was_no_router_is_none_for_others(world: World) -> None:
    """Forwarding is on for clients, and a host outside may not use it."""
    assert world.server.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout == "1\n"
    ip("-n", world.behind.namespace, "route", "add", "10.77.0.0/16", "via", world.server.ipv4())
    ip("-n", world.server.namespace, "route", "add", "10.77.0.0/16", "via", world.behind.ipv4())
    before = _forwarded(world.server)
    world.sockets[world.behind.ipv4()].ask(to=["10.77.0.1", 9], data="through", read_s=QUIET_S)
    ip("-n", world.server.namespace, "route", "del", "10.77.0.0/16")
    ip("-n", world.behind.namespace, "route", "del", "10.77.0.0/16")
    assert _forwarded(world.server) == before + 1


def _forwarded(host: Host) -> int:
    """How many packets the rule against forwarding for others has dropped."""
    rules = json.loads(host.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    (last,) = [
        rule["rule"]["expr"]
        for rule in rules
        if "rule" in rule and '"nfproto"' in json.dumps(rule) and '"ipv4"' in json.dumps(rule)
    ]
    return next(e["counter"]["packets"] for e in last if "counter" in e)


SNIFF = """
import socket, struct
sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
sock.bind(("eth0", 0x0800))
print("ready", flush=True)
while True:
    data = sock.recv(2000)
    if data[9] == 6 and data[33] == 2:
        print(struct.unpack("!H", data[42:44])[0], flush=True)
        break
"""


def _sniffing(host: Host) -> subprocess.Popen[str]:
    """A program that prints the MSS of the first SYN that arrives."""
    sniffer = subprocess.Popen(
        host.command(sys.executable, "-c", SNIFF), stdout=subprocess.PIPE, text=True
    )
    assert sniffer.stdout.readline() == "ready\n"
    return sniffer
