"""A scripted proxy over real sockets: it may say anything, at any pace, and then nothing."""

import socket
from contextlib import contextmanager, suppress

import pytest
import trio

from gateway.errors import ConfigError, ConnectionLost
from gateway.net import dial as dialling
from gateway.net.dial import DialOptions, NameResolutionError
from gateway.net.via import dial_through
from gateway.socks.upstream import Scheme, UpstreamProxy
from tests.interop.targets import Target, read_all

OK5 = b"\5\0\0\1\0\0\0\0\0\0"
OK = {
    Scheme.SOCKS5H: (b"\5\0", OK5),
    Scheme.SOCKS5: (b"\5\0", OK5),
    Scheme.SOCKS4A: (b"\0\x5a" + bytes(6),),
    Scheme.HTTP: (b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n",),
}
BANNER = b"SSH-2.0-there\r\n"
HOST = "name.invalid"  # whoever looks it up finds nothing


@contextmanager
def scripted(scheme, *answers, after=None):
    """A proxy that answers what is asked, one answer after the other, and keeps what it got."""
    got = []

    def talk(sock):
        for answer in answers:
            got.append(sock.recv(4096))
            for piece in answer if isinstance(answer, list) else [answer]:
                sock.sendall(piece)
        if after is not None:
            after(sock)

    with Target(talk) as target:
        yield UpstreamProxy(scheme, "127.0.0.1", target.port), got


def one_by_one(data):
    return [data[at : at + 1] for at in range(len(data))]


async def reached(sock):
    """Read what comes after the proxies."""
    with sock:
        sock.setblocking(True)
        return await trio.to_thread.run_sync(read_all, sock)


@pytest.mark.parametrize("scheme", [Scheme.SOCKS5H, Scheme.SOCKS4A, Scheme.HTTP])
@pytest.mark.parametrize("slowly", [False, True])
async def test_what_follows_the_handshake_is_not_touched(scheme, slowly):
    """In the same segment, or a byte at a time; and the name is not looked up here."""
    *first, last = OK[scheme]
    last += BANNER
    with scripted(scheme, *first, one_by_one(last) if slowly else last) as (proxy, got):
        sock = await dial_through([proxy], HOST, 22, DialOptions())
        assert await reached(sock) == BANNER
    assert HOST.encode() in b"".join(got)


async def test_a_chain_is_one_handshake_in_the_other():
    schemes = (Scheme.SOCKS5H, Scheme.HTTP, Scheme.SOCKS4A)
    answers = [answer for scheme in schemes for answer in OK[scheme]]
    with scripted(schemes[0], *answers, after=lambda sock: sock.sendall(BANNER)) as (first, got):
        others = [UpstreamProxy(scheme, f"{scheme.value}.invalid", 7) for scheme in schemes[1:]]
        sock = await dial_through([first, *others], HOST, 22, DialOptions())
        assert await reached(sock) == BANNER
    assert b"http.invalid\0\7" in got[1]
    assert got[2].startswith(b"CONNECT socks4a.invalid:7 ")
    assert got[3].endswith(b"name.invalid\0")


@pytest.fixture
def no_look_up(monkeypatch):
    """The names that are looked up here."""
    asked = []
    original = socket.getaddrinfo

    def look_up(host, *arguments):
        if host != "127.0.0.1":
            asked.append(host)
        return original(host, *arguments)

    monkeypatch.setattr(dialling.socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize("scheme", [Scheme.SOCKS5H, Scheme.SOCKS4A, Scheme.HTTP])
async def test_no_name_is_looked_up_here(scheme, no_look_up):
    with scripted(scheme, *OK[scheme]) as (proxy, _):
        (await dial_through([proxy], HOST, 22, DialOptions())).close()
    assert no_look_up == []


@pytest.mark.parametrize("scheme", [Scheme.SOCKS5H, Scheme.SOCKS4A, Scheme.HTTP])
async def test_a_name_that_is_too_long_is_not_looked_up(scheme, no_look_up):
    """T57."""
    with scripted(scheme) as (proxy, _), pytest.raises(ConfigError, match="has 256 bytes"):
        await dial_through([proxy], "a" * 256, 22, DialOptions())
    assert no_look_up == []


async def test_socks5_looks_it_up_here_and_says_the_address(no_look_up):
    with scripted(Scheme.SOCKS5, *OK[Scheme.SOCKS5]) as (proxy, got):
        options = DialOptions(socket.AF_INET)
        (await dial_through([proxy], "localhost", 22, options)).close()
    with scripted(Scheme.SOCKS5) as (proxy, _), pytest.raises(NameResolutionError, match=HOST):
        await dial_through([proxy], HOST, 22, options)
    assert got[1] == b"\5\1\0\1\x7f\0\0\1\0\x16"
    assert no_look_up[0] == "localhost"


FLOOD = bytes(1 << 20)


@pytest.mark.parametrize(
    ("scheme", "answers", "said"),
    [
        (Scheme.SOCKS5H, [b""], "closed the connection instead of making one to name.invalid"),
        (Scheme.SOCKS5H, [b"\5"], "closed the connection"),
        (Scheme.SOCKS5H, [b"\5\0", OK5[:-1]], "closed the connection"),
        (Scheme.SOCKS5H, [b"\5\0", b"\5\5"], "port 22: the host refused the connection"),
        (Scheme.SOCKS5H, [FLOOD], "begins with 0x00, which is not SOCKS"),
        (Scheme.SOCKS5H, [b"\5\0", b"\5\0\0\x09" + FLOOD], "has an address of type 9"),
        (Scheme.SOCKS4A, [FLOOD], "refused with the unknown code 0"),
        (Scheme.HTTP, [b"HTTP/1.1 200 " + b"x" * (1 << 20)], "is not HTTP"),
        (Scheme.HTTP, [b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000], "is not HTTP"),
        (Scheme.HTTP, [b"HTTP/1.1 100 x\r\n\r\n" * 50_000], "informational responses"),
        (Scheme.HTTP, [b"HTTP/1.1 502 \x1b[2Jx\r\n\r\n"], "502"),
    ],
)
async def test_bad_answers_end_in_one_sentence(scheme, answers, said):
    def leave(sock):
        with suppress(OSError):  # who has heard enough may have left first
            sock.shutdown(socket.SHUT_WR)

    try:
        with (
            scripted(scheme, *answers, after=leave) as (proxy, _),
            trio.fail_after(30),
            pytest.raises(ConnectionLost) as caught,
        ):
            await dial_through([proxy], HOST, 22, DialOptions())
    except OSError:  # whoever floods may find that nobody listens any more
        assert max(map(len, answers)) > 100_000
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert f"{scheme.value} proxy 127.0.0.1 port {proxy.port}" in str(caught.value)


async def test_a_silent_proxy_is_the_callers_to_leave():
    with scripted(Scheme.SOCKS5H, after=read_all) as (proxy, _):
        with trio.move_on_after(0.1) as scope:
            await dial_through([proxy], HOST, 22, DialOptions())
        assert scope.cancelled_caught
