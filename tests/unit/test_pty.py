"""The terminal of this program: what is told of it, and that it comes back."""

from __future__ import annotations

import os
import termios

import pytest

from gateway.net.pty import LocalTerminal, WindowSize, encoded_modes, window_size
from gateway.ssh import wire

USUAL = [
    termios.ICRNL | termios.IXON,
    termios.OPOST | termios.ONLCR,
    termios.CS8 | termios.CREAD,
    termios.ISIG | termios.ICANON | termios.ECHO | termios.ECHOE | termios.IEXTEN,
    termios.B38400,
    termios.B115200,
    [b"\0"] * 32,
]


@pytest.fixture
def ends():
    master, slave = os.openpty()
    yield master, slave
    for number in (master, slave):
        os.close(number)


def decoded(modes):
    assert modes[-1:] == b"\0"
    reader = wire.Reader(modes[:-1])
    return {reader.take(1)[0]: reader.uint32() for _ in range(len(modes) // 5)}


def test_modes():
    """RFC 4254 section 8, in every opcode that Linux has."""
    attributes = [*USUAL[:6], list(USUAL[6])]
    attributes[6][termios.VINTR] = b"\x03"
    attributes[6][termios.VEOL2] = b"\xfe"
    attributes[6][termios.VMIN] = 1
    found = decoded(encoded_modes(attributes))
    assert (found[129], found[128]) == (115200, 38400)
    assert (found[1], found[7], found[2]) == (3, 0xFE, 255)  # VINTR, VEOL2, and one that is off
    assert {opcode for opcode, value in found.items() if 30 <= opcode < 100 and value == 1} == {
        36, 38, 50, 51, 53, 54, 59, 70, 72, 90, 91,
    }  # fmt: skip
    assert found.keys() == {
        *range(1, 11), 12, 13, 14, 18, *range(30, 43), *range(50, 63), *range(70, 76),
        *range(90, 94), 128, 129,
    }  # fmt: skip


def test_without_a_terminal():
    assert encoded_modes(None) == b"\0"
    for terminal in (LocalTerminal(None), LocalTerminal(os.open("/dev/null", os.O_RDONLY))):
        assert terminal.request("vt100") == wire.text("vt100") + bytes(16) + wire.string(b"\0")
        with terminal.raw():
            assert not terminal.is_raw
        assert terminal.new_size() is None


def test_it_comes_back_also_after_an_error(ends):
    master, slave = ends
    before = termios.tcgetattr(master)
    terminal = LocalTerminal(slave)
    with terminal.raw():
        now = termios.tcgetattr(master)
        assert not now[3] & (termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
        assert not now[1] & termios.OPOST
        assert not now[0] & (termios.ICRNL | termios.IXON)
    assert termios.tcgetattr(master) == before
    with pytest.raises(ZeroDivisionError), terminal.raw():
        raise ZeroDivisionError
    assert termios.tcgetattr(master) == before


def test_a_line_can_be_typed_in_between(ends):
    master, slave = ends
    terminal = LocalTerminal(slave)
    with terminal.raw():
        terminal.make_line()
        now = termios.tcgetattr(master)
        assert now[3] & termios.ICANON
        assert now[3] & termios.ECHO
        assert not now[3] & termios.ISIG
        os.write(master, b"abc\x03")
        assert os.read(slave, 10) == b"abc\x03"  # Ctrl-C ends the line at once


def test_a_terminal_that_is_gone():
    master, slave = os.openpty()
    terminal = LocalTerminal(slave)
    with terminal.raw():
        os.close(master)
    os.close(slave)


def test_a_size_is_told_once(ends):
    _, slave = ends
    termios.tcsetwinsize(slave, (24, 80))
    terminal = LocalTerminal(slave)
    assert terminal.request("x")[5:13] == wire.uint32(80) + wire.uint32(24)
    assert terminal.new_size() is None
    termios.tcsetwinsize(slave, (50, 132))
    assert terminal.new_size() == WindowSize(132, 50) == window_size(slave)
    assert terminal.new_size() is None
