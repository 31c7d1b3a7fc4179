"""Where the control socket of a `gateway connect` is, for itself and for who looks for it.

With ControlPath it is beside what ssh would call so, since it speaks another protocol than ssh's
and the same configuration is for both. Without, it is in a folder of ours for things that run.
"""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.config.sources import Environment
    from gateway.config.ssh_config import HostConfig

SUFFIX: Final = ".gateway"
RUNTIME_VARIABLE: Final = "XDG_RUNTIME_DIR"


def control_path(config: HostConfig, environment: Environment, pid: int) -> Path:
    """Return where a process listens. Raises `ConfigError` if the folder is not only ours."""
    if config.control_path is not None:
        return config.control_path.with_name(config.control_path.name + SUFFIX)
    folder = _own_folder(environment)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the folder cannot be made ({error.strerror})",
            where=str(folder),
            remedy="make it, or name a control socket with ControlPath",
        ) from error
    _check(folder, environment.uid)
    return folder / f"{_name(config)}.{pid}"


def find_controls(config: HostConfig, environment: Environment) -> list[Path]:
    """Return where those processes may listen that have this host. Raises `ConfigError`."""
    if config.control_path is not None:
        return [control_path(config, environment, 0)]
    folder = _own_folder(environment)
    if not folder.exists():
        return []
    _check(folder, environment.uid)
    return sorted(folder.glob(f"{_name(config)}.*"))


def _name(config: HostConfig) -> str:
    who = f"{config.user}@{config.host_name} {config.port}"
    return hashlib.sha256(who.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _own_folder(environment: Environment) -> Path:
    named = environment.variables.get(RUNTIME_VARIABLE, "") or f"/run/user/{environment.uid}"
    runtime = Path(named)
    is_ours = runtime.is_dir() and runtime.stat().st_uid == environment.uid  # not after su
    return (runtime if is_ours else environment.home / ".cache") / "gateway"


def _check(folder: Path, uid: int) -> None:
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == uid
    if not is_ours or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            "others could connect to what is in this folder",
            where=str(folder),
            remedy="make it yours alone, with chmod 700",
        )
