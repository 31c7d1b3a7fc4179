"""gateway.toml: what `gateway serve -c FILE` reads.

Two steps. pydantic checks the shape (`gateway.config.toml_shape`). Then `_Reader` follows what the
file names, other files and its own users, and refuses what is not safe. Every problem of a step is
told, not only the first, with its file, line and key.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from gateway.config import toml_shape
from gateway.config.checked_files import FILE_LIMIT, PRIVATE, UNCHANGED, read_checked_file
from gateway.config.interfaces import own_subnets
from gateway.config.ordinary_user import find_ordinary_user
from gateway.config.server_config import (
    ANY_USER,
    Authority,
    ServerConfig,
    TunnelConfig,
    UserConfig,
)
from gateway.config.toml_lines import key_lines, show_key
from gateway.errors import ConfigError, printable
from gateway.net.listen import is_own_address
from gateway.policy.leases import check_pool, check_pool_is_apart
from gateway.policy.limits import Limits
from gateway.policy.rules import Action, Policy, Rule, parse_target
from gateway.ssh.algorithms import (
    SERVER_PREFERENCES,
    STRICT_RSA_BITS,
    STRICT_SERVER_PREFERENCES,
)
from gateway.ssh.authorized_keys import AuthorizedKey, AuthorizedKeys, parse_authorized_keys
from gateway.ssh.keyfiles import parse_private_key_file_untrusted
from gateway.ssh.keys import PrivateKey, rsa_bits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gateway.config.toml_lines import Location

IPV6_MINIMUM_MTU: Final = 1280  # RFC 8200 §5


class _Problems:
    """What is wrong with one file, and what is only worth a warning."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._lines: dict[Location, int] | None = None
        self._errors: list[tuple[int, ConfigError]] = []
        self.warnings: list[str] = []

    def add(self, location: Location, problem: str, remedy: str) -> None:
        """Note an error of a key."""
        line, where = self._place(location)
        self._errors.append((line, ConfigError(problem, where=where, remedy=remedy)))

    def add_error(self, location: Location, error: ConfigError) -> None:
        """Note what a function raised about a key, or about the file that the key names."""
        problem = f"{error.where}: {error.problem}" if error.where else error.problem
        self.add(location, problem, error.remedy)

    def warn(self, location: Location, text: str) -> None:
        """Note what has to be said aloud."""
        self.warnings.append(f"{self._place(location)[1]}: {text}")

    def raise_if_any(self) -> None:
        """Raise one `ConfigError` with a line for each error, in the order of the file."""
        if self._errors:
            ordered = sorted(self._errors, key=lambda error: error[0])
            raise ConfigError("\n".join(str(error) for _, error in ordered))

    def _place(self, location: Location) -> tuple[int, str]:
        if self._lines is None:
            self._lines = key_lines(self._text)
        line = 0
        for length in range(len(location), 0, -1):
            if line := self._lines.get(location[:length], 0):
                break
        parts = [f"{self._path}:{line}" if line else str(self._path), show_key(location)]
        return line, ": ".join(part for part in parts if part)


def _read_host_key(path: Path) -> PrivateKey:
    content = read_checked_file(path, PRIVATE, FILE_LIMIT, "the host key")
    file = parse_private_key_file_untrusted(content, str(path))
    if file.is_encrypted:
        raise ConfigError(
            "the host key has a passphrase, and a server cannot be asked for one",
            where=str(path),
            remedy=f"remove it with: ssh-keygen -p -f {path}",
        )
    return file.decrypt()


def _check_strength(key: PrivateKey, path: Path) -> None:
    names = key.public.signature_algorithms
    bits = rsa_bits(key.public)
    if not set(names) & set(STRICT_SERVER_PREFERENCES.host_key) or (
        bits is not None and bits < STRICT_RSA_BITS
    ):
        raise ConfigError(
            f'algorithms = "strict" does not go with a {key.public.algorithm} key'
            + (f" of {bits} bits" if bits else ""),
            where=str(path),
            remedy=f"make another one with: ssh-keygen -t ed25519 -N '' -f {path}.new",
        )


# ---- the meaning ---------------------------------------------------------------------------------


def read_gateway_toml(path: Path, host_keys: tuple[PrivateKey, ...] = ()) -> ServerConfig:
    """Read a gateway.toml and the files that it names; relative names are relative to it.

    With ``host_keys`` those are not read again, for only root may. Raises `ConfigError`, which has
    a line for each error.
    """
    content = read_checked_file(path, UNCHANGED, FILE_LIMIT, "the configuration")
    try:
        text = content.decode()
        document = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            "this is not UTF-8", where=f"{path}:{line}", remedy="save the file as UTF-8"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise _syntax_error(path, error) from error
    problems = _Problems(path, text)
    try:
        file = toml_shape.File.model_validate(document)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            location = details["loc"]
            if location[-1:] == ("[key]",) and details["type"] != "extra_forbidden":
                location = details["loc"] = location[:-1]  # pydantic's mark: the key itself is bad
            problems.add(location, *toml_shape.shape_problem(details))
        problems.raise_if_any()
        raise
    return _Reader(path, file, problems, host_keys).read()


def _syntax_error(path: Path, error: Exception) -> ConfigError:
    found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error), re.DOTALL)
    where, problem = str(path), printable(str(error))
    if isinstance(error, RecursionError):
        problem = "too many brackets inside each other"
    elif found:
        where, problem = f"{path}:{found[2]}", f"{printable(found[1])} (column {found[3]})"
    return ConfigError(f"this is not TOML: {problem}", where=where, remedy="see https://toml.io")


class _Reader:
    """Follows what one file of the right shape names."""

    def __init__(
        self,
        path: Path,
        file: toml_shape.File,
        problems: _Problems,
        host_keys: tuple[PrivateKey, ...],
    ) -> None:
        self._kept_host_keys = host_keys
        self._folder = path.parent
        self._file = file
        self._problems = problems
        self._admits_anybody = any(ANY_USER in entry.users for entry in file.authorities)
        self._known_users = set(file.users).union(*(entry.users for entry in file.authorities))

    def read(self) -> ServerConfig:
        """Return the configuration, or raise every error at once."""
        file = self._file
        is_strict = file.algorithms == "strict"
        authorities = tuple(
            Authority(entry.key, frozenset(entry.users)) for entry in file.authorities
        )
        preferences = STRICT_SERVER_PREFERENCES if is_strict else SERVER_PREFERENCES
        host_keys = self._host_keys(strict=is_strict)
        limits = self._limits()
        audit = self._audit()
        users = {name: self._user(name, user, authorities) for name, user in file.users.items()}
        if not users and not authorities:
            self._problems.add(
                (),
                "there are neither users nor authorities, so nobody could log in",
                "add [users.NAME] with keys = [...]",
            )
        policy = Policy(tuple(self._rules()), is_own_address)
        tunnel = self._tunnel(file.tunnel)
        run_as = self._run_as()
        self._problems.raise_if_any()
        return ServerConfig(
            listen=tuple(file.listen),
            host_keys=tuple(host_keys),
            users=users,
            policy=policy,
            preferences=preferences,
            names=file.names,
            limits=limits,
            authorities=authorities,
            audit=audit,
            audit_keep_days=file.audit_keep_days or 0,
            tunnel=tunnel,
            run_as=run_as,
            warnings=tuple(self._problems.warnings),
        )

    def _host_keys(self, *, strict: bool) -> list[PrivateKey]:
        keys: list[PrivateKey] = []
        kept = self._kept_host_keys
        for number, name in enumerate(self._file.host_keys):
            location = ("host_keys", number)
            if kept and number >= len(kept):
                self._problems.warn(location, "a key more, which is read after a restart")
                break
            path = self._host_key_path(name)
            try:
                key = kept[number] if kept else _read_host_key(path)
                if strict:
                    _check_strength(key, path)
            except ConfigError as error:
                self._problems.add_error(location, error)
                continue
            if any(other.public.algorithm == key.public.algorithm for other in keys):
                self._problems.add(
                    location, "there is a key of this type already", "name one key of each type"
                )
            keys.append(key)
        return keys

    def _host_key_path(self, name: str) -> Path:
        """Prefer what systemd hands to a service that is not root (LoadCredential=)."""
        credentials = os.environ.get("CREDENTIALS_DIRECTORY")
        if credentials and Path(name).name == name and (Path(credentials) / name).exists():
            return Path(credentials) / name
        return self._folder / name

    def _run_as(self) -> str | None:
        if self._file.user is not None:
            try:
                find_ordinary_user(self._file.user)
            except ConfigError as error:
                self._problems.add_error(("user",), error)
        return self._file.user

    def _limits(self) -> Limits:
        limits = Limits(**self._file.limits.model_dump())
        if limits.startups_full < limits.startups_begin:
            self._problems.add(
                ("limits", "startups_full"),
                f"{limits.startups_full} is less than startups_begin, {limits.startups_begin}",
                "write a number that is not",
            )
        return limits

    def _audit(self) -> Path | None:
        if self._file.audit is None:
            if self._file.audit_keep_days is not None:
                self._problems.add(
                    ("audit_keep_days",), "there is no audit log", 'write audit = "audit"'
                )
            return None
        folder = self._folder / self._file.audit
        try:
            is_other = folder.exists() and not folder.is_dir()
        except (OSError, ValueError):
            is_other = True
        if is_other:
            self._problems.add(
                ("audit",), f"{printable(str(folder))} is not a folder", "name one, or a new name"
            )
        return folder

    def _tunnel(self, table: toml_shape.Tunnel | None) -> TunnelConfig | None:
        if table is None:
            return None
        try:
            check_pool(table.pool)
            check_pool_is_apart(table.pool, own_subnets())
        except ConfigError as error:
            self._problems.add_error(("tunnel", "pool"), error)
        if table.mtu < IPV6_MINIMUM_MTU and any(network.version == 6 for network in table.pool):
            self._problems.add(
                ("tunnel", "mtu"),
                f"{table.mtu} is too small for IPv6, which the pool has",
                f"write {IPV6_MINIMUM_MTU} or more",
            )
        if not any(rule.allow == Action.TUN.value for rule in self._file.rules):
            self._problems.warn(
                ("tunnel",), 'no rule allows a tun device: add one with allow = "tun"'
            )
        leases = self._folder / table.leases
        try:
            is_usable = leases.parent.is_dir() and not leases.is_dir()
        except OSError:
            is_usable = False
        if not is_usable:
            self._problems.add(
                ("tunnel", "leases"),
                f"{printable(str(leases))} cannot be a file",
                "name one in a folder that exists",
            )
        return TunnelConfig(
            tuple(table.pool), table.mtu, table.masquerade, leases, table.flows_per_client
        )

    def _user(
        self, name: str, user: toml_shape.User, authorities: Iterable[Authority]
    ) -> UserConfig:
        location = ("users", name)
        if name == ANY_USER:
            self._problems.add(
                location,
                "a person has a name of one's own, or no log could tell who it was",
                "write a table for each person",
            )
        keys = AuthorizedKeys.of(user.keys)
        if user.authorized_keys is not None:
            try:
                keys = AuthorizedKeys.of(
                    (*keys.entries, *self._key_file(name, user.authorized_keys))
                )
            except ConfigError as error:
                self._problems.add_error((*location, "authorized_keys"), error)
                return UserConfig(frozenset(user.groups), keys, user.required_keys)
        by_certificate = any(entry.cert_authority for entry in keys.entries)
        by_certificate |= any(authority.admits(name) for authority in authorities)
        self._check_number(location, user, keys, by_certificate=by_certificate)
        return UserConfig(frozenset(user.groups), keys, user.required_keys)

    def _check_number(
        self,
        location: Location,
        user: toml_shape.User,
        keys: AuthorizedKeys,
        *,
        by_certificate: bool,
    ) -> None:
        """Refuse a user who could never log in."""
        different = len({entry.key.blob for entry in keys.entries if not entry.cert_authority})
        if not different and not by_certificate:
            self._problems.add(
                location,
                "there is no key, so this user could not log in",
                'write keys = ["ssh-ed25519 AAAA..."], as in ~/.ssh/id_ed25519.pub',
            )
        elif different < user.required_keys and not by_certificate:
            self._problems.add(
                (*location, "required_keys"),
                f"{user.required_keys} keys have to sign, and there are {different}",
                "add keys, or write a lower number",
            )

    def _key_file(self, user: str, name: str) -> tuple[AuthorizedKey, ...]:
        path = self._folder / name
        content = read_checked_file(path, UNCHANGED, FILE_LIMIT, "the list of keys")
        found = parse_authorized_keys(content, str(path))
        for problem in found.problems:
            self._problems.warn(("users", user, "authorized_keys"), problem)
        return found.entries

    # -- rules -------------------------------------------------------------------------------------

    def _rules(self) -> Iterator[Rule]:
        if not self._file.rules:
            self._problems.warn((), "there are no rules, so nothing may be opened")
        seen: set[str] = set()
        for number, rule in enumerate(self._file.rules):
            location = ("rules", number)
            rule_id = rule.id or f"rules[{number}]"
            if rule_id in seen:
                self._problems.add(
                    (*location, "id"),
                    f"there is a rule {printable(rule_id)} already",
                    "write another name",
                )
            seen.add(rule_id)
            if (rule.allow is None) == (rule.deny is None):
                self._problems.add(
                    location,
                    "a rule either allows or denies",
                    'write one of allow = "open" and deny = "open"',
                )
                continue
            self._check_names(location, rule)
            yield from self._rule(location, rule_id, rule)

    def _rule(self, location: Location, rule_id: str, rule: toml_shape.Rule) -> list[Rule]:
        """Return the rule, or nothing if something is wrong with it."""
        action = Action(rule.allow or rule.deny)
        targets = []
        for number, text in enumerate(rule.to):
            try:
                targets.append(parse_target(text, action))
            except ConfigError as error:
                self._problems.add_error((*location, "to", number), error)
        if len(targets) < len(rule.to):
            return []
        if rule.allow == "open" and "*:*" in rule.to:
            named = rule.users or rule.groups or rule.keys or rule.principals
            whom = "those it names" if named else "every user"
            self._problems.warn(
                (*location, "to"),
                f'rule {printable(rule_id)} lets {whom} open "*:*", every host and port but the '
                "box itself: name hosts or ports",
            )
        if rule.allow == "unix" and os.geteuid() == 0 and self._file.user is None:
            self._problems.warn(
                (*location, "to"),
                f"rule {printable(rule_id)} opens sockets as root, and who listens there sees "
                "root: run the server as a user of its own",
            )
        try:
            made = Rule(
                rule_id,
                rule.allow is not None,
                action,
                tuple(targets),
                frozenset(rule.users),
                frozenset(rule.groups),
                frozenset(rule.keys),
                frozenset(rule.principals),
            )
        except ConfigError as error:  # what cannot be together in one rule
            self._problems.add_error(location, error)
            return []
        return [made]

    def _check_names(self, location: Location, rule: toml_shape.Rule) -> None:
        """Refuse whom nobody is: with a mistyped name a rule that denies would deny nobody."""
        groups = {group for user in self._file.users.values() for group in user.groups}
        users = set(rule.users) if self._admits_anybody else self._known_users
        for key, names, known in (("users", rule.users, users), ("groups", rule.groups, groups)):
            for number, name in enumerate(names):
                if name in known:
                    continue
                remedy = "check the name"
                if nearest := difflib.get_close_matches(name, sorted(known), n=1):
                    remedy = f"did you mean {nearest[0]}?"
                elif name == ANY_USER:
                    remedy = f"leave {key} out: a rule that names nobody is for all users"
                self._problems.add(
                    (*location, key, number),
                    f"there is no {key[:-1]} {printable(name, 80)}",
                    remedy,
                )


# ---- once more, while it runs --------------------------------------------------------------------


def reload(path: Path, running: ServerConfig) -> ServerConfig:
    """Read a file again for a server that runs; what needs a restart stays as it is.

    A warning says which. Raises `ConfigError`; then nothing has changed.
    """
    # Of another user than root the host keys cannot be read, and they stay anyway.
    new = read_gateway_toml(path, running.host_keys if running.run_as else ())
    kept: Mapping[str, bool] = {
        "listen": new.listen != running.listen,
        "host_keys": [key.public for key in new.host_keys]
        != [key.public for key in running.host_keys],
        "audit": new.audit != running.audit,
        "audit_keep_days": new.audit_keep_days != running.audit_keep_days,
        "tunnel": new.tunnel != running.tunnel,
        "user": new.run_as != running.run_as,
    }
    changed = [key for key, is_other in kept.items() if is_other]
    warnings = new.warnings
    if changed:
        text = f"{path}: {', '.join(changed)}: changed, and kept as before until a restart"
        warnings = (*warnings, text)
    return dataclasses.replace(
        new,
        listen=running.listen,
        host_keys=running.host_keys,
        audit=running.audit,
        audit_keep_days=running.audit_keep_days,
        tunnel=running.tunnel,
        run_as=running.run_as,
        rekey_limit=running.rekey_limit,
        warnings=warnings,
    )
