"""A server for VPNs as an ordinary user, from the start or later: its guardian undoes all."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns.state import difference
from tests.support import vpn
from tests.support.ordinary import CHANGE, NAME, USER, use_readable_gateway
from tests.support.programs import eventually
from tests.support.vpn import guardian_of, is_gone, running_site, with_tun_node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.lab import Lab

pytestmark = pytest.mark.netns

CAP_NET_ADMIN = 1 << 12
EXTRA = """\
[[rules]]
allow = "tun"
to = ["tun", "10.20.0.0/16"]
[tunnel]
pool = ["10.213.0.0/24"]
leases = "state/leases.json"
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody may enter, with one inside that is the user's."""
    use_readable_gateway(monkeypatch, vpn)
    monkeypatch.setattr(vpn, "GATEWAY", with_tun_node("666", *vpn.GATEWAY))
    form = vpn.SERVE_CONFIG.replace("audit = ", f'user = "{NAME}"\naudit = ')
    monkeypatch.setattr(vpn, "SERVE_CONFIG", form)
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name in ("state", "audit"):
        (folder / name).mkdir(mode=0o700)
        os.chown(folder / name, USER.pw_uid, USER.pw_gid)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def lab(routed: Lab) -> Lab:
    routed["target"].start_echo()
    return routed


make_keys = vpn.make_keys


def readable_keys(path: Path) -> vpn.Keys:
    """Keys of which that user may read who logs in."""
    keys = make_keys(path)
    keys.authorized.chmod(0o644)
    return keys


def keys_of_roots_for_the_user(path: Path) -> vpn.Keys:
    """The same, and the host key as systemd's LoadCredential= would hand it to a service."""
    keys = readable_keys(path)
    os.chown(keys.host, 0, USER.pw_gid)
    keys.host.chmod(0o440)
    return keys


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_subnet_answers_and_all_is_undone(number: int, lab: Lab, folder: Path) -> None:
    before = lab["server"].snapshot()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vpn, "make_keys", readable_keys)
        with running_site("serve", lab, folder, EXTRA) as site:
            server = site.process.process
            for thread in Path(f"/proc/{server.pid}/task").iterdir():
                status = (thread / "status").read_text()
                assert f"\nUid:\t{USER.pw_uid}\t" in status
                found = int(re.search(r"\nCapEff:\t(\w+)\n", status)[1], 16)
                # Threads of before the change of user have nothing, later ones what the first has.
                assert found == CAP_NET_ADMIN or (found == 0 and thread.name != str(server.pid))
                assert "\nNoNewPrivs:\t1\n" in status
            guardian = guardian_of(site.process)
            assert "\nUid:\t0\t" in Path(f"/proc/{guardian}/status").read_text()
            for _ in range(2):
                with site.vpn("--vpn", "10.20.0.0/24"):
                    assert lab["client"].ping("10.20.0.2", 3).received == 3
            server.send_signal(number)
            server.wait(60)
            eventually(lambda: is_gone(guardian), "its end")
            assert difference(before, lab["server"].snapshot()) == ""
    if number == signal.SIGTERM:
        leases = folder / "state" / "leases.json"
        assert json.loads(leases.read_text()) == {"assignments": [["root", 0, 2]]}
        assert leases.stat().st_uid == USER.pw_uid


def test_a_server_that_never_was_root(lab: Lab, folder: Path) -> None:
    """As the unit of systemd starts it: with one ambient capability, which the guardian has too."""
    before = lab["server"].snapshot()
    (folder / "run").mkdir(mode=0o700)
    os.chown(folder / "run", USER.pw_uid, USER.pw_gid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vpn, "make_keys", keys_of_roots_for_the_user)
        only = "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin"
        change = ["setpriv", *CHANGE[1:-1], "--no-new-privs", *only, "--ambient-caps=+net_admin"]
        roots = vpn.GATEWAY
        prefix = with_tun_node("666", *change, "env", f"GATEWAY_RUN_DIR={folder}/run")
        patch.setattr(vpn, "GATEWAY", [*prefix, *roots[len(with_tun_node("666")) :]])
        with running_site("serve", lab, folder, EXTRA) as site:
            patch.setattr(vpn, "GATEWAY", roots)
            server = site.process.process
            guardian = guardian_of(site.process)
            for pid in (server.pid, guardian):
                status = Path(f"/proc/{pid}/status").read_text()
                assert f"\nUid:\t{USER.pw_uid}\t" in status
                assert int(re.search(r"\nCapEff:\t(\w+)\n", status)[1], 16) == CAP_NET_ADMIN
            with site.vpn("--vpn", "10.20.0.0/24"):
                assert lab["client"].ping("10.20.0.2", 3).received == 3
            server.kill()
            server.wait(20)
            eventually(lambda: is_gone(guardian), "its end")
            assert difference(before, lab["server"].snapshot()) == ""
            assert not list((folder / "run").glob("*.journal"))
