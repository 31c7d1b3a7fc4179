"""Every key exchange, cipher and MAC with real peers: a login, bytes both ways, and rekeys."""

from __future__ import annotations

import importlib
import subprocess

import pytest

from gateway.ssh import algorithms
from tests.interop.clients import (
    CLIENTS,
    DATA,
    REKEY_BYTES,
    SERVE_OPTIONS,
    Login,
    check,
    count,
    last_keys,
)
from tests.support.programs import (
    GATEWAY,
    client_options,
    eventually,
    make_keys,
    running_gateway_serve,
    running_sshd,
)

SERVER_KEX = [name for name in algorithms.DEFAULT_KEX if "group-exchange" not in name]
CTR = [name for name in algorithms.DEFAULT_CIPHERS if name.endswith("-ctr")]
SUITES = [(name, None) for name in algorithms.AEAD_CIPHERS] + [
    (cipher, mac) for cipher in CTR for mac in algorithms.DEFAULT_MACS
]


def with_openssh(names):
    """Pair both versions with the key exchanges; only the newest has the post-quantum one."""
    return [
        (version, name)
        for version in ("debian", "newest")
        for name in names
        if version == "newest" or name not in algorithms.POST_QUANTUM_KEX
    ]


# -- our client ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sshd(openssh):
    keys = make_keys(openssh.folder / "sshd")
    version = "newest" if openssh.root else "debian"
    kex = ",".join(name for known, name in with_openssh(algorithms.DEFAULT_KEX) if known == version)
    extra = (
        f"KexAlgorithms {kex}\nCiphers {','.join(algorithms.DEFAULT_CIPHERS)}\n"
        f"MACs {','.join(algorithms.DEFAULT_MACS)}\nRekeyLimit {REKEY_BYTES}\n"
    )
    with running_sshd(keys, extra, openssh, "DEBUG1") as server:
        yield server


def through_cat(openssh, server, *options):
    """Send DATA through a `cat` at the far end and back; return what our client said.

    Only bytes make them rekey, so the third keys show that the second have moved some.
    """
    before = count(server.program, "SSH2_MSG_NEWKEYS received")
    result = subprocess.run(
        [*GATEWAY, "connect", "-v", "-v", *client_options(server), *options,
         "-o", f"RekeyLimit={REKEY_BYTES}", "root@127.0.0.1", openssh.cat],
        input=DATA, capture_output=True, check=False, timeout=50,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    check(result.stdout)
    said = result.stderr.decode()
    assert last_keys(said) > 2
    eventually(
        lambda: count(server.program, "SSH2_MSG_NEWKEYS received") > before + 2, "sshd has rekeyed"
    )
    return said


@pytest.mark.parametrize(
    ("openssh", "kex"), with_openssh(algorithms.DEFAULT_KEX), indirect=["openssh"]
)
def test_our_client_with_sshd_kex(openssh, sshd, kex):
    said = through_cat(openssh, sshd, "-o", f"KexAlgorithms={kex}")
    assert ("post-quantum" in said) == (kex not in algorithms.POST_QUANTUM_KEX)


@pytest.mark.parametrize(("cipher", "mac"), SUITES)
def test_our_client_with_sshd_cipher(openssh, sshd, cipher, mac):
    chosen = [f"-oCiphers={cipher}", *([f"-oMACs={mac}"] if mac else [])]
    through_cat(openssh, sshd, *chosen)


# -- our server ------------------------------------------------------------------------------------


def serve_everything(folder):
    """Run a server of ours that offers all that it can."""
    return running_gateway_serve(
        make_keys(folder), *SERVE_OPTIONS,
        "--kex", ",".join(SERVER_KEX), "--ciphers", ",".join(algorithms.DEFAULT_CIPHERS),
        "--macs", ",".join(algorithms.DEFAULT_MACS),
    )  # fmt: skip


@pytest.fixture(scope="module")
def serve(openssh):
    with serve_everything(openssh.folder / "serve") as server:
        yield server


@pytest.mark.parametrize(("openssh", "kex"), with_openssh(SERVER_KEX), indirect=["openssh"])
def test_ssh_with_our_server_kex(openssh, serve, echo_port, kex):
    login = Login(serve, echo_port, serve.keys.user, kex=kex, openssh=openssh)
    CLIENTS["ssh"](login)


@pytest.mark.parametrize(("cipher", "mac"), SUITES)
def test_ssh_with_our_server_cipher(openssh, serve, echo_port, cipher, mac):
    login = Login(serve, echo_port, serve.keys.user, cipher=cipher, mac=mac, openssh=openssh)
    CLIENTS["ssh"](login)


DBCLIENT_SUITES = [
    (cipher, mac)
    for cipher, mac in SUITES
    if cipher in ("chacha20-poly1305@openssh.com", "aes128-ctr", "aes256-ctr")
    and mac in (None, "hmac-sha2-256")
]


@pytest.mark.parametrize(("cipher", "mac"), DBCLIENT_SUITES)
def test_dbclient_with_our_server_cipher(openssh, serve, echo_port, cipher, mac):
    login = Login(serve, echo_port, serve.keys.user, cipher=cipher, mac=mac, openssh=openssh)
    CLIENTS["dbclient"](login)


@pytest.fixture(scope="module")
def serve_libraries(tmp_path_factory):
    with serve_everything(tmp_path_factory.mktemp("libraries")) as server:
        yield server


def knows(library, name):
    """Say whether a library has an algorithm."""
    if library == "asyncssh":
        pytest.importorskip("asyncssh", reason="asyncssh is not installed")
        encryption, kex, mac = (
            importlib.import_module(f"asyncssh.{part}") for part in ("encryption", "kex", "mac")
        )
        known = (*encryption.get_encryption_algs(), *kex.get_kex_algs(), *mac.get_mac_algs())
        return name.encode() in known
    transport = pytest.importorskip("paramiko", reason="paramiko is not installed").Transport
    return name in (*transport._kex_info, *transport._cipher_info, *transport._mac_info)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("kex", SERVER_KEX)
@pytest.mark.parametrize("library", ["asyncssh", "paramiko"])
def test_libraries_with_our_server_kex(serve_libraries, echo_port, library, kex):
    if not knows(library, kex):
        pytest.skip(f"{library} has no {kex}")
    CLIENTS[library](Login(serve_libraries, echo_port, serve_libraries.keys.user, kex=kex))


@pytest.mark.parametrize(("cipher", "mac"), SUITES)
@pytest.mark.parametrize("library", ["asyncssh", "paramiko"])
def test_libraries_with_our_server_cipher(serve_libraries, echo_port, library, cipher, mac):
    for name in (cipher, mac):
        if name and not knows(library, name):
            pytest.skip(f"{library} has no {name}")
    key = serve_libraries.keys.user
    CLIENTS[library](Login(serve_libraries, echo_port, key, cipher=cipher, mac=mac))
