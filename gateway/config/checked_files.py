"""Files that a server believes: read only if nobody else could have written, or read, them."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from gateway.errors import ConfigError, printable

if TYPE_CHECKING:
    from pathlib import Path

FILE_LIMIT: Final = 4 << 20  # bytes
PRIVATE: Final = 0o077  # what others may not have of a file with a secret: anything
UNCHANGED: Final = 0o022  # of a file that only has to stay as it is: writing


def read_checked_file(path: Path, forbidden: int, limit: int, what: str) -> bytes:
    """Return the content of a regular file that others have not these permissions of.

    Raises `ConfigError` for everything else, without waiting for a FIFO's writer.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check_permissions(path, os.fstat(descriptor), forbidden, what)
            _check_folder(path, what)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise ConfigError(
            f"{what} cannot be read: {reason}",
            where=printable(str(path)),
            remedy="check its name, its owner and its permissions",
        ) from error
    if len(content) > limit:
        raise ConfigError(
            f"{what} has more than {limit} bytes",
            where=printable(str(path)),
            remedy="name another file",
        )
    return content


def _check_folder(path: Path, what: str) -> None:
    """Who may write in a folder may replace the files in it, unless it is sticky as /tmp is."""
    mode = path.parent.stat().st_mode
    if mode & UNCHANGED and not mode & stat.S_ISVTX:
        raise ConfigError(
            f"others may replace {what}, for they may write in its folder"
            f" (mode {stat.S_IMODE(mode):04o})",
            where=printable(str(path)),
            remedy=f"chmod go-w {path.parent}",
        )


def _check_permissions(path: Path, status: os.stat_result, forbidden: int, what: str) -> None:
    where = printable(str(path))
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{what} is not a regular file", where=where, remedy="name a file")
    if status.st_uid not in (0, os.getuid()):
        raise ConfigError(
            f"{what} belongs to another user (uid {status.st_uid})",
            where=where,
            remedy=f"chown {os.getuid()} {path}",
        )
    # Only with this may we read what is root's, if we are not: as its group, or by an ACL.
    ours = 0 if status.st_uid == os.getuid() else stat.S_IRGRP
    if status.st_mode & forbidden & ~ours:
        may = "read or write" if forbidden == PRIVATE else "write"
        mode = "600" if forbidden == PRIVATE else "go-w"
        raise ConfigError(
            f"others may {may} {what} (mode {stat.S_IMODE(status.st_mode):04o})",
            where=where,
            remedy=f"chmod {mode} {path}",
        )
