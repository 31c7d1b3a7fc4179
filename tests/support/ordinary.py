"""An ordinary user for programs that root starts, and a gateway that this user may read."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import gateway
from tests.support import programs

if TYPE_CHECKING:
    import types

NAME = "nobody"
USER = pwd.getpwnam(NAME)
# `env` is found with setpriv's rights of before, what it starts without them.
CHANGE = ("setpriv", f"--reuid={NAME}", f"--regid={USER.pw_gid}", "--clear-groups", "env")


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as that user to its end."""
    return subprocess.run([*CHANGE, *command], capture_output=True, text=True, check=False)


def use_readable_gateway(monkeypatch: pytest.MonkeyPatch, *modules: types.ModuleType) -> None:
    """Have the tests' programs run a gateway that everybody may read: Python may be in root's home.

    ``modules`` are others that have a GATEWAY.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can start a server that goes on as another user")
    paths = [str(Path(str(module.__file__)).parents[1]) for module in (gateway, trio)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    for python in (sys.executable, "/usr/bin/python{}.{}".format(*sys.version_info)):
        command = [python, "-P", "-m", "gateway"]
        if not as_nobody(*command, "serve", "--help").returncode:
            for module in (programs, *modules):
                monkeypatch.setattr(module, "GATEWAY", command)
            return
    pytest.skip(f"there is no Python with gateway that {NAME} may read")
