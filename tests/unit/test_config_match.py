"""Match lines: every criterion, and what may never reach the shell of Match exec."""

import os
from ipaddress import ip_address

import pytest

from gateway.config.lines import quoted
from gateway.config.match import run_in_shell
from gateway.config.ssh_config import Environment, read_host_config
from gateway.errors import ConfigError


@pytest.fixture
def commands():
    """What Match exec ran."""
    return []


@pytest.fixture
def read(tmp_path, commands):
    """Read a text as a file for a host; commands are kept, and succeed if they say so."""

    def execute(command, where):
        commands.append(command)
        return "succeed" in command

    def read(text, host="jump", options=(), command=None, **variables):
        file = tmp_path / "config"
        file.write_text(text)
        environment = Environment(
            tmp_path,
            variables.pop("local_user", "alice"),
            variables.pop("local_hostname", "box.example.com"),
            os.getuid(),
            variables,
            local_addresses=lambda: tuple(map(ip_address, ("127.0.0.1", "10.1.2.3", "fd00::1"))),
            execute=execute,
        )
        return read_host_config(
            host,
            files=[file],
            command_line=options,
            command=command,
            environment=environment,
        )

    return read


@pytest.mark.parametrize(
    ("criteria", "applies"),
    [
        ("all", True),
        ("!all", False),
        ("host jump.example.com", True),
        ("host=JUMP.*", True),
        ("'host=jump.*'", True),
        ("host jump", False),
        ("!host jump", True),
        ("HOST jump.*", True),
        ("originalhost jump,x user bob", True),
        ("originalhost jump user alice", False),
        ("localuser alice", True),
        ("user *,!bob", False),
        ("user=bob localuser=alice", True),
        ("host x exec succeed", False),
        ("final all", True),
        ("canonical", True),
        ("!final", True),
        ("exec succeed", True),
        ("exec=succeed", True),
        ("!exec succeed", False),
        ("exec fail", False),
        ("localnetwork 10.0.0.0/8", True),
        ("localnetwork 192.0.2.0/24,fd00::/8", True),
        ("localnetwork 192.0.2.0/24", False),
        ("!localnetwork 192.0.2.0/24", True),
        ("localnetwork 127.0.0.1", True),
        ("version OpenSSH_10.*", True),
        ("version OpenSSH_9.*", False),
        ('tagged ""', True),
        ("tagged *", False),
        ('command ""', True),
        ("command *", False),
        ("sessiontype shell", True),
        ("sessiontype exec,none", False),
    ],
)
def test_criteria(read, criteria, applies):
    text = f"HostName %h.example.com\nUser bob\nMatch final\nMatch {criteria}\n Port 7\n"
    assert (read(text).port == 7) is applies


def test_canonical_and_final_hold_in_the_second_pass_only(read):
    assert read("Match canonical\n Port 7\n").port == 22
    assert read("Match final\n Port 7\n").port == 7
    assert read("Match !final\n Port 7\nMatch final\n Port 8\n").port == 7
    assert read("Match !final\n Port 7\nMatch canonical\n User bob\n").user == "alice"


@pytest.mark.parametrize(
    ("criteria", "options", "command", "applies"),
    [
        ("tagged a,b", [("Tag", "b")], None, True),
        ("tagged !b,*", [("Tag", "b")], None, False),
        ('tagged ""', [("Tag", "b")], None, False),
        ("command ls*", [], "ls -l", True),
        ("command=*", [], "ls -l", True),
        ('command ""', [], "ls -l", False),
        ("sessiontype exec", [], "ls", True),
        ("sessiontype none", [("SessionType", "None")], None, True),
        ("sessiontype exec", [("SessionType", "none")], "ls", False),
    ],
)
def test_criteria_of_the_command_line(read, criteria, options, command, applies):
    config = read(f"Match {criteria}\n Port 7\n", options=options, command=command)
    assert (config.port == 7) is applies


def test_a_tag_of_the_file_holds_from_its_line_on(read):
    assert read("Match tagged x\n Port 7\nHost *\n Tag x\n").port == 22
    assert read("Host *\n Tag x\nMatch tagged x\n Port 7\n").port == 7


def test_exec_knows_what_is_known_so_far(read, commands):
    read(
        "Port 7\nUser bob\nHostName h.%h\nHostKeyAlias Key\n"
        "Match exec '%n %h %p %r %u %k %L %l %i %%'"
    )
    assert commands == [f"jump h.jump 7 bob alice Key box box.example.com {os.getuid()} %"]


def test_exec_is_not_run_where_the_line_cannot_apply(read, commands):
    read("Match user x exec fail\nHost other\nMatch exec fail exec second\n")
    assert commands == ["fail"]


def test_a_block_that_never_applies_runs_nothing(read, commands, tmp_path):
    inner = tmp_path / "inner"
    inner.write_text("Match exec succeed\n")
    read(f"Host other\n Include {inner}\n")
    assert commands == []


# T84: CVE-2023-51385, CVE-2025-61984, CVE-2026-35386 and their like.
HOSTILE = [
    "$(id)", "`id`", "a;id", "a|id", "a&id", "a>x", "a<x", "a'b", 'a"b', "a(b", "a{b", "a\nid",
    "a\tid", "a id", "a$HOME", "${HOME}", "-oProxyCommand=id", "a\\", "a\x00b", "a\u2028b",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_host_never_reaches_the_shell(read, commands, name):
    with pytest.raises(ConfigError, match="the host name"):
        read("Match exec 'echo %h'\n", host=name)
    assert commands == []


@pytest.mark.parametrize("name", [*HOSTILE, "~root", "*", "a[b]", "a#b", "!x", "a^b"])
@pytest.mark.parametrize("token", ["n", "h", "r", "u", "k", "l", "C%r"])
def test_a_hostile_name_never_reaches_the_shell(read, commands, name, token):
    """Whatever the way on which it came into the configuration."""
    names = {
        "h": {"options": [("HostName", quoted(name))]},
        "r": {"options": [("User", quoted(name))]},
        "k": {"options": [("HostKeyAlias", quoted(name))]},
        "u": {"local_user": name},
        "l": {"local_hostname": name},
        "n": {"host": name},
    }[token[-1]]
    with pytest.raises(ConfigError):
        read(f"Match exec 'echo %{token}'\n", **names)
    assert commands == []


def test_what_a_windows_domain_needs_is_allowed(read, commands):
    read("Match exec 'echo %r'\n", options=[("User", quoted("DOMAIN\\bob"))])
    assert commands == ["echo DOMAIN\\bob"]


def test_the_users_shell_runs_it(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("SHELL", "/bin/sh")
    assert run_in_shell('test -n "$PATH" && echo silent && read x; echo seen >&2; true', "f:1")
    assert not run_in_shell("exit 3", "f:1")
    assert capfd.readouterr() == ("", "seen\n")
    with pytest.raises(ConfigError, match=r"f:1: the command kill .* was ended by signal 15"):
        run_in_shell("kill -TERM $$", "f:1")
    monkeypatch.setenv("SHELL", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"f:1: the shell .* cannot be run"):
        run_in_shell("true", "f:1")
