"""The guardian, as the process that needs it sees it: a block in which the network may be changed.

    async with Guardian() as guardian:
        steps = client_plan(wanted, carrier, guardian.table, await guardian.facts())
        await guardian.apply(steps)
        ...

At the end of the block, however it comes, everything is undone. When this process is killed, the
guardian does the same by itself (`guardian_process.py`); when the guardian is killed, the end of
the block starts another one that finishes the job.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import trio

from gateway.errors import NetworkSetupError
from gateway.tun.facts import Facts
from gateway.tun.journal import Process
from gateway.tun.steps import to_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from gateway.tun.steps import Step

# -P: a folder named gateway in the working directory is not run as root.
COMMAND: Final = (sys.executable, "-P", "-m", "gateway.tun.guardian_process")
ANSWER_S: Final = 30  # longer than the guardian itself waits for the lock and for nft
END_S: Final = 15
_RECEIVE_BYTES: Final = 65_536

_GONE: Final = (
    "the guardian process, which changes the network for us, was killed:"
    " what it did is undone at the end, or with `gateway cleanup`"
)
_SILENT: Final = (
    f"the guardian process, which changes the network for us, did not answer in {ANSWER_S} s:"
    " `gateway cleanup` undoes what it did once it is gone"
)


@dataclass(frozen=True)
class Undone:
    """What was undone and what could not be, as command lines."""

    undone: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


async def look() -> tuple[int, Facts]:
    """Return a free table and what plans have to know, without rights and without a guardian.

    For ``--dry-run``. Raises `NetworkSetupError`.
    """
    with trio.move_on_after(ANSWER_S):
        done = await trio.run_process([*COMMAND, "look"], capture_stdout=True, cwd="/")
        answer = _read_answer(done.stdout)
        return answer["table"], Facts.from_json(answer["facts"])
    raise NetworkSetupError(f"the kernel was asked for its routes and was silent for {ANSWER_S} s")


class Guardian:
    """One guardian process, ``pid``. ``table`` is a routing table, and a mark, reserved for us.

    ``found`` says what a gateway that was killed had left, ``undone`` after the block what was
    undone at its end. Entering the block raises `NetworkSetupError`.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None
        self.table = 0
        self.pid = 0
        self.found = Undone()
        self.undone = Undone()

    async def __aenter__(self) -> Self:
        with trio.CancelScope(shield=True):  # half a start would be a process without an owner
            child = await _Child.start()
        self._child = child
        self.pid = child.pid
        self.table, self.found = child.first["table"], _undone(child.first)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with trio.move_on_after(END_S, shield=True):
            self.undone = await self._running().end()

    async def facts(self) -> Facts:
        """Return what plans have to know of this machine's network."""
        answer = await self._running().ask({"ask": "facts"})
        return Facts.from_json(answer["facts"])

    async def apply(self, steps: Sequence[Step]) -> int:
        """Make the steps of one plan, all or none; return its number for `undo`.

        Raises `NetworkSetupError`: what was asked, what the kernel said, what was undone.
        """
        request = {"ask": "apply", "steps": [to_json(step) for step in steps]}
        plan: int = (await self._running().ask(request))["plan"]
        return plan

    async def undo(self, plan: int) -> Undone:
        """Undo one plan."""
        return _undone(await self._running().ask({"ask": "undo", "plan": plan}))

    def _running(self) -> _Child:
        if self._child is None:
            raise RuntimeError("only inside the block")
        return self._child


class _Child:
    """The process and its two pipes; ``first`` is what it said at its start."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None  # noqa: S101 - both were asked for
        assert process.stdout is not None  # noqa: S101
        self._process = process
        self.pid = process.pid
        self._requests = process.stdin
        self._answers = process.stdout
        self._received = bytearray()
        self._lock = trio.Lock()
        self.first: dict[str, Any] = {}

    @classmethod
    async def start(cls) -> _Child:
        """Start a guardian and wait until it is ready."""
        me = Process.of(os.getpid())
        process = await trio.lowlevel.open_process(
            [*COMMAND, str(me.pid), str(me.start)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        child = cls(process)
        try:
            child.first = await child.ask(None)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        return child

    async def ask(self, request: dict[str, Any] | None) -> dict[str, Any]:
        """Ask and wait for the answer, also when cancelled: it takes milliseconds."""
        async with self._lock:
            with trio.move_on_after(ANSWER_S, shield=True):
                try:
                    if request is not None:
                        await self._requests.send_all(json.dumps(request).encode() + b"\n")
                    return await self._answer()
                except trio.BrokenResourceError as error:
                    raise NetworkSetupError(_GONE) from error
            raise NetworkSetupError(_SILENT)

    async def end(self) -> Undone:
        """Have everything undone and wait for the process to end."""
        await self._requests.aclose()
        try:
            undone = _undone(await self._answer())
        except NetworkSetupError:  # it was killed: another one finishes its job
            if os.geteuid() != 0:  # … if we are still who may start one
                raise
            replacement = await _Child.start()
            undone = _undone(replacement.first)
            await replacement.end()
        await self._process.wait()
        await self._answers.aclose()
        return undone

    async def _answer(self) -> dict[str, Any]:
        while (end := self._received.find(b"\n")) < 0:
            received = await self._answers.receive_some(_RECEIVE_BYTES)
            if not received:
                raise NetworkSetupError(_GONE)
            self._received += received
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return _read_answer(line)


def _read_answer(line: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise NetworkSetupError(answer["error"])
    return answer


def _undone(answer: dict[str, Any]) -> Undone:
    return Undone(tuple(answer["undone"]), tuple(answer["failed"]))
