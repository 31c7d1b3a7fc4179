"""Makes tests/vectors/*.json; see scripts/record and tests/support/recorded.py."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

from gateway.ssh.algorithms import AEAD_CIPHERS, DEFAULT_CIPHERS, DEFAULT_KEX, DEFAULT_MACS
from tests.support.programs import SSHD_CONFIG, Keys, free_port, make_keys, running
from tests.support.recorded import INPUT, USER_KEY, Recording, ScriptedClient, Suite

ROOT = Path(__file__).parent.parent
VECTORS = ROOT / "tests" / "vectors"
DEADLINE_S = 20.0

SUITES = (
    *(Suite(kex, "aes128-gcm@openssh.com", "") for kex in DEFAULT_KEX),
    *(Suite("curve25519-sha256", cipher, "") for cipher in AEAD_CIPHERS[1:]),
    *(
        Suite("curve25519-sha256", cipher, mac)
        for cipher in DEFAULT_CIPHERS
        if cipher not in AEAD_CIPHERS
        for mac in DEFAULT_MACS
    ),
)


def record(suite: Suite, port: int) -> Recording:
    client = ScriptedClient(suite)
    recording = Recording(suite)
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as sock:
        said = client.hear(b"")
        recording.steps.append((b"", said))
        sock.sendall(said)
        while not client.is_done:
            heard = sock.recv(65536)
            if not heard:
                raise SystemExit(f"record: sshd ended {suite.name} too early")
            said = client.hear(heard)
            recording.steps.append((heard, said))
            sock.sendall(said)
    if client.output != b"recorded" + INPUT or client.key_exchanges < 3:
        found = f"{len(client.output)} bytes back, {client.key_exchanges} key exchanges"
        raise SystemExit(f"record: {suite.name} did not go as planned: {found}")
    recording.server = client.protocol.transport.peer_version.decode()
    return recording


def main() -> None:
    made = subprocess.run(
        [ROOT / "scripts" / "newest-peers"], stdout=subprocess.PIPE, text=True, check=False
    )
    if made.returncode:
        sys.exit(made.returncode)
    peers = Path(made.stdout.strip())
    folder = peers / "record"
    shutil.rmtree(folder, ignore_errors=True)
    keys = make_keys(folder)
    keys.authorized.write_text(USER_KEY.public.openssh_text() + "\n")
    port = free_port()
    extra = f"KexAlgorithms {','.join(DEFAULT_KEX)}\nMACs {','.join(DEFAULT_MACS)}\n"
    inside = Keys(Path("/record"))
    (folder / "config").write_text(SSHD_CONFIG.format(port=port, keys=inside, extra=extra))
    VECTORS.mkdir(exist_ok=True)
    try:
        command = ["chroot", str(peers), "/usr/sbin/sshd", "-D", "-e", "-f", "/record/config"]
        with running(*command) as sshd:
            sshd.wait_line("Server listening")
            for suite in SUITES:
                recording = record(suite, port)
                recording.save(VECTORS / f"{suite.name}.json")
                print(f"{suite.name}: {len(recording.steps)} steps, {recording.server}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
