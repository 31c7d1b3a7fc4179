"""Keys and certificates of every type against the stock programs.

ssh-keygen makes keys, certificates and signatures; ssh, with `sshd -i` as its ProxyCommand, says
which host certificates it trusts.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gateway.ssh.certificates import (
    Certificate,
    CertificateError,
    CertificateKind,
    check_for_host,
    check_for_user,
    parse_certificate_untrusted,
    parse_public_key_file_untrusted,
    with_certificate,
)
from gateway.ssh.keyfiles import parse_private_key_file_untrusted
from gateway.ssh.keys import PublicKeyError, parse_public_key_untrusted
from gateway.ssh.keytypes import certificate_name
from gateway.ssh.known_hosts import KnownHosts, Marker, Status
from gateway.ssh.wire import Reader, string
from tests.support.programs import sshd_path

pytestmark = pytest.mark.interop

TYPES = {
    "ssh-ed25519": ("-t", "ed25519"),
    "ecdsa-sha2-nistp256": ("-t", "ecdsa", "-b", "256"),
    "ecdsa-sha2-nistp384": ("-t", "ecdsa", "-b", "384"),
    "ecdsa-sha2-nistp521": ("-t", "ecdsa", "-b", "521"),
    "ssh-rsa": ("-t", "rsa", "-b", "2048"),
}
NOW = 1_800_000_000  # in January 2027
VALID = "20200101000000Z:20990101000000Z"


def keygen(*arguments, stdin=subprocess.DEVNULL):
    program = shutil.which("ssh-keygen")
    assert program, "ssh-keygen is needed"
    done = subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        check=False,
        stdin=stdin,
        env={**os.environ, "TZ": "UTC"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A key and a CA of every type."""
    folder = tmp_path_factory.mktemp("keys")
    for name, arguments in TYPES.items():
        keygen("-q", *arguments, "-N", "", "-C", "", "-f", folder / name)
        keygen("-q", *arguments, "-N", "", "-C", "", "-f", folder / f"ca-{name}")
    return folder


def private_key(path):
    return parse_private_key_file_untrusted(path.read_bytes(), str(path)).decrypt()


def public_key(path):
    return parse_public_key_file_untrusted(Path(f"{path}.pub").read_bytes(), str(path))


def sign(folder, name, ca, *arguments):
    """Have ssh-keygen make a certificate; return it."""
    copy = folder / f"copy-{name}.pub"
    shutil.copy(folder / f"{name}.pub", copy)
    keygen("-q", "-s", folder / f"ca-{ca}", *arguments, copy)
    made = folder / f"copy-{name}-cert.pub"
    certificate = parse_public_key_file_untrusted(made.read_bytes(), str(made))
    assert isinstance(certificate, Certificate)
    return certificate


@pytest.mark.parametrize("name", TYPES)
def test_signatures_of_ssh_keygen(folder, tmp_path, name):
    """PROTOCOL.sshsig wraps an ordinary signature blob."""
    (tmp_path / "message").write_bytes(b"message")
    keygen("-Y", "sign", "-n", "file", "-f", folder / name, tmp_path / "message")
    lines = (tmp_path / "message.sig").read_bytes().splitlines()[1:-1]
    fields = Reader(base64.b64decode(b"".join(lines)))
    assert fields.take(6) == b"SSHSIG"
    fields.uint32()
    key = parse_public_key_untrusted(fields.string())
    assert key == private_key(folder / name).public
    fields.string()
    fields.string()
    hash_name = fields.string()
    assert hash_name == b"sha512"
    digest = subprocess.run(
        ["sha512sum"], input=b"message", capture_output=True, check=True
    ).stdout.split()[0]
    signed = b"SSHSIG" + string(b"file") + string(b"") + string(hash_name)
    signed += string(bytes.fromhex(digest.decode()))
    signature = fields.string()
    key.verify(signature, signed)
    key.verify(signature, signed, key.signature_algorithms[0])


@pytest.mark.parametrize("ca", TYPES)
@pytest.mark.parametrize("name", TYPES)
def test_host_certificates(folder, name, ca):
    certificate = sign(
        folder, name, ca, "-h", "-I", "the host", "-z", "42", "-V", VALID,
        "-n", "host,*.example.com",
    )  # fmt: skip
    assert certificate.algorithm == certificate_name(name)
    assert certificate.key == public_key(folder / name)
    assert certificate.ca_key == public_key(folder / f"ca-{ca}")
    assert certificate.kind is CertificateKind.HOST
    assert (certificate.key_id, certificate.serial) == ("the host", 42)
    assert certificate.principals == ("host", "*.example.com")
    assert (certificate.valid_after, certificate.valid_before) == (1577836800, 4070908800)
    check_for_host(certificate, "host", NOW)
    check_for_host(certificate, "a.example.com", NOW)
    with pytest.raises(CertificateError, match="not for other"):
        check_for_host(certificate, "other", NOW)
    with pytest.raises(CertificateError, match="has expired"):
        check_for_host(certificate, "host", 4070908800)
    with pytest.raises(CertificateError, match="is not valid yet"):
        check_for_host(certificate, "host", 1577836799)
    certified = with_certificate(private_key(folder / name), certificate)
    for algorithm in certificate.signature_algorithms:
        certificate.verify(certified.sign(b"data", algorithm), b"data", algorithm)


@pytest.mark.parametrize("name", TYPES)
def test_user_certificates(folder, name):
    certificate = sign(
        folder, name, "ssh-ed25519", "-I", "me", "-n", "alice,bob", "-V", "always:forever",
        "-O", "force-command=true it is", "-O", "source-address=192.0.2.0/24,2001:db8::/32",
        "-O", "no-touch-required", "-O", "verify-required", "-O", "no-x11-forwarding",
    )  # fmt: skip
    allowed = check_for_user(certificate, ("bob",), NOW)
    assert allowed.force_command == "true it is"
    assert allowed.allows_address("192.0.2.9")
    assert allowed.allows_address("2001:db8::9")
    assert not allowed.allows_address("192.0.3.9")
    assert allowed.verification_required
    assert not allowed.touch_required
    assert allowed.port_forwarding
    assert allowed.pty
    clear = sign(folder, name, "ssh-rsa", "-I", "me", "-n", "alice", "-O", "clear")
    allowed = check_for_user(clear, ("alice",), NOW)
    assert not allowed.port_forwarding
    assert allowed.source_addresses is None
    with pytest.raises(CertificateError, match="is not for hosts"):
        check_for_host(clear, "alice", NOW)


def test_a_certificate_without_principals_is_for_nobody(folder):
    user = sign(folder, "ssh-ed25519", "ssh-ed25519", "-I", "me")
    with pytest.raises(CertificateError, match="is for nobody"):
        check_for_user(user, ("alice",), NOW)
    host = sign(folder, "ssh-ed25519", "ssh-ed25519", "-h", "-I", "me")
    with pytest.raises(CertificateError, match="is for nobody"):
        check_for_host(host, "host", NOW)


def test_an_unknown_critical_option(folder):
    certificate = sign(
        folder, "ssh-ed25519", "ssh-ed25519", "-I", "me", "-n", "alice",
        "-O", "critical:unheard-of@example.com=x", "-O", "extension:ignored@example.com=x",
    )  # fmt: skip
    assert certificate.extensions[0][0] == "ignored@example.com"
    with pytest.raises(CertificateError, match=r"critical option unheard-of@example\.com"):
        check_for_user(certificate, ("alice",), NOW)


@pytest.mark.parametrize("name", TYPES)
def test_ssh_keygen_shows_the_same(folder, name):
    certificate = sign(folder, name, name, "-h", "-I", "the host", "-n", "host", "-V", VALID)
    shown = keygen("-L", "-f", folder / f"copy-{name}-cert.pub")
    assert f"Type: {certificate.algorithm} host certificate" in shown
    assert f"Public key: {shown.split('Public key: ')[1].split()[0]} {certificate.fingerprint}" in (
        shown
    )
    assert f"{certificate.ca_key.fingerprint} (using {certificate.ca_signature_algorithm})" in shown


# ---- ssh as the judge of host certificates -------------------------------------

SSHD = sshd_path()


def ssh_says(certificate, port, place, *, root=None, sshd=SSHD):
    """Return what ssh says to a server with the host key of ``place`` and its certificate.

    With ``root`` both run in there, where they see ``place`` at its top.
    """
    seen = f"/{place.name}" if root else place
    server = f"{sshd} -i -f /dev/null -h {seen}/host_key -o UsePAM=no"
    algorithms = (certificate.signature_algorithms[0], certificate.key.signature_algorithms[0])
    options = [
        f"ProxyCommand={server} -o HostCertificate={seen}/host_key-cert.pub",
        f"UserKnownHostsFile={seen}/kh",
        "GlobalKnownHostsFile=none",
        "StrictHostKeyChecking=yes",
        f"HostKeyAlgorithms={','.join(algorithms)}",
        "BatchMode=yes",
        "IdentityFile=none",
        "IdentityAgent=none",
    ]
    command = ["chroot", root, "/usr/bin/ssh"] if root else ["ssh"]
    command += ["-F", "none", "-p", str(port), *(f"-o{option}" for option in options)]
    environment = {**os.environ, "SHELL": "/bin/sh"}
    done = subprocess.run(
        [*command, "nobody@host", "true"], capture_output=True, check=False, env=environment
    )
    return done.stderr.decode()


def compare(folder, place, name, known_hosts, port, arguments, **where):
    """Ask ssh and ourselves about one certificate; authentication starts only after trust."""
    certificate = sign(folder, name, "ecdsa-sha2-nistp384", "-h", "-I", "x", *arguments)
    shutil.copy(folder / name, place / "host_key")
    shutil.copy(folder / f"copy-{name}-cert.pub", place / "host_key-cert.pub")
    text = known_hosts.format(
        ca=certificate.ca_key.openssh_text(), key=certificate.key.openssh_text()
    )
    (place / "kh").write_text(text)
    said = ssh_says(certificate, port, place, **where)
    verdict = KnownHosts.parse([("kh", text)]).lookup("host", port, certificate, NOW)
    if verdict.status is Status.KNOWN:
        assert "Permission denied" in said
        if verdict.entry.marker is Marker.CERT_AUTHORITY:
            assert verdict.key == certificate
        return
    assert "Host key verification failed" in said
    assert ("IDENTIFICATION HAS CHANGED" in said) == (verdict.status is Status.CHANGED)
    assert ("REVOKED HOST KEY" in said) == (verdict.status is Status.REVOKED)


CASES = [
    ("@cert-authority host {ca}\n", 22, ["-n", "host"]),
    ("@cert-authority h* {ca}\n", 22, ["-n", "a,host,b"]),
    ("@cert-authority host {ca}\n", 22, ["-n", "HOST"]),
    ("@cert-authority host {ca}\n", 22, ["-n", "other"]),
    ("@cert-authority host {ca}\n", 22, ["-n", "host", "-V", "20200101:20200102"]),
    ("@cert-authority host {ca}\n", 22, ["-n", "host", "-V", "20980101:20990102"]),
    ("@cert-authority other {ca}\n", 22, ["-n", "host"]),
    ("@cert-authority host {key}\n", 22, ["-n", "host"]),
    ("host {ca}\n", 22, ["-n", "host"]),
    ("host {key}\n", 22, ["-n", "other"]),
    ("@cert-authority host {ca}\nhost {key}\n", 22, ["-n", "other"]),
    ("@cert-authority host {ca}\n@revoked host {ca}\n", 22, ["-n", "host"]),
    ("@cert-authority host {ca}\n@revoked host {key}\n", 22, ["-n", "host"]),
    ("@cert-authority host {ca}\nhost {ca}\n", 22, ["-n", "host"]),
    ("@cert-authority [host]:2222 {ca}\n", 2222, ["-n", "host"]),
    ("@cert-authority host {ca}\n", 2222, ["-n", "host"]),
    ("@cert-authority [host]:2222 {ca}\n", 2222, ["-n", "[host]:2222"]),
]
NEWEST_CASES = [  # before 10.3 ssh saw no wildcards, and took no principals for all of them
    ("@cert-authority host {ca}\n", 22, ["-n", "h?st"]),
    ("@cert-authority host {ca}\n", 22, ["-n", "*"]),
    ("@cert-authority host {ca}\n", 22, ["-n", "*.host"]),
    ("@cert-authority host {ca}\n", 22, []),
]


@pytest.mark.skipif(SSHD is None, reason="no sshd")
@pytest.mark.parametrize(("known_hosts", "port", "arguments"), CASES)
@pytest.mark.parametrize("name", ["ssh-ed25519", "ssh-rsa"])
def test_ssh_trusts_the_same_certificates(folder, tmp_path, name, known_hosts, port, arguments):
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    compare(folder, tmp_path, name, known_hosts, port, arguments)


@pytest.mark.parametrize(("known_hosts", "port", "arguments"), CASES + NEWEST_CASES)
def test_the_newest_ssh_trusts_the_same_certificates(folder, peers, known_hosts, port, arguments):
    place = peers / f"certificates.{os.getpid()}"
    place.mkdir(mode=0o700)
    try:
        compare(
            folder, place, "ecdsa-sha2-nistp256", known_hosts, port, arguments,
            root=peers, sshd="/usr/sbin/sshd",
        )  # fmt: skip
    finally:
        shutil.rmtree(place)


def test_the_certificate_of_a_short_rsa_key(folder, tmp_path):
    keygen("-q", "-t", "rsa", "-b", "1024", "-N", "", "-f", tmp_path / "short")
    keygen("-q", "-s", folder / "ca-ssh-ed25519", "-I", "x", "-n", "x", tmp_path / "short.pub")
    text = (tmp_path / "short-cert.pub").read_text().split()[1]
    with pytest.raises(PublicKeyError, match="an RSA key of 1024 bits is too short"):
        parse_certificate_untrusted(base64.b64decode(text))
