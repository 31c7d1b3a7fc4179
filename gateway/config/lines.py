"""The syntax of one line of ssh_config(5): keyword, arguments, quotes, patterns.

Follows OpenSSH's misc.c (strdelim, argv_split) and match.c character by character, because a value
that is read differently from ssh is a value that means something else.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gateway.errors import ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

_BLANK: Final = " \t\r\n"
# A keyword, then blanks around at most one "=" (misc.c, strdelim).
_KEYWORD: Final = re.compile(r'[ \t\r\n]*(?:"([^"]*)"|([^ \t\r\n"=]+))[ \t\r\n]*=?[ \t\r\n]*')
# What a backslash takes its meaning from; before anything else it stands for itself (argv_split).
_ESCAPABLE: Final = frozenset("'\"\\")
_TOKEN: Final = re.compile(r"%(.?)", re.DOTALL)
_TOKEN_OR_VARIABLE: Final = re.compile(r"%(.?)|\$\{([^}]*)(\}?)", re.DOTALL)
_VARIABLE: Final = re.compile(r"\$\{([^}]*)(\}?)", re.DOTALL)
LINE_LIMIT: Final = 64 * 1024  # our choice; ssh has no limit


def split_line(line: str, where: str) -> tuple[str, str] | None:
    """Return keyword and the rest of the line, or None for an empty line and a comment."""
    if len(line) > LINE_LIMIT:
        raise ConfigError("the line is longer than 64 KiB", where=where, remedy="split it")
    if "\0" in line:
        raise ConfigError("there is a NUL character in the line", where=where, remedy="remove it")
    line = line.rstrip(_BLANK + "\f")
    start = line.lstrip(_BLANK)
    if not start or start[0] == "#":
        return None
    found = _KEYWORD.match(line)
    if found is None:
        raise ConfigError(
            f"the line {printable(start, 60)} has no keyword",
            where=where,
            remedy='write "Keyword value"',
        )
    return found[1] or found[2] or "", line[found.end() :]


def split_arguments(text: str, where: str) -> tuple[str, ...]:
    """Split what follows a keyword into words; quotes join, and an unquoted # ends the line."""
    words: list[str] = []
    position = 0
    while position < len(text):
        if text[position] in " \t":
            position += 1
        elif text[position] == "#":
            break
        else:
            word, position = _next_word(text, position, where)
            words.append(word)
    return tuple(words)


def _next_word(text: str, position: int, where: str) -> tuple[str, int]:
    word: list[str] = []
    quote = ""
    while position < len(text):
        character = text[position]
        following = text[position + 1 : position + 2]
        if character == "\\" and (following in _ESCAPABLE or (following == " " and not quote)):
            word.append(following)
            position += 1
        elif quote and character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        elif not quote and character in " \t":
            break
        else:
            word.append(character)
        position += 1
    if quote:
        raise ConfigError(
            f"the quote {quote} is opened and never closed", where=where, remedy="close it"
        )
    return "".join(word), position


def quoted(value: str) -> str:
    """Write a value so that `split_arguments` gives back exactly it, blanks and quotes included."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse_option(text: str) -> tuple[str, str]:
    """Split the argument of -o, ``Key=value`` or ``Key value``, into keyword and value text."""
    where = "command line: -o"
    parts = split_line(text, where)
    if parts is None or not parts[0] or not parts[1]:
        raise ConfigError(
            f"the option {printable(text, 60) or 'with an empty text'} needs a keyword and a value",
            where=where,
            remedy="write -o Keyword=value",
        )
    return parts


def matches_pattern(text: str, pattern: str) -> bool:
    """Match ``*`` and ``?`` (match.c, match_pattern).

    Goes back to the last star only: at most len(text) * len(pattern) steps for any pattern.
    """
    at = in_pattern = 0
    star = -1
    retry = 0
    while at < len(text):
        wanted = pattern[in_pattern : in_pattern + 1]
        if wanted == "*":
            star, retry = in_pattern, at
            in_pattern += 1
        elif wanted and wanted in ("?", text[at]):
            at += 1
            in_pattern += 1
        elif star >= 0:
            retry += 1
            at, in_pattern = retry, star + 1
        else:
            return False
    return not pattern[in_pattern:].strip("*")


def matches_list(text: str, patterns: str) -> bool:
    """Match a comma-separated list; a negated pattern that matches decides (match_pattern_list)."""
    found = False
    for pattern in patterns.split(","):
        if pattern.startswith("!"):
            if matches_pattern(text, pattern[1:]):
                return False
        elif matches_pattern(text, pattern):
            found = True
    return found


def expand_tokens(
    text: str, tokens: Mapping[str, str], where: str, variables: Mapping[str, str] | None = None
) -> str:
    """Replace ``%x``, and ``${NAME}`` if variables are given, in one pass.

    What was put in is not looked at again, so no value can smuggle in a token.
    """

    def replacement(found: re.Match[str]) -> str:
        letter = found[1]
        if letter is None:
            return _variable(found[2], found[3], variables or {}, where)
        if letter == "%":
            return "%"
        if letter not in tokens:
            raise ConfigError(
                f"the token %{printable(letter)} has no meaning here",
                where=where,
                remedy=f"use {', '.join('%' + token for token in sorted(tokens))} or %%",
            )
        return tokens[letter]

    return (_TOKEN if variables is None else _TOKEN_OR_VARIABLE).sub(replacement, text)


def expand_variables(text: str, variables: Mapping[str, str], where: str) -> str:
    """Replace ``${NAME}`` only (misc.c, dollar_expand)."""
    return _VARIABLE.sub(lambda found: _variable(found[1], found[2], variables, where), text)


def _variable(name: str, closed: str, variables: Mapping[str, str], where: str) -> str:
    if not closed or name not in variables:
        raise ConfigError(
            f"the environment variable {printable(name, 60) or 'without a name'} is not set",
            where=where,
            remedy="set it, or write the value itself",
        )
    return variables[name]
