"""No secret is in what `connect` and `serve` say, at any -v: all output is searched for each.

The programs run under a wrapper that writes down every key they derive, so that those are known.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from gateway.ssh.keyfiles import parse_private_key_file_untrusted
from tests.interop.targets import need
from tests.interop.test_auth_methods import Login, running_asyncssh
from tests.support.programs import make_keys, running
from tests.support.proxies import running_microsocks

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.programs import Keys

pytestmark = [pytest.mark.interop]

PASSPHRASE = "open sesame 5f0e"
PROXY_PASSWORD = "se:cret/proxy"
PASSWORD = "right"  # of the server of test_auth_methods.py; too short a word to search for alone
WRONG = "mistaken-password-77"
LEVELS = [(), ("-v",), ("-v", "-v"), ("-v", "-v", "-v")]
HARMLESS = 8  # bytes: what is shorter is found anywhere

WRAPPER = """
import json, os, sys
from gateway.ssh import kex

def derive(self, letter, size, plain=kex.KeyMaterial.derive):
    key = plain(self, letter, size)
    with open(os.environ["DERIVED"], "a") as file:
        print(json.dumps([self.k.hex(), key.hex()]), file=file)
    return key

kex.KeyMaterial.derive = derive
from gateway.cli import main
sys.exit(main())
"""
GATEWAY = [sys.executable, "-c", WRAPPER]


def derived(path: Path) -> list[bytes]:
    """All secrets of key exchanges that the wrapper has seen, and what was derived of them."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows, "the wrapper saw no key exchange"
    return [bytes.fromhex(item) for row in rows for item in row]


def private_bytes(key_file: bytes, passphrase: str = "") -> list[bytes]:
    """The secret half of an ed25519 key, and its file's lines."""
    section = parse_private_key_file_untrusted(key_file).decrypt(passphrase).private_section()
    seed = section[-64:-32]
    lines = [line for line in key_file.splitlines() if not line.startswith(b"-")]
    return [seed, *lines]


def forms(secret: bytes) -> set[bytes]:
    """How a secret could be written: as it is, in hex, as Python shows it, in base64 anywhere."""
    found = {secret, secret.hex().encode(), secret.hex(":").encode(), repr(secret)[2:-1].encode()}
    for shift in range(3):  # where in a group of three bytes it begins; its ends mix with others
        text = base64.b64encode(bytes(shift) + secret)
        found |= {text[4 if shift else 0 : -4], text.translate(URL_SAFE)[4 if shift else 0 : -4]}
    return {form for form in found if len(form) >= HARMLESS}


URL_SAFE = bytes.maketrans(b"+/", b"-_")


def check(output: bytes, secrets: list[bytes]) -> None:
    folded = output.lower()
    for secret in secrets:
        for form in forms(secret):
            assert form not in output, form
            assert form.lower() not in folded or form.isalpha(), form


def test_the_search_finds_what_is_there() -> None:
    secret = os.urandom(32)
    for text in (
        secret.hex().upper().encode(), repr(secret).encode(), base64.b64encode(secret),
        base64.b64encode(b"x" + secret + b"yz"), base64.urlsafe_b64encode(b"xy" + secret),
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            check(b"gateway: key " + text + b" derived", [secret])


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """A user's key that is encrypted."""
    keys = make_keys(tmp_path / "keys")
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-a", "1", "-P", "", "-N", PASSPHRASE, "-f", keys.user],
        check=True, stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    return keys


@pytest.mark.parametrize("level", LEVELS, ids=len)
def test_what_connect_and_serve_say(level: tuple[str, ...], keys: Keys, tmp_path: Path) -> None:
    need("microsocks")
    said = b""
    ours, theirs = tmp_path / "derived by connect", tmp_path / "derived by serve"
    with (
        running_microsocks("-u", "alice", "-P", PROXY_PASSWORD) as proxy,
        running_asyncssh(keys, "publickey", "password") as by_password,
        running(
            *GATEWAY, "serve", *level, "--listen", "127.0.0.1:0", "--host-key", str(keys.host),
            "--authorized-keys", str(keys.authorized), "--rekey-bytes", "20000",
            DERIVED=str(theirs),
        ) as serve,
    ):  # fmt: skip
        own = int(serve.wait_line(r"listening on 127\.0\.0\.1:(\d+)")[1])
        for port, answers, proxy_password in (
            (by_password, (PASSPHRASE, PASSWORD), PROXY_PASSWORD),
            (by_password, (PASSPHRASE, WRONG), PROXY_PASSWORD),
            (by_password, (WRONG,), PROXY_PASSWORD),
            (by_password, (PASSPHRASE,), WRONG),
            (own, (PASSPHRASE,), PROXY_PASSWORD),
        ):
            login = Login(tmp_path, port, "alice")
            (tmp_path / "asked.count").unlink(missing_ok=True)
            login.answer_with(*answers)
            url = f"socks5h://alice:{quote(proxy_password, safe='')}@127.0.0.1:{proxy.port}"
            said += connect(login, keys, *level, "--via", url, DERIVED=str(ours))
    output = said + "\n".join(serve.lines).encode()
    if level:
        assert b"logged in" in said, said
    words = [PASSPHRASE, PROXY_PASSWORD, quote(PROXY_PASSWORD, safe=""), WRONG]
    secrets = [word.encode() for word in words]
    secrets += private_bytes(keys.user.read_bytes(), PASSPHRASE)
    secrets += private_bytes(keys.host.read_bytes())
    check(output, secrets + derived(ours) + derived(theirs))
    assert b"right" not in said.replace(b"copyright", b"")


def connect(login: Login, keys: Keys, *options: str, **environment: str) -> bytes:
    """Log in, or not, and return all that was said."""
    done = subprocess.run(
        [*GATEWAY, "connect", "-F", "none", "-n", *options, "-p", str(login.port),
         "-i", str(keys.user), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no",
         "-o", f"UserKnownHostsFile={login.folder / 'known_hosts'}", "-o", "RekeyLimit=16K",
         "-o", "NumberOfPasswordPrompts=1", f"{login.user}@127.0.0.1", "echo", "in"],
        capture_output=True, timeout=60, check=False, start_new_session=True,
        env={**os.environ, **login.environment, **environment},
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    return bytes(done.stdout + done.stderr)
