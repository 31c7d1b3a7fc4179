"""`gateway serve` as an ordinary user: what it may, what it needs, and who sees into it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.hops import host_block, run, write_config
from tests.interop.sides import CONNECT
from tests.interop.targets import Target, echo
from tests.support import programs
from tests.support.ordinary import CHANGE, NAME, USER, as_nobody, use_readable_gateway
from tests.support.programs import (
    Endpoint,
    Keys,
    free_port,
    make_keys,
    run_gateway,
    running,
    running_box,
    running_gateway_serve,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

BIND = 1 << 10  # CAP_NET_BIND_SERVICE
LOGIN = '[users.{user}]\nauthorized_keys = "authorized_keys"\n'


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    use_readable_gateway(monkeypatch)


@pytest.fixture
def keys() -> Iterator[Keys]:
    """Keys in a folder that everybody may enter."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        keys = make_keys(folder)
        folder.chmod(0o755)
        keys.authorized.chmod(0o644)
        yield keys
    finally:
        shutil.rmtree(folder)


def config(rules: str, user: str, more: str = "") -> str:
    return f'user = "{NAME}"\n{more}{LOGIN.format(user=user)}{rules}'


def rule(kind: str, to: str) -> str:
    return f'[[rules]]\nallow = "{kind}"\nto = ["{to}"]\n'


def status(pid: int, thread: int = 0) -> dict[str, str]:
    text = Path(f"/proc/{pid}/task/{thread or pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines())


def check_rights(pid: int, capabilities: int) -> None:
    """Each thread is that user alone; the one that works has these capabilities, others none."""
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):  # noqa: PTH208
        found = status(pid, thread)
        assert found["Uid"].split() == [str(USER.pw_uid)] * 4
        assert found["Gid"].split() == [str(USER.pw_gid)] * 4
        assert set(found["Groups"].split()) <= {str(USER.pw_gid)}
        assert found["NoNewPrivs"] == "1"
        for name in ("CapInh", "CapAmb"):
            assert int(found[name], 16) == 0, name
        for name in ("CapPrm", "CapEff"):
            assert int(found[name], 16) in {capabilities, 0 if thread != pid else capabilities}
    assert int(status(pid)["CapBnd"], 16) == capabilities


def connect(box: Endpoint, folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    path = write_config(folder / "ssh_config", host_block("box", box))
    return run(CONNECT, path, *arguments, "box")


@pytest.mark.parametrize(
    ("rules", "capabilities"),
    [
        (rule("open", "127.0.0.1:*") + rule("listen", "127.0.0.1:*"), 0),
        (rule("listen", "127.0.0.1:887"), BIND),
    ],
)
def test_it_keeps_what_its_rules_need(
    rules: str, capabilities: int, keys: Keys, tmp_path: Path
) -> None:
    with running_box(keys, config(rules, "root"), at="127.0.0.1:897") as box:
        check_rights(box.program.pid, capabilities)


def test_it_serves_reloads_and_writes_its_log(keys: Keys, tmp_path: Path) -> None:
    audit = keys.folder / "audit"
    audit.mkdir(mode=0o700)
    os.chown(audit, USER.pw_uid, USER.pw_gid)
    text = config(rule("open", "127.0.0.1:*"), "root", 'audit = "audit"\n')
    for _ in range(2):  # the second one goes on with the log of the first
        with Target(echo) as target, running_box(keys, text) as box:
            to = f"127.0.0.1:{target.port}"
            forwarded = connect(box, tmp_path, "-W", to)
            assert forwarded.returncode == 0, forwarded.stderr
            path = keys.folder / "gateway.toml"
            narrower = path.read_text().replace("127.0.0.1:*", "127.0.0.1:1")
            path.write_text(narrower.replace("['host_key']", "['host_key', 'another']"))
            box.program.signal(signal.SIGHUP)
            box.program.wait_line(r"host_keys\[1\]: a key more, which is read after a restart")
            box.program.wait_line("read again")
            assert b"denied" in connect(box, tmp_path, "-W", to).stderr
            check_rights(box.program.pid, 0)
            box.program.signal(signal.SIGTERM)
            assert box.program.wait() == 0
    files = list(audit.iterdir())
    assert len(files) >= 2
    assert {path.stat().st_uid for path in files} == {USER.pw_uid}
    assert run_gateway("audit", "verify", str(audit)).returncode == 0


def test_flags_name_a_user_too(keys: Keys) -> None:
    with running_gateway_serve(keys, "--user", NAME, "--permit-listen", "localhost:80") as box:
        check_rights(box.program.pid, BIND)


def serve(keys: Keys, text: str) -> str:
    path = keys.folder / "gateway.toml"
    path.write_text(f'listen = ["127.0.0.1:{free_port()}"]\nhost_keys = ["host_key"]\n{text}')
    result = run_gateway("serve", "-c", str(path))
    assert result.returncode == 255
    return result.stderr


def test_what_it_could_not_do_later_is_told_at_the_start(keys: Keys) -> None:
    text = config(rule("open", "*:22"), "root")
    assert "has all rights: name an ordinary user" in serve(keys, text.replace(NAME, "root"))
    assert "this machine has no user no-such: make one" in serve(
        keys, text.replace(NAME, "no-such")
    )
    said = serve(keys, 'audit = "audit"\n' + text)  # root's folder: it may not make one there
    assert "the audit log cannot be written: Permission denied" in said
    said = serve(keys, f'{text}[tunnel]\npool = ["10.213.0.0/24"]\n')
    assert f"leases.json: {NAME} may not write the file of leases" in said
    keys.authorized.chmod(0o600)
    said = serve(keys, text)
    assert "authorized_keys: " in said
    assert "cannot be read: Permission denied" in said
    assert f"at SIGHUP {NAME} has to read all of it but the host keys" in said


def test_a_port_that_is_taken_leaves_no_file_of_roots(keys: Keys) -> None:
    audit = keys.folder / "audit"
    audit.mkdir(mode=0o700)
    os.chown(audit, USER.pw_uid, USER.pw_gid)
    text = config(rule("open", "*:22"), "root", 'audit = "audit"\n')
    with Target(echo) as taken:
        path = keys.folder / "gateway.toml"
        path.write_text(f'listen = ["127.0.0.1:{taken.port}"]\nhost_keys = ["host_key"]\n{text}')
        result = run_gateway("serve", "-c", str(path))
    assert "another program uses this port" in result.stderr
    assert {path.stat().st_uid for path in audit.iterdir()} == {USER.pw_uid}


# ---- who sees into it ----------------------------------------------------------------------------


def check_hidden(pid: int) -> None:
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"(?m)^Max core file size +0 ", limits)
    for name in ("environ", "maps", "mem"):
        result = as_nobody("cat", f"/proc/{pid}/{name}")
        assert "Permission denied" in result.stderr, name


def test_nobody_else_of_its_user_sees_into_the_server(keys: Keys) -> None:
    with running(*CHANGE, "sh", "-c", "echo changed; exec sleep 60") as open_one:
        open_one.wait_line("changed")
        assert not as_nobody("cat", f"/proc/{open_one.pid}/environ").returncode, "the control"
    with running_gateway_serve(keys, "--user", NAME) as box:
        check_hidden(box.program.pid)


def test_nor_into_the_client(keys: Keys) -> None:
    os.chown(keys.user, USER.pw_uid, USER.pw_gid)
    with (
        running_gateway_serve(keys) as box,
        running(
            *CHANGE, *programs.GATEWAY, "connect", "-F", "none", "-N", "-D", str(free_port()),
            "-p", str(box.port),             "-i", str(keys.user), "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=none", "root@127.0.0.1", HOME=str(keys.folder),
        ) as client,
    ):  # fmt: skip
        client.wait_line("SOCKS")
        check_hidden(client.pid)
