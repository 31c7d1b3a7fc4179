"""What happened, as typed records with ids: pulled from the SSH core, logged and audited above it.

The first group is the control plane of one link: ``ssh.protocol.Protocol.next_event`` returns
these, in the order in which they happened. A channel is named by its local number, ``channel_id``,
which is never used twice on a link. Text from the peer is as it came: show it through
`errors.printable` only.

The second group is what `gateway connect` and `gateway serve` report about themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


# ---- one link, from the protocol -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VersionReceived(Event):
    """The peer's identification string, without CR LF."""

    version: str


@dataclass(frozen=True, slots=True)
class HostKeyReceived(Event):
    """Client, once: the server proved this key; answer with ``accept_host_key`` or close.

    ``signature`` is the proof, which an agent wants to see (session-bind@openssh.com).
    """

    algorithm: str
    blob: bytes
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class KeysExchanged(Event):
    """Both directions use new keys; ``count`` is 1 for the first exchange."""

    count: int
    kex: str
    host_key: str
    cipher_client_to_server: str
    cipher_server_to_client: str
    mac_client_to_server: str
    mac_server_to_client: str
    strict: bool
    offers: tuple[tuple[str, ...], ...] = field(default=(), compare=False)
    """Server: what the client offered: key exchanges, then its ciphers, MACs and compression."""

    @property
    def algorithms(self) -> str:
        """What was agreed on, for a log."""
        client = f"{self.cipher_client_to_server} {self.mac_client_to_server}".strip()
        server = f"{self.cipher_server_to_client} {self.mac_server_to_client}".strip()
        strict = "" if self.strict else ", not strict"
        return f"{self.kex}, {self.host_key}, client {client}, server {server}{strict}"


@dataclass(frozen=True, slots=True)
class SignatureWanted(Event):
    """Client: the server takes this key; answer with ``provide_signature`` or ``skip_identity``."""

    identity: int
    data: bytes
    algorithm: str


@dataclass(frozen=True, slots=True)
class PasswordWanted(Event):
    """Client: answer with ``provide_password`` or ``skip_method``; ``attempt`` counts from 1."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question of "keyboard-interactive"; ``echo``: the answer may be seen while typed."""

    text: str
    echo: bool


@dataclass(frozen=True, slots=True)
class AnswersWanted(Event):
    """Client: the server asks (RFC 4256 §3.2), perhaps nothing; it may only want to be shown.

    Answer with ``provide_answers``, one for each prompt, or with ``skip_method``.
    """

    name: str
    instruction: str
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class PartiallyAuthenticated(Event):
    """Client: this method was accepted and the server wants another one as well.

    Server: this key has signed, and another one has to.
    """

    method: str
    methods_that_can_continue: tuple[str, ...]
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class BannerReceived(Event):
    """Client: text to show before the login (RFC 4252 §5.4)."""

    message: str


@dataclass(frozen=True, slots=True)
class Authenticated(Event):
    """The login is done. ``fingerprint`` is that of the key that signed, empty for "none".

    Server: ``before`` are those of keys that had to sign too.
    """

    user_name: str
    method: str
    fingerprint: str
    before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AuthenticationRefused(Event):
    """Client: nothing is left to try. Server: one attempt failed.

    For a client, ``method`` is all that were tried and ``reason`` says how each one ended.
    For a server, ``fingerprint`` is the key's, if there was one.
    """

    user_name: str
    method: str
    reason: str
    methods_that_can_continue: tuple[str, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class DebugReceived(Event):
    """SSH_MSG_DEBUG: OpenSSH explains refusals with it."""

    message: str


@dataclass(frozen=True, slots=True)
class PeerDisconnected(Event):
    """SSH_MSG_DISCONNECT (RFC 4253 §11.1)."""

    reason_code: int
    description: str


@dataclass(frozen=True, slots=True)
class ChannelOpenRequested(Event):
    """The peer wants a channel; answer with ``confirm_channel`` or ``refuse_channel``."""

    channel_id: int
    channel_type: str
    type_specific: bytes
    maximum_packet_size: int


@dataclass(frozen=True, slots=True)
class OnChannel(Event):
    """Base of what happens to one channel that its owner knows."""

    channel_id: int


@dataclass(frozen=True, slots=True)
class ChannelOpened(OnChannel):
    """The peer confirmed a channel of ours."""


@dataclass(frozen=True, slots=True)
class ChannelOpenFailed(OnChannel):
    """The peer refused a channel of ours; the channel is forgotten."""

    reason_code: int
    description: str


@dataclass(frozen=True, slots=True)
class ChannelWritable(OnChannel):
    """A channel whose window was used up has credit again."""


@dataclass(frozen=True, slots=True)
class ChannelEofReceived(OnChannel):
    """The peer will send no more data on this channel."""


@dataclass(frozen=True, slots=True)
class ChannelCloseReceived(OnChannel):
    """The peer closed this channel; answer with ``close`` when its data is delivered."""


@dataclass(frozen=True, slots=True)
class ChannelRequested(OnChannel):
    """A request about a channel (RFC 4254 §5.4), for instance exit-status."""

    request_type: str
    want_reply: bool
    type_specific: bytes


@dataclass(frozen=True, slots=True)
class ChannelReplied(OnChannel):
    """The answer to our oldest channel request that wanted one."""

    success: bool


@dataclass(frozen=True, slots=True)
class GlobalRequested(Event):
    """A global request that the protocol core does not answer itself."""

    request_name: str
    want_reply: bool
    request_specific: bytes


@dataclass(frozen=True, slots=True)
class GlobalReplied(Event):
    """The answer to our oldest global request that wanted one."""

    success: bool
    response_specific: bytes


@dataclass(frozen=True, slots=True)
class PongReceived(Event):
    """The answer to a ping@openssh.com of ours."""

    data: bytes


# ---- what client and server report ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkOpened(Event):
    """A link is ready to carry channels."""

    link_id: int
    peer: str
    user_name: str
    fingerprint: str
    also: tuple[str, ...] = ()
    """Fingerprints of the keys that signed before this one."""


@dataclass(frozen=True, slots=True)
class LinkClosed(Event):
    """A link ended. Bytes are those of the carrier, both ways; times are seconds."""

    link_id: int
    peer: str
    reason: str
    bytes_in: int
    bytes_out: int
    user_name: str = ""
    duration_s: float = 0.0
    key_exchanges: int = 0
    ended_by: str = "network"
    """``us``, ``peer`` (it said so) or ``network``."""
    penalty: str = ""


@dataclass(frozen=True, slots=True)
class Decision(Event):
    """Policy spoke about a request: the object is what was asked, ``rule`` what decided.

    ``rule`` is a sentence; ``rule_id`` is empty where no rule was asked, as for limits.
    """

    link_id: int
    channel_id: int
    user_name: str
    action: str
    object: str
    allowed: bool
    rule: str
    rule_id: str = ""


@dataclass(frozen=True, slots=True)
class ChannelEnded(Event):
    """A carried connection is over. ``dialled`` is the address that was really connected.

    Bytes are the channel's data: ``bytes_in`` came from the SSH peer. Of each `ChannelStarted`
    there is exactly one.
    """

    link_id: int
    channel_id: int
    requested: str
    dialled: str
    bytes_in: int
    bytes_out: int
    reason: str
    kind: str = ""
    originator: str = ""
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ListenerOpened(Event):
    """A port accepts connections now, or with port 0 the unix socket ``address``."""

    purpose: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class RemoteListenerOpened(Event):
    """The server listens for us; both are in words."""

    purpose: str
    address: str


@dataclass(frozen=True, slots=True)
class RemotePortAllocated(Event):
    """The server has chosen a port to listen on for us; ``target`` is where that leads."""

    port: int
    target: str


@dataclass(frozen=True, slots=True)
class TunnelOpened(Event):
    """A device carries packets now."""

    device: str


@dataclass(frozen=True, slots=True)
class VpnPlanned(Event):
    """What a VPN would change on this machine, as command lines."""

    commands: tuple[str, ...]


# ---- what only a server reports ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkAccepted(Event):
    """A client has connected; `LinkClosed` follows, whatever happens in between.

    ``peer`` and ``local`` are texts with ports, ``address`` is where it comes from.
    """

    link_id: int
    peer: str
    local: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class LinkKeyed(Event):
    """A key exchange of a link is complete; ``version`` is the client's identification string."""

    link_id: int
    version: str
    keys: KeysExchanged


@dataclass(frozen=True, slots=True)
class LoginAttempted(Event):
    """One attempt to log in. ``result`` is accepted, partial or refused; ``number`` counts from 1.

    Queries whether a key would do are attempts only if they are refused. What there is about the
    key is known of those that would let the user in; ``authority`` is a fingerprint.
    """

    link_id: int
    user_name: str
    method: str
    fingerprint: str
    result: str
    reason: str
    number: int
    key_type: str = ""
    certificate_id: str = ""
    certificate_serial: str = ""
    authority: str = ""
    principals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChannelStarted(Event):
    """A channel carries data from now on. ``kind`` is its channel type (RFC 4254).

    ``connect_s`` is how long it took from the request on.
    """

    link_id: int
    channel_id: int
    user_name: str
    kind: str
    requested: str
    dialled: str
    originator: str
    connect_s: float = 0.0
    rule_id: str = ""


@dataclass(frozen=True, slots=True)
class ChannelFailed(Event):
    """A channel that was allowed came to nothing: ``reason``, and the last address that was tried.

    Of each request there is exactly one of this, `ChannelStarted` and a refusing `Decision`.
    """

    link_id: int
    channel_id: int
    kind: str
    requested: str
    dialled: str
    originator: str
    reason: str
    rule_id: str = ""


@dataclass(frozen=True, slots=True)
class ScanSuspected(Event):
    """So many different targets of one user came to nothing within a minute; ``example`` is one."""

    link_id: int
    user_name: str
    targets: int
    example: str


@dataclass(frozen=True, slots=True)
class ListenerAdded(Event):
    """A port accepts connections for a link (tcpip-forward), or a socket (streamlocal-forward).

    ``bind_host`` is what the client asked for, and with port 0 a path; ``taken_from`` the dead link
    that had it, or 0; ``rule_id`` what allowed it.
    """

    link_id: int
    user_name: str
    bind_host: str
    port: int
    addresses: tuple[str, ...]
    taken_from: int
    rule_id: str


@dataclass(frozen=True, slots=True)
class ListenerRemoved(Event):
    """It is over with a listener of a link; ``rule_id`` is what had allowed it."""

    link_id: int
    user_name: str
    bind_host: str
    port: int
    reason: str
    rule_id: str


@dataclass(frozen=True, slots=True)
class ConnectionsDropped(Event):
    """So many connections without a login were closed for this reason since the last such event."""

    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class ServerReady(Event):
    """A server listens on all its addresses, which are texts with ports."""

    addresses: tuple[str, ...]
