"""Everything that `gateway serve` was told, by flags or by a gateway.toml, as the same records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gateway.policy.limits import Limits
from gateway.ssh.algorithms import SERVER_PREFERENCES, Preferences
from gateway.ssh.transport import RekeyLimit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gateway.policy.addresses import Network
    from gateway.policy.rules import Policy
    from gateway.ssh.authorized_keys import AuthorizedKeys
    from gateway.ssh.keys import PrivateKey, PublicKey

ANY_USER: Final = "*"
"""As a user of `ServerConfig`, only from flags: every user name, and the key decides. Among the
users of an `Authority`: every user name that a certificate names."""


@dataclass(frozen=True, slots=True)
class UserConfig:
    """One person: the groups for rules, the keys, and how many different ones have to sign."""

    groups: frozenset[str]
    keys: AuthorizedKeys
    required_keys: int = 1


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA whose certificates let these users in; `ANY_USER` among them means every user."""

    key: PublicKey
    users: frozenset[str]

    def admits(self, user_name: str) -> bool:
        """Say whether a user may come with a certificate of this CA."""
        return user_name in self.users or ANY_USER in self.users


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """What clients of the VPN get: an address of ``pool``, see `gateway.policy.leases`.

    ``masquerade``: their packets go on with the server's own address. ``leases`` is the file that
    keeps the assignments, None for none; ``flows_per_client`` how many connections one client's
    packets may have at the same time.
    """

    pool: tuple[Network, ...]
    mtu: int = 1500
    masquerade: bool = True
    leases: Path | None = None
    flows_per_client: int = 4096


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What one server is to do.

    ``listen`` has (host, port) pairs, host "*" for all interfaces, port 0 for a free one; ``names``
    maps lower-case names to addresses, for this server alone; ``audit`` is the folder of the audit
    log, None for none, and its files are kept for ``audit_keep_days``, 0 for ever; without
    ``tunnel`` clients get no address; ``run_as`` is the ordinary user as whom the server goes on
    when root has started it, None for root; ``warnings`` are sentences to say at the start and
    after a reload.
    """

    listen: tuple[tuple[str | None, int], ...]
    host_keys: tuple[PrivateKey, ...]
    users: Mapping[str, UserConfig]
    policy: Policy
    preferences: Preferences = SERVER_PREFERENCES
    names: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    authorities: tuple[Authority, ...] = ()
    audit: Path | None = None
    audit_keep_days: int = 0
    rekey_limit: RekeyLimit = field(default_factory=RekeyLimit)
    tunnel: TunnelConfig | None = None
    run_as: str | None = None
    warnings: tuple[str, ...] = ()

    def user(self, name: str) -> UserConfig | None:
        """Return the user of this name, or the one that stands for every name, or None."""
        return self.users.get(name) or self.users.get(ANY_USER)

    @property
    def groups_by_user(self) -> dict[str, frozenset[str]]:
        """The groups of every user."""
        return {name: user.groups for name, user in self.users.items()}
