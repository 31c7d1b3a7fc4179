"""A program that we start, listen to, and end: used by the demo and by the lab in netns/."""

from __future__ import annotations

import re
import subprocess
import threading
from collections import deque
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

KEPT_LINES = 200


class ChildError(Exception):
    """A child did not do what it was started for; the message ends with its last lines."""


class Child:
    """One running program: what it prints is kept line by line; leaving the ``with`` ends it.

    It gets a process group of its own, so that Ctrl-C reaches only us and we end things in order.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        on_end: Callable[[Child], None] | None = None,
    ) -> None:
        self.name = name
        self._on_end = on_end
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._ended = False
        self._changed = threading.Condition()
        try:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="backslashreplace",
                env=env,
                process_group=0,
            )
        except OSError as error:
            raise ChildError(f"{name} could not be started: {error}") from error
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_for_line(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """The first line in which ``pattern`` is found, printed already or within ``timeout_s``."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._find(pattern), timeout_s)
            found = self._find(pattern)
            if found is not None:
                return found
            if self._ended:
                raise self.error(f"ended with status {self.process.wait()}")
        raise self.error(f"did not get ready within {timeout_s:.0f} seconds")

    def lines(self) -> list[str]:
        """What it has printed, the last of it if that is much."""
        with self._changed:
            return list(self._lines)

    def error(self, problem: str) -> ChildError:
        return ChildError(f"{self.name} {problem}\n{self.last_words()}")

    def last_words(self) -> str:
        lines = "".join(f"\n    {line}" for line in list(self._lines)[-8:])
        return f"{self.name} said last:{lines or ' nothing'}"

    def kill(self) -> None:
        """End it as a crash would: it alone, at once; its own children are left as they are."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it politely, after five seconds by force; harmless when it has ended already."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self._reader.join(5)  # ends with the pipe, which a grandchild may still hold
        if not self._reader.is_alive() and self.process.stdout is not None:
            self.process.stdout.close()

    def _find(self, pattern: str) -> re.Match[str] | None:
        return next(filter(None, (re.search(pattern, line) for line in self._lines)), None)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        self.process.wait()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._on_end is not None:
            self._on_end(self)
