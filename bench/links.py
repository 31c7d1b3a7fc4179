"""Many links to one server, from one process: `python -m bench.links JSON`.

It logs in, does one task, says "ready" when that begins in earnest, and prints its result as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from bench.ends import ENDLESS, Outcome, block_bytes
from gateway.errors import ChannelOpenError
from gateway.net.carrier import SocketCarrier
from gateway.net.dial import dial
from gateway.net.login import ClientLink
from gateway.net.stream import ChannelStream
from gateway.ssh.algorithms import Preferences
from gateway.ssh.keyfiles import parse_private_key_file_untrusted
from gateway.ssh.messages import DirectTcpip
from gateway.ssh.numbers import OpenFailure
from gateway.ssh.protocol import ClientSetup
from gateway.ssh.windows import Budget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from gateway import events
    from gateway.net.link import Link
    from gateway.net.port import ChannelPort
    from gateway.ssh.agent import SessionBinding
    from gateway.ssh.keys import PrivateKey, PublicKey

AT_ONCE = 10
LOGIN_TIMEOUT_S = 60.0
HOST = "127.0.0.1"
OPENS_AT_ONCE = 64  # less than a server may have of one user
SEND_BYTES = 64 << 10
UNKNOWN_TYPE = "nobody-knows@bench"


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


async def log_in(nursery: trio.Nursery, port: int, setup: ClientSetup, dialogue: OneKey) -> Link:
    sock = await dial(HOST, port)
    client = ClientLink(
        setup,
        SocketCarrier(sock, f"{HOST} port {port}"),
        alive_interval_s=0.0,
        alive_count_max=3,
        warns_of_weak_crypto=False,
    )
    nursery.start_soon(client.run)
    await client.log_in(dialogue, LOGIN_TIMEOUT_S)
    return client.link


async def log_in_all(
    nursery: trio.Nursery, count: int, port: int, setup: ClientSetup, dialogue: OneKey
) -> list[Link]:
    """So many links, each of which has had an answer since: some servers end one too many then."""
    found: dict[int, Link] = {}

    async def some(numbers: Iterator[int]) -> None:
        for number in numbers:
            found[number] = await log_in(nursery, port, setup, dialogue)

    numbers = iter(range(count))
    async with trio.open_nursery() as workers:
        for _ in range(AT_ONCE):
            workers.start_soon(some, numbers)
    for link in found.values():
        if not await link.answers(LOGIN_TIMEOUT_S):
            raise link.failure or TimeoutError("a link does not answer")
    return list(found.values())


async def open_all(links: list[Link], target: int, streams: int) -> list[ChannelPort]:
    """So many channels of each link to one port."""
    specific = DirectTcpip(HOST, target, HOST, 0).encode()
    return [
        await link.open_channel("direct-tcpip", specific) for _ in range(streams) for link in links
    ]


# ---- tasks ---------------------------------------------------------------------------------------


async def hold(links: list[Link]) -> Outcome:
    """Hold them until standard input ends."""
    print("ready", flush=True)
    await trio.to_thread.run_sync(sys.stdin.read)
    return {"links": len(links)}


async def get(
    links: list[Link], target: int, streams: int, seconds: float, warm_up_s: float
) -> Outcome:
    """Bytes of each endless download within a time, after another until all flow."""
    ports = await open_all(links, target, streams)
    counts = [0] * len(ports)

    def counter(index: int) -> Callable[[memoryview], int]:
        def count(data: memoryview) -> int:
            counts[index] += len(data)
            return len(data)

        return count

    for index, port in enumerate(ports):
        port.channel.sink = counter(index)
        port.channel.send(memoryview(b"get %d\n" % ENDLESS))
        port.link.flush()
    await trio.sleep(warm_up_s)
    print("ready", flush=True)
    before, began_s = list(counts), time.perf_counter()
    await trio.sleep(seconds)
    took_s = time.perf_counter() - began_s
    gained = [float(after - there) for there, after in zip(before, counts, strict=True)]
    return {"bytes": gained, "seconds": took_s}


async def put(
    links: list[Link], target: int, streams: int, seconds: float, warm_up_s: float
) -> Outcome:
    """Bytes of each upload that reached the sink within a time from its request's arrival."""
    del warm_up_s  # the sink's clock starts with the first byte
    ports = await open_all(links, target, streams)
    block = memoryview(block_bytes())[:SEND_BYTES]
    counts = [0.0] * len(ports)

    async def send(stream: ChannelStream) -> None:
        while True:
            await stream.send_all(block)

    async def upload(index: int, port: ChannelPort) -> None:
        stream = ChannelStream(port)
        await stream.send_all(b"sink %.3f\n" % seconds)
        async with trio.open_nursery() as sending:
            sending.start_soon(send, stream)
            answer = b""
            while not answer.endswith(b"\n"):
                answer += await stream.receive_some()
            sending.cancel_scope.cancel()
        counts[index] = float(answer)

    async with trio.open_nursery() as nursery:
        print("ready", flush=True)
        for index, port in enumerate(ports):
            nursery.start_soon(upload, index, port)
    return {"bytes": counts, "seconds": seconds}


class Refusals:
    """Opens that are refused, one by policy and one for its type in turn: an answer, a new open."""

    def __init__(self, link: Link, denied: int) -> None:
        self.reasons: Counter[int] = Counter()
        self._link = link
        self._kinds = (
            ("direct-tcpip", DirectTcpip(HOST, denied, HOST, 0).encode()),
            (UNKNOWN_TYPE, b""),
        )
        self._asked = self._answered = self._goal = 0
        self._done = trio.Event()
        self._failure: Exception | None = None

    async def run(self, count: int) -> None:
        """Have so many refused. Raises what else came of one."""
        self._goal += count
        self._done = trio.Event()
        for _ in range(min(count, OPENS_AT_ONCE)):
            self._ask()
        await self._done.wait()
        if self._failure is not None:
            raise self._failure

    def _ask(self) -> None:
        kind, specific = self._kinds[self._asked % 2]
        self._asked += 1
        self._link.ask_for_channel(kind, specific, self._take_answer)

    def _take_answer(self, port: ChannelPort) -> None:
        if not isinstance(port.failure, ChannelOpenError):
            self._failure = port.failure or ValueError("an open was granted")
            self._done.set()
            return
        self.reasons[port.failure.reason_code] += 1
        self._link.release(port)
        self._answered += 1
        if self._answered == self._goal:
            self._done.set()
        elif self._asked < self._goal:
            self._ask()


async def refused(links: list[Link], denied: int, opens: int, warm_up: int) -> Outcome:
    """Refused opens in a second, after some that are not counted."""
    refusals = Refusals(links[0], denied)
    await refusals.run(warm_up)
    print("ready", flush=True)
    began_s = time.perf_counter()
    await refusals.run(opens)
    took_s = time.perf_counter() - began_s
    by_policy = refusals.reasons[OpenFailure.ADMINISTRATIVELY_PROHIBITED]
    if by_policy != (warm_up + opens) // 2 or OpenFailure.RESOURCE_SHORTAGE in refusals.reasons:
        raise ValueError(f"opens were refused for these reasons: {dict(refusals.reasons)}")
    return {"opens/s": opens / took_s}


TASKS: dict[str, Callable[..., Awaitable[Outcome]]] = {
    "hold": hold,
    "get": get,
    "put": put,
    "refused": refused,
}


async def run(
    task: str, port: int, user: str, key: PrivateKey, cipher: str, links: int, **options: float
) -> None:
    setup = ClientSetup(
        user, (key.public,), preferences=Preferences(ciphers=(cipher,)), budget=Budget()
    )
    async with trio.open_nursery() as nursery:
        opened = await log_in_all(nursery, links, port, setup, OneKey(key))
        outcome = await TASKS[task](opened, **options)
        for link in opened:
            if link.failure is not None:
                raise link.failure
        nursery.cancel_scope.cancel()
    print(json.dumps(outcome))


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    text = Path(request["key"]).read_bytes()
    request["key"] = parse_private_key_file_untrusted(text, request["key"]).decrypt()
    trio.run(lambda: run(**request))
