"""The Vagrantfile is one that Vagrant accepts, with both kinds of acceleration."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def vagrant(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run vagrant on our file, with its own state and nothing of the user's."""
    if shutil.which("vagrant") is None:
        pytest.skip("vagrant is not installed")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VAGRANT_", "LAB_"))}
    environment |= {
        "VAGRANT_CWD": str(ROOT),
        "VAGRANT_HOME": str(folder / "home"),
        "VAGRANT_DOTFILE_PATH": str(folder / "state"),
        "VAGRANT_NO_COLOR": "1",
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }
    return subprocess.run(
        ["vagrant", "--no-tty", *arguments],
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("acceleration", ["kvm", "qemu"])
def test_vagrant_validates_the_file_and_its_provider(tmp_path: Path, acceleration: str) -> None:
    done = vagrant(tmp_path, "validate", LAB_ACCEL=acceleration)
    if "No usable default provider" in done.stderr:
        pytest.skip("neither vagrant-libvirt nor VirtualBox is installed")
    assert done.returncode == 0, done.stdout + done.stderr


def test_vagrant_validates_the_three_machines(tmp_path: Path) -> None:
    done = vagrant(tmp_path, "validate", "--ignore-provider")
    assert done.returncode == 0, done.stdout + done.stderr
    for machine in ("client", "jump", "target"):
        assert f"==> {machine}: " in done.stdout
