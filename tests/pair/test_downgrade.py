"""What a peer could make us fall back to: broken algorithms, other host keys, counters that wrap.

Hazards T20, T21 and T23.
"""

from __future__ import annotations

import dataclasses
import re

import pytest

from gateway.errors import RemoteProtocolError
from gateway.events import KeysExchanged
from gateway.ssh import algorithms, messages
from gateway.ssh.algorithms import (
    DEFAULT_HOST_KEY_ALGORITHMS,
    SERVER_PREFERENCES,
    STRICT_SERVER_PREFERENCES,
    Preferences,
)
from gateway.ssh.ciphers import CIPHERS, MACS
from gateway.ssh.kex import METHODS
from gateway.ssh.keytypes import KEY_TYPES
from gateway.ssh.numbers import Disconnect
from gateway.ssh.transport import MAXIMUM_PACKETS_PER_KEY, Phase, Role
from tests.support.keys import a_private_key
from tests.support.pair import (
    edit_kexinit,
    feed,
    inject,
    local_kexinit,
    log_in,
    logged_in_pair,
    make_pair,
    take,
)

ROLES = list(Role)

# ---- T23: nothing broken is offered, or agreed on ------------------------------------------------

BROKEN = re.compile(
    "sha1|md5|ripemd|-cbc|arcfour|3des|blowfish|cast128|^none$|ssh-dss|^ssh-rsa(-cert|$)|umac-64|-96"
)
DOWNGRADES = [
    ("key exchange method", "kex_algorithms", (
        "diffie-hellman-group1-sha1", "diffie-hellman-group14-sha1",
        "diffie-hellman-group-exchange-sha1", "gss-gex-sha1-toWM5Slw5Ew8Mqkay+al2g==",
        "rsa1024-sha1", "none",
    )),
    ("host key algorithm", "server_host_key_algorithms", (
        "ssh-rsa", "ssh-dss", "ssh-rsa-cert-v01@openssh.com", "ssh-dss-cert-v01@openssh.com",
    )),
    ("cipher", "encryption_algorithms_client_to_server", (
        "aes256-cbc", "aes128-cbc", "3des-cbc", "blowfish-cbc", "cast128-cbc", "arcfour",
        "arcfour256", "rijndael-cbc@lysator.liu.se", "none",
    )),
    ("MAC", "mac_algorithms_server_to_client", (
        "hmac-sha1", "hmac-sha1-etm@openssh.com", "hmac-sha1-96", "hmac-md5", "hmac-md5-96",
        "hmac-ripemd160", "umac-64@openssh.com", "none",
    )),
]  # fmt: skip
NO_AEAD = {"encryption_algorithms_server_to_client": ("aes256-ctr",)}  # or no MAC would count


def sides(pair, role):
    """The side of this role, and its peer."""
    both = (pair.client, pair.server)
    return both if role is Role.CLIENT else both[::-1]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("what", "field", "name"),
    [(what, field, name) for what, field, names in DOWNGRADES for name in names],
)
def test_a_broken_algorithm_is_never_agreed_on(role, what, field, name):
    """Offered alone, there is nothing in common; before good ones, a good one is taken."""
    assert BROKEN.search(name)
    pair = make_pair()
    target, peer = sides(pair, role)
    edit_kexinit(peer, **NO_AEAD, **{field: (name,)})
    with pytest.raises(RemoteProtocolError, match=f"no {what} in common") as caught:
        feed(target, take(peer))
    assert caught.value.reason_code == Disconnect.KEY_EXCHANGE_FAILED
    pair = make_pair()
    target, peer = sides(pair, role)
    good = getattr(local_kexinit(peer), field)
    edit_kexinit(peer, **NO_AEAD, **{field: (name, *good)})
    log_in(pair)
    assert name not in dataclasses.astuple(target.transport.chosen)


def test_nothing_broken_is_there_to_be_offered():
    """Not even by a user's own choice: what there is no code for cannot be configured."""
    signatures = [name for kind in KEY_TYPES.values() for name in kind.signature_algorithms]
    there = [*METHODS, *CIPHERS, *MACS, *signatures, *DEFAULT_HOST_KEY_ALGORITHMS]
    for offer in (Preferences(), SERVER_PREFERENCES, STRICT_SERVER_PREFERENCES):
        there += [*offer.kex, *offer.host_key, *offer.ciphers, *offer.macs]
    assert not [name for name in there if BROKEN.search(name)]
    assert algorithms.COMPRESSION == ("none",)


# ---- T20: another host key when keys are renewed -------------------------------------------------


@pytest.mark.parametrize("starter", ["client", "server"])
@pytest.mark.parametrize(
    "name", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521", "ssh-rsa"]
)
def test_no_other_host_key_of_any_type_is_taken_at_a_rekey(name, starter):
    """Whoever asks for new keys, and in the second exchange or a later one."""
    for before in (0, 2):
        pair = logged_in_pair()
        for _ in range(before):
            pair.client.transport.start_rekey(0.0)
            pair.pump()
        another = a_private_key(name, "z")
        pair.server.transport._host_keys = dict.fromkeys(
            another.public.signature_algorithms, another
        )
        getattr(pair, starter).transport.start_rekey(0.0)
        with pytest.raises(RemoteProtocolError, match="another host key") as caught:
            pair.pump()
        assert caught.value.reason_code == Disconnect.HOST_KEY_NOT_VERIFIABLE
        assert pair.client.transport.phase is Phase.CLOSED


# ---- T21: counters -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("packets", [2**32 - 1, 2**32])
def test_a_sequence_number_that_wrapped_does_not_hide_what_came_before_kexinit(role, packets):
    """So many IGNOREs that KEXINIT has the sequence number of a first packet again."""
    pair = make_pair()
    target, peer = sides(pair, role)
    version, _, _ = take(peer).partition(b"\n")
    feed(target, version + b"\n")
    inbound = target.inbound
    inbound.sequence_number = (packets - 1) & 0xFFFF_FFFF
    inbound.packets_since_newkeys = packets - 1
    inject(target, messages.Ignore(b""))
    with pytest.raises(RemoteProtocolError, match="KEXINIT was not the first packet"):
        inject(target, local_kexinit(peer))


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
@pytest.mark.parametrize("role", ROLES)
def test_either_side_renews_keys_at_2_to_the_31_packets_of_either_direction(role, direction):
    pair = logged_in_pair()
    side, _ = sides(pair, role)
    counter = getattr(side, direction)
    counter.packets_since_newkeys = MAXIMUM_PACKETS_PER_KEY - 2
    counter.sequence_number = MAXIMUM_PACKETS_PER_KEY - 2
    for _ in range(3):
        pair.client.connection.send_global_request("keepalive@openssh.com")
        pair.pump()
        pair.server.connection.reply_global(success=False)
        pair.pump()
    renewed = [event.count for event in pair.client_events if isinstance(event, KeysExchanged)]
    assert renewed == [2], "once"
    assert counter.packets_since_newkeys < 10
    assert counter.sequence_number < 10, "reset with the keys"
