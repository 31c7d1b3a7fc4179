"""What a host's network is set to, as lines that can be compared: before and after something.

Left out is what changes of itself: counters, handles, lifetimes, carriers, neighbours, and the
kernel's caches. Everything else that a VPN could touch is there: devices, addresses, the routes of
all tables, rules, the nftables ruleset, and every setting below net.ipv4 and net.ipv6.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSCTLS = Path("/proc/sys")
SYSCTL_TREES = ("net/ipv4", "net/ipv6")
OF_MODULES = ("tcp_available_congestion_control", "tcp_available_ulp")  # as they are loaded
LIFETIMES = frozenset({"expires", "preferred_life_time", "valid_life_time"})
VOLATILE = frozenset({*LIFETIMES, "handle", "operstate", "used", "used_unit"})
COUNTS = frozenset({"bytes", "packets"})  # in nftables; only there are both in one place
# What a link's other end does to it; the kernel tells up to a second late (link_watch.c).
OF_CARRIER = ("LOWER_UP", "M-DOWN", "NO-CARRIER", "linkdown")

Snapshot = dict[str, str]
"""What there is, and its value. A thing that is there twice has its number with its name."""


def take_snapshot() -> Snapshot:
    """The state of the namespace that the calling thread is in."""
    found: Snapshot = {}
    for name, value in (*_links(), *_routes(), *_rules(), *_ruleset(), *_sysctls()):
        unique, number = name, 2
        while unique in found:
            unique, number = f"{name} ({number})", number + 1
        found[unique] = value
    return found


def difference(before: Snapshot, after: Snapshot) -> str:
    """What went (-) and what came (+), one a line; nothing when they are equal."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            lines += [f"- {name}: {before[name]}"] if name in before else []
            lines += [f"+ {name}: {after[name]}"] if name in after else []
    return "\n".join(lines)


def _links() -> Iterator[tuple[str, str]]:
    for link in _json("ip", "-d", "-j", "address"):
        for address in link.pop("addr_info"):
            name = f"address {link['ifname']} {address.pop('local', '')}"
            yield f"{name}/{address.pop('prefixlen', '')}", _text(address)
        yield f"link {link['ifname']}", _text(link)


def _routes() -> Iterator[tuple[str, str]]:
    for family in ("-4", "-6"):
        for route in _json("ip", "-d", "-j", family, "route", "show", "table", "all"):
            table, device = route.pop("table", "main"), route.pop("dev", "no device")
            kind = route.pop("type", "unicast")
            yield f"route {family} {table} {kind} {route.pop('dst')} {device}", _text(route)


def _rules() -> Iterator[tuple[str, str]]:
    for family in ("-4", "-6"):
        for rule in _json("ip", "-j", family, "rule"):
            yield f"rule {family} {rule.pop('priority')}", _text(rule)


def _ruleset() -> Iterator[tuple[str, str]]:
    for item in _json("nft", "-j", "list", "ruleset")["nftables"]:
        for kind, content in item.items():
            if kind == "set":
                content["elem"] = [one for one in content.get("elem", ()) if not _is_state(one)]
            if kind != "metainfo":
                place = (content.pop(key, "") for key in ("family", "table", "chain", "name"))
                yield " ".join(("nft", kind, *filter(None, place))), _text(content)


def _is_state(element: object) -> bool:
    """Whether packets have put it into a set: it has a statement of its own, such as a count."""
    return isinstance(element, dict) and isinstance(element.get("elem"), dict)


def _sysctls() -> Iterator[tuple[str, str]]:
    # A device and its settings may go while we look: os.walk passes over them.
    for folder, _, names in itertools.chain(*(os.walk(SYSCTLS / tree) for tree in SYSCTL_TREES)):
        for path in (Path(folder) / name for name in names):
            name = str(path.relative_to(SYSCTLS)).replace("/", ".")
            if path.name in OF_MODULES:
                continue
            try:
                yield f"sysctl {name}", path.read_text().strip()
            except OSError:  # gone, or one that can only be written, or that has no value
                continue


def _json(*command: str) -> Any:
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output or "[]")


def _text(content: object) -> str:
    return json.dumps(_steady(content), sort_keys=True)


def _steady(content: object) -> object:
    """The same without what changes of itself, at every depth."""
    if isinstance(content, list):
        return [_steady(item) for item in content if item not in OF_CARRIER]
    if not isinstance(content, dict):
        return content
    volatile = VOLATILE | COUNTS if content.keys() >= COUNTS else VOLATILE
    return {
        key: _steady(value)
        for key, value in content.items()
        if key not in volatile and not key.endswith("_timer")  # a bridge's, counting down
    }
