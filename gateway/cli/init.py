"""`gateway init`: a folder with a gateway.toml that works, a host key and one user's key."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import re
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.cli.terminal import EXIT_FAILURE, Parser, say_error
from gateway.config.addresses import check_user_name
from gateway.config.identities import load_public_key_file
from gateway.config.server_config import TunnelConfig
from gateway.errors import ConfigError, printable
from gateway.policy.leases import DEFAULT_POOL
from gateway.policy.limits import Limits
from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey
from gateway.ssh.known_hosts import format_line

if TYPE_CHECKING:
    from gateway.ssh.keys import PublicKey

CONFIG: Final = "gateway.toml"
HOST_KEY: Final = "host_ed25519"
USERS: Final = "users"
PORT: Final = 2222
# ssh(1)'s default identities, the best type first.
IDENTITIES: Final = ("id_ed25519", "id_ed25519_sk", "id_ecdsa", "id_ecdsa_sk", "id_rsa")

TEMPLATE: Final = """\
# The jump box: `gateway serve -c {config}` reads this, and again at SIGHUP.
# `gateway serve -c {config} --check` tells what is wrong with it, without serving.
# Names of files are relative to this one.

listen = ["*:{port}"]                # ADDRESS:PORT, * for all addresses
host_keys = ["{host_key}"]
# user = "gateway"                 # as whom it goes on when root has started it
algorithms = "default"             # "strict": post-quantum key exchange only
# audit = "audit"                  # a folder for the audit log
# audit_keep_days = 400            # then its old files are removed; without this, never

# Who may log in. The name is the one before the @.
[users.{user}]
groups = ["staff"]
authorized_keys = {key_file}   # lines as in ~/.ssh/authorized_keys
# keys = ["ssh-ed25519 AAAA... laptop"]  # the same, here
# required_keys = 2                # so many different keys have to sign

# Who may do what. What no rule allows is denied, and deny wins over allow. A rule that names no
# users, groups, keys or principals is for everybody. The box itself, link-local and metadata
# addresses and the ports of mail have to be named exactly. Ask `gateway explain`.
[[rules]]
id = "usual"                       # shown in refusals and in the log
allow = "open"                     # or deny = ...; open, listen, tun or unix
to = ["*:22", "*:80", "*:443"]     # HOST:PORT, *.example:1-1024, 10.0.0.0/8:*, [2001:db8::1]:443
groups = ["staff"]

# [[rules]]
# id = "database"
# allow = "open"
# to = ["db.internal:5432"]
# users = [{quoted_user}]

# [[rules]]
# id = "vpn"
# allow = "tun"
# to = ["10.20.0.0/16", "fd20::/64"]  # or "tun", all that needs no name; "tap" is for ethernet
# groups = ["staff"]

# Addresses for clients of the VPN, the first one is the server's. Used nowhere near this machine.
# [tunnel]
# pool = [{pool}]
# mtu = {tunnel.mtu}
# masquerade = {masquerade}              # targets see the server's address, and need no route back
# leases = "leases.json"           # who has which address
# flows_per_client = {tunnel.flows_per_client}         # connections at the same time

# Names that only this server resolves.
# [names]
# "db.internal" = "10.0.0.5"

# Whose certificates let users in: as the users that this names, [\"*\"] for every name.
# [[authorities]]
# key = "ssh-ed25519 AAAA... our CA"
# users = ["*"]

# [limits]                         # these are the defaults; ..._s in seconds
{limits}
"""


def run_init(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    parser = Parser(
        prog="gateway init",
        description="Make a folder with a gateway.toml, a host key and a user. Nothing that is "
        "there is overwritten.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="made if it is missing")
    add("--user", metavar="NAME", help="the first user (default: you)")
    add("--key", type=Path, metavar="FILE",
        help="the user's public key (default: the one in ~/.ssh)")  # fmt: skip
    try:
        parsed = parser.parse_args(arguments)
        user = _user_name(parsed.user)
        key = _find_key(parsed.key)
        host_key = _make(parsed.folder, user, key)
    except ConfigError as error:
        say_error(error)
        return EXIT_FAILURE
    print("\n".join(_next_steps(parsed.folder / CONFIG, user, host_key)))
    return 0


def _user_name(named: str | None) -> str:
    try:
        user = check_user_name(named or getpass.getuser(), where="--user")
    except (KeyError, OSError) as error:  # as getpass says it in different versions of Python
        raise ConfigError("you have no user name here", remedy="give one with --user") from error
    if user.startswith(".") or set(user) & set("/*"):
        raise ConfigError(
            f"no file can be named after {printable(user)}",
            where="--user",
            remedy="write another name",
        )
    return user


def _find_key(named: Path | None) -> PublicKey:
    """Return the public key in a file, or beside it; without one, ssh(1)'s default ones."""
    folder = Path(os.environ.get("HOME") or "~").expanduser() / ".ssh"
    files = [named] if named else [folder / name for name in IDENTITIES]
    for file in files:
        for path in (Path(f"{file}.pub"), file):
            if (key := load_public_key_file(path)) is not None:
                return key
    if named:
        raise ConfigError(
            "there is no public key, and none beside it in FILE.pub",
            where=f"--key {printable(str(named))}",
            remedy="name a file like ~/.ssh/id_ed25519.pub",
        )
    raise ConfigError(
        "there is no public key",
        where=str(folder),
        remedy="make one with `ssh-keygen -t ed25519`, or name one with --key FILE",
    )


def _make(folder: Path, user: str, key: PublicKey) -> PrivateKey:
    """Make all files, each for its owner only; return the host key."""
    host_key = PrivateKey.generate(os.urandom)
    key_file = f"{USERS}/{user}.keys"
    tunnel = TunnelConfig(DEFAULT_POOL)
    config = TEMPLATE.format(
        config=CONFIG,
        port=PORT,
        host_key=HOST_KEY,
        user=user if re.fullmatch("[A-Za-z0-9_-]+", user) else _quoted(user),
        quoted_user=_quoted(user),
        key_file=_quoted(key_file),
        pool=", ".join(_quoted(str(network)) for network in tunnel.pool),
        masquerade=json.dumps(tunnel.masquerade),
        tunnel=tunnel,
        limits="\n".join(
            f"# {field.name} = {json.dumps(field.default)}" for field in dataclasses.fields(Limits)
        ),
    )
    files = {
        folder / HOST_KEY: encode_private_key_file(host_key),
        folder / f"{HOST_KEY}.pub": f"{host_key.public.openssh_text()}\n".encode(),
        folder / key_file: f"{key.openssh_text()} {user}\n".encode(),
        folder / CONFIG: config.encode(),
    }
    for path in files:
        if path.exists() or path.is_symlink():
            raise ConfigError(
                "it is there already, and nothing is overwritten",
                where=printable(str(path)),
                remedy="name another folder, or move it away",
            )
    try:
        for path in (folder, folder / USERS):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, content in files.items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no folder has such a name"
        raise ConfigError(
            f"the files cannot be made: {reason}",
            where=printable(str(folder)),
            remedy="name a folder that you may write",
        ) from error
    return host_key


def _quoted(text: str) -> str:
    """Return a text as a string of TOML, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)


def _next_steps(config: Path, user: str, host_key: PrivateKey) -> list[str]:
    """Return what to do now, with this machine's name for the clients."""
    host = socket.gethostname()
    file, login = shlex.quote(str(config)), shlex.quote(f"{user}@{host}")
    return [
        f"made {printable(str(config))}; begin with:",
        f"  gateway serve -c {file}",
        f"  gateway connect -N -D 6000 -p {PORT} {login}",
        f"the host key is {host_key.public.fingerprint}; a line for the clients' known_hosts:",
        f"  {format_line(host, PORT, host_key.public).rstrip()}",
    ]
