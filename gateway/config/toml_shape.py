"""The shape of a gateway.toml for pydantic: types, bounds, keys, and what to say about them.

A value that is a small language of its own, an address or a key, is read here too (`_Parsed`).
Imported for a file only: pydantic costs a start that needs none.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from gateway.config.addresses import (
    ALL_INTERFACES,
    check_real_host,
    check_user_name,
    is_address,
    parse_listen_address,
)
from gateway.config.server_config import ANY_USER, TunnelConfig
from gateway.errors import ConfigError, printable
from gateway.policy.limits import Limits
from gateway.policy.targets import parse_network
from gateway.ssh.authorized_keys import AuthorizedKey, parse_authorized_key
from gateway.ssh.keys import PublicKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config.toml_lines import Location

NAME_LIMIT: Final = 64  # characters of the name of a rule, a group or a principal
MOST_KEYS: Final = 10  # that may have to sign for one login
MOST_DAYS: Final = 36_500  # that files of the audit log are kept


class _Parsed:
    """For Annotated: a text that a function reads; its `ConfigError` is about this key."""

    def __init__(self, parse: Callable[[str], object]) -> None:
        self._parse = parse

    def __get_pydantic_core_schema__(self, _source: object, _handler: object) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            self._validate, core_schema.str_schema(strict=True)
        )

    def _validate(self, text: str) -> object:
        try:
            return self._parse(text)
        except ConfigError as error:
            details = {"problem": error.problem, "remedy": error.remedy}
            raise PydanticCustomError("gateway", "{problem}", details) from error


def _address(text: str) -> str:
    if not is_address(text):
        raise ConfigError(f"{printable(text, 80)} is not an address", remedy="as in 10.0.0.5")
    return text


def _name(text: str) -> str:
    if not 0 < len(text) <= NAME_LIMIT or not text.isprintable():
        raise ConfigError(
            f"{printable(text, 40) or 'an empty text'} cannot be a name",
            remedy=f"write 1 to {NAME_LIMIT} characters that can be shown",
        )
    return text


def _user_name(text: str) -> str:
    return text if text == ANY_USER else check_user_name(text)


def _fingerprint(text: str) -> str:
    if re.fullmatch("SHA256:[A-Za-z0-9+/]{43}", text) is None:
        raise ConfigError(
            f"{printable(text, 80) or 'an empty text'} is not a fingerprint",
            remedy="write SHA256:... as ssh-keygen -l -f FILE prints it",
        )
    return text


def _key_line(text: str) -> AuthorizedKey:
    try:
        return parse_authorized_key(text)
    except ConfigError as error:
        remedy = "write a line like the one in ~/.ssh/id_ed25519.pub"
        raise ConfigError(error.problem, remedy=remedy) from error


def _authority_key(text: str) -> PublicKey:
    entry = _key_line(text)
    if entry.options:
        raise ConfigError(
            "an authority has no options", remedy="write the key alone, and its users beside it"
        )
    return entry.key


_ListenAt = Annotated[tuple[str, int], _Parsed(parse_listen_address)]
_Address = Annotated[str, _Parsed(_address)]
_Network = Annotated[IPv4Network | IPv6Network, _Parsed(parse_network)]
_Host = Annotated[str, _Parsed(lambda text: check_real_host(text).rstrip("."))]
_Name = Annotated[str, _Parsed(_name)]
_UserName = Annotated[str, _Parsed(_user_name)]
_Fingerprint = Annotated[str, _Parsed(_fingerprint)]
_KeyLine = Annotated[AuthorizedKey, _Parsed(_key_line)]
_AuthorityKey = Annotated[PublicKey, _Parsed(_authority_key)]
_Text = Annotated[str, Field(min_length=1, max_length=4096)]
_Kind = Literal["open", "listen", "tun", "unix"]

_SHAPE: Final = ConfigDict(
    strict=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
)


class _Table(BaseModel):
    model_config = _SHAPE


class User(_Table):
    """``[users.NAME]``."""

    groups: list[_Name] = []
    keys: list[_KeyLine] = []
    authorized_keys: _Text | None = None
    required_keys: Annotated[int, Field(ge=1, le=MOST_KEYS)] = 1


class Authority(_Table):
    """``[[authorities]]``."""

    key: _AuthorityKey
    users: Annotated[list[_UserName], Field(min_length=1)]


class Rule(_Table):
    """``[[rules]]``."""

    id: _Name | None = None
    allow: _Kind | None = None
    deny: _Kind | None = None
    to: Annotated[list[_Text], Field(min_length=1)]
    users: list[_UserName] = []
    groups: list[_Name] = []
    keys: list[_Fingerprint] = []
    principals: list[_Name] = []


_DAY_S: Final = 86_400
_MANY: Final = 1_000_000
# Lowest and highest value of every limit that is a number.
_BOUNDS: Final[dict[str, tuple[int, int]]] = {
    "login_grace_s": (1, 3600),
    "startups_begin": (1, _MANY),
    "startups_rate_percent": (1, 100),
    "startups_full": (1, _MANY),
    "per_source_startups": (1, _MANY),
    "max_auth_tries": (1, 100),
    "links_per_user": (1, _MANY),
    "channels_per_user": (1, _MANY),
    "opens_per_second_per_user": (1, _MANY),
    "idle_timeout_s": (0, 365 * _DAY_S),
    "maximum_lifetime_s": (0, 365 * _DAY_S),
    "drain_s": (0, _DAY_S),
}
_OTHER_BOUNDS: Final = {"required_keys": (1, MOST_KEYS), "audit_keep_days": (1, MOST_DAYS)}


def _limit_fields() -> dict[str, Any]:
    """Return a field for each of `Limits`, with its type, bounds and default."""
    types = typing.get_type_hints(Limits)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(Limits):
        low, high = _BOUNDS.get(field.name, (None, None))
        fields[field.name] = (types[field.name], Field(field.default, ge=low, le=high))
    return fields


if TYPE_CHECKING:
    _Limits = _Table
else:
    _Limits = create_model("_Limits", __base__=_Table, **_limit_fields())


# ---- the VPN -------------------------------------------------------------------------------------

_TUNNEL_BOUNDS: Final = {"mtu": (576, 65_535), "flows_per_client": (1, _MANY)}  # 576: RFC 791 §3.2


def _bounded(name: str) -> Any:  # noqa: ANN401 - as pydantic's Field
    low, high = _TUNNEL_BOUNDS[name]
    default = next(
        field.default for field in dataclasses.fields(TunnelConfig) if field.name == name
    )
    return Field(default, ge=low, le=high)


class Tunnel(_Table):
    """``[tunnel]``; bounds and defaults are those of `TunnelConfig`."""

    pool: Annotated[list[_Network], Field(min_length=1)]
    mtu: int = _bounded("mtu")
    masquerade: bool = True
    leases: _Text = "leases.json"
    flows_per_client: int = _bounded("flows_per_client")


class File(_Table):
    """The whole document."""

    listen: Annotated[list[_ListenAt], Field(min_length=1)] = [(ALL_INTERFACES, 2222)]
    host_keys: Annotated[list[_Text], Field(min_length=1)]
    user: _Text | None = None
    algorithms: Literal["default", "strict"] = "default"
    audit: _Text | None = None
    audit_keep_days: Annotated[int, Field(ge=1, le=MOST_DAYS)] | None = None
    names: dict[_Host, _Address] = {}
    limits: _Limits = Field(default_factory=_Limits)
    users: dict[_UserName, User] = {}
    authorities: list[Authority] = []
    rules: list[Rule] = []
    tunnel: Tunnel | None = None


_TABLES: Final[dict[str, type[BaseModel]]] = {
    "limits": _Limits,
    "users": User,
    "authorities": Authority,
    "rules": Rule,
    "tunnel": Tunnel,
}

# ---- what is wrong, in sentences -----------------------------------------------------------------

_WANTED: Final = {
    "string_type": "a text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list in brackets",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_KINDS: Final[tuple[tuple[type, str], ...]] = (
    (bool, "true or false"),
    (str, "a text"),
    (int, "a whole number"),
    (float, "a number with a point"),
    (list, "a list"),
    (dict, "a table"),
)
_MISSING: Final = {
    "host_keys": 'write host_keys = ["host_ed25519"], which `gateway init` makes',
    "pool": 'write pool = ["10.213.0.0/24"]',
    "key": 'write key = "ssh-ed25519 AAAA... ca"',
    "users": 'write users = ["alice"], or ["*"] for every user',
    "to": 'write to = ["host:port"]',
}


def shape_problem(error: ErrorDetails) -> tuple[str, str]:
    """Return what is wrong and the remedy for an error of pydantic."""
    kind, context = error["type"], error.get("ctx", {})
    last = str(error["loc"][-1]) if error["loc"] else ""
    shown = printable(str(error["input"]), 60) or "an empty text"
    match kind:
        case "gateway":
            found = context["problem"], context["remedy"]
        case "extra_forbidden":
            found = "there is no such key", _nearest_key(error["loc"])
        case "missing":
            found = "it is missing", _MISSING.get(last, f"write {last} = ...")
        case "literal_error":
            found = f"{shown} is not known", f"write {context['expected']}"
        case "greater_than_equal" | "less_than_equal":
            low, high = (_BOUNDS | _TUNNEL_BOUNDS | _OTHER_BOUNDS)[last]
            found = f"{shown} is out of bounds", f"write a number from {low} to {high}"
        case "finite_number":
            found = f"{shown} is no time", "write a number of seconds, 0 for no limit"
        case "too_short":
            found = "this list is empty", "write at least one"
        case "string_too_short":
            found = "this text is empty", "write at least one character"
        case _ if kind in _WANTED:
            found = f"this is {_kind_of(error['input'])}", f"write {_WANTED[kind]}"
        case _:
            found = printable(error["msg"]), "`gateway init` writes a file that shows every key"
    return found


def _kind_of(value: object) -> str:
    return next((text for type_, text in _KINDS if isinstance(value, type_)), "a date or a time")


def _nearest_key(location: Location) -> str:
    """Suggest what an unknown key was to be."""
    key = str(location[-1])
    table = _TABLES.get(str(location[0])) if len(location) > 1 else File
    known = list((table or File).model_fields)
    if nearest := difflib.get_close_matches(key.lower(), known, n=1):
        return f"did you mean {nearest[0]}?"
    if key in File.model_fields:
        return f"write {key} above the first line in brackets"
    return f"the keys here are {', '.join(known)}"
