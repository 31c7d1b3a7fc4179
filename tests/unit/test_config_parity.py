"""The same configuration, read by ssh itself (``ssh -G``) and by us."""

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from gateway.config.ssh_config import (
    Environment,
    StrictHostKeyChecking,
    parse_option,
    read_host_config,
)

SSH = shutil.which("ssh")
pytestmark = [pytest.mark.interop, pytest.mark.skipif(SSH is None, reason="there is no ssh")]

STRICT = {
    StrictHostKeyChecking.ASK: "ask",
    StrictHostKeyChecking.ACCEPT_NEW: "accept-new",
    StrictHostKeyChecking.YES: "true",
    StrictHostKeyChecking.NO: "false",
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
    "cleared": "DynamicForward 6000\nClearAllForwardings yes\n",
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
    "match, canonical": "Match canonical all\n Port 7\nMatch !final\n User first\n",
    "address": "HostName fe80::1%%eth0\nBindAddress 192.0.2.1\n",
    "session": "SessionType none\nPreferredAuthentications publickey,password\n",
    "unknown": "IgnoreUnknown Use*\nUseKeychain yes\nPort 7\n",
}


@pytest.fixture
def environment():
    me = pwd.getpwuid(os.getuid())
    return Environment(Path(me.pw_dir), me.pw_name, socket.gethostname(), os.getuid(), os.environ)


def asked_of_ssh(file, host, *options):
    answer = subprocess.run(
        [SSH, "-F", file, "-G", *options, host],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
        timeout=20,
    )
    found = {}
    for line in answer.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        found.setdefault(keyword, []).append(value)
    return found


def our_answer(config, text):
    """Write a configuration as ``ssh -G`` does."""
    flags = {
        "batchmode": config.batch_mode,
        "gatewayports": config.gateway_ports,
        "exitonforwardfailure": config.exit_on_forward_failure,
        "identitiesonly": config.identities_only,
        "hashknownhosts": config.hash_known_hosts,
        "passwordauthentication": config.password_authentication,
        "kbdinteractiveauthentication": config.kbd_interactive_authentication,
    }
    said = {
        "hostname": config.host_name,
        "user": config.user,
        "port": config.port,
        "addressfamily": config.address_family.value,
        "stricthostkeychecking": STRICT[config.strict_host_key_checking],
        "serveralivecountmax": config.server_alive_count_max,
        "connecttimeout": int(config.connect_timeout_s) if config.connect_timeout_s else "none",
        "rekeylimit": f"{config.rekey_limit.bytes or 0} {int(config.rekey_limit.seconds or 0)}",
        "loglevel": config.log_level.name,
        "userknownhostsfile": " ".join(map(str, config.known_hosts_files)),
        "globalknownhostsfile": " ".join(map(str, config.global_known_hosts_files)),
        "sessiontype": config.session_type.value,
        **{name: "yes" if value else "no" for name, value in flags.items()},
    }
    if "Alive" in text:  # our default is another than ssh's
        said["serveraliveinterval"] = int(config.server_alive_interval_s)
    if config.bind_address:
        said["bindaddress"] = config.bind_address
    answer = {name: [str(value)] for name, value in said.items()}
    forwards = [
        str(address.port) if address.host is None else f"[{address.host}]:{address.port}"
        for address in config.dynamic_forwards
    ]
    if forwards:
        answer["dynamicforward"] = forwards
    if not config.identity_files_are_default:
        answer["identityfile"] = [str(path) for path in config.identity_files] or ["none"]
    return answer


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_ssh_reads_the_same(name, tmp_path, environment):
    inner = tmp_path / "inner"
    inner.write_text("Host *\n Port 5\n")
    text = (
        CONFIGURATIONS[name].replace("{inner}", str(inner)).replace("{me}", environment.local_user)
    )
    file = tmp_path / "config"
    file.write_bytes(text.encode())
    theirs = asked_of_ssh(file, "jump")
    if "dynamicforward" in theirs:  # an empty address means the same as a star
        theirs["dynamicforward"] = [
            value.replace("[]", "[*]") for value in theirs["dynamicforward"]
        ]
    ours = our_answer(read_host_config("jump", files=[file], environment=environment), text)
    assert ours == {name: theirs[name] for name in ours}
    assert ("dynamicforward" in theirs) == ("dynamicforward" in ours)


def test_options_of_the_command_line_mean_the_same(tmp_path, environment):
    file = tmp_path / "config"
    file.write_text("Port 1\nUser bob\nIdentityFile /z\n")
    options = ["Port=7", "User carol", "IdentityFile='/a b'", "port = 9", "DynamicForward=1080"]
    theirs = asked_of_ssh(file, "jump", *(word for text in options for word in ("-o", text)))
    config = read_host_config(
        "jump", files=[file], command_line=list(map(parse_option, options)), environment=environment
    )
    ours = our_answer(config, "")
    assert ours == {name: theirs[name] for name in ours}
