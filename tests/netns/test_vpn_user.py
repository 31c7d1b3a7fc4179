"""A server for VPNs that goes on as an ordinary user: its guardian stays root's and undoes all."""

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
from tests.support.ordinary import NAME, USER, use_readable_gateway
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_subnet_answers_and_all_is_undone(number: int, lab: Lab, folder: Path) -> None:
    before = lab["server"].snapshot()
    make_keys = vpn.make_keys

    def readable_keys(path: Path) -> vpn.Keys:
        keys = make_keys(path)
        keys.authorized.chmod(0o644)
        return keys

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
