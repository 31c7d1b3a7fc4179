"""T84 and T85: a name from outside is refused when it is parsed, wherever it stands.

Nothing is expanded with it, no command sees what a shell could misread, and no file is named after
it that is in another folder.
"""

import re
from pathlib import Path

import pytest

from gateway.config.proxies import parse_proxies
from gateway.config.route import hops_to
from gateway.config.ssh_config import Environment, quoted, read_host_config
from gateway.errors import ConfigError

BAD = [
    *(f"a{character}b" for character in ";|&$<>\"'`\\(){},"),
    "a\nb", "a\0b", "a\tb", "a b", "a\x1bb", "a\u2028b",
    "%h", "a%hb", "${X}", "$HOME", "`id`", "$(id)", "-oProxyCommand=id", "-a", "a" * 300, "",
]  # fmt: skip
# A backslash is fine within a user's name, DOMAIN\user; as the last character it is not.
BAD_USERS = [*(name for name in BAD if name != "a\\b"), "a\\"]
# Two names that are one word each to a shell, and no option.
PLAIN_COMMAND = re.compile(r"echo( [\w,%]+(\\\w+)?){2}")
COMMANDS = """\
Match exec "echo %h %r"
  Port 7
Host *
  ProxyCommand echo %h %r
  IdentityFile ~/%r-%h
"""


@pytest.fixture
def ran():
    """The commands that ran."""
    return []


@pytest.fixture
def read(tmp_path, ran):
    """Read a host's configuration and those of its hops."""
    environment = Environment(
        tmp_path, "me", "here", 0, {"X": "x"},
        execute=lambda command, _where: ran.append(command) is not None,  # never true
    )  # fmt: skip

    def read(alias, lines="", options=()):
        file = tmp_path / "config"
        file.write_bytes(lines.encode("utf-8"))
        config = read_host_config(
            alias, files=[file], command_line=options, environment=environment
        )
        return config, hops_to(config, files=[file], environment=environment)

    return read


@pytest.fixture(params=["", COMMANDS], ids=["alone", "with commands"])
def refused(request, read, ran):
    """See a name refused: by itself, and where a command would be given it first."""

    def refused(alias, lines="", options=()):
        with pytest.raises(ConfigError):
            read(alias, lines + request.param, options)
        assert all(PLAIN_COMMAND.fullmatch(command) for command in ran)

    return refused


@pytest.mark.parametrize("name", BAD)
def test_a_host_of_the_command_line(refused, ran, name):
    refused(name)
    assert ran == []


@pytest.mark.parametrize("name", BAD_USERS)
def test_a_user_of_the_command_line(refused, name):
    refused("host", options=[("User", quoted(name))])


def one_line(name):
    """Whether a file can have it as a value at all, and as a whole one."""
    return "\n" not in name and "\0" not in name


@pytest.mark.parametrize("name", [name for name in BAD if one_line(name) and "%h" not in name])
def test_a_host_of_the_configuration(refused, name):
    """%h is the alias there, as the manual has it."""
    refused("host", f"HostName {quoted(name)}\n")


@pytest.mark.parametrize(
    "name", [name for name in BAD_USERS if one_line(name) and name not in ("%h", "a%hb", "${X}")]
)
def test_a_user_of_the_configuration(refused, name):
    """Tokens and variables are expanded there; what comes out is checked."""
    refused("host", f"User {quoted(name)}\n")


@pytest.mark.parametrize("name", [name for name in BAD if "," not in name])
@pytest.mark.parametrize(
    "form", ["{}", "x@{}", "{}:22", "ok,{}", "{},ok", "ssh://{}", "ssh://u@{}"]
)
def test_a_jump_host_of_the_command_line(refused, ran, name, form):
    refused("host", options=[("ProxyJump", quoted(form.format(name)))])
    assert ran == []


@pytest.mark.parametrize("name", [name for name in BAD_USERS if "," not in name])
@pytest.mark.parametrize("form", ["{}@ok", "ok,{}@ok", "{}@ok,ok"])
def test_a_jump_user_of_the_command_line(refused, name, form):
    refused("host", options=[("ProxyJump", quoted(form.format(name)))])


@pytest.mark.parametrize("escaped", ["%00", "%0a", "%3b", "%24", "%60", "%2d%6f", "%25h", "%2c"])
def test_a_jump_user_in_a_uri(refused, escaped):
    """CVE-2025-61985: a NUL in a decoded URI."""
    refused("host", options=[("ProxyJump", f"ssh://{escaped}@ok")])


@pytest.mark.parametrize("name", [name for name in BAD if one_line(name) and "%" not in name])
def test_a_jump_host_of_the_configuration(refused, name):
    refused("host", f"ProxyJump {quoted(name)}\n" if "," not in name else "ProxyJump a,,b\n")


@pytest.mark.parametrize("name", BAD)
def test_a_proxy(name):
    for form in ("socks5h://{}", "http://u:p@{}:80"):
        with pytest.raises(ConfigError):
            parse_proxies([form.format(name)])


PATHS = {
    "IdentityFile": lambda config: config.identity_files[0],
    "ControlPath": lambda config: config.control_path,
    "LocalForward": lambda config: Path(config.local_forwards[0].listen.path),
    "RemoteForward": lambda config: Path(config.remote_forwards[0].target.path),
}


@pytest.mark.parametrize("keyword", PATHS)
@pytest.mark.parametrize("user", ["../x", "a/b", "/etc/x", "..", ".", "~root", "a\\b", "C:x"])
def test_a_user_in_a_path_stays_in_its_folder(tmp_path, keyword, user):
    """GHSA-qr67-gv47-xwwh: what names a file is in the folder that the user wrote, or refused."""
    path = tmp_path / "%r"
    value = {"LocalForward": f"{path} /target", "RemoteForward": f"/there {path}"}
    options = [("User", quoted(user)), (keyword, value.get(keyword, str(path)))]
    environment = Environment(tmp_path, "me", "here", 0, {})

    def read():
        config = read_host_config("host", files=[], command_line=options, environment=environment)
        return PATHS[keyword](config)

    if "/" in user or not user.strip("."):
        with pytest.raises(ConfigError, match="would lead to another directory"):
            read()
    else:
        assert read() == tmp_path / user


def test_good_names_pass(read):
    command = "ProxyCommand echo %h %r\n"
    config, _ = read("Host_1.example", command, options=[("User", quoted("DOMAIN\\user.name+x"))])
    assert config.proxy_command.endswith("host_1.example DOMAIN\\user.name+x")
    config, _ = read("fe80::1%eth0")
    assert config.host_name == "fe80::1%eth0"
    _, hops = read("host", options=[("ProxyJump", "ssh://al%40ice@a:7,[::1]:8,b"),
                                    ("User", "x")])  # fmt: skip
    assert [(hop.user, hop.host_name, hop.port) for hop in hops] == [
        ("al@ice", "a", 7), ("me", "::1", 8), ("me", "b", 22),
    ]  # fmt: skip
