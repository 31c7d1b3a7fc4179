"""gateway.toml: what is read, what is refused and in which words."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tempfile
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.config import gateway_toml
from gateway.config.checked_files import PRIVATE, UNCHANGED, _check_permissions
from gateway.config.gateway_toml import read_gateway_toml, reload
from gateway.config.server_config import ANY_USER, TunnelConfig
from gateway.config.toml_lines import key_lines
from gateway.config.toml_shape import _BOUNDS, File, Rule, Tunnel, User
from gateway.config.toml_shape import Authority as AuthorityTable
from gateway.errors import ConfigError
from gateway.policy.leases import Subnet
from gateway.policy.limits import Limits
from gateway.policy.rules import Action
from gateway.ssh.algorithms import SERVER_PREFERENCES, STRICT_SERVER_PREFERENCES
from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey
from tests.support.keys import a_private_key

HOST_KEY = PrivateKey.generate(lambda length: b"h" * length)
ALICE, SECOND, CA = (a_private_key("ssh-ed25519", letter).public for letter in "asc")
PRINT = ALICE.fingerprint
KEYS = {"ALICE": ALICE.openssh_text(), "SECOND": SECOND.openssh_text(), "CA": CA.openssh_text()}

TOP = 'host_keys = ["host"]\n'
USERS = '[users.alice]\nkeys = ["ALICE laptop"]\n'
RULES = '[[rules]]\nallow = "open"\nto = ["db:5432"]\n'
BASE = TOP + USERS + RULES
TUN_RULE = '[[rules]]\nallow = "tun"\nto = ["tun"]\n'
TUNNEL = '[tunnel]\npool = ["10.213.9.0/24"]\n'


def write(folder: Path, text: str) -> Path:
    """Write a gateway.toml with the keys filled in, and the host key beside it."""
    for name, key in KEYS.items():
        text = text.replace(name, key)
    if not (folder / "host").exists():
        (folder / "host").touch(mode=0o600)
        (folder / "host").write_bytes(encode_private_key_file(HOST_KEY))
    path = folder / "gateway.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def problems(folder: Path, text: str) -> list[str]:
    """Read a file that has to be refused; return the sentences, each after its place."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        read_gateway_toml(path)
    sentences = str(caught.value).split("\n")
    assert all(sentence.startswith(str(path)) for sentence in sentences), sentences
    assert all(sentence.isprintable() for sentence in sentences), sentences
    return [sentence.removeprefix(str(path)).removeprefix(":") for sentence in sentences]


# -- what is read ----------------------------------------------------------------------------------


def test_every_key_is_read(tmp_path: Path) -> None:
    (tmp_path / "alice.keys").write_text(f"# hers\nno-pty {KEYS['SECOND']} phone\nrubbish\n")
    config = read_gateway_toml(
        write(
            tmp_path,
            'listen = ["*:2222", "[::1]:0", "2200"]\nhost_keys = ["host"]\nalgorithms = "strict"\n'
            'audit = "audit"\naudit_keep_days = 400\nnames = {"DB.internal." = "10.0.0.5"}\n'
            "[limits]\n"
            + "".join(f"{name} = {low}\n" for name, (low, _) in _BOUNDS.items())
            + 'penalties = false\n[users.alice]\ngroups = ["staff"]\nkeys = ["ALICE laptop"]\n'
            'authorized_keys = "alice.keys"\nrequired_keys = 2\n[users."b\u00f6b"]\n'
            'keys = ["restrict SECOND"]\n'
            '[[authorities]]\nkey = "CA ca"\nusers = ["*"]\n'
            '[[rules]]\nid = "db"\nallow = "open"\nto = ["db.internal:5432", "10.0.0.0/8:443"]\n'
            'users = ["alice"]\ngroups = ["staff"]\n'
            f'keys = ["{PRINT}"]\nprincipals = ["ops"]\n'
            '[[rules]]\ndeny = "unix"\nto = ["/run/x"]\n'
            '[[rules]]\nallow = "tun"\nto = ["10.20.0.0/16", "fd20::/64", "tap"]\n'
            '[tunnel]\npool = ["10.213.9.0/24", "fd21:0:9::/64"]\nmtu = 1280\n'
            'masquerade = false\nleases = "who.json"\nflows_per_client = 9\n',
        )
    )
    pool = (ip_network("10.213.9.0/24"), ip_network("fd21:0:9::/64"))
    assert config.tunnel == TunnelConfig(pool, 1280, False, tmp_path / "who.json", 9)
    assert config.listen == (("*", 2222), ("::1", 0), ("*", 2200))
    assert config.host_keys == (HOST_KEY,)
    assert config.preferences == STRICT_SERVER_PREFERENCES
    assert (config.audit, config.audit_keep_days) == (tmp_path / "audit", 400)
    assert config.names == {"db.internal": "10.0.0.5"}
    lowest = {name: low for name, (low, _) in _BOUNDS.items()}
    assert config.limits == Limits(**lowest, penalties=False)
    alice = config.user("alice")
    assert alice is not None
    assert (alice.groups, alice.required_keys) == ({"staff"}, 2)
    assert [entry.key for entry in alice.keys.entries] == [ALICE, SECOND]
    assert config.user("carol") is None
    assert not config.users["b\u00f6b"].keys.entries[0].port_forwarding
    [authority] = config.authorities
    assert (authority.key, authority.admits("carol")) == (CA, True)
    db, unnamed, vpn = config.policy.rules
    assert (vpn.action, [target.text for target in vpn.to]) == (
        Action.TUN, ["10.20.0.0/16", "fd20::/64", "tap"],
    )  # fmt: skip
    assert (db.rule_id, db.allow, db.action) == ("db", True, Action.OPEN)
    assert [target.text for target in db.to] == ["db.internal:5432", "10.0.0.0/8:443"]
    assert (db.users, db.groups, db.keys, db.principals) == (
        {"alice"}, {"staff"}, {PRINT}, {"ops"},
    )  # fmt: skip
    assert (unnamed.rule_id, unnamed.allow, unnamed.action) == ("rules[1]", False, Action.UNIX)
    [warning] = config.warnings
    assert "alice.keys, line 3: " in warning
    assert warning.startswith(f"{tmp_path}/gateway.toml:24: users.alice.authorized_keys: ")


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    config = read_gateway_toml(write(tmp_path, BASE))
    assert config.listen == (("*", 2222),)
    assert config.limits == Limits()
    assert config.preferences == SERVER_PREFERENCES
    assert (config.names, config.authorities) == ({}, ())
    assert (config.audit, config.audit_keep_days) == (None, 0)
    assert config.tunnel is None
    tunnel = read_gateway_toml(write(tmp_path, BASE + TUN_RULE + TUNNEL)).tunnel
    assert tunnel == TunnelConfig(
        (ip_network("10.213.9.0/24"),), 1500, True, tmp_path / "leases.json", 4096
    )
    assert config.users["alice"].required_keys == 1
    assert config.warnings == ()


def test_strict_offers_nothing_that_an_audit_warns_about() -> None:
    offered = STRICT_SERVER_PREFERENCES
    assert offered.kex == ("mlkem768x25519-sha256",)
    assert not [name for name in offered.host_key if "ecdsa" in name or name == "ssh-rsa"]
    assert all("-etm@" in name for name in offered.macs)
    assert not [name for name in offered.ciphers if "cbc" in name or "chacha20" in name]


@pytest.mark.parametrize(
    ("rules", "warning"),
    [
        ('[[rules]]\nid = "all"\nallow = "open"\nto = ["*:*"]\n',
         ('7: rules[0].to: rule all lets every user open "*:*", every host and port but the box '
         "itself: name hosts or ports")),
        ('[[rules]]\nid = "all"\nallow = "open"\nto = ["*:*"]\nusers = ["alice"]\n',
         ('7: rules[0].to: rule all lets those it names open "*:*", every host and port but the '
         "box itself: name hosts or ports")),
        ("", " there are no rules, so nothing may be opened"),
        (RULES + TUNNEL,
         '7: tunnel: no rule allows a tun device: add one with allow = "tun"'),
    ],
)  # fmt: skip
def test_what_is_said_aloud(tmp_path: Path, rules: str, warning: str) -> None:
    path = write(tmp_path, TOP + USERS + rules)
    assert read_gateway_toml(path).warnings == (f"{path}:{warning}",)


@pytest.mark.parametrize(("uid", "count"), [(0, 1), (1000, 0)])
def test_sockets_that_root_would_open_are_said_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, count: int
) -> None:
    """T65: the program behind a socket takes who connects for the user of this process."""
    path = write(tmp_path, TOP + USERS + '[[rules]]\nallow = "unix"\nto = ["/run/x.sock"]\n')
    monkeypatch.setattr("gateway.config.gateway_toml.os.geteuid", lambda: uid)
    monkeypatch.setattr("gateway.config.gateway_toml.read_checked_file", _read_anyway)
    warnings = read_gateway_toml(path).warnings
    assert len(warnings) == count
    assert all("rules[0] opens sockets as root" in warning for warning in warnings)
    path.write_text(f'user = "nobody"\n{path.read_text()}')
    assert not read_gateway_toml(path).warnings, "it opens them as that user"


def _read_anyway(path: Path, *_: object) -> bytes:
    """Leave out whose file it is: that goes by the user too."""
    return path.read_bytes()


# -- what is refused, word by word -----------------------------------------------------------------

USER = "[users.alice]\n"
TEXT_WANTED = "write a text in quotes"
LIST_WANTED = "write a list in brackets"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        # unknown keys
        ("listn = []\n" + BASE, "1: listn: there is no such key: did you mean listen?"),
        (BASE + "[limits]\nidle_timeout = 1\n",
         "8: limits.idle_timeout: there is no such key: did you mean idle_timeout_s?"),
        (TOP + USERS + 'key = "x"\n' + RULES,
         "4: users.alice.key: there is no such key: did you mean keys?"),
        (BASE + 'Deny = "open"\n',
         "7: rules[0].Deny: there is no such key: did you mean deny?"),
        (BASE + '[[authorities]]\nkey = "CA"\nuser = ["*"]\nusers = ["*"]\n',
         "9: authorities[0].user: there is no such key: did you mean users?"),
        (BASE + '[limits]\naudit = "x"\n',
         "8: limits.audit: there is no such key: write audit above the first line in brackets"),
        (BASE + '[whatever]\nx = 1\n', ("7: whatever: there is no such key: the keys here are "
          "listen, host_keys, user, algorithms, audit, audit_keep_days, names, limits, users, "
          "authorities, rules, tunnel")),
        # the top
        (USERS, (" host_keys: it is missing: "
         'write host_keys = ["host_ed25519"], which `gateway init` makes')),
        ("host_keys = []\n" + USERS, "1: host_keys: this list is empty: write at least one"),
        ("host_keys = [1]\n" + USERS,
         f"1: host_keys[0]: this is a whole number: {TEXT_WANTED}"),
        ("host_keys = 'host'\n" + USERS, f"1: host_keys: this is a text: {LIST_WANTED}"),
        ("listen = ['127.0.0.1']\n" + BASE,
         "1: listen[0]: 127.0.0.1 is not a port: write a number from 0 to 65535"),
        ("listen = [\n  '*:1',\n  '::1:22',\n]\n" + BASE,
         ("3: listen[1]: in ::1:22 address and port cannot be told apart: write the IPv6 address "
         "in brackets, as in [::1]:6000")),
        ("listen = []\n" + BASE, "1: listen: this list is empty: write at least one"),
        ("listen = '*:22'\n" + BASE, f"1: listen: this is a text: {LIST_WANTED}"),
        ("algorithms = 'weak'\n" + BASE,
         "1: algorithms: weak is not known: write 'default' or 'strict'"),
        ("algorithms = true\n" + BASE,
         "1: algorithms: True is not known: write 'default' or 'strict'"),
        ("audit = 1\n" + BASE, f"1: audit: this is a whole number: {TEXT_WANTED}"),
        ("limits = 1\n" + BASE, "1: limits: this is a whole number: write a table"),
        ("users = 1\n" + TOP, "1: users: this is a whole number: write a table"),
        ("rules = 1\n" + TOP + USERS, f"1: rules: this is a whole number: {LIST_WANTED}"),
        ("rules = [1]\n" + TOP + USERS, "1: rules[0]: this is a whole number: write a table"),
        # names
        ("names = {db = 'host'}\n" + BASE,
         "1: names.db: host is not an address: as in 10.0.0.5"),
        ("names = {db = 1}\n" + BASE, f"1: names.db: this is a whole number: {TEXT_WANTED}"),
        ("names = {'d b' = '10.0.0.1'}\n" + BASE, ('1: names."d b": the host name d b contains a '
         "blank or control character: write the host name without it")),
        # limits
        (BASE + "[limits]\npenalties = 1\n",
         "8: limits.penalties: this is a whole number: write true or false"),
        (BASE + "[limits]\nmax_auth_tries = 1.5\n",
         "8: limits.max_auth_tries: this is a number with a point: write a whole number"),
        (BASE + "[limits]\nmax_auth_tries = true\n",
         "8: limits.max_auth_tries: this is true or false: write a whole number"),
        (BASE + "[limits]\ndrain_s = '30'\n",
         "8: limits.drain_s: this is a text: write a number"),
        (BASE + "[limits]\ndrain_s = nan\n",
         "8: limits.drain_s: nan is no time: write a number of seconds, 0 for no limit"),
        (BASE + "[limits]\nstartups_begin = 20\nstartups_full = 19\n",
         ("9: limits.startups_full: 19 is less than startups_begin, 20: "
         "write a number that is not")),
        # the VPN
        (BASE + TUN_RULE + "[tunnel]\n", ("10: tunnel.pool: it is missing: "
         'write pool = ["10.213.0.0/24"]')),
        (BASE + TUN_RULE + "[tunnel]\npool = []\n",
         "11: tunnel.pool: this list is empty: write at least one"),
        (BASE + TUN_RULE + "[tunnel]\npool = ['10.213.9.1/24']\n",
         ("11: tunnel.pool[0]: 10.213.9.1/24 is an address inside 10.213.9.0/24: "
         "write 10.213.9.0/24, or the address alone")),
        (BASE + TUN_RULE + "[tunnel]\npool = ['10.213.9.1']\n",
         ("11: tunnel.pool[0]: 10.213.9.1 is not a network: "
         "write one such as 10.0.0.0/8 or fd20::/64")),
        (BASE + TUN_RULE + "[tunnel]\npool = ['10.213.9.0/31']\n",
         ("11: tunnel.pool: 10.213.9.0/31 is too small for a server and a client: "
         "write one of /30 or larger")),
        (BASE + TUN_RULE + "[tunnel]\npool = ['10.213.9.0/24', '10.213.8.0/24']\n",
         ("11: tunnel.pool: there are two networks of the same family: "
         "name one of IPv4, one of IPv6")),
        (BASE + TUN_RULE + "[tunnel]\npool = ['fd21::/64']\nmtu = 1279\n",
         ("12: tunnel.mtu: 1279 is too small for IPv6, which the pool has: "
         "write 1280 or more")),
        (BASE + TUN_RULE + TUNNEL + "mtu = 575\n",
         "12: tunnel.mtu: 575 is out of bounds: write a number from 576 to 65535"),
        (BASE + TUN_RULE + TUNNEL + "flows_per_client = 0\n", ("12: tunnel.flows_per_client: "
         "0 is out of bounds: write a number from 1 to 1000000")),
        (BASE + TUN_RULE + TUNNEL + "masquerad = 1\n",
         "12: tunnel.masquerad: there is no such key: did you mean masquerade?"),
        (BASE + "[[rules]]\nallow = 'tun'\nto = ['tun0']\n", ("9: rules[1].to[0]: tun0 is no "
         "kind of device, and no network: write tun, tap, *, or a network such as 10.20.0.0/16")),
        ("audit_keep_days = 1\n" + BASE,
         '1: audit_keep_days: there is no audit log: write audit = "audit"'),
        ("audit = 'a'\naudit_keep_days = 0\n" + BASE,
         "2: audit_keep_days: 0 is out of bounds: write a number from 1 to 36500"),
        ("'[key]' = 1\n" + BASE, ("1: \"[key]\": there is no such key: the keys here are listen, "
         "host_keys, user, algorithms, audit, audit_keep_days, names, limits, users, authorities, "
         "rules, tunnel")),
        # users
        (TOP + RULES, (" there are neither users nor authorities, so nobody could log in: "
         "add [users.NAME] with keys = [...]")),
        (TOP + USER + RULES, ("2: users.alice: there is no key, so this user could not log in: "
         'write keys = ["ssh-ed25519 AAAA..."], as in ~/.ssh/id_ed25519.pub')),
        (TOP + "[users.'*']\nkeys = ['ALICE']\n" + RULES,
         ('2: users."*": a person has a name of one\'s own, or no log could tell who it was: '
         "write a table for each person")),
        (TOP + "[users.'a b']\nkeys = ['ALICE']\n" + RULES, ('2: users."a b": the user name a b '
         "contains a blank or control character: write the user name without it")),
        (TOP + USER + "groups = 'staff'\n" + RULES,
         f"3: users.alice.groups: this is a text: {LIST_WANTED}"),
        (TOP + USERS + "groups = ['']\n" + RULES, ("4: users.alice.groups[0]: an empty text "
         "cannot be a name: write 1 to 64 characters that can be shown")),
        (TOP + USER + "keys = [\n  'ALICE', # hers\n  'ssh-ed25519 AAAA'\n]\n" + RULES,
         ("5: users.alice.keys[1]: a key without a type: a field of 4 bytes with only 3 bytes "
         "left: write a line like the one in ~/.ssh/id_ed25519.pub")),
        (TOP + USER + "keys = ['# ALICE']\n" + RULES, ("3: users.alice.keys[0]: this is not one "
         "line with a key: write a line like the one in ~/.ssh/id_ed25519.pub")),
        (TOP + USER + "keys = ['''\nALICE\nSECOND''']\n" + RULES, ("3: users.alice.keys[0]: this "
         "is not one line with a key: write a line like the one in ~/.ssh/id_ed25519.pub")),
        (TOP + USER + "keys = ['no-such-option ALICE']\n" + RULES, ("3: users.alice.keys[0]: "
         "option no-such-option is unknown: write a line like the one in ~/.ssh/id_ed25519.pub")),
        (TOP + USERS + "required_keys = 0\n" + RULES,
         "4: users.alice.required_keys: 0 is out of bounds: write a number from 1 to 10"),
        (TOP + USERS + "required_keys = 2\n" + RULES, ("4: users.alice.required_keys: 2 keys have "
         "to sign, and there are 1: add keys, or write a lower number")),
        (TOP + USERS + "authorized_keys = ''\n" + RULES,
         "4: users.alice.authorized_keys: this text is empty: write at least one character"),
        # authorities
        (BASE + "[[authorities]]\nkey = 'CA'\n", ("7: authorities[0].users: it is missing: "
         'write users = ["alice"], or ["*"] for every user')),
        (BASE + "[[authorities]]\nusers = ['*']\n", ("7: authorities[0].key: it is missing: "
         'write key = "ssh-ed25519 AAAA... ca"')),
        (BASE + "[[authorities]]\nkey = 'cert-authority CA'\nusers = ['*']\n",
         ("8: authorities[0].key: an authority has no options: "
         "write the key alone, and its users beside it")),
        (BASE + "[[authorities]]\nkey = 'CA'\nusers = []\n",
         "9: authorities[0].users: this list is empty: write at least one"),
        # rules
        (BASE + "deny = 'open'\n", ("4: rules[0]: a rule either allows or denies: "
         'write one of allow = "open" and deny = "open"')),
        (TOP + USERS + "[[rules]]\nto = ['db:1']\n", ("4: rules[0]: a rule either allows or "
         'denies: write one of allow = "open" and deny = "open"')),
        (TOP + USERS + "[[rules]]\nallow = 'shell'\nto = ['db:1']\n", ("5: rules[0].allow: shell "
         "is not known: write 'open', 'listen', 'tun' or 'unix'")),
        (TOP + USERS + "[[rules]]\nallow = 'open'\n",
         '4: rules[0].to: it is missing: write to = ["host:port"]'),
        (BASE + "users = ['alcie']\n",
         "7: rules[0].users[0]: there is no user alcie: did you mean alice?"),
        (BASE + "users = ['*']\n", ("7: rules[0].users[0]: there is no user *: "
         "leave users out: a rule that names nobody is for all users")),
        (BASE + "groups = ['staff']\n",
         "7: rules[0].groups[0]: there is no group staff: check the name"),
        (BASE + "keys = ['MD5:00']\n", ("7: rules[0].keys[0]: MD5:00 is not a fingerprint: "
         "write SHA256:... as ssh-keygen -l -f FILE prints it")),
        (BASE + "id = 'x'\n" + RULES + "id = 'x'\n",
         "11: rules[1].id: there is a rule x already: write another name"),
        (BASE + "id = 'a\\u001bb'\n" .replace("'", '"'), ("7: rules[0].id: a\\x1bb cannot be a "
         "name: write 1 to 64 characters that can be shown")),
    ],
)  # fmt: skip
def test_a_sentence_with_line_key_and_remedy(tmp_path: Path, text: str, sentence: str) -> None:
    assert problems(tmp_path, text) == [sentence]


def test_a_target_that_is_none_is_named(tmp_path: Path) -> None:
    [sentence] = problems(tmp_path, TOP + USERS + "[[rules]]\nallow='open'\nto=['a:1',\n'b']\n")
    assert sentence.startswith("7: rules[0].to[1]: b is not ")


def test_a_pool_is_no_subnet_of_this_machine(tmp_path: Path, monkeypatch) -> None:
    def subnets() -> tuple[Subnet, ...]:
        return (Subnet("eth7", ip_interface("10.213.0.9/16")),)

    monkeypatch.setattr(gateway_toml, "own_subnets", subnets)
    assert problems(tmp_path, BASE + TUN_RULE + TUNNEL) == [
        (
            "11: tunnel.pool: 10.213.9.0/24 overlaps 10.213.0.0/16, the subnet of eth7: "
            "name a network that is used nowhere near this machine"
        )
    ]


@pytest.mark.parametrize("name", [".", "missing/leases.json", "x" * 300 + "/y"])
def test_a_file_of_leases_that_cannot_be(tmp_path: Path, name: str) -> None:
    [sentence] = problems(tmp_path, f'{BASE}{TUN_RULE}{TUNNEL}leases = "{name}"\n')
    assert sentence.startswith("12: tunnel.leases: ")
    assert sentence.endswith(" cannot be a file: name one in a folder that exists")


@pytest.mark.parametrize(("name", "bounds"), _BOUNDS.items())
def test_the_bounds_of_every_limit(tmp_path: Path, name: str, bounds: tuple[int, int]) -> None:
    for value in (bounds[0] - 1, bounds[1] + 1):
        [sentence] = problems(tmp_path, f"{BASE}[limits]\n{name} = {value}\n")
        assert sentence == (
            f"8: limits.{name}: {value} is out of bounds: "
            f"write a number from {bounds[0]} to {bounds[1]}"
        )


def test_every_number_of_the_limits_has_bounds() -> None:
    assert {*_BOUNDS, "penalties"} == set(Limits.__dataclass_fields__)


ALL_KEYS = [
    *(("", key, "") for key in File.model_fields),
    *(("[limits]\n", key, "") for key in Limits.__dataclass_fields__),
    *(("[users.alice]\n", key, "") for key in User.model_fields),
    *(("[[authorities]]\n", key, "") for key in AuthorityTable.model_fields),
    *(("[[rules]]\n", key, "") for key in Rule.model_fields),
    *(("[tunnel]\n", key, "") for key in Tunnel.model_fields),
]


@pytest.mark.parametrize(("table", "key", "_"), ALL_KEYS)
def test_every_key_refuses_another_type(tmp_path: Path, table: str, key: str, _: str) -> None:
    sentences = problems(tmp_path, f"{table}{key} = 2020-01-01\n")
    line = 2 if table else 1
    place = {
        "": "",
        "[limits]\n": "limits.",
        "[tunnel]\n": "tunnel.",
        "[users.alice]\n": "users.alice.",
    }
    path = f"{place.get(table, table.strip('[]' + chr(10)) + '[0].')}{key}"
    [sentence] = [one for one in sentences if one.startswith(f"{line}: {path}: ")]
    assert re.search(": (this is a date or a time|2020-01-01 is not known): write ", sentence)


def test_all_errors_are_told_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "listen = [1, 2]\nx = 1\n" + BASE + "to2 = 1\n"
    places = [sentence.split(": ")[:2] for sentence in problems(tmp_path, text)]
    assert places == [["1", "listen[0]"], ["1", "listen[1]"], ["2", "x"], ["9", "rules[0].to2"]]
    text = 'host_keys = ["missing"]\n' + USER + RULES + "users = ['bob']\n"
    places = [sentence.split(": ")[:2] for sentence in problems(tmp_path, text)]
    assert [place[0] for place in places] == ["1", "2", "6"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"listen = \n", "1: this is not TOML: Invalid value (column 10): see https://toml.io"),
        (b"a = 1\na = 2\n", ("2: this is not TOML: Cannot overwrite a value (column 6): "
         "see https://toml.io")),
        (b"# \xff\n", "1: this is not UTF-8: save the file as UTF-8"),
        (b"\n\nx = '\xff'\n", "3: this is not UTF-8: save the file as UTF-8"),
        (b"x = " + b"[" * 5000, (" this is not TOML: too many brackets inside each other: "
         "see https://toml.io")),
        (b"#" * ((4 << 20) + 1), (" the configuration has more than 4194304 bytes: "
         "name another file")),
    ],
)  # fmt: skip
def test_what_is_no_toml(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = write(tmp_path, BASE)
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_gateway_toml(path)
    assert str(caught.value) == f"{path}:{sentence}"


# -- files -----------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_gateway_toml(path)
    return str(caught.value)


WITH_FILE = TOP + USER + 'authorized_keys = "alice.keys"\n' + RULES


@pytest.mark.parametrize(
    ("name", "what", "place", "modes", "remedy"),
    [
        ("gateway.toml", "the configuration", "", (0o620, 0o602, 0o666), "go-w"),
        ("host", "the host key", ":1: host_keys[0]", (0o640, 0o604, 0o620, 0o602), "600"),
        ("alice.keys", "the list of keys", ":3: users.alice.authorized_keys", (0o664, 0o646),
         "go-w"),
    ],
)  # fmt: skip
def test_files_that_others_may_change(
    tmp_path: Path, name: str, what: str, place: str, modes: tuple[int, ...], remedy: str
) -> None:
    (tmp_path / "alice.keys").write_text(KEYS["ALICE"] + "\n")
    path = write(tmp_path, WITH_FILE)
    file = tmp_path / name
    before = f"{path}{place}: " if place else ""
    may = "read or write" if remedy == "600" else "write"
    for mode in modes:
        file.chmod(mode)
        assert refusal(path) == (
            f"{before}{file}: others may {may} {what} (mode {mode:04o}): chmod {remedy} {file}"
        )
    file.chmod(0o600 if remedy == "600" else 0o644)
    assert read_gateway_toml(path).users["alice"].keys.entries[0].key == ALICE


def test_a_credential_of_systemd_comes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoadCredential= of the unit: the file beside the configuration stays root's."""
    path = write(tmp_path, BASE)
    handed = tmp_path / "handed"
    handed.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(handed))
    assert read_gateway_toml(path).host_keys[0].public == HOST_KEY.public
    other = PrivateKey.generate(lambda length: b"o" * length)
    (handed / "host").touch(mode=0o600)
    (handed / "host").write_bytes(encode_private_key_file(other))
    assert read_gateway_toml(path).host_keys[0].public == other.public
    path.write_text(path.read_text().replace('"host"', f'"{tmp_path}/host"'))
    assert read_gateway_toml(path).host_keys[0].public == HOST_KEY.public, "a path is a path"


@pytest.mark.parametrize(
    ("mode", "is_taken"),
    [(0o400, True), (0o440, True), (0o444, False), (0o460, False), (0o404, False)],
)
def test_a_secret_of_roots_that_our_group_may_read(
    monkeypatch: pytest.MonkeyPatch, mode: int, is_taken: bool
) -> None:
    """As systemd hands it to a service: an entry of an ACL looks like the group's right."""
    status = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    monkeypatch.setattr("gateway.config.checked_files.os.getuid", lambda: 1000)
    if is_taken:
        _check_permissions(Path("x"), status, PRIVATE, "the host key")
    else:
        with pytest.raises(ConfigError, match=f"others may read or write .*mode {mode:04o}"):
            _check_permissions(Path("x"), status, PRIVATE, "the host key")


def test_a_folder_in_which_others_may_replace_files(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    tmp_path.chmod(0o777)
    assert refusal(path) == (
        f"{path}: others may replace the configuration, for they may write in its folder "
        f"(mode 0777): chmod go-w {tmp_path}"
    )
    tmp_path.chmod(0o1777)  # as /tmp
    read_gateway_toml(path)


@pytest.mark.parametrize(
    ("name", "what", "place"),
    [
        ("gateway.toml", "the configuration", ""),
        ("host", "the host key", ":1: host_keys[0]"),
        ("alice.keys", "the list of keys", ":3: users.alice.authorized_keys"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, what: str, place: str) -> None:
    (tmp_path / "alice.keys").write_text(KEYS["ALICE"] + "\n")
    path = write(tmp_path, WITH_FILE)
    file = tmp_path / name
    before = f"{path}{place}: " if place else ""
    file.unlink()
    assert refusal(path).startswith(
        f"{before}{file}: {what} cannot be read: No such file or directory: check its name"
    )
    for make in (os.mkfifo, Path.mkdir):
        make(file, 0o600)
        assert refusal(path) == f"{before}{file}: {what} is not a regular file: name a file"
        file.unlink() if stat.S_ISFIFO(file.stat().st_mode) else file.rmdir()


def test_a_file_of_somebody_else() -> None:
    owner = os.getuid() + 1
    status = os.stat_result((stat.S_IFREG | 0o600, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    for forbidden in (PRIVATE, UNCHANGED):
        with pytest.raises(ConfigError, match=rf"x: the file belongs to another .* {owner}\)"):
            _check_permissions(Path("x"), status, forbidden, "the file")


def test_host_keys_that_do_not_go(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    key = tmp_path / "host"
    where = f"{path}:1: host_keys[0]: {key}: "
    key.write_text("rubbish")
    assert refusal(path).startswith(where)
    key.write_bytes(encode_private_key_file(HOST_KEY))
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(key)], check=True, capture_output=True
    )
    assert refusal(path) == (
        f"{where}the host key has a passphrase, and a server cannot be asked for one: "
        f"remove it with: ssh-keygen -p -f {key}"
    )
    for name, of_bits in (("ecdsa-sha2-nistp256", ""), ("ssh-rsa", " of 2048 bits")):
        key.write_bytes(encode_private_key_file(a_private_key(name)))
        read_gateway_toml(write(tmp_path, BASE))
        write(tmp_path, TOP + 'algorithms = "strict"\n' + USERS)
        assert refusal(path) == (
            f'{where}algorithms = "strict" does not go with a {name} key{of_bits}: '
            f"make another one with: ssh-keygen -t ed25519 -N '' -f {key}.new"
        )
    key.write_bytes(encode_private_key_file(HOST_KEY))
    (sentence,) = problems(tmp_path, BASE.replace('"host"', '"host", "host"'))
    assert sentence.startswith("1: host_keys[1]: there is a key of this type already")


def test_an_audit_folder_that_is_a_file(tmp_path: Path) -> None:
    [sentence] = problems(tmp_path, 'audit = "host"\n' + BASE)
    assert sentence == f"1: audit: {tmp_path}/host is not a folder: name one, or a new name"


# -- users who come with certificates --------------------------------------------------------------


def test_a_user_without_keys_may_come_with_a_certificate(tmp_path: Path) -> None:
    authority = "[[authorities]]\nkey = 'CA'\nusers = ['alice']\n"
    config = read_gateway_toml(write(tmp_path, TOP + USER + authority + RULES))
    assert config.users["alice"].keys.entries == ()
    read_gateway_toml(write(tmp_path, TOP + USER + "keys = ['cert-authority CA']\n" + RULES))
    [sentence] = problems(tmp_path, TOP + "[users.bob]\n" + authority + RULES)
    assert sentence.startswith("2: users.bob: there is no key")


def test_only_an_authority_for_all_makes_unknown_users_possible(tmp_path: Path) -> None:
    rules = RULES + 'users = ["carol"]\n'
    for user, is_known in ((ANY_USER, True), ("carol", True), ("dave", False)):
        text = f"{TOP}[[authorities]]\nkey = 'CA'\nusers = ['{user}']\n{rules}"
        if is_known:
            read_gateway_toml(write(tmp_path, text))
        else:
            [sentence] = problems(tmp_path, text)
            assert sentence.startswith("8: rules[0].users[0]: there is no user carol")


# -- once more, while it runs ----------------------------------------------------------------------


def test_reload_takes_everything_but_what_needs_a_restart(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    running = read_gateway_toml(path)
    assert reload(path, running) == running
    write(
        tmp_path,
        'listen = ["*:1"]\naudit = "log"\naudit_keep_days = 1\n'
        + BASE
        + "[limits]\nmax_auth_tries = 3\n[users.bob]\nkeys = ['SECOND']\n"
        + TUN_RULE
        + TUNNEL,
    )
    (tmp_path / "host").write_bytes(encode_private_key_file(a_private_key("ssh-ed25519", "n")))
    new = reload(path, running)
    assert (new.listen, new.host_keys, new.audit) == (running.listen, (HOST_KEY,), None)
    assert new.audit_keep_days == 0
    assert new.limits.max_auth_tries == 3
    assert set(new.users) == {"alice", "bob"}
    assert new.tunnel is None
    text = (
        "listen, host_keys, audit, audit_keep_days, tunnel: changed, and kept as before until a "
        "restart"
    )
    assert new.warnings == (f"{path}: {text}",)


def test_reload_of_a_file_with_an_error_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    running = read_gateway_toml(path)
    write(tmp_path, BASE + "to2 = 1\n")
    with pytest.raises(ConfigError, match=r":7: rules\[0\]\.to2: there is no such key"):
        reload(path, running)


# -- any document at all ---------------------------------------------------------------------------

FOLDER = Path(tempfile.mkdtemp())
TEXTS = st.sampled_from(
    ["*", "alice", "staff", "host", "*:22", "db:1", "*:*", "open", "strict", KEYS["ALICE"], ".",
     "cert-authority " + KEYS["CA"], "10.0.0.1", PRINT, "/dev/zero", "a\nb", "\x1b[2J"]
)  # fmt: skip
SCALARS = st.one_of(
    TEXTS,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.dates().map(lambda date: date),
)
NAMES = st.one_of(
    st.sampled_from(["alice", "*", "a b", "x"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.sampled_from([key for _, key, _ in ALL_KEYS]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=25,
)
USER_TABLES = st.dictionaries(st.sampled_from(list(User.model_fields)), VALUES)
DOCUMENTS = st.dictionaries(NAMES, VALUES) | st.fixed_dictionaries(
    {"host_keys": st.just(["host"])},
    optional={
        "users": st.dictionaries(NAMES, USER_TABLES | st.just({"keys": [KEYS["ALICE"]]})),
        "rules": st.lists(st.dictionaries(st.sampled_from(list(Rule.model_fields)), VALUES)),
        "limits": st.dictionaries(st.sampled_from(sorted(_BOUNDS)), VALUES),
        "names": st.dictionaries(NAMES, TEXTS),
        "listen": st.lists(TEXTS),
        "audit": TEXTS,
    },
)


def as_toml(value: object) -> str:
    """Write a value; tables inline."""
    if isinstance(value, dict):
        inner = (
            f"{json.dumps(key, ensure_ascii=False)} = {as_toml(v)}" for key, v in value.items()
        )
        return "{" + ", ".join(inner).replace("\x7f", "\\u007f") + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool | float):
        return repr(value).lower()
    return str(value)


def check(text: str) -> None:
    path = write(FOLDER, "")
    path.write_bytes(text.encode())
    try:
        config = read_gateway_toml(path)
    except ConfigError as error:
        told = str(error)
    else:
        assert config.host_keys == (HOST_KEY,)
        assert config.users or config.authorities
        return
    assert told.startswith(str(path))
    assert all(line.isprintable() for line in told.split("\n"))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS)
@example({"host_keys": ["host"], "users": {"alice": {"keys": [KEYS["ALICE"]]}}})
def test_any_document_gives_a_configuration_or_an_error(document: dict[str, object]) -> None:
    pairs = (f"{json.dumps(k, ensure_ascii=False)} = {as_toml(v)}\n" for k, v in document.items())
    check("".join(pairs).replace("\x7f", "\\u007f"))


@given(st.text(st.sampled_from("[]{}=.,\"'#\\\n ab1\r") | st.characters(exclude_categories=["Cs"])))
@example('"\x1f"')
def test_any_text_gives_an_error(text: str) -> None:
    check(text)
    key_lines(text)  # which promises nothing about what is no TOML, but it ends


# -- lines -----------------------------------------------------------------------------------------


def test_the_line_of_every_key() -> None:
    text = """\
a = ["x, ] # ", # c ]
  'y', [1,
  2]]
"b c".d = {e = 1.5, f = [{g = 1}]}
[t]
s = '''
[no]
x = 1'''''
u = \"\"\"a\\\"\"\"
"\"\"\"
[[list]]
[list.inside]
k = 1979-05-27 07:32:00
[[list]]
k = 2
"""
    lines = key_lines(text)
    assert lines["a",] == 1
    assert [lines["a", 0], lines["a", 1], lines["a", 2], lines["a", 2, 1]] == [1, 2, 2, 3]
    assert lines["b c", "d", "f", 0, "g"] == lines["b c", "d", "e"] == 4
    assert [lines["t",], lines["t", "s"], lines["t", "u"]] == [5, 6, 9]
    assert lines["list", 0] == 11
    assert lines["list", 0, "inside", "k"] == 13
    assert lines["list", 1, "k"] == 15
    assert ("no",) not in lines


def test_pydantic_is_loaded_for_a_file_only() -> None:
    code = "import sys, gateway.cli.connect, gateway.cli.serve; print('pydantic' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
