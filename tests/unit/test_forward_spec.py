"""What -L, -R, -D and -W say. That ssh reads them so: tests/interop/test_config_parity.py."""

import contextlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.forward.permit import is_permitted
from gateway.forward.spec import (
    Forward,
    Kind,
    Tcp,
    Unix,
    parse_forward,
    parse_listen,
    parse_stdio,
)

PORTS = st.integers(1, 65535)
HOSTS = st.text(string.ascii_lowercase + string.digits + ".-", min_size=1) | st.just("2001:db8::1")
PATHS = st.text(string.ascii_letters + ".:-%/", max_size=100).map("/".__add__).map(Unix)
LISTENS = st.builds(Tcp, st.none() | HOSTS | st.sampled_from(["*", ""]), PORTS) | PATHS
TARGETS = st.builds(Tcp, HOSTS, PORTS) | PATHS
FORWARDS = (
    st.builds(Forward, st.sampled_from([Kind.LOCAL, Kind.REMOTE]), LISTENS, TARGETS)
    | st.builds(Forward, st.sampled_from([Kind.REMOTE, Kind.DYNAMIC]), LISTENS, st.none())
    | st.builds(Forward, st.just(Kind.REMOTE), st.builds(Tcp, HOSTS, st.just(0)), TARGETS)
)


@given(FORWARDS)
def test_what_is_written_is_read(forward):
    option, _, text = str(forward).partition(" ")
    assert option == f"-{forward.kind.value}"
    assert parse_forward(forward.kind, text) == forward
    assert parse_listen(forward.kind, text) == forward.listen


@given(st.sampled_from(Kind), st.text() | st.text("[]:/\\ 01a*", max_size=12))
def test_any_text_is_a_forward_or_an_error(kind, text):
    for parse in (lambda: parse_forward(kind, text), lambda: parse_listen(kind, text)):
        with contextlib.suppress(ConfigError):
            parse()
    with contextlib.suppress(ConfigError):
        parse_stdio(text)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("a:1", Tcp("a", 1)), ("[::1]:22", Tcp("::1", 22)), ("/s", Unix("/s")),
        ("h:ssh", Tcp("h", 22)), ("[/a:b]", Unix("/a:b")),
    ],
)  # fmt: skip
def test_stdio(text, end):
    assert parse_stdio(text) == end


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("22", "neither HOST:PORT nor a path"), ("a:1:2", "neither"), ("", "an empty text: this"),
        (":1", "the target has no host"), ("a:0", "0 is not a port from 1 to 65535"),
        ("a b:1", "a b has a blank"), ("/" + "x" * 107, "longer than 107 bytes"),
    ],
)  # fmt: skip
def test_no_stdio(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_stdio(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1:a", "-L: 1:a: a is not a port"), ("1:\0:2", "a blank or a control character"),
        ("1:\x1b[2J:2", "a blank or a control character"), ("1:a:2:3:4", "this is no forwarding"),
        ("1:" + "a" * 2000 + ":2", "longer than 1024 characters"), ("8080", "target is missing"),
    ],
)  # fmt: skip
def test_errors_say_what_to_write(text, sentence):
    with pytest.raises(ConfigError) as caught:
        parse_forward(Kind.LOCAL, text)
    assert sentence in str(caught.value)
    assert "write [address:]port:host:port" in str(caught.value)
    assert str(caught.value).isprintable()


def test_to_cancel_where_it_listens_will_do():
    for text in ("8080", "8080:a:1"):
        assert parse_listen(Kind.LOCAL, text) == Tcp(None, 8080)
    assert parse_listen(Kind.LOCAL, "*:8080") == Tcp("*", 8080)
    assert parse_listen(Kind.LOCAL, "/s") == parse_listen(Kind.LOCAL, "/s:a:1") == Unix("/s")
    assert parse_listen(Kind.REMOTE, "0") == Tcp(None, 0)


def test_who_is_permitted():
    assert is_permitted(None, "a", 1)
    assert not is_permitted((), "a", 1)
    some = (("a", 1), (None, 2), ("b", None))
    permitted = {("a", 1), ("c", 2), ("b", 3), ("A", 1)}
    for target in (*permitted, ("a", 3), ("a.b", 1), ("", 1), ("*", 1)):
        assert is_permitted(some, *target) == (target in permitted)
