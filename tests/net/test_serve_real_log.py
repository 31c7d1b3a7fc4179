"""The log of a real `gateway serve -c`: 1 000 channels over sockets, changes, and kill -9.

What `test_serve_evidence` shows inside one process, here with the configuration, the files and the
commands that an administrator has. Clients, targets and the server have a process each.
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import signal
import struct
import time
from collections import Counter

import pytest
import trio

from gateway.audit.store import NOT_ENDED, file_name
from gateway.audit.writer import FLUSH_INTERVAL_S
from gateway.cli.audit import run_audit
from gateway.errors import ChannelOpenError, ConnectionLost
from gateway.ssh.messages import DirectStreamlocal, DirectTcpip
from gateway.ssh.tunnel import ETHERNET, TunOpen
from tests.net.test_serve_listeners import connect
from tests.net.test_serve_listeners import opened as forwarded
from tests.net.test_serve_sessions import session
from tests.support.memory import read_all, send_all
from tests.support.programs import run_gateway
from tests.support.real_box import USERS, real_box

LINKS = 6
LARGEST = 40_000  # bytes, now and then; most channels carry less than a tenth
CHANNELS = 1000

# ---- 1 000 channels ------------------------------------------------------------------------------


class Script:
    """One link's part; ``wanted`` is what the log is to say, one entry for each channel."""

    def __init__(self, box, user, client, seed):
        self.box, self.user, self.client = box, user, client
        self.dice = random.Random(seed)
        self.wanted = Counter()
        self.listening = 0

    def amounts(self):
        largest = LARGEST if self.dice.random() < 0.1 else LARGEST // 20
        return self.dice.randrange(largest), self.dice.randrange(largest)

    def over(self, kind, requested, dialled, rule, counts, reason="ended"):
        self.wanted["over", self.user, kind, requested, dialled, rule, *counts, reason] += 1

    async def carry(self, channel, *, to_the_end=True):
        """Use the target; return the bytes both ways."""
        up, down = self.amounts()
        await send_all(channel, struct.pack(">II", up, down) + b"u" * up)
        assert await read_all(channel, down) == b"d" * down
        if to_the_end:
            channel.close()
        return 8 + up, down

    async def direct(self):
        where = f"127.0.0.1 port {self.box.target}"
        channel = await self.client.open("127.0.0.1", self.box.target)
        self.over("direct-tcpip", where, where, "target", await self.carry(channel))

    async def direct_without_a_byte(self):
        where = f"127.0.0.1 port {self.box.target}"
        (await self.client.open("127.0.0.1", self.box.target)).close()
        self.over("direct-tcpip", where, where, "target", (0, 0))

    async def unix(self):
        path = f"{self.box.folder}/target"
        channel = await self.open_unix(path)
        self.over("streamlocal", path, path, "sock", await self.carry(channel))

    async def open_unix(self, path):
        fields = DirectStreamlocal(path, "", 0).encode()
        return await self.client.link.open_channel("direct-streamlocal@openssh.com", fields)

    async def session(self):
        shell = await session(self.client)
        shell.ask("shell")
        await shell.ended.wait()
        size = len(shell.output.encode())
        assert self.user in shell.output
        self.over("session", "session", "", "", (0, size))
        shell.port.close()

    async def remote(self):
        up, down = (max(count, 1) for count in self.amounts())
        count = len(self.client.opened)
        async with await connect(self.listening) as stream:
            await stream.send_all(b"r" * down)
            _, channel = await forwarded(self.client, count + 1)
            assert await read_all(channel, down) == b"r" * down
            await send_all(channel, b"a" * up)
            left = up
            while left:
                left -= len(await stream.receive_some(left))
            channel.close()
        where = f"localhost port {self.listening}"
        self.over("forwarded-tcpip", where, "the SSH client", "back", (up, down))

    async def failing(self):
        with pytest.raises(ChannelOpenError):
            await self.client.open("127.0.0.1", self.box.closed)
        where = f"127.0.0.1 port {self.box.closed}"
        self.wanted[
            "fail", self.user, "direct-tcpip", where, where, "target", "Connection refused"
        ] += 1

    async def failing_unix(self):
        path = f"{self.box.folder}/nobody"
        with pytest.raises(ChannelOpenError):
            await self.open_unix(path)
        self.wanted[
            "fail", self.user, "streamlocal", path, path, "sock", "No such file or directory"
        ] += 1

    async def refused(self):
        with pytest.raises(ChannelOpenError, match="never"):
            await self.client.open("10.9.8.7", 443)
        self.wanted["refused", self.user, "open", "10.9.8.7 port 443 (10.9.8.7)", "never"] += 1

    async def refused_unix(self):
        with pytest.raises(ChannelOpenError, match="denied"):
            await self.open_unix("/run/docker.sock")
        self.wanted["refused", self.user, "open", "/run/docker.sock", "built-in:no-rule"] += 1

    async def unknown(self):
        with pytest.raises(ChannelOpenError, match="unknown channel type"):
            await self.client.link.open_channel("x11", b"\0" * 8)
        self.wanted["refused", self.user, "open", "x11", ""] += 1

    async def refused_tun(self):
        with pytest.raises(ChannelOpenError, match="no rule allows"):
            await self.client.link.open_channel("tun@openssh.com", TunOpen(ETHERNET).encode())
        self.wanted["refused", self.user, "open", "tap", "built-in:no-rule"] += 1

    async def run(self, count):
        reply = await self.client.forward("localhost", 0)
        (self.listening,) = struct.unpack(">I", reply.response_specific)
        rare = [self.refused, self.refused_unix, self.refused_tun, self.unknown]
        rare *= 10  # one rule may refuse 20 times a minute; more would be counted only
        usual = [
            self.direct, self.unix, self.session, self.remote, self.failing, self.failing_unix,
            self.direct_without_a_byte,
        ]  # fmt: skip
        steps = rare + [usual[number % len(usual)] for number in range(count - len(rare) - 2)]
        self.dice.shuffle(steps)
        for step in steps:
            await step()
        where = f"127.0.0.1 port {self.box.target}"
        for _ in range(2):  # these end with their link
            channel = await self.client.open("127.0.0.1", self.box.target)
            up = self.dice.randrange(1000)
            await send_all(channel, struct.pack(">II", up + 1, 0) + b"u" * up)
            self.over("direct-tcpip", where, where, "target", (8 + up, 0), "link lost")
        await self.client.link.global_request("keepalive@openssh.com", b"")  # all has arrived
        self.client.link.disconnect("good bye")


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A server's run from start to stop: the box, and what its log is to say."""
    folder = tmp_path_factory.mktemp("story") / "box"
    wanted = Counter()

    async def run():
        async with real_box(folder) as box, trio.open_nursery() as nursery:
            with box.serving() as (program, at):
                scripts = [
                    Script(box, user, await box.log_in(nursery, user, at), number)
                    for number, user in enumerate((USERS * LINKS)[:LINKS])
                ]
                counts = [
                    CHANNELS // LINKS + (number < CHANNELS % LINKS) for number in range(LINKS)
                ]
                async with trio.open_nursery() as load:
                    for script, count in zip(scripts, counts, strict=True):
                        load.start_soon(script.run, count)
                program.signal(signal.SIGTERM)
                assert await trio.to_thread.run_sync(program.wait) == 0
            nursery.cancel_scope.cancel()
        for script in scripts:
            wanted.update(script.wanted)
        return box

    return trio.run(run), wanted


def verified(folder):
    done = run_gateway("audit", "verify", str(folder))
    return done.returncode, done.stdout


def test_1000_channels_are_in_the_log_one_to_one(story):
    box, wanted = story
    assert wanted.total() == CHANNELS
    assert len(wanted) > 300, "many are like no other"
    found = Counter()
    opened = {(r["conn_id"], r["channel_id"], r["requested"]): [] for r in
              box.records("channel.open")}  # fmt: skip
    for r in box.records("channel.open"):
        opened[r["conn_id"], r["channel_id"], r["requested"]].append(r)
    for r in box.records("channel.close"):
        # Numbers of channels are used again: the open is the first that has no close yet.
        start = opened[r["conn_id"], r["channel_id"], r["requested"]].pop(0)
        assert start["seq"] < r["seq"]
        same = ("user", "channel_class", "dialled")
        assert [start[name] for name in same] == [r[name] for name in same]
        found[
            "over", r["user"], r["channel_class"], r["requested"], r["dialled"], start["rule"],
            r["bytes_in"], r["bytes_out"], r["reason"],
        ] += 1  # fmt: skip
    assert not any(opened.values()), "each open has its close"
    for r in box.records("channel.fail"):
        found[
            "fail", r["user"], r["channel_class"], r["requested"], r["dialled"], r["rule"],
            r["reason"],
        ] += 1  # fmt: skip
    for r in box.records("policy.decision"):
        if not r["allowed"]:
            found["refused", r["user"], r["action"], r["object"], r["rule"]] += 1
    assert found - wanted == Counter()
    assert wanted - found == Counter()
    assert not box.records("log.repeated", "log.dropped", "log.failed", "log.recovered")
    assert len(box.records("conn.open")) == len(box.records("conn.close")) == LINKS
    assert {r["rule"] for r in box.records("listener.add", "listener.remove")} == {"back"}


def test_the_log_of_that_run_is_good(story):
    box, _ = story
    status, said = verified(box.audit)
    assert status == 0, said
    assert re.fullmatch(r"good: \d+ lines in 1 files, .*; 0 lines are not sealed yet\n", said)


def changed(lines, at):
    lines[at] = re.sub(rb'"user":"\w+"', b'"user":"eve"', lines[at])


def swapped(lines, at):
    lines[at], lines[at + 1] = lines[at + 1], lines[at]


def cut(lines, at):
    lines[at] = lines[at][: len(lines[at]) // 2]


def cut_off(lines, at):
    del lines[at:]


def cut_inside_the_last_line(lines, _at):
    lines[-1] = lines[-1][:-20]


CHANGES = {
    "changed": (changed, 1),  # and how many lines later it is seen
    "one digit of a count": (
        lambda lines, at: lines.__setitem__(at, lines[at].replace(b'"bytes_in":', b'"bytes_in":1')),
        1,
    ),
    "removed": (lambda lines, at: lines.pop(at), 0),
    "twice": (lambda lines, at: lines.insert(at, lines[at]), 1),
    "swapped": (swapped, 0),
    "cut": (cut, 0),
    "cut off": (cut_off, None),
    "cut inside the last line": (cut_inside_the_last_line, None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_log_that_was_changed_is_found_out(story, tmp_path, name, capsys):
    box, _ = story
    change, later = CHANGES[name]
    copy = shutil.copytree(box.audit, tmp_path / "audit")
    path = copy / file_name(1)
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines)
              if number > len(lines) // 2 and b'"channel.close"' in line)  # fmt: skip
    before = list(lines)
    change(lines, at)
    assert lines != before
    path.write_bytes(b"".join(lines))
    status, said = run_audit(["verify", str(copy)]), capsys.readouterr().out
    assert (status, said[:5]) == (1, "BAD: ")
    if later is None:
        assert "was cut off" in said or "line is incomplete" in said
    else:
        assert said.startswith(f"BAD: {file_name(1)}, line {at + 1 + later}: "), (at, said)


# ---- kill -9 -------------------------------------------------------------------------------------


async def test_kill_9_in_the_middle_of_traffic_loses_the_stated_interval_at_most(tmp_path):
    confirmed_s = {}  # by the originator's port, which is the number of the channel
    numbers = iter(range(1, 60_000))

    async def open_again_and_again(client, port):
        with contextlib.suppress(ConnectionLost, ChannelOpenError):
            while True:
                number = next(numbers)
                fields = DirectTcpip("127.0.0.1", port, "127.0.0.1", number).encode()
                channel = await client.link.open_channel("direct-tcpip", fields)
                confirmed_s[number] = time.monotonic()
                await send_all(channel, struct.pack(">II", 0, 10))
                assert await read_all(channel, 10) == b"d" * 10
                channel.close()
                await trio.sleep(0.004)

    async with real_box(tmp_path / "box") as box, trio.open_nursery() as nursery:
        with box.serving() as (program, at):
            for user in USERS:
                client = await box.log_in(nursery, user, at)
                nursery.start_soon(open_again_and_again, client, box.target)
            with trio.fail_after(20):
                while len(confirmed_s) < 300:
                    await trio.sleep(0.01)
            killed_s = time.monotonic()
            program.signal(signal.SIGKILL)
            await trio.to_thread.run_sync(program.wait)
        nursery.cancel_scope.cancel()

    with box.serving() as (program, _):
        program.wait_line("audit log: audit-000001.jsonl: (.*)")
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    status, said = verified(box.audit)
    assert status == 0, said
    assert re.fullmatch(r"good: \d+ lines in 1 files, .*; 0 lines are not sealed yet\n", said)
    kept = {int(r["originator"].rpartition(" ")[2]) for r in box.records("channel.open")}
    lost_s = {killed_s - confirmed_s[number] for number in confirmed_s.keys() - kept}
    # What the writer states, and twice as much for the wait of processes on a busy machine.
    assert max(lost_s, default=0) < 3 * FLUSH_INTERVAL_S
    assert len(kept) > 100
    (recovered,) = box.records("log.recovered")
    assert recovered["problem"] == NOT_ENDED or "incomplete" in recovered["problem"]
    assert recovered["file"] == file_name(1)
    starts = [r["seq"] for r in box.records("server.start")]
    (stop,) = box.records("server.stop")
    assert starts[0] < recovered["seq"] < starts[1] < stop["seq"]
    shown = run_gateway("audit", "show", str(box.audit)).stdout
    assert re.search(r"log\.recovered +file=audit-000001\.jsonl problem=", shown)
