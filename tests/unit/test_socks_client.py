"""SOCKS and HTTP CONNECT as their clients: every message, every refusal, nothing taken too much."""

from __future__ import annotations

import base64

import pytest

from gateway.errors import ConfigError, RemoteProtocolError
from gateway.socks.client import Phase, Socks4aClient, Socks5Client
from gateway.socks.http_connect import HEADER_LIMIT, HttpConnect
from gateway.socks.replies import ReplyCode
from gateway.socks.upstream import ProxyRefused

OK5 = b"\5\0\0\1\0\0\0\0\0\0"
BANNER = b"SSH-2.0-there\r\n"


def talk(client, *answers):
    """Give one answer after the other; return what was sent, and what of the last was not taken."""
    sent, rest = [client.data_to_send()], b""
    for answer in answers:
        used = client.receive(answer)
        rest = answer[used:]
        sent.append(client.data_to_send())
    return sent, rest


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("jump.example", b"\3\x0cjump.example"),
        ("192.0.2.1", b"\1\xc0\0\2\1"),
        ("2001:db8::1", b"\4\x20\1\x0d\xb8" + bytes(11) + b"\1"),
        ("fe80::1%eth0", b"\3\x0cfe80::1%eth0"),
        ("é.example", b"\3\x0fxn--9ca.example"),
        ("a" * 255, b"\3\xff" + b"a" * 255),
    ],
)
def test_socks5(host, address):
    client = Socks5Client(host, 2222)
    sent, rest = talk(client, b"\5\0", OK5 + BANNER)
    assert sent == [b"\5\1\0", b"\5\1\0" + address + b"\x08\xae", b""]
    assert (client.is_done, rest) == (True, BANNER)


def test_socks5_with_a_password():
    client = Socks5Client("host", 22, "alice", "sésame")
    sent, rest = talk(client, b"\5\2", b"\1\0", OK5 + BANNER)
    assert sent[:2] == [b"\5\2\0\2", b"\1\5alice\7s\xc3\xa9same"]
    assert (client.is_done, rest) == (True, BANNER)
    sent, _ = talk(Socks5Client("host", 22, "alice", "x"), b"\5\0")
    assert sent[1].startswith(b"\5\1\0\3"), "a proxy need not ask for it"


@pytest.mark.parametrize(
    "bound", [b"\1" + bytes(6), b"\4" + bytes(18), b"\3\0" + bytes(2), b"\3\xff" + bytes(257)]
)
def test_every_bound_address_is_read_to_its_end_and_no_further(bound):
    reply = b"\5\0\0" + bound
    for cut in range(len(reply)):
        client = Socks5Client("host", 22)
        talk(client, b"\5\0")
        assert client.receive(reply[:cut]) == cut
        assert not client.is_done
        assert client.receive(reply[cut:] + BANNER) == len(reply) - cut
        assert client.is_done
        assert client.receive(BANNER) == 0


def test_socks4a():
    client = Socks4aClient("jump.example", 22, "bob")
    sent, rest = talk(client, b"\0\x5a" + bytes(6) + BANNER)
    assert sent[0] == b"\4\1\0\x16\0\0\0\1bob\0jump.example\0"
    assert (client.is_done, rest) == (True, BANNER)
    assert Socks4aClient("192.0.2.1", 22).data_to_send() == b"\4\1\0\x16\xc0\0\2\1\0"
    name = Socks4aClient("2001:db8::1", 22).data_to_send()
    assert name == b"\4\1\0\x16\0\0\0\1\0" + b"2001:db8::1\0"


# -- T57 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Socks5Client, Socks4aClient, HttpConnect])
@pytest.mark.parametrize("host", ["a" * 256, "é." * 128, "é" * 64, "a.\0.example"])
def test_a_name_that_does_not_fit_is_an_error(make, host):
    """CVE-2023-38545: a client that then looked the name up itself, and overran its buffer."""
    with pytest.raises(
        ConfigError, match=r"^--via: the host name .* (has .* bytes or a NUL|is none of)"
    ):
        make(host, 22)


def test_a_secret_that_does_not_fit_is_an_error_that_does_not_tell_it():
    with pytest.raises(ConfigError, match="the password has 256 bytes") as caught:
        Socks5Client("host", 22, "alice", "s" * 256)
    assert "sss" not in str(caught.value)


# -- what the proxy refuses ------------------------------------------------------------------------


@pytest.mark.parametrize("code", range(1, 256))
def test_every_reply_code_has_a_cause_and_a_remedy(code):
    client = Socks5Client("host", 22)
    talk(client, b"\5\0")
    with pytest.raises(ProxyRefused) as caught:
        client.receive(bytes((5, code)))
    said = str(caught.value)
    assert ": " in said
    assert ("not in RFC 1928" in said) == (code not in frozenset(ReplyCode))


@pytest.mark.parametrize("code", [code for code in range(256) if code != 0x5A])
def test_every_socks4_code(code):
    with pytest.raises(ProxyRefused):
        Socks4aClient("host", 22).receive(bytes((0, code)) + bytes(6))


@pytest.mark.parametrize(
    ("client", "answers", "said"),
    [
        (Socks5Client("h", 1), [b"\5\xff"], "write user and password into its URL"),
        (Socks5Client("h", 1, "a", "b"), [b"\5\xff"], "takes no user and password"),
        (Socks5Client("h", 1, "a", "b"), [b"\5\2", b"\1\1"], "check them in its URL"),
    ],
)
def test_refused_logins(client, answers, said):
    with pytest.raises(ProxyRefused, match=said):
        talk(client, *answers)


@pytest.mark.parametrize(
    ("client", "answers", "said"),
    [
        (Socks5Client("h", 1), [b"\5\2"], "chose method 2, which was not offered"),
        (Socks5Client("h", 1), [b"\5\1"], "chose method 1, which was not offered"),
        (Socks5Client("h", 1), [b"\4\0"], "begins with 0x04, which is not SOCKS"),
        (Socks5Client("h", 1), [b"HTTP/1.1 400 Bad Request\r\n"], "this looks like HTTP"),
        (Socks5Client("h", 1), [BANNER], "begins with 0x53, which is not SOCKS"),
        (Socks5Client("h", 1, "a", "b"), [b"\5\2", b"\2\0"], "begins with 0x02"),
        (Socks5Client("h", 1), [b"\5\0", b"\5\0\0\2\0"], "an address of type 2"),
        (Socks4aClient("h", 1), [BANNER], "begins with 0x53"),
        (HttpConnect("h", 1), [BANNER], "begins with SSH-2, which is not HTTP"),
        (HttpConnect("h", 1), [b"\5\0\r\n\r\n"], "is not HTTP"),
        (HttpConnect("h", 1), [b"HTTP/1.1 100 x\r\n\r\n" * 9], "goes on with informational"),
        (HttpConnect("h", 1), [b"HTTP/1.1 200 " + b"x" * HEADER_LIMIT], "is not HTTP"),
    ],
)
def test_what_is_no_answer(client, answers, said):
    with pytest.raises(RemoteProtocolError, match=said):
        talk(client, *answers)


# -- HTTP ------------------------------------------------------------------------------------------


def test_http_connect():
    client = HttpConnect("2001:db8::1", 22)
    sent, rest = talk(
        client, b"HTTP/1.1 100 go on\r\n\r\nHTTP/1.0 200 yes\r\nX: y\r\n\r\n" + BANNER
    )
    assert sent[0] == b"CONNECT [2001:db8::1]:22 HTTP/1.1\r\nHost: [2001:db8::1]:22\r\n\r\n"
    assert (client.is_done, rest) == (True, BANNER)


def test_http_takes_no_byte_of_what_follows_however_it_is_cut():
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n"
    for cut in range(1, len(answer)):
        client = HttpConnect("host", 22)
        assert client.receive(answer[:cut]) == cut
        assert client.receive(answer[cut:] + BANNER) == len(answer) - cut
        assert client.is_done


def test_http_with_a_password():
    request = HttpConnect("host", 22, "alice", "sés:ame").data_to_send()
    token = base64.b64encode("alice:sés:ame".encode())
    assert b"\r\nProxy-Authorization: Basic " + token + b"\r\n" in request


@pytest.mark.parametrize(
    ("status", "user", "said"),
    [
        (407, None, "407 no: write user and password into its URL"),
        (407, "alice", "407 no: it does not take this user and password"),
        (403, None, "403 no: its rules forbid it"),
        (302, None, "302 no: its log may say why"),
        (404, None, "404 no: is this a proxy, or a web server?"),
        (502, None, "502 no: it does not reach the host"),
        (504, None, "504 no: the host did not answer in time"),
    ],
)
def test_http_refusals(status, user, said):
    with pytest.raises(ProxyRefused, match=f"it answered {said.replace('?', '.')}"):
        HttpConnect("host", 22, user).receive(b"HTTP/1.1 %d no\r\n\r\n" % status)


def test_the_words_of_a_proxy_are_safe_to_show():
    with pytest.raises(ProxyRefused) as caught:
        HttpConnect("host", 22).receive(b"HTTP/1.1 403 \x80\xff" + b"x" * 200 + b"\r\n\r\n")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_phases():
    client = Socks5Client("host", 22, "a", "b")
    seen = [client.phase]
    for answer in (b"\5\2", b"\1\0", OK5):
        client.receive(answer)
        seen.append(client.phase)
    assert seen == [Phase.METHODS, Phase.PASSWORD, Phase.CONNECT, Phase.CONNECTED]
