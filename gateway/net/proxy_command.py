"""ProxyCommand: a program of the user's that is the way to the server.

The command's text is the user's own and runs in their shell, as in ssh; every value in it was
checked before (`gateway.config.tokens.ShellTokens`). Its input and output are pipes, not a socket,
for some shells take a socket as their standard input for a login from the network. With
ProxyUseFdpass both are one end of a unix socket, over which it sends the descriptor of a connection
and ends. Its errors go where ours go (sshconnect.c, ssh_proxy_connect, ssh_proxy_fdpass_connect).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from typing import TYPE_CHECKING, Final, Self

import trio

from gateway.errors import ConnectionLost, printable
from gateway.net.carrier import DescriptorCarrier, SocketCarrier
from gateway.net.local_command import SHELL_REMEDY, shell_problem, user_shell

if TYPE_CHECKING:
    from gateway.net.carrier import Carrier

PIPE_SIZE: Final = 1024 * 1024  # bytes; pipe(7), the most without privileges
LAST_WORDS_S: Final = 0.5  # for the command to end by itself, once its output has ended
END_DEADLINE_S: Final = 1.0  # after SIGHUP; then SIGKILL
NOT_FOUND: Final = (126, 127)  # a shell's status for a command that it cannot run


class ProxyCommand:
    """A running command. ``sock`` is the connection that it passed, if that was asked of it."""

    def __init__(self, process: trio.Process, command: str) -> None:
        self._process = process
        self._command = command
        self.sock: socket.socket | None = None
        self.carrier: Carrier

    @property
    def pid(self) -> int:
        """The process id of the command."""
        return self._process.pid

    @property
    def has_failed(self) -> bool:
        """Whether it has ended, and not well."""
        return bool(self._process.returncode)

    @classmethod
    async def start(cls, command: str, name: str) -> Self:
        """Start a command whose input and output carry the link to ``name``.

        Raises `ConnectionLost`.
        """
        to_command, ours_out = os.pipe2(os.O_CLOEXEC)
        ours_in, from_command = os.pipe2(os.O_CLOEXEC)
        try:
            for descriptor in (ours_out, ours_in):
                with contextlib.suppress(OSError):  # a user has only so many pages for pipes
                    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            started = cls(await _run(command, to_command, from_command), command)
        except BaseException:
            os.close(ours_in)
            os.close(ours_out)
            raise
        finally:
            os.close(to_command)
            os.close(from_command)
        started.carrier = DescriptorCarrier(ours_in, ours_out, name)
        return started

    @classmethod
    async def start_for_socket(cls, command: str, name: str) -> Self:
        """Start a command and take the socket that it passes; the time is the caller's.

        Raises `ConnectionLost`.
        """
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                started = cls(await _run(command, theirs.fileno(), theirs.fileno()), command)
            try:
                await trio.lowlevel.wait_readable(ours)
                _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
                started.sock = await started._connected(descriptors)
            except BaseException:
                await started.aclose()
                raise
        started.carrier = SocketCarrier(started.sock, name)
        return started

    async def _connected(self, descriptors: list[int]) -> socket.socket:
        try:
            sock = socket.socket(fileno=descriptors[0])
        except (IndexError, OSError):
            for descriptor in descriptors:
                os.close(descriptor)
            raise ConnectionLost(
                await self.why_ended()
                or f"the ProxyCommand {self._shown} passed no connection: does it know how to, "
                "and do you want ProxyUseFdpass?"
            ) from None
        return sock

    @property
    def _shown(self) -> str:
        return printable(self._command, 80)

    async def why_ended(self) -> str:
        """Say how the command ended, if it did so by itself; else nothing."""
        with trio.move_on_after(LAST_WORDS_S):
            status = await self._process.wait()
            if status < 0:
                return f"the ProxyCommand {self._shown} was ended by signal {-status}"
            if status in NOT_FOUND:
                return f"the ProxyCommand {self._shown} cannot be run: check its name and path"
            if status:
                return (
                    f"the ProxyCommand {self._shown} ended with status {status}: what it said "
                    "stands above, and running it by hand may tell more"
                )
            return f"the ProxyCommand {self._shown} ended by itself: run it by hand to see why"
        return ""

    async def aclose(self) -> None:
        """End the command, as ssh does with SIGHUP, and by force if it takes no notice."""
        with trio.CancelScope(shield=True):
            for number in (signal.SIGHUP, signal.SIGKILL):
                if self._process.returncode is None:
                    self._process.send_signal(number)
                    with trio.move_on_after(END_DEADLINE_S):
                        await self._process.wait()


async def _run(command: str, stdin: int, stdout: int) -> trio.Process:
    shell = user_shell()
    try:
        return await trio.lowlevel.open_process(
            [shell, "-c", f"exec {command}"], stdin=stdin, stdout=stdout
        )
    except (OSError, ValueError) as error:
        raise ConnectionLost(f"{shell_problem(shell, error)}: {SHELL_REMEDY}") from error
