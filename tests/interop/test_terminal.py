"""Sessions with a terminal, driven through one: modes, keys, escapes, signals, and its return.

The shell on the server is dash with a prompt of ours; who drives waits for what is shown.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import termios
from dataclasses import replace

import pytest

from tests.interop.sides import CONNECT, HOST, SSH, command, running_for_sessions
from tests.support.programs import (
    Terminal,
    eventually,
    free_port,
    make_keys,
    running_sshd,
)

SHELL = "exec env PS1='ready> ' ENV= sh -i"
PROMPT = "ready> "
FIRST_SET = 'echo set me; read go; exec "$@"'
AS_A_JOB = '"$@"; echo "status $?"; read go'
LOCAL_FLAGS = 3
IUTF8 = 0o40000


@pytest.fixture(scope="module")
def server(openssh):
    with running_for_sessions(openssh) as endpoint:
        yield endpoint


@contextlib.contextmanager
def shell(server, *options):
    """A shell on the server in a terminal of ours, at its prompt."""
    words = command(CONNECT, server, "-t", *options, HOST, SHELL)
    with Terminal(*words, TERM="vt100") as terminal:
        terminal.expect(PROMPT)
        yield terminal


# ---- the terminal there --------------------------------------------------------------------------


def strange(attributes):
    """Settings that are not the usual ones, each kind."""
    changed = [*attributes[:6], list(attributes[6])]
    changed[0] |= termios.IXANY | termios.IUCLC | IUTF8 | termios.IGNCR
    changed[0] &= ~(termios.IXON | termios.IMAXBEL)
    changed[1] |= termios.OLCUC | termios.ONLRET
    changed[3] |= termios.NOFLSH | termios.TOSTOP
    changed[3] &= ~(termios.ECHOE | termios.ECHOCTL)
    changed[4] = changed[5] = termios.B9600
    changed[6][termios.VINTR] = b"\x01"
    changed[6][termios.VERASE] = b"\x08"
    changed[6][termios.VKILL] = b"\x00"
    changed[6][termios.VEOL2] = b"\xfe"
    return changed


def settings_there(program, server, *, attributes=None):
    """What stty says on the server; the terminal here is set before the program begins."""
    words = command(program, server, "-t", HOST, "stty -a; echo $TERM; stty size; echo end")
    with Terminal("sh", "-c", FIRST_SET, "sh", *words, TERM="linux") as terminal:
        terminal.expect("set me\n")
        terminal.resize(33, 101)
        if attributes is not None:
            terminal.attributes = attributes(terminal.attributes)
        terminal.type("go")
        terminal.expect(r"(?is)speed .*\nend\n")
        return terminal.matched


@pytest.mark.parametrize("attributes", [None, strange])
def test_the_terminal_there_is_as_ours(server, attributes):
    ours = settings_there(CONNECT, server, attributes=attributes)
    assert ours == settings_there(SSH, server, attributes=attributes)
    assert "rows 33; columns 101" in ours.lower()
    assert ("9600" in ours) == (attributes is not None)


def test_without_a_terminal_here_the_modes_say_nothing(server):
    words = ["-t", "-t", HOST, "stty -a; tty"]
    results = [
        subprocess.run(
            command(program, server, *words), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=30, check=False,
        )
        for program in (SSH, CONNECT)
    ]  # fmt: skip
    said = [re.sub("/dev/pts/[0-9]+", "TTY", result.stdout) for result in results]
    assert said[0] == said[1]
    assert said[0].endswith("TTY\n")


def test_which_sessions_have_a_terminal(server):
    for options, has in [
        ([HOST, "tty"], False),
        (["-t", HOST, "tty"], True),
        (["-o", "RequestTTY=yes", HOST, "tty"], True),
        (["-t", "-T", HOST, "tty"], False),
        (["-n", "-t", HOST, "tty"], False),
        (["-n", "-t", "-t", HOST, "tty"], True),
        (["-o", "RequestTTY=force", HOST, "tty"], True),
    ]:
        shown = []
        for program in (SSH, CONNECT):
            with Terminal(*command(program, server, *options)) as terminal:
                terminal.expect("/dev/pts/|not a tty")
                shown.append(terminal.matched)
                terminal.wait()
        assert shown == ["/dev/pts/" if has else "not a tty"] * 2, options


def test_the_size_follows(server):
    remote = "trap 'stty size; exit 4' WINCH; echo up; while sleep 0.05; do :; done"
    with Terminal(*command(CONNECT, server, "-t", HOST, remote)) as terminal:
        terminal.expect("up\n")
        terminal.resize(40, 98)
        terminal.expect("40 98\n")
        assert terminal.wait() == 4


def test_every_byte_passes(server):
    count = 256
    remote = f"stty raw -echo; echo up; head -c {count} | od -An -v -tx1"
    with Terminal(*command(CONNECT, server, "-t", "-e", "none", HOST, remote)) as terminal:
        terminal.expect("up")
        terminal.press(bytes(range(count)))
        for number in range(count):
            terminal.expect(f" {number:02x}")
        assert terminal.wait() == 0


# ---- it comes back -------------------------------------------------------------------------------


def end_of_shell(terminal, server):
    terminal.press("exit 7\r")
    return 7


def disconnect(terminal, server):
    terminal.press("\r~.")
    return 255


def lost_link(terminal, server):
    terminal.press("echo pid=$PPID.\r")
    terminal.expect(r"pid=([0-9]+)\.")
    os.kill(int(terminal.matched[4:-1]), signal.SIGKILL)
    return 255


def killed_by(number):
    def end(terminal, server):
        terminal.signal(number)
        return 255

    return end


ENDS = {
    "exit": end_of_shell,
    "escape": disconnect,
    "lost link": lost_link,
    **{name: killed_by(signal.Signals[name]) for name in ("SIGTERM", "SIGHUP", "SIGINT")},
    "SIGQUIT": killed_by(signal.SIGQUIT),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_terminal_is_afterwards_what_it_was(server, name):
    words = command(CONNECT, server, "-t", HOST, SHELL)
    with Terminal("sh", "-c", FIRST_SET, "sh", *words) as terminal:
        terminal.expect("set me\n")
        terminal.attributes = strange_but_legible(terminal.attributes)
        before = terminal.attributes
        terminal.type("go")
        terminal.expect(PROMPT)
        assert not terminal.attributes[LOCAL_FLAGS] & (termios.ICANON | termios.ISIG)
        status = ENDS[name](terminal, server)
        assert terminal.wait() == status
        assert terminal.attributes == before
        assert "Traceback" not in terminal.seen


def strange_but_legible(attributes):
    changed = [*attributes[:6], list(attributes[6])]
    changed[0] |= termios.IXANY
    changed[6][termios.VERASE] = b"\x08"
    return changed


def test_it_is_restored_if_the_server_refuses(server):
    with Terminal(*command(CONNECT, server, "-t", "-s", HOST, "nothing")) as terminal:
        before = terminal.attributes
        assert terminal.wait() == 255
        assert terminal.attributes == before
        assert "refused to start the subsystem nothing" in terminal.seen


def test_a_shell_without_the_terminal_that_is_refused(openssh):
    keys = make_keys(openssh.folder / "no-terminal-keys")
    with (
        running_sshd(keys, "PermitTTY no\n", replace(openssh, chroots=False)) as server,
        Terminal(*command(CONNECT, server, "-v", HOST)) as terminal,
    ):
        terminal.expect("logged in")
        terminal.type("tty; echo up")
        terminal.expect("not a tty\nup\n")
        assert terminal.echoes
        terminal.type("exit 4")
        assert terminal.wait() == 4


def test_messages_begin_at_the_left(server):
    """While the terminal is raw a newline alone would not return the carriage."""
    with Terminal(*command(CONNECT, server, "-v", "-v", "-t", HOST, SHELL)) as terminal:
        terminal.expect(PROMPT)
        terminal.press("~R")
        terminal.expect("keys 2")
        terminal.press("\r")
        terminal.expect(PROMPT)
        assert "gateway: " in terminal.seen
        alone = re.search("(?<!\r)\n", terminal.seen_raw.partition("ready> ")[2])
        assert alone is None


# ---- escapes -------------------------------------------------------------------------------------


def test_help_list_break_and_verbosity(server):
    with shell(server) as terminal:
        terminal.press("~?")
        terminal.expect(r" ~\.   - terminate connection\n")
        terminal.expect(r"immediately after newline\.\)\n")
        terminal.press("~#")
        terminal.expect(r"The following connections are open:\n  #0 session ")
        terminal.press("~v")
        terminal.expect(r"~v \[LogLevel VERBOSE\]\n")
        terminal.press("~V~V")
        terminal.expect(r"~V \[LogLevel ERROR\]\n")
        terminal.press("~B")
        terminal.expect("~B\n")
        terminal.press("echo still h''ere\r")
        terminal.expect("still here\n")


def test_they_are_recognised_only_after_a_newline(server):
    with shell(server) as terminal:
        terminal.press("echo a~.b ~~ '~?'\r")
        terminal.expect(r"\na~\.b ~~ ~\?\n")
        terminal.press("~~x\x15~x\r")  # a tilde sent by typing it twice, and Ctrl-U
        terminal.press("\r~xyz\r")
        terminal.expect("~xyz: not found")


@pytest.mark.parametrize(
    ("options", "key"), [(["-e", "^]"], "\x1d"), (["-o", "EscapeChar=%"], "%")]
)
def test_another_character(server, options, key):
    with shell(server, *options) as terminal:
        terminal.press("~.\r")
        terminal.expect(PROMPT)
        terminal.press(f"{key}.")
        assert terminal.wait() == 255


def test_none(server):
    with shell(server, "-e", "none") as terminal:
        terminal.press("~.\r")
        terminal.expect(PROMPT)
        terminal.press("exit\r")
        terminal.wait()


def test_no_escapes_without_a_terminal(server):
    result = subprocess.run(
        command(CONNECT, server, HOST, "cat"), input=b"\n~.\n", capture_output=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, b"\n~.\n")


def test_new_keys(server):
    with shell(server, "-v", "-v") as terminal:
        terminal.press("~R")
        terminal.expect("keys 2: ")
        terminal.press("echo still h''ere\r")
        terminal.expect("still here\n")


def test_the_command_line_is_off_by_default(server):
    with shell(server) as terminal:
        terminal.press("~C")
        terminal.expect("commandline disabled: it needs EnableEscapeCommandline=yes\n")
        terminal.press("echo go''es on\r")
        terminal.expect("goes on\n")


def test_the_command_line(server, tmp_path):
    options = ["-o", "EnableEscapeCommandline=yes", "-o", "PermitLocalCommand=yes"]
    with shell(server, *options) as terminal:
        for line, answer in [
            ("help", "-KD.*Cancel dynamic forward\n.*!args .*Execute local command\n"),
            ("-X 1", r"Invalid command: help lists those that there are\.\n"),
            ("-L", "Invalid command"),
            (f"!echo here; touch {tmp_path}/mark", "\nhere\n"),
        ]:
            terminal.press("~C")
            terminal.expect("gateway> ")
            eventually(lambda: terminal.echoes, "the line can be edited")
            terminal.type(line)
            terminal.expect(answer)
        eventually((tmp_path / "mark").exists, "the local command has run")
        for nothing in ("\n", "\x03", "\x04", "  \n"):  # Enter, Ctrl-C, Ctrl-D, blanks
            eventually(lambda: not terminal.echoes, "raw again")
            terminal.press("~C")
            terminal.expect("gateway> ")
            eventually(lambda: terminal.echoes, "the line can be edited")
            terminal.press(nothing)
        eventually(lambda: not terminal.echoes, "raw again")
        terminal.press("echo go''es on\r")
        terminal.expect("goes on\n")


def test_forwards_while_the_session_runs(server, echo_port):
    local, remote, dynamic = free_port(), free_port(), free_port()
    ways = (
        ("L", f"{local}:127.0.0.1:{echo_port}", local),
        ("R", f"{remote}:127.0.0.1:{echo_port}", remote),
        ("D", f"{dynamic}", dynamic),
    )
    with shell(server, "-o", "EnableEscapeCommandline=yes") as terminal:

        def say(line, answer):
            terminal.press("~C")
            terminal.expect("gateway> ")
            eventually(lambda: terminal.echoes, "the line can be edited")
            terminal.type(line)
            terminal.expect(answer)
            eventually(lambda: not terminal.echoes, "raw again")

        for kind, spec, port in ways:
            say(f"-{kind} {spec}", f"Forwarding -{kind} {port}")
        for port in (local, remote):
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"
        say("-L 1", "-L: 1: the target is missing")
        say(f"-L {local}:localhost:1", "another program uses this port")
        terminal.press("~#")
        for kind, _, port in ways:
            terminal.expect(f"-{kind} {port}")
        for kind, _, port in ways:
            say(f"-K{kind}{port}", f"Canceled -{kind} {port}")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 5)
        say(f"-KL{local}", "no such forwarding")
        terminal.press("echo go''es on\r")
        terminal.expect("goes on\n")


def test_suspended_and_back(server):
    words = command(CONNECT, server, "-t", HOST, SHELL)
    script = '"$@"; echo "stopped $?"; stty -a; read go; fg; echo "status $?"'
    with Terminal("bash", "-mc", script, "bash", *words) as terminal:
        before = terminal.attributes
        terminal.expect(PROMPT)
        terminal.press("\r~\x1a")
        terminal.expect(r"~\^Z \[suspend gateway\]\n")
        terminal.expect(r"stopped 14[0-9]\n")
        assert terminal.attributes == before
        terminal.resize(50, 90)
        terminal.type("go")
        eventually(lambda: not terminal.echoes, "raw again")
        terminal.press("stty size; exit 3\r")
        terminal.expect("50 90\n")
        terminal.expect("status 3\n")
        assert terminal.wait() == 0
        assert terminal.attributes == before


def test_stopped_from_outside_and_back(server):
    with shell(server) as terminal:
        raw = terminal.attributes
        terminal.signal(signal.SIGSTOP)
        terminal.attributes = strange_but_legible(raw)  # as a shell does with its own
        terminal.signal(signal.SIGCONT)
        eventually(lambda: terminal.attributes == raw, "raw again")


def test_to_the_background(server, echo_port):
    port = free_port()
    words = command(CONNECT, server, "-t", "-D", str(port), HOST, SHELL)
    with Terminal("bash", "-mc", AS_A_JOB, "bash", *words) as terminal:
        terminal.expect(PROMPT)
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"\5\1\0\5\1\0\1\x7f\0\0\1" + echo_port.to_bytes(2, "big"))
            assert client.recv(12, socket.MSG_WAITALL)[3] == 0
            terminal.press("~#")
            terminal.expect(r"  #[0-9]+ direct-tcpip ")
            terminal.press("\r~&")
            terminal.expect("backgrounded")
            terminal.expect("status 0\n")
            assert terminal.echoes
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            client.sendall(b"still here")
            assert client.recv(10, socket.MSG_WAITALL) == b"still here"
        terminal.type("go")
        assert terminal.wait() == 0  # and nobody has the terminal any more


# ---- floods --------------------------------------------------------------------------------------


def test_disconnect_while_output_floods_a_terminal_that_nobody_reads(server):
    words = command(CONNECT, server, "-t", HOST, "echo up; exec yes")
    with Terminal(*words) as terminal:
        terminal.expect("up\n")
        assert not terminal.echoes
        terminal.press("\r~.")
        assert terminal.wait() == 255
        assert terminal.echoes


# ---- gateway serve -------------------------------------------------------------------------------


def test_the_page_of_gateway_serve(serve):
    with Terminal(*command(CONNECT, serve, HOST)) as terminal:
        terminal.expect(r"This is a jump box of gateway: tunnels, and no shell\.\n\nYou are\n")
        assert terminal.wait() == 0
        assert terminal.echoes
        assert "Connection to 127.0.0.1 closed.\n" in terminal.seen
