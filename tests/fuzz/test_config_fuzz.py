"""Any text as a configuration file, any pairs on the command line: a value or a ConfigError."""

import contextlib
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config.dump import dump
from gateway.config.keywords import TABLE
from gateway.config.ssh_config import (
    Environment,
    parse_option,
    read_host_config,
    read_settings,
    resolve,
)
from gateway.errors import ConfigError

KEYWORDS = st.sampled_from([row.name for row in TABLE])
PIECES = st.sampled_from(
    [*"*,=#\"'\\ \t\r\f%", "h", "!h", "none", "yes", "22", "1h30m", "1.5G", "~/x"]
)
TOKENS = st.sampled_from(
    ["%h", "${X}", "all", "final", "host", "+a,b", "^*", "exec", "tagged", "localnetwork ::/0", "!"]
)
LINES = st.builds(
    lambda name, separator, pieces: name + separator + "".join(pieces),
    KEYWORDS | st.text(max_size=8),
    st.sampled_from([" ", "=", " = ", ""]),
    st.lists(PIECES | TOKENS | st.text(max_size=4), max_size=5),
)
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def environment(home: Path) -> Environment:
    return Environment(
        home, "alice", "box.example", 1000, {"X": "x"}, home / "etc",
        resolve=lambda name, _family: name, local_addresses=tuple, execute=seen,
    )  # fmt: skip


def seen(command: str, _where: str) -> bool:
    """Run nothing."""
    return len(command) % 2 == 0


@RELAXED
@given(
    content=st.binary()
    | st.lists(LINES).map(lambda lines: "\n".join(lines).encode("utf-8", "replace"))
)
def test_any_file_gives_a_configuration_or_a_config_error(tmp_path, content):
    file = tmp_path / "config"
    file.write_bytes(content)
    with contextlib.suppress(ConfigError):
        read = read_settings("h", files=[file], environment=environment(tmp_path))
        config = resolve(read, environment(tmp_path))
        assert 1 <= config.port <= 65535
        assert config.ciphers
        assert dump(config, read.settings)
        assert config.kex_algorithms
        assert config.host_key_algorithms


@RELAXED
@given(pairs=st.lists(st.tuples(KEYWORDS | st.text(max_size=8), st.text(max_size=20)), max_size=4))
def test_any_command_line_gives_a_configuration_or_a_config_error(tmp_path, pairs):
    with contextlib.suppress(ConfigError):
        read_host_config("h", files=[], command_line=pairs, environment=environment(tmp_path))


@given(st.text())
def test_any_option_text(text):
    with contextlib.suppress(ConfigError):
        parse_option(text)


@RELAXED
@given(st.text(max_size=20))
def test_any_alias(tmp_path, alias):
    with contextlib.suppress(ConfigError):
        read_host_config(alias, files=[], environment=environment(tmp_path))
