"""`gateway serve` from flags: tun devices are for nobody, or with --permit-tunnel for everybody."""

from __future__ import annotations

import argparse
import os
import stat
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING

import pytest

from gateway.cli import serve_flags
from gateway.cli.serve_flags import add_flags, config_from_flags
from gateway.config.checked_files import FILE_LIMIT, UNCHANGED, read_checked_file
from gateway.config.server_config import TunnelConfig
from gateway.errors import ConfigError
from gateway.policy.leases import DEFAULT_POOL, Subnet
from gateway.policy.rules import Subject
from gateway.ssh.keys import PrivateKey

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.server_config import ServerConfig

ALICE = Subject("alice", frozenset(), "", frozenset(), "192.0.2.1")


def config(folder: Path, *flags: str) -> ServerConfig:
    key = PrivateKey.generate(lambda length: b"k" * length)
    (folder / "keys").write_text(key.public.openssh_text())
    parser = argparse.ArgumentParser()
    add_flags(parser)
    always = ["--host-key", str(folder / "host"), "--authorized-keys", str(folder / "keys")]
    return config_from_flags(parser.parse_args([*always, *flags]))


def test_without_the_flag_there_is_no_device(tmp_path: Path) -> None:
    found = config(tmp_path)
    assert found.tunnel is None
    assert not any(found.policy.decide_tun(ALICE, kind).allowed for kind in ("tun", "tap"))


@pytest.mark.parametrize("more", [(), ("--permit-open", "db:5432")])
def test_permit_tunnel(tmp_path: Path, more: tuple[str, ...]) -> None:
    found = config(tmp_path, "--permit-tunnel", *more)
    assert found.tunnel == TunnelConfig(DEFAULT_POOL)
    for kind in ("tun", "tap"):
        verdict = found.policy.decide_tun(ALICE, kind)
        assert (verdict.allowed, verdict.rule_id) == (True, "--permit-tunnel")
    asks = found.policy.decide_tun_packet
    assert asks(ALICE, ip_address("10.20.0.5")).allowed
    assert not asks(ALICE, ip_address("127.0.0.1")).allowed
    assert found.policy.allowed_networks(ALICE) == ()
    opens = found.policy.decide_open(ALICE, "x", 80, ip_address("10.20.0.5"))
    assert opens.allowed is (not more), "the flag is about nothing else"


def test_the_pool_is_no_subnet_of_this_machine(tmp_path: Path, monkeypatch) -> None:
    subnet = Subnet("eth0", ip_interface("10.213.0.7/24"))
    monkeypatch.setattr(serve_flags, "own_subnets", lambda: (subnet,))
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, "--permit-tunnel")
    assert str(caught.value) == (
        "--permit-tunnel: 10.213.0.0/24 overlaps 10.213.0.0/24, the subnet of eth0: "
        "use -c FILE with a pool of your own under [tunnel]"
    )
    assert config(tmp_path).tunnel is None


def test_permit_listen(tmp_path: Path) -> None:
    asks = config(tmp_path).policy.decide_listen
    assert not asks(ALICE, "localhost", 8080).allowed
    asks = config(
        tmp_path, "--permit-listen", "localhost:8080", "--permit-listen", "*:9000"
    ).policy.decide_listen
    wanted = {("localhost", 8080): True, ("", 8080): False, ("localhost", 8081): False,
              ("", 9000): True, ("192.0.2.1", 9000): True}  # fmt: skip
    assert {where: asks(ALICE, *where).allowed for where in wanted} == wanted
    with pytest.raises(ConfigError, match="--permit-listen: 8080 is not of the form HOST:PORT"):
        config(tmp_path, "--permit-listen", "8080")


# ---- the file of keys: who may change it decides who logs in (T86) -------------------------------


def with_keys_file(folder: Path, path: Path) -> ServerConfig:
    config(folder)
    parser = argparse.ArgumentParser()
    add_flags(parser)
    host = ["--host-key", str(folder / "host")]
    return config_from_flags(parser.parse_args([*host, "--authorized-keys", str(path)]))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_keys_that_others_may_change(tmp_path: Path, mode: int) -> None:
    config(tmp_path)
    path = tmp_path / "keys"
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"others may write the list of keys .mode 0{mode:o}"):
        with_keys_file(tmp_path, path)
    path.chmod(0o644)
    assert with_keys_file(tmp_path, path).user("anybody")


def test_keys_that_others_may_replace(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    config(tmp_path)
    (tmp_path / "keys").rename(folder / "keys")
    with pytest.raises(ConfigError, match="others may replace the list of keys"):
        with_keys_file(tmp_path, folder / "keys")


@pytest.mark.parametrize("what", ["a FIFO", "a folder", "a device", "a link to a FIFO"])
def test_keys_that_are_no_file_are_not_waited_for(tmp_path: Path, what: str) -> None:
    path = tmp_path / "what"
    match what:
        case "a folder":
            path.mkdir()
        case "a device":
            path.symlink_to("/dev/zero")
        case "a FIFO":
            os.mkfifo(path, 0o600)
        case _:
            os.mkfifo(tmp_path / "fifo", 0o600)
            path.symlink_to(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="the list of keys is not a regular file"):
        with_keys_file(tmp_path, path)


def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path, monkeypatch) -> None:
    """What was looked at is what is read: another file at its place is neither."""
    config(tmp_path)
    path, evil = tmp_path / "keys", tmp_path / "evil"
    stranger = PrivateKey.generate(lambda length: b"e" * length).public
    evil.write_text(f"{stranger.openssh_text()}\n")
    evil.chmod(0o666)
    status = os.fstat

    def replace(descriptor: int) -> os.stat_result:
        found = status(descriptor)
        if stat.S_ISREG(found.st_mode) and evil.exists():
            evil.rename(path)
        return found

    expected = path.read_text()
    monkeypatch.setattr("gateway.config.checked_files.os.fstat", replace)
    content = read_checked_file(path, UNCHANGED, FILE_LIMIT, "the list of keys")
    assert content.decode() == expected
    with pytest.raises(ConfigError, match="others may write"):
        read_checked_file(path, UNCHANGED, FILE_LIMIT, "the list of keys")
