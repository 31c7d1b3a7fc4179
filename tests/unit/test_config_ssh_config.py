"""What a configuration says about a host: what wins, what is refused, what is warned about."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.cli.options import parse_arguments
from gateway.config.keywords import TABLE, Kind
from gateway.config.ssh_config import (
    AddressFamily,
    Environment,
    IpQos,
    LogLevel,
    PubkeyMode,
    RekeyLimit,
    RequestTTY,
    SessionType,
    StrictHostKeyChecking,
    UpdateHostKeys,
    default_files,
    quoted,
    read_host_config,
)
from gateway.errors import ConfigError
from gateway.forward import spec as forward
from gateway.ssh.algorithms import (
    DEFAULT_CIPHERS,
    DEFAULT_HOST_KEY_ALGORITHMS,
    DEFAULT_KEX,
    DEFAULT_USER_KEY_ALGORITHMS,
)

DEBIAN = """
Include /etc/ssh/ssh_config.d/no-such-*.conf
Host *
#   ForwardAgent no
    SendEnv LANG LC_*
    HashKnownHosts yes
    GSSAPIAuthentication yes
"""


def named(names, start):
    return tuple(name for name in names if name.startswith(start))


def unnamed(names, start):
    return tuple(name for name in names if not name.startswith(start))


@pytest.fixture
def home(tmp_path):
    (tmp_path / ".ssh").mkdir()
    (tmp_path / "etc").mkdir()
    return tmp_path


@pytest.fixture
def environment(home):
    return Environment(
        home,
        "alice",
        "box.example.com",
        os.getuid(),
        {"KEYS": "/keys", "SSH_AUTH_SOCK": "/agent", "SHELLY": "a;b"},
        home / "etc",
    )


@pytest.fixture
def read(home, environment):
    """Read a text as the user's file, and perhaps options, for a host."""

    def read(text="", host="jump", options=(), system=""):
        user_file = home / ".ssh" / "config"
        user_file.write_text(text)
        system_file = home / "etc" / "ssh_config"
        system_file.write_text(system)
        return read_host_config(
            host, files=[user_file, system_file], command_line=options, environment=environment
        )

    return read


def test_without_any_file(home, environment):
    config = read_host_config("Jump", files=[], environment=environment)
    ssh = home / ".ssh"
    assert (config.alias, config.host_name, config.user, config.port) == (
        "Jump",
        "jump",
        "alice",
        22,
    )
    assert config.identity_files_are_default
    assert config.identity_files[0] == ssh / "id_ed25519"
    assert config.known_hosts_files == (ssh / "known_hosts", ssh / "known_hosts2")
    assert config.global_known_hosts_files[0] == home / "etc" / "ssh_known_hosts"
    assert config.strict_host_key_checking is StrictHostKeyChecking.ASK
    assert (config.server_alive_interval_s, config.server_alive_count_max) == (15.0, 3)
    assert config.connect_timeout_s is None
    assert config.rekey_limit == RekeyLimit(None, None)
    assert config.kex_algorithms == DEFAULT_KEX
    assert config.host_key_algorithms == DEFAULT_HOST_KEY_ALGORITHMS
    assert config.ciphers == DEFAULT_CIPHERS
    assert config.address_family is AddressFamily.ANY
    assert config.log_level is LogLevel.INFO
    assert config.session_type is SessionType.DEFAULT
    assert config.dynamic_forwards == ()
    assert config.identity_agent == Path("/agent")
    assert config.update_host_keys is UpdateHostKeys.YES
    assert config.ip_qos == IpQos(None, None)
    assert config.remote_command is None
    assert config.warnings == ()


def test_debians_system_file_brings_no_warning(read):
    config = read(system=DEBIAN)
    assert config.hash_known_hosts
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("HostName %h.example.COM", "host_name", "jump.example.com"),
        ("HostName fe80::1%%eth0", "host_name", "fe80::1%eth0"),
        ("User bob", "user", "bob"),
        ("User %u-%h", "user", "alice-jump"),
        ("Port 2222", "port", 2222),
        ("AddressFamily INET6", "address_family", AddressFamily.INET6),
        ("BindAddress 192.0.2.1", "bind_address", "192.0.2.1"),
        ("IdentitiesOnly yes", "identities_only", True),
        ("BatchMode true", "batch_mode", True),
        ("GatewayPorts YES", "gateway_ports", True),
        ("ExitOnForwardFailure yes", "exit_on_forward_failure", True),
        ("HashKnownHosts false", "hash_known_hosts", False),
        ("PasswordAuthentication no", "password_authentication", False),
        ("ChallengeResponseAuthentication no", "kbd_interactive_authentication", False),
        ("PubkeyAuthentication unbound", "pubkey_authentication", True),
        ("PreferredAuthentications publickey", "preferred_authentications", ("publickey",)),
        ("NumberOfPasswordPrompts 1", "number_of_password_prompts", 1),
        ("SessionType none", "session_type", SessionType.NONE),
        ("SessionType subsystem", "session_type", SessionType.SUBSYSTEM),
        ("RequestTTY true", "request_tty", RequestTTY.YES),
        ("SendEnv LANG LC_*", "send_env", ("LANG", "LC_*")),
        ("SendEnv A BC\nSendEnv -B* -A D", "send_env", ("D",)),
        ("SetEnv A=1 B= 'C=x y' A=2", "set_env", (("A", "1"), ("B", ""), ("C", "x y"))),
        ("SetEnv 'A=%h %%'", "set_env", (("A", "jump %"),)),
        ("EscapeChar ^]", "escape_char", b"\x1d"),
        ("EscapeChar none", "escape_char", None),
        ("LocalCommand echo", "local_command", None),
        ("PermitLocalCommand yes\nLocalCommand none", "local_command", None),
        ("StrictHostKeyChecking off", "strict_host_key_checking", StrictHostKeyChecking.NO),
        (
            "StrictHostKeyChecking accept-new",
            "strict_host_key_checking",
            StrictHostKeyChecking.ACCEPT_NEW,
        ),
        ("ServerAliveInterval 1m30s", "server_alive_interval_s", 90.0),
        ("ServerAliveInterval 0", "server_alive_interval_s", 0.0),
        ("ServerAliveCountMax 5", "server_alive_count_max", 5),
        ("ConnectTimeout 1H", "connect_timeout_s", 3600.0),
        ("ConnectTimeout none", "connect_timeout_s", None),
        ("BindInterface eth0", "bind_interface", "eth0"),
        ("ConnectionAttempts 3", "connection_attempts", 3),
        ("KeepAlive no", "tcp_keep_alive", False),
        ("IPQoS ef none", "ip_qos", IpQos(0xB8, None)),
        ("IPQoS af21", "ip_qos", IpQos(0x48, 0x48)),
        ("IPQoS lowdelay 0x20", "ip_qos", IpQos(None, 0x20)),
        ("MACs hmac-sha2-256", "macs", ("hmac-sha2-256",)),
        ("RequiredRSASize 3072", "required_rsa_size", 3072),
        ("WarnWeakCrypto no-pq-kex", "warn_weak_crypto", False),
        (
            "PubkeyAcceptedKeyTypes +ssh-rsa",
            "pubkey_accepted_algorithms",
            DEFAULT_USER_KEY_ALGORITHMS,
        ),
        ("CASignatureAlgorithms ssh-*", "ca_signature_algorithms", ("ssh-ed25519",)),
        ("PubkeyAuthentication host-bound", "pubkey_mode", PubkeyMode.HOST_BOUND),
        ("PubkeyAuthentication no", "pubkey_authentication", False),
        ("HostKeyAlias Server", "host_key_alias", "server"),
        ("RevokedHostKeys /a /%k", "revoked_host_keys", (Path("/a"), Path("/jump"))),
        ("RevokedHostKeys none", "revoked_host_keys", ()),
        ("UpdateHostKeys ask", "update_host_keys", UpdateHostKeys.ASK),
        ("UserKnownHostsFile /k", "update_host_keys", UpdateHostKeys.NO),
        ("VerifyHostKeyDNS no", "update_host_keys", UpdateHostKeys.YES),
        ("IdentityAgent none", "identity_agent", None),
        ("IdentityAgent /a/%h", "identity_agent", Path("/a/jump")),
        ("IdentityAgent ${KEYS}/a", "identity_agent", Path("/keys/a")),
        ("IdentityAgent $KEYS", "identity_agent", Path("/keys")),
        ("IdentityAgent $NOPE", "identity_agent", None),
        ("IdentityAgent SSH_AUTH_SOCK", "identity_agent", Path("/agent")),
        ("CertificateFile none", "certificate_files", ()),
        ("RemoteCommand a 'b  # %h", "remote_command", "a 'b  # jump"),
        ("RemoteCommand none", "remote_command", None),
        ("ForkAfterAuthentication yes", "fork_after_authentication", True),
        ("StdinNull yes", "stdin_null", True),
        ("User ${SSH_AUTH_SOCK}-%h", "user", "/agent-jump"),
        ("Tag x", "warnings", ()),
        ("LogLevel DEBUG", "log_level", LogLevel.DEBUG1),
        ("RekeyLimit default none", "rekey_limit", RekeyLimit(None, None)),
        ("RekeyLimit 1.5G 1h30m", "rekey_limit", RekeyLimit(3 << 29, 5400.0)),
        ("RekeyLimit 0 2w", "rekey_limit", RekeyLimit(None, 1209600.0)),
        ("RekeyLimit 512k", "rekey_limit", RekeyLimit(512 << 10, None)),
        ("UserKnownHostsFile none", "known_hosts_files", ()),
        ("UserKnownHostsFile /a '/b c'", "known_hosts_files", (Path("/a"), Path("/b c"))),
        ("UserKnownHostsFile /k/%k_%p", "known_hosts_files", (Path("/k/jump_22"),)),
        ("GlobalKnownHostsFile /a%h", "global_known_hosts_files", (Path("/a%h"),)),
        ("Ciphers aes256-gcm@openssh.com", "ciphers", ("aes256-gcm@openssh.com",)),
        ("Ciphers 3des-cbc,aes*", "ciphers", named(DEFAULT_CIPHERS, "aes")),
        (
            "Ciphers ^aes256*",
            "ciphers",
            (*named(DEFAULT_CIPHERS, "aes256"), *unnamed(DEFAULT_CIPHERS, "aes256")),
        ),
        ("Ciphers -aes128*", "ciphers", unnamed(DEFAULT_CIPHERS, "aes128")),
        ("KexAlgorithms +diffie-hellman-group1-sha1", "kex_algorithms", DEFAULT_KEX),
        (
            "KexAlgorithms -*@libssh.org",
            "kex_algorithms",
            unnamed(DEFAULT_KEX, "curve25519-sha256@"),
        ),
        ("HostKeyAlgorithms ssh-rsa,ssh-ed25519", "host_key_algorithms", ("ssh-ed25519",)),
    ],
)
def test_supported_keywords(read, line, field, value):
    config = read(line + "\n")
    assert getattr(config, field) == value
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("Port 0", "not a port"),
        ("Port", "no value"),
        ("Port # 22", "no value"),
        ("Port 22 23", "one value, not 2"),
        ('User ""', "is empty"),
        ("User -x", "begins with a dash"),
        ("User a;b", "contains the character ;"),
        ("HostName $(x)", r"contains the character \$"),
        ("HostName %n", "%n has no meaning"),
        ("HostName a:22", "neither a host name nor an IPv6 address"),
        ("BatchMode maybe", "write one of yes, true, no, false"),
        ("ServerAliveInterval 5x", "not a time"),
        ("ServerAliveInterval m", "not a time"),
        ("ConnectTimeout 99999999999", "not a time"),
        ("ServerAliveCountMax -1", "not a number"),
        ("RekeyLimit 1X", "not a size"),
        ("RekeyLimit 15", "not between 16 bytes"),
        ("RekeyLimit 9E", "not between 16 bytes"),
        ("RekeyLimit 1G 1h 1", "more than two"),
        ("Ciphers 3des-cbc", "leave one of aes128-gcm@openssh.com, aes256-gcm@openssh.com"),
        ("Ciphers -*", "leaves no cipher"),
        ("Ciphers !aes128-ctr", "negated"),
        ("Ciphers a,,b", "empty"),
        ("UserKnownHostsFile a none", "none alone"),
        ("DynamicForward 0", "not a port"),
        ("IdentityFile %z", "%z has no meaning"),
        ("IdentityFile ${NOPE}/x", "NOPE is not set"),
        ("IdentityFile ~no-such-user-here/x", "no user no-such-user-here"),
        ("IdentityFile 'x", "never closed"),
        ("Match address x", "is no criterion of Match: write one of all, canonical"),
        ("Match final=x", "takes no value"),
        ("Match tagged", "no pattern"),
        ("Match localnetwork 10.0.0.1/8", "not a network"),
        ("Match localnetwork !10.0.0.0/8", "not a network"),
        ("MACs umac-64@openssh.com", "leaves no MAC"),
        ("PubkeyAcceptedAlgorithms x", "leaves no signature algorithm"),
        ("BindInterface a/b", "cannot be the name of an interface"),
        ("BindInterface an-interface-name", "cannot be the name of an interface"),
        ("ConnectionAttempts 0", "0 makes no sense"),
        ("IPQoS 256", "not a traffic class"),
        ("IPQoS ef ef ef", "more than two"),
        ("CanonicalDomains a..b", "not a domain"),
        ("CanonicalDomains none a", "not a domain"),
        ("CanonicalizePermittedCNAMEs a", "no pair of pattern lists"),
        ("CanonicalizePermittedCNAMEs a:", "no pair of pattern lists"),
        ("HostKeyAlias a;b", "contains the character ;"),
        ("RevokedHostKeys none /a", "none alone"),
        ("CertificateFile %f", "%f has no meaning"),
        ("IdentityAgent ${NOPE}", "NOPE is not set"),
        ("RemoteCommand %T", "%T has no meaning"),
        ("UpdateHostKeys maybe", "write one of no, yes, ask"),
        ("RequestTTY maybe", "write one of no, auto, yes, force"),
        ("SendEnv A=1", "not the name of a variable"),
        ("SendEnv ''", "not the name of a variable"),
        ("SetEnv A", "no variable with its value"),
        ("SetEnv =x", "no variable with its value"),
        ("SetEnv A=%z", "%z has no meaning"),
        ("SetEnv 'A=${NOPE}'", "NOPE is not set"),
        ("EscapeChar ab", "no escape character"),
        ("EscapeChar ^1", "no escape character"),
        ("User ${NOPE}", "NOPE is not set"),
        ("User ${SHELLY}", "contains the character ;"),
        ("Match all host x", "cannot be combined"),
        ("Match host x all", "cannot be combined"),
        ("Match host", "no pattern"),
        ('Host ""', "pattern is empty"),
    ],
)
def test_values_without_sense_name_their_place(read, line, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        read("\n" + line + "\n")
    assert caught.value.where.startswith("~/.ssh/config:2: ")
    assert caught.value.remedy


def test_an_unknown_keyword_names_a_near_one(read):
    with pytest.raises(ConfigError, match=r"~/.ssh/config:1: HostNmae: .*did you mean HostName"):
        read("HostNmae x\n", host="other")


def test_ignore_unknown_holds_from_its_line_on(read):
    read("IgnoreUnknown UseKey*,Foo\nUseKeychain 'yes\nFOO\n")
    read("UseKeychain yes\n", options=[("IgnoreUnknown", "usekeychain")])
    with pytest.raises(ConfigError, match="UseKeychain"):
        read("UseKeychain yes\nIgnoreUnknown UseKeychain\n")


def test_the_first_value_wins_and_lists_grow(read):
    config = read(
        "Host jump\n Port 1\n IdentityFile /a\n DynamicForward 1000\n"
        "Host *\n Port 2\n IdentityFile2 /b\n IdentityFile /a\n DynamicForward [::1]:2000\n",
        system="Port 3\nUser carol\nDynamicForward 1000\n",
        options=[("DynamicForward", "*:9")],
    )
    assert config.port == 1
    assert config.user == "carol"
    assert config.identity_files == (Path("/a"), Path("/b"))
    assert config.dynamic_forwards == (
        forward.Forward(forward.Kind.DYNAMIC, forward.Tcp("*", 9), None),
        forward.Forward(forward.Kind.DYNAMIC, forward.Tcp(None, 1000), None),
        forward.Forward(forward.Kind.DYNAMIC, forward.Tcp("::1", 2000), None),
    )


def test_the_command_line_comes_first(read):
    config = read("Port 1\nUser bob\n", options=[("port", "2"), ("User", "carol"), ("Port", "3")])
    assert (config.port, config.user) == (2, "carol")


def test_a_user_of_the_command_line_is_not_expanded(read):
    for name in ("%u", "${HOME}", "a\nb"):
        with pytest.raises(ConfigError, match="command line: User: the user name"):
            read(options=[("User", quoted(name))])


@pytest.mark.parametrize("keyword", ["Host", "Match", "Include", "NoSuch"])
def test_what_is_no_option(read, keyword):
    with pytest.raises(ConfigError, match=f"command line: {keyword}: "):
        read(options=[(keyword, "all")])


def test_a_path_of_the_command_line_may_have_blanks(home, read):
    key = home / "my 'key' \\ \"x\""
    key.touch()
    config = read(options=[("IdentityFile", quoted(str(key)))])
    assert config.identity_files == (key,)
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("patterns", "applies"),
    [
        ("jump", True),
        ("a jump", True),
        ("j*", True),
        ("* !jump", False),
        ("!jump *", False),
        ("!other *", True),
        ("!other", False),
        ("Jump", False),
        ("'a b' jump", True),
    ],
)
def test_host_patterns(read, patterns, applies):
    assert (read(f"Host {patterns}\n Port 7\n").port == 7) is applies


def test_match_final_comes_last_and_sees_the_resolved_name(read):
    config = read(
        "Match final\n Port 7\nHost jump\n HostName real\nHost real\n User final\nHost *\n Port 8\n"
    )
    assert (config.port, config.user) == (8, "final")


def test_include(home, read):
    directory = home / ".ssh" / "conf.d"
    directory.mkdir()
    (directory / "sub").mkdir()
    (directory / "2").write_text("Port 2\nUser two\n")
    (directory / "1").write_text("Port 1\nHost other\n")
    (home / "abs").write_text("BatchMode yes\n")
    config = read(f"Include conf.d/* no-such ~/abs\nIdentitiesOnly yes\nInclude {home}/abs\n")
    assert (config.port, config.user) == (1, "two")
    assert config.batch_mode
    assert config.identities_only  # the Host of an included file ends with it


def test_include_in_a_block_that_does_not_apply(home, read):
    (home / ".ssh" / "inner").write_text("Port 1\nHost *\nPort 2\nMatch all\nPort 3\nMatch x y\n")
    assert read("Host other\n Include inner\n").port == 22
    with pytest.raises(ConfigError, match=r"~/.ssh/inner:6: Match: x is no"):
        read("Host jump\n Include inner\n")


def test_include_in_the_system_file(home, read):
    (home / "etc" / "extra").write_text("Port 5\n")
    assert read(system="Include extra\n").port == 5
    with pytest.raises(ConfigError, match="only a user's file"):
        read(system="Include ~/x\n")


def test_a_file_that_includes_itself(read):
    with pytest.raises(ConfigError, match="16 deep"):
        read("Include config\n")


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write(home, environment, read, mode):
    file = home / ".ssh" / "config"
    read("Port 1\n")
    file.chmod(mode)
    with pytest.raises(ConfigError, match=r"others may write .*chmod go-w ~/.ssh/config"):
        read_host_config("jump", files=[file], environment=environment)
    other = home / "other"
    other.write_text("Include config\n")  # -F is not checked, what it includes is; both as ssh
    other.chmod(mode)
    with pytest.raises(ConfigError, match=r"others may write"):
        read_host_config("jump", files=[other], environment=environment)
    file.chmod(0o600)
    assert read_host_config("jump", files=[other], environment=environment).port == 1


def test_a_file_of_another_user(home, read):
    read("Port 1\n")
    stranger = Environment(home, "bob", "box", os.getuid() + 1, {}, home / "etc")
    if os.getuid() == 0:
        os.chown(home / ".ssh" / "config", 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        read_host_config("jump", files=[home / ".ssh" / "config"], environment=stranger)


def test_files_that_are_none(home, environment, read):
    missing = home / "missing"
    with pytest.raises(ConfigError, match="no such configuration file"):
        read_host_config("jump", files=[missing], environment=environment)
    default = home / ".ssh" / "config"
    assert read_host_config("jump", files=[default], environment=environment).port == 22
    assert read_host_config("jump", files=[Path("/dev/null")], environment=environment).port == 22
    os.mkfifo(default)
    with pytest.raises(ConfigError, match="not a regular file"):
        read_host_config("jump", files=[default], environment=environment)


def test_sizes_are_bounded(home, environment):
    file = home / "big"
    file.write_bytes(b"#\n" * (512 * 1024 + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_host_config("jump", files=[file], environment=environment)
    file.write_text("\n".join(f"IdentityFile /{i}" for i in range(101)))
    with pytest.raises(ConfigError, match=r"big:101: IdentityFile: there are more than 100"):
        read_host_config("jump", files=[file], environment=environment)


def test_crlf_bom_free_and_odd_bytes(home, environment):
    file = home / "crlf"
    file.write_bytes(b"Host jump\r\n\tPort = 7\r\n  # caf\xe9\r\nIdentityFile /caf\xe9\r\n\f\n\r\n")
    config = read_host_config("jump", files=[file], environment=environment)
    assert config.port == 7
    assert os.fsencode(config.identity_files[0]) == b"/caf\xe9"
    assert config.warnings[0].isprintable()


def test_default_files(home):
    assert home / ".ssh" / "config" not in default_files(home)
    (home / ".ssh" / "config").touch()
    assert default_files(home)[0] == home / ".ssh" / "config"
    assert default_files(home, "other") == (Path("other"),)
    assert default_files(home, "none") == ()


def test_identity_files(home, read):
    (home / ".ssh" / "here").touch()
    config = read(
        "HostName h1\nUser bob\nPort 7\nIdentityFile ~/.ssh/here\nIdentityFile none\n"
        "IdentityFile %d/%h_%r_%u_%l_%n_%p_%L_%i_%%\nIdentityFile ${KEYS}/x\n"
    )
    names = f"h1_bob_alice_box.example.com_jump_7_box_{os.getuid()}_%"
    assert config.identity_files == (home / ".ssh/here", home / names, Path("/keys/x"))
    assert not config.identity_files_are_default
    assert [warning.split(": there")[0] for warning in config.warnings] == [
        f"~/.ssh/config:6: IdentityFile {home}/{names}",
        "~/.ssh/config:7: IdentityFile /keys/x",
    ]


def test_certificate_files(home, read):
    (home / "c1").touch()
    config = read("CertificateFile ~/c1\nCertificateFile %d/%r-cert\n", options=[("User", "bob")])
    assert config.certificate_files == (home / "c1", home / "bob-cert")
    (warning,) = config.warnings
    assert warning.startswith("~/.ssh/config:2: CertificateFile")


def test_no_identity_file_at_all(read):
    config = read("IdentityFile none\n")
    assert config.identity_files == ()
    assert not config.identity_files_are_default


@pytest.mark.parametrize("user", ["..", ".", "a/../b", "/etc"])
def test_a_user_name_does_not_lead_out_of_the_key_directory(read, user):
    with pytest.raises(ConfigError, match=r"%r is .* would lead to another directory"):
        read("IdentityFile ~/.ssh/keys/%r\n", options=[("User", quoted(user))])
    for keyword in ("CertificateFile", "IdentityAgent", "UserKnownHostsFile", "RevokedHostKeys"):
        with pytest.raises(ConfigError, match=rf"{keyword}: %r is .* another directory"):
            read(f"{keyword} /keys/%r\n", options=[("User", quoted(user))])


@pytest.mark.parametrize("user", ["*", "~root", "a#b", "a[b]", "!x"])
def test_a_user_name_means_nothing_to_the_servers_shell(read, user):
    with pytest.raises(ConfigError, match=r"RemoteCommand: %r is .* to a shell"):
        read("RemoteCommand echo %r\n", options=[("User", quoted(user))])


@pytest.mark.parametrize("user", ["~x", "C:x", "a\\b", "a..b"])
def test_a_user_name_is_only_a_name_in_a_path(home, read, user):
    config = read("IdentityFile ~/.ssh/keys/%r\n", options=[("User", quoted(user))])
    assert config.identity_files == (home / ".ssh" / "keys" / user,)


@pytest.mark.parametrize("alias", ["-x", "a b", "a;b", "a\nb", "$(x)", "%h", "a,b", "a" * 300, ""])
def test_a_bad_host_is_refused_before_any_file_is_read(environment, alias):
    with pytest.raises(ConfigError, match="destination: the host name"):
        read_host_config(alias, files=[Path("/no/such")], environment=environment)


REFUSED = [row for row in TABLE if row.kind is Kind.REFUSED]
WARNED = [row for row in TABLE if row.kind is Kind.WARNED]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_refused_keywords(read, row):
    with pytest.raises(ConfigError) as caught:
        read(f"Host jump\n {row.name} something\n")
    assert caught.value.where == f"~/.ssh/config:2: {row.name}"
    assert row.reason in str(caught.value)
    assert caught.value.remedy == row.remedy
    assert read(f"Host other\n {row.name} something\n").warnings == ()
    for value in row.harmless:
        assert read(f"{row.name} {value.upper()}\n{row.name} something\n").warnings == ()


@pytest.mark.parametrize("value", ["yes", "$SSH_AUTH_SOCK", "/run/agent"])
def test_an_agent_is_forwarded_to_nobody(read, value):
    """T91: who asks for it is told."""
    assert parse_arguments(["-A", "jump"]).ignored == ["-A: agent forwarding"]
    assert not parse_arguments(["-a", "jump"]).ignored
    (warning,) = read(f"ForwardAgent {value}\n").warnings
    assert "the agent is not forwarded" in warning
    assert read("ForwardAgent no\n").warnings == ()


@pytest.mark.parametrize("row", WARNED, ids=lambda row: row.name)
def test_warned_keywords(read, row):
    (warning,) = read(f"\n{row.name} some thing\n{row.name} again\n").warnings
    assert warning.startswith(f"~/.ssh/config:2: {row.name} some thing: ignored: ")
    for value in row.harmless:
        assert read(f"{row.name} {value}\n{row.name} something\n").warnings == ()


@pytest.mark.parametrize(
    "row", [row for row in TABLE if row.kind is Kind.IGNORED], ids=lambda row: row.name
)
def test_ignored_keywords(read, row):
    assert read(f"{row.name} some thing\n") == read("")


def test_a_command_that_is_switched_off_hides_a_later_jump_but_not_the_other_way_round(read):
    config = read("ProxyCommand none\nProxyJump a\nProxyCommand nc\n")
    assert (config.proxy_jump, config.proxy_command) == ((), None)
    config = read("ProxyJump none\nHost *\n ProxyCommand nc %h %p\nProxyJump a\n")
    assert (config.proxy_jump, config.proxy_command) == ((), f"nc {config.host_name} 22")


def test_clear_all_forwardings(read):
    config = read(
        "LocalForward 1 a:1\nRemoteForward 2 b:2\nTunnel yes\nDynamicForward 3\n",
        options=[("ClearAllForwardings", "yes")],
    )
    assert config.dynamic_forwards == ()


@pytest.mark.parametrize("value", ["-1", "x", "1:", ":1", "1:2:3", "2147483646", "tun0"])
def test_bad_tunnel_devices(read, value):
    with pytest.raises(ConfigError, match="is not the number of a tun device: write LOCAL"):
        read(f"TunnelDevice {value}\n")


def test_a_local_command_learns_its_device_late(read):
    text = "PermitLocalCommand yes\nLocalCommand echo %h %T %% %%T '%n'\n"
    command = read(text).local_command
    assert command.expanded("tun3") == "echo jump tun3 % %T 'jump'"
    assert command.expanded(None) == "echo jump NONE % %T 'jump'"


@pytest.mark.parametrize("name", ["a;id", "$(id)", "a b", "-x", "a\nid", "a'b", "a\\"])
def test_a_local_command_with_a_value_that_is_not_safe(home, environment, name):
    """T84: refused when it is read, before anything is connected."""
    hostile = replace(environment, local_hostname=name)
    for text, is_refused in [("echo %l", True), ("echo %%l", False), ("echo l", False)]:
        options = [("PermitLocalCommand", "yes"), ("LocalCommand", text)]
        if is_refused:
            with pytest.raises(ConfigError, match="something else to a shell"):
                read_host_config("jump", files=[], command_line=options, environment=hostile)
        else:
            read_host_config("jump", files=[], command_line=options, environment=hostile)
