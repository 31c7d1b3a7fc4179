"""Stock proxies for tests: microsocks, ncat, ssh and tor as they are installed."""

from __future__ import annotations

import contextlib
import shutil
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.programs import USER as LOGIN
from tests.support.programs import Endpoint, Program, client_options, eventually, free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USER, PASSWORD = "alice", "se:cret/€"


@dataclass(frozen=True)
class StockProxy:
    """A running proxy."""

    program: Program
    port: int


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[StockProxy]:
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{command[0]} is not installed")
    with running(*command) as program:
        eventually(lambda: _listens(port), f"{command[0]} listens")
        yield StockProxy(program, port)


@contextlib.contextmanager
def running_microsocks(*options: str, at: int | None = None) -> Iterator[StockProxy]:
    """Run a SOCKS5 proxy."""
    port = at or free_port()
    with _running(["microsocks", "-i", "127.0.0.1", "-p", str(port), *options], port) as proxy:
        yield proxy


@contextlib.contextmanager
def running_ncat(*options: str) -> Iterator[StockProxy]:
    """Run an HTTP proxy."""
    port = free_port()
    command = ["ncat", "-k", "-l", "127.0.0.1", str(port), "--proxy-type", "http", *options]
    with _running(command, port) as proxy:
        yield proxy


@contextlib.contextmanager
def running_ssh_d(sshd: Endpoint) -> Iterator[StockProxy]:
    """Run ``ssh -D``, which speaks SOCKS 4A too."""
    port = free_port()
    command = ["ssh", "-N", "-D", str(port), *client_options(sshd), f"{LOGIN}@127.0.0.1"]
    with _running(command, port) as proxy:
        yield proxy


@contextlib.contextmanager
def running_tor(folder: Path) -> Iterator[StockProxy]:
    """Run a Tor whose only directory is a closed port: all that it connects to is nothing."""
    port = free_port()
    folder.mkdir()
    (folder / "torrc").touch()
    nobody = "0" * 39 + "1"
    command = ["tor", "-f", f"{folder}/torrc", "--DataDirectory", f"{folder}/data",
               "--SocksPort", f"127.0.0.1:{port}", "--SocksTimeout", "2",
               "--UseDefaultFallbackDirs", "0",
               "--DirAuthority",
               f"none orport=1 v3ident={nobody} 127.0.0.1:1 {nobody}"]  # fmt: skip
    with _running(command, port) as proxy:
        yield proxy
