"""Sessions recorded with the newest OpenSSH: our client must say again what it said then."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.ssh import transport
from gateway.ssh.algorithms import DEFAULT_CIPHERS, DEFAULT_KEX, DEFAULT_MACS
from tests.support.recorded import INPUT, Recording, ScriptedClient

VECTORS = sorted((Path(__file__).parent.parent / "vectors").glob("*.json"))


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_replay(path, monkeypatch):
    recording = Recording.load(path)
    version = recording.steps[0][1].partition(b"\r\n")[0]
    monkeypatch.setattr(transport, "VERSION", version)
    client = ScriptedClient(recording.suite)
    for number, (heard, said) in enumerate(recording.steps):
        assert client.hear(heard) == said, f"step {number}"
    assert client.is_done
    assert client.output == b"recorded" + INPUT
    assert client.key_exchanges >= 3


def test_every_algorithm_is_recorded():
    suites = [Recording.load(path).suite for path in VECTORS]
    assert {suite.kex for suite in suites} == set(DEFAULT_KEX)
    assert {suite.cipher for suite in suites} == set(DEFAULT_CIPHERS)
    assert {suite.mac for suite in suites} == {"", *DEFAULT_MACS}
