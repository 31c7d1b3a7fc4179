"""``--via``: the proxies in front of the first connection.

A proxy is a URL. One with a password need not stand on the command line, which everybody on this
machine can read: ``--via @FILE`` takes the URLs from a file, one a line.
"""

from __future__ import annotations

import os
import re
import stat
import urllib.parse
from typing import TYPE_CHECKING, Final

from gateway.config.addresses import check_real_host, parse_port
from gateway.errors import ConfigError, printable
from gateway.socks.upstream import CREDENTIAL_LIMIT, Scheme, UpstreamProxy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WHERE: Final = "--via"
MAXIMUM_PROXIES: Final = 16
FILE_LIMIT: Final = 64 * 1024  # bytes
# IANA's port of SOCKS, and of http URIs (RFC 9110 §4.2.1).
_PORTS: Final = {Scheme.HTTP: 80}
_SOCKS_PORT: Final = 1080
_SCHEMES: Final = {scheme.value: scheme for scheme in Scheme}
_URL: Final = re.compile(
    r"([A-Za-z0-9]+)://(?:(.*)@)?(?:\[([^\[\]@]*)\]|([^:/@\[\]]*))(?::([^/@]*))?/?", re.DOTALL
)
_FORM: Final = "write socks5h://[USER[:PASSWORD]@]HOST[:PORT], or socks5, socks4a or http"


def parse_proxies(given: Iterable[str]) -> tuple[UpstreamProxy, ...]:
    """Read the arguments of --via, in the order of connecting. Raises `ConfigError`.

    No error shows what stands before an ``@``.
    """
    proxies = tuple(parse_proxy(url, where) for text in given for url, where in _urls(text))
    if len(proxies) > MAXIMUM_PROXIES:
        raise ConfigError(
            f"there are {len(proxies)} proxies",
            where=WHERE,
            remedy=f"leave at most {MAXIMUM_PROXIES}",
        )
    return proxies


def _urls(text: str) -> Iterator[tuple[str, str]]:
    if not text.startswith("@"):
        yield text, WHERE
        return
    name = text[1:]
    for number, line in enumerate(_read(name).splitlines(), 1):
        if (url := line.strip()) and not url.startswith("#"):
            yield url, f"{printable(name)}:{number}"


def _read(name: str) -> str:
    """Read a file of URLs that nobody else may read, for there may be passwords in it."""
    where = f"{WHERE} @{printable(name)}"
    try:
        with open(name, "rb") as file:  # noqa: PTH123 - the descriptor is looked at too
            status = os.fstat(file.fileno())
            content = file.read(FILE_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the file cannot be read ({getattr(error, 'strerror', None) or error})",
            where=where,
            remedy="check its name and that you may read it",
        ) from error
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        raise ConfigError(
            "others may read or write the file", where=where, remedy=f"run chmod 600 {name}"
        )
    if len(content) > FILE_LIMIT:
        raise ConfigError("the file is larger than 64 KiB", where=where, remedy="check what it is")
    return content.decode("utf-8", "surrogateescape")


def parse_proxy(url: str, where: str = WHERE) -> UpstreamProxy:
    """Read one URL. Raises `ConfigError`."""
    found = _URL.fullmatch(url)
    if found is None:
        raise ConfigError(f"{_without_secret(url)} is no proxy", where=where, remedy=_FORM)
    name, login, bracketed, plain, port_text = found.groups()
    scheme = _SCHEMES.get(name.lower())
    if scheme is None:
        raise ConfigError(
            f"{printable(name, 20)}:// is no kind of proxy that is supported",
            where=where,
            remedy=_FORM,
        )
    host = check_real_host(bracketed or plain, where=where)
    default = _PORTS.get(scheme, _SOCKS_PORT)
    port = default if port_text is None else parse_port(port_text, where=where)
    user, password = _login(login, where)
    if password is not None and scheme is Scheme.SOCKS4A:
        raise ConfigError(
            "SOCKS 4 has no passwords", where=where, remedy="leave it out, or write socks5h://"
        )
    if user is not None and ":" in user and scheme is Scheme.HTTP:
        raise ConfigError(
            "a user name for HTTP has no colon (RFC 7617)", where=where, remedy="check the user"
        )
    return UpstreamProxy(scheme, host, port, user, password)


def _login(text: str | None, where: str) -> tuple[str | None, str | None]:
    """Read ``user[:password]``, with %XX for what a URL cannot have (RFC 3986 §3.2.1)."""
    if not text:
        return None, None
    user, colon, password = text.partition(":")
    parts = [_decoded(user, where), _decoded(password, where)]
    if not parts[0]:
        raise ConfigError(
            "there is a password and no user", where=where, remedy="write USER:PASSWORD@"
        )
    return parts[0], parts[1] if colon else None


def _decoded(text: str, where: str) -> str:
    try:
        decoded = urllib.parse.unquote(text, errors="strict")
    except UnicodeDecodeError:
        decoded = "\0"
    if any(not character.isprintable() for character in decoded) or (
        len(decoded.encode("utf-8", "surrogateescape")) > CREDENTIAL_LIMIT
    ):
        raise ConfigError(
            f"user or password has a control character or more than {CREDENTIAL_LIMIT} bytes",
            where=where,
            remedy="write special characters as %XX, in UTF-8",
        )
    return decoded


def _without_secret(url: str) -> str:
    scheme, mark, rest = url.rpartition("@")[2].rpartition("://")
    return f"…@{printable(rest, 60)}" if "@" in url else printable(scheme + mark + rest, 60)
