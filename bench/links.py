"""Many idle links to one server, from one process: `python -m bench.links JSON`.

It says "ready" when all are logged in, and holds them until standard input ends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from gateway.net.carrier import SocketCarrier
from gateway.net.dial import dial
from gateway.net.login import ClientLink
from gateway.ssh.keyfiles import parse_private_key_file_untrusted
from gateway.ssh.protocol import ClientSetup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway import events
    from gateway.ssh.agent import SessionBinding
    from gateway.ssh.keys import PrivateKey, PublicKey

AT_ONCE = 10
LOGIN_TIMEOUT_S = 60.0


class OneKey:
    """Trusts every server and signs with one key; see `gateway.net.login.Dialogue`."""

    def __init__(self, key: PrivateKey) -> None:
        self._key = key

    async def trust(self, key: PublicKey) -> None:
        pass

    async def identities(self, binding: SessionBinding) -> tuple[PublicKey, ...]:
        del binding
        return (self._key.public,)

    async def sign(self, identity: int, data: bytes, algorithm: str) -> bytes | None:
        del identity
        return self._key.sign(data, algorithm)

    async def password(self, attempt: int) -> str | None:
        del attempt
        return None

    async def answers(self, wanted: events.AnswersWanted) -> Sequence[str] | None:
        del wanted
        return None

    def banner(self, text: str) -> None:
        pass


async def log_in(nursery: trio.Nursery, port: int, user: str, key: PrivateKey) -> None:
    sock = await dial("127.0.0.1", port)
    link = ClientLink(
        ClientSetup(user, (key.public,)),
        SocketCarrier(sock, f"127.0.0.1 port {port}"),
        alive_interval_s=0.0,
        alive_count_max=3,
        warns_of_weak_crypto=False,
    )
    nursery.start_soon(link.run)
    await link.log_in(OneKey(key), LOGIN_TIMEOUT_S)


async def hold(port: int, count: int, user: str, key: PrivateKey) -> None:

    async def some(numbers: Iterator[int]) -> None:
        for _ in numbers:
            await log_in(links, port, user, key)

    async with trio.open_nursery() as links:
        numbers = iter(range(count))
        async with trio.open_nursery() as workers:
            for _ in range(AT_ONCE):
                workers.start_soon(some, numbers)
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        links.cancel_scope.cancel()
    print(json.dumps({"links": count}))


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    text = Path(request["key"]).read_bytes()
    user_key = parse_private_key_file_untrusted(text, request["key"]).decrypt()
    trio.run(hold, request["port"], request["count"], request["user"], user_key)
