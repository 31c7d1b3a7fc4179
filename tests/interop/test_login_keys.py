"""Logins with every type of user key and host key, with and without certificates, at both sshd.

Every login that succeeds moves bytes and changes its keys.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.interop.clients import last_keys
from tests.interop.targets import content
from tests.support.programs import GATEWAY, client_options, make_keys, running_sshd

TYPES = {
    "ed25519": ["-t", "ed25519"],
    "ecdsa256": ["-t", "ecdsa", "-b", "256"],
    "ecdsa384": ["-t", "ecdsa", "-b", "384"],
    "ecdsa521": ["-t", "ecdsa", "-b", "521"],
    "rsa2048": ["-t", "rsa", "-b", "2048"],
}

DATA = content("login keys", 100_000)


@pytest.fixture(scope="module")
def folder(openssh):
    """Keys of every type, a CA, and certificates for users and hosts."""
    keygen, folder = openssh.keygen, openssh.folder
    keygen("-q", "-t", "ed25519", "-N", "", "-f", folder / "ca")
    for name, options in TYPES.items():
        for use, principal, extra in (("user", "root", []), ("host", "127.0.0.1", ["-h"])):
            keygen("-q", *options, "-N", "", "-f", folder / f"{use}_{name}")
            public = folder / f"{use}_{name}.pub"
            keygen("-q", "-s", folder / "ca", "-I", name, "-n", principal, *extra, public)
    return folder


@pytest.fixture(scope="module")
def by_key(openssh, folder):
    """An sshd that takes every plain user key."""
    keys = make_keys(folder / "by_key")
    lines = [(folder / f"user_{name}.pub").read_text() for name in TYPES]
    keys.authorized.write_text("".join(lines))
    with running_sshd(keys, openssh=openssh) as server:
        yield server


@pytest.fixture(scope="module")
def by_certificate(openssh, folder):
    """An sshd that takes only what the CA has signed."""
    keys = make_keys(folder / "by_certificate")
    keys.authorized.write_text("")
    trusted = f"TrustedUserCAKeys {openssh.inside(folder)}/ca.pub"
    with running_sshd(keys, trusted, openssh) as server:
        yield server


@pytest.fixture
def place(openssh):
    """A folder for one test's files."""
    return Path(tempfile.mkdtemp(dir=openssh.folder))


def login(openssh, server, *options):
    """Send DATA through the far end; the first value of an option wins, so ours come first."""
    shared = client_options(server)
    at = shared.index("-i")
    del shared[at : at + 2]
    return subprocess.run(
        [*GATEWAY, "connect", "-v", "-v", *map(str, options), "-o", "RekeyLimit=16K", *shared,
         "root@127.0.0.1", openssh.cat],
        input=DATA, capture_output=True, check=False, timeout=30,
    )  # fmt: skip


def logs_in(*arguments):
    """Log in with success; return what was said.

    Only bytes make us rekey, so the third keys show that the second have moved some.
    """
    result = login(*arguments)
    assert (result.returncode, result.stdout == DATA) == (0, True), result.stderr
    said = result.stderr.decode()
    assert last_keys(said) > 2
    return said


def refused(*arguments):
    """Log in without success; return what was said."""
    result = login(*arguments)
    assert (result.returncode, result.stdout) == (255, b"")
    return result.stderr.decode()


@pytest.mark.parametrize("name", TYPES)
def test_user_keys(openssh, by_key, folder, name):
    logs_in(openssh, by_key, "-i", folder / f"user_{name}")


@pytest.mark.parametrize("name", TYPES)
def test_user_certificates_beside_the_key(openssh, by_certificate, folder, name):
    """FILE-cert.pub is found by itself."""
    logs_in(openssh, by_certificate, "-i", folder / f"user_{name}")


@pytest.mark.parametrize("openssh", ["debian"], indirect=True)
@pytest.mark.parametrize("name", TYPES)
def test_certificate_file(openssh, by_certificate, folder, place, name):
    key = place / "id"
    key.write_bytes((folder / f"user_{name}").read_bytes())
    key.chmod(0o600)
    assert "refused the login" in refused(openssh, by_certificate, "-i", key)
    certificate = folder / f"user_{name}-cert.pub"
    logs_in(openssh, by_certificate, "-i", key, "-o", f"CertificateFile={certificate}")


@pytest.mark.parametrize("openssh", ["debian"], indirect=True)
def test_a_file_that_is_no_certificate(openssh, by_certificate, folder):
    setting = f"CertificateFile={folder}/ca.pub"
    said = logs_in(openssh, by_certificate, "-i", folder / "user_ed25519", "-o", setting)
    assert "this is a key, not a certificate" in said


@pytest.mark.parametrize(
    ("options", "name"), [(["-V", "-2d:-1d"], "expired"), (["-n", "somebody"], "other")]
)
def test_certificates_that_the_server_refuses(
    openssh, by_certificate, folder, place, options, name
):
    key = place / name
    openssh.keygen("-q", "-t", "ed25519", "-N", "", "-f", key)
    principals = [] if "-n" in options else ["-n", "root"]
    public = place / f"{name}.pub"
    openssh.keygen("-q", "-s", folder / "ca", "-I", name, *principals, *options, public)
    assert "refused the login" in refused(openssh, by_certificate, "-i", key)


@pytest.mark.parametrize("openssh", ["newest"], indirect=True)
def test_signatures_that_the_server_takes_of_this_user_only(openssh, folder, place):
    """It says so in a second EXT_INFO, to clients that take one: ext-info-in-auth@openssh.com."""
    keys = make_keys(place)
    key = folder / "user_rsa2048"
    keys.authorized.write_text(key.with_suffix(".pub").read_text())
    extra = "Match User root\n PubkeyAcceptedAlgorithms rsa-sha2-256\n"
    with running_sshd(keys, extra, openssh, "DEBUG1") as server:
        logs_in(openssh, server, "-i", key)
        log = "\n".join(server.program.lines)
    assert "rsa-sha2-512 not in PubkeyAcceptedAlgorithms" not in log
    assert "Accepted publickey for root" in log


@pytest.mark.parametrize("certified", [False, True], ids=["plain", "certificate"])
@pytest.mark.parametrize("name", TYPES)
def test_host_keys(openssh, folder, place, name, certified):
    keys = make_keys(place)
    host_key = folder / f"host_{name}"
    extra = f"HostCertificate {openssh.inside(host_key)}-cert.pub" if certified else ""
    keys.host.write_bytes(host_key.read_bytes())
    with running_sshd(keys, extra, openssh) as server:
        known = f"[127.0.0.1]:{server.port}"
        if certified:
            line = f"@cert-authority {known} {(folder / 'ca.pub').read_text()}"
        else:
            line = f"{known} {(folder / f'host_{name}.pub').read_text()}"
        keys.known_hosts.write_text(line)
        logs_in(openssh, server, "-o", "StrictHostKeyChecking=yes", "-i", keys.user)


@pytest.mark.parametrize("openssh", ["debian"], indirect=True)
@pytest.mark.parametrize("name", TYPES)
def test_a_changed_host_key_of_each_type(openssh, folder, place, name):
    keys = make_keys(place)
    keys.host.write_bytes((folder / f"host_{name}").read_bytes())
    with running_sshd(keys) as server:
        other = (folder / f"user_{name}.pub").read_text()
        keys.known_hosts.write_text(f"[127.0.0.1]:{server.port} {other}")
        said = refused(openssh, server, "-i", keys.user)
    assert "HAS CHANGED" in said
    assert f"{keys.known_hosts}:1" in said
