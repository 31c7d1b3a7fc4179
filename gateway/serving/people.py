"""The people of a `ServerConfig`: users with keys and groups, and the CAs that vouch for users."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from gateway.config.server_config import UserConfig
from gateway.serving.authorize import certificate_grant, key_grant
from gateway.ssh.authorized_keys import AuthorizedKey, AuthorizedKeys
from gateway.ssh.certificates import Certificate, check_for_user

if TYPE_CHECKING:
    from gateway.config.server_config import ServerConfig
    from gateway.serving.authorize import Grant
    from gateway.ssh.certificates import UserCertificateOptions
    from gateway.ssh.keys import PublicKey

_NOBODY: Final = UserConfig(frozenset(), AuthorizedKeys.of(()))
"""Whoever has no user of that name: looked up as all others, so that it takes as long."""


@dataclass(frozen=True, slots=True)
class ConfiguredPeople:
    """See `gateway.serving.authorize.People`. A name that nobody has lets nobody in."""

    config: ServerConfig

    def admit(self, user_name: str, key: PublicKey, address: str, now_s: float) -> Grant | None:
        """Return what a key is good for. What line and certificate forbid is forbidden by each."""
        user = self.config.user(user_name) or _NOBODY
        if isinstance(key, Certificate):
            line, options = self._authority(user_name, user, key, address, now_s)
            grant = certificate_grant(key, line, options, address)
        elif (found := user.keys.find(key, address, now_s)) is None:
            return None
        else:
            grant = key_grant(found)
        return replace(grant, groups=user.groups, required_keys=user.required_keys)

    def _authority(
        self,
        user_name: str,
        user: UserConfig,
        certificate: Certificate,
        address: str,
        now_s: float,
    ) -> tuple[AuthorizedKey, UserCertificateOptions]:
        for authority in self.config.authorities:
            if authority.key.blob == certificate.ca_key.blob and authority.admits(user_name):
                line = AuthorizedKey(authority.key, "", 0, (), cert_authority=True)
                return line, check_for_user(certificate, (user_name,), now_s)
        return user.keys.find_authority(certificate, user_name, address, now_s)
