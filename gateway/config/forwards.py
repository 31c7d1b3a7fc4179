"""LocalForward, RemoteForward, DynamicForward and PermitRemoteOpen (readconf.c)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gateway.config.addresses import parse_port
from gateway.config.lines import expand_tokens, expand_variables
from gateway.config.values import check_path_tokens
from gateway.errors import ConfigError, printable
from gateway.forward.permit import ANY_TARGET
from gateway.forward.spec import Forward, Kind, Unix, parse_forward, parse_stdio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.config.sources import Environment, Setting, Settings
    from gateway.forward.permit import Permitted
    from gateway.forward.spec import End

_SLOTS: Final = {
    Kind.LOCAL: "localforward",
    Kind.REMOTE: "remoteforward",
    Kind.DYNAMIC: "dynamicforward",
}
_PERMITTED: Final = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):([^:]+)")


def forwards(
    kind: Kind, settings: Settings, tokens: Mapping[str, str], environment: Environment
) -> tuple[Forward, ...]:
    """Return the forwardings of a kind, each once; tokens are expanded in paths only (ssh.c)."""
    found = (_forward(kind, each, tokens, environment) for each in settings.all(_SLOTS[kind]))
    return tuple(dict.fromkeys(found))


def _forward(
    kind: Kind, setting: Setting, tokens: Mapping[str, str], environment: Environment
) -> Forward:
    if len(setting.arguments) > (1 if kind is Kind.DYNAMIC else 2):
        raise setting.wrong(
            "there are more values than two ends", "write where to listen, a blank, and the target"
        )
    text = expand_variables(":".join(setting.arguments), environment.variables, setting.where)
    forward = parse_forward(kind, text, where=setting.where)

    def expanded(end: End) -> End:
        if isinstance(end, Unix):
            check_path_tokens(setting, end.path, tokens)
            return Unix(expand_tokens(end.path, tokens, setting.where))
        return end

    target = None if forward.target is None else expanded(forward.target)
    return replace(forward, listen=expanded(forward.listen), target=target)


def stdio_forward(text: str, environment: Environment) -> End:
    """Read the argument of -W. Raises `ConfigError`."""
    return parse_stdio(expand_variables(text, environment.variables, "-W"))


def permit_remote_open(setting: Setting) -> Permitted:
    """Read hosts and ports, either of which may be ``*``; ``any`` or ``none`` alone."""
    first = setting.arguments[0]
    if first in ("any", "none"):
        return ANY_TARGET if first == "any" else ()
    return tuple(_permitted(setting, word) for word in setting.arguments)


def _permitted(setting: Setting, word: str) -> tuple[str | None, int | None]:
    found = _PERMITTED.fullmatch(word)
    if found is None:
        raise setting.wrong(
            f"{printable(word, 60) or 'an empty text'} is not of the form HOST:PORT",
            "write HOST:PORT, either of them perhaps *, and IPv6 addresses in brackets; "
            "or any, or none",
        )
    host = found[1] or found[2]
    try:
        port = None if found[3] == "*" else parse_port(found[3], where=setting.where)
    except ConfigError as error:
        raise setting.wrong(error.problem, error.remedy) from error
    return None if host == "*" else host, port


def permitted(value: Permitted) -> str:
    """Write it as ``ssh -G``."""
    if value is None:
        return "any"
    words = []
    for name, number in value:
        host = "*" if name is None else f"[{name}]" if ":" in name else name
        words.append(f"{host}:{'*' if number is None else number}")
    return " ".join(words) or "none"
