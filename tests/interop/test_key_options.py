"""Options of authorized_keys: who gets in, and what may be forwarded, at both sshd and by us.

One sshd has a key for every case. What it does is compared with what our reading of the same lines
says, case by case.
"""

from __future__ import annotations

import hashlib
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from gateway.policy.key_limits import limits_of
from gateway.ssh.authorized_keys import parse_authorized_keys
from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey
from tests.support.programs import client_options, free_port, make_keys, running, running_sshd

HERE = "127.0.0.1"
AT_ONCE = 4

# The lines of a key, with {} for it, and whether it is let in from HERE.
LOGINS = {
    "{}": True,
    'from="127.0.0.1" {}': True,
    'from="127.0.0.0/8" {}': True,
    'from="127.*" {}': True,
    'from="*.*.*.?,10.0.0.1" {}': True,
    'from="10.0.0.0/8,127.0.0.1/32" {}': True,
    'from="10.0.0.0/8" {}': False,
    'from="::/0" {}': False,
    'from="*,!127.0.0.0/8" {}': False,
    'from="!127.0.0.1,*" {}': False,
    'from="!127.0.?.?,127.0.0.0/8" {}': False,
    'from="!10.0.0.0/8" {}': False,
    'from="!10.0.0.0/8,*" {}': True,
    'from="localhost" {}': False,  # UseDNS no
    'from="" {}': False,
    'from="127.0.0.1," {}': False,
    'from="10.0.0.1/8,*" {}': False,
    'from="127.0.0.1",from="127.0.0.1" {}': False,
    'expiry-time="20200101" {}': False,
    'expiry-time="20990101" {}': True,
    'expiry-time="209901012359" {}': True,
    'expiry-time="20990101235959Z" {}': True,
    'expiry-time="202001010000Z" {}': False,
    'expiry-time="20990101",expiry-time="20200101" {}': False,
    'expiry-time="20200101",expiry-time="20990101" {}': False,
    'expiry-time="2099" {}': False,
    'expiry-time="99999999" {}': False,
    'from="10.0.0.0/8" {}\nno-pty {}': True,
    'expiry-time="20200101" {}\nfrom="127.0.0.1" {}': True,
    'expiry-time="20200101" {}\nfrom="10.0.0.1" {}': False,
    'tunnel="x" {}': False,
    'permitopen="a" {}': False,
    'permitlisten="a" {}': False,
}

# Options, and whether HERE may then be opened at the port {port}.
OPENS = {
    "no-pty": True,
    'permitopen="127.0.0.1:{port}"': True,
    'permitopen="127.0.0.1:*"': True,
    'permitopen="*:{port}"': True,
    'permitopen="*:*"': True,
    'permitopen="a:1",permitopen="127.0.0.1:{port}"': True,
    'permitopen="127.0.0.1:1"': False,
    'permitopen="localhost:{port}"': False,
    'permitopen="127.0.0.*:{port}"': False,
    'permitlisten="1"': True,
    "restrict": False,
    "no-port-forwarding": False,
    'restrict,permitopen="*:*"': False,
    'restrict,port-forwarding,permitopen="127.0.0.1:{port}"': True,
}

# Options, and whether there may be a listener on "localhost" at the port {port}.
LISTENS = {
    "no-pty": True,
    'permitlisten="{port}"': True,
    'permitlisten="localhost:{port}"': True,
    'permitlisten="*:{port}"': True,
    'permitlisten="localhost:*"': True,
    'permitlisten="1",permitlisten="{port}"': True,
    'permitlisten="1"': False,
    'permitlisten="localhost:1"': False,
    'permitlisten="10.0.0.1:{port}"': False,
    'permitopen="a:1"': True,
    "restrict": False,
    'no-port-forwarding,permitlisten="{port}"': False,
}


class Cases:
    """An sshd and its keys, one for each case."""

    def __init__(self, openssh, server, lines: dict[str, str]) -> None:
        self.openssh, self.server, self.lines = openssh, server, lines

    def ours(self, case: str):
        """Return the line by which we let the key of a case in, or None."""
        keys = parse_authorized_keys(self.lines[case], "authorized_keys")
        user = PrivateKey.generate(_seed(case)).public
        return keys.find(user, HERE, time.time())

    def ssh(self, case: str, *options: str) -> list[str]:
        """Return a command that logs in with the key of a case."""
        shared = client_options(self.openssh.endpoint(self.server))
        shared[shared.index("-i") + 1] = str(self.openssh.inside(self.path(case)))
        return self.openssh.command(
            "ssh", *shared, "-o", "BatchMode=yes", *options, "root@127.0.0.1"
        )

    def path(self, case: str):
        """Return the private key file of a case."""
        return self.server.keys.folder / f"id_{list(self.lines).index(case)}"


def _seed(case: str):
    return lambda length: hashlib.sha256(case.encode()).digest()[:length]


@pytest.fixture
def cases(openssh, request, echo_port):
    """Start an sshd for the cases of one test, with the port that they are about."""
    table, port = request.param, echo_port if request.param is OPENS else free_port()
    keys = make_keys(openssh.folder / f"keys{len(table)}")
    lines = {}
    for case in table:
        key = PrivateKey.generate(_seed(case))
        text = case.replace("{port}", str(port))
        lines[case] = (text if table is LOGINS else f"{text} {{}}").replace(
            "{}", key.public.openssh_text()
        )
    keys.authorized.write_text("\n".join(lines.values()) + "\n")
    with running_sshd(keys, openssh=openssh) as server:
        found = Cases(openssh, server, lines)
        for case in table:
            found.path(case).touch(mode=0o600)
            found.path(case).write_bytes(encode_private_key_file(PrivateKey.generate(_seed(case))))
        yield found, port


def all_of(table, ask):
    """Ask about every case, a few at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(table, pool.map(ask, table), strict=True))


@pytest.mark.parametrize("cases", [LOGINS], indirect=True)
def test_who_is_let_in(cases, echo_port):
    found, _ = cases
    assert {case: found.ours(case) is not None for case in LOGINS} == LOGINS

    def let_in(case):
        done = subprocess.run(
            found.ssh(case, "-W", f"{HERE}:{echo_port}"),
            input=b"hello", capture_output=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.stdout == b"hello" or b"Permission denied (publickey)" in done.stderr
        return bool(done.stdout)

    assert all_of(LOGINS, let_in) == LOGINS


@pytest.mark.parametrize("cases", [OPENS], indirect=True)
def test_what_may_be_opened(cases):
    found, port = cases
    limits = {case: limits_of(found.ours(case)) for case in OPENS}
    ours = {case: limits[case].decide_open(HERE, port, ip_address(HERE)) for case in OPENS}
    assert {case: verdict.allowed for case, verdict in ours.items()} == OPENS

    def opened(case):
        done = subprocess.run(
            found.ssh(case, "-W", f"{HERE}:{port}"),
            input=b"hello", capture_output=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.stdout == b"hello" or b"administratively prohibited" in done.stderr, done.stderr
        return bool(done.stdout)

    assert all_of(OPENS, opened) == OPENS


@pytest.mark.parametrize("cases", [LISTENS], indirect=True)
def test_what_may_be_listened_on(cases):
    found, port = cases
    limits = {case: limits_of(found.ours(case)) for case in LISTENS}
    ours = {case: limits[case].decide_listen("localhost", port) for case in LISTENS}
    assert {case: verdict.allowed for case, verdict in ours.items()} == LISTENS

    theirs = {}
    for case in LISTENS:  # one after the other: it is always the same port
        command = found.ssh(case, "-v", "-N", "-R", f"{port}:{HERE}:1")
        with running(*command) as program:
            match = program.wait_line(r"remote forward (success|failure) for: listen")
            theirs[case] = match[1] == "success"
    assert theirs == LISTENS
