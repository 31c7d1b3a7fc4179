"""What a configuration may ask of this machine and of the person who runs the command."""

from __future__ import annotations

import getpass
import os
import pwd
import socket
from pathlib import Path

from gateway.config.sources import Environment


def read_environment() -> Environment:
    """Return it as it is now."""
    try:
        home = Path(os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user id without an entry, as in containers
        home, user = Path(os.environ.get("HOME", "/")), getpass.getuser()
    return Environment(home, user, socket.gethostname(), os.getuid(), dict(os.environ))
