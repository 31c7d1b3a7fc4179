"""UpdateHostKeys: the known_hosts files of a trusted server follow what it proves and shows.

Real ssh and ours log in to the same sshd with the same files, and leave the same files.
"""

from __future__ import annotations

import base64
import hmac
import os
import subprocess

import pytest

from tests.interop.targets import need
from tests.support.programs import (
    GATEWAY,
    Terminal,
    client_options,
    free_port,
    make_keys,
    running,
    running_sshd,
)

TYPES = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256")
# The last line about them of either program.
SSH_IS_DONE = (
    "no new or deprecated keys from server|skipping UserKnownHostsFile update|"
    "Removed .* key for host|Adding new key for|disabling UpdateHostkeys"
)
WE_ARE_DONE = (
    "all host keys of the server are recorded|host keys are not updated|: (added|removed) "
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An sshd with a host key of three types, and two keys that it had before."""
    need("sshd")
    keys = make_keys(tmp_path_factory.mktemp("server"))
    extra = []
    for kind, name in (
        ("rsa", "host_rsa"), ("ecdsa", "host_ecdsa"), ("ed25519", "old"), ("rsa", "old_rsa"),
    ):  # fmt: skip
        path = keys.folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path], check=True)
        extra += [f"HostKey {path}"] if name.startswith("host") else []
    with running_sshd(keys, "\n".join(extra)) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_known(server):
    server.keys.known_hosts.unlink(missing_ok=True)


def connect(server, *options):
    return running(
        *GATEWAY, "connect", "-v", "-v", "-N", "-D", str(free_port()), *options,
        *client_options(server), "root@127.0.0.1",
    )  # fmt: skip


def recorded(server):
    lines = server.keys.known_hosts.read_text().splitlines()
    return sorted(line.split()[1] for line in lines)


def know_one_key(server):
    name = f"[127.0.0.1]:{server.port}"
    text = server.keys.host.with_name("host_rsa.pub").read_text()
    server.keys.known_hosts.write_text(f"{name} {text}")


def test_further_keys_of_a_known_server_are_recorded(server):
    know_one_key(server)
    with connect(server, "-o", "UpdateHostKeys=yes") as client:
        client.wait_line("added .*ssh-ed25519")
        client.wait_line("added .*ecdsa-sha2-nistp256")
    assert recorded(server) == sorted(TYPES)
    with connect(server, "-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=yes") as client:
        client.wait_line("all host keys of the server are recorded")
    assert recorded(server) == sorted(TYPES), "nothing twice"


def test_not_for_a_server_that_was_accepted_without_the_user(server):
    """As ssh(1): the first meeting records one key; the next may learn more."""
    with connect(server, "-o", "UpdateHostKeys=yes") as client:
        client.wait_line("SOCKS proxy on")
    assert len(recorded(server)) == 1


@pytest.mark.parametrize("options", [(), ("-o", "UpdateHostKeys=no")], ids=["default", "no"])
def test_not_without_being_asked_where_another_file_is_named(server, options):
    know_one_key(server)
    with connect(server, *options) as client:
        client.wait_line("SOCKS proxy on")
    assert recorded(server) == ["ssh-rsa"]


# -- asking ----------------------------------------------------------------------------------------


def asking(server, tmp_path, options, *words):
    """What asks, in a terminal; until somebody writes into the pipe no session begins."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    return Terminal(
        *GATEWAY, "connect", "-v", "-o", "UpdateHostKeys=ask", "-o", "PermitLocalCommand=yes",
        "-o", f"LocalCommand=read _ <{pipe}", *options, *client_options(server), "root@127.0.0.1",
        *words,
    )  # fmt: skip


@pytest.mark.parametrize("options", [("-t",), ("-T",)])
def test_who_is_asked_answers_before_the_session_begins(server, tmp_path, options):
    """Two that read one terminal would each get some of what is typed."""
    know_one_key(server)
    with asking(server, tmp_path, options, "echo begun; read line; echo got $line") as person:
        person.expect(r"Record that \(yes/no\)\? ")
        (tmp_path / "pipe").write_text("\n")
        with connect(server, "-o", "UpdateHostKeys=no") as other:  # meanwhile it could have begun
            other.wait_line("SOCKS proxy on")
        person.type("yes")
        person.expect("added ecdsa-sha2-nistp256")
        person.expect("begun")
        person.type("more")
        person.expect("got more")
        assert person.wait() == 0
    assert recorded(server) == sorted(TYPES)


# -- side by side with ssh -------------------------------------------------------------------------

ALL = "{name} {rsa}\n{name} {ed25519}\n{name} {ecdsa}\n"
CASES = {
    "nothing to do": ALL,
    "new": "{name} {ed25519}\n",
    "old, and nothing new": ALL + "{name} {old}\n",
    "old, and new": "# mine\n\n{name} {old}\n  {name} {ed25519} a comment\nother {other}\n",
    "two old": "{name} {old} gone\n{name} {old_rsa}\n{name} {ed25519}\n",
    "old twice": "{name} {old}\n{name} {old}\n" + ALL,
    "no newline at the end": "{name} {ed25519}\n{name} {old}",
    "no newline after the last good line": "{name} {old}\n{name} {ed25519}",
    "a line that cannot be read": "{name} nonsense\n{name} ssh-rsa AAAA\n{name} {ed25519}\n",
    "a key of an unknown type": "{name} ssh-unknown AAAAC3NzaC11bmtub3du\n{name} {ed25519}\n",
    "with its address": "{name},192.0.2.1 {ed25519}\n{name} {old}\n",
    "old with its address": "{name} {ed25519}\n{name},192.0.2.1 {old}\n",
    "three names": "{name},other,192.0.2.1 {ed25519}\n{name} {old}\n",
    "old with three names": "{name} {ed25519}\n{name},other,192.0.2.1 {old}\n",
    "wildcard": "[127.0.0.?]:{port} {ed25519}\n{name} {old}\n",
    "old with a wildcard": "{name} {ed25519}\n[127.0.0.*]:{port} {old}\n",
    "negated": "{name} {ed25519}\n!{name},* {old}\n",
    "revoked": "{name} {ed25519}\n@revoked {name} {old}\n",
    "revoked for others": "{name} {ed25519}\n@revoked other {old}\n",
    "CA": "{name} {ed25519}\n@cert-authority {name} {old}\n",
    "CA of others": "{name} {ed25519}\n{name} {old_rsa}\n@cert-authority other {old}\n",
    "old under another name": "{name} {ed25519}\n{name} {old}\nother {old}\n",
    "old under the name without the port": "{name} {ed25519}\n{name} {old}\n127.0.0.1 {old}\n",
    "a key under another name": "{name} {ed25519}\n{name} {old}\nother {ed25519}\n",
    "a new key under another name": "{name} {ed25519}\nother {rsa}\n",
    "hashed": "{hashed} {old}\n{hashed} {ed25519}\n",
    "hashed, and under another name": "{hashed} {ed25519}\n{hashed} {old}\n{hashed_other} {old}\n",
    "only under the name without the port": "127.0.0.1 {ed25519}\n",
    "unknown server": "other {other}\n",
}  # fmt: skip
OPTIONS = {
    "host key algorithms": ("{name} {rsa}\n{name} {ecdsa}\n", ["HostKeyAlgorithms=rsa-sha2-512"]),
    "alias": ("alias {ed25519}\nalias {old}\n", ["HostKeyAlias=alias"]),
}
SECOND_FILES = {
    "old in the second": ("{name} {ed25519}\n", "{name} {old}\nother {other}\n"),
    "old in both": (ALL + "{name} {old}\n", "{name} {old}\n"),
    "under another name in the second": ("{name} {ed25519}\n{name} {old}\n", "other {old}\n"),
}


@pytest.fixture(scope="module")
def words(server, tmp_path_factory):
    """What stands for names and keys in the texts above."""
    keys, name = server.keys, f"[127.0.0.1]:{server.port}"
    other = make_keys(tmp_path_factory.mktemp("other")).host
    files = {
        "rsa": keys.folder / "host_rsa", "ecdsa": keys.folder / "host_ecdsa", "ed25519": keys.host,
        "old": keys.folder / "old", "old_rsa": keys.folder / "old_rsa", "other": other,
    }  # fmt: skip
    public = {
        word: " ".join(path.with_suffix(".pub").read_text().split()[:2])
        for word, path in files.items()
    }
    hashed = {word: hash_name(keys.folder, text) for word, text in
              (("hashed", name), ("hashed_other", "other"))}  # fmt: skip
    return {"name": name, "port": server.port, **hashed, **public}


def hash_name(folder, name):
    """Let ssh-keygen hash a name."""
    file = folder / "to_hash"
    file.write_text(f"{name} {(folder / 'host_rsa.pub').read_text()}")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    return file.read_text().split()[0]


def files_after(server, folder, texts, program, *options):
    """Log in with copies of the files, until the program has said what it does with them."""
    folder.mkdir()
    files = [folder / f"known_hosts{number}" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    names = " ".join(map(str, files))
    arguments = [
        "-v", "-v", "-v", "-N", "-o", f"UserKnownHostsFile={names}",
        *(word for option in options for word in ("-o", option)),
        "-o", "UpdateHostKeys=yes", *client_options(server), "root@127.0.0.1",
    ]  # fmt: skip
    if program == "ssh":
        command, done = ["ssh", *arguments], SSH_IS_DONE
    else:
        command = [*GATEWAY, "connect", "-D", str(free_port()), *arguments]
        done = WE_ARE_DONE
    with running(*command) as running_program:
        running_program.wait_line(done)
    return [file.read_text() for file in files]


def side_by_side(server, tmp_path, words, texts, *options):
    """Return what ssh and ours leave of the same files."""
    texts = [text.format(**words) for text in texts]
    theirs = files_after(server, tmp_path / "ssh", texts, "ssh", *options)
    return files_after(server, tmp_path / "gateway", texts, "gateway", *options), theirs


@pytest.mark.parametrize("case", CASES)
def test_ssh_leaves_the_same_file(server, tmp_path, words, case):
    ours, theirs = side_by_side(server, tmp_path, words, [CASES[case]])
    assert ours == theirs


@pytest.mark.parametrize("case", OPTIONS)
def test_ssh_leaves_the_same_file_with(server, tmp_path, words, case):
    text, options = OPTIONS[case]
    ours, theirs = side_by_side(server, tmp_path, words, [text], *options)
    assert ours == theirs


@pytest.mark.parametrize("case", SECOND_FILES)
def test_ssh_leaves_the_same_two_files(server, tmp_path, words, case):
    ours, theirs = side_by_side(server, tmp_path, words, SECOND_FILES[case])
    assert ours == theirs


def test_new_lines_are_hashed_if_that_is_configured(server, tmp_path, words):
    text = "{name} {ed25519}\n{name} {old}\n"
    files = side_by_side(server, tmp_path, words, [text], "HashKnownHosts=yes")
    found = []
    for (content,) in files:
        first, *rest = content.splitlines()
        assert first == "{name} {ed25519}".format(**words)
        assert all(is_hash_of(line.split()[0], words["name"]) for line in rest)
        found.append([line.split(" ", 1)[1] for line in rest])
    assert found[0] == found[1] == [words["rsa"], words["ecdsa"]]


def is_hash_of(text, name):
    _, magic, salt, digest = text.split("|")
    assert magic == "1"
    wanted = hmac.digest(base64.b64decode(salt), name.encode(), "sha1")
    return base64.b64decode(digest) == wanted


def test_the_file_keeps_its_mode_and_its_link_and_what_it_was(server, tmp_path, words):
    file, link = tmp_path / "file", tmp_path / "link"
    text = "{name} {ed25519}\n{name} {old}\n".format(**words)
    file.write_text(text)
    file.chmod(0o640)
    link.symlink_to(file)
    with connect(server, "-o", "UpdateHostKeys=yes", "-o", f"UserKnownHostsFile={link}") as client:
        client.wait_line("removed ssh-ed25519 ")
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert words["old"] not in file.read_text()
    assert (tmp_path / "file.old").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "file.old", "link"]
