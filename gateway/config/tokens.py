"""The table of TOKENS in ssh_config(5) for one host."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.config.sources import Environment


def make_tokens(
    environment: Environment,
    *,
    alias: str,
    host_name: str,
    port: str,
    user: str,
    host_key_alias: str,
) -> dict[str, str]:
    """Return what each letter stands for, as far as it is known before the connection is made.

    %f %H %I %K and %t are about a key that was received and belong to KnownHostsCommand, %T to
    LocalCommand; neither is run.
    """
    tokens = {
        "d": str(environment.home),
        "h": host_name,
        "i": str(environment.uid),
        "j": "",  # what ProxyJump says, which is refused
        "k": host_key_alias,
        "L": environment.local_hostname.partition(".")[0],
        "l": environment.local_hostname,
        "n": alias,
        "p": port,
        "r": user,
        "u": environment.local_user,
    }
    hashed = "".join(tokens[letter] for letter in "lhprj").encode("utf-8", "surrogateescape")
    return tokens | {"C": hashlib.sha1(hashed, usedforsecurity=False).hexdigest()}
