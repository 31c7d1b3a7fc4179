"""What commands share: messages on standard error, questions on the terminal, log levels."""

from __future__ import annotations

import argparse
import contextlib
import gc
import getpass
import logging
import os
import resource
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Self

import trio

from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from typing import TypeVar

    T = TypeVar("T")

EXIT_FAILURE: Final = 255  # as ssh(1): our own errors, told apart from a command's status
TERMINAL: Final = Path("/dev/tty")
DEFAULT_ASKPASS: Final = "ssh-askpass"
_LOCAL_FLAGS: Final = 3  # of what tcgetattr returns
MAXIMUM_ANSWER_LENGTH: Final = 1024  # bytes from SSH_ASKPASS, as OpenSSH's readpass.c


def say(text: str) -> None:
    """Show one line of our own on standard error."""
    print(f"gateway: {text}", file=sys.stderr, flush=True)


def say_error(error: ConfigError) -> None:
    """Show an error, which has a line for each that was found."""
    for line in str(error).split("\n"):
        say(line)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `ConfigError`, one sentence with the remedy."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving with status 2."""
        raise ConfigError(message, remedy=f"see {self.prog} --help")


class Person:
    """The person at the terminal (`gateway.config.trust.Person`); ``quiet`` as -q asks.

    One question at a time, whoever asks: an answer must never be taken for that to another one.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._asking = trio.Lock()
        self._has_session = False

    def say(self, text: str) -> None:
        """Show one line."""
        if not self._quiet:
            say(text)

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        """Leave the keys to a session within a with block: nothing is asked on the terminal then.

        Who is being asked may answer first.
        """
        async with self._asking:
            self._has_session = True
        try:
            yield
        finally:
            self._has_session = False

    async def ask(self, question: str) -> str | None:
        """Return a line that was typed, or None if there is no terminal or a session has it."""
        async with self._asking:
            if (askpass := Askpass.wanted(os.environ, _has_terminal)) is not None:
                return await askpass.ask(question)
            if self._has_session:
                return None
            return await _with_terminal(lambda: _ask(question))

    async def ask_secret(self, prompt: str) -> str | None:
        """Return a line that was typed unseen, or None as `ask`."""
        async with self._asking:
            if (askpass := Askpass.wanted(os.environ, _has_terminal)) is not None:
                return await askpass.ask(prompt)
            if self._has_session:
                return None
            with _settings_restored():
                return await _with_terminal(lambda: _ask_secret(prompt))


class Askpass:
    """A program that asks instead of the terminal (ssh(1), SSH_ASKPASS; OpenSSH's readpass.c)."""

    def __init__(self, program: str) -> None:
        self._program = program

    @classmethod
    def wanted(
        cls, environment: Mapping[str, str], has_terminal: Callable[[], bool]
    ) -> Self | None:
        """Return the program if it is to be used, as SSH_ASKPASS_REQUIRE says.

        Without that: if there is no terminal, but a display where it can show its window.
        """
        allowed = any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
        first = False
        match environment.get("SSH_ASKPASS_REQUIRE", "").lower():
            case "force":
                allowed = first = True
            case "prefer":
                first = allowed
            case "never":
                allowed = False
        if not allowed or (not first and has_terminal()):
            return None
        return cls(environment.get("SSH_ASKPASS") or DEFAULT_ASKPASS)

    async def ask(self, prompt: str) -> str | None:
        """Return the first line that the program writes; None if it fails, or is not there."""
        try:
            process = await trio.lowlevel.open_process(
                [self._program, prompt], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
        except (OSError, ValueError) as error:
            say(f"warning: {self._program} (SSH_ASKPASS) cannot be run: {error}")
            return None
        try:
            answer = await _read_answer(process)
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
        return None if status or answer is None else answer


async def _read_answer(process: trio.Process) -> str | None:
    """Read up to the end, or to the most that is taken; then the program may not say more."""
    output = bytearray()
    if process.stdout is None:
        return None
    async with process.stdout as stream:
        while len(output) <= MAXIMUM_ANSWER_LENGTH:
            data = await stream.receive_some(MAXIMUM_ANSWER_LENGTH)
            if not data:
                break
            output += data
    line = bytes(output).split(b"\n", 1)[0].split(b"\r", 1)[0]
    return line.decode("utf-8", "surrogateescape") if len(line) <= MAXIMUM_ANSWER_LENGTH else None


def _has_terminal() -> bool:
    try:
        os.close(os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _settings_restored() -> Iterator[None]:
    """Put the terminal's settings back, which a thread abandoned by Ctrl-C does not do."""
    try:
        terminal = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    settings = termios.tcgetattr(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, settings)
        os.close(terminal)


async def _with_terminal(question: Callable[[], T]) -> T | None:
    """Ask in a thread; the link goes on meanwhile. Ctrl-C abandons the thread."""
    try:
        return await trio.to_thread.run_sync(question, abandon_on_cancel=True)
    except (OSError, EOFError):
        return None


def _ask(question: str) -> str | None:
    with TERMINAL.open("r+b", buffering=0) as terminal:
        if not termios.tcgetattr(terminal)[_LOCAL_FLAGS] & termios.ICANON:
            return None  # it is raw: the session of another program has it
        terminal.write(question.encode())
        line = terminal.readline(4096)
    return line.decode("utf-8", "replace").rstrip("\r\n") if line else None


def _ask_secret(prompt: str) -> str | None:
    # getpass falls back to standard input when there is no terminal: not wanted here.
    os.close(os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY))
    return getpass.getpass(prompt)


def raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system grants; every carried connection needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def start_logging(level: int) -> None:
    """Send the log to standard error, in the form of `say`."""
    logging.basicConfig(level=level, format="gateway: %(message)s", stream=sys.stderr, force=True)
    logging.raiseExceptions = False


async def until_signal(function: Callable[[], Awaitable[int]], status: int) -> int:
    """Run a command's function; SIGINT, SIGTERM and SIGHUP cancel it, so that it cleans up.

    Returns what the function returned, or ``status`` after a signal.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_signal)
            status = await function()
            nursery.cancel_scope.cancel()
    return status


def run(
    function: Callable[[], Awaitable[int]],
    *,
    quiet: bool = False,
    after_signal: int = EXIT_FAILURE,
) -> int:
    """Run a command's function on trio to its end or a signal; return the exit status.

    A `GatewayError` becomes its one sentence, however deep in nurseries it was raised.
    """
    try:
        raise_descriptor_limit()
        gc.freeze()  # modules and settings: never looked through again
        gc.enable()
        return trio.run(until_signal, function, after_signal)
    except* GatewayError as group:
        if not quiet:
            say(str(_first_of(group)))
    except* KeyboardInterrupt:
        pass
    return EXIT_FAILURE


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
