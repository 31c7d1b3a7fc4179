"""The people of a `ServerConfig`: users with keys and groups, and the CAs that vouch for users."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from gateway.policy.key_limits import limits_of
from gateway.serving.authorize import Grant
from gateway.ssh.authorized_keys import AuthorizedKey
from gateway.ssh.certificates import Certificate, CertificateError, check_for_user

if TYPE_CHECKING:
    from gateway.config.server_config import ServerConfig, UserConfig
    from gateway.ssh.certificates import UserCertificateOptions
    from gateway.ssh.keys import PublicKey


@dataclass(frozen=True, slots=True)
class ConfiguredPeople:
    """See `gateway.serving.authorize.People`. A name that nobody has lets nobody in."""

    config: ServerConfig

    def admit(self, user_name: str, key: PublicKey, address: str, now_s: float) -> Grant | None:
        """Return what a key is good for. What line and certificate forbid is forbidden by each."""
        user = self.config.user(user_name)
        if isinstance(key, Certificate):
            grant = self._vouched_for(user_name, user, key, address, now_s)
        elif user is None or (line := user.keys.find(key, address, now_s)) is None:
            return None
        else:
            grant = Grant(limits_of(line), expires_s=_end(line))
        if user is None:
            return grant
        return replace(grant, groups=user.groups, required_keys=user.required_keys)

    def _vouched_for(
        self,
        user_name: str,
        user: UserConfig | None,
        certificate: Certificate,
        address: str,
        now_s: float,
    ) -> Grant:
        line, options = self._authority(user_name, user, certificate, address, now_s)
        if not options.allows_address(address):
            raise CertificateError("it may not be used from this address")
        if options.force_command is not None or options.verification_required:
            raise CertificateError("it demands what this server cannot do")
        return Grant(
            limits_of(line, options),
            principals=frozenset(certificate.principals),
            expires_s=min(certificate.valid_before, _end(line)),
        )

    def _authority(
        self,
        user_name: str,
        user: UserConfig | None,
        certificate: Certificate,
        address: str,
        now_s: float,
    ) -> tuple[AuthorizedKey, UserCertificateOptions]:
        for authority in self.config.authorities:
            if authority.key.blob == certificate.ca_key.blob and authority.admits(user_name):
                line = AuthorizedKey(authority.key, "", 0, (), cert_authority=True)
                return line, check_for_user(certificate, (user_name,), now_s)
        if user is None:
            raise CertificateError(f"no authority for {certificate.description} names this user")
        return user.keys.find_authority(certificate, user_name, address, now_s)


def _end(line: AuthorizedKey) -> float:
    return inf if line.expires_s is None else line.expires_s
