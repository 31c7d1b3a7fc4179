"""-f: the work goes on in the background once the login is made and the tunnel is up.

The process forks before trio starts, and the work happens in the child, which may still ask for a
passphrase on the terminal. A byte through a pipe tells the parent that all is up: it leaves with
status 0, and the child with the terminal's signals and descriptors that it no longer needs. If the
child ends before, the parent ends with its status.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Final

from gateway.cli.terminal import EXIT_FAILURE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP)


def run_in_background(work: Callable[[Callable[[], None]], int], *, keep: tuple[int, ...]) -> int:
    """Run ``work`` in a child; return 0 when it has called its argument, or else its status.

    Of standard input, output and error, the child goes on with those in ``keep``.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.close(writing)
        return _wait(child, reading)
    os.close(reading)

    def ready() -> None:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in (0, 1, 2):
            if descriptor not in keep:
                os.dup2(null, descriptor)
        os.close(null)
        os.write(writing, b"+")
        os.close(writing)

    status = EXIT_FAILURE
    try:
        status = work(ready)
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, reading: int) -> int:
    """Wait for the child's byte or its end. Signals are for the child, which then ends as it may.

    SIGINT reaches it from the terminal anyway.
    """

    def forward(number: int, _frame: FrameType | None) -> None:
        os.kill(child, number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            if pipe.read(1):
                return 0
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else EXIT_FAILURE
