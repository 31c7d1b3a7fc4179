"""Targets that are one side of a link: `Protocol` with bytes, or messages, from nobody.

Where the input is more than a stream, it is a script: one byte that says what happens, one for the
length of what follows (255: two more bytes have it), and that. Anything is such a script, and what
is cut out of one, or put into it, leaves the rest as it was.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from gateway import events
from gateway.errors import RemoteProtocolError
from gateway.ssh import messages
from gateway.ssh.algorithms import Preferences
from gateway.ssh.channel import SendState
from gateway.ssh.ciphers import NoCipher
from gateway.ssh.keys import PrivateKey
from gateway.ssh.numbers import Msg
from gateway.ssh.packets import LANE_HARD_LIMIT, Inbound
from gateway.ssh.protocol import ClientSetup, Protocol, ServerSetup
from gateway.ssh.serverauth import ServerAuth
from gateway.ssh.transport import ALLOWED, Phase, Role
from gateway.ssh.userauth import (
    HOSTBOUND,
    INTERACTIVE,
    PASSWORD,
    PUBLICKEY,
    ClientAuth,
    LoginPreferences,
    signed_data,
)
from gateway.ssh.wire import string
from tests.support.pair import feed, frame, inject, take
from tests.support.wrong_bytes import MESSAGES, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gateway.ssh.keys import PublicKey

HOST_KEY = PrivateKey.generate(lambda length: b"h" * length)
USER_KEY = PrivateKey.generate(lambda length: b"u" * length)
SECOND_KEY = PrivateKey.generate(lambda length: b"2" * length)
# No large groups: with one of them a client computes for 50 ms, which is known and bounded.
KEX = ("mlkem768x25519-sha256", "curve25519-sha256", "ecdh-sha2-nistp256")
CLIENT = ClientSetup(
    "alice",
    (USER_KEY.public, SECOND_KEY.public),
    Preferences(kex=KEX),
    login=LoginPreferences((PUBLICKEY, INTERACTIVE, PASSWORD)),
)


def authorize(_user: str, key: PublicKey) -> int:
    """Two keys log everybody in, together."""
    return 2 if key in (USER_KEY.public, SECOND_KEY.public) else 0


SERVER = ServerSetup((HOST_KEY,), authorize)
SESSION_ID = b"s" * 32
MOST = 0xFFFF  # bytes of one part of a script


# ---- scripts -------------------------------------------------------------------------------------


def script(*parts: tuple[int, bytes]) -> bytes:
    """Write one."""
    written = b""
    for what, body in parts:
        length = bytes((len(body),)) if len(body) < 255 else b"\xff" + len(body).to_bytes(2, "big")
        written += bytes((what,)) + length + body
    return written


def parts_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Read one."""
    at = 0
    while at + 2 <= len(data):
        what, length = data[at], data[at + 1]
        at += 2
        if length == 255:
            length = int.from_bytes(data[at : at + 2], "big")
            at += 2
        yield what, data[at : at + length]
        at += length


def pieces_of(data: bytes) -> Iterator[bytes]:
    """Cut what stands behind the first byte, which says where: into 100 pieces at most."""
    step = max(data[0] + 1 if data else 1, len(data) // 100)
    for at in range(1, len(data), step):
        yield data[at : at + step]


def payloads(*sent: messages.Message | bytes) -> bytes:
    """Write a script of messages."""
    encoded = (item if isinstance(item, bytes) else item.encode() for item in sent)
    return script(*((0, payload) for payload in encoded))


def make(role: Role) -> Protocol:
    """Return a side whose randomness is the same every time."""
    setup = CLIENT if role is Role.CLIENT else SERVER
    return Protocol(setup, 0.0, random.Random(1).randbytes)


def end(protocol: Protocol) -> None:
    """Give it up; nothing of it may stay."""
    protocol.discard()
    assert protocol.outbound._wire is None
    assert protocol.inbound._buffer is None


# ---- streams -------------------------------------------------------------------------------------


def raw(role: Role) -> Callable[[bytes], None]:
    """The first byte says in which pieces the rest of a stream arrives, from its very begin."""

    def run(data: bytes) -> None:
        protocol = make(role)
        try:
            for piece in pieces_of(data):
                feed(protocol, piece)
        except RemoteProtocolError:
            assert protocol.transport.phase is Phase.CLOSED
            raise
        finally:
            end(protocol)

    return run


def raw_seeds(peer: Role) -> Callable[[], Iterable[bytes]]:
    """What the other side says first, and what others do."""

    def seeds() -> Iterator[bytes]:
        protocol = make(peer)
        first = take(protocol)
        protocol.discard()
        version, _, kexinit = first.partition(b"\n")
        yield b"\xff" + first
        yield b"\x00" + first[:60]
        for line in (
            b"SSH-1.99-x\r\n",
            b"SSH-2.0-x\n",
            b"Welcome\r\n\nSSH-2.0-x\r\n",
            b"GET / HTTP",
        ):
            yield b"\x07" + line + kexinit
        yield b"\xff" + version + b"\n" + frame(messages.Ignore(b"x").encode()) + kexinit

    return seeds


def packets(data: bytes) -> None:
    """The same for the layer of packets alone: no more comes out of it than went in."""
    inbound, taken = Inbound(), 0
    try:
        for piece in pieces_of(data):
            inbound.space()[: len(piece)] = piece
            inbound.filled(len(piece))
            while (payload := inbound.next_payload()) is not None:
                assert payload
                taken += len(payload) + 4 + 1 + 4
            inbound.idle()
        assert taken <= max(len(data) - 1, 0)
    finally:
        inbound.discard()
        assert inbound._buffer is None


def packet_seeds() -> Iterator[bytes]:
    yield b"\xff" + frame(b"\x02") + frame(b"\x02" * 100)
    yield b"\x00" + frame(b"\x02", padding=10) + frame(b"\x02" * 12, padding=255)
    for length in (0, 1, 4, 8, 12, 262_144, 262_145, 1 << 31, (1 << 32) - 1):
        yield b"\xff" + length.to_bytes(4, "big") + bytes(20)


# ---- the handshake, message by message -----------------------------------------------------------


def answer(protocol: Protocol) -> None:
    """Do what the owner of a link does about the events of a login."""
    auth = protocol.auth
    while (event := protocol.next_event()) is not None:
        assert repr(event)
        match event:
            case events.HostKeyReceived():
                protocol.accept_host_key()
            case events.SignatureWanted() if isinstance(auth, ClientAuth):
                key = (USER_KEY, SECOND_KEY)[event.identity]
                auth.provide_signature(key.sign(event.data, event.algorithm))
            case events.PasswordWanted() if isinstance(auth, ClientAuth):
                auth.provide_password("secret")
            case events.AnswersWanted() if isinstance(auth, ClientAuth):
                if event.prompts and event.prompts[0].text == "skip":
                    auth.skip_method()
                else:
                    auth.provide_answers(["x"] * len(event.prompts))


def handshake(role: Role) -> Callable[[bytes], None]:
    """A script of messages behind a good version line, in packets that are right.

    What is not 0 at the begin of a part lets time pass first. After NEWKEYS all goes on in clear.
    """

    def run(data: bytes) -> None:
        protocol, now_s = make(role), 0.0
        try:
            feed(protocol, b"SSH-2.0-x\r\n")
            for what, payload in parts_of(data):
                if what:
                    now_s += what
                    protocol.tick(now_s)
                inject(protocol, payload, now_s=now_s)
                answer(protocol)
                take(protocol)
        except RemoteProtocolError:
            assert protocol.transport.phase is Phase.CLOSED
            raise
        finally:
            end(protocol)

    return run


def handshake_seeds(role: Role) -> Callable[[], Iterable[bytes]]:
    """A whole login as a script, one more key exchange in it; and each message by itself."""

    def seeds() -> Iterator[bytes]:
        for kex in KEX:
            yield payloads(*recorded(role, kex))
        start = recorded(role, KEX[1])
        for message in MESSAGES:
            yield payloads(*start[:4], sample(message).encode())
            yield payloads(start[0], sample(message).encode())

    return seeds


def recorded(role: Role, kex: str) -> list[bytes]:
    """Return the payloads that a side gets in a login, and in one more key exchange."""
    randbytes = random.Random(2).randbytes
    offers = Preferences(kex=(kex,))
    sides = {
        Role.CLIENT: Protocol(ClientSetup("alice", CLIENT.identities, offers), 0.0, randbytes),
        Role.SERVER: Protocol(ServerSetup((HOST_KEY,), authorize, offers), 0.0, randbytes),
    }
    seen = sides[role].inbound = sides[role].transport.inbound = Recorder()
    peer = {Role.CLIENT: Role.SERVER, Role.SERVER: Role.CLIENT}
    for _ in range(30):
        for source, target in peer.items():
            feed(sides[target], take(sides[source]))
            answer(sides[target])
            answer(sides[source])
    sides[peer[role]].transport.start_rekey(0.0)
    for _ in range(5):
        for source, target in peer.items():
            feed(sides[target], take(sides[source]))
    for side in sides.values():
        assert side.transport.phase is Phase.CONNECTION
        side.discard()
    return seen.payloads


class Recorder(Inbound):
    """Keeps every payload."""

    __slots__ = ("payloads",)

    def __init__(self) -> None:
        super().__init__()
        self.payloads: list[bytes] = []

    def next_payload(self) -> memoryview | None:
        """See `Inbound`."""
        payload = super().next_payload()
        if payload is not None:
            self.payloads.append(bytes(payload))
        return payload


# ---- the login -----------------------------------------------------------------------------------


def login_server(data: bytes) -> None:
    """Requests to log in, one after the other."""
    sent, told = [], []
    auth = ServerAuth(authorize, send=sent.append, emit=told.append)
    for _, payload in parts_of(data):
        if not payload:
            continue
        if payload[0] == Msg.SERVICE_REQUEST:
            auth.receive_service_request(payload)
        elif auth.receive(payload, SESSION_ID, HOST_KEY.public.blob):
            (done,) = (event for event in told if isinstance(event, events.Authenticated))
            assert done.user_name == auth.user_name
            assert len(auth._signed) == 2
            return
    assert len(sent) <= 1000


def login_server_seeds() -> Iterator[bytes]:
    def request(method: str, fields: bytes, user: str = "alice") -> bytes:
        return messages.UserauthRequest(user, "ssh-connection", method, fields).encode()

    blob, name = USER_KEY.public.blob, "ssh-ed25519"
    start = (messages.ServiceRequest("ssh-userauth").encode(), request("none", b""))
    signed = [
        request(
            PUBLICKEY,
            messages.PublickeyRequest(
                True,
                name,
                key.public.blob,
                key.sign(
                    signed_data(SESSION_ID, "alice", "ssh-connection", name, key.public.blob), name
                ),
            ).encode(),
        )
        for key in (USER_KEY, SECOND_KEY)
    ]
    query = request(PUBLICKEY, messages.PublickeyQuery(False, name, blob).encode())
    host = HOST_KEY.public.blob
    bound = messages.HostboundQuery(False, name, blob, host).encode()
    bound_signed = messages.HostboundRequest(True, name, blob, host, b"\0\0\0\1x").encode()
    yield payloads(*start, query, *signed)
    yield payloads(*start, request(HOSTBOUND, bound), request(HOSTBOUND, bound_signed))
    yield payloads(
        *start,
        request(PASSWORD, messages.PasswordRequest(False, "secret").encode()),
        request(INTERACTIVE, messages.InteractiveRequest().encode()),
    )
    yield payloads(*start, *[query] * 33)


LOGIN_ANSWERS = {number for number in ALLOWED[Phase.AUTH][Role.CLIENT] if number >= 50}


def login_client(data: bytes) -> None:
    """What a server answers to our attempts; the first byte of a part may add an extension."""
    sent: list[bytes] = []
    told: list[events.Event] = []
    extensions: dict[str, bytes] = {}
    auth = ClientAuth(
        "alice", CLIENT.identities, CLIENT.login, extensions=extensions, send=sent.append,
        emit=told.append,
    )  # fmt: skip
    auth.start(SESSION_ID, HOST_KEY.public.blob)
    for what, payload in parts_of(data):
        if what == 1:
            extensions["publickey-hostbound@openssh.com"] = b"0"
        elif what == 2:
            extensions["server-sig-algs"] = payload
            continue
        if not payload:
            continue
        if payload[0] == Msg.SERVICE_ACCEPT:
            auth.receive_service_accept(payload)
        elif payload[0] in LOGIN_ANSWERS and auth.receive(payload):
            return
        _answer_all(auth, told)
    assert len(sent) <= 200


def _answer_all(auth: ClientAuth, told: list[events.Event]) -> None:
    for event in told:
        match event:
            case events.SignatureWanted():
                if event.data[-1] & 1:
                    auth.provide_signature(b"signature")
                else:
                    auth.skip_identity()
            case events.PasswordWanted():
                auth.provide_password("secret")
            case events.AnswersWanted():
                auth.provide_answers(["x"] * len(event.prompts))
    told.clear()


def login_client_seeds() -> Iterator[bytes]:
    accept = messages.ServiceAccept("ssh-userauth")
    failure = messages.UserauthFailure((PUBLICKEY, INTERACTIVE, PASSWORD), False)
    partial = messages.UserauthFailure((PUBLICKEY, INTERACTIVE, PASSWORD), True)
    keyboard = messages.UserauthFailure((INTERACTIVE, PASSWORD), False)
    ask = messages.info_request("name", "instruction", [("Password: ", False), ("Code: ", True)])
    ok = [messages.UserauthPkOk("ssh-ed25519", key.blob) for key in CLIENT.identities]
    success, banner = messages.UserauthSuccess(), messages.UserauthBanner("hello\n")
    change = messages.UserauthPasswdChangereq("expired")
    yield payloads(accept, banner, failure, ok[0], success)
    yield payloads(accept, failure, ok[0], partial, ok[1], partial, ask, ask, success)
    yield payloads(accept, failure, failure, ok[1], failure, ask, failure, failure, failure)
    yield payloads(accept, keyboard, failure, failure, change, failure)
    yield payloads(accept, messages.UserauthFailure((PASSWORD,), False), change, success)
    yield script((1, accept.encode()), (2, b"ssh-ed25519,rsa-sha2-256"), (0, failure.encode()))


# ---- after the login -----------------------------------------------------------------------------


def connected(role: Role) -> Protocol:
    """Return a side that has logged in, without the arithmetic of it; packets are in clear."""
    protocol = make(role)
    transport = protocol.transport
    transport.peer_version = b"SSH-2.0-x"
    transport.host_key_blob = HOST_KEY.public.blob
    transport.session_id = SESSION_ID
    transport._kex_count, transport._local_kexinit, transport._kex_started_s = 1, None, None
    transport.peer_extensions["ping@openssh.com"] = b"0"
    transport.phase = Phase.CONNECTION
    take(protocol)
    protocol.outbound.start_cipher(NoCipher(), reset_sequence_number=True)
    return protocol


class Owner:
    """Deals with the events of a link, and does by itself what a script says."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.connection = protocol.connection
        self.now_s = 0.0
        self.held: dict[int, int] = {}  # bytes by channel that its sink has not given back
        self.acts: tuple[Callable[[bytes], None], ...] = (
            self.open, self.close, self.send, self.send_eof, self.ask, self.abandon, self.wait,
            self.drain, self.rekey, self.ask_globally, self.give_back,
        )  # fmt: skip

    def channel(self, body: bytes):
        """One of those that there are."""
        there = list(self.connection.channels.values())
        return there[(body[0] if body else 0) % len(there)] if there else None

    def open(self, body: bytes) -> None:
        self.hold(self.connection.open_channel("session", body))

    def hold(self, channel) -> None:
        """Every second channel has a reader that gives nothing back by itself."""
        if channel.channel_id % 2:
            number = channel.channel_id
            self.held[number] = 0

            def sink(data: memoryview) -> int:
                self.held[number] += len(data)
                return 0

            channel.sink = sink

    def close(self, body: bytes) -> None:
        channel = self.channel(body)
        if channel is not None and channel.send_state in (SendState.OPEN, SendState.EOF_SENT):
            self.connection.close(channel)

    def abandon(self, body: bytes) -> None:
        channel = self.channel(body)
        if channel is not None and not channel.remote_maximum_packet_size:
            self.connection.abandon(channel)

    def send(self, body: bytes) -> None:
        channel = self.channel(body)
        if channel is not None and channel.send_state is SendState.OPEN:
            channel.send(body)
            channel.send_extended(1, body)

    def send_eof(self, body: bytes) -> None:
        channel = self.channel(body)
        if channel is not None and channel.send_state is SendState.OPEN:
            channel.send_eof()

    def ask(self, body: bytes) -> None:
        channel = self.channel(body)
        if channel is not None and channel.send_state in (SendState.OPEN, SendState.EOF_SENT):
            channel.send_request("exec", body)

    def ask_globally(self, body: bytes) -> None:
        self.connection.send_global_request("tcpip-forward", body)

    def wait(self, body: bytes) -> None:
        self.now_s += len(body) + 1
        self.protocol.tick(self.now_s)
        self.connection.probe_if_due(self.now_s)

    def drain(self, _body: bytes) -> None:
        take(self.protocol)

    def rekey(self, _body: bytes) -> None:
        if self.protocol.transport.phase is Phase.CONNECTION:
            self.protocol.transport.start_rekey(self.now_s)

    def give_back(self, body: bytes) -> None:
        channel = self.channel(body)
        if channel is not None and self.held.get(channel.channel_id):
            count, self.held[channel.channel_id] = self.held[channel.channel_id], 0
            channel.consumed(count)

    def answer(self) -> None:
        """Deal with what happened."""
        channels = self.connection.channels
        while (event := self.protocol.next_event()) is not None:
            assert repr(event)
            match event:
                case events.ChannelOpenRequested():
                    channel = channels[event.channel_id]
                    if event.channel_type.startswith("x"):
                        self.connection.refuse_channel(channel, 1, event.channel_type)
                    else:
                        self.hold(channel)
                        self.connection.confirm_channel(channel)
                case events.ChannelRequested() if event.want_reply:
                    channel = channels[event.channel_id]
                    self.connection.reply_request(channel, success=event.request_type != "x")
                case events.GlobalRequested() if event.want_reply:
                    self.connection.reply_global(success=event.request_name != "x")
                case events.ChannelCloseReceived() if event.channel_id in channels:
                    self.close_after(channels[event.channel_id])

    def close_after(self, channel) -> None:
        """Every third one later."""
        if channel.channel_id % 3 and channel.send_state is not SendState.CLOSE_SENT:
            self.connection.close(channel)

    def check(self) -> None:
        """What holds at any time."""
        assert self.protocol.outbound._lane_bytes <= LANE_HARD_LIMIT + 2 * MOST
        for channel in self.connection.channels.values():
            assert 0 <= channel.remote_window <= 0xFFFF_FFFF
            assert channel.window.granted >= 0


FROM_PEER = 240  # below: a message of the peer; from here on: what its owner does


def connection(role: Role) -> Callable[[bytes], None]:
    """A script of messages of the peer and of what the owner does meanwhile."""

    def run(data: bytes) -> None:
        protocol = connected(role)
        owner = Owner(protocol)
        try:
            for what, body in parts_of(data):
                if what < FROM_PEER:
                    inject(protocol, body, now_s=owner.now_s)
                elif protocol.transport.phase is not Phase.CLOSED:
                    owner.acts[(what - FROM_PEER) % len(owner.acts)](body)
                owner.answer()
                owner.check()
        except RemoteProtocolError:
            assert protocol.transport.phase is Phase.CLOSED
            raise
        finally:
            end(protocol)

    return run


def connection_seeds() -> Iterator[bytes]:
    opened = messages.ChannelOpen("direct-tcpip", 7, 1 << 20, 32768, b"specific").encode()
    confirmed = messages.ChannelOpenConfirmation(0, 9, 1 << 20, 32768).encode()
    data = bytes((Msg.CHANNEL_DATA,)) + bytes(4) + string(b"data")
    request = messages.ChannelRequest(0, "exec", True, string(b"true")).encode()
    adjust = messages.ChannelWindowAdjust(0, 100).encode()
    eof, closed = messages.ChannelEof(0).encode(), messages.ChannelClose(0).encode()
    extended = messages.ChannelExtendedData(0, 1, b"error").encode()
    act = {number: (FROM_PEER + number, b"\0body") for number in range(11)}
    yield script((0, opened), (0, data), act[2], (0, adjust), (0, request), (0, eof), (0, closed))
    yield script(act[0], (0, confirmed), act[2], act[4], (0, data), act[3], act[1], (0, closed))
    yield script(act[0], act[5], (0, confirmed), (0, closed))
    yield script(act[0], (0, messages.ChannelOpenFailure(0, 1, "no").encode()))
    yield script((0, opened), (0, opened), (0, extended), act[10], act[7], act[6], act[9], act[8])
    for message in MESSAGES:
        yield script((0, opened), act[0], (0, sample(message, **zero(message)).encode()), act[6])
    for role in Role:
        kex = recorded(role, KEX[1])[-3:]
        yield script(*((0, payload) for payload in kex))
        yield script(act[8], *((0, payload) for payload in kex))


def zero(message: type[messages.Message]) -> dict[str, int]:
    """Name a channel that exists."""
    names = getattr(message, "__dataclass_fields__", ())
    return {"recipient_channel": 0} if "recipient_channel" in names else {}
