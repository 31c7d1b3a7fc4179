"""The bench's line of packets between two hosts: its delay, its rate, and that it goes again."""

import json
from contextlib import ExitStack

import pytest

from bench import wire
from bench.programs import ENDS, PORT_LINE, Bed, Client, Line, own_program
from netns.lab import ip
from tests.support.programs import running

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def test_a_round_trip_takes_the_delay_and_a_transfer_the_rate(tmp_path):
    if reason := wire.why_none():
        pytest.skip(reason)
    line = Line(round_trip_ms=40, rate_mbit=20, buffer_bytes=256 << 10, of_packets=True)
    bed = Bed(tmp_path, None, 0, 0, {}, {})
    with ExitStack() as stack:
        near, far = stack.enter_context(wire.hosts())
        carrier = running(*own_program(bed, wire), near, far, *line.arguments)
        stack.enter_context(carrier).wait_line("ready")
        wire.bring_up(near, far)
        with wire.inside(far):
            server = stack.enter_context(running(*ENDS, "server", "0", wire.ADDRESSES[1]))
        port = int(server.wait_line(PORT_LINE)[1])

        def ask(task, **options):
            request = {"task": task, "entry": port, "target": 0, "through_socks": False}
            request |= {"host": wire.ADDRESSES[1], **options}
            command = [*ENDS, "client", json.dumps(request)]
            with Client(task, *command, namespace=near) as client:
                return client.finish()

        assert min(ask("echo", count=10)["µs"]) / 1000 == pytest.approx(40, abs=2)
        for direction in ("get", "put"):
            [count] = ask(f"bulk {direction}", seconds=3)["bytes"]
            assert 0.85 * 2.5e6 < count / 3 < 2.5e6  # headers, losses, the first round trips
    assert near not in ip("netns", "list")
