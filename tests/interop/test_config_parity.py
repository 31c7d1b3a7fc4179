"""The same configuration, read by ssh itself (``ssh -G``), Debian's and the newest, and by us."""

import os
import pwd
import re
import socket
import subprocess
from pathlib import Path

import pytest

from gateway.cli.options import parse_arguments
from gateway.config.dump import dump
from gateway.config.keywords import BY_NAME, Kind
from gateway.config.lines import split_line
from gateway.config.match import CRITERIA_NAMES
from gateway.config.ssh_config import Environment, parse_option, read_settings, resolve
from gateway.errors import ConfigError

# They decide about others, and ssh -G does not write them.
SAY_NOTHING = {"host", "match", "include", "clearallforwardings"}

# Where OpenSSH 9.2, Debian 12's, is not as the newest, whose side we take.
NOT_WRITTEN_BY_9_2 = {"ignoreunknown", "tag"}  # the newest ssh -G does
RENAMED_SINCE_9_2 = {"canonicalizePermittedcnames": "canonicalizepermittedcnames"}
RESPELLED_SINCE_9_2 = {"tcpkeepalive": {"yes": "true", "no": "false"}}  # as all choices
NOT_EXPANDED_BY_9_2 = {"environment, tokens": {"setenv"}}
REFUSED_BY_9_2 = {
    "tag": "Bad configuration option: tag",  # since 9.4
    "weak crypto": "Bad configuration option: warnweakcrypto",  # since 10.1
    "jump, tokens": "unknown key %j",  # since 9.6
}
REFUSED_BY_THE_NEWEST = {
    "class numbers, hexadecimal": "Bad IPQoS value: 0x14",  # we go on to read what older ones read
}

CONFIGURATIONS = {
    "names": "Host jump\n HostName %h.Example.COM\n User bob\n Port 2222\n",
    "equals": 'HostName = "real"\nUser   =bob\nport=  33\nHOSTNAME other\n',
    "quotes": "User 'bob'\nIdentityFile \"/a b\"\nIdentityFile /c\\ d\nIdentityFile /e'f g'h # i\n",
    "escapes": r'IdentityFile "/a\"b"' + "\n" + r"IdentityFile /a\x" + "\n",
    "crlf": "Host jump\r\n\tPort 7\r\n # x\r\n\r\n",
    "negated": "Host !jump *\n Port 1\nHost * !other\n Port 2\nHost j?mp\n Port 3\n",
    "case": "Host JUMP\n Port 1\n",
    "identities": "IdentityFile /a\nHost jump\n IdentityFile /b\nHost *\n IdentityFile /a\n",
    "no identity": "IdentityFile none\n",
    "dynamic": "DynamicForward 6000\nDynamicForward *:6001\nDynamicForward [::1]:6002\n"
    "DynamicForward 127.0.0.1:6003\nDynamicForward :6004\nDynamicForward localhost:6005\n"
    "DynamicForward 6000\n",
    "local": "LocalForward 1 a:2\nLocalForward :3 [::1]:4\nLocalForward *:5 b:6\nLocalForward "
    "[::1]:7 c:8\nLocalForward /s/%h d:9\nLocalForward 10 /t/%%\nLocalForward /u /v/%n-%p\n"
    "LocalForward 1 a:2\nLocalForward 127.0.0.1:11 ${HOME}\nLocalForward ssh a:http\n",
    "remote": "RemoteForward 0 a:2\nRemoteForward 8080\nRemoteForward *:9\nRemoteForward /s/%h\n"
    "RemoteForward [::1]:0 [::2]:3\nRemoteForward :4 /t\nRemoteForward /u /v\n"
    "RemoteForward /w x:5\nRemoteForward localhost:6 y:7\n",
    "dynamic, path": "DynamicForward /tmp/x\n",
    "all cleared": "LocalForward 1 a:2\nRemoteForward 3\nDynamicForward 4\n"
    "ClearAllForwardings yes\n",
    "who may be reached": "PermitRemoteOpen a:1 [::1]:2 *:3 b:*\nPermitRemoteOpen none\n",
    "nobody may be reached": "PermitRemoteOpen none\n",
    "socket files": "StreamLocalBindMask 0111\nStreamLocalBindUnlink yes\n",
    "control": "ControlPath ~/.ssh/cm-%r@%h:%p-%C\n",
    "control, none": "ControlPath none\n",
    "cleared": "DynamicForward 6000\nClearAllForwardings yes\n",
    "tunnel": "Tunnel yes\nTunnelDevice 3:any\n",
    "tunnel, ethernet": "Tunnel Ethernet\nTunnelDevice any:2147483645\n",
    "tunnel, none": "Tunnel no\nTunnelDevice 4\n",
    "tunnel, cleared": "Tunnel point-to-point\nClearAllForwardings yes\n",
    "strict off": "StrictHostKeyChecking off\n",
    "strict new": "StrictHostKeyChecking Accept-New\nStrictHostKeyChecking no\n",
    "strict yes": "StrictHostKeyChecking yes\n",
    "alive": "ServerAliveInterval 1m30\nServerAliveCountMax 7\nConnectTimeout 1h1s\n",
    "alive, Debian": "ProtocolKeepAlives 44\n",
    "rekey": "RekeyLimit 1.5G 1h30m\n",
    "rekey bytes": "RekeyLimit 100000\n",
    "rekey default": "RekeyLimit default 2W\n",
    "log": "LogLevel debug2\nAddressFamily inet\n",
    "flags": "BatchMode true\nGatewayPorts YES\nExitOnForwardFailure yes\nIdentitiesOnly yes\n"
    "HashKnownHosts yes\nPasswordAuthentication no\nChallengeResponseAuthentication no\n",
    "known hosts": "UserKnownHostsFile /a /b/%h_%p_%n_%r_%k_%i_%% ~/x\n"
    "GlobalKnownHostsFile /g /h\n",
    "hash": "UserKnownHostsFile /%C\n",
    "include": "Host jump\n Include {inner}\nHost *\n Port 9\n",
    "include, other": "Host other\n Include {inner}\nHost *\n Port 9\n",
    "match": "HostName real\nMatch host jump\n Port 1\nMatch host REAL user *,!x\n Port 2\n",
    "match, original": "HostName real\nMatch !originalhost other localuser {me}\n Port 3\n",
    "match, final": "Match final\n Port 7\nHost jump\n HostName real\nHost real\n User last\n",
    "match, final later": "Match final all\n Port 7\nHost *\n Port 8\n",
    "match, canonical": "Match canonical all\n Port 7\nMatch final\n User second\n",
    "address": "HostName fe80::1%%eth0\nBindAddress 192.0.2.1\n",
    "session": "SessionType none\nPreferredAuthentications publickey,password\n",
    "algorithms": "Ciphers aes256-gcm@openssh.com\nMACs hmac-sha2-256\nKexAlgorithms "
    "curve25519-sha256\nHostKeyAlgorithms ssh-ed25519\nCASignatureAlgorithms ssh-ed25519\n"
    "PubkeyAcceptedKeyTypes ssh-ed25519\nRequiredRSASize 3072\n",
    "keys and certificates": "CertificateFile ~/c-%h\nCertificateFile '/c 2'\nIdentityFile ~/%r\n",
    "agent": "IdentityAgent ~/agent-%h-%%\n",
    "agent, none": "IdentityAgent none\n",
    "agent, variable": "IdentityAgent $MY_AGENT\n",
    "agent, usual": "IdentityAgent SSH_AUTH_SOCK\n",
    "host keys": "HostKeyAlias Server\nRevokedHostKeys /revoked\nUpdateHostKeys no\n"
    "UserKnownHostsFile /k/%k\n",
    "update": "UpdateHostKeys yes\nStrictHostKeyChecking yes\n",
    "the link": "BindInterface lo\nConnectionAttempts 3\nTCPKeepAlive no\nIPQoS ef none\n",
    "classes": "IPQoS AF21\n",
    "class numbers": "IPQoS 20 cs1\nKeepAlive no\n",
    "class numbers, hexadecimal": "IPQoS 0x14\n",
    "session, background": "StdinNull yes\nForkAfterAuthentication yes\nRemoteCommand  echo "
    "'a  b' %h # %p\n",
    "command": "RemoteCommand=%n %C %d %i %k %L %l %r %u %% ${HOME}\nHostKeyAlias A\n",
    "terminal": "RequestTTY force\nSessionType Subsystem\nEscapeChar ^]\n"
    "EnableEscapeCommandline yes\n",
    "terminal, yes": "RequestTTY Yes\nEscapeChar none\nSessionType default\n",
    "terminal, no": "RequestTTY false\nEscapeChar %\n",
    "terminal, auto": "RequestTTY auto\nEscapeChar ' '\n",
    "escape, backslash": "EscapeChar \\\n",
    "escape, control": "EscapeChar ^\x7f\n",
    "environment": "SendEnv LANG LC_* A\nSendEnv -LC_* B\nSetEnv A=1 'B=x  y' A=2\nSetEnv C=3\n",
    "environment, tokens": "SetEnv A=%h-%% B=${HOME} 'C=%r x'\n",
    "environment, nothing kept": "SendEnv A B*\nSendEnv -*\nSetEnv A=\n",
    "local command": "PermitLocalCommand yes\nLocalCommand  echo %h  'a b' %T # x\n",
    "local command, not permitted": "LocalCommand echo %h\nPermitLocalCommand no\n",
    "local command, none": "LocalCommand None\nPermitLocalCommand yes\n",
    "levels": "LogLevel quiet\nPubkeyAuthentication host-bound\n",
    "levels, debug": "LogLevel DEBUG\nPubkeyAuthentication no\n",
    "prompts": "NumberOfPasswordPrompts 1\nPubkeyAuthentication unbound\n",
    "canonical, local": "CanonicalizeHostname yes\nCanonicalDomains none\nMatch canonical\n"
    " Port 7\nMatch final host jump\n User c\n",
    "canonical, always": "CanonicalizeHostname always\nCanonicalizeMaxDots 0\n"
    "CanonicalizeFallbackLocal yes\nHostName a.example\nMatch !canonical\n User first\n",
    "canonical, off": "CanonicalizeHostname no\nCanonicalDomains A.example b.example\n"
    "CanonicalizeMaxDots 3\nCanonicalizeFallbackLocal no\n",
    "canonical, aliases": "CanonicalizeHostname yes\nCanonicalizeFallbackLocal yes\n"
    "CanonicalizePermittedCNAMEs *.A.example,x:*.b.example *\nHostName 127.0.0.1\n",
    "canonical, no aliases": "CanonicalizePermittedCNAMEs none\n",
    "canonical, address": "CanonicalizeHostname yes\nHostName 127.1\nMatch canonical host "
    "127.0.0.1\n User c\n",
    "canonical, IPv6": "HostName 0:0::1\n",
    "names come first": "Match final\n HostName late\n User late\n",
    "match, exec": 'Match exec "test %h = jump"\n Port 7\nMatch !exec "exit 3" user {me}\n'
    " ConnectTimeout 3\n",
    "match, exec tokens": "Match exec \"test '%n %h %p %r %u %i %L' = "
    "'jump real 22 bob {me} '$(id -u)' '$(hostname -s)\"\n Port 7\nHost *\n HostName real\n"
    " User bob\n",
    "tag": "Tag work\nMatch tagged home\n Port 1\nMatch tagged w*\n Port 2\nTag other\n",
    "weak crypto": "WarnWeakCrypto no\n",
    "jump": "ProxyJump a\n",
    "jumps": "ProxyJump bob@a:7,[::1]:8,c@10.0.0.1\nProxyCommand nc %h %p\n",
    "jump, none": "ProxyJump none\nProxyCommand nc %h %p\n",
    "jump, none twice": "ProxyJump none\nProxyCommand none\nProxyCommand nc\nProxyJump a\n",
    "jump, parts of the name": "ProxyJump %r@gate-%h\n",
    "jump, hidden": "ProxyCommand nc\nProxyJump a\n",
    "jump, URI": "ProxyJump ssh://bob@a:7\n",
    "jump, tokens": "ProxyJump carol@gate\nRemoteCommand %j %C\n",
    "proxy command": "ProxyCommand=nc -X 5 '%h'  %p # %r %n %k %%\nProxyUseFdpass yes\n"
    "ProxyJump a\n",
    "proxy command, none": "ProxyCommand none\nProxyJump a\n",
    "unknown": "IgnoreUnknown Use*\nUseKeychain yes\nPort 7\n",
}

CRITERIA = [
    "all",
    "!all",
    "final",
    "canonical",
    "host real.example",
    "host REAL.*",
    "!host jump",
    "host jump",
    "originalhost jump",
    "originalhost J*,!jump",
    "user bob",
    "user !bob,*",
    "localuser nobody-here",
    "host real.example exec true",
    'host x exec "exit 0"',
    'exec "exit 1"',
    '!exec "exit 1"',
    'exec "exit 0" user bob',
    "host=real.example",
    "host=real.example user=bob",
    "final host real.example",
    "final all",
    "user bob # comment",
]
CRITERIA_SINCE_9_2 = [
    "localnetwork 127.0.0.0/8", "localnetwork 192.0.2.0/24", "!localnetwork ::1/128",
    'tagged ""', "tagged *", 'command ""', "command *", "sessiontype shell", "sessiontype none",
    "sessiontype exec,s*", "!sessiontype subsystem", "version OpenSSH_*", "version OpenSSH_9.*",
]  # fmt: skip


@pytest.fixture
def environment():
    me = pwd.getpwuid(os.getuid())
    return Environment(Path(me.pw_dir), me.pw_name, socket.gethostname(), os.getuid(), os.environ)


def is_9_2(openssh):
    return openssh.root is None


def refusals(openssh):
    return REFUSED_BY_9_2 if is_9_2(openssh) else REFUSED_BY_THE_NEWEST


def run_ssh(openssh, file, host, *options):
    return subprocess.run(
        openssh.on_this_machine("ssh", "-F", str(file), "-G", *options, host),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=20,
    )


def asked_of_ssh(openssh, file, host, *options):
    answer = run_ssh(openssh, file, host, *options)
    assert answer.returncode == 0, answer.stderr
    found = {}
    for line in answer.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        if is_9_2(openssh):
            keyword = RENAMED_SINCE_9_2.get(keyword, keyword)
            value = RESPELLED_SINCE_9_2.get(keyword, {}).get(value, value)
        found.setdefault(keyword, []).append(value)
    return found


def explicit(text):
    """The keywords that a configuration sets and we support, as ssh -G calls them."""
    named = [parts[0].lower() for line in text.split("\n") if (parts := split_line(line, ""))]
    rows = [BY_NAME[name] for name in named if name in BY_NAME]
    return {row.slot for row in rows if row.kind is Kind.SUPPORTED} - SAY_NOTHING


def ours(file, host, options=(), **more):
    """What `gateway connect -G` would print, by keyword."""
    environment = more.pop("environment")
    read = read_settings(
        host, files=[file], command_line=list(options), environment=environment, **more
    )
    found = {}
    for line in dump(resolve(read, environment), read.settings):
        keyword, _, value = line.partition(" ")
        found.setdefault(keyword, []).append(value)
    return found


def assert_same(ours, theirs, keywords):
    for keyword in sorted(keywords | {"hostname", "user", "port"}):
        assert ours.get(keyword) == theirs.get(keyword), keyword


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_ssh_reads_the_same(openssh, name, tmp_path, environment):
    inner = tmp_path / "inner"
    inner.write_text("Host *\n Port 5\n")
    text = (
        CONFIGURATIONS[name].replace("{inner}", str(inner)).replace("{me}", environment.local_user)
    )
    file = tmp_path / "config"
    file.write_bytes(text.encode())
    read = ours(file, "jump", environment=environment)
    if message := refusals(openssh).get(name):
        assert message in run_ssh(openssh, file, "jump").stderr
        return
    keywords = explicit(text)
    if is_9_2(openssh):
        keywords -= NOT_WRITTEN_BY_9_2 | NOT_EXPANDED_BY_9_2.get(name, set())
    assert_same(read, asked_of_ssh(openssh, file, "jump"), keywords)


@pytest.mark.parametrize("criteria", CRITERIA + CRITERIA_SINCE_9_2)
def test_match_lines_apply_where_they_do_for_ssh(openssh, criteria, tmp_path, environment):
    file = tmp_path / "config"
    file.write_text(f"Host jump\n HostName real.example\n User bob\nMatch {criteria}\n Port 7\n")
    read = ours(file, "jump", environment=environment)
    if is_9_2(openssh) and criteria in CRITERIA_SINCE_9_2:
        assert "Bad Match condition" in run_ssh(openssh, file, "jump").stderr
    else:
        assert_same(read, asked_of_ssh(openssh, file, "jump"), {"port"})


def test_options_of_the_command_line_mean_the_same(openssh, tmp_path, environment):
    file = tmp_path / "config"
    file.write_text("Port 1\nUser bob\nIdentityFile /z\n")
    options = [
        "Port=7", "User carol", "IdentityFile='/a b'", "port = 9", "DynamicForward=1080",
        "RemoteCommand=echo 'a  b' # %h", "CertificateFile /c", "MACs=hmac-sha2-256",
    ]  # fmt: skip
    theirs = asked_of_ssh(
        openssh, file, "jump", *(word for text in options for word in ("-o", text))
    )
    keywords = explicit("\n".join(options))
    assert_same(
        ours(file, "jump", map(parse_option, options), environment=environment), theirs, keywords
    )


def test_every_supported_keyword_is_in_a_configuration():
    assert len(CONFIGURATIONS) > 40
    tried = set().union(*map(explicit, CONFIGURATIONS.values()))
    supported = {row.slot for row in BY_NAME.values() if row.kind is Kind.SUPPORTED}
    assert tried == supported - SAY_NOTHING


# -- which keywords there are ----------------------------------------------------------------------

# Debian's ssh has had them from a patch; since 2025 they are in openssh-client-gssapi alone.
ONLY_WITH_GSSAPI = {
    "gssapiclientidentity", "gssapikexalgorithms", "gssapikeyexchange",
    "gssapirenewalforcesrekey", "gssapiserveridentity", "gssapitrustdns",
}  # fmt: skip
KEYWORDS_SINCE_9_2 = {
    "channeltimeout", "obscurekeystroketiming", "refuseconnection", "tag", "versionaddendum",
    "warnweakcrypto",
}  # fmt: skip
CRITERIA_NAMES_SINCE_9_2 = {"command", "localnetwork", "sessiontype", "tagged", "version"}


def words_of(openssh):
    """Every word that ends a string in the program, for a linker lets strings share their ends."""
    command = openssh.on_this_machine("ssh")
    words = re.findall(rb"[a-z][a-z0-9]{2,}(?=\0)", Path(command[-1]).read_bytes())
    return sorted({word[at:].decode() for word in words for at in range(len(word) - 2)})


def accepted(openssh, file, before, words, complaint):
    """Return which words ssh knows: no complaint about them, or it ends for their value."""
    known = set()
    while True:
        file.write_text("Host x\n" + "".join(f"{before}{word} x\n" for word in words))
        said = run_ssh(openssh, file, "jump").stderr
        if "terminating" in said:
            return known | set(words) - set(re.findall(complaint, said))
        last = int(re.findall(r" line (\d+):", said)[-1])
        known.add(words.pop(last - 2))


def test_our_table_has_the_keywords_that_ssh_has(openssh, tmp_path):
    complaint = r"Bad configuration option: (\S+)"
    known = accepted(openssh, tmp_path / "config", "", words_of(openssh), complaint)
    missing = KEYWORDS_SINCE_9_2 if is_9_2(openssh) else ONLY_WITH_GSSAPI
    assert known == BY_NAME.keys() - missing


def test_our_match_has_the_criteria_that_ssh_has(openssh, tmp_path):
    complaint = r"Unsupported Match attribute (\S+)"
    known = accepted(openssh, tmp_path / "config", "Match ", words_of(openssh), complaint)
    missing = CRITERIA_NAMES_SINCE_9_2 if is_9_2(openssh) else set()
    assert known == set(CRITERIA_NAMES) - missing


# -- forwards on the command line ------------------------------------------------------------------

GOOD_FORWARDS = [
    ("-L", "1:a:2"), ("-L", ":1:a:2"), ("-L", "*:1:a:2"), ("-L", "[::1]:1:[::2]:2"),
    ("-L", "/a:h:3"), ("-L", "h:4:/x"), ("-L", "4:/x/%h"), ("-L", " 1:a:2"), ("-L", "1:a:2:"),
    ("-L", r"a\:b:1:c:2"), ("-L", "http:a:https"), ("-L", "[/p:q]:/r"), ("-L", "a/b:c:1"),
    ("-R", "1:a:2"), ("-R", "0:a:2"), ("-R", "b:1:a:2"), ("-R", "[::1]:1"), ("-R", "1"),
    ("-R", "/s"), ("-R", "/s:/t"), ("-R", "/s:a:1"), ("-R", "1:/t"), ("-R", ":0"), ("-R", "h:0:/t"),
    ("-D", "1"), ("-D", "*:1"), ("-D", "[::1]:1"), ("-D", "/s"), ("-D", "localhost:1"),
]  # fmt: skip
BAD_FORWARDS = [
    ("-L", "0:a:1"), ("-L", "1:a"), ("-L", "/a"), ("-L", "[a:b:c"), ("-L", "1:a:70000"),
    ("-L", "1:2:3:4:5"), ("-L", "x:a:1"), ("-L", "1:a:0"), ("-L", "[::1]x:1:a:2"), ("-L", ":a:1"),
    ("-R", "a:/x"), ("-R", "1:a:0"), ("-R", "1:2:3:4:5"), ("-R", "65536"),
    ("-D", "0"), ("-D", "1:a:2"), ("-D", "::1:1"), ("-D", "x"),
]  # fmt: skip
SLOTS = {"-L": "localforward", "-R": "remoteforward", "-D": "dynamicforward"}


def of_command_line(option, text, environment):
    parsed = parse_arguments([option, text, "jump"])
    return {"files": (), "command_line": parsed.settings, "environment": environment}


@pytest.mark.parametrize(("option", "text"), GOOD_FORWARDS)
def test_a_forward_means_the_same(openssh, option, text, environment):
    read = read_settings("jump", **of_command_line(option, text, environment))
    mine = {}
    for line in dump(resolve(read, environment), read.settings):
        keyword, _, value = line.partition(" ")
        mine.setdefault(keyword, []).append(value)
    theirs = asked_of_ssh(openssh, "none", "jump", option, text)
    assert mine[SLOTS[option]] == theirs[SLOTS[option]]


@pytest.mark.parametrize(("option", "text"), BAD_FORWARDS)
def test_what_ssh_takes_for_no_forward_is_none(openssh, option, text, environment):
    assert run_ssh(openssh, "none", "jump", option, text).returncode == 255
    with pytest.raises(ConfigError, match=f"(?i){SLOTS[option]}"):
        resolve(read_settings("jump", **of_command_line(option, text, environment)), environment)


@pytest.mark.parametrize("options", [(), ("-o", "ClearAllForwardings=no"),
                                     ("-o", "ExitOnForwardFailure=no", "-D", "5")])  # fmt: skip
def test_what_stdio_forwarding_implies(openssh, options, environment):
    arguments = ["-W", "a:1", *options]
    parsed = parse_arguments([*arguments, "jump"])
    read = read_settings(
        "jump",
        files=(),
        command_line=parsed.settings,
        defaults=parsed.defaults,
        environment=environment,
    )
    theirs = asked_of_ssh(openssh, "none", "jump", *arguments)
    mine = [line.split(" ", 1) for line in dump(resolve(read, environment), read.settings)]
    for keyword in ("exitonforwardfailure", "clearallforwardings", "sessiontype"):
        assert [value for key, value in mine if key == keyword] == theirs[keyword]
    assert ("dynamicforward" in dict(mine)) == ("dynamicforward" in theirs)
