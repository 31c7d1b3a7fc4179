"""The addresses that a server lends to its clients for the VPN: who has which, and who had.

Pure. A slot is a number: slot n of a pool is the n-th address of each of its networks, so that a
client's IPv4 and IPv6 addresses go together. Slot 1 is the server itself. Slots stay assigned to
their user, also while nobody uses them, until another user finds all of them assigned: then the
one that is unused for longest changes hands. There is an assignment for each slot at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    ip_interface,
    ip_network,
)
from typing import TYPE_CHECKING, Final, cast

from gateway.errors import ConfigError, GatewayError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.policy.addresses import Address, Network

Interface = IPv4Interface | IPv6Interface

SERVER_SLOT: Final = 1
FIRST_SLOT: Final = 2

# ---- our own choices -----------------------------------------------------------------------------
MAXIMUM_SLOTS: Final = 65_536
MAXIMUM_USER_NAME: Final = 255  # characters of a name that is remembered
# Shortest and longest prefix of a network: with the first none of the special ranges (RFC 6890) is
# part of a network, with the second there is room for one client.
_PREFIXES: Final = {4: (16, 30), 6: (32, 126)}
_FORM: Final = "name an unused private network, as in 10.213.0.0/24 or fdb3:d38b:9530::/64"

DEFAULT_POOL: Final = (ip_network("10.213.0.0/24"), ip_network("fdb3:d38b:9530::/64"))
"""For a first try; RFC 1918, and RFC 4193 with 40 bits that were drawn once."""


class NoLease(GatewayError):
    """There is no address for this client: why, and what helps."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What one client has, for as long as its link lives; both tuples have the same families."""

    client_addresses: tuple[Interface, ...]
    server_addresses: tuple[Interface, ...]

    def holds(self, address: Address) -> bool:
        """Say whether an address is the client's: the only source its packets may have."""
        return any(address == interface.ip for interface in self.client_addresses)

    def only(self, *, ipv4: bool, ipv6: bool) -> Lease:
        """Return what of it a client wants; perhaps nothing."""
        versions = {4: ipv4, 6: ipv6}
        return Lease(
            *(
                tuple(interface for interface in addresses if versions[interface.version])
                for addresses in (self.client_addresses, self.server_addresses)
            )
        )


@dataclass(frozen=True, slots=True)
class _Holder:
    """Whose a slot is; ``index`` counts a user's links that need an address at the same time."""

    user_name: str
    index: int


class Pool:
    """The slots of one server. ``networks`` is one of IPv4, one of IPv6, or one of each.

    `ConfigError` says why others are no pool.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        check_pool(networks)
        self.networks = tuple(networks)
        self.server_addresses = self._at(SERVER_SLOT)
        self.capacity = min(MAXIMUM_SLOTS, *(_room(network) for network in networks))
        # In the order in which they became unused, those in use at their old place or at the end.
        self._slots: dict[_Holder, int] = {}
        self._free = _Free(self.capacity)
        self._used: dict[object, _Holder] = {}  # by session

    def __contains__(self, address: Address) -> bool:
        """Say whether an address is one of the pool, a client's or the server's."""
        return any(address in network for network in self.networks)

    def lease(self, user_name: str, session: object) -> Lease:
        """Lend an address to a session of a user, or return what it has. Raises `NoLease`."""
        holder = self._used.get(session)
        if holder is None:
            holder = self._holder(user_name)
            self._used[session] = holder
        return Lease(self._at(self._slots[holder]), self.server_addresses)

    def release(self, session: object) -> None:
        """A session is over; its address remains its user's. Nothing happens without a lease."""
        holder = self._used.pop(session, None)
        if holder is not None:
            self._slots[holder] = self._slots.pop(holder)  # the last to become unused

    def _holder(self, user_name: str) -> _Holder:
        if len(user_name) > MAXIMUM_USER_NAME:
            raise NoLease(f"a user name of more than {MAXIMUM_USER_NAME} characters has no address")
        used = set(self._used.values())
        index = 0
        while (holder := _Holder(user_name, index)) in used:
            index += 1
        if holder not in self._slots:
            slot = self._free.take()
            self._slots[holder] = self._take_over(used) if slot is None else slot
        return holder

    def _take_over(self, used: set[_Holder]) -> int:
        for holder in self._slots:
            if holder not in used:
                return self._slots.pop(holder)
        pool = " and ".join(map(str, self.networks))
        raise NoLease(
            f"all {self.capacity} addresses of the pool {pool} are in use: end another link, or "
            "give the server a larger pool"
        )

    def _at(self, slot: int) -> tuple[Interface, ...]:
        return tuple(ip_interface((network[slot], network.prefixlen)) for network in self.networks)

    # -- across a restart --------------------------------------------------------------------------

    def export(self) -> list[list[str | int]]:
        """Return all assignments for JSON: user name, index, slot; longest unused first."""
        used = set(self._used.values())
        ordered = sorted(self._slots, key=used.__contains__)  # stable: those in use last
        return [[holder.user_name, holder.index, self._slots[holder]] for holder in ordered]

    def restore(self, exported: object) -> None:
        """Take assignments as `export` gave them, before the first lease.

        What has no room in this pool is left out. ValueError for anything else, and then there are
        no assignments.
        """
        found: dict[_Holder, int] = {}
        slots: set[int] = set()
        for entry in _entries(exported):
            holder, slot = _Holder(*entry[:2]), entry[2]
            if holder in found or slot in slots:
                raise ValueError("two assignments of the same")
            if FIRST_SLOT <= slot < FIRST_SLOT + self.capacity:
                found[holder] = slot
                slots.add(slot)
        self._slots = found
        self._free = _Free(self.capacity, slots)


class _Free:
    """Slots that nobody ever had, lowest first."""

    def __init__(self, capacity: int, taken: set[int] | None = None) -> None:
        end = FIRST_SLOT + capacity
        self._slots = (n for n in range(FIRST_SLOT, end) if not taken or n not in taken)

    def take(self) -> int | None:
        """Return one, or None if there are no more."""
        return next(self._slots, None)


def _entries(exported: object) -> Iterable[tuple[str, int, int]]:
    if not isinstance(exported, list) or len(exported) > MAXIMUM_SLOTS:
        raise ValueError("no list of assignments")
    for entry in exported:
        if (
            not isinstance(entry, list)
            or [type(part) for part in entry] != [str, int, int]
            or not 0 <= entry[1] < MAXIMUM_SLOTS
            or len(entry[0]) > MAXIMUM_USER_NAME
        ):
            raise ValueError("an assignment is not [user name, index, slot]")
        yield cast("tuple[str, int, int]", tuple(entry))


# ---- which networks may be a pool ----------------------------------------------------------------


def check_pool(networks: Sequence[Network]) -> None:
    """Raise `ConfigError` for what cannot be a pool."""
    if not networks:
        raise ConfigError("a pool without a network has no addresses", remedy=_FORM)
    if len({network.version for network in networks}) < len(networks):
        raise ConfigError(
            "there are two networks of the same family", remedy="name one of IPv4, one of IPv6"
        )
    for network in networks:
        shortest, longest = _PREFIXES[network.version]
        if network.prefixlen > longest:
            raise ConfigError(
                f"{network} is too small for a server and a client",
                remedy=f"write one of /{longest} or larger",
            )
        if network.prefixlen < shortest:
            raise ConfigError(
                f"{network} is larger than any pool", remedy=f"write one of /{shortest} or smaller"
            )
        if not _is_usable(network.network_address):
            raise ConfigError(f"{network} is for no host to have", remedy=_FORM)


@dataclass(frozen=True, slots=True)
class Subnet:
    """What this machine is part of: an interface, its address there, and the prefix length."""

    name: str
    interface: Interface
    is_point_to_point: bool = False


def check_pool_is_apart(networks: Sequence[Network], subnets: Iterable[Subnet]) -> None:
    """Raise `ConfigError` if a pool overlaps one of this machine's ``subnets``.

    A point-to-point device with the pool's address for the server is this server's own: it runs.
    """
    for network in networks:
        for subnet in subnets:
            there = subnet.interface
            is_ours = subnet.is_point_to_point and there.ip == network[SERVER_SLOT]
            if not is_ours and _overlap(network, there.network):
                raise ConfigError(
                    f"{network} overlaps {there.network}, the subnet of {printable(subnet.name)}",
                    remedy="name a network that is used nowhere near this machine",
                )


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and (
        one.network_address in other or other.network_address in one
    )


def _is_usable(address: Address) -> bool:
    """Say whether an address, and with it all of its block in RFC 6890, can be a host's."""
    return not (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or (isinstance(address, IPv4Address) and address.packed[0] == 0)
    )


def _room(network: Network) -> int:
    """Return for how many clients there are addresses; the last of IPv4 is for broadcasts."""
    last = network.num_addresses - (2 if isinstance(network, IPv4Network) else 1)
    return last - SERVER_SLOT
