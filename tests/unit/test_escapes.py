"""Escapes in what is typed, and the command line of ``~C``, without a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ChannelOpenError
from gateway.net.command_line import run_line
from gateway.net.escapes import Escape, Escapes, caret

KEYS = st.lists(st.sampled_from([b"~", b"\r", b"\n", b".", b"a", b"\xff", b"?", b"%"]), max_size=12)


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        (b"", []),
        (b"abc", [b"abc"]),
        (b"~.", [Escape.DISCONNECT]),
        (b"a~.", [b"a~."]),
        (b"\r~.", [b"\r", Escape.DISCONNECT]),
        (b"\n~#x", [b"\n", Escape.LIST, b"x"]),
        (b"~~.", [b"~."]),
        (b"~~~.", [b"~~."]),
        (b"~x~.", [b"~x~."]),
        (b"~\r~.", [b"~\r", Escape.DISCONNECT]),
        (b"~?~?", [Escape.HELP, Escape.HELP]),  # as in OpenSSH, an escape leaves a line's beginning
        (b"~\x1a~&~B~R~V~v~C", [Escape.SUSPEND, Escape.BACKGROUND, Escape.BREAK, Escape.REKEY,
                                Escape.LESS_VERBOSE, Escape.MORE_VERBOSE, Escape.COMMAND_LINE]),
    ],
)  # fmt: skip
def test_what_is_sent_and_what_is_done(typed, parts):
    assert list(Escapes(b"~").feed(typed)) == parts


@given(KEYS)
def test_cuts_change_nothing(keys):
    whole = joined(Escapes(b"~").feed(b"".join(keys)))
    escapes = Escapes(b"~")
    assert joined(part for key in keys for part in escapes.feed(key)) == whole


def joined(parts):
    found = [b""]
    for part in parts:
        if isinstance(part, bytes) and isinstance(found[-1], bytes):
            found[-1] += part
        else:
            found.append(part)
    return found


def test_any_character():
    for number in range(256):
        character = bytes([number])
        if character in {b"\r", b"\n", b"."}:
            continue
        escapes = Escapes(character)
        assert list(escapes.feed(b"\r" + character + b".")) == [b"\r", Escape.DISCONNECT]
        assert escapes.shown(Escape.DISCONNECT) == caret(character) + "."
    assert caret(b"\x1d") == "^]"
    assert any("^]^]" in line for line in Escapes(b"\x1d").help())


# ---- the command line ----------------------------------------------------------------------------


class Forwards:
    def __init__(self):
        self.done = []

    def list(self):
        return []

    async def add(self, kind, spec):
        self.done.append(("add", kind, spec))
        if "bad" in spec:
            raise ChannelOpenError(1, "it cannot be")
        return "Forwarding port."

    async def cancel(self, kind, spec):
        self.done.append(("cancel", kind, spec))
        return "Canceled forwarding."


@pytest.mark.parametrize(
    ("line", "done"),
    [
        ("-L 80:a:80", ("add", "L", "80:a:80")),
        ("L80:a:80\n", ("add", "L", "80:a:80")),
        ("  -R  [::1]:0:a:1  ", ("add", "R", "[::1]:0:a:1")),
        ("-R 0", ("add", "R", "0")),
        ("-D*:1080", ("add", "D", "*:1080")),
        ("-KL 80", ("cancel", "L", "80")),
        ("KR b:80", ("cancel", "R", "b:80")),
        ("-KD80", ("cancel", "D", "80")),
    ],
)
async def test_lines_that_change_forwardings(line, done):
    forwards = Forwards()
    said = await run_line(line, forwards, None)
    assert forwards.done == [done]
    assert said == ["Canceled forwarding." if done[0] == "cancel" else "Forwarding port."]
    assert await run_line(line, None, None) == ["Forwardings cannot be changed here."]


@pytest.mark.parametrize(
    "line", ["x", "-X 1", "-L", "-L  ", "-K", "-KX 1", "--L 1", "-KKL 1", "!id"]
)
async def test_lines_that_mean_nothing(line):
    forwards = Forwards()
    assert await run_line(line, forwards, None) == [
        "Invalid command: help lists those that there are."
    ]
    assert forwards.done == []


async def test_the_other_lines():
    run = []

    async def run_locally(command):
        run.append(command)

    assert await run_line("", None, None) == []
    assert await run_line(" - \n", None, None) == []
    assert await run_line("!echo  a", None, run_locally) == []
    assert run == ["echo  a"]
    assert "!args" not in "".join(await run_line("help", None, None))
    assert "!args" in "".join(await run_line("?", None, run_locally))
    assert await run_line("-L bad", Forwards(), None) == ["it cannot be"]
