"""Every keyword of ssh_config(5), OpenSSH 10.5, and what we do with it: one table.

Names come from ssh_config(5) and from the list at the top of readconf.c, with the aliases and the
retired ones that ssh still accepts; tests/interop/test_config_parity.py asks the newest ssh whether
it knows others. To support one more keyword: make its row `SUPPORTED` and give it a row in
`fields`.

To leave its value unsplit, as a command for a shell must be, set ``raw``.

The rule for a kind: REFUSED if ignoring the keyword would change whom we talk to, how safe that is,
or what a user relies on; WARNED if the link works without it but somebody could miss it; IGNORED if
nobody can, each with the reason here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(enum.Enum):
    """What happens when a keyword applies to the host."""

    SUPPORTED = enum.auto()
    IGNORED = enum.auto()  # silently
    WARNED = enum.auto()  # one warning with file and line
    REFUSED = enum.auto()  # ConfigError


@dataclass(frozen=True, slots=True)
class Keyword:
    """One row.

    Keywords with the same ``slot`` are one setting: the first of them wins. Values in ``harmless``
    say what we do anyway, so they bring neither a warning nor an error. The value of a ``raw`` one
    is the rest of its line, quotes and all.
    """

    name: str
    kind: Kind
    reason: str = ""
    harmless: tuple[str, ...] = ()
    remedy: str = ""
    slot: str = ""
    accumulates: bool = False
    raw: bool = False

    def __post_init__(self) -> None:
        """Give a row without a slot its own."""
        if not self.slot:
            object.__setattr__(self, "slot", self.name.lower())


def _rows(kind: Kind, reason: str, names: str) -> tuple[Keyword, ...]:
    return tuple(Keyword(name, kind, reason) for name in names.split())


_OFF: Final = ("no", "false")
_IDENTITY_LATER: Final = (
    "only keys of files and the agent are used; if the server wants this one, the login will fail"
)
_RETIRED: Final = "retired: OpenSSH accepts it and does nothing with it"
_GSSAPI: Final = "Kerberos is not offered; the other login methods are"

_SUPPORTED_ROWS: Final = (
    *_rows(Kind.SUPPORTED, "decides which lines apply", "Host Match Include IgnoreUnknown"),
    *_rows(Kind.SUPPORTED, "decides which lines apply", "Tag CanonicalDomains CanonicalizeMaxDots"),
    *_rows(Kind.SUPPORTED, "whom we talk to", "HostName User Port AddressFamily BindAddress"),
    *_rows(Kind.SUPPORTED, "whom we talk to", "BindInterface CanonicalizeHostname"),
    *_rows(
        Kind.SUPPORTED, "whom we talk to", "CanonicalizeFallbackLocal CanonicalizePermittedCNAMEs"
    ),
    # The two exclude each other: see `Settings.proxy`.
    *_rows(Kind.SUPPORTED, "the way to the server", "ProxyJump ProxyUseFdpass"),
    Keyword("ProxyCommand", Kind.SUPPORTED, "the way to the server", raw=True),
    *_rows(Kind.SUPPORTED, "the link", "ServerAliveCountMax ConnectTimeout RekeyLimit LogLevel"),
    *_rows(Kind.SUPPORTED, "the link", "ConnectionAttempts TCPKeepAlive IPQoS"),
    Keyword("KeepAlive", Kind.SUPPORTED, "retired alias", slot="tcpkeepalive"),
    *_rows(Kind.SUPPORTED, "algorithms", "Ciphers KexAlgorithms HostKeyAlgorithms MACs"),
    *_rows(Kind.SUPPORTED, "algorithms", "CASignatureAlgorithms PubkeyAcceptedAlgorithms"),
    *_rows(Kind.SUPPORTED, "algorithms", "RequiredRSASize WarnWeakCrypto"),
    Keyword(
        "PubkeyAcceptedKeyTypes",
        Kind.SUPPORTED,
        "retired alias",
        slot="pubkeyacceptedalgorithms",
    ),
    *_rows(Kind.SUPPORTED, "the server's key", "UserKnownHostsFile GlobalKnownHostsFile"),
    *_rows(Kind.SUPPORTED, "the server's key", "StrictHostKeyChecking HashKnownHosts"),
    *_rows(Kind.SUPPORTED, "the server's key", "HostKeyAlias RevokedHostKeys UpdateHostKeys"),
    Keyword("CertificateFile", Kind.SUPPORTED, "which keys", accumulates=True),
    *_rows(Kind.SUPPORTED, "which keys", "IdentityAgent"),
    *_rows(Kind.SUPPORTED, "which login methods", "IdentitiesOnly PasswordAuthentication"),
    *_rows(Kind.SUPPORTED, "which login methods", "PubkeyAuthentication PreferredAuthentications"),
    *_rows(Kind.SUPPORTED, "which login methods", "KbdInteractiveAuthentication"),
    *_rows(Kind.SUPPORTED, "how often to ask", "NumberOfPasswordPrompts BatchMode"),
    *_rows(Kind.SUPPORTED, "forwarding", "ExitOnForwardFailure GatewayPorts ClearAllForwardings"),
    *_rows(Kind.SUPPORTED, "forwarding", "Tunnel TunnelDevice PermitRemoteOpen"),
    *_rows(Kind.SUPPORTED, "forwarding", "StreamLocalBindMask StreamLocalBindUnlink"),
    *_rows(Kind.SUPPORTED, "where our control socket is", "ControlPath"),
    *_rows(Kind.SUPPORTED, "whether a session is opened", "SessionType"),
    *_rows(Kind.SUPPORTED, "the session", "StdinNull ForkAfterAuthentication"),
    Keyword("RemoteCommand", Kind.SUPPORTED, "the session", raw=True),
    *_rows(Kind.SUPPORTED, "the session", "RequestTTY SetEnv EscapeChar EnableEscapeCommandline"),
    Keyword("SendEnv", Kind.SUPPORTED, "the session", accumulates=True),
    *_rows(Kind.SUPPORTED, "what runs here", "PermitLocalCommand"),
    Keyword("LocalCommand", Kind.SUPPORTED, "what runs here", raw=True),
    Keyword("ServerAliveInterval", Kind.SUPPORTED, "the link"),
    # Debian's old names for it, which its ssh still reads.
    Keyword("ProtocolKeepAlives", Kind.SUPPORTED, "alias", slot="serveraliveinterval"),
    Keyword("SetupTimeOut", Kind.SUPPORTED, "alias", slot="serveraliveinterval"),
    Keyword("IdentityFile", Kind.SUPPORTED, "which keys", accumulates=True),
    Keyword(
        "IdentityFile2", Kind.SUPPORTED, "retired alias", slot="identityfile", accumulates=True
    ),
    Keyword("DynamicForward", Kind.SUPPORTED, "forwarding", accumulates=True),
    Keyword("LocalForward", Kind.SUPPORTED, "forwarding", accumulates=True),
    Keyword("RemoteForward", Kind.SUPPORTED, "forwarding", accumulates=True),
    Keyword("DSAAuthentication", Kind.SUPPORTED, "retired alias", slot="pubkeyauthentication"),
    Keyword(
        "ChallengeResponseAuthentication",
        Kind.SUPPORTED,
        "retired alias",
        slot="kbdinteractiveauthentication",
    ),
    Keyword(
        "SKeyAuthentication", Kind.SUPPORTED, "retired alias", slot="kbdinteractiveauthentication"
    ),
    Keyword(
        "TISAuthentication", Kind.SUPPORTED, "retired alias", slot="kbdinteractiveauthentication"
    ),
)

_REFUSED_ROWS: Final = (
    Keyword(
        "KnownHostsCommand",
        Kind.REFUSED,
        "the command would not be asked which host keys to trust",
        ("none",),
        "write its keys to a file and name that in UserKnownHostsFile",
        raw=True,
    ),
    Keyword(
        "RefuseConnection",
        Kind.REFUSED,
        "the configuration forbids this connection",
        remedy="connect to the host that its message names, or take it out",
    ),
)

_WARNED_ROWS: Final = (
    Keyword("PKCS11Provider", Kind.WARNED, _IDENTITY_LATER, ("none",)),
    Keyword("SmartcardDevice", Kind.WARNED, _IDENTITY_LATER, ("none",), slot="pkcs11provider"),
    Keyword("SecurityKeyProvider", Kind.WARNED, _IDENTITY_LATER, ("none", "internal")),
    Keyword(
        "HostbasedAuthentication", Kind.WARNED, "this login method is not offered", harmless=_OFF
    ),
    Keyword("CheckHostIP", Kind.WARNED, "the key is checked under the host's name only", _OFF),
    Keyword(
        "VerifyHostKeyDNS",
        Kind.WARNED,
        "the DNS is not asked; an unknown key is handled as StrictHostKeyChecking says",
        _OFF,
    ),
    Keyword(
        "NoHostAuthenticationForLocalhost",
        Kind.WARNED,
        "the keys of localhost are checked as all others",
        _OFF,
    ),
    Keyword("FingerprintHash", Kind.WARNED, "fingerprints are shown as SHA256", ("sha256",)),
    Keyword("VisualHostKey", Kind.WARNED, "the fingerprint is shown without a picture", _OFF),
    Keyword("Compression", Kind.WARNED, "the link is not compressed", _OFF),
    Keyword("ChannelTimeout", Kind.WARNED, "idle channels stay open", ("none",)),
    Keyword("AddKeysToAgent", Kind.WARNED, "keys are not added to the agent", _OFF),
    Keyword("ForwardAgent", Kind.WARNED, "the agent is not forwarded", _OFF),
    Keyword("ForwardX11", Kind.WARNED, "X11 is not forwarded", _OFF),
    Keyword(
        "ControlMaster", Kind.WARNED, "the connection is not shared", (*_OFF, "auto", "autoask")
    ),
    Keyword(  # ssh has it on by default
        "ObscureKeystrokeTiming",
        Kind.WARNED,
        "when keys are pressed is not hidden",
        _OFF,
    ),
)

_IGNORED_ROWS: Final = (
    *_rows(Kind.IGNORED, "ssh itself ignores it, whatever its value", "Protocol"),
    *_rows(Kind.IGNORED, _RETIRED, "Cipher FallBackToRsh RhostsAuthentication UseRoaming UseRsh"),
    *_rows(Kind.IGNORED, _RETIRED, "GlobalKnownHostsFile2 UserKnownHostsFile2 UsePrivilegedPort"),
    *_rows(Kind.IGNORED, _RETIRED, "AFSTokenPassing KerberosAuthentication KerberosTgtPassing"),
    *_rows(Kind.IGNORED, _RETIRED, "RSAAuthentication RhostsRSAAuthentication CompressionLevel"),
    *_rows(Kind.IGNORED, _RETIRED, "UseBlacklistedKeys"),
    # Debian's /etc/ssh/ssh_config sets it for everybody.
    *_rows(Kind.IGNORED, _GSSAPI, "GSSAPIAuthentication GSSAPIDelegateCredentials"),
    *_rows(Kind.IGNORED, _GSSAPI, "GSSAPIKeyExchange GSSAPIClientIdentity GSSAPIServerIdentity"),
    *_rows(Kind.IGNORED, _GSSAPI, "GSSAPIRenewalForcesRekey GSSAPITrustDns GSSAPIKexAlgorithms"),
    *_rows(Kind.IGNORED, "only matters with HostbasedAuthentication", "EnableSSHKeysign"),
    *_rows(
        Kind.IGNORED,
        "only matters with HostbasedAuthentication",
        "HostbasedAcceptedAlgorithms HostbasedKeyTypes",
    ),
    *_rows(Kind.IGNORED, "only matters with ForwardX11", "ForwardX11Timeout ForwardX11Trusted"),
    *_rows(Kind.IGNORED, "only matters with ForwardX11", "XAuthLocation"),
    *_rows(Kind.IGNORED, "every connection here is its own master", "ControlPersist"),
    *_rows(Kind.IGNORED, "names the devices of BSD authentication", "KbdInteractiveDevices"),
    *_rows(Kind.IGNORED, "words in our version string that nobody reads", "VersionAddendum"),
    *_rows(Kind.IGNORED, "debugging aid for the source of OpenSSH", "LogVerbose"),
    *_rows(Kind.IGNORED, "messages go to standard error", "SyslogFacility"),
)

TABLE: Final = (*_SUPPORTED_ROWS, *_REFUSED_ROWS, *_WARNED_ROWS, *_IGNORED_ROWS)

BY_NAME: Final[Mapping[str, Keyword]] = MappingProxyType({row.name.lower(): row for row in TABLE})
