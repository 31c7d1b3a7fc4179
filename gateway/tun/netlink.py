"""Makes one step in the kernel, and unmakes it: the only user of pyroute2, and of nft(8).

Runs in the guardian's process only: pyroute2 has an asyncio core of its own, costs 0.2 s and 13 MB,
and none of that belongs into a process that runs trio.

What is unmade is matched in full and must still be ours: routes and rules by their protocol number
too, whatever belongs to a device by the device's index, which the kernel gives to no other device
later. What is not there any more is as good as unmade.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING, Any, Final, Protocol

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from gateway.errors import printable
from gateway.tun.facts import Facts, KnownRoute
from gateway.tun.steps import (
    FIRST_TABLE,
    MAIN,
    PROTOCOL,
    TABLES,
    Address,
    Family,
    Link,
    Route,
    Rule,
    Setting,
    Step,
    StepFailed,
    Switch,
    Table,
    setting_path,
    table_text,
)
from gateway.tun.sysctls import ROOT, read_setting, write_setting

if TYPE_CHECKING:
    from collections.abc import Iterable

# ---- <linux/rtnetlink.h>, <linux/fib_rules.h>, <linux/if.h> --------------------------------------
_FAMILIES: Final[dict[Family, int]] = {"ipv4": 2, "ipv6": 10}
_KINDS: Final = {1: "unicast", 6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
_KIND_NUMBERS: Final = {name: number for number, name in _KINDS.items()}
_SCOPE_LINK = 253
_FR_ACT_TO_TBL = 1
_FIB_RULE_INVERT = 2
_IFA_F_NODAD = 2
_IFF_UP = 1
_RTM_F_CLONED = 0x200
_GENERATE_NONE = 1  # IN6_ADDR_GEN_MODE_NONE
_TCP = 6

# ---- our own choice ------------------------------------------------------------------------------
NFT_TIMEOUT_S: Final = 10
_WHERE_NFT_IS: Final = f"{os.defpath}:/usr/local/sbin:/usr/sbin:/sbin"
# What the kernel says when what is to be removed is not there.
_GONE: Final = frozenset(
    {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENXIO, errno.EAFNOSUPPORT}
)


class _Message(Protocol):
    """A netlink message as pyroute2 gives it: fields by name, attributes by ``get``."""

    def __getitem__(self, field: str) -> Any: ...  # noqa: ANN401 - pyroute2 has no types
    def get(self, attribute: str) -> Any: ...  # noqa: ANN401
    def get_nested(self, *attributes: str) -> Any: ...  # noqa: ANN401


class Kernel:
    """This network namespace, through one netlink socket."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    # ---- what there is

    def facts(self, forwarding: Iterable[Family]) -> Facts:
        """Return what plans have to know; ``forwarding``: the families forwarded without us."""
        names = dict(socket.if_nameindex())
        addresses = []
        for message in self._netlink.get_addr():
            address = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
            device = names.get(message["index"], "")
            addresses.append((device, ip_interface(f"{address}/{message['prefixlen']}")))
        routes = [
            self._known_route(message, family, names)
            for family, number in _FAMILIES.items()
            for message in self._routes(number)
        ]
        interesting = [
            route
            for route in routes
            if route.table == MAIN
            or (route.protocol == PROTOCOL and 0 <= route.table - FIRST_TABLE < TABLES)
        ]
        has_ipv6 = (ROOT / "net/ipv6").is_dir()
        return Facts(tuple(addresses), tuple(interesting), has_ipv6, tuple(forwarding))

    def tables_in_use(self) -> set[int]:
        """Return the numbers of all routing tables that a route or a rule is about."""
        used = {
            message.get("RTA_TABLE") or message["table"]
            for number in _FAMILIES.values()
            for message in self._routes(number)
        }
        for number in _FAMILIES.values():
            used |= {
                message.get("FRA_TABLE") or message["table"]
                for message in self._netlink.get_rules(family=number)
            }
        return used

    def _routes(self, family: int) -> list[_Message]:
        found = self._netlink.get_routes(family=family)
        return [message for message in found if not message["flags"] & _RTM_F_CLONED]

    @staticmethod
    def _known_route(message: _Message, family: Family, names: dict[int, str]) -> KnownRoute:
        anything = "0.0.0.0" if family == "ipv4" else "::"  # noqa: S104 - no address to bind to
        destination = message.get("RTA_DST") or anything
        through_others = ("RTA_GATEWAY", "RTA_VIA", "RTA_MULTIPATH")
        return KnownRoute(
            table=message.get("RTA_TABLE") or message["table"],
            destination=ip_network(f"{destination}/{message['dst_len']}"),
            device=names.get(message.get("RTA_OIF") or 0, ""),
            via_gateway=any(message.get(name) for name in through_others),
            kind=_KINDS.get(message["type"], "other"),
            protocol=message["proto"],
        )

    # ---- one step

    def before(self, step: Step) -> dict[str, Any]:
        """Return what undoing a step will need. Raises `StepFailed` where it exists already."""
        match step:
            case Link():
                link = self._link(_index_of(step.device))
                is_up = bool(link["flags"] & _IFF_UP)
                before = {"index": link["index"], "mtu": link.get("IFLA_MTU"), "up": is_up}
                return before | ({"generate": _generates(link)} if step.quiet else {})
            case Setting():
                value = read_setting(setting_path(step))
                if value is None:
                    raise StepFailed(f"there is no {ROOT / setting_path(step)}")
                return {"index": _index_of(step.device), "value": value}
            case Address():
                index = _index_of(step.device)
                if self._has_address(step, index):
                    raise StepFailed(os.strerror(errno.EEXIST))
                return {"index": index}
            case Route():
                return {"index": _index_of(step.device) if step.device else 0}
            case Table():
                if self._has_table(step):
                    raise StepFailed(os.strerror(errno.EEXIST))
                return {}
            case Rule() | Switch():
                return {}

    def make(self, step: Step, before: dict[str, Any], keep: int = -1) -> None:
        """Make a step. Raises `StepFailed`. A switch is not made here, for it is shared.

        A program that is started for it inherits the descriptor ``keep``.
        """
        try:
            self._change("add", step, before)
            if isinstance(step, Link):
                if step.quiet:  # before it is up: an address is made at that moment
                    self._set_link(before, _generate(_GENERATE_NONE))
                self._set_link(before, {"mtu": step.mtu, "state": "up"})
            elif isinstance(step, Setting):
                write_setting(setting_path(step), step.value)
            elif isinstance(step, Table):
                _nft("-f", "-", text=table_text(step), keep=keep)
        except NetlinkError as error:
            raise StepFailed(os.strerror(error.code)) from error
        except OSError as error:
            raise StepFailed(error.strerror or str(error)) from error

    def unmake(self, step: Step, before: dict[str, Any], keep: int = -1) -> bool:
        """Undo a step as far as it is still ours; say whether something was changed.

        Raises `StepFailed` where it is still there and cannot be undone.
        """
        try:
            if isinstance(step, Link):
                return self._restore_link(step, before)
            if isinstance(step, Setting):
                return self._restore_setting(step, before)
            if isinstance(step, Table):
                return self._delete_table(step, keep)
            self._change("del", step, before)
        except NetlinkError as error:
            if error.code in _GONE:
                return False
            raise StepFailed(os.strerror(error.code)) from error
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise StepFailed(error.strerror or str(error)) from error
        return True

    def _change(self, verb: str, step: Step, before: dict[str, Any]) -> None:
        """Add or delete what has a netlink message of its own."""
        if isinstance(step, Address):
            self._netlink.addr(verb, index=before["index"], **_address_fields(step))
        elif isinstance(step, Route):
            device = {"oif": before["index"]} if step.device else {}
            self._netlink.route(verb, **device, **_route_fields(step))
        elif isinstance(step, Rule):
            self._netlink.rule(verb, **_rule_fields(step))

    def _link(self, index: int) -> _Message:
        """Return one device. Asking for all takes a millisecond for each that there is."""
        (message,) = self._netlink.get_links(index)
        link: _Message = message
        return link

    def _has_address(self, step: Address, index: int) -> bool:
        wanted = _address_fields(step)
        return any(
            (message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")) == wanted["local"]
            and message["prefixlen"] == wanted["prefixlen"]
            for message in self._netlink.get_addr(index=index)
        )

    def _restore_link(self, step: Link, before: dict[str, Any]) -> bool:
        link = self._link(before["index"])
        changes: dict[str, Any] = {}
        if link["flags"] & _IFF_UP and not before["up"]:
            changes["state"] = "down"
        if link.get("IFLA_MTU") == step.mtu != before["mtu"]:
            changes["mtu"] = before["mtu"]
        if step.quiet and _generates(link) == _GENERATE_NONE != before["generate"]:
            changes |= _generate(
                before["generate"]
            )  # makes no address, as writing the sysctl would
        if changes:
            self._set_link(before, changes)
        return bool(changes)

    def _set_link(self, before: dict[str, Any], changes: dict[str, Any]) -> None:
        self._netlink.link("set", index=before["index"], **changes)

    def _restore_setting(self, step: Setting, before: dict[str, Any]) -> bool:
        path = setting_path(step)
        if before["index"] != _index(step.device) or before["value"] == step.value:
            return False
        if read_setting(path) != step.value:
            return False
        write_setting(path, before["value"])
        return True

    def _delete_table(self, step: Table, keep: int) -> bool:
        if not self._has_table(step):
            return False
        _nft("delete", "table", "inet", step.name, keep=keep)
        return True

    @staticmethod
    def _has_table(step: Table) -> bool:
        return f"table inet {step.name}" in _nft("list", "tables", "inet").splitlines()


def _index(device: str) -> int:
    """Return a device's index; 0, which none has, where there is no such device."""
    try:
        return socket.if_nametoindex(device)
    except OSError:  # without an errno
        return 0


def _index_of(device: str) -> int:
    if not (index := _index(device)):
        raise StepFailed(f"there is no device {printable(device)}")
    return index


def _generates(link: _Message) -> int | None:
    """Return how a device makes IPv6 addresses of its own; None where it has no IPv6."""
    mode: int | None = link.get_nested("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_ADDR_GEN_MODE")
    return mode


def _generate(mode: int) -> dict[str, Any]:
    ipv6 = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", mode)]}
    return {"IFLA_AF_SPEC": {"attrs": [("AF_INET6", ipv6)]}}


def _address_fields(step: Address) -> dict[str, Any]:
    address = ip_interface(step.address)
    fields = {
        "local": str(address.ip),
        "address": step.peer or str(address.ip),
        "prefixlen": address.network.prefixlen,
        "family": 2 if address.version == 4 else 10,
    }
    return fields | ({"flags": _IFA_F_NODAD} if address.version == 6 else {})


def _route_fields(step: Route) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "family": _FAMILIES[step.family],
        "table": step.table,
        "dst": step.destination,
        "type": _KIND_NUMBERS[step.kind],
        "proto": PROTOCOL,
    }
    if step.preferred_source:
        fields["prefsrc"] = step.preferred_source
    if step.device and step.family == "ipv4":
        fields["scope"] = _SCOPE_LINK
    return fields


def _rule_fields(step: Rule) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "family": _FAMILIES[step.family],
        "priority": step.priority,
        "table": step.table,
        "action": _FR_ACT_TO_TBL,
        "FRA_PROTOCOL": PROTOCOL,
    }
    if step.not_mark:
        fields |= {"fwmark": step.not_mark, "flags": _FIB_RULE_INVERT}
    if step.to:
        network = ip_network(step.to)
        fields |= {"dst": str(network.network_address), "dst_len": network.prefixlen}
    if step.protocol:
        fields["FRA_IP_PROTO"] = _TCP
    if step.source_port:
        fields["FRA_SPORT_RANGE"] = f"{step.source_port}:{step.source_port}"
    if step.destination_port:
        fields["FRA_DPORT_RANGE"] = f"{step.destination_port}:{step.destination_port}"
    if step.suppress >= 0:
        fields["FRA_SUPPRESS_PREFIXLEN"] = step.suppress
    return fields


def _nft(*arguments: str, text: str = "", keep: int = -1) -> str:
    """Run nft(8) and return its output. Raises `StepFailed` with what it said."""
    program = shutil.which("nft", path=_WHERE_NFT_IS)
    if program is None:
        raise StepFailed("the command nft is missing: apt-get install nftables")
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and arguments of our own
            [program, *arguments],
            input=text,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=NFT_TIMEOUT_S,
            pass_fds=(keep,) if keep >= 0 else (),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StepFailed(f"nft did not end within {NFT_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise StepFailed(printable(done.stderr.strip().partition("\n")[0]) or "nft failed")
    return done.stdout
