"""The steps that change this machine's network, as data: what a plan consists of.

Theory of operation: a plan (`plan.py`) is a tuple of steps, a step is one object of the kernel that
the guardian makes and removes again (`netlink.py`), and `shown` is the command line that it equals.
Steps travel to the guardian and into its journal as JSON, so addresses and subnets are strings
here, written as ``str(ip_network(…))`` writes them; ``default`` is a destination of either family.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

Family = Literal["ipv4", "ipv6"]

# ---- our own numbers -----------------------------------------------------------------------------
# Who made a route or a rule (rtm_protocol, FRA_PROTOCOL): unassigned in <linux/rtnetlink.h> and in
# the files that iproute2 and FRR bring.
PROTOCOL: Final = 103
# Tables, and with them marks, are taken from here upwards; rules have the number's distance from
# here added to their priority, so that no two gateways ever have the same rule.
FIRST_TABLE: Final = 26487
TABLES: Final = 1000

MAIN: Final = 254  # RT_TABLE_MAIN


@dataclass(frozen=True)
class Address:
    """An address of a device: ``10.8.0.2/32``; with a peer, the prefix length is the peer's."""

    device: str
    address: str
    peer: str = ""


@dataclass(frozen=True)
class Link:
    """A device with this MTU, up, and if ``quiet`` without an IPv6 address of its own making."""

    device: str
    mtu: int
    quiet: bool = False


@dataclass(frozen=True)
class Route:
    """A route of a table of ours: into a device, or nowhere (``throw``, ``unreachable``)."""

    table: int
    family: Family
    destination: str
    device: str = ""
    kind: Literal["unicast", "throw", "unreachable"] = "unicast"
    preferred_source: str = ""


@dataclass(frozen=True)
class Rule:
    """A routing rule: what is not given matches everything.

    ``not_mark`` is the mark that a packet must not have (0: any), ``suppress`` the prefix length up
    to which the table's routes do not count (-1: all count).
    """

    family: Family
    priority: int
    table: int
    not_mark: int = 0
    to: str = ""
    protocol: Literal["", "tcp"] = ""
    source_port: int = 0
    destination_port: int = 0
    suppress: int = -1


@dataclass(frozen=True)
class Switch:
    """Forwarding between this machine's devices: shared with other programs, so it is counted."""

    family: Family


@dataclass(frozen=True)
class Setting:
    """A sysctl of one device (net.FAMILY.conf.DEVICE.NAME); it goes when the device goes."""

    family: Family
    device: str
    name: str
    value: str


@dataclass(frozen=True)
class Table:
    """A table of nftables in the family inet: ours alone, made and removed as a whole.

    ``text`` is what stands between its braces, in nft(8)'s language.
    """

    name: str
    text: str


class StepFailed(Exception):
    """The kernel, or nft, refused a step: its own words."""


Step = Address | Link | Route | Rule | Switch | Setting | Table
KINDS: Final[dict[str, type[Any]]] = {
    kind.__name__.lower(): kind for kind in (Address, Link, Route, Rule, Switch, Setting, Table)
}


def to_json(step: Step) -> dict[str, Any]:
    """Return a step as what `from_json` reads."""
    return {"step": type(step).__name__.lower(), **dataclasses.asdict(step)}


def from_json(fields: dict[str, Any]) -> Step:
    """Return the step that `to_json` wrote. Raises KeyError or TypeError for anything else."""
    given = dict(fields)
    step: Step = KINDS[given.pop("step")](**given)
    return step


# ---- the sysctls that steps are about, as paths below /proc/sys ---------------------------------


def switch_path(switch: Switch) -> str:
    """Return the sysctl that turns forwarding on for every device of a family."""
    return "net/ipv4/ip_forward" if switch.family == "ipv4" else "net/ipv6/conf/all/forwarding"


def setting_path(setting: Setting) -> str:
    """Return the sysctl of a setting; a path, for the name of a device may contain dots."""
    return f"net/{setting.family}/conf/{setting.device}/{setting.name}"


# ---- as a person would type it -------------------------------------------------------------------


def shown(step: Step) -> str:
    """Return the command line that a step equals, for ``--dry-run`` and for errors."""
    return _SHOWN[type(step)](step)


def in_short(step: Step) -> str:
    """Return `shown` on one line: a table of nftables by its name alone."""
    return f"nft add table inet {step.name} …" if isinstance(step, Table) else shown(step)


def table_text(table: Table) -> str:
    """Return what nft(8) reads to make a table, as one transaction."""
    return f"table inet {table.name} {{\n{table.text}}}\n"


def _shown_address(step: Address) -> str:
    no_duplicate_check = " nodad" if ":" in step.address else ""
    what = step.address
    if step.peer:
        address, _, prefix_length = step.address.partition("/")
        what = f"{address} peer {step.peer}/{prefix_length}"
    return f"ip address add {what} dev {step.device}{no_duplicate_check}"


def _shown_link(step: Link) -> str:
    quiet = " addrgenmode none" if step.quiet else ""
    return f"ip link set dev {step.device} mtu {step.mtu}{quiet} up"


def _shown_route(step: Route) -> str:
    kind = "" if step.kind == "unicast" else f"{step.kind} "
    words = [f"ip{_option(step.family)} route add {kind}{step.destination}"]
    words += [f"dev {step.device}"] if step.device else []
    words += [f"src {step.preferred_source}"] if step.preferred_source else []
    words += [f"table {step.table} proto {PROTOCOL}"]
    return " ".join(words)


def _shown_rule(step: Rule) -> str:
    words = [f"ip{_option(step.family)} rule add priority {step.priority}"]
    words += [f"not fwmark {step.not_mark}"] if step.not_mark else []
    words += [f"to {step.to}"] if step.to else []
    words += [f"ipproto {step.protocol}"] if step.protocol else []
    words += [f"sport {step.source_port}"] if step.source_port else []
    words += [f"dport {step.destination_port}"] if step.destination_port else []
    words += ["table main" if step.table == MAIN else f"table {step.table}"]
    words += [f"suppress_prefixlength {step.suppress}"] if step.suppress >= 0 else []
    words += [f"protocol {PROTOCOL}"]
    return " ".join(words)


def _shown_sysctl(path: str, value: str) -> str:
    # sysctl(8) takes slashes too, and needs them for a device whose name has a dot
    name = path if "." in path else path.replace("/", ".")
    return f"sysctl -w {name}={value}"


def _option(family: Family) -> str:
    return " -6" if family == "ipv6" else ""


_SHOWN: Final[dict[type[Any], Callable[[Any], str]]] = {
    Address: _shown_address,
    Link: _shown_link,
    Route: _shown_route,
    Rule: _shown_rule,
    Switch: lambda step: _shown_sysctl(switch_path(step), "1"),
    Setting: lambda step: _shown_sysctl(setting_path(step), step.value),
    Table: lambda step: f"nft -f - <<'END'\n{table_text(step)}END",
}
