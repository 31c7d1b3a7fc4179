"""Every command of the bench runs to its end: with sizes that say nothing about speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("sshd"),
    pytest.mark.alone,
]

COMMANDS = {
    "socks": ["--size", "1"],
    "forward": ["--size", "1"],
    "path": ["--seconds", "1", "--part", "long put", "--part", "wire get", "--only", "→ serve"],
    "echo": ["--echoes", "5", "--connects", "2", "--starts", "1"],
    "many": [
        "--seconds",
        "1",
        "--part",
        "fair put",
        "--part",
        "slow fair get",
        "--only",
        "→ serve",
    ],
    "many ": [
        *("--part", "streams", "--part", "stop", "--part", "slow"),
        *("--streams", "5", "--size", "5", "--pause", "1"),
        *("--readers", "3", "--slow", "1"),
    ],
    "serve": [
        *("--logins", "1", "--links", "3", "--streams", "2", "--seconds", "1", "--opens", "2000"),
    ],
}


def run_bench(name, *options):
    return subprocess.run(
        [sys.executable, "-m", "bench", name.strip(), "--rounds", "1", *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_measures_ours_and_ssh_and_judges(name):
    done = run_bench(name, "--json", *COMMANDS[name])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bars"]
    cases = {case for figures in found["figures"].values() for case in figures}
    assert any("serve" in case for case in cases)
    assert any(case.startswith(("ssh -", "sshd")) for case in cases)


def test_a_table_shows_another_tree_and_check_fails_on_a_miss():
    """Nobody starts in no time: a budget of nothing is what is missed for sure."""
    options = ("--part", "start", "--starts", "1", "--tree", str(ROOT), "--only", "→ sshd")
    done = run_bench("echo", "--check", *options)
    assert f"connect → sshd [{ROOT.name}]" in done.stdout
    assert done.returncode == (1 if "missed" in done.stdout else 0), done.stderr


def test_floods_are_measured_and_judged():
    """They have no peer: what is looked at is the server beside itself at rest."""
    options = ("--part", "floods", "--only", "KEXINIT twice", "--seconds", "1")
    done = run_bench("floods", "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {bar["measure"] for bar in found["bars"]} == {
        "left over", "+MB at most", "echo p99 ms, flood"
    }  # fmt: skip
    assert found["figures"]["links"]["KEXINIT twice"][0] > 1
    assert found["figures"]["left over"] == {"KEXINIT twice": [0]}
