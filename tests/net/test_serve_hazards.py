"""Hazards of forwarding at a whole `gateway serve`: T53-T55, T63-T67 (tests/HAZARDS.md)."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from gateway import events
from gateway.cli.serve import run_serve
from gateway.errors import ChannelOpenError
from gateway.net import dial as dial_module
from gateway.policy.limits import SCAN_TARGETS
from gateway.policy.rules import Action, Policy, Rule, parse_target
from gateway.serving.places import PRIVILEGED_PORTS
from gateway.ssh.numbers import OpenFailure
from tests.net.test_serve_listeners import is_free
from tests.support.memory import read_all, send_all
from tests.support.programs import eventually, free_port, open_sockets
from tests.support.real_box import RULES, RealBox, real_box
from tests.support.serving import make_options, running_box
from tests.unit.test_listen import needs_ipv6

EVERYTHING = """\
[[rules]]
id = "all"
allow = "open"
to = ["*:*"]
[[rules]]
id = "back"
allow = "listen"
to = ["127.0.0.1:*"]
"""


@contextlib.asynccontextmanager
async def served(folder, rules):
    """Run a server; give its box, its program, its port, and a function that logs in."""
    async with real_box(folder, rules) as box:
        with box.serving() as (program, port):
            async with trio.open_nursery() as nursery:

                async def log_in(user="alice"):
                    return await box.log_in(nursery, user, port)

                yield box, program, port, log_in
                nursery.cancel_scope.cancel()  # or the server would wait for the last channels


async def refusal(client, host, port):
    with pytest.raises(ChannelOpenError) as caught:
        await client.open(host, port)
    return caught.value


async def recorded(box, count, *kinds):
    """Wait until the log has so many records; return them."""
    with trio.fail_after(30):
        while len(found := box.records(*kinds)) < count:
            await trio.sleep(0.02)
    return found


# ---- T53: decided for each channel, never for a session ------------------------------------------


async def test_each_channel_is_decided_also_after_a_reload(tmp_path):
    async with served(tmp_path / "box", RULES) as (box, program, _, log_in):
        client = await log_in()
        kept = await client.open("127.0.0.1", box.target)
        denied = await refusal(client, "127.0.0.1", box.target - 1)
        assert denied.reason_code == OpenFailure.ADMINISTRATIVELY_PROHIBITED
        box.configure(RULES.replace('allow = "open"', 'deny = "open"'))
        program.signal(signal.SIGHUP)
        await trio.to_thread.run_sync(program.wait_line, "read again")
        denied = await refusal(client, "127.0.0.1", box.target)
        assert "denied by rule target" in denied.description
        decisions = await recorded(box, 3, "policy.decision")
        assert [(r["allowed"], r["rule"]) for r in decisions] == [
            (True, "target"), (False, "built-in:special-address"), (False, "target"),
        ]  # fmt: skip
        await send_all(kept, struct.pack(">II", 1, 3) + b"u")
        assert await read_all(kept, 3) == b"ddd", "what was open stays open"


# ---- T54: resolved once, the address dialled is the one that was checked -------------------------


@pytest.mark.parametrize(
    ("answers", "dialled"),
    [
        ([["192.0.2.1"], ["127.0.0.1"]], ["192.0.2.1"]),  # another answer a moment later
        ([["127.0.0.1"], ["192.0.2.1"]], []),
        ([["192.0.2.1", "127.0.0.1"]], []),  # one bad answer spoils all
        ([["192.0.2.1", "::1"]], []),
        ([["64:ff9b::7f00:1"]], []),  # NAT64 to the loopback
        ([["64:ff9b::c000:201"]], ["64:ff9b::c000:201"]),
        ([["::ffff:169.254.169.254"]], []),
    ],
)
@pytest.mark.parametrize("name", ["rebind.example", "localhost."])
async def test_names_that_lead_elsewhere(monkeypatch, answers, dialled, name):
    """What a chain of CNAME records ends in is an answer as any other: addresses are checked."""
    looked_up, tried = [], []

    def getaddrinfo(host, port, family=0, kind=0, proto=0, flags=0):
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        looked_up.append(host)
        found = map(ip_address, answers[len(looked_up) - 1])
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (str(ip), port, 0, 0))
            if ip.version == 6
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (str(ip), port))
            for ip in found
        ]

    async def attempt(address, _options):
        tried.append(str(address.ip))
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(dial_module, "_attempt", attempt)
    rule = Rule("all", True, Action.OPEN, (parse_target("*:*"),))
    async with running_box(make_options(policy=Policy((rule,), lambda _: False))) as box:
        client = await box.log_in()
        error = await refusal(client, name, 80)
        assert (tried, len(looked_up)) == (dialled, 1)
        denied = [event for event in box.of_type(events.Decision) if not event.allowed]
        assert bool(denied) is not bool(dialled)
        assert ("a rule must name it" in error.description) is not bool(dialled)


# ---- T55: special destinations -------------------------------------------------------------------

DENIED = (
    "127.0.0.1", "127.8.9.10", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:7f00:1",
    "::ffff:169.254.169.254", "169.254.169.254", "fd00:ec2::254", "fe80::1%lo", "100.64.0.1",
    "224.0.0.1", "ff02::1", "255.255.255.255", "0x7f.1", "2130706433", "0177.0.0.1", "127.1", "0",
    "64:ff9b::7f00:1", "localhost", "LocalHost",
    "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "\uff4c\uff4fcalhost",  # IDN folds them
)  # fmt: skip
NO_HOSTS = ("127.0.0.1\0.example", "127.0.0.1 ", "[::1]", "", "::1%lo", "1" * 300)


async def test_no_form_of_a_special_address_is_opened_unless_a_rule_names_it(tmp_path):
    """The box's own port, 22 and a port of metadata services, while a rule allows everything."""
    async with served(tmp_path / "box", EVERYTHING) as (box, _, port, log_in):
        client = await log_in()
        for host in DENIED:
            for number in (port, 22, 80):
                error = await refusal(client, host, number)
                assert "a rule must name it" in error.description, (host, error)
                assert error.reason_code == OpenFailure.ADMINISTRATIVELY_PROHIBITED
        for host in NO_HOSTS:
            await refusal(client, host, port)
        for number in (25, 465, 587):  # T67
            assert "is for sending mail" in (await refusal(client, "192.0.2.1", number)).description
        assert client.link.failure is None
        wanted = {"built-in:special-address", "built-in:mail-port", ""}  # "": no host at all
        with trio.fail_after(30):
            while {r["rule"] for r in box.records("policy.decision")} != wanted:
                await trio.sleep(0.02)
        assert not any(r["allowed"] for r in box.records("policy.decision"))
        assert not box.records("channel.open")


# ---- T63: what may be listened on ----------------------------------------------------------------

BIND_FORMS = ("", "*", "0.0.0.0", "::", "localhost", "LOCALHOST", "127.0.0.1", "127.0.0.2", "::1",
              "::ffff:127.0.0.1", "192.0.2.1", "box.internal", "0", "127.1", " ")  # fmt: skip
# A rule's target, and the forms that it allows with the addresses that are bound then.
V4, V6 = {"127.0.0.1"}, {"::1"}
ALLOWED_FORMS = {
    "127.0.0.1:*": {"127.0.0.1": V4, "localhost": V4, "LOCALHOST": V4},
    "[::1]:*": {"::1": V6, "localhost": V6, "LOCALHOST": V6},
    "127.0.0.0/8:*": {
        "127.0.0.1": V4, "127.0.0.2": {"127.0.0.2"}, "localhost": V4, "LOCALHOST": V4,
    },
    "0.0.0.0:*": {"0.0.0.0": {"0.0.0.0"}},
    "[::]:*": {"::": {"::"}},
    "localhost:*": {
        "127.0.0.1": V4, "::1": V6, "localhost": V4 | V6, "LOCALHOST": V4 | V6,
    },
    "*:*": {
        "127.0.0.1": V4, "::1": V6, "localhost": V4 | V6, "LOCALHOST": V4 | V6,
        "127.0.0.2": {"127.0.0.2"}, "0.0.0.0": {"0.0.0.0"}, "::": {"::"},
        "": {"0.0.0.0", "::"}, "*": {"0.0.0.0", "::"},
    },
    "": {},
}  # fmt: skip


def listening_ports(pid):
    """Return the ports on which a process listens, as the kernel has them."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink())):
                inodes.add(match[1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.append(fields[1])
    return sorted(found)


@needs_ipv6
@pytest.mark.parametrize("to", ALLOWED_FORMS)
async def test_only_addresses_that_the_policy_names_are_bound(to):
    rules = (Rule("r", True, Action.LISTEN, (parse_target(to),)),) if to else ()
    async with running_box(make_options(policy=Policy(rules, lambda _: True))) as box:
        client = await box.log_in()
        for port in (0, free_port()):
            bound = {}
            for form in BIND_FORMS:
                if (await client.forward(form, port)).success:
                    added = box.of_type(events.ListenerAdded)[-1]
                    bound[form] = set(added.addresses)
                    assert (added.rule_id, added.port == port) == ("r", bool(port))
                    assert await client.cancel(form, added.port)
                    assert is_free(added.port)
            assert bound == ALLOWED_FORMS[to]
        for form in BIND_FORMS:
            for wrong in (65536, 0xFFFFFFFF, PRIVILEGED_PORTS - 1):
                assert not (await client.forward(form, wrong)).success, (form, wrong)
            assert not await client.cancel(form, free_port())
        assert box.server.shared.forwards == {}


# ---- T64: nothing stays of a client that was killed ----------------------------------------------


async def test_nothing_stays_of_100_clients_that_are_gone_without_a_word(tmp_path):
    """As the kernel ends the connection of a killed process: with FIN, or with RST."""
    async with served(tmp_path / "box", RULES) as (box, program, _, log_in):
        before = listening_ports(program.pid), open_sockets(program.pid)
        assert len(before[0]) == 1
        for number in range(100):
            client = await log_in()
            reply = await client.forward("localhost", 0)
            (port,) = struct.unpack(">I", reply.response_specific)
            await client.open("127.0.0.1", box.target)
            sock = client.carrier._sock
            if number % 2:
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            if not number:
                assert any(name.endswith(f":{port:04X}") for name in listening_ports(program.pid))
            client.carrier.close()
        await trio.to_thread.run_sync(
            eventually,
            lambda: (listening_ports(program.pid), open_sockets(program.pid)) == before,
            "everything as before",
            2,
        )
        removed = await recorded(box, 100, "listener.remove")
        assert {r["reason"] for r in removed} == {"the connection ended"}


# ---- T66: nothing is served to anybody by mistake ------------------------------------------------


def no_users(box):
    text = box.config.read_text()
    box.config.write_text(re.sub(r"\[users\.\w+\]\nkeys = .*\n", "", text))


def added(text):
    return lambda box: box.config.write_text(text + box.config.read_text())


REFUSED_STARTS = {
    "no users": (no_users, "there are neither users nor authorities"),
    "a user without a key": (
        lambda box: box.config.write_text(box.config.read_text() + "[users.dave]\n"),
        "users.dave: there is no key, so this user could not log in",
    ),
    "a list of keys that is not there": (
        lambda box: box.config.write_text(
            box.config.read_text() + '[users.dave]\nauthorized_keys = "nobody"\n'
        ),
        "nobody: the list of keys cannot be read: No such file",
    ),
    "an unknown key": (added("allow_all = true\n"), "allow_all: there is no such key"),
    "a value of another type": (added("names = 1\n"), "names: this is a whole number"),
    "a host key that all may read": (
        lambda box: (box.folder / "host_key").chmod(0o644), "chmod 600",
    ),
    "a configuration that all may write": (
        lambda box: box.config.chmod(0o666), "chmod",
    ),
    "an audit folder that all may read": (
        lambda box: box.audit.mkdir(mode=0o755), "chmod 700",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_STARTS)
def test_a_start_that_would_expose_the_box_is_refused(tmp_path, name, capsys, monkeypatch):
    change, sentence = REFUSED_STARTS[name]
    box = RealBox.make(tmp_path / "box", 1)
    change(box)
    monkeypatch.setattr("gateway.cli.serve.start_logging", lambda _level: None)
    assert run_serve(["-c", str(box.config)]) == 255
    output, said = capsys.readouterr()
    assert sentence in said
    assert "listening" not in output + said


# ---- T67: nobody's open proxy --------------------------------------------------------------------


async def test_a_user_who_looks_around_is_told_of_once(tmp_path):
    async with served(tmp_path / "box", RULES) as (box, _, _, log_in):
        scanner, user = await log_in("alice"), await log_in("bob")
        for number in range(SCAN_TARGETS + 30):
            await refusal(scanner, f"10.9.8.{number}", 22)
        for _ in range(SCAN_TARGETS + 30):
            await refusal(user, "127.0.0.1", box.closed)  # tries one thing again and again
        await user.open("127.0.0.1", box.target)
        (told,) = await recorded(box, 1, "abuse")
        assert (told["user"], told["what"], told["targets"]) == ("alice", "scan", SCAN_TARGETS)
        assert told["example"] == f"10.9.8.{SCAN_TARGETS - 1} port 22"
        assert told["conn_id"] in {r["conn_id"] for r in box.records("conn.open")}


async def test_a_port_scan_through_the_box_is_one_too(tmp_path):
    """Ports of a host that may be opened: nothing is refused, and nothing answers."""
    rules = EVERYTHING.replace('"*:*"', '"127.0.0.1:*"')
    async with served(tmp_path / "box", rules) as (box, _, _, log_in):
        client = await log_in()
        for port in range(1, SCAN_TARGETS + 40):
            with contextlib.suppress(ChannelOpenError):
                (await client.open("127.0.0.1", port)).close()
        (told,) = await recorded(box, 1, "abuse")
        assert told["what"] == "scan"
        await recorded(box, SCAN_TARGETS, "channel.fail")
