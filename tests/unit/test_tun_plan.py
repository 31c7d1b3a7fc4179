"""What a VPN changes, decided without a machine: plans as command lines, and what is refused."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from gateway.errors import NetworkSetupError
from gateway.tun.facts import Facts, KnownRoute
from gateway.tun.plan import Carrier, Wanted, client_plan
from gateway.tun.server_plan import masquerade_ports, server_base_plan, server_plan
from gateway.tun.steps import (
    MAIN,
    PROTOCOL,
    Route,
    Rule,
    Setting,
    Switch,
    Table,
    from_json,
    shown,
    to_json,
)

TABLE = 26489
V4, V6 = ip_interface("10.8.0.2/32"), ip_interface("fd08::2/128")
ELSEWHERE = Carrier(ip_address("203.0.113.7"), 22, 40001)


def nets(*texts):
    return tuple(ip_network(text) for text in texts)


def wanted(*subnets, lease=(V4,), **more):
    return Wanted("tun0", lease, 1400, nets(*subnets), **more)


def connected(network, device="eth0"):
    return KnownRoute(MAIN, ip_network(network), device, protocol=2)


def routed(network, device="eth0"):
    return KnownRoute(MAIN, ip_network(network), device, via_gateway=True, protocol=16)


def carried(network, table=26487, kind="unicast"):
    device = "tun7" if kind == "unicast" else ""
    return KnownRoute(table, ip_network(network), device, kind=kind, protocol=PROTOCOL)


def facts(*routes, **more):
    return Facts(routes=routes, **more)


def lines(steps):
    return [shown(step) for step in steps]


def plan(asked, carrier=ELSEWHERE, known=None):
    return client_plan(asked, carrier, TABLE, known or facts())


def refused(asked, known=None):
    with pytest.raises(NetworkSetupError) as caught:
        plan(asked, known=known)
    return str(caught.value)


# ---- the client ----------------------------------------------------------------------------------


def test_one_subnet():
    assert lines(plan(wanted("10.20.0.0/16"))) == [
        "sysctl -w net.ipv6.conf.tun0.disable_ipv6=1",
        "ip link set dev tun0 mtu 1400 up",
        "ip address add 10.8.0.2/32 dev tun0",
        "ip route add 10.20.0.0/16 dev tun0 src 10.8.0.2 table 26489 proto 103",
        "ip rule add priority 21002 not fwmark 26489 table 26489 protocol 103",
    ]


def test_both_families_with_peers():
    peers = (ip_address("10.8.0.1"), ip_address("fd08::1"))
    steps = plan(wanted("10.20.0.0/16", "fd20::/16", lease=(V4, V6), peers=peers))
    assert lines(steps) == [
        "sysctl -w net.ipv6.conf.tun0.accept_ra=0",
        "ip link set dev tun0 mtu 1400 addrgenmode none up",
        "ip address add 10.8.0.2 peer 10.8.0.1/32 dev tun0",
        "ip address add fd08::2 peer fd08::1/128 dev tun0 nodad",
        "ip route add 10.20.0.0/16 dev tun0 src 10.8.0.2 table 26489 proto 103",
        "ip -6 route add fd20::/16 dev tun0 src fd08::2 table 26489 proto 103",
        "ip rule add priority 21002 not fwmark 26489 table 26489 protocol 103",
        "ip -6 rule add priority 21002 not fwmark 26489 table 26489 protocol 103",
    ]


def test_a_kernel_without_ipv6_is_asked_nothing_about_it():
    text = "\n".join(lines(plan(wanted(full_tunnel=True), known=facts(ipv6=False))))
    assert "ipv6" not in text
    assert "-6" not in text


def test_full_tunnel_of_one_family_leaks_nothing_of_the_other():
    assert lines(plan(wanted("10.20.0.0/16", full_tunnel=True)))[3:] == [
        "ip route add 10.20.0.0/16 dev tun0 src 10.8.0.2 table 26489 proto 103",
        "ip route add default dev tun0 src 10.8.0.2 table 26489 proto 103",
        "ip -6 route add unreachable default table 26489 proto 103",
        (
            "ip rule add priority 20002 to 203.0.113.7/32 ipproto tcp sport 40001 dport 22"
            " table main protocol 103"
        ),
        *(
            f"ip rule add priority 22002 to {network} table main suppress_prefixlength 7"
            " protocol 103"
            for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")
        ),
        *(
            f"ip -6 rule add priority 22002 to {network} table main suppress_prefixlength 7"
            " protocol 103"
            for network in ("fc00::/7", "fe80::/10")
        ),
        "ip rule add priority 23002 not fwmark 26489 table 26489 protocol 103",
        "ip -6 rule add priority 23002 not fwmark 26489 table 26489 protocol 103",
        (
            "ip rule add priority 21002 not fwmark 26489 table 26489 suppress_prefixlength 0"
            " protocol 103"
        ),
    ]


@pytest.mark.parametrize(
    ("server", "subnet", "needed"),
    [("10.20.1.1", "10.20.0.0/16", True), ("10.21.1.1", "10.20.0.0/16", False),
     ("fd20::1", "fd20::/16", True)],
)  # fmt: skip
def test_a_server_inside_the_subnet_has_a_rule_for_rp_filter(server, subnet, needed):
    steps = plan(wanted(subnet, lease=(V4, V6)), Carrier(ip_address(server), 2222, 5))
    to_server = [step for step in steps if isinstance(step, Rule) and step.table == MAIN]
    assert [rule.to.split("/")[0] for rule in to_server] == [server] * needed


def test_rules_of_two_gateways_are_never_the_same():
    asked = wanted("10.20.0.0/16", full_tunnel=True)
    one, other = (client_plan(asked, ELSEWHERE, table, facts()) for table in (26487, 26488))
    rules = [{step for step in steps if isinstance(step, Rule)} for steps in (one, other)]
    assert rules[0].isdisjoint(rules[1])


def test_what_is_excluded_or_connected_stays_direct():
    steps = plan(
        wanted("10.0.0.0/8", excludes=nets("10.20.5.0/25", "10.20.5.128/25", "192.0.2.0/24")),
        known=facts(connected("10.1.2.0/24"), connected("192.168.1.0/24"), routed("10.9.0.0/16"),
                    connected("10.8.0.2/32", "tun0"), routed("0.0.0.0/0")),
    )  # fmt: skip
    throws = [s.destination for s in steps if isinstance(s, Route) and s.kind == "throw"]
    assert throws == ["10.1.2.0/24", "10.20.5.0/24"]


def test_subnets_that_overlap_are_one():
    steps = plan(wanted("10.20.0.0/17", "10.20.128.0/17", "10.20.5.0/24"))
    assert [s.destination for s in steps if isinstance(s, Route)] == ["10.20.0.0/16"]


def test_a_default_route_and_link_local_networks_are_no_reason_against():
    known = facts(routed("0.0.0.0/0"), connected("fe80::/64"), routed("::/0"))
    assert plan(wanted("10.20.0.0/16", "fd20::/16", lease=(V4, V6)), known=known)


def test_another_gateway_beside():
    theirs = (carried("10.0.0.0/8"), carried("10.20.0.0/16", kind="throw"))
    assert plan(wanted("10.20.5.0/24"), known=facts(*theirs))  # it leaves that out itself
    excluding = wanted("10.0.0.0/8", excludes=nets("10.20.0.0/16"))
    assert plan(excluding, known=facts(carried("10.20.0.0/16")))
    assert plan(wanted("10.20.0.0/16"), known=facts(carried("0.0.0.0/0")))


@pytest.mark.parametrize(
    ("asked", "known", "sentence"),
    [
        (
            wanted("192.168.1.0/24"),
            facts(connected("192.168.1.0/24", "wlan0")),
            ("192.168.1.0/24 is the network that this machine is itself in through wlan0:"
            " through the tunnel it would lose its neighbours; leave it out,"
            " or move to a network with other addresses"),
        ),
        (
            wanted("10.20.0.0/16"),
            facts(connected("10.0.0.0/8")),
            ("10.20.0.0/16 is part of 10.0.0.0/8, the network that this machine is itself in"
            " through eth0: through the tunnel it would lose its neighbours; leave it out,"
            " or move to a network with other addresses"),
        ),
        (
            wanted("10.20.0.0/16"),
            facts(routed("10.20.0.0/16", "wg0")),
            ("this machine has a route to 10.20.0.0/16 already, through wg0: remove it first"
            " (ip route del 10.20.0.0/16), or leave the subnet out"),
        ),
        (
            wanted("10.20.0.0/16"),
            facts(carried("10.0.0.0/8")),
            ("10.20.0.0/16 overlaps 10.0.0.0/8, which another gateway carries through tun7:"
            " end that one, or --exclude what belongs to the other"),
        ),
        (
            wanted(full_tunnel=True),
            facts(carried("::/0")),
            ("another gateway sends everything through tun7 already:"
            " end it first, or leave out --full-tunnel"),
        ),
        (
            wanted("0.0.0.0/0"),
            facts(),
            "0.0.0.0/0 is everything: write --full-tunnel instead",
        ),
        (
            wanted("127.0.0.0/8"),
            facts(),
            ("127.0.0.0/8 means something else on every machine and cannot go through a tunnel:"
            " leave it out"),
        ),
        (
            wanted("fd20::/16"),
            facts(),
            ("fd20::/16 needs an IPv6 address for the tunnel, and the server gave none:"
            " name IPv4 subnets alone, or with a stock sshd give one with --address"),
        ),
        (
            wanted("10.20.5.0/24", excludes=nets("10.20.0.0/16")),
            facts(),
            "10.20.5.0/24 is excluded as a whole: leave one of the two out",
        ),
        (
            wanted("10.20.0.0/16"),
            facts(addresses=(("wg0", ip_interface("10.8.0.2/24")),)),
            ("the tunnel's address 10.8.0.2 is an address of wg0 on this machine already:"
            " end what uses it, or ask the server for another with --address"),
        ),
        (
            wanted("fd20::/16", lease=(V6,)),
            facts(ipv6=False),
            ("the tunnel's address is fd08::2, and this machine's kernel has no IPv6:"
            " turn it on, or use IPv4 alone"),
        ),
        (
            Wanted("tun0", (V6,), 1279, nets("fd20::/16")),
            facts(),
            "an MTU of 1279 is too small for IPv6: --mtu 1280 or more",
        ),
    ],
)  # fmt: skip
def test_refused(asked, known, sentence):
    assert refused(asked, known) == sentence


# ---- the server ----------------------------------------------------------------------------------


POOL = nets("10.8.0.0/24", "fd08::/64")


def test_the_firewall_comes_before_forwarding():
    table, *switches = server_base_plan(POOL, [22], TABLE, facts())
    assert isinstance(table, Table)
    assert table.name == "gateway-26489"
    assert switches == [Switch("ipv4"), Switch("ipv6")]


def test_a_machine_that_was_a_router_stays_one():
    table, *switches = server_base_plan(POOL, [22], TABLE, facts(forwarding=("ipv4",)))
    assert "nfproto ipv6" in table.text
    assert "nfproto ipv4" not in table.text
    assert len(switches) == 2  # asked for all the same: the guardian sees whose it is


def test_a_pool_of_one_family_leaves_the_other_alone():
    table, *switches = server_base_plan(POOL[:1], [22], TABLE, facts())
    assert "ip6" not in table.text
    assert switches == [Switch("ipv4")]


def test_a_pool_that_is_in_use_is_refused():
    with pytest.raises(NetworkSetupError) as caught:
        server_base_plan(POOL, [22], TABLE, facts(connected("10.8.0.0/16")))
    assert str(caught.value) == (
        "the pool 10.8.0.0/24 overlaps 10.8.0.0/16, which this machine reaches through eth0:"
        " choose addresses that nothing here uses"
    )


def test_the_device_of_a_client():
    here = (ip_address("10.8.0.1"), ip_address("fd08::1"))
    steps = server_plan("tun3", here, (ip_address("10.8.0.7"),), 1400, facts())
    assert lines(steps) == [
        "sysctl -w net.ipv4.conf.tun3.accept_redirects=0",
        "sysctl -w net.ipv4.conf.tun3.send_redirects=0",
        "sysctl -w net.ipv4.conf.tun3.rp_filter=1",
        "sysctl -w net.ipv6.conf.tun3.disable_ipv6=1",
        "ip link set dev tun3 mtu 1400 up",
        "ip address add 10.8.0.1 peer 10.8.0.7/32 dev tun3",
    ]


@pytest.mark.parametrize(
    ("listening", "ports"),
    [
        ([], (1024, 65535)),
        ([22, 80], (1024, 65535)),
        ([22, 2222], (2223, 65535)),
        ([1024, 65535], (1025, 65534)),
        ([40000, 2222], (2223, 39999)),
    ],
)
def test_the_ports_of_clients_are_in_no_listener_s_way(listening, ports):
    assert masquerade_ports(listening) == ports


def test_a_machine_that_listens_everywhere_has_no_ports_for_clients():
    with pytest.raises(NetworkSetupError, match="no 4096 in a row"):
        masquerade_ports(range(1024, 65536, 4000))


# ---- steps and facts -----------------------------------------------------------------------------


def test_steps_and_facts_survive_the_journal():
    asked = wanted("10.20.0.0/16", full_tunnel=True, lease=(V4, V6))
    steps = (*plan(asked), *server_base_plan(POOL, [22], TABLE, facts()))
    assert tuple(from_json(to_json(step)) for step in steps) == steps
    known = facts(carried("10.0.0.0/8"), addresses=(("eth0", V4),), forwarding=("ipv6",))
    assert Facts.from_json(known.to_json()) == known


def test_a_device_with_a_dot_is_written_so_that_sysctl_understands():
    assert (
        shown(Setting("ipv4", "eth0.100", "rp_filter", "1"))
        == "sysctl -w net/ipv4/conf/eth0.100/rp_filter=1"
    )
