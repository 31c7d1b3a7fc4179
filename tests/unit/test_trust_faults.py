"""T83: whatever goes wrong while a host key is checked, it is not trusted (CVE-2025-26465).

A fault is put into every call, of a function of ours or of the library, on the way from the
server's signature to a login that goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import inspect
import itertools
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

import gateway
from gateway.config.ssh_config import StrictHostKeyChecking
from gateway.config.trust import HostKeyChecker
from gateway.errors import ConfigError, HostKeyError, LocalProtocolError, RemoteProtocolError
from gateway.ssh.algorithms import Preferences
from gateway.ssh.certificates import CertificateError, parse_certificate_untrusted
from gateway.ssh.keytypes import KeySizeError, SignatureError
from gateway.ssh.known_hosts import format_line
from gateway.ssh.transport import Phase, Role
from tests.support.keys import a_certificate, a_private_key
from tests.support.memory import TestDialogue, linked, make_links
from tests.support.pair import HOST_KEY, feed, make_pair, take
from tests.unit.test_config_trust import Config, Person

KEY, OTHER = a_private_key("ssh-ed25519"), a_private_key("ssh-ed25519", "o")
CA = a_private_key("ssh-ed25519", "c")
CERTIFICATE = parse_certificate_untrusted(a_certificate(KEY.public, CA))
FAULTS = [
    MemoryError(), OSError(5, "Input/output error"), ValueError("?"), KeyError("?"),
    RecursionError(), ConfigError("?"), RemoteProtocolError("?"), CertificateError("?"),
    SignatureError("?"), KeySizeError("?"), HostKeyError("?"),
]  # fmt: skip


OURS = str(Path(gateway.__file__).parent)


class FaultAt:
    """Lets the N-th call, counted from 0, that our code makes fail, before it does anything.

    It may be of a function of ours, of the library's, or of one in C: the interpreter lets the
    exception of a profile function out of what was called.
    """

    def __init__(self, number, fault):
        self.remaining = number
        self.fault = fault
        self.struck = ""

    def __enter__(self):
        gc.disable()  # whoever is told of garbage would be called by whoever made it
        sys.setprofile(self._call)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        gc.enable()

    def _call(self, frame, what, argument):
        caller = frame.f_back if what == "call" else frame
        if what not in ("call", "c_call") or self.struck or caller is None:
            return
        if not caller.f_code.co_filename.startswith(OURS):
            return
        code = frame.f_code
        if what == "call" and code.co_flags & inspect.CO_GENERATOR:
            return  # it may be its end; what it calls has its turn
        if self.remaining == 0:
            name = code.co_name if what == "call" else argument.__name__
            self.struck = f"{what} {name} by {caller.f_code.co_filename}:{caller.f_lineno}"
            raise self.fault
        self.remaining -= 1


def run(coroutine):
    """Run what never waits to its end; return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def line(key, marker=""):
    return f"{marker} host {key.public.openssh_text()}\n".lstrip()


GOOD = {
    "a known key": (line(KEY), KEY.public, {}),
    "a hashed name": (format_line("host", 22, KEY.public, hashed=True), KEY.public, {}),
    "a certificate of a known CA": (line(CA, "@cert-authority"), CERTIFICATE, {}),
}
BAD = {
    "an unknown key": ("", KEY.public, {}),
    "a changed key": (line(OTHER), KEY.public, {}),
    "a revoked key": (line(KEY, "@revoked") + line(KEY), KEY.public, {}),
    "a revoked CA": (
        line(CA, "@cert-authority") + line(CA, "@revoked"), CERTIFICATE, {},
    ),
    "a CA of algorithms that do not go": (
        line(CA, "@cert-authority"), CERTIFICATE, {"ca_signature_algorithms": ("rsa-sha2-512",)},
    ),
    "a certificate alone is not enough": (
        line(KEY), CERTIFICATE,
        {"host_key_algorithms": ("ssh-ed25519-cert-v01@openssh.com",)},
    ),
    "an unknown key and a person who says no": (
        "", KEY.public, {"strict_host_key_checking": StrictHostKeyChecking.ASK},
    ),
}  # fmt: skip


@pytest.fixture
def known_hosts(tmp_path):
    return tmp_path / "known_hosts"


def checker(known_hosts, settings):
    """A checker of that file, who asks a person who says no."""
    return HostKeyChecker(Config((known_hosts,), **settings), Person("no"))


def with_faults(fault, act):
    """Act with a fault in every call, one after the other: return how many there were.

    ``act`` raises unless the key is trusted. The other result is whether it is without a fault.
    """
    for number in itertools.count():
        trusted = False
        with FaultAt(number, fault) as at:
            try:
                act()
                trusted = True
            except Exception:  # noqa: BLE001 - whatever it is, it is no yes
                trusted = False
        if not at.struck:
            return number, trusted
        assert not trusted, at.struck
    raise AssertionError


def kind(fault):
    return type(fault).__name__


@pytest.mark.parametrize("case", GOOD)
def test_a_good_key_is_not_trusted_if_anything_fails(known_hosts, case):
    """Nothing that has not been checked to its end is a yes."""
    text, key, settings = GOOD[case]
    known_hosts.write_text(text)

    def act():
        run(checker(known_hosts, settings).check(key))

    calls, trusted = with_faults(MemoryError(), act)
    assert trusted
    assert calls > 50


@pytest.mark.parametrize("fault", FAULTS, ids=kind)
@pytest.mark.parametrize("case", BAD)
def test_a_bad_key_is_never_trusted_whatever_fails(known_hosts, case, fault):
    """Also errors that are caught somewhere, as those of a line or of a certificate are."""
    text, key, settings = BAD[case]
    known_hosts.write_text(text)
    found = checker(known_hosts, settings)
    calls, trusted = with_faults(fault, lambda: run(found.check(key)))
    assert not trusted
    assert calls > 20
    assert known_hosts.read_text() == text


@pytest.mark.parametrize("fault", [MemoryError(), OSError(5, "?"), RecursionError()], ids=kind)
@pytest.mark.parametrize("case", BAD)
def test_a_bad_key_is_never_trusted_if_its_files_cannot_be_read(known_hosts, case, fault):
    """From the reading of known_hosts on. A line is left out for nothing but its own text."""
    text, key, settings = BAD[case]
    known_hosts.write_text(text)

    def act():
        run(checker(known_hosts, settings).check(key))

    assert not with_faults(fault, act)[1]


@pytest.mark.parametrize("fault", [MemoryError(), SignatureError("?")], ids=kind)
def test_a_host_key_without_its_signature_is_never_shown(fault):
    """While the server's reply is judged: nobody is even asked about the key."""
    pair = make_pair(client_offers=Preferences(kex=("curve25519-sha256",)))
    client = pair.drive(Role.CLIENT, Phase.KEX_STRICT)
    while client.next_event():
        pass
    impostor = dataclasses.replace(OTHER, public=HOST_KEY.public)
    pair.server.transport._host_keys = {"ssh-ed25519": impostor}
    feed(pair.server, take(client))
    replies = []
    transport = client.transport
    transport._check_server = lambda *args: replies.append(args)
    with contextlib.suppress(RemoteProtocolError):  # NEWKEYS follows, before we can say ours
        feed(client, take(pair.server))
    del transport._check_server

    def act():
        try:
            transport._check_server(*replies[0])
        finally:
            assert transport.host_key_blob == transport.session_id == b""
            assert client.next_event() is None

    calls, trusted = with_faults(fault, act)
    assert not trusted
    assert calls > 50
    with pytest.raises(LocalProtocolError):
        client.accept_host_key()


class Distrust(TestDialogue):
    """A check that fails."""

    def __init__(self, fault):
        self.fault = fault

    async def trust(self, key):
        raise self.fault

    async def identities(self, binding):
        raise AssertionError(binding)


@pytest.mark.parametrize("fault", [*FAULTS, trio.TooSlowError()], ids=kind)
async def test_after_a_failed_check_nothing_of_the_user_leaves(fault, autojump_clock):
    links = make_links()
    async with linked(links, log_in=False):
        with pytest.raises(type(fault)):
            await links.client.log_in(Distrust(fault), 30.0)
        await trio.testing.wait_all_tasks_blocked()
        server = links.server.protocol
        assert server.transport.phase is Phase.NEWKEYS_STRICT, "it waits for our NEWKEYS"
        assert server.auth.user_name is None
