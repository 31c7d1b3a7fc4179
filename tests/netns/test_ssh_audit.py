"""What ssh-audit finds at `gateway serve`, from another host: there the limits of a source hold.

Its test of the rate of connections is part of it, and the penalties of a source pass it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.interop.targets import need
from tests.support.programs import GATEWAY, READY_TIMEOUT_S, make_keys, run_gateway

if TYPE_CHECKING:
    from pathlib import Path

    from netns.lab import Lab

pytestmark = pytest.mark.netns

GOOD, WARNINGS = 0, 2  # ssh-audit's exit status


def audit(lab: Lab, folder: Path, algorithms: str) -> tuple[int, str]:
    """Serve what `gateway init` makes; return ssh-audit's status and all but information."""
    keys, box = make_keys(folder / "keys"), folder / "box"
    run_gateway("init", str(box), "--user", "alice", "--key", f"{keys.user}.pub")
    rsa = (
        need("ssh-keygen"),
        "-q",
        "-t",
        "rsa",
        "-b",
        "3072",
        "-N",
        "",
        "-f",
        str(box / "host_rsa"),
    )
    subprocess.run(rsa, check=True)
    config = box / "gateway.toml"
    text = config.read_text()
    for old, new in (
        ('algorithms = "default"', f'algorithms = "{algorithms}"'),
        ('["host_ed25519"]', '["host_ed25519", "host_rsa"]'),
    ):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    server = lab["server"].start(*GATEWAY, "serve", "-v", "-c", str(config))
    server.wait_for_line(r"listening on 0\.0\.0\.0:2222", READY_TIMEOUT_S)
    command = (sys.executable, "-m", "ssh_audit", "--no-colors", "--level", "warn")
    done = lab["client"].run(*command, "-p", "2222", lab["server"].ipv4())
    assert done.stderr == ""
    return done.returncode, done.stdout.strip()


def test_the_defaults_have_no_failure(two_hosts: Lab, tmp_path: Path) -> None:
    """The only warnings are about curve25519 without a post-quantum half."""
    status, found = audit(two_hosts, tmp_path, "default")
    assert (status, re.findall(r"\[fail\].*", found)) == (WARNINGS, [])
    warned = re.findall(r"\((\w+)\) (\S+) .*\[warn\] (.*)", found)
    assert {what for what, _, _ in warned} == {"kex"}
    assert {why for _, _, why in warned} == {
        "does not provide protection against post-quantum attacks"
    }
    assert found.count("[warn]") == len(warned)
    assert "connection throttling" not in found


def test_strict_has_no_warning(two_hosts: Lab, tmp_path: Path) -> None:
    assert audit(two_hosts, tmp_path, "strict") == (GOOD, "")
