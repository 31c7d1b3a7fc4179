"""What a value means: flags, numbers, times, sizes, algorithm lists, paths (readconf.c, misc.c).

Each function takes a `Setting` and returns the value, or raises the `ConfigError` that names its
place.
"""

from __future__ import annotations

import pwd
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from gateway.config.addresses import check_real_host, parse_port
from gateway.config.lines import expand_tokens, matches_pattern
from gateway.errors import printable
from gateway.tun.packet import ANY_UNIT, MAXIMUM_UNIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gateway.config.sources import Environment, Setting

_T = TypeVar("_T")

_FLAGS: Final = {"yes": True, "true": True, "no": False, "false": False}
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TIME: Final = re.compile(r"([0-9]{1,10})([smhdwSMHDW]?)")
_SIZE: Final = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,15}))?([BKMGTPE]?)", re.IGNORECASE)
_SCALES: Final = "BKMGTPE"
_ANY: Final = "any"
_INT_MAX: Final = 2**31 - 1
_SMALLEST_REKEY: Final = 16  # bytes; readconf.c, oRekeyLimit
_INTERFACE_LIMIT: Final = 15  # characters; <net/if.h>, IFNAMSIZ
_DOMAIN: Final = re.compile(r"[a-z0-9_][a-z0-9_.-]*", re.IGNORECASE)
# The traffic classes with a name: RFC 2474 §4.2.2, RFC 2597 §6, RFC 3246 §2,
# RFC 5865 §3, RFC 8622 §2.
_TRAFFIC_CLASSES: Final[Mapping[str, int | None]] = {
    **{
        f"af{number}{drop}": number << 5 | drop << 3
        for number in (1, 2, 3, 4)
        for drop in (1, 2, 3)
    },
    **{f"cs{number}": number << 5 for number in range(8)},
    "ef": 0xB8,
    "va": 0xB0,
    "le": 0x04,
    # Names of RFC 1349, which OpenSSH no longer acts on.
    **dict.fromkeys(("none", "lowdelay", "throughput", "reliability")),
}


@dataclass(frozen=True, slots=True)
class RekeyLimit:
    """When to exchange new keys; None leaves it to what the cipher needs, and to no clock."""

    bytes: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class IpQos:
    """The traffic class of packets, of a terminal session and of everything else; None: unmarked.

    ``str`` of it is what ssh -G writes.
    """

    interactive: int | None
    bulk: int | None

    def __str__(self) -> str:
        return f"{_shown_class(self.interactive)} {_shown_class(self.bulk)}"


def choice(table: Mapping[str, _T]) -> Callable[[Setting], _T]:
    """Make the parser of a keyword that takes one of a few words."""

    def parse(setting: Setting) -> _T:
        word = setting.one()
        if word.lower() not in table:
            raise setting.wrong(
                f"{printable(word, 60)} is not a value of this keyword",
                f"write one of {', '.join(table)}",
            )
        return table[word.lower()]

    return parse


def flag(setting: Setting) -> bool:
    """Read yes or no."""
    return choice(_FLAGS)(setting)


def text(setting: Setting) -> str:
    """Read one word as it is."""
    return setting.one()


def integer(setting: Setting) -> int:
    """Read a number from 0 on."""
    word = setting.one()
    if re.fullmatch("[0-9]{1,10}", word) is None or int(word) > _INT_MAX:
        raise setting.wrong(f"{printable(word, 60)} is not a number", "write a number from 0 on")
    return int(word)


def positive(setting: Setting) -> int:
    """Read a number from 1 on."""
    number = integer(setting)
    if not number:
        raise setting.wrong("0 makes no sense here", "write a number from 1 on")
    return number


def port(setting: Setting) -> int:
    """Read a TCP port."""
    return parse_port(setting.one(), where=setting.where)


def host(setting: Setting) -> str:
    """Read a host name or address, without tokens."""
    return check_real_host(setting.one(), where=setting.where)


def interface(setting: Setting) -> str:
    """Read the name of a network interface."""
    word = setting.one()
    bad = any(character in "/:" or character.isspace() for character in word)
    if bad or not word.isprintable() or len(word) > _INTERFACE_LIMIT or word in (".", ".."):
        raise setting.wrong(
            f"{printable(word, 60)} cannot be the name of an interface",
            "write a name that ip link shows",
        )
    return word


@dataclass(frozen=True, slots=True)
class TunnelDevice:
    """The numbers of the tun devices on both sides; `ANY_UNIT` leaves it to that side.

    ``str`` of it is what ssh -G writes.
    """

    local: int
    remote: int

    def __str__(self) -> str:
        return ":".join(
            _ANY if unit == ANY_UNIT else str(unit) for unit in (self.local, self.remote)
        )


def tunnel_device(setting: Setting) -> TunnelDevice:
    """Read ``local[:remote]``, each a number or ``any`` (misc.c, a2tun)."""
    local, colon, remote = setting.one().partition(":")
    return TunnelDevice(_unit(setting, local), _unit(setting, remote) if colon else ANY_UNIT)


def _unit(setting: Setting, word: str) -> int:
    if word.lower() == _ANY:
        return ANY_UNIT
    if re.fullmatch("[0-9]{1,10}", word) is None or int(word) > MAXIMUM_UNIT:
        raise setting.wrong(
            f"{printable(word, 60) or 'an empty text'} is not the number of a tun device",
            "write LOCAL or LOCAL:REMOTE, each a number from 0 on, or any",
        )
    return int(word)


def domains(setting: Setting) -> tuple[str, ...]:
    """Read the domains to look for a host in; none alone is no domain."""
    found = tuple(word.lower() for word in setting.arguments)
    for name in found:
        if not _DOMAIN.fullmatch(name) or ".." in name or (name == "none" and len(found) > 1):
            raise setting.wrong(
                f"{printable(name, 60) or 'an empty text'} is not a domain",
                "write domains such as example.com with blanks between them, or none alone",
            )
    return () if found == ("none",) else tuple(name.rstrip(".") for name in found)


def permitted_cnames(setting: Setting) -> tuple[tuple[str, str], ...]:
    """Read pairs of pattern lists, ``sources:targets``; ``*`` is any to any, ``none`` no pair."""
    if setting.arguments == ("none",):
        return ()
    rules = []
    for word in setting.arguments:
        sources, colon, targets = ("*", ":", "*") if word == "*" else word.lower().partition(":")
        if not colon or not sources or not targets:
            raise setting.wrong(
                f"{printable(word, 60) or 'an empty text'} is no pair of pattern lists",
                "write NAMES:TARGETS, as in *.a.example:*.b.example, or none alone",
            )
        rules.append((sources, targets))
    return tuple(rules)


def ip_qos(setting: Setting) -> IpQos:
    """Read one traffic class for everything, or one for terminals and one for the rest."""
    if len(setting.arguments) > 2:
        raise setting.wrong("there are more than two values", "write one or two traffic classes")
    first, *second = (_traffic_class(setting, word) for word in setting.arguments)
    return IpQos(first, second[0] if second else first)


def _traffic_class(setting: Setting, word: str) -> int | None:
    if word.lower() in _TRAFFIC_CLASSES:
        return _TRAFFIC_CLASSES[word.lower()]
    try:
        number = int(word, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= 255:
        raise setting.wrong(
            f"{printable(word, 60) or 'an empty text'} is not a traffic class",
            "write a name such as ef, af21 or cs1, a number up to 255, or none",
        )
    return number


def _shown_class(number: int | None) -> str:
    for name, value in _TRAFFIC_CLASSES.items():
        if value == number:
            return name
    return f"0x{number:02x}"


def octal(setting: Setting) -> int:
    """Read a file mode in octal."""
    word = setting.one()
    if re.fullmatch("[0-7]{1,5}", word) is None or int(word, 8) > 0o777:
        raise setting.wrong(
            f"{printable(word, 60)} is not a file mode", "write it in octal, as 0177"
        )
    return int(word, 8)


def words(setting: Setting) -> tuple[str, ...]:
    """Read a list with commas."""
    return tuple(word for word in setting.one().split(",") if word)


def seconds(setting: Setting) -> float | None:
    """Read a time such as ``90`` or ``1h30m``; None for ``none`` and 0, which switch it off."""
    return _seconds(setting, setting.one())


def _seconds(setting: Setting, word: str) -> float | None:
    if word == "none":
        return None
    parts = _TIME.findall(word)
    total = sum(int(number) * _SECONDS[unit.lower()] for number, unit in parts)
    if not parts or "".join(map("".join, parts)) != word or total > _INT_MAX:
        raise setting.wrong(
            f"{printable(word, 60) or 'an empty text'} is not a time",
            "write seconds, or parts such as 1h30m (TIME FORMATS in sshd_config(5))",
        )
    return float(total) or None


def rekey_limit(setting: Setting) -> RekeyLimit:
    """Read a size with K, M or G, and perhaps a time; ``default`` and ``none`` leave it to us."""
    if len(setting.arguments) > 2:
        raise setting.wrong("there are more than two values", "write a size and perhaps a time")
    size, *times = setting.arguments
    return RekeyLimit(
        None if size in ("default", "none") else _size(setting, size),
        _seconds(setting, times[0]) if times else None,
    )


def _size(setting: Setting, word: str) -> int | None:
    found = _SIZE.fullmatch(word)
    if found is None:
        raise setting.wrong(
            f"{printable(word, 60) or 'an empty text'} is not a size",
            "write bytes, or a number with K, M or G",
        )
    scale = 1024 ** (_SCALES.index(found[3].upper()) if found[3] else 0)
    fraction = found[2] or "0"
    size = int(found[1]) * scale + int(fraction) * scale // 10 ** len(fraction)
    if size and not _SMALLEST_REKEY <= size < 2**63:
        raise setting.wrong(
            f"{printable(word)} is not between {_SMALLEST_REKEY} bytes and 8 EiB",
            "write a larger or smaller size, or default",
        )
    return size or None


def algorithms(
    what: str, supported: tuple[str, ...], default: tuple[str, ...]
) -> Callable[[Setting], tuple[str, ...]]:
    """Make the parser of a list of algorithms with ``+``, ``-`` and ``^`` (kex_assemble_names).

    Names that we do not know are skipped: a configuration is shared with ssh, which knows more.
    """

    def parse(setting: Setting) -> tuple[str, ...]:
        word = setting.one()
        sign = word[0] if word[0] in "+-^" else ""
        patterns = word.removeprefix(sign).split(",")
        if any(not pattern or pattern.startswith("!") for pattern in patterns):
            raise setting.wrong(
                f"{printable(word)} has an empty or a negated name",
                "write names and patterns with commas between them, and a minus before the first "
                "to take them out",
            )
        named = _unique(
            name for pattern in patterns for name in supported if matches_pattern(name, pattern)
        )
        chosen = {
            "": named,
            "+": _unique((*default, *named)),
            "^": _unique((*named, *default)),
            "-": tuple(name for name in default if name not in named),
        }[sign]
        if not chosen:
            raise setting.wrong(
                f"{printable(word)} leaves no {what} that is supported",
                f"leave one of {', '.join(supported)}",
            )
        return chosen

    return parse


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def expand_path(
    setting: Setting, word: str, tokens: Mapping[str, str], environment: Environment
) -> Path:
    """Expand ``~``, tokens and ``${NAME}`` in a file name, in ssh's order."""
    expanded = expand_home(setting, word, environment)
    check_path_tokens(setting, expanded, tokens)
    return Path(expand_tokens(expanded, tokens, setting.where, environment.variables))


def check_path_tokens(setting: Setting, path: str, tokens: Mapping[str, str]) -> None:
    """Refuse a path whose tokens lead out of the directory that the user wrote.

    A name that was given from outside may be no path of its own (GHSA-qr67-gv47-xwwh).
    """
    for letter in re.findall("%(.)", path.replace("%%", "")):
        value = tokens.get(letter, "")
        if letter != "d" and ("/" in value or (value and not value.strip("."))):
            raise setting.wrong(
                f"%{letter} is {printable(value)} here, which would lead to another directory",
                "write the file name itself",
            )


def expand_home(setting: Setting, word: str, environment: Environment) -> str:
    """Expand ``~`` and ``~user`` at the beginning (misc.c, tilde_expand)."""
    if not word.startswith("~"):
        return word
    user, slash, rest = word[1:].partition("/")
    if not user:
        return str(environment.home) + slash + rest
    try:
        home = pwd.getpwnam(user).pw_dir
    except (KeyError, ValueError) as exc:
        raise setting.wrong(
            f"there is no user {printable(user)}", "write the path without ~user"
        ) from exc
    return home + slash + rest
