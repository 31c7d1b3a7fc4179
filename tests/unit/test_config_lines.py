"""Lines of ssh_config(5): keyword, quotes, patterns, tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.lines import (
    LINE_LIMIT,
    expand_tokens,
    matches_list,
    matches_pattern,
    parse_option,
    quoted,
    split_arguments,
    split_line,
)
from gateway.errors import ConfigError


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("Port 22", ("Port", "22")),
        ("  Port\t 22  ", ("Port", "22")),
        ("Port=22", ("Port", "22")),
        ("Port = 22", ("Port", "22")),
        ("Port =22\r", ("Port", "22")),
        ("Port 22\f", ("Port", "22")),
        ('"Port" 22', ("Port", "22")),
        ("Port == 22", ("Port", "= 22")),
        ("Port", ("Port", "")),
        ("", None),
        (" \t\r", None),
        ("# Port 22", None),
        ("  #", None),
    ],
)
def test_keyword_and_rest(line, parts):
    assert split_line(line, "f:1") == parts


@pytest.mark.parametrize("line", ["= 22", '"Port 22', "Port 2\0", "Port " + "2" * LINE_LIMIT])
def test_lines_without_sense(line):
    with pytest.raises(ConfigError, match="f:1"):
        split_line(line, "f:1")


# From argv_split of OpenSSH's misc.c.
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b", ("a", "b")),
        (" a\tb ", ("a", "b")),
        ('"a b" c', ("a b", "c")),
        ("'a b'", ("a b",)),
        ('a" b"c', ("a bc",)),
        (r"a\ b", ("a b",)),
        (r'"a\ b"', (r"a\ b",)),
        (r"\"a\'", ("\"a'",)),
        (r"a\b\\c", (r"a\b\c",)),
        (r'"a\"b"', ('a"b',)),
        ('"it\'s"', ("it's",)),
        ("a # b", ("a",)),
        ("a#b", ("a#b",)),
        ("'#' b", ("#", "b")),
        ("''", ("",)),
        ("", ()),
        ("# a", ()),
        ("a\\", ("a\\",)),
    ],
)
def test_arguments(text, words):
    assert split_arguments(text, "f:1") == words


@pytest.mark.parametrize("text", ['"a', "a'", '"a\\"'])
def test_open_quotes_are_refused(text):
    with pytest.raises(ConfigError, match="never closed"):
        split_arguments(text, "f:1")


@given(st.text())
def test_quoted_comes_back_whole(value):
    assert split_arguments(quoted(value), "") == (value,)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("Port=22", ("Port", "22")),
        ("Port 22", ("Port", "22")),
        (" Port = 22", ("Port", "22")),
        ("IdentityFile='a b'", ("IdentityFile", "'a b'")),
    ],
)
def test_option_of_the_command_line(text, pair):
    assert parse_option(text) == pair


@pytest.mark.parametrize("text", ["", "Port", "Port=", "# x", "=22", '"" 22'])
def test_option_without_keyword_or_value(text):
    with pytest.raises(ConfigError, match="-o"):
        parse_option(text)


@pytest.mark.parametrize(
    ("text", "pattern", "matches"),
    [
        ("host", "host", True),
        ("host", "Host", False),
        ("host", "*", True),
        ("", "*", True),
        ("", "", True),
        ("", "?", False),
        ("host", "h?st", True),
        ("host", "h*t", True),
        ("host", "h*s", False),
        ("a.b.c", "*.c", True),
        ("a.b.c", "a.*.c", True),
        ("abcabd", "*abd", True),
        ("host", "host*", True),
        ("host1", "host[1]", False),
        ("host", "hos", False),
    ],
)
def test_patterns(text, pattern, matches):
    assert matches_pattern(text, pattern) is matches


def test_a_pattern_of_stars_takes_no_time():
    assert not matches_pattern("a" * 500, "a*" * 100 + "b")


@pytest.mark.parametrize(
    ("patterns", "matches"),
    [
        ("a,b", True),
        ("b,c", False),
        ("!a,*", False),
        ("*,!a", False),
        ("!b", False),
        ("!b,*", True),
    ],
)
def test_pattern_lists(patterns, matches):
    assert matches_list("a", patterns) is matches


def test_tokens_are_replaced_once():
    tokens = {"h": "%n${X}", "n": "no"}
    assert expand_tokens("%h-%%-%n", tokens, "w", {"X": "no"}) == "%n${X}-%-no"


def test_variables_only_where_they_are_given():
    assert expand_tokens("${X}", {}, "w") == "${X}"
    assert expand_tokens("$X ${X}", {}, "w", {"X": "%h"}) == "$X %h"


@pytest.mark.parametrize("text", ["%x", "%", "a%", "%\n", "${X", "${Y}", "${}"])
def test_unknown_tokens_and_variables(text):
    with pytest.raises(ConfigError, match="w: "):
        expand_tokens(text, {"h": "host"}, "w", {"X": "x"})
