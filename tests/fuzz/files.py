"""Targets that parse keys, and files about keys."""

from __future__ import annotations

import base64
import functools
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from gateway.ssh import agent as agent_protocol
from gateway.ssh import keyfiles
from gateway.ssh.authorized_keys import parse_authorized_keys
from gateway.ssh.certificates import (
    Certificate,
    check_for_host,
    check_for_user,
    parse_key_or_certificate_untrusted,
    parse_public_key_file_untrusted,
)
from gateway.ssh.keyfiles import encode_private_key_file, parse_private_key_file_untrusted
from gateway.ssh.keys import PrivateKey
from gateway.ssh.known_hosts import KnownHosts, Status
from gateway.ssh.krl import MAGIC as KRL_MAGIC
from gateway.ssh.krl import parse_krl_untrusted
from gateway.ssh.wire import string, uint32, uint64
from tests.fuzz.links import pieces_of
from tests.support.keys import (
    SK_ECDSA,
    SK_ED25519,
    SecurityKey,
    a_certificate,
    a_private_key,
    options,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = PrivateKey.generate(lambda length: b"k" * length)
CA = PrivateKey.generate(lambda length: b"o" * length)
BLOB = KEY.public.blob
TEXT = KEY.public.openssh_text().encode()


@functools.cache
def keys():
    """One of each type; those of the larger types are new in each process."""
    names = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521", "ssh-rsa")
    plain = [a_private_key(name).public for name in names]
    return [*plain, *(SecurityKey(name).public for name in (SK_ED25519, SK_ECDSA))]


@functools.cache
def a_host_certificate() -> Certificate:
    found = parse_key_or_certificate_untrusted(a_certificate(KEY.public, CA))
    assert isinstance(found, Certificate)
    return found


# ---- keys and certificates -----------------------------------------------------------------------


def certificate(data: bytes) -> None:
    """A blob: a key or a certificate, which its CA signed whatever is in it."""
    found = parse_key_or_certificate_untrusted(data)
    assert found.blob == data
    assert found.openssh_text().isprintable()
    if isinstance(found, Certificate):
        assert found.description.isprintable()
        check_for_host(found, "host", 1)
        check_for_user(found, ("alice",), 1)


def certificate_seeds() -> Iterator[bytes]:
    critical = options((b"force-command", string(b"x")), (b"source-address", string(b"::/0")))
    for key in keys():
        yield key.blob
        for kind in (1, 2):
            yield a_certificate(
                key, CA, kind=kind, critical=critical if kind == 1 else b"",
                principals=(b"alice", b"host"),
                extensions=options((b"permit-port-forwarding", b""), (b"permit-pty", b"")),
            )  # fmt: skip


def private_key(data: bytes) -> None:
    """The first byte chooses how a file is wrapped, and the passphrase that is tried."""
    if not data:
        return
    text, passphrase = data[1:], (None, "x", b"\xff")[data[0] % 3]
    if data[0] & 0x40:
        text = b"\n".join((keyfiles.BEGIN, base64.b64encode(text), keyfiles.END, b""))
    elif data[0] & 0x80:
        label = b" ENCRYPTED PRIVATE KEY-----\n"
        text = b"-----BEGIN" + label + base64.encodebytes(text) + b"-----END" + label
    key = parse_private_key_file_untrusted(text, "name").decrypt(passphrase)
    key.public.verify(key.sign(b"data", key.public.signature_algorithms[0]), b"data")


def private_key_seeds() -> Iterator[bytes]:
    plain = encode_private_key_file(KEY, "comment", randbytes=lambda length: b"r" * length)
    content = base64.b64decode(b"".join(plain.splitlines()[1:-1]))
    locked = (
        keyfiles.MAGIC + string(b"aes256-ctr") + string(b"bcrypt")
        + string(string(b"s" * 16) + uint32(1)) + uint32(1) + string(BLOB) + string(bytes(160))
    )  # fmt: skip
    yield b"\0" + plain
    yield b"\x40" + content
    yield b"\x41" + locked
    pem = ec.derive_private_key(12345678901234567890, ec.SECP256R1())
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        yield b"\0" + pem.private_bytes(Encoding.PEM, form, NoEncryption())
        yield b"\1" + pem.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"x"))
    lines = pem.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    yield b"\x82" + base64.b64decode(b"".join(lines.splitlines()[1:-1]))


def public_key(data: bytes) -> None:
    """A file with a public key or a certificate."""
    assert parse_public_key_file_untrusted(data, "name").openssh_text().isprintable()


def public_key_seeds() -> Iterator[bytes]:
    for key in keys():
        yield key.openssh_text().encode() + b" comment\n"
    yield a_host_certificate().openssh_text().encode()
    yield b"---- BEGIN SSH2 PUBLIC KEY ----\nComment: x\n" + base64.b64encode(BLOB) + b"\n"


# ---- files about keys ----------------------------------------------------------------------------


def authorized_keys(data: bytes) -> None:
    found = parse_authorized_keys(data, "name")
    assert all(problem.isprintable() for problem in found.problems)
    entry = found.find(KEY.public, "192.0.2.1", 0.0)
    assert entry is None or entry.key == KEY.public
    for line in found.entries:
        line.refusal("2001:db8::1", 1e10)
        assert "command" not in {name for name, _ in line.options}


def authorized_keys_seeds() -> Iterator[bytes]:
    yield TEXT + b" alice@laptop\n# comment\n\n"
    yield (
        b'restrict,permitopen="host:80",permitopen="*:*",from="192.0.2.0/24,!192.0.2.9",'
        b'expiry-time="20300101" ' + TEXT + b"\n"
    )
    yield b'cert-authority,principals="a,b",no-pty,tunnel="0" ' + TEXT + b"\n"
    yield b'command="x \\" y",permitlisten="localhost:1-2",port-forwarding ' + TEXT + b"\r\n"
    for key in keys():
        yield key.openssh_text().encode()


def known_hosts(data: bytes) -> None:
    """The first byte chooses the port."""
    port = 2222 if data[:1] == b"\1" else 22
    hosts = KnownHosts.parse([("name", data[1:])])
    assert all(problem.isprintable() for problem in hosts.problems)
    hosts.lookup("host", port, a_host_certificate(), 0.0)
    verdict = hosts.lookup("host", port, KEY.public, 0.0)
    assert (verdict.entry is None) == (verdict.status is Status.UNKNOWN)
    assert sorted(hosts.host_key_algorithms_for("host", port, ("a", "ssh-rsa"))) == ["a", "ssh-rsa"]


def known_hosts_seeds() -> Iterator[bytes]:
    authority = CA.public.openssh_text().encode()
    yield b"\0host,*.example,!x.example " + TEXT + b" comment\n@revoked * " + authority + b"\n"
    yield b"\1[host]:2222 " + TEXT + b"\n@cert-authority [*]:* " + authority + b"\n"
    hashed = base64.b64encode(b"s" * 20)
    yield b"\0|1|" + hashed + b"|" + hashed + b" " + TEXT + b"\n#comment\nhost ssh-rsa AAAA\n"


def krl(data: bytes) -> None:
    revoked = parse_krl_untrusted(data)
    assert revoked.reason(a_host_certificate()).isprintable()
    assert revoked.reason(KEY.public).isprintable()


def krl_seeds() -> Iterator[bytes]:
    start = KRL_MAGIC + uint32(1) + bytes(24) + string(b"") + string(b"comment")
    serials = b"\x20" + string(uint64(9) + uint64(7)) + b"\x21" + string(uint64(100) + uint64(200))
    bitmap = b"\x22" + string(uint64(1) + string(b"\1\1")) + b"\x23" + string(string(b"the id"))
    section = b"\1" + string(string(CA.public.blob) + string(b"") + serials + bitmap)
    yield start + section + b"\2" + string(string(BLOB)) + b"\3" + string(string(bytes(20)))
    yield (
        start
        + b"\5"
        + string(string(bytes(32)))
        + b"\xff"
        + string(string(b"x") + b"\0" + string(b""))
    )
    yield start + b"\x39" + string(b"extension")


def agent(data: bytes) -> None:
    """What an agent sends; the first byte says in which pieces."""
    reader, taken = agent_protocol.ReplyReader(), 0
    for piece in pieces_of(data):
        reader.feed(piece)
        while (reply := reader.next_reply_untrusted()) is not None:
            assert reply
            taken += 4 + len(reply)
            _read_reply(reply)
    assert taken < max(len(data), 1)


def _read_reply(reply: bytes) -> None:
    if reply[0] == agent_protocol.AgentMsg.IDENTITIES_ANSWER:
        for item in agent_protocol.identities_untrusted(reply):
            assert item.key.blob in reply
            assert item.comment.isprintable()
    elif reply[0] == agent_protocol.AgentMsg.SIGN_RESPONSE:
        agent_protocol.signature_untrusted(reply, KEY.public, b"data", "ssh-ed25519")
    else:
        agent_protocol.success_untrusted(reply)


def agent_seeds() -> Iterator[bytes]:
    identities = b"\x0c" + uint32(3)
    identities += (
        string(BLOB) + string(b"one") + string(string(b"ssh-fancy") + b"\1") + string(b"2")
    )
    identities += string(a_host_certificate().blob) + string(b"three")
    signature = b"\x0e" + string(KEY.sign(b"data", "ssh-ed25519"))
    yield b"\xff" + string(identities) + string(signature) + string(b"\x06")
    yield b"\x00" + string(signature) + string(b"\x05")
