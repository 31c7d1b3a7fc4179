"""The transport layer (RFC 4253): versions, key exchange, rekeying, and the phase table.

THEORY OF OPERATION

A link passes through the phases below, top to bottom; only REKEY goes back to CONNECTION.
``ALLOWED`` says, per phase and role of *this* side, which message numbers the peer may send. It is
the only gate: `gateway.ssh.protocol` looks every packet up in it before anything else happens, and
whatever is not in the table ends the link. Strict key exchange (OpenSSH PROTOCOL §1.10) is nothing
but a smaller set.

    VERSION ─ KEXINIT ─ KEX[_STRICT] ─ NEWKEYS[_STRICT] ─ SERVICE ─ AUTH ─ CONNECTION ─ REKEY ─
    REKEY_NEWKEYS
                                                                              └───────────────────┘

The phase describes what we *receive*. What we *send* during a key exchange is held back elsewhere:
from our KEXINIT on, `packets.Outbound` passes transport messages only, until NEWKEYS was appended
and ``start_cipher`` was called. The two directions switch keys independently of each other: a
client that waits for its user to look at a host key has sent no NEWKEYS yet, while the server's
has arrived.

Rekeying starts when either side has moved the bytes, packets or seconds of its limit (``tick`` and
``rekey_if_due`` look), or when the peer sends KEXINIT. Before the login is done nobody may rekey,
as in OpenSSH. A peer that rekeys without moving data runs out of ``_rekey_tokens``.

The functions follow the order in which the bytes meet them. Time is an argument, ``now_s``,
seconds on any clock that only goes forward.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from gateway import __version__, events
from gateway.errors import LocalProtocolError, RemoteProtocolError, printable
from gateway.ssh import algorithms, kex, messages
from gateway.ssh.certificates import parse_key_or_certificate_untrusted
from gateway.ssh.numbers import Disconnect, Msg
from gateway.ssh.packets import Inbound, Outbound

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.ssh.ciphers import PacketCipher
    from gateway.ssh.keys import PrivateKey


class Role(Enum):
    """Which side this is."""

    __hash__ = object.__hash__  # a key of the table: `Enum`'s own is a Python function

    CLIENT = "client"
    SERVER = "server"


class Phase(Enum):
    """What is expected from the peer next; see the theory of operation."""

    __hash__ = object.__hash__  # a key of the table: `Enum`'s own is a Python function

    VERSION = "version"
    KEXINIT = "kexinit"
    KEX = "kex"
    KEX_STRICT = "kex strict"
    NEWKEYS = "newkeys"
    NEWKEYS_STRICT = "newkeys strict"
    SERVICE = "service"
    AUTH = "auth"
    CONNECTION = "connection"
    REKEY = "rekey"
    REKEY_NEWKEYS = "rekey newkeys"
    CLOSED = "closed"


_DISCONNECT: Final = frozenset((Msg.DISCONNECT,))
_GENERIC: Final = _DISCONNECT | {Msg.IGNORE, Msg.UNIMPLEMENTED, Msg.DEBUG}
_KEX_REPLIES: Final = frozenset((Msg.KEX_ECDH_REPLY, Msg.KEX_DH_GEX_REPLY))
_CHANNELS: Final = frozenset(range(Msg.CHANNEL_OPEN, Msg.CHANNEL_FAILURE + 1))
_GLOBALS: Final = frozenset((Msg.GLOBAL_REQUEST, Msg.REQUEST_SUCCESS, Msg.REQUEST_FAILURE))

CONNECTION: Final = Phase.CONNECTION  # for the hot path: a look-up costs more than comparing

ALLOWED: Final[dict[Phase, dict[Role, frozenset[int]]]] = {
    phase: {Role.CLIENT: frozenset(to_client), Role.SERVER: frozenset(to_server)}
    for phase, to_client, to_server in (
        (Phase.VERSION, (), ()),
        (Phase.KEXINIT, _GENERIC | {Msg.KEXINIT}, _GENERIC | {Msg.KEXINIT}),
        (Phase.KEX, _GENERIC | _KEX_REPLIES, _GENERIC | {Msg.KEX_ECDH_INIT}),
        (Phase.KEX_STRICT, _DISCONNECT | _KEX_REPLIES, _DISCONNECT | {Msg.KEX_ECDH_INIT}),
        (Phase.NEWKEYS, _GENERIC | {Msg.NEWKEYS}, _GENERIC | {Msg.NEWKEYS}),
        (Phase.NEWKEYS_STRICT, _DISCONNECT | {Msg.NEWKEYS}, _DISCONNECT | {Msg.NEWKEYS}),
        (
            Phase.SERVICE,
            _GENERIC | {Msg.SERVICE_ACCEPT, Msg.EXT_INFO},
            _GENERIC | {Msg.SERVICE_REQUEST, Msg.EXT_INFO},
        ),
        (
            Phase.AUTH,
            _GENERIC
            | {Msg.EXT_INFO, Msg.USERAUTH_FAILURE, Msg.USERAUTH_SUCCESS}
            | {Msg.USERAUTH_BANNER, Msg.USERAUTH_PK_OK},
            _GENERIC | {Msg.USERAUTH_REQUEST},
        ),
        (
            Phase.CONNECTION,
            _GENERIC | _GLOBALS | _CHANNELS | {Msg.KEXINIT, Msg.PING, Msg.PONG},
            _GENERIC | _GLOBALS | _CHANNELS | {Msg.KEXINIT, Msg.PING, Msg.PONG},
        ),
        (Phase.REKEY, _GENERIC | _KEX_REPLIES, _GENERIC | {Msg.KEX_ECDH_INIT}),
        (Phase.REKEY_NEWKEYS, _GENERIC | {Msg.NEWKEYS}, _GENERIC | {Msg.NEWKEYS}),
        (Phase.CLOSED, (), ()),
    )
}
"""Message numbers that the peer may send to us in a phase. Everything else ends the link."""

# ---- from the specifications ---------------------------------------------------------------------
MAXIMUM_VERSION_LENGTH: Final = 255  # RFC 4253 §4.2, with CR LF
MAXIMUM_PACKETS_PER_KEY: Final = 1 << 31  # RFC 4344 §3.1, as OpenSSH

SERVER_SIG_ALGS: Final = "server-sig-algs"  # RFC 8308 §3.1
CLIENT_EXTENSIONS: Final = {"ext-info-in-auth@openssh.com": b"0"}
SERVER_EXTENSIONS: Final = {
    SERVER_SIG_ALGS: ",".join(algorithms.PLAIN_KEY_ALGORITHMS).encode(),
    "publickey-hostbound@openssh.com": b"0",
    "ping@openssh.com": b"0",
}

# ---- our own choices -----------------------------------------------------------------------------
VERSION: Final = f"SSH-2.0-gateway_{__version__}".encode()
MAXIMUM_LINE_LENGTH: Final = 1024  # of a line that a server may send before its version
MAXIMUM_PRE_VERSION_LINES: Final = 20
KEX_TIMEOUT_S: Final = 30.0  # a peer that leaves a rekey hanging for longer is gone
REKEY_TOKENS: Final = 64.0  # rekeys that a peer may start at once …
REKEY_TOKENS_PER_SECOND: Final = 1.0  # … regained by waiting …
# … or by moving data. OpenSSH (packet.c, ssh_packet_need_rekeying) compares the bytes of the next
# packet with a limit in blocks, so with RekeyLimit 256K every packet of 32 KiB brings new keys.
BYTES_PER_REKEY_TOKEN: Final = 24 * 1024


@dataclass(frozen=True, slots=True)
class RekeyLimit:
    """When we ask for new keys, per direction; None leaves it to the cipher, or is never."""

    bytes: int | None = None
    seconds: float | None = None
    packets: int = MAXIMUM_PACKETS_PER_KEY


class Transport:
    """One side's transport layer. `gateway.ssh.protocol` feeds it messages 1-4, 7 and 20-49."""

    def __init__(
        self,
        role: Role,
        *,
        preferences: algorithms.Preferences,
        host_keys: tuple[PrivateKey, ...],
        rekey_limit: RekeyLimit,
        randbytes: Callable[[int], bytes],
        emit: Callable[[events.Event], None],
        now_s: float,
    ) -> None:
        self.role = role
        self.phase = Phase.VERSION
        self.inbound = Inbound()
        self.outbound = Outbound(randbytes)
        self.session_id = b""
        self.strict = False
        self.peer_version = b""
        self.explained = ""  # by the peer's last DEBUG message, as sshd and we do before a refusal
        self.peer_extensions: dict[str, bytes] = {}
        self.host_key_blob = b""
        self.chosen: algorithms.Chosen | None = None
        self._offers: tuple[tuple[str, ...], ...] = ()  # of the client, until the event
        self._preferences = preferences
        self._host_keys = {
            name: key for key in host_keys for name in key.public.signature_algorithms
        }
        self._rekey_limit = rekey_limit
        self._randbytes = randbytes
        self._emit = emit
        self._pre_version_lines = 0
        self._kex_count = 0
        self._kex_started_s: float | None = now_s
        self._keys_since_s = now_s
        self._local_kexinit: bytes | None = None
        self._remote_kexinit = b""
        self._method: kex.Method | None = None
        self._material: kex.KeyMaterial | None = None
        self._newkeys_sent = False
        self._newkeys_received = False
        self._ignore_next_kex_packet = False
        self._peer_takes_extensions = False
        self._extensions_received = 0
        self._rekey_tokens = REKEY_TOKENS
        self._tokens_at = (now_s, 0)
        self.outbound.append_raw(VERSION + b"\r\n")
        self._send_kexinit(now_s)

    # -- identification strings (RFC 4253 §4.2) ----------------------------------------------------

    def receive_version(self) -> bool:
        """Look for the peer's version line in what has arrived; say whether it was there."""
        while (line := self.inbound.take_line(MAXIMUM_LINE_LENGTH)) is not None:
            line = line.removesuffix(b"\r")
            if line.startswith(b"SSH-"):
                self._check_version_untrusted(line)
                return True
            self._pre_version_lines += 1
            if self.role is Role.SERVER or self._pre_version_lines > MAXIMUM_PRE_VERSION_LINES:
                raise RemoteProtocolError(
                    f"the peer does not speak SSH: it says {printable(line, 80)!r}",
                    Disconnect.PROTOCOL_VERSION_NOT_SUPPORTED,
                )
        return False

    def _check_version_untrusted(self, line: bytes) -> None:
        if len(line) > MAXIMUM_VERSION_LENGTH - 2 or not line.startswith(
            (b"SSH-2.0-", b"SSH-1.99-")
        ):
            raise RemoteProtocolError(
                f"the peer's SSH version is not 2.0: {printable(line, 80)!r}",
                Disconnect.PROTOCOL_VERSION_NOT_SUPPORTED,
            )
        if any(not 0x20 <= byte < 0x7F for byte in line):
            raise RemoteProtocolError(
                f"the peer's version is not printable ASCII: {printable(line, 80)!r}"
            )
        self.peer_version = line
        self.phase = Phase.KEXINIT
        self._emit(events.VersionReceived(line.decode("ascii")))

    # -- KEXINIT (RFC 4253 §7.1) -------------------------------------------------------------------

    @property
    def kex_is_running(self) -> bool:
        """Whether our KEXINIT was sent and the exchange is not finished in both directions."""
        return self._local_kexinit is not None

    def _send_kexinit(self, now_s: float) -> None:
        first = self._kex_count == 0
        client = self.role is Role.CLIENT
        markers: tuple[str, ...] = ()
        if first:
            markers = (
                (algorithms.EXT_INFO_C, algorithms.STRICT_C)
                if client
                else (algorithms.EXT_INFO_S, algorithms.STRICT_S)
            )
        host_key = self._preferences.host_key
        if not client:
            host_key = tuple(name for name in host_key if name in self._host_keys)
        message = messages.KexInit(
            self._randbytes(16),
            self._preferences.kex + markers,
            host_key,
            self._preferences.ciphers,
            self._preferences.ciphers,
            self._preferences.macs,
            self._preferences.macs,
            algorithms.COMPRESSION,
            algorithms.COMPRESSION,
        )
        self._local_kexinit = message.encode()
        self._kex_started_s = now_s
        self.outbound.append_transport(self._local_kexinit)
        self.outbound.start_kex()

    def receive_kexinit(self, payload: bytes, now_s: float) -> None:
        """The peer starts, or joins, a key exchange."""
        peer = messages.KexInit.decode_untrusted(payload)
        first = self._kex_count == 0
        if first:
            self._enter_strict(peer)
            marker = algorithms.EXT_INFO_S if self.role is Role.CLIENT else algorithms.EXT_INFO_C
            self._peer_takes_extensions = marker in peer.kex_algorithms
        elif self._local_kexinit is None:
            self._spend_rekey_token(now_s)
            self._send_kexinit(now_s)
        if self._local_kexinit is None:
            raise LocalProtocolError("no KEXINIT of ours")
        self._remote_kexinit = payload
        local = messages.KexInit.decode_untrusted(self._local_kexinit)
        client, server = (local, peer) if self.role is Role.CLIENT else (peer, local)
        self.chosen = algorithms.negotiate(client, server)
        if self.role is Role.SERVER:
            self._offers = (
                peer.kex_algorithms,
                peer.encryption_algorithms_client_to_server,
                peer.mac_algorithms_client_to_server,
                peer.compression_algorithms_client_to_server,
            )
        self._ignore_next_kex_packet = peer.first_kex_packet_follows and (
            algorithms.guess_was_wrong(client, server)
        )
        self._method = kex.METHODS[self.chosen.kex](self._randbytes)
        if not first:
            self.phase = Phase.REKEY
        else:
            self.phase = Phase.KEX_STRICT if self.strict else Phase.KEX
        if self.role is Role.CLIENT:
            self.outbound.append_transport(self._method.request())

    def _enter_strict(self, peer: messages.KexInit) -> None:
        marker = algorithms.STRICT_S if self.role is Role.CLIENT else algorithms.STRICT_C
        self.strict = marker in peer.kex_algorithms
        # Not by the sequence number, which wraps: 2^32 packets before would make it 1 again.
        if self.strict and self.inbound.packets_since_newkeys != 1:
            raise RemoteProtocolError("strict key exchange: KEXINIT was not the first packet")

    def _spend_rekey_token(self, now_s: float) -> None:
        """Take one token for a rekey that the peer started (hazard: DHEat, CVE-2002-20001)."""
        moved = self.inbound.bytes_total + self.outbound.bytes_total
        then_s, then_moved = self._tokens_at
        self._tokens_at = (now_s, moved)
        self._rekey_tokens = min(
            REKEY_TOKENS,
            self._rekey_tokens
            + (now_s - then_s) * REKEY_TOKENS_PER_SECOND
            + (moved - then_moved) / BYTES_PER_REKEY_TOKEN,
        )
        if self._rekey_tokens < 1:
            raise RemoteProtocolError(
                "the peer exchanges keys again and again without sending data"
            )
        self._rekey_tokens -= 1

    def takes_wrong_guess(self, number: int) -> bool:
        """Say whether this packet is the one that a wrong guess told us to ignore (RFC 4253 §7)."""
        if self._ignore_next_kex_packet and 30 <= number < 50:
            self._ignore_next_kex_packet = False
            return True
        return False

    # -- the exchange (RFC 4253 §8, RFC 5656 §4) -------------------------------------------------

    def receive_kex(self, payload: bytes) -> None:
        """Take a message of 30-49, whose meaning the method decides."""
        if self._method is None or self.chosen is None:
            raise LocalProtocolError("no key exchange is running")
        if self.role is Role.SERVER:
            self._answer_client(self._method, self.chosen, payload)
            return
        answer = self._method.receive_untrusted(payload)
        if isinstance(answer, bytes):
            self.outbound.append_transport(answer)
        else:
            self._check_server(self._method, self.chosen, answer)

    def _answer_client(self, method: kex.Method, chosen: algorithms.Chosen, payload: bytes) -> None:
        """Server: sign our value; our NEWKEYS follows at once."""
        server_value, hashed, k = method.respond_untrusted(payload)
        host_key = self._host_keys[chosen.host_key]
        self.host_key_blob = self.host_key_blob or host_key.public.blob
        exchange_hash = self._hash(method, host_key.public.blob, hashed, k)
        signature = host_key.sign(exchange_hash, chosen.host_key)
        self.outbound.append_transport(
            messages.KexEcdhReply(host_key.public.blob, server_value, signature).encode()
        )
        self._keys_agreed(method, k, exchange_hash)
        self.send_newkeys()

    def _check_server(
        self, method: kex.Method, chosen: algorithms.Chosen, reply: kex.ServerReply
    ) -> None:
        """Client: check the signature; the first time, ask whether the key is trusted."""
        blob = reply.server_host_key
        host_key = parse_key_or_certificate_untrusted(blob)
        if chosen.host_key not in host_key.signature_algorithms:
            raise RemoteProtocolError(
                f"the host key is {host_key.algorithm} where {chosen.host_key} was agreed",
                Disconnect.KEY_EXCHANGE_FAILED,
            )
        if self.host_key_blob and blob != self.host_key_blob:
            raise RemoteProtocolError(
                "the server showed another host key when keys were renewed",
                Disconnect.HOST_KEY_NOT_VERIFIABLE,
            )
        exchange_hash = self._hash(method, blob, reply.hashed, reply.k)
        host_key.verify(reply.signature, exchange_hash, chosen.host_key)
        self._keys_agreed(method, reply.k, exchange_hash)
        if self.host_key_blob:
            self.send_newkeys()
        else:
            self.host_key_blob = blob
            self._emit(events.HostKeyReceived(host_key.algorithm, blob, reply.signature))

    def _hash(self, method: kex.Method, host_key: bytes, hashed: bytes, k: bytes) -> bytes:
        local = self._local_kexinit or b""
        client = self.role is Role.CLIENT
        transcript = kex.Transcript(
            VERSION if client else self.peer_version,
            self.peer_version if client else VERSION,
            local if client else self._remote_kexinit,
            self._remote_kexinit if client else local,
        )
        return transcript.exchange_hash(method.hash_name, host_key, hashed, k)

    def _keys_agreed(self, method: kex.Method, k: bytes, exchange_hash: bytes) -> None:
        self.session_id = self.session_id or exchange_hash
        self._material = kex.KeyMaterial(method.hash_name, k, exchange_hash, self.session_id)
        self._method = None
        if self._kex_count:
            self.phase = Phase.REKEY_NEWKEYS
        else:
            self.phase = Phase.NEWKEYS_STRICT if self.strict else Phase.NEWKEYS

    # -- NEWKEYS (RFC 4253 §7.3) -------------------------------------------------------------------

    def send_newkeys(self) -> None:
        """Switch what we send to the new keys."""
        client = self.role is Role.CLIENT
        self.outbound.append_transport(messages.NewKeys().encode())
        cipher = self._cipher(client_to_server=client)
        self.outbound.start_cipher(cipher, reset_sequence_number=self.strict)
        if self._peer_takes_extensions and not self._kex_count:
            extensions = CLIENT_EXTENSIONS if client else SERVER_EXTENSIONS
            self.outbound.append_transport(messages.ext_info(extensions).encode())
        self._newkeys_sent = True
        self._finish_if_both_switched()

    def receive_newkeys(self, payload: bytes, now_s: float) -> None:
        """Switch what we receive to the new keys."""
        messages.NewKeys.decode_untrusted(payload)
        client = self.role is Role.CLIENT
        cipher = self._cipher(client_to_server=not client)
        self.inbound.start_cipher(cipher, reset_sequence_number=self.strict)
        self._keys_since_s = now_s
        self.phase = Phase.CONNECTION if self._kex_count else Phase.SERVICE
        self._newkeys_received = True
        self._finish_if_both_switched()

    def _cipher(self, *, client_to_server: bool) -> PacketCipher:
        """Return the new cipher of one direction."""
        material, chosen = self._material, self.chosen
        if material is None or chosen is None:
            raise LocalProtocolError("NEWKEYS before keys were agreed")
        if client_to_server:
            names = (chosen.cipher_client_to_server, chosen.mac_client_to_server)
        else:
            names = (chosen.cipher_server_to_client, chosen.mac_server_to_client)
        return material.cipher(*names, client_to_server=client_to_server)

    def _finish_if_both_switched(self) -> None:
        if not (self._newkeys_sent and self._newkeys_received) or self.chosen is None:
            return
        self._newkeys_sent = self._newkeys_received = False
        self._material = None
        self._local_kexinit = None
        self._remote_kexinit = b""
        self._kex_started_s = None
        self._kex_count += 1
        chosen = self.chosen
        offers, self._offers = self._offers, ()
        self._emit(
            events.KeysExchanged(
                self._kex_count,
                chosen.kex,
                chosen.host_key,
                chosen.cipher_client_to_server,
                chosen.cipher_server_to_client,
                chosen.mac_client_to_server,
                chosen.mac_server_to_client,
                self.strict,
                offers,
            )
        )

    # -- rekeying (RFC 4253 §9) --------------------------------------------------------------------

    def start_rekey(self, now_s: float) -> None:
        """Ask for new keys, unless an exchange is running already."""
        if self.phase is not Phase.CONNECTION:
            raise LocalProtocolError(f"no rekeying in phase {self.phase.value}")
        if self._local_kexinit is None:
            self._send_kexinit(now_s)

    def rekey_if_due(self, now_s: float) -> None:
        """Start a rekey if a direction has used its keys for long enough.

        Call once per batch, of what was received and of what is sent.
        """
        if self.phase is not CONNECTION or self._local_kexinit is not None:
            return
        limit = self._rekey_limit
        for direction in (self.outbound, self.inbound):
            most = direction.cipher.rekey_after_bytes
            if limit.bytes is not None and limit.bytes < most:
                most = limit.bytes
            if (
                direction.bytes_since_newkeys >= most
                or direction.packets_since_newkeys >= limit.packets
            ):
                self.start_rekey(now_s)
                return

    def tick(self, now_s: float) -> None:
        """Look at the clock: rekey by time, and give up on an exchange that hangs."""
        if self._kex_started_s is not None and self._kex_count:
            if now_s - self._kex_started_s > KEX_TIMEOUT_S:
                raise RemoteProtocolError(
                    f"the peer left a key exchange unanswered for {KEX_TIMEOUT_S:.0f} s",
                    Disconnect.KEY_EXCHANGE_FAILED,
                )
        elif (
            self.phase is Phase.CONNECTION
            and self._rekey_limit.seconds is not None
            and now_s - self._keys_since_s >= self._rekey_limit.seconds
        ):
            self._send_kexinit(now_s)

    # -- messages 1-4 and 7 ------------------------------------------------------------------------

    def receive_generic(self, payload: bytes) -> None:
        """DISCONNECT, IGNORE, UNIMPLEMENTED, DEBUG, EXT_INFO."""
        match payload[0]:
            case Msg.DISCONNECT:
                message = messages.DisconnectMessage.decode_untrusted(payload)
                self.close()
                self._emit(events.PeerDisconnected(message.reason_code, message.description))
            case Msg.IGNORE:
                messages.Ignore.decode_untrusted(payload)
            case Msg.UNIMPLEMENTED:
                messages.Unimplemented.decode_untrusted(payload)
            case Msg.DEBUG:
                debug = messages.Debug.decode_untrusted(payload)
                self.explained = debug.message
                self._emit(events.DebugReceived(debug.message))
            case _:
                self._receive_ext_info_untrusted(payload)

    def _receive_ext_info_untrusted(self, payload: bytes) -> None:
        """RFC 8308 §2.4: once after NEWKEYS, and from a server once more during the login.

        There it says which signatures it takes of this user (OpenSSH PROTOCOL, ext-info-in-auth).
        """
        most = 2 if self.role is Role.CLIENT and self.phase is Phase.AUTH else 1
        if self._extensions_received >= most:
            raise RemoteProtocolError("EXT_INFO came too often")
        found = messages.extensions_untrusted(messages.ExtInfo.decode_untrusted(payload))
        if self._extensions_received:
            found = {name: value for name, value in found.items() if name == SERVER_SIG_ALGS}
        self._extensions_received += 1
        self.peer_extensions.update(found)

    # -- the end -----------------------------------------------------------------------------------

    def disconnect(self, reason_code: int, description: str) -> None:
        """Say DISCONNECT, if there is room for it; accept nothing more, and send nothing more."""
        if self.phase not in (Phase.VERSION, Phase.CLOSED):
            message = messages.DisconnectMessage(reason_code, description[:200])
            with suppress(RemoteProtocolError):
                self.outbound.append_transport(message.encode())
        self.close()

    def close(self) -> None:
        """Say nothing more, not even goodbye."""
        self.phase = Phase.CLOSED
        self.outbound.close()
