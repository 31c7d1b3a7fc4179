"""What a session is given besides its command: SendEnv, SetEnv and EscapeChar (readconf.c)."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from gateway.config.lines import expand_tokens, matches_pattern
from gateway.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.config.sources import Setting


def send_env(settings: Iterable[Setting]) -> tuple[str, ...]:
    """Return the patterns of names that may be sent; one after a minus takes earlier ones back."""
    patterns: list[str] = []
    for setting in settings:
        for word in setting.arguments:
            if not word or "=" in word:
                raise setting.wrong(
                    f"{printable(word, 60) or 'an empty text'} is not the name of a variable",
                    "write names or patterns; values belong into SetEnv",
                )
            if word.startswith("-"):
                patterns = [kept for kept in patterns if not matches_pattern(kept, word[1:])]
            else:
                patterns.append(word)
    return tuple(patterns)


def set_env(
    setting: Setting | None, tokens: Mapping[str, str], variables: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Return names and values, with tokens and variables in the values; a name's first one wins."""
    if setting is None:
        return ()
    found: dict[str, str] = {}
    for word in setting.arguments:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise setting.wrong(
                f"{printable(word, 60) or 'an empty text'} is no variable with its value",
                "write NAME=VALUE, with quotes around it if there are blanks",
            )
        if name not in found:
            found[name] = expand_tokens(value, tokens, setting.where, variables)
    return tuple(found.items())


def sent_environment(
    variables: Mapping[str, str],
    patterns: Iterable[str],
    chosen: Iterable[tuple[str, str]],
) -> tuple[tuple[str, str], ...]:
    """Return what is sent: of our own variables those that are named, then those that are set."""
    named = tuple(patterns)
    ours = [
        (name, value)
        for name, value in variables.items()
        if any(matches_pattern(name, pattern) for pattern in named)
    ]
    return (*ours, *chosen)


def escape_char(setting: Setting) -> bytes | None:
    """Read one character, ``^`` and a letter for a control character, or ``none``."""
    word = setting.one()
    if word == "none":
        return None
    typed = os.fsencode(word)
    if len(typed) == 1:
        return typed
    if re.fullmatch(rb"\^[@-\x7f]", typed) is None:
        raise setting.wrong(
            f"{printable(word, 60)} is no escape character",
            "write one character, ^ and a letter, or none",
        )
    return bytes([typed[1] & 0x1F])


def shown_escape(character: bytes | None) -> str:
    """Write it as vis(3) with VIS_WHITE does, which ssh -G uses."""
    if character is None:
        return "none"
    number = character[0]
    low = number & 0x7F
    if low == 0x20:
        return f"\\{number:03o}"
    if 0x20 < number < 0x7F:
        return chr(number).replace("\\", "\\\\")
    meta = "M" if number & 0x80 else ""
    if low < 0x20 or low == 0x7F:
        return f"\\{meta}^{chr(low ^ 0x40)}"
    return f"\\{meta}-{chr(low)}"
