"""Targets that read the user's own files and what other programs of this one say."""

from __future__ import annotations

import contextlib
import json
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.audit.chain import GENESIS, SealKey, verify
from gateway.audit.records import decode
from gateway.cli import audit as audit_command
from gateway.config.dump import dump
from gateway.config.gateway_toml import read_gateway_toml
from gateway.config.keywords import TABLE
from gateway.config.ssh_config import Environment, read_settings, resolve
from gateway.forward import control as control_socket
from gateway.forward.spec import parse_forward
from gateway.policy.key_limits import KeyLimits
from gateway.policy.rules import Action, Policy, Rule, Subject, Verdict, parse_target
from gateway.policy.targets import host_ports
from gateway.serving.authorize import Grant, Login, authorize
from gateway.serving.places import PortPlace, SocketPlace
from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey
from gateway.ssh.messages import DirectTcpip, StreamlocalForward, TcpipForward
from tests.fuzz import bypasses

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = PrivateKey.generate(lambda length: b"k" * length)

# ---- configuration -------------------------------------------------------------------------------


class Where:
    """The folder of the files, while a target runs."""

    path = Path("/nonexistent")


@contextlib.contextmanager
def folder() -> Iterator[None]:
    """Make a folder with a host key and a file of keys in it; it goes at the end."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        Where.path = Path(name)
        (Where.path / "host").touch(mode=0o600)
        (Where.path / "host").write_bytes(encode_private_key_file(KEY))
        (Where.path / "alice.keys").write_text(KEY.public.openssh_text() + "\n")
        (Where.path / "alice.keys").chmod(0o600)
        yield


def _file(name: str, data: bytes) -> Path:
    path = Where.path / name
    path.touch(mode=0o600)
    path.write_bytes(data)
    return path


def ssh_config(data: bytes) -> None:
    """A file of ssh_config(5), read for one host, and shown as -G does. Commands are not run."""
    environment = Environment(
        Where.path, "alice", "box.example", 1000, {"X": "x"}, Where.path / "etc",
        resolve=lambda name, _family: name, local_addresses=tuple,
        execute=lambda command, _where: len(command) % 2 == 0,
    )  # fmt: skip
    read = read_settings("h", files=[_file("config", data)], environment=environment)
    config = resolve(read, environment)
    assert 1 <= config.port <= 65535
    assert config.ciphers
    assert config.kex_algorithms
    assert dump(config, read.settings)


def ssh_config_seeds() -> Iterator[bytes]:
    for value in (b"yes", b"none", b"22", b"+a,b", b"%h:%p", b"1h30m", b'"a b" c'):
        yield b"\n".join(row.name.encode() + b" " + value for row in TABLE)
        for row in TABLE:
            yield row.name.encode() + b" " + value
    yield b'Host h !x *.y\n HostName "%h.example"\n Port=2222\nMatch host h exec "x" user alice\n'
    yield b"Match final all\n Include etc/*\n CanonicalizeHostname yes\n CanonicalDomains a b\n"
    yield b"LocalForward 8080 web:80\nRemoteForward [::1]:9 /run/x\nDynamicForward *:6000\n"


def gateway_toml(data: bytes) -> None:
    """A gateway.toml, with the files that it may name."""
    config = read_gateway_toml(_file("gateway.toml", data))
    assert config.host_keys
    assert all(warning.isprintable() for warning in config.warnings)


def gateway_toml_seeds() -> Iterator[bytes]:
    key = KEY.public.openssh_text().encode()
    top = b'host_keys = ["host"]\n'
    user = b'[users.alice]\nkeys = ["' + key + b' laptop"]\nauthorized_keys = "alice.keys"\n'
    rule = b'[[rules]]\nid = "db"\nallow = "open"\nto = ["db.internal:5432", "10.0.0.0/8:1-9"]\n'
    yield top + user + rule
    yield (
        b'listen = ["*:2222", "[::1]:0"]\nalgorithms = "strict"\naudit = "audit"\n'
        b'audit_keep_days = 400\nnames = {"DB.internal." = "10.0.0.5"}\n' + top
        + b'[limits]\nchannels_per_user = 9\npenalties = false\n' + user
        + b'groups = ["staff"]\nrequired_keys = 2\n[[authorities]]\nkey = "' + key
        + b'"\nusers = ["*"]\n' + rule
        + b'users = ["alice"]\ngroups = ["staff"]\nprincipals = ["o"]\n'
        b'[[rules]]\ndeny = "unix"\nto = ["/run/x"]\n[[rules]]\nallow = "tun"\nto = ["fd20::/64", '
        b'"tap"]\n[tunnel]\npool = ["10.213.9.0/24", "fd21:0:9::/64"]\nmtu = 1280\n'
    )  # fmt: skip
    yield top + b"[users]\nx = 1\n[[rules]]\n" + b"a = [[[[{}]]]]\n"


# ---- what a user asks of a server ----------------------------------------------------------------

TO = {"open": ("*.corp:80-90", "10.0.0.0/8:*"), "listen": ("localhost:*", "*:8080")}
POLICY = Policy(
    tuple(
        Rule(action, True, Action(action), tuple(parse_target(text, Action(action)) for text in to))
        for action, to in TO.items()
    ),
    lambda address: str(address) == "192.0.2.1",
)
ALICE = Subject("alice", frozenset(), "", frozenset(), "192.0.2.1")
LIMITS = KeyLimits(permit_open=(host_ports("db.corp", None), host_ports("10.0.0.0", 80)))
LOGIN = Login(ALICE, (), (Grant(LIMITS),))
ADDRESSES = tuple(map(ip_address, ("10.0.0.1", "127.0.0.1", "fd00::1", "::ffff:169.254.169.254")))


def requests(data: bytes) -> None:
    """The first byte chooses: a target to connect to, and its address; a place to listen on."""
    kind = data[0] if data else 0
    if kind & 1:
        target = DirectTcpip.decode_untrusted(data[1:])
        host, port = target.host_to_connect, target.port_to_connect
        address = ADDRESSES[kind // 2 % len(ADDRESSES)]
        verdict = authorize(POLICY, LOGIN, Action.OPEN, host, port, address)
        assert not verdict.allowed or str(address) == "10.0.0.1"
    else:
        place = (PortPlace if kind & 2 else SocketPlace).decode_untrusted(data[1:])
        verdict = place.check(_decide, wants_reply=bool(kind & 4))
        assert place.shown.isprintable()
        if verdict.allowed:
            assert place.addresses(_decide)
    assert verdict.reason.isprintable()


def _decide(action: Action, host: str, port: int) -> Verdict:
    return authorize(POLICY, LOGIN, action, host, port)


def requests_seeds() -> Iterator[bytes]:
    for host in ("a.corp", "10.0.0.1", "b\u00fccher.corp", "::1", "0x7f.1", ""):
        for kind in b"\1\3\5\7":
            yield bytes((kind,)) + DirectTcpip(host, 80, "::1", 9).encode()
    for host in ("localhost", "127.0.0.1", "", "*", "fd00::1", "192.0.2.1"):
        for kind in b"\2\6":
            yield bytes((kind,)) + TcpipForward(host, 8080).encode()
    yield b"\0" + StreamlocalForward("/run/x").encode()


# ---- the control socket --------------------------------------------------------------------------


def control(data: bytes) -> None:
    """The first byte chooses: a request, or the reply to one."""
    if data[:1] == b"\0":
        what, kind, text = control_socket._request_untrusted(data[1:])
        assert what in ("list", "add", "cancel")
        if what != "list":
            assert str(parse_forward(kind, text))
    else:
        with contextlib.suppress(RecursionError):  # as `ask` does
            reply = json.loads(data[1:])
            for shown in control_socket._forwards_untrusted(reply):
                assert shown.forward.isprintable()


def control_seeds() -> Iterator[bytes]:
    for text in ("8080:web:80", "[::1]:1:/run/x", "/run/y:z:9", "*:6000", "0:h:1"):
        for kind in "LRD":
            asked = {"do": "add", "kind": kind, "forward": text}
            yield b"\0" + json.dumps(asked).encode() + b"\n"
    yield b'\0{"do": "list"}\n'
    yield b'\0{"do": "cancel", "kind": "L", "forward": "8080"}\n'
    yield b'\1{"forwards": [{"forward": "L 8080", "port": 8080, "chosen": false}]}\n'
    yield b'\1{"error": "no"}\n'


# ---- the audit log -------------------------------------------------------------------------------


def audit(data: bytes) -> None:
    """The lines of two files of a log, verified and shown; all hashes fit."""
    files = [part.splitlines(keepends=True) for part in data.split(b"\0")]
    named = [(f"f{number}", lines) for number, lines in enumerate(files, 1)]
    for archived in (False, True):
        report = verify(named, SealKey(0, b"k" * 32), archived=archived)
        assert report.problem.isprintable()
        assert report.lines <= sum(map(len, files))
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            assert audit_command._text(decode(line)).isprintable()


def _line(seq: int, kind: str, **fields: object) -> bytes:
    time = f"20{20 + seq:02d}-01-01T00:00:00.000000Z"
    record = {"v": 1, "seq": seq, "time": time, "mono_us": 1, "prev": bypasses.HASH, "kind": kind}
    return json.dumps(record | fields, separators=(",", ":")).encode() + b"\n"


def audit_seeds() -> Iterator[bytes]:
    seal = {"reason": "count", "mac": bypasses.MAC}
    first = (
        _line(0, "log.file", number=1, previous="", epoch=0, keep_days=30)
        + _line(1, "auth", user="alice", principals=["a", "b"], partial=True)
        + _line(2, "log.checkpoint", epoch=0, **seal)
    )
    second = (
        _line(3, "log.file", number=2, previous="f1", epoch=1, keep_days=30)
        + _line(4, "log.retired", through=1, first_seq=3, first_prev=GENESIS, keep_days=30)
        + _line(5, "log.checkpoint", epoch=1, **seal)
    )
    yield first
    yield first + b"\0" + second
    yield second
