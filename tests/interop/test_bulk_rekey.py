"""A gigabyte each way at once, byte for byte, while both sides rekey every 256 KB (issue 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.interop.bulk import GIGABYTE, both_ours, exchange, our_client, our_server
from tests.interop.clients import last_keys
from tests.interop.targets import need
from tests.support.programs import OpenSSH

if TYPE_CHECKING:
    from pathlib import Path

WAYS = {"sshd": our_client, "serve": both_ours}

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.mark.parametrize("kind", WAYS)
def test_a_gigabyte_each_way_while_both_sides_rekey(kind: str, tmp_path: Path) -> None:
    if kind == "sshd":
        need("sshd")
    with WAYS[kind](OpenSSH(tmp_path)) as (port, client, _):
        exchange(port, GIGABYTE)
        said = "\n".join(client.lines)
    # Less often than every 256 KB: what is on its way when an exchange begins still counts.
    assert last_keys(said) > GIGABYTE // 2


def test_stock_ssh_through_serve_while_both_sides_rekey(tmp_path: Path) -> None:
    need("ssh")
    with our_server(OpenSSH(tmp_path)) as (port, server, _):
        exchange(port, GIGABYTE // 10)  # a whole one takes this client 40 s
        said = "\n".join(server.lines)
    assert last_keys(said) > GIGABYTE // 20
