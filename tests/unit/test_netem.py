"""The commands by which netem is a line."""

from __future__ import annotations

from netns.emulator import Line
from netns.netem import PORTS, shaped


def stages(line: Line) -> list[str]:
    """What each port gets, in its order; both get the same."""
    per_port = [
        [command.replace(f" {port} ", " PORT ") for command in shaped(line) if port in command]
        for port in PORTS
    ]
    assert per_port[0] == per_port[1]
    assert per_port[0][0] == "qdisc replace dev PORT root pfifo", "nothing of before is left"
    return per_port[0][1:]


def test_a_line_that_is_always_free_only_delays() -> None:
    assert stages(Line(delay_ms=10, buffer_bytes=1)) == [
        "qdisc replace dev PORT root handle 1: netem limit 1000000 delay 10ms"
    ]


def test_the_buffer_has_room_for_what_is_under_way_too() -> None:
    # 1 Mbit/s for 1.514 s are 125 frames.
    line = Line(rate_mbit=1, delay_ms=1514, buffer_bytes=10 * 1514, loss=0.001)
    [command] = stages(line)
    assert command.endswith("netem limit 135 delay 1514ms loss 0.1% rate 1mbit")


def test_the_share_that_is_overtaken_is_what_netem_does_not_send_at_once() -> None:
    assert stages(Line(delay_ms=20, reorder=0.005, late_ms=4)) == [
        "qdisc replace dev PORT root handle 1: netem limit 1000000 delay 20ms",
        "qdisc add dev PORT parent 1:1 handle 2: netem limit 1000000 delay 4ms reorder 99.5%",
    ]
