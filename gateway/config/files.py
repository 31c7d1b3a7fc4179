"""Files of keys that the configuration names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gateway.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def read_if_exists(path: Path, keyword: str) -> bytes | None:
    """Return a file's content; None if it does not exist. Anything else is an error, not trust.

    ``keyword`` is the one of ssh_config(5) that names the file.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        if str(path) == os.devnull:
            return None
        raise ConfigError(
            f"the file cannot be read: {error.strerror}",
            where=str(path),
            remedy=f"make it readable, or name another one with -o {keyword}=FILE",
        ) from error
