"""scripts/vmrun where there is no machine to run: it says what is missing, and what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

VMRUN = Path(__file__).resolve().parents[2] / "scripts" / "vmrun"
NO_MACHINE = 125
NEEDED = ("sh", "dirname", "nproc", "cat", "printf")


def vmrun(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PATH": str(path)} if path else {})}
    return subprocess.run(
        [VMRUN, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH without QEMU, of somebody who is not root on x86_64."""
    for name in NEEDED:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    for name, answer in (("id", "1000"), ("uname", "x86_64")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {answer}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_help_names_what_it_takes() -> None:
    done = vmrun("--help")
    assert done.returncode == 0
    for word in ("COMMAND", "--memory", "--cpus", "--virtual-time"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no command"),
        (("--nonsense", "true"), "there is no option --nonsense"),
        (("--memory", "much", "true"), "--memory needs a number"),
        (("--cpus",), "--cpus needs a number"),
    ],
)
def test_a_command_line_that_makes_no_sense(arguments: tuple[str, ...], said: str) -> None:
    done = vmrun(*arguments)
    assert done.returncode == NO_MACHINE
    assert said in done.stderr


def test_without_qemu_and_root_it_names_the_package(bare: Path) -> None:
    done = vmrun("true", path=bare)
    assert done.returncode == NO_MACHINE
    assert "sudo apt-get install --no-install-recommends qemu-system-x86" in done.stderr


def test_another_processor(bare: Path) -> None:
    (bare / "uname").write_text("#!/bin/sh\necho aarch64\n")
    done = vmrun("true", path=bare)
    assert done.returncode == NO_MACHINE
    assert "only on x86_64" in done.stderr
