"""Any bytes as a request for a device or an address, or as what is lent: a value or one error."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import RemoteProtocolError
from gateway.ssh import wire
from gateway.ssh.tunnel import IPV6_MINIMUM_MTU, LeaseReply, LeaseRequest, TunOpen

BOUNDED = settings(max_examples=300, deadline=None, derandomize=True)

WORDS = st.lists(
    st.one_of(
        st.builds("{}/{}".format, st.ip_addresses(), st.integers(0, 129)),
        st.ip_addresses(v=4).map(lambda address: f"{ip_network(f'{address}/24', strict=False)}"),
        st.text("0123456789abcdefx:./%, -", max_size=20),
        st.sampled_from(["10.213.0.7/24", "10.213.0.1/24", "fd21::7/64", "fd21::1/64"]),
    ),
    max_size=4,
).map(lambda words: wire.string(",".join(words).encode()))
REPLIES = st.builds(
    lambda client, server, mtu, routes, rest: client + server + wire.uint32(mtu) + routes + rest,
    WORDS, WORDS, st.integers(0, 2**32 - 1) | st.integers(500, 1600), WORDS, st.binary(max_size=9),
)  # fmt: skip


@pytest.mark.parametrize("decode", [
    TunOpen.decode_untrusted, LeaseRequest.decode_untrusted, LeaseReply.decode_untrusted,
])  # fmt: skip
@BOUNDED
@given(data=st.binary(max_size=200) | REPLIES)
def test_any_bytes(decode, data: bytes) -> None:
    try:
        found = decode(data)
    except RemoteProtocolError:
        return
    again = found.encode()
    assert decode(again) == found
    if isinstance(found, LeaseReply):  # only one spelling is accepted
        assert data.startswith(again)


@BOUNDED
@given(
    st.permutations([("10.213.0.0/24", "10.213.0.1/24"), ("fd21::/64", "fd21::1/64")]),
    st.integers(1, 2), st.integers(2, 254), REPLIES,
)  # fmt: skip
def test_what_is_accepted_is_sane(pairs, families: int, number: int, other: bytes) -> None:
    servers = tuple(ip_interface(server) for _, server in pairs[:families])
    clients = tuple(
        ip_interface((network[number], network.prefixlen))
        for network in (ip_network(text) for text, _ in pairs[:families])
    )
    for data in (LeaseReply(clients, servers, 1500).encode(), other):
        try:
            found = LeaseReply.decode_untrusted(data)
        except RemoteProtocolError:
            assert data is other
            continue
        versions = [interface.version for interface in found.client_addresses]
        assert len(set(versions)) == len(versions) <= 2
        assert versions == [interface.version for interface in found.server_addresses]
        for interface in (*found.client_addresses, *found.server_addresses):
            ip = interface.ip
            assert not any((ip.is_loopback, ip.is_multicast, ip.is_link_local))
            assert interface.network.prefixlen >= 16
        assert found.mtu >= (IPV6_MINIMUM_MTU if 6 in versions else 576)
