"""The kernel's settings below /proc/sys, and what turning forwarding on does to the others.

Theory of operation: a switch has side effects, and all of them belong to it.

- net.ipv4.ip_forward changes every net.ipv4.conf.*.forwarding, and turns conf.all.accept_redirects
  the other way (inet_forward_change, net/ipv4/devinet.c).
- net.ipv6.conf.all.forwarding changes every net.ipv6.conf.*.forwarding. A device that forwards and
  has accept_ra=1 stops hearing routers and loses its default route at once; so those get
  accept_ra=2 *before* (addrconf_fixup_forwarding, net/ipv6/addrconf.c).

Restoring is not the same writes backwards: turning the switch off changes everything again. So
what each setting has to be in the end is decided first: what it was, if it still is what the switch
made of it, or else what somebody made of it meanwhile.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gateway.tun.steps import Switch, switch_path

ROOT: Final = Path("/proc/sys")

# What the switch makes of the settings that follow it: (when on, when off).
_FORWARDING: Final = ("1", "0")
_ACCEPT_REDIRECTS: Final = ("0", "1")


def read_setting(path: str) -> str | None:
    """Return a setting's value; None where the kernel or the device is not there."""
    try:
        return (ROOT / path).read_text().strip()
    except OSError:
        return None


def write_setting(path: str, value: str) -> None:
    """Change a setting. Raises OSError."""
    (ROOT / path).write_text(value)


def is_on(switch: Switch) -> bool:
    """Say whether a family's forwarding is on now."""
    return read_setting(switch_path(switch)) not in {"0", None}


def values_before(switch: Switch) -> dict[str, str]:
    """Return every setting that turning the switch on will change or may change, and its value."""
    found = {path: read_setting(path) for path in (*_followers(switch), *_router_listeners(switch))}
    return {path: value for path, value in found.items() if value is not None}


def turn_on(switch: Switch, before: dict[str, str]) -> None:
    """Turn forwarding on, ``before`` being what `values_before` returned. Raises OSError."""
    for path, value in before.items():
        if path.endswith("/accept_ra") and value == "1" and read_setting(path) == "1":
            write_setting(path, "2")
    if not is_on(switch):
        write_setting(switch_path(switch), "1")


def writes_to_restore(switch: Switch, before: dict[str, str]) -> list[tuple[str, str]]:
    """Return the writes, in order, after which all is as it was but for what others changed."""
    writes = []
    if is_on(switch):
        writes.append((switch_path(switch), "0"))
        for path, (on, off) in _followers(switch).items():
            now = read_setting(path)
            # A device that came later got what new devices got.
            old = before.get(path) or before.get(_default(switch), off)
            wanted = old if now == on else now
            if wanted not in {off, None}:
                writes.append((path, str(wanted)))
    writes += [
        (path, value)
        for path, value in before.items()
        if path.endswith("/accept_ra") and value == "1" and read_setting(path) == "2"
    ]
    return writes


def _default(switch: Switch) -> str:
    return f"net/{switch.family}/conf/default/forwarding"


def _followers(switch: Switch) -> dict[str, tuple[str, str]]:
    found = {
        f"net/{switch.family}/conf/{device}/forwarding": _FORWARDING
        for device in _devices(switch)
        if device != "all"  # the switch itself
    }
    if switch.family == "ipv4":
        found["net/ipv4/conf/all/accept_redirects"] = _ACCEPT_REDIRECTS
    return found


def _router_listeners(switch: Switch) -> list[str]:
    if switch.family == "ipv4":
        return []
    devices = [device for device in _devices(switch) if device not in {"all", "default"}]
    paths = [f"net/ipv6/conf/{device}/accept_ra" for device in devices]
    return [path for path in paths if read_setting(path) == "1"]


def _devices(switch: Switch) -> list[str]:
    folder = ROOT / "net" / switch.family / "conf"
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
