"""Logins with every type of user key and host key, with and without certificates, at sshd."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.programs import (
    GATEWAY,
    client_options,
    make_keys,
    running_sshd,
    sshd_path,
)

TYPES = {
    "ed25519": ["-t", "ed25519"],
    "ecdsa256": ["-t", "ecdsa", "-b", "256"],
    "ecdsa384": ["-t", "ecdsa", "-b", "384"],
    "ecdsa521": ["-t", "ecdsa", "-b", "521"],
    "rsa2048": ["-t", "rsa", "-b", "2048"],
}

pytestmark = pytest.mark.timeout(60)


def keygen(*arguments):
    subprocess.run(["ssh-keygen", "-q", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Keys of every type, a CA, and certificates for users and hosts."""
    if sshd_path() is None:
        pytest.skip("sshd is not installed")
    folder = tmp_path_factory.mktemp("keys")
    keygen("-t", "ed25519", "-N", "", "-f", folder / "ca")
    for name, options in TYPES.items():
        for use, principal, extra in (("user", "root", []), ("host", "127.0.0.1", ["-h"])):
            path = folder / f"{use}_{name}"
            keygen(*options, "-N", "", "-f", path)
            keygen("-s", folder / "ca", "-I", name, "-n", principal, *extra, f"{path}.pub")
    return folder


@pytest.fixture(scope="module")
def by_key(folder, tmp_path_factory):
    """An sshd that takes every plain user key."""
    keys = make_keys(tmp_path_factory.mktemp("sshd"))
    lines = [(folder / f"user_{name}.pub").read_text() for name in TYPES]
    keys.authorized.write_text("".join(lines))
    with running_sshd(keys) as server:
        yield server


@pytest.fixture(scope="module")
def by_certificate(folder, tmp_path_factory):
    """An sshd that takes only what the CA has signed."""
    keys = make_keys(tmp_path_factory.mktemp("sshd"))
    keys.authorized.write_text("")
    with running_sshd(keys, f"TrustedUserCAKeys {folder}/ca.pub") as server:
        yield server


def login(server, *options):
    """Run a command at the far end; the first value of an option wins, so ours come first."""
    shared = client_options(server)
    at = shared.index("-i")
    del shared[at : at + 2]
    return subprocess.run(
        [*GATEWAY, "connect", *map(str, options), *shared, "root@127.0.0.1", "echo in"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_user_keys(by_key, folder, name):
    result = login(by_key, "-i", folder / f"user_{name}")
    assert (result.returncode, result.stdout) == (0, "in\n"), result.stderr


@pytest.mark.parametrize("name", TYPES)
def test_user_certificates_beside_the_key(by_certificate, folder, name):
    """FILE-cert.pub is found by itself."""
    result = login(by_certificate, "-i", folder / f"user_{name}")
    assert (result.returncode, result.stdout) == (0, "in\n"), result.stderr


@pytest.mark.parametrize("name", TYPES)
def test_certificate_file(by_certificate, folder, tmp_path, name):
    key = tmp_path / "id"
    key.write_bytes((folder / f"user_{name}").read_bytes())
    key.chmod(0o600)
    without = login(by_certificate, "-i", key)
    assert without.returncode == 255
    assert "refused the login" in without.stderr
    certificate = folder / f"user_{name}-cert.pub"
    result = login(by_certificate, "-i", key, "-o", f"CertificateFile={certificate}")
    assert (result.returncode, result.stdout) == (0, "in\n"), result.stderr


def test_a_file_that_is_no_certificate(by_certificate, folder):
    result = login(
        by_certificate, "-i", folder / "user_ed25519", "-o", f"CertificateFile={folder}/ca.pub"
    )
    assert result.returncode == 0
    assert "this is a key, not a certificate" in result.stderr


@pytest.mark.parametrize(
    ("options", "name"), [(["-V", "-2d:-1d"], "expired"), (["-n", "somebody"], "other")]
)
def test_certificates_that_the_server_refuses(by_certificate, folder, tmp_path, options, name):
    key = tmp_path / name
    keygen("-t", "ed25519", "-N", "", "-f", key)
    principals = [] if "-n" in options else ["-n", "root"]
    keygen("-s", folder / "ca", "-I", name, *principals, *options, f"{key}.pub")
    result = login(by_certificate, "-i", key)
    assert result.returncode == 255
    assert "refused the login" in result.stderr


@pytest.mark.parametrize("certified", [False, True], ids=["plain", "certificate"])
@pytest.mark.parametrize("name", TYPES)
def test_host_keys(folder, tmp_path, name, certified):
    keys = make_keys(tmp_path / "server")
    host_key = folder / f"host_{name}"
    extra = f"HostCertificate {host_key}-cert.pub" if certified else ""
    keys.host.write_bytes(host_key.read_bytes())
    with running_sshd(keys, extra) as server:
        known = f"[127.0.0.1]:{server.port}"
        if certified:
            line = f"@cert-authority {known} {(folder / 'ca.pub').read_text()}"
        else:
            line = f"{known} {(folder / f'host_{name}.pub').read_text()}"
        keys.known_hosts.write_text(line)
        strict = ("-o", "StrictHostKeyChecking=yes", "-o", "RekeyLimit=16K")
        result = login(server, *strict, "-i", keys.user)
        assert (result.returncode, result.stdout) == (0, "in\n"), result.stderr
        keys.known_hosts.write_text(line.replace("AAAA", "AAAB", 1))
        assert login(server, *strict, "-i", keys.user).returncode == 255


@pytest.mark.parametrize("name", TYPES)
def test_a_changed_host_key_of_each_type(folder, tmp_path, name):
    keys = make_keys(tmp_path / "server")
    keys.host.write_bytes((folder / f"host_{name}").read_bytes())
    with running_sshd(keys) as server:
        other = (folder / f"user_{name}.pub").read_text()
        keys.known_hosts.write_text(f"[127.0.0.1]:{server.port} {other}")
        result = login(server, "-i", keys.user)
    assert result.returncode == 255
    assert "HAS CHANGED" in result.stderr
    assert f"{keys.known_hosts}:1" in result.stderr
