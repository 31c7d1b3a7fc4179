"""The long line of the bench: its delay, its rate, its buffer, and that it passes every byte."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import ExitStack

import pytest

from bench.programs import ENDS, Bed, Line, start_data_server, start_line

pytestmark = pytest.mark.slow


@pytest.fixture(params=["C", "Python"])
def bed(request, tmp_path):
    if request.param == "C" and shutil.which("cc") is None:
        pytest.skip("no compiler")
    return Bed(tmp_path, None, 0, 0, {}, {"delay": "Python"} if request.param == "Python" else {})


def ask(entry, task, **options):
    request = {"task": task, "entry": entry, "target": 0, "through_socks": False, **options}
    done = subprocess.run(
        [*ENDS, "client", json.dumps(request)], capture_output=True, check=True, timeout=30
    )
    return json.loads(done.stdout)


@pytest.mark.alone
def test_a_round_trip_takes_the_delay_and_a_transfer_the_rate(bed):
    line = Line(round_trip_ms=40, rate_mbit=20, buffer_bytes=256 << 10)
    with ExitStack() as stack:
        entry = start_line(stack, bed, line, start_data_server(stack))
        echoes_ms = [took / 1000 for took in ask(entry, "echo", count=10)["µs"]]
        assert min(echoes_ms) == pytest.approx(40, abs=1.5)
        for direction in ("get", "put"):
            [count] = ask(entry, f"bulk {direction}", seconds=2)["bytes"]
            assert count / 2 == pytest.approx(2.5e6, rel=0.05)


@pytest.mark.alone
def test_a_line_without_a_rate_only_delays(bed):
    line = Line(round_trip_ms=100, rate_mbit=0, buffer_bytes=128 << 20)
    with ExitStack() as stack:
        entry = start_line(stack, bed, line, start_data_server(stack))
        assert min(ask(entry, "echo", count=5)["µs"]) / 1000 == pytest.approx(100, abs=2)
        assert ask(entry, "bulk get", seconds=1)["bytes"][0] > 50e6


def answer_backwards(listener):
    with listener.accept()[0] as sock:
        received = bytearray()
        while data := sock.recv(65536):
            received += data
        sock.sendall(received[::-1])


@pytest.mark.parametrize("rate_mbit", [0, 50])
def test_every_byte_and_half_closing_pass(bed, rate_mbit):
    line = Line(round_trip_ms=10, rate_mbit=rate_mbit, buffer_bytes=64 << 10)
    sent = os.urandom(1_000_003)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=answer_backwards, args=(listener,), daemon=True).start()
        entry = start_line(stack, bed, line, listener.getsockname()[1])
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", entry)))
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    assert received[::-1] == sent


def test_a_full_buffer_takes_no_more(bed):
    line = Line(round_trip_ms=10, rate_mbit=1, buffer_bytes=128 << 10)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        entry = start_line(stack, bed, line, listener.getsockname()[1])
        sock = stack.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 10)
        sock.connect(("127.0.0.1", entry))
        sock.setblocking(False)
        taken, end_s = 0, time.monotonic() + 0.5
        while time.monotonic() < end_s:
            try:
                taken += sock.send(bytes(4096))
            except BlockingIOError:
                time.sleep(0.005)
        in_half_a_second = 1_000_000 // 8 // 2
        assert (128 << 10) <= taken <= (128 << 10) + in_half_a_second + (96 << 10)
