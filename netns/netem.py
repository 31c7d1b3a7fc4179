"""The same line as `netns.emulator`'s by the kernel's own means, as commands for ip(8) and tc(8).

    host ── eth0 ───── left ─ bridge ─ right ───── eth0 ── host

What is between the devices of the hosts is in a namespace of the line's own, where each port sends
to its host through netem. At the hosts netem would not be a line: their TCP would be told of what
is dropped, and large packets would be cut only after it. Unlike the emulator's, the buffer counts
frames, luck has no seed, and what devices say to find each other may be lost too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netns.emulator import Line

PORTS = ("left", "right")
BRIDGE = "bridge"
FULL_FRAME = 1514
UNLIMITED = 1_000_000


def plugged(namespaces: tuple[str, str], devices: tuple[str, str]) -> list[str]:
    """For `ip -batch` in the line's namespace: the devices of both hosts, and what joins them.

    A host cuts large packets before they are on the line, which is what a real one's device does.
    """
    lines = [f"link add {BRIDGE} type bridge mcast_snooping 0", f"link set {BRIDGE} up"]
    for port, namespace, device in zip(PORTS, namespaces, devices, strict=True):
        lines += [
            f"link add {port} type veth peer name {device} gso_max_segs 1 netns {namespace}",
            f"link set {port} master {BRIDGE}",
        ]
    return lines


def switched(state: str) -> list[str]:
    """For `ip -batch`: "up"; or "down": no carrier for the hosts, nothing under way."""
    return [f"link set {port} {state}" for port in PORTS]


def shaped(line: Line) -> list[str]:
    """For `tc -batch`: what the line does, whatever it did before."""
    return [
        f"qdisc {command}"
        for port in PORTS
        for command in (f"replace dev {port} root pfifo", *_stages(line, port))
    ]


def _stages(line: Line, port: str) -> list[str]:
    rate = f" rate {line.rate_mbit}mbit" if line.rate_mbit else ""
    loss = f" loss {100 * line.loss:g}%" if line.loss else ""
    stages = [f"netem limit {_frames(line)} delay {line.delay_ms}ms{loss}{rate}"]
    if (
        line.reorder
    ):  # netem sends this share at once, past all stages after it, and the others late
        stages.append(f"netem limit {UNLIMITED} delay {line.late_ms}ms"
                      f" reorder {100 * (1 - line.reorder):g}%")  # fmt: skip
    return [
        f"add dev {port} parent {number}:1 handle {number + 1}: {stage}"
        if number
        else f"replace dev {port} root handle 1: {stage}"
        for number, stage in enumerate(stages)
    ]


def _frames(line: Line) -> int:
    """What netem may hold: the buffer, and what is under way."""
    if not line.rate_mbit:
        return UNLIMITED
    under_way_bytes = line.rate_mbit * 1e6 / 8 * line.delay_ms / 1e3
    return math.ceil((line.buffer_bytes + under_way_bytes) / FULL_FRAME)
