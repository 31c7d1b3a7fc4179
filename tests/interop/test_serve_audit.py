"""What the audit log of `gateway serve` says about a stock ssh."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from tests.interop.targets import content, need
from tests.net.test_serve_evidence import configured
from tests.support.programs import (
    GATEWAY,
    USER,
    Endpoint,
    client_options,
    make_keys,
    run_gateway,
    running,
)

if TYPE_CHECKING:
    from pathlib import Path

DATA = content("serve audit", 100_001)


def test_ssh_w_is_written_down_as_who_went_where(tmp_path: Path, echo_port: int) -> None:
    keys = make_keys(tmp_path / "keys")
    path = configured(tmp_path / "box", keys, echo_port)
    with running(*GATEWAY, "serve", "-c", str(path)) as program:
        port = int(program.wait_line(r"listening on 127\.0\.0\.1:(\d+)")[1])
        options = client_options(Endpoint(program, port, keys))
        done = subprocess.run(
            [need("ssh"), *options, "-W", f"127.0.0.1:{echo_port}", f"{USER}@127.0.0.1"],
            input=DATA, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.stdout == DATA, done.stderr
        program.stop()
    audit = str(path.parent / "audit")
    assert run_gateway("audit", "verify", audit).stdout.startswith("good: ")
    shown = run_gateway("audit", "show", "--user", USER, audit).stdout
    where = rf'requested="127\.0\.0\.1 port {echo_port}" dialled="127\.0\.0\.1 port {echo_port}"'
    user = re.escape(USER)
    size = len(DATA)
    assert re.search(rf"auth .*source=127\.0\.0\.1 user={user} .*result=accepted .*SHA256:", shown)
    assert re.search(r"policy\.decision .*rule=usual action=open .*allowed=yes", shown)
    assert re.search(rf"channel\.open .*user={user} channel_class=direct-tcpip {where}", shown)
    assert re.search(rf"channel\.close .*{where} bytes_in={size} bytes_out={size} ", shown)
    assert re.search(rf"conn\.close .*user={user} ", shown)
    everything = run_gateway("audit", "show", audit).stdout
    assert re.search(r'conn\.open .*client_version="?SSH-2\.0-OpenSSH', everything)
