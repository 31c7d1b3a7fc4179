"""What `gateway connect` refuses, as ssh does: exit status 255, and one sentence that says why."""

from __future__ import annotations

import pytest

from tests.interop.targets import need
from tests.support.programs import (
    GATEWAY,
    USER,
    OpenSSH,
    Terminal,
    make_keys,
    run_gateway,
    running_sshd,
)

HOST = f"{USER}@127.0.0.1"


class Place:
    """A folder with a server's keys and a CA, and `gateway connect` to that server."""

    def __init__(self, folder):
        self.folder = folder
        self.keys = make_keys(folder)
        self.openssh = OpenSSH(folder)
        self.ca = folder / "ca"
        self.openssh.keygen("-q", "-t", "ed25519", "-N", "", "-f", self.ca)

    def replace(self, path, *options):
        """Make another key in place of one of ours."""
        path.unlink()
        path.with_suffix(".pub").unlink()
        self.openssh.keygen("-q", *options, "-N", "", "-f", path)

    def certify(self, *options):
        """Sign the host key; return the line for sshd_config."""
        public = self.keys.host.with_suffix(".pub")
        self.openssh.keygen("-q", "-s", self.ca, "-I", "host", "-h", *options, public)
        return f"HostCertificate {self.keys.host}-cert.pub\n"

    def public(self, path):
        return path.with_suffix(".pub").read_text()

    def trust(self, server, *lines):
        """Write known_hosts: each line is a marker and a key file."""
        text = [f"{marker} [127.0.0.1]:{server.port} {self.public(path)}" for marker, path in lines]
        self.keys.known_hosts.write_text("".join(line.lstrip() for line in text))

    def options(self, server, *settings):
        return [
            "connect", "-F", "none", "-p", str(server.port), "-i", str(self.keys.user),
            *(f"-o{text}" for text in settings),
            "-oIdentitiesOnly=yes", f"-oUserKnownHostsFile={self.keys.known_hosts}",
            "-oGlobalKnownHostsFile=none", "-oStrictHostKeyChecking=yes", HOST, "echo", "in",
        ]  # fmt: skip

    def connect(self, server, *settings):
        return run_gateway(*self.options(server, *settings))

    def refused(self, server, *settings):
        """Fail to connect; return the one line that is said."""
        result = self.connect(server, *settings)
        assert (result.returncode, result.stdout) == (255, ""), result
        lines = [line for line in result.stderr.splitlines() if "post-quantum" not in line]
        assert len(lines) == 1, result.stderr
        return lines[0]


@pytest.fixture
def place(tmp_path):
    need("sshd")
    return Place(tmp_path / "place")


# -- keys that are too short -----------------------------------------------------------------------


def test_a_host_key_of_1024_bits(place):
    place.replace(place.keys.host, "-t", "rsa", "-b", "1024")
    with running_sshd(place.keys) as server:
        place.trust(server, ("", place.keys.host))
        sentence = place.refused(server)
    assert "1024" in sentence
    assert "RSA" in sentence


def test_a_user_key_of_1024_bits(place):
    place.replace(place.keys.user, "-t", "rsa", "-b", "1024")
    place.keys.authorized.write_text(place.public(place.keys.user))
    with running_sshd(place.keys) as server:
        place.trust(server, ("", place.keys.host))
        result = place.connect(server)
    assert (result.returncode, result.stdout) == (255, "")
    sentence = f"{place.keys.user}: an RSA key of 1024 bits is too short: 2048 are the least"
    assert sentence in result.stderr.splitlines()[-1]


def test_a_user_key_shorter_than_the_user_asks_for(place):
    place.replace(place.keys.user, "-t", "rsa", "-b", "2048")
    place.keys.authorized.write_text(place.public(place.keys.user))
    with running_sshd(place.keys) as server:
        place.trust(server, ("", place.keys.host))
        assert place.connect(server).stdout == "in\n"
        sentence = place.refused(server, "RequiredRSASize=3072")
    assert "2048" in sentence


# -- servers that have only SHA-1, or worse --------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "what", "name"),
    [
        ("HostKeyAlgorithms ssh-rsa", "host key algorithm", "ssh-rsa"),
        ("KexAlgorithms diffie-hellman-group1-sha1", "key exchange method", "group1-sha1"),
        ("KexAlgorithms diffie-hellman-group14-sha1", "key exchange method", "group14-sha1"),
        ("Ciphers aes128-ctr\nMACs hmac-sha1", "MAC", "hmac-sha1"),
        ("Ciphers aes128-cbc", "cipher", "aes128-cbc"),
    ],
)
def test_a_server_that_has_nothing_good(place, setting, what, name):
    place.replace(place.keys.host, "-t", "rsa", "-b", "2048")
    with running_sshd(place.keys, setting) as server:
        place.trust(server, ("", place.keys.host))
        sentence = place.refused(server)
    assert f"no {what} in common" in sentence
    assert name in sentence


# -- the passphrase --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["RFC4716", "PKCS8"])
def test_a_wrong_passphrase(place, form):
    if form != "RFC4716":  # ssh-keygen writes no ed25519 there
        place.replace(place.keys.user, "-t", "ecdsa")
        place.keys.authorized.write_text(place.public(place.keys.user))
    options = [] if form == "RFC4716" else ["-m", form]
    place.openssh.keygen(
        "-q", "-p", *options, "-P", "", "-N", "correct horse", "-f", place.keys.user
    )
    with running_sshd(place.keys) as server:
        place.trust(server, ("", place.keys.host))
        command = [*GATEWAY, *place.options(server, "NumberOfPasswordPrompts=1")]
        for passphrase, status, shown in (
            ("wrong horse", 255, "the passphrase is wrong"),
            ("correct horse", 0, "in\n"),
        ):
            with Terminal(*command) as terminal:
                terminal.expect("Enter passphrase for key")
                terminal.type(passphrase)
                terminal.expect(shown)
                assert terminal.wait() == status
                assert "Traceback" not in terminal.shown


# -- host certificates -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-n", "127.0.0.1", "-V", "-2d:-1d"], "has expired"),
        (["-n", "127.0.0.1", "-V", "+1d:+2d"], "is not valid yet"),
        (["-n", "another.example.com"], "not for 127.0.0.1"),
        ([], "is for nobody"),
    ],
)
def test_a_host_certificate_that_does_not_count(place, options, reason):
    with running_sshd(place.keys, place.certify(*options)) as server:
        place.trust(server, ("@cert-authority", place.ca))
        sentence = place.refused(server)
    assert reason in sentence


def test_a_host_certificate_of_another_authority(place):
    other = place.folder / "other"
    place.openssh.keygen("-q", "-t", "ed25519", "-N", "", "-f", other)
    with running_sshd(place.keys, place.certify("-n", "127.0.0.1")) as server:
        place.trust(server, ("@cert-authority", place.ca))
        assert place.connect(server).stdout == "in\n"
        place.trust(server, ("@cert-authority", other))
        sentence = place.refused(server)
    assert "StrictHostKeyChecking is yes" in sentence


# -- what is revoked -------------------------------------------------------------------------------


@pytest.mark.parametrize("certified", [False, True], ids=["plain", "certificate"])
@pytest.mark.parametrize("how", ["@revoked", "RevokedHostKeys"])
def test_a_revoked_host_key(place, how, certified):
    revoked(place, how, place.keys.host, certified=certified)


@pytest.mark.parametrize("how", ["@revoked", "RevokedHostKeys"])
def test_a_revoked_authority(place, how):
    revoked(place, how, place.ca, certified=True)


def revoked(place, how, path, *, certified):
    extra = place.certify("-n", "127.0.0.1") if certified else ""
    trusted = ("@cert-authority", place.ca) if certified else ("", place.keys.host)
    with running_sshd(place.keys, extra) as server:
        place.trust(server, trusted)
        if how == "@revoked":
            place.trust(server, trusted, (how, path))
            sentence = place.refused(server)
            assert f"{place.keys.known_hosts}:2" in sentence
        else:
            listed = place.folder / "revoked"
            listed.write_text(place.public(path))
            sentence = place.refused(server, f"RevokedHostKeys={listed}")
            assert f"RevokedHostKeys {listed}" in sentence
    assert "revoked" in sentence.lower()


def test_the_authority_of_a_user_certificate_that_the_server_revoked(place):
    place.keys.authorized.write_text("")
    public = place.keys.user.with_suffix(".pub")
    place.openssh.keygen("-q", "-s", place.ca, "-I", "me", "-n", USER, public)
    listed = place.folder / "revoked"
    listed.write_text("")
    extra = f"TrustedUserCAKeys {place.ca}.pub\nRevokedKeys {listed}\n"
    with running_sshd(place.keys, extra) as server:
        place.trust(server, ("", place.keys.host))
        assert place.connect(server).stdout == "in\n"
        listed.write_text(place.public(place.ca))
        sentence = place.refused(server)
    assert "refused the login" in sentence
