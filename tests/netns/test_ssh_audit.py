"""What ssh-audit finds at `gateway serve`, from another host: there the limits of a source hold.

Its test of the rate of connections is part of it, and the penalties of a source pass it. `gateway
connect` is audited too. `scripts/soak dheat` attacks for longer.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from ssh_audit.builtin_policies import BUILTIN_POLICIES

from tests.interop.targets import need
from tests.support.audited import SAFE_RATE, attacked, told
from tests.support.programs import GATEWAY, READY_TIMEOUT_S, eventually, make_keys, run_gateway

if TYPE_CHECKING:
    from pathlib import Path

    from netns.lab import Lab

pytestmark = pytest.mark.netns

GOOD, WARNINGS, FAILURES = 0, 2, 3  # ssh-audit's exit status
SSH_AUDIT = (sys.executable, "-m", "ssh_audit", "--no-colors")
ATTACK_S = 6.0  # ssh-audit has no verdict before 5
POLICY = "Hardened OpenSSH Server v10.4 (version 1)"


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
    done = lab["client"].run(*SSH_AUDIT, "--level", "warn", "-p", "2222", lab["server"].ipv4())
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
    assert "properly supports the strict key exchange method" in found


def hardened() -> str:
    """Return ssh-audit's own policy, of whose algorithms a server may have fewer.

    Not so the marker of strict key exchange. The keys' sizes are left out: how many bits an RSA key
    has is decided by who makes it.
    """
    known = BUILTIN_POLICIES[POLICY]
    lists = {"host keys": "host_keys", "key exchanges": "kex", "ciphers": "ciphers", "macs": "macs"}
    lines = [f"{name} = {', '.join(known[key])}" for name, key in lists.items()]
    start = ('name = "hardened"', "version = 1", "allow_algorithm_subset_and_reordering = true")
    return "\n".join((*start, *lines, ""))


def test_strict_has_no_warning(two_hosts: Lab, tmp_path: Path) -> None:
    """T23. The policy is looked at from an address that the first audit has not used up."""
    assert audit(two_hosts, tmp_path, "strict") == (GOOD, "")
    policy = tmp_path / "policy"
    policy.write_text(hardened())
    where = ("-p", "2222", two_hosts["server"].ipv6())
    done = two_hosts["client"].run(*SSH_AUDIT, "-P", str(policy), *where)
    assert (done.returncode, "Passed" in done.stdout) == (GOOD, True), done.stdout


# ---- the client ----------------------------------------------------------------------------------


def audit_client(lab: Lab, folder: Path, *options: str) -> tuple[int, str]:
    """Have `gateway connect` audited; return ssh-audit's status and what it says."""
    auditor = lab["server"].start(*SSH_AUDIT, "--client-audit", "-p", "2222")
    eventually(lambda: ":2222" in lab["server"].run("ss", "-Hltn").stdout, "ssh-audit listens", 30)
    keys = make_keys(folder)
    known = ("-F", "none", "-i", str(keys.user), "-o", f"UserKnownHostsFile={keys.known_hosts}")
    where = ("-p", "2222", f"alice@{lab['server'].ipv4()}")
    done = lab["client"].run(*GATEWAY, "connect", "-N", *known, *options, *where)
    assert done.returncode == 255  # it is no server
    return auditor.process.wait(READY_TIMEOUT_S), "\n".join(auditor.lines())


def test_our_client_is_strict_and_fails_only_for_what_ssh_offers(
    two_hosts: Lab, tmp_path: Path
) -> None:
    """The curves of NIST, which are ssh's defaults too: servers with no other key would be lost."""
    status, found = audit_client(two_hosts, tmp_path)
    failed = re.findall(r"^\(\w+\) (\S+) +-- \[fail\] (.*)", found, re.MULTILINE)
    assert status == FAILURES
    assert all("nistp" in name or "ecdsa" in name for name, _ in failed), failed
    assert found.count("[fail]") == len(failed)
    assert "kex-strict-c-v00@openssh.com" in found
    assert "properly supports the strict key exchange method" in found


def test_our_client_without_those_curves_has_no_failure(two_hosts: Lab, tmp_path: Path) -> None:
    without = ("-o", "KexAlgorithms=-ecdh-*", "-o", "HostKeyAlgorithms=-*ecdsa*")
    status, found = audit_client(two_hosts, tmp_path, *without)
    assert (status, "[fail]" in found) == (WARNINGS, False)


# ---- attacks -------------------------------------------------------------------------------------


@pytest.mark.alone
def test_others_log_in_and_work_during_dheat(two_hosts: Lab, tmp_path: Path) -> None:
    """T14. Some who begin key exchanges as fast as they can are refused before most of them."""
    with attacked(two_hosts, tmp_path / "keys") as box:
        outcome = box.attack("--dheat", "4", ATTACK_S)
    print(told(outcome))  # noqa: T201 - what was measured, for -rA
    assert outcome.served_per_s < SAFE_RATE
    assert "is using rate limiting" in outcome.verdict
    assert outcome.logins_s
    assert outcome.echoes_s
