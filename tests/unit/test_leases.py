"""The address pool of a server: stable per user, bounded, and what is no pool."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.policy.leases import (
    DEFAULT_POOL,
    MAXIMUM_SLOTS,
    NoLease,
    Pool,
    Subnet,
    check_pool,
    check_pool_is_apart,
)


def pool(*networks: str) -> Pool:
    return Pool([ip_network(text) for text in networks or ("10.213.0.0/29", "fd21::/64")])


def addresses(lease) -> list[str]:
    return [str(interface) for interface in lease.client_addresses]


def four(lease) -> str:
    return str(lease.client_addresses[0].ip)


def test_both_families_have_the_same_number() -> None:
    server = pool()
    lease = server.lease("alice", 1)
    assert addresses(lease) == ["10.213.0.2/29", "fd21::2/64"]
    assert [str(interface) for interface in lease.server_addresses] == [
        "10.213.0.1/29", "fd21::1/64",
    ]  # fmt: skip
    assert addresses(server.lease("bob", 2)) == ["10.213.0.3/29", "fd21::3/64"]
    assert lease.holds(ip_address("10.213.0.2"))
    assert lease.holds(ip_address("fd21::2"))
    assert not lease.holds(ip_address("10.213.0.3"))
    assert ip_address("fd21::ffff") in server
    assert ip_address("10.213.0.8") not in server


def test_a_client_may_want_one_family() -> None:
    lease = pool().lease("alice", 1)
    assert lease.only(ipv4=True, ipv6=True) == lease
    six = lease.only(ipv4=False, ipv6=True)
    assert addresses(six) == ["fd21::2/64"]
    assert [str(interface) for interface in six.server_addresses] == ["fd21::1/64"]
    assert not six.holds(ip_address("10.213.0.2"))
    assert addresses(lease.only(ipv4=False, ipv6=False)) == []
    assert addresses(pool("10.213.0.0/29").lease("alice", 1).only(ipv4=False, ipv6=True)) == []


def test_a_user_has_the_same_addresses_again() -> None:
    server = pool()
    first, second = server.lease("alice", 1), server.lease("alice", 2)
    assert four(first) != four(second)
    assert server.lease("alice", 1) == first, "asked again on the same link"
    server.release(1)
    other = server.lease("bob", 3)
    assert four(other) not in (four(first), four(second)), "kept for alice"
    assert server.lease("alice", 4) == first
    server.release(2)
    server.release(4)
    assert [server.lease("alice", 5), server.lease("alice", 6)] == [first, second]
    server.release("never heard of")


def test_when_all_are_assigned_the_longest_unused_changes_hands() -> None:
    server = pool("10.213.0.0/29")  # .2 to .6 for clients
    had = {name: four(server.lease(name, name)) for name in "abcde"}
    assert sorted(had.values()) == [f"10.213.0.{n}" for n in range(2, 7)]
    with pytest.raises(NoLease) as caught:
        server.lease("f", "f")
    assert str(caught.value) == (
        "all 5 addresses of the pool 10.213.0.0/29 are in use: end another link, or give the "
        "server a larger pool"
    )
    for name in "cadb":
        server.release(name)
    assert four(server.lease("f", "f")) == had["c"]
    assert four(server.lease("d", "d")) == had["d"], "hers still, and in use again"
    assert four(server.lease("c", "c")) == had["a"], "the next in the order"
    assert four(server.lease("a", "a")) == had["b"]
    with pytest.raises(NoLease):
        server.lease("b", "b")


def test_the_smaller_family_is_the_limit() -> None:
    server = pool("10.213.0.0/30", "fd21::/64")
    assert addresses(server.lease("alice", 1)) == ["10.213.0.2/30", "fd21::2/64"]
    with pytest.raises(NoLease, match="all 1 addresses of the pool "):
        server.lease("bob", 2)
    server = pool("fd21::/126")
    assert [addresses(server.lease("a", n)) for n in (1, 2)] == [["fd21::2/126"], ["fd21::3/126"]]
    with pytest.raises(NoLease):
        server.lease("a", 3)
    assert pool("fd21::/64").capacity == MAXIMUM_SLOTS


def test_a_name_that_is_too_long_is_not_remembered() -> None:
    server = pool()
    with pytest.raises(NoLease, match="255 characters"):
        server.lease("a" * 256, 1)
    assert server.export() == []


# -- across a restart ------------------------------------------------------------------------------


def test_assignments_outlive_a_restart() -> None:
    server = pool("10.213.0.0/29")
    had = {name: four(server.lease(name, name)) for name in "abcde"}
    for name in "dbe":
        server.release(name)
    exported = json.loads(json.dumps(server.export()))
    assert [entry[0] for entry in exported] == ["d", "b", "e", "a", "c"]
    again = pool("10.213.0.0/29")
    again.restore(exported)
    assert {name: four(again.lease(name, name)) for name in "bac"} == {
        name: had[name] for name in "bac"
    }
    assert four(again.lease("x", "x")) == had["d"], "the longest unused, as before the restart"


def test_a_smaller_pool_keeps_what_has_room() -> None:
    large = pool("10.213.0.0/24")
    for number in range(10):
        large.lease(f"u{number}", number)
    small = pool("10.99.0.0/29")
    small.restore(large.export())
    assert len(small.export()) == 5
    assert four(small.lease("u4", 1)) == "10.99.0.6"
    assert four(small.lease("u9", 2)) == "10.99.0.2"


@pytest.mark.parametrize(
    "damaged",
    [
        None, {}, "x", 1, [1], [[]], [["a", 0]], [["a", 0, 2, 3]], [["a", 0, "2"]], [["a", 0, 2.0]],
        [["a", 0, True]], [[1, 0, 2]], [["a", -1, 2]], [["a", 0, 2], ["a", 0, 3]],
        [["a", 0, 2], ["b", 0, 2]], [["a" * 256, 0, 2]], [["a", 0, 2]] * (MAXIMUM_SLOTS + 1),
    ],
)  # fmt: skip
def test_damaged_assignments_are_refused_as_a_whole(damaged) -> None:
    server = pool()
    with pytest.raises(ValueError, match="assignment"):
        server.restore(damaged)
    assert server.export() == []
    assert four(server.lease("a", 1)) == "10.213.0.2"


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.booleans()), max_size=60))
def test_whatever_comes_and_goes(steps) -> None:
    """No two sessions share an address, no user's changes while nobody else needs it."""
    server = pool("10.213.0.0/28")  # 13 clients; at most 10 sessions of 4 users at once
    held: dict[int, tuple[str, str]] = {}
    for user, session, begins in steps:
        if begins and (session not in held or held[session][0] == user):
            held[session] = user, four(server.lease(user, session))
        elif not begins:
            server.release(session)
            held.pop(session, None)
        taken = [address for _, address in held.values()]
        assert len(set(taken)) == len(taken)
        assert all(four(server.lease(name, key)) == had for key, (name, had) in held.items())
        exported = server.export()
        assert len(exported) <= server.capacity
        again = pool("10.213.0.0/28")
        again.restore(json.loads(json.dumps(exported)))
        assert again.export() == exported


# -- what is no pool -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "problem"),
    [
        ((), "a pool without a network has no addresses"),
        (("10.0.0.0/24", "10.0.1.0/24"), "two networks of the same family"),
        (("fd00::/64", "10.0.0.0/24", "fd01::/64"), "two networks of the same family"),
        (("10.0.0.0/31",), "10.0.0.0/31 is too small for a server and a client"),
        (("fd00::/127",), "fd00::/127 is too small"),
        (("10.0.0.0/24", "fd00::1/128"), "fd00::1/128 is too small"),
        (("10.0.0.0/15",), "10.0.0.0/15 is larger than any pool: write one of /16 or smaller"),
        (("0.0.0.0/0",), "larger than any pool"),
        (("::/0",), "larger than any pool"),
        *(((text,), "is for no host to have") for text in (
            "127.0.0.0/24", "169.254.8.0/24", "224.0.1.0/24", "240.0.0.0/24", "0.0.0.0/24",
            "255.255.255.0/24", "fe80::/64", "ff02::/64", "::/64", "::ffff:10.0.0.0/112",
            "64:ff9b::/96", "::1:0/112",
        )),
    ],
)  # fmt: skip
def test_what_is_no_pool(networks, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_pool([ip_network(text) for text in networks])
    assert problem in str(caught.value)
    assert caught.value.remedy


def test_the_default_is_a_pool() -> None:
    assert Pool(DEFAULT_POOL).capacity == 253


@pytest.mark.parametrize(
    ("subnet", "overlaps"),
    [
        ("10.213.0.9/16", "10.213.0.0/24 overlaps 10.213.0.0/16, the subnet of eth0"),
        ("10.213.0.9/25", "10.213.0.0/24 overlaps 10.213.0.0/25, the subnet of eth0"),
        ("10.213.0.9/32", "10.213.0.0/24 overlaps 10.213.0.9/32, the subnet of eth0"),
        ("fd21::9/48", "fd21::/64 overlaps fd21::/48, the subnet of eth0"),
        ("10.213.1.1/24", ""),
        ("fd21:0:0:1::1/64", ""),
        ("fe80::1/64", ""),
        ("10.213.0.1/24", "10.213.0.0/24 overlaps 10.213.0.0/24, the subnet of eth0"),
    ],
)
def test_a_pool_is_no_subnet_of_this_machine(subnet: str, overlaps: str) -> None:
    networks = [ip_network("10.213.0.0/24"), ip_network("fd21::/64")]
    subnets = [Subnet("lo", ip_interface("127.0.0.1/8")), Subnet("eth0", ip_interface(subnet))]
    if overlaps:
        with pytest.raises(ConfigError, match=re.escape(overlaps)):
            check_pool_is_apart(networks, subnets)
    else:
        check_pool_is_apart(networks, subnets)


def test_the_devices_of_a_server_that_runs_are_no_obstacle() -> None:
    networks = [ip_network("10.213.0.0/24"), ip_network("fd21::/64")]
    for text in ("10.213.0.1/24", "10.213.0.1/32", "fd21::1/64"):
        check_pool_is_apart(networks, [Subnet("tun0", ip_interface(text), True)])
    with pytest.raises(ConfigError, match="the subnet of tun1"):
        check_pool_is_apart(networks, [Subnet("tun1", ip_interface("10.213.0.2/32"), True)])
