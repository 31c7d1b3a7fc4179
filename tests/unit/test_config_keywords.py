"""The table of keywords is whole, and says why and what to do instead."""

import pytest

from gateway.config.keywords import BY_NAME, TABLE, Kind

# ssh_config(5) of OpenSSH 10.5.
MANUAL = """
Host Match AddKeysToAgent AddressFamily BatchMode BindAddress BindInterface CanonicalDomains
CanonicalizeFallbackLocal CanonicalizeHostname CanonicalizeMaxDots CanonicalizePermittedCNAMEs
CASignatureAlgorithms CertificateFile ChannelTimeout CheckHostIP Ciphers ClearAllForwardings
Compression ConnectionAttempts ConnectTimeout ControlMaster ControlPath ControlPersist
DynamicForward EnableEscapeCommandline EnableSSHKeysign EscapeChar ExitOnForwardFailure
FingerprintHash ForkAfterAuthentication ForwardAgent ForwardX11 ForwardX11Timeout ForwardX11Trusted
GatewayPorts GlobalKnownHostsFile GSSAPIAuthentication GSSAPIDelegateCredentials HashKnownHosts
HostbasedAcceptedAlgorithms HostbasedAuthentication HostKeyAlgorithms HostKeyAlias Hostname
IdentitiesOnly IdentityAgent IdentityFile IgnoreUnknown Include IPQoS KbdInteractiveAuthentication
KbdInteractiveDevices KexAlgorithms KnownHostsCommand LocalCommand LocalForward LogLevel LogVerbose
MACs NoHostAuthenticationForLocalhost NumberOfPasswordPrompts ObscureKeystrokeTiming
PasswordAuthentication PermitLocalCommand PermitRemoteOpen PKCS11Provider Port
PreferredAuthentications ProxyCommand ProxyJump ProxyUseFdpass PubkeyAcceptedAlgorithms
PubkeyAuthentication RefuseConnection RekeyLimit RemoteCommand RemoteForward RequestTTY
RequiredRSASize RevokedHostKeys SecurityKeyProvider SendEnv ServerAliveCountMax ServerAliveInterval
SessionType SetEnv StdinNull StreamLocalBindMask StreamLocalBindUnlink StrictHostKeyChecking
SyslogFacility Tag TCPKeepAlive Tunnel TunnelDevice UpdateHostKeys User UserKnownHostsFile
VerifyHostKeyDNS VersionAddendum VisualHostKey WarnWeakCrypto XAuthLocation
"""

# Aliases and retired names of readconf.c, and what Debian's build adds.
OTHERS = """
AFSTokenPassing ChallengeResponseAuthentication Cipher CompressionLevel DSAAuthentication
FallBackToRsh GlobalKnownHostsFile2 GSSAPIClientIdentity GSSAPIKexAlgorithms GSSAPIKeyExchange
GSSAPIRenewalForcesRekey GSSAPIServerIdentity GSSAPITrustDns HostbasedKeyTypes IdentityFile2
KeepAlive KerberosAuthentication KerberosTgtPassing Protocol ProtocolKeepAlives
PubkeyAcceptedKeyTypes RhostsAuthentication RhostsRSAAuthentication RSAAuthentication SetupTimeOut
SKeyAuthentication SmartcardDevice TISAuthentication UseBlacklistedKeys UsePrivilegedPort
UserKnownHostsFile2 UseRoaming UseRsh
"""


def test_every_keyword_that_ssh_knows_is_in_the_table():
    assert set((MANUAL + OTHERS).lower().split()) == set(BY_NAME)


def test_no_keyword_stands_twice():
    assert len(TABLE) == len(BY_NAME)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_row_says_why_and_what_instead(row):
    assert row.reason
    assert (row.kind is Kind.REFUSED) == bool(row.remedy)
    assert all(value == value.lower() for value in row.harmless)


def test_names_of_one_setting_are_treated_alike():
    for row in TABLE:
        assert BY_NAME.get(row.slot, row).kind is row.kind
        assert BY_NAME.get(row.slot, row).accumulates is row.accumulates
