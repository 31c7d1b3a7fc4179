"""What is fuzzed: one table, for `scripts/fuzz` and for the test that replays what was kept.

A target takes any bytes and either returns or raises one of the errors that its callers expect.
Everything is deterministic: clocks are numbers, randomness has a seed, keys are always the same.
What no guidance by coverage can get past, a MAC, a signature or a chain of hashes, is out of the
way while a target runs (`Target.bypass`): payloads are fed behind the cipher, and every signature
that can be read is right. What such a check lets through is the subject of other tests.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.errors import ConfigError, ConnectionLost, RemoteProtocolError
from gateway.forward.control import Refused
from gateway.serving.channels import Refused as NotListened
from gateway.socks.upstream import ProxyRefused
from gateway.ssh.certificates import CertificateError
from gateway.ssh.transport import Role
from tests.fuzz import bypasses, files, links, parsers, programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager


@dataclass(frozen=True)
class Target:
    """What takes the bytes, which errors it may raise, where to begin, and what is left out."""

    run: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...] = (RemoteProtocolError,)
    seeds: Callable[[], Iterable[bytes]] = lambda: ()
    bypass: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    longest: int = 1024  # bytes that the fuzzer makes of it

    def __call__(self, data: bytes) -> None:
        """Run it once. What comes out of here is a defect."""
        with contextlib.suppress(*self.allowed):
            self.run(data)


LOST: Final = (RemoteProtocolError, ConnectionLost)
CLIENT, SERVER = Role.CLIENT, Role.SERVER

TARGETS: Final[dict[str, Target]] = {
    # the SSH transport, login and connection, each role
    "identification-client": Target(links.raw(CLIENT), LOST, links.raw_seeds(SERVER), longest=2048),
    "identification-server": Target(links.raw(SERVER), LOST, links.raw_seeds(CLIENT), longest=2048),
    "packets": Target(links.packets, LOST, links.packet_seeds),
    "transport-client": Target(
        links.handshake(CLIENT), LOST, links.handshake_seeds(CLIENT), bypasses.link, 4096
    ),
    "transport-server": Target(
        links.handshake(SERVER), LOST, links.handshake_seeds(SERVER), bypasses.link, 4096
    ),
    "userauth-client": Target(links.login_client, LOST, links.login_client_seeds),
    "userauth-server": Target(
        links.login_server, LOST, links.login_server_seeds, bypasses.signatures
    ),
    "connection-client": Target(
        links.connection(CLIENT), LOST, links.connection_seeds, bypasses.link
    ),
    "connection-server": Target(
        links.connection(SERVER), LOST, links.connection_seeds, bypasses.link
    ),
    "messages": Target(parsers.message, seeds=parsers.message_seeds),
    "hostkeys": Target(parsers.host_keys, seeds=parsers.host_key_seeds),
    "requests": Target(
        programs.requests, (RemoteProtocolError, NotListened), programs.requests_seeds
    ),
    # SOCKS and HTTP
    "socks-server": Target(parsers.socks_server, seeds=parsers.socks_server_seeds),
    "socks-client": Target(
        parsers.upstream, (RemoteProtocolError, ProxyRefused), parsers.upstream_seeds
    ),
    # keys and the files about them
    "authorized-keys": Target(files.authorized_keys, seeds=files.authorized_keys_seeds),
    "known-hosts": Target(files.known_hosts, seeds=files.known_hosts_seeds),
    "private-keys": Target(
        files.private_key, (ConfigError,), files.private_key_seeds, bypasses.slow_passphrases
    ),
    "public-keys": Target(files.public_key, (ConfigError,), files.public_key_seeds),
    "certificates": Target(
        files.certificate,
        (RemoteProtocolError, CertificateError),
        files.certificate_seeds,
        bypasses.signatures,
    ),
    "krl": Target(files.krl, seeds=files.krl_seeds),
    "agent": Target(files.agent, seeds=files.agent_seeds, bypass=bypasses.signatures),
    # configuration
    "ssh-config": Target(
        programs.ssh_config, (ConfigError,), programs.ssh_config_seeds, programs.folder
    ),
    "gateway-toml": Target(
        programs.gateway_toml, (ConfigError,), programs.gateway_toml_seeds, programs.folder
    ),
    # the tunnel
    "tunnel-requests": Target(parsers.tunnel_request, seeds=parsers.tunnel_request_seeds),
    "tunnel-packets": Target(parsers.tunnel_packet, seeds=parsers.tunnel_packet_seeds),
    "virtio": Target(parsers.virtio_record, seeds=parsers.virtio_seeds),
    "tunnel-probe": Target(parsers.probe, seeds=parsers.probe_seeds),
    # other programs of this one
    "control": Target(programs.control, (Refused, ConfigError, ValueError), programs.control_seeds),
    "audit": Target(programs.audit, (), programs.audit_seeds, bypasses.chain, 2048),
}
"""By name."""
