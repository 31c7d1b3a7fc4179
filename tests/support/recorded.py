"""A client whose every byte is decided by its input, to record once and replay for ever.

`scripts/record` makes tests/vectors/*.json with it, tests/pair/test_recordings.py replays them.
What draws randomness is replaced, the user's key is fixed, and Ed25519 signatures are
deterministic, so the client must say the same again, byte for byte, whenever it hears the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway import events
from gateway.ssh import wire
from gateway.ssh.algorithms import Preferences
from gateway.ssh.keys import PrivateKey
from gateway.ssh.protocol import ClientSetup, Protocol
from gateway.ssh.transport import RekeyLimit
from gateway.ssh.userauth import ClientAuth
from tests.support.pair import feed, take

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.ssh.channel import Channel

# A cat made of the shell's own commands: the peers' folder has no other.
COMMAND = "printf recorded; while IFS= read -r line; do echo $line; done"
INPUT = b"some input for the far side\n" * 400
REKEY_BYTES = 4096


def stream_of(seed: str) -> Callable[[int], bytes]:
    """Return a source of bytes that look random and are always the same."""
    counter = 0

    def randbytes(size: int) -> bytes:
        nonlocal counter
        counter += 1
        return hashlib.shake_256(f"{seed} {counter}".encode()).digest(size)

    return randbytes


USER_KEY = PrivateKey.generate(stream_of("the user's key"))


@dataclass(frozen=True)
class Suite:
    """What one recording is about."""

    kex: str
    cipher: str
    mac: str

    @property
    def name(self) -> str:
        """The name of its file."""
        return "+".join(part for part in (self.kex, self.cipher, self.mac) if part)


@dataclass
class Recording:
    """Client and server in turns: each step is what the server said, then what we answered."""

    suite: Suite
    server: str = ""
    steps: list[tuple[bytes, bytes]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the file."""
        steps = [[heard.hex(), said.hex()] for heard, said in self.steps]
        content = {**vars(self.suite), "server": self.server, "steps": steps}
        path.write_text(json.dumps(content, indent=0) + "\n")

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read a file."""
        content = json.loads(path.read_text())
        suite = Suite(content["kex"], content["cipher"], content["mac"])
        steps = [(bytes.fromhex(heard), bytes.fromhex(said)) for heard, said in content["steps"]]
        return cls(suite, content["server"], steps)


class ScriptedClient:
    """Logs in, runs COMMAND, sends INPUT in small pieces, rekeys on the way, and leaves."""

    def __init__(self, suite: Suite) -> None:
        setup = ClientSetup(
            "root",
            (USER_KEY.public,),
            Preferences((suite.kex,), ciphers=(suite.cipher,), macs=(suite.mac or "none",)),
            RekeyLimit(bytes=REKEY_BYTES),
        )
        self.protocol = Protocol(setup, 0.0, stream_of(suite.name))
        self.output = bytearray()
        self.key_exchanges = 0
        self.is_done = False
        self._channel: Channel | None = None
        self._unsent = INPUT

    def hear(self, data: bytes) -> bytes:
        """Take what the server said; return what we say to it."""
        if data:
            feed(self.protocol, data)
        while (event := self.protocol.next_event()) is not None:
            self._act(event)
        self._send_input()
        return take(self.protocol)

    def _act(self, event: events.Event) -> None:
        connection = self.protocol.connection
        match event:
            case events.HostKeyReceived():
                self.protocol.accept_host_key()
            case events.SignatureWanted(_, data):
                auth = self.protocol.auth
                assert isinstance(auth, ClientAuth)
                auth.provide_signature(USER_KEY.sign(data, USER_KEY.public.algorithm))
            case events.KeysExchanged():
                self.key_exchanges += 1
            case events.Authenticated():
                self._channel = connection.open_channel("session", b"")
                self._channel.sink = self._keep
            case events.ChannelOpened(channel_id):
                connection.channels[channel_id].send_request("exec", wire.text(COMMAND))
            case events.ChannelCloseReceived(channel_id):
                connection.close(connection.channels[channel_id])
                self.protocol.disconnect()
                self.is_done = True

    def _keep(self, data: memoryview) -> int:
        self.output += data
        return len(data)

    def _send_input(self) -> None:
        channel = self._channel
        if channel is None or channel.remote_window == 0 or self.is_done:
            return
        if self._unsent:
            self._unsent = self._unsent[channel.send(self._unsent[:700]) :]
            if not self._unsent:
                channel.send_eof()
