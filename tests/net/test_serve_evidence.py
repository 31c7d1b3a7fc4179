"""What `gateway serve` writes into its audit log: who went where, and when it cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import signal
import socket
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
import trio
import trio.testing

from gateway import events
from gateway.audit.chain import verify
from gateway.audit.records import decode
from gateway.audit.store import INITIAL_KEY_FILE, KEY_FILE, Store, log_files, read_key
from gateway.audit.writer import FLUSH_INTERVAL_S, REPEATS, AuditLog
from gateway.cli.serve_audit import CANNOT_BE_WRITTEN
from gateway.errors import ChannelOpenError, ConnectionLost
from gateway.policy.limits import Limits
from gateway.policy.rules import Verdict
from gateway.serving import opens
from gateway.serving.evidence import Evidence, Facts
from gateway.ssh.messages import DirectStreamlocal, DirectTcpip
from gateway.ssh.numbers import OpenFailure
from tests.net.test_serve_listeners import connect, is_reset, listening
from tests.net.test_serve_listeners import opened as forwarded
from tests.net.test_serve_sessions import session
from tests.support.memory import read_all, send_all
from tests.support.programs import (
    GATEWAY,
    USER,
    Endpoint,
    free_port,
    make_keys,
    run_gateway,
    running,
    running_connect,
)
from tests.support.serving import (
    ADDRESS,
    ALICE_KEY,
    BOB_KEY,
    TestRules,
    make_options,
    running_box,
)

FORBIDDEN = 22
FACTS = Facts("0.1.0", 4242, ("SHA256:host",), "0" * 64)


class Disk(Store):
    """A store whose disk may be full."""

    is_full = False

    def write(self, data):
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@dataclass
class Rules(TestRules):
    """Everything but one port."""

    __test__ = False

    def decide_open(self, subject, host, port, address):
        if port == FORBIDDEN:
            return Verdict(False, "no-ssh", "denied: rule no-ssh forbids it")
        return super().decide_open(subject, host, port, address)


@asynccontextmanager
async def audited_box(folder, **options):
    """Run a server with a log; at the end the log is closed, and good."""
    disk = Disk(folder)
    log = AuditLog(disk)
    evidence = Evidence(log, FACTS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        async with running_box(
            make_options(policy=Rules(), **options),
            evidence.report,
            lambda: "" if log.accepts_new else CANNOT_BE_WRITTEN,
        ) as box:
            box.disk, box.log = disk, log
            yield box
        evidence.stopped("SIGTERM", 1.0, 0)
        nursery.cancel_scope.cancel()
    assert not evidence._links
    assert ids(folder, "channel.open") == ids(folder, "channel.close")
    assert ids(folder, "conn.open") == ids(folder, "conn.close")
    files = [(path.name, path.read_bytes().splitlines(keepends=True)) for path in log_files(folder)]
    key = read_key(folder / INITIAL_KEY_FILE)
    report = verify(files, key, sealed=read_key(folder / KEY_FILE).epoch)
    assert report.ok, report
    assert report.unsealed == 0


def ids(folder, kind):
    return sorted((r["conn_id"], r.get("channel_id", 0)) for r in records(folder, kind))


def records(folder, *kinds):
    lines = [line for path in log_files(folder) for line in path.read_bytes().splitlines()]
    found = [decode(line) for line in lines]
    return [fields for fields in found if not kinds or fields["kind"] in kinds]


@pytest.fixture
async def echo_port(nursery):
    """A target that sends back what it gets."""

    async def echo(stream):
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, echo, listeners)
    return listeners[0].socket.getsockname()[1]


# ---- one to one ----------------------------------------------------------------------------------


class Script:
    """One client that opens channels of every class; ``wanted`` is what the log is to say."""

    def __init__(self, client, port, echo_port, seed):
        self.client, self.port, self.echo_port = client, port, echo_port
        self.dice = random.Random(seed)
        self.closed_port = free_port()
        self.wanted = Counter()

    async def direct(self):
        data = self.dice.randbytes(self.dice.randrange(1, 3000))
        channel = await self.client.open("127.0.0.1", self.echo_port)
        await send_all(channel, data)
        assert await read_all(channel, len(data)) == data
        channel.close()
        what = f"127.0.0.1 port {self.echo_port}"
        self.wanted["channel.close", "direct-tcpip", what, len(data), len(data)] += 1

    async def refused(self):
        with pytest.raises(ChannelOpenError, match="no-ssh"):
            await self.client.open("127.0.0.1", FORBIDDEN)
        self.wanted["policy.decision", "127.0.0.1 port 22 (127.0.0.1)", "no-ssh"] += 1

    async def failing(self):
        with pytest.raises(ChannelOpenError):
            await self.client.open("127.0.0.1", self.closed_port)
        self.wanted["channel.fail", "direct-tcpip", f"127.0.0.1 port {self.closed_port}"] += 1

    async def session(self):
        shell = await session(self.client)
        shell.ask("exec", b"\0\0\0\1x")
        await shell.ended.wait()
        self.wanted["channel.close", "session", "session", 0, len(shell.errors)] += 1
        shell.port.close()

    async def remote(self):
        up, down = self.dice.randbytes(self.dice.randrange(1, 3000)), self.dice.randbytes(10)
        count = len(self.client.opened)
        async with await connect(self.port) as stream:
            await stream.send_all(up)
            _, channel = await forwarded(self.client, count + 1)
            assert await read_all(channel, len(up)) == up
            await send_all(channel, down)
            assert await stream.receive_some() == down
            channel.close()
        what = f"localhost port {self.port}"
        self.wanted["channel.close", "forwarded-tcpip", what, len(down), len(up)] += 1

    async def unknown(self):
        with pytest.raises(ChannelOpenError, match="unknown channel type"):
            await self.client.link.open_channel("x11", b"")
        self.wanted["policy.decision", "x11", ""] += 1

    async def run(self):
        for _ in range(20):
            await self.refused()
            await self.failing()
            await self.session()
            await self.remote()
            await self.direct()
        for _ in range(20):
            await self.unknown()
            for _ in range(4):
                await self.direct()


async def test_1000_channels_of_every_class_one_to_one(tmp_path, echo_port):
    folder = tmp_path / "audit"
    limits = Limits(opens_per_second_per_user=5000)
    wanted = Counter()
    async with audited_box(folder, limits=limits) as box:
        scripts = []
        for number in range(5):
            client = await box.log_in()
            scripts.append(Script(client, await listening(box, client), echo_port, number))
        async with trio.open_nursery() as nursery:
            for script in scripts:
                nursery.start_soon(script.run)
        with trio.fail_after(30):
            while box.server.shared.channels:
                await trio.sleep(0.005)
        for script in scripts:
            wanted += script.wanted
    assert wanted.total() == 1000
    found = Counter()
    for r in records(folder, "channel.close", "channel.fail"):
        found[(r["kind"], r["channel_class"], r["requested"]) + (
            (r["bytes_in"], r["bytes_out"]) if r["kind"] == "channel.close" else ()
        )] += 1  # fmt: skip
        assert r["user"] == "alice"
    for r in records(folder, "policy.decision"):
        if not r["allowed"]:
            found[r["kind"], r["object"], r["rule"]] += 1
    assert found == wanted
    # Each close has its open, by the ids, with what was dialled; each open that dialled its rule.
    opened = {(r["conn_id"], r["channel_id"]): r for r in records(folder, "channel.open")}
    closed = {(r["conn_id"], r["channel_id"]): r for r in records(folder, "channel.close")}
    assert opened.keys() == closed.keys()
    assert len(opened) == len(records(folder, "channel.open"))
    for key, start in opened.items():
        assert start["dialled"] == closed[key]["dialled"]
        if start["channel_class"] == "direct-tcpip":
            assert (start["dialled"], start["rule"]) == (f"127.0.0.1 port {echo_port}", "r1")
            assert start["originator"] == "127.0.0.1 port 4321"
        assert closed[key]["seq"] > start["seq"]
        assert closed[key]["duration_s"] >= 0 <= start["connect_s"]
    assert not records(folder, "log.repeated", "log.dropped", "log.failed")


async def test_channels_that_came_to_nothing(tmp_path, echo_port, monkeypatch):
    folder = tmp_path / "audit"
    async with audited_box(folder) as box:
        client = await box.log_in()
        client.refuses_with = "not\x1b here"
        assert await is_reset(await listening(box, client))

        async def never(host, port, options, *, permit, hosts):
            permit(ip_address("192.0.2.1"))
            await trio.sleep_forever()

        async def defect(host, port, options, *, permit, hosts):
            raise RuntimeError

        monkeypatch.setattr(opens, "dial", defect)
        with pytest.raises(ChannelOpenError, match="internal error"):
            await client.open("defect.example", 80)
        monkeypatch.setattr(opens, "dial", never)
        client.link.ask_for_channel(
            "direct-tcpip", DirectTcpip("slow.example", 80, "", 0).encode(), lambda _port: None
        )
        client.link.flush()
        await trio.testing.wait_all_tasks_blocked()
        client.carrier.close()
        await trio.testing.wait_all_tasks_blocked()
    found = [(r["channel_class"], r["dialled"], r["reason"], r["rule"])
             for r in records(folder, "channel.fail")]  # fmt: skip
    assert found == [
        ("forwarded-tcpip", "", r"not\x1b here", "r1"),
        ("direct-tcpip", "", "an internal error of the server", ""),
        ("direct-tcpip", "192.0.2.1 port 80", "the connection ended first", "r1"),
    ]
    assert [r["side"] for r in records(folder, "conn.close")] == ["network"]


async def test_a_scan_is_counted_and_not_written_line_by_line(tmp_path):
    """T44: the first refusals are there at once, of the others the number, and nothing is kept."""
    folder = tmp_path / "audit"
    refused = Counter()
    asked = {
        "direct-tcpip": DirectTcpip("127.0.0.1", FORBIDDEN, "127.0.0.1", 4321).encode(),
        "x11": b"",
    }
    async with audited_box(folder, limits=Limits(opens_per_second_per_user=5000)) as box:
        client = await box.log_in()
        for _ in range(10):
            for kind, specific in asked.items():
                for _ in range(50):
                    client.link.ask_for_channel(
                        kind, specific, lambda port: refused.update([port.failure.reason_code])
                    )
            with trio.fail_after(30):
                while sum(refused.values()) % 100 or client.link.protocol.connection.channels:
                    await trio.sleep(0.001)
        with trio.fail_after(30):
            while len(records(folder, "policy.decision")) < 2 * REPEATS:
                await trio.sleep(FLUSH_INTERVAL_S / 10)
        assert not box.server.shared.channels
        (served,) = box.server.shared.links.values()
        assert not served.link.protocol.connection.channels
    prohibited, unknown = OpenFailure.ADMINISTRATIVELY_PROHIBITED, OpenFailure.UNKNOWN_CHANNEL_TYPE
    assert refused == {prohibited: 500, unknown: 500}
    found = Counter(r["rule"] for r in records(folder, "policy.decision"))
    assert found == {"no-ssh": REPEATS, "": REPEATS}
    more = {r["reason"]: r["count"] for r in records(folder, "log.repeated")}
    assert more == {"no-ssh": 500 - REPEATS, "": 500 - REPEATS}


# ---- links ---------------------------------------------------------------------------------------


async def test_the_records_of_a_link_and_of_the_server(tmp_path):
    folder = tmp_path / "audit"
    async with audited_box(folder) as box:
        client = await box.log_in()
        port = await listening(box, client)
        assert await client.cancel("localhost", port)
        client.link.disconnect("good bye")
        await client.link.ended.wait()
        await trio.testing.wait_all_tasks_blocked()
    kinds = [r["kind"] for r in records(folder)]
    assert kinds == [
        "log.file", "server.start", "conn.open", "auth", "policy.decision", "listener.add",
        "listener.remove", "conn.close", "server.stop", "log.checkpoint",
    ]  # fmt: skip
    _, start, opened, auth, decision, added, removed, closed, stop, _ = records(folder)
    assert (start["version"], start["host_keys"]) == ("0.1.0", ["SHA256:host"])
    assert opened["source"] == auth["source"] == closed["source"] == ADDRESS
    assert re.fullmatch("[0-9a-f]{32}", opened["hassh"])
    assert opened["client_version"].startswith("SSH-2.0-gateway")
    assert opened["post_quantum"]
    assert (auth["user"], auth["result"], auth["attempt"]) == ("alice", "accepted", 1)
    fingerprint = ALICE_KEY.public.fingerprint
    assert auth["fingerprint"] == decision["subject"] == fingerprint
    assert auth["key_type"] == "ssh-ed25519"
    assert (decision["action"], decision["object"]) == ("listen", "localhost port 0")
    assert added["port"] == removed["port"] == port
    assert added["rule"] == removed["rule"] == decision["rule"] == "r1"
    assert removed["reason"] == "cancelled"
    assert (closed["side"], closed["user"], closed["rekeys"]) == ("client", "alice", 0)
    assert "good bye" in closed["reason"]
    assert min(closed["bytes_in"], closed["bytes_out"]) > 500
    assert stop["reason"] == "SIGTERM"


async def test_who_never_logs_in_is_counted(tmp_path):
    folder = tmp_path / "audit"
    limits = Limits(penalties=False)
    async with audited_box(folder, limits=limits) as box:
        for number in range(3):
            client = box.connect(address=f"192.0.2.{number}")
            client.carrier.close()
            await trio.testing.wait_all_tasks_blocked()
        mallory = box.connect(BOB_KEY, user_name="mallory")
        with pytest.raises(Exception, match=r"publickey|denied|refused|permission"):
            await mallory.log_in_with_keys()
        mallory.link.close()
        await trio.testing.wait_all_tasks_blocked()
    assert not records(folder, "conn.open", "conn.close")
    (auth,) = records(folder, "auth")
    assert (auth["user"], auth["result"]) == ("mallory", "refused")
    noise = {r["reason"]: (r["source"], r["count"]) for r in records(folder, "noise")}
    assert noise == {
        "ended before keys were exchanged": ("192.0.2.0/24", 3),
        "login refused, and ended": ("192.0.2.0/24", 1),
    }


def test_drops_at_accept_are_counted():
    written = []

    class Sink:
        write = written.append
        noise = written.append

    Evidence(Sink, FACTS).report(events.ConnectionsDropped("too many", 7))
    assert [(r.kind, r.reason, r.count) for r in written] == [("noise", "too many", 7)]


async def test_control_characters_are_escaped(tmp_path):
    """T50: in every text that a peer may choose, and none is longer than it may be."""
    folder = tmp_path / "audit"
    hostile = "al\x1b[2Jice\n\u202e"
    long = "\x1b[2Jlong\n" * 3000
    async with audited_box(folder) as box:
        eve = box.connect(BOB_KEY, user_name=hostile)
        with pytest.raises(Exception, match=r"publickey|denied|refused|permission"):
            await eve.log_in_with_keys()
        eve.link.close()
        client = await box.log_in()
        with pytest.raises(ChannelOpenError):
            await client.open("ho\x1b[2Jst\n.invalid", FORBIDDEN)
        with pytest.raises(ChannelOpenError):
            await client.link.open_channel("x\x1b[2J\n", b"")
        fields = DirectTcpip("127.0.0.1", free_port(), f"from\x1b[2J\n{long}", 1).encode()
        with pytest.raises(ChannelOpenError):
            await client.link.open_channel("direct-tcpip", fields)
        fields = DirectStreamlocal("/so\x1b[2Jck\n", "", 0).encode()
        with pytest.raises(ChannelOpenError):
            await client.link.open_channel("direct-streamlocal@openssh.com", fields)
        assert not (await client.forward("bi\x1b[2Jnd\n", 0)).success
        client.refuses_with = f"no\x1b[2Jt here\n{long}"
        assert await is_reset(await listening(box, client))
        client.link.disconnect(f"by\x1b[2Je\n{long}")
        await client.link.ended.wait()
        await trio.testing.wait_all_tasks_blocked()
    text = b"".join(path.read_bytes() for path in log_files(folder))
    assert set(text) <= {10, *range(32, 127)}
    for line in text.splitlines():
        for value in decode(line).values():
            assert "\x1b" not in str(value)
            assert "\n" not in str(value)
            assert "\u202e" not in str(value)
    for part in (b"2Jice", b"2Jst", b"from", b"2Jck", b"2Jnd", b"2Jt here", b"2Je", b"2Jlong"):
        assert part in text, part
    assert max(map(len, text.splitlines())) < 3000


# ---- a log that cannot be written ----------------------------------------------------------------


async def test_a_full_disk_refuses_what_is_new_until_it_is_written(tmp_path, echo_port):
    folder = tmp_path / "audit"
    async with audited_box(folder) as box:
        client = await box.log_in()
        kept = await client.open("127.0.0.1", echo_port)
        box.disk.is_full = True
        (await client.open("127.0.0.1", echo_port)).close()
        with trio.fail_after(30):
            while box.log.accepts_new:
                await trio.sleep(0.01)
        with pytest.raises(ChannelOpenError, match=CANNOT_BE_WRITTEN):
            await client.open("127.0.0.1", echo_port)
        box.rules.listen.add(("localhost", 0))
        assert not (await client.forward("localhost", 0)).success
        assert CANNOT_BE_WRITTEN in client.said[-1]
        other = box.connect()
        with contextlib.suppress(ConnectionLost):
            await other.log_in_with_keys()
        await other.link.ended.wait()
        assert CANNOT_BE_WRITTEN in str(other.link.failure)
        await send_all(kept, b"goes on")
        assert await read_all(kept, 7) == b"goes on"
        box.disk.is_full = False
        with trio.fail_after(30):
            while not box.log.accepts_new:
                await trio.sleep(0.01)
        await client.open("127.0.0.1", echo_port)
        await box.log_in()
        await trio.testing.wait_all_tasks_blocked()
    assert [r["error"] for r in records(folder, "log.failed")] == [os.strerror(errno.ENOSPC)]
    refused = [r for r in records(folder, "policy.decision") if not r["allowed"]]
    assert [r["action"] for r in refused] == ["open", "listen"]
    assert all(CANNOT_BE_WRITTEN in r["reason"] for r in refused)
    reasons = [r["reason"] for r in records(folder, "conn.close")]
    assert sum(CANNOT_BE_WRITTEN in reason for reason in reasons) == 1


# ---- a whole server ------------------------------------------------------------------------------


def configured(folder, keys, target_port):
    """Make a gateway.toml with a log; return it."""
    made = run_gateway("init", str(folder), "--user", USER, "--key", f"{keys.user}.pub")
    assert made.returncode == 0, made.stderr
    path = folder / "gateway.toml"
    text = path.read_text()
    for old, new in (
        ('listen = ["*:2222"]', 'listen = ["127.0.0.1:0"]'),
        ('# audit = "audit"', 'audit = "audit"'),
        ('to = ["*:22", "*:80", "*:443"]', f'to = ["127.0.0.1:{target_port}"]'),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def through_socks(proxy_port, port):
    """Connect to a port of the loopback through a proxy."""
    sock = socket.create_connection(("127.0.0.1", proxy_port), 20)
    sock.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
    answer = b""
    while len(answer) < 12:
        answer += sock.recv(12 - len(answer))
    assert answer[3] == 0, answer
    return sock


def test_kill_9_leaves_a_good_log_that_the_next_start_continues(tmp_path):
    keys = make_keys(tmp_path / "keys")
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = target.getsockname()[1]
        path = configured(tmp_path / "box", keys, port)
        audit = str(tmp_path / "box" / "audit")
        with running(*GATEWAY, "serve", "-c", str(path)) as program:
            listen = int(program.wait_line(r"listening on 127\.0\.0\.1:(\d+)")[1])
            program.wait_line("warning: the initial key of the audit log is on this machine")
            with (
                running_connect(Endpoint(program, listen, keys)) as proxy,
                through_socks(proxy.port, port) as sock,
                target.accept()[0] as there,
            ):
                sock.sendall(b"12345")
                assert there.recv(5) == b"12345"
                time.sleep(4 * FLUSH_INTERVAL_S)  # what is promised: older records are there
                program.signal(signal.SIGKILL)
                program.wait()
        assert run_gateway("audit", "verify", audit).stdout.startswith("good: ")
        shown = run_gateway("audit", "show", audit).stdout
        assert re.search(rf"conn\.open .*source=127\.0\.0\.1 .*local_port={listen} ", shown)
        assert re.search(rf"auth .*user={USER} method=publickey result=accepted", shown)
        assert re.search(rf'channel\.open .*dialled="127\.0\.0\.1 port {port}".* rule=usual', shown)
        assert "channel.close" not in shown
        with running(*GATEWAY, "serve", "-c", str(path)) as program:
            program.wait_line(r"listening on 127\.0\.0\.1:(\d+)")
            again = run_gateway("serve", "-c", str(path))
            assert again.returncode == 255, "a second server with the same log"
            path.write_text(path.read_text() + "[[[\n")
            program.signal(signal.SIGHUP)
            program.wait_line("not read again")
            program.signal(signal.SIGTERM)
            assert program.wait() == 0
        verified = run_gateway("audit", "verify", audit).stdout
        assert verified.startswith("good: ")
        assert verified.endswith("; 0 lines are not sealed yet\n")
        shown = run_gateway("audit", "show", audit).stdout
        assert shown.count("server.start") == 2
        assert re.search(r"config\.reload .* applied=no problem=", shown)
        assert re.search(r"server\.stop .*reason=SIGTERM ", shown)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, 'reason="another signal"'), (signal.SIGTERM, "SIGTERM")]
)
def test_a_signal_seals_the_log(tmp_path, number, reason):
    keys = make_keys(tmp_path / "keys")
    path = configured(tmp_path / "box", keys, 80)
    with running(*GATEWAY, "serve", "-c", str(path)) as program:
        program.wait_line(r"listening on 127\.0\.0\.1:(\d+)")
        program.signal(number)
        assert program.wait() == 0
    shown = run_gateway("audit", "show", str(path.parent / "audit")).stdout.splitlines()
    assert "server.stop" in shown[-2]
    assert reason in shown[-2]
    assert "log.checkpoint" in shown[-1]


def test_a_log_that_cannot_be_opened_is_said(tmp_path):
    keys = make_keys(tmp_path / "keys")
    path = configured(tmp_path / "box", keys, 80)
    path.write_text(path.read_text().replace('audit = "audit"', 'audit = "gateway.toml/audit"'))
    done = run_gateway("serve", "-c", str(path))
    assert done.returncode == 255
    assert "audit" in done.stderr
    assert "listening" not in done.stderr
