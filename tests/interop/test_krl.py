"""Key revocation lists that ssh-keygen makes: our verdict on every key is that of ssh-keygen -Q."""

from __future__ import annotations

import subprocess

import pytest

from gateway.config.revoked import RevokedKeys
from gateway.errors import ConfigError
from gateway.ssh.certificates import parse_public_key_file_untrusted
from gateway.ssh.krl import MAGIC, parse_krl_untrusted
from tests.support.programs import GATEWAY, client_options, make_keys, running_sshd

PLAIN = {"ed25519": [], "ecdsa": ["-b", "384"], "rsa": ["-b", "2048"]}
CERTIFICATES = {  # the CA, the key ID, the serial number
    "host1": ("ca", "host one", 1),
    "host7": ("ca", "host seven", 7),
    "host150": ("ca", "host one", 150),
    "last": ("ca", "last", (1 << 64) - 1),
    "unnumbered": ("ca", "unnumbered", 0),
    "other7": ("other_ca", "host seven", 7),
}
KEYS = (*PLAIN, *CERTIFICATES)
ODD = "".join(f"serial: {serial}\n" for serial in range(1, 400, 2))
LISTS = {  # the CA of the list, and what it says; {name} is a key, {name_hash} its fingerprint
    "nothing": (None, ""),
    "a key": (None, "key: {ed25519}\n"),
    "keys": (None, "key: {rsa}\nkey: {ecdsa}\n"),
    "SHA1": (None, "sha1: {ecdsa}\n"),
    "SHA256": (None, "sha256: {rsa}\nsha256: {ed25519}\n"),
    "a hash": (None, "hash: {ed25519_hash}\n"),
    "a serial number": ("ca", "serial: 7\n"),
    "serial numbers far from each other": ("ca", "serial: 1\nserial: 18446744073709551615\n"),
    "a range": ("ca", "serial: 100-200\n"),
    "a wide range": ("ca", "serial: 2-9223372036854775807\n"),
    "a bitmap": ("ca", ODD),
    "a bitmap far away": ("ca", "".join(f"serial: {(1 << 64) - n}\n" for n in range(1, 99, 2))),
    "key IDs": ("ca", "id: host one\nid: last\n"),
    "of another CA": ("other_ca", "serial: 7\nid: host one\n"),
    "of every CA": ("none", "serial: 7\nid: unnumbered\n"),
    "everything": ("ca", ODD + "id: unnumbered\nkey: {rsa}\nsha1: {ecdsa}\nsha256: {ed25519}\n"),
    "a CA": (None, "key: {ca}\n"),
    "the hash of a CA": (None, "sha256: {other_ca}\n"),
    "a key that certificates have": (None, "key: {host7}\n"),
}


@pytest.fixture(scope="module")
def folder(openssh):
    """Keys, CAs and certificates; what a list may name of each, by name."""
    folder, keygen = openssh.folder, openssh.keygen
    for name, options in {**PLAIN, "ca": [], "other_ca": []}.items():
        kind = name if name in PLAIN else "ed25519"
        keygen("-q", "-t", kind, *options, "-N", "", "-C", "", "-f", folder / name)
    for name, (ca, key_id, serial) in CERTIFICATES.items():
        keygen("-q", "-t", "ed25519", "-N", "", "-C", "", "-f", folder / "key")
        keygen("-q", "-s", folder / ca, "-I", key_id, "-h", "-n", "127.0.0.1", "-z", str(serial),
               folder / "key.pub")  # fmt: skip
        (folder / "key-cert.pub").rename(folder / f"{name}.pub")
        (folder / "key").rename(folder / name)
        (folder / "key.pub").rename(folder / f"{name}.plain.pub")
    return folder


def make_list(openssh, folder, ca, text, krl):
    """Have ssh-keygen make a list."""
    words = {}
    for path in folder.glob("*.pub"):
        name = path.name.removesuffix(".pub")
        words[name] = path.read_text().strip()
        words[f"{name}_hash"] = openssh.keygen("-l", "-f", path).split()[1]
    specification = folder / "specification"
    specification.write_text(text.format(**words))
    signer = [] if ca is None else ["-s", "none" if ca == "none" else folder / f"{ca}.pub"]
    openssh.keygen("-q", "-k", "-f", krl, *signer, specification)


def says_keygen(openssh, krl, key):
    """Return whether ssh-keygen takes a key for revoked; None if it cannot use the list."""
    seen = [str(openssh.inside(path)) for path in (krl, key)]
    done = subprocess.run(
        openssh.command("ssh-keygen", "-Q", "-f", *seen),
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if "REVOKED" in done.stdout:
        return True
    return None if done.returncode else False


def we_say(krl, key):
    try:
        reason = RevokedKeys([krl]).reason(parse_public_key_file_untrusted(key.read_bytes()))
    except ConfigError:
        return None
    return bool(reason)


@pytest.mark.parametrize("case", LISTS)
def test_the_verdicts_are_those_of_ssh_keygen(openssh, folder, case):
    ca, text = LISTS[case]
    krl = folder / "krl"
    make_list(openssh, folder, ca, text, krl)
    ours = {name: we_say(krl, folder / f"{name}.pub") for name in KEYS}
    theirs = {name: says_keygen(openssh, krl, folder / f"{name}.pub") for name in KEYS}
    assert ours == theirs
    assert None not in ours.values()
    assert any(ours.values()) == (case != "nothing")


def test_every_kind_of_section_was_met(openssh, folder):
    krl = folder / "krl"
    found = []
    for ca, text in LISTS.values():
        make_list(openssh, folder, ca, text, krl)
        found.append(parse_krl_untrusted(krl.read_bytes()))
    certificates = [section for each in found for section in each.certificates]
    for kind in ("keys", "sha1", "sha256"):
        assert any(getattr(each, kind) for each in found), kind
    for kind in ("serials", "ranges", "bitmaps", "key_ids"):
        assert any(getattr(section, kind) for section in certificates), kind


def test_a_list_that_is_cut_off_anywhere(openssh, folder):
    """As for ssh, it revokes nothing or everything, but nobody gets past a half one."""
    krl, cut = folder / "krl", folder / "cut"
    ca, text = "ca", "serial: 7\nserial: 100-200\nid: last\nkey: {ed25519}\nsha1: {ecdsa}\n"
    make_list(openssh, folder, ca, text, krl)
    data = krl.read_bytes()
    for length in range(len(MAGIC), len(data)):
        cut.write_bytes(data[:length])
        key = folder / "ed25519.pub"
        assert we_say(cut, key) == says_keygen(openssh, cut, key), length


def test_a_host_whose_certificate_is_revoked(openssh, folder):
    keys = make_keys(folder / "keys")
    krl = folder / "krl"
    make_list(openssh, folder, "ca", "serial: 100-200\n", krl)
    for name, refused in (("host7", False), ("host150", True)):
        keys.host.write_bytes((folder / name).read_bytes())
        certificate = openssh.inside(folder / f"{name}.pub")
        with running_sshd(keys, f"HostCertificate {certificate}", openssh) as server:
            ca = (folder / "ca.pub").read_text()
            keys.known_hosts.write_text(f"@cert-authority [127.0.0.1]:{server.port} {ca}")
            done = subprocess.run(
                [*GATEWAY, "connect", *client_options(server), "-o", f"RevokedHostKeys={krl}",
                 "root@127.0.0.1", "true"],
                capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=30,
            )  # fmt: skip
        assert (done.returncode == 255) == refused, done.stderr
        assert ("by its serial number 150" in done.stderr) == refused
