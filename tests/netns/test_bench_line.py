"""The bench's line of packets between two hosts: its delay and its rate."""

import json
from contextlib import ExitStack

import pytest

from bench.programs import ENDS, PORT_LINE, Client, Line, choose_congestion_control
from netns.lab import Lab, why_no_lines
from tests.support.programs import running

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.alone]


def test_a_round_trip_takes_the_delay_and_a_transfer_the_rate():
    if reason := why_no_lines():
        pytest.skip(reason)
    line = Line(round_trip_ms=40, rate_mbit=20, buffer_bytes=256 << 10, of_packets=True)
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(line.topology))
        near, far = lab["client"], lab["server"]
        choose_congestion_control(near)
        choose_congestion_control(far)
        with far.inside():
            server = stack.enter_context(running(*ENDS, "server", "0", far.ipv4()))
        port = int(server.wait_line(PORT_LINE)[1])

        def ask(task, **options):
            request = {"task": task, "entry": port, "target": 0, "through_socks": False}
            request |= {"host": far.ipv4(), **options}
            command = [*ENDS, "client", json.dumps(request)]
            with Client(task, *command, namespace=near.namespace) as client:
                return client.finish()

        assert min(ask("echo", count=10)["µs"]) / 1000 == pytest.approx(40, abs=2)
        for direction in ("get", "put"):
            [count] = ask(f"bulk {direction}", seconds=3)["bytes"]
            assert 0.85 * 2.5e6 < count / 3 < 2.5e6  # headers, losses, the first round trips
