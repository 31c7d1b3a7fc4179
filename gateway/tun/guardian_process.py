"""The guardian's process: it changes the network for its parent, and outlives it to undo that.

Theory of operation: `guardian.py` starts it with two pipes, in a session of its own so that Ctrl-C
does not reach it, and it ignores what asks a process to end: it ends when its parent has said so or
is gone, which it sees as the end of its standard input, and not before everything is undone. A
request is a JSON object in a line, and so is its answer:

    (nothing)                   {"table": 26487, "undone": [...], "failed": [...]}    at the start
    {"ask": "facts"}            {"facts": {...}}
    {"ask": "apply", "steps"}   {"plan": 1}
    {"ask": "undo", "plan": 1}  {"undone": [...], "failed": [...]}
    end of input                {"undone": [...], "failed": [...]}    then the process ends

Every answer may be {"error": "one sentence"} instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

from gateway.errors import NetworkSetupError
from gateway.tun.journal import Process
from gateway.tun.keeper import Keeper, look
from gateway.tun.steps import from_json

if TYPE_CHECKING:
    from gateway.tun.keeper import Report


def main() -> int:
    """Serve the parent that the arguments name (its pid and start time) until it is gone.

    With the argument ``look`` instead, say once what it would see: for ``--dry-run``.
    """
    if sys.argv[1:] == ["look"]:
        return _look()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    pid, start = (int(argument) for argument in sys.argv[1:])
    return serve(Process(pid, start), sys.stdin.buffer, sys.stdout.buffer)


def _look() -> int:
    try:
        table, facts = look()
    except NetworkSetupError as error:
        _answer(sys.stdout.buffer, {"error": str(error)})
    else:
        _answer(sys.stdout.buffer, {"table": table, "facts": facts.to_json()})
    return 0


def serve(parent: Process, requests: BinaryIO, answers: BinaryIO) -> int:
    """Answer requests until there are no more, then undo everything; return the exit status."""
    try:
        keeper = Keeper(parent)
        table, left = keeper.begin()
    except (NetworkSetupError, OSError) as error:
        _answer(answers, {"error": str(error)})
        return 1
    try:
        _answer(answers, {"table": table, **_told(left)})
        for line in requests:
            _answer(answers, _handle(keeper, json.loads(line)))
    finally:
        report = keeper.end()
        _answer(answers, _told(report))
        keeper.close()
    return 1 if report.failed else 0


def _handle(keeper: Keeper, request: dict[str, Any]) -> dict[str, Any]:
    try:
        match request["ask"]:
            case "facts":
                return {"facts": keeper.facts().to_json()}
            case "apply":
                steps = [from_json(step) for step in request["steps"]]
                return {"plan": keeper.apply(steps)}
            case _:
                return _told(keeper.undo(request["plan"]))
    except NetworkSetupError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - a bug here; everything is still undone at the end
        return {"error": f"the guardian could not {request.get('ask')}: {error!r}"}


def _told(report: Report) -> dict[str, Any]:
    return dataclasses.asdict(report)


def _answer(answers: BinaryIO, answer: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: the end of input comes next
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    sys.exit(main())
