"""Every SSH message as a frozen dataclass whose fields are the RFC's, in the RFC's order.

A field's annotation is its wire type, so a class reads like the figure in the RFC. ``encode`` gives
the payload, message number first; ``decode_untrusted`` takes a whole payload and raises
`RemoteProtocolError` for anything that is not exactly one message of this type.

Channel data does not pass through here: `gateway.ssh.packets` writes and reads its header in place.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Self, get_args, get_type_hints

from gateway.errors import RemoteProtocolError
from gateway.ssh import wire
from gateway.ssh.numbers import Msg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class _Codec:
    """How one wire type is written and read."""

    encode: Callable[[Any], bytes]
    decode: Callable[[wire.Reader], Any]


Boolean = Annotated[bool, _Codec(wire.boolean, wire.Reader.boolean)]
Byte = Annotated[int, _Codec(lambda value: bytes((value,)), wire.Reader.byte)]
UInt32 = Annotated[int, _Codec(wire.uint32, wire.Reader.uint32)]
MPInt = Annotated[int, _Codec(wire.mpint, wire.Reader.mpint)]
String = Annotated[bytes, _Codec(wire.string, wire.Reader.string)]
Text = Annotated[str, _Codec(wire.text, wire.Reader.text)]
LooseText = Annotated[str, _Codec(wire.text, wire.Reader.loose_text)]
NameList = Annotated[tuple[str, ...], _Codec(wire.name_list, wire.Reader.name_list)]
Cookie = Annotated[bytes, _Codec(bytes, lambda reader: reader.take(16))]
Rest = Annotated[bytes, _Codec(bytes, wire.Reader.rest)]


_CODECS: dict[str, tuple[tuple[str, _Codec], ...]] = {}  # by class name, made at first use


def _codecs(record: type[Record]) -> tuple[tuple[str, _Codec], ...]:
    found = _CODECS.get(record.__name__)
    if found is None:
        hints = get_type_hints(record, include_extras=True)
        found = _CODECS[record.__name__] = tuple(
            (field.name, get_args(hints[field.name])[1]) for field in dataclasses.fields(record)
        )
    return found


@dataclass(frozen=True, slots=True)
class Record:
    """Fields one after the other, without a message number."""

    def encode(self) -> bytes:
        """Return the wire form."""
        return b"".join([codec.encode(getattr(self, name)) for name, codec in _codecs(type(self))])

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Self:
        """Parse the whole of ``data``."""
        reader = wire.Reader(data)
        values = [codec.decode(reader) for _, codec in _codecs(cls)]
        reader.end()
        return cls(*values)


@dataclass(frozen=True, slots=True)
class Message(Record):
    """A record behind its message number."""

    number: ClassVar[Msg]

    def encode(self) -> bytes:
        """Return the payload of the packet."""
        return bytes((self.number,)) + Record.encode(self)

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Self:
        """Parse a payload whose first byte, the message number, was looked at already."""
        reader = wire.Reader(data)
        reader.byte()
        values = [codec.decode(reader) for _, codec in _codecs(cls)]
        reader.end()
        return cls(*values)


# ---- transport layer: RFC 4253 §11, RFC 8308, RFC 5656 §4 ----------------------------------------


@dataclass(frozen=True, slots=True)
class DisconnectMessage(Message):  # noqa: D101 - RFC 4253 §11.1
    number = Msg.DISCONNECT
    reason_code: UInt32
    description: LooseText
    language_tag: LooseText = ""


@dataclass(frozen=True, slots=True)
class Ignore(Message):  # noqa: D101 - RFC 4253 §11.2
    number = Msg.IGNORE
    data: String


@dataclass(frozen=True, slots=True)
class Unimplemented(Message):  # noqa: D101 - RFC 4253 §11.4
    number = Msg.UNIMPLEMENTED
    packet_sequence_number: UInt32


@dataclass(frozen=True, slots=True)
class Debug(Message):  # noqa: D101 - RFC 4253 §11.3
    number = Msg.DEBUG
    always_display: Boolean
    message: LooseText
    language_tag: LooseText = ""


@dataclass(frozen=True, slots=True)
class ServiceRequest(Message):  # noqa: D101 - RFC 4253 §10
    number = Msg.SERVICE_REQUEST
    service_name: Text


@dataclass(frozen=True, slots=True)
class ServiceAccept(Message):  # noqa: D101 - RFC 4253 §10
    number = Msg.SERVICE_ACCEPT
    service_name: Text


@dataclass(frozen=True, slots=True)
class ExtInfo(Message):
    """RFC 8308 §2.3; the extensions are parsed by `extensions_untrusted`."""

    number = Msg.EXT_INFO
    nr_extensions: UInt32
    extensions: Rest


@dataclass(frozen=True, slots=True)
class KexInit(Message):  # noqa: D101 - RFC 4253 §7.1
    number = Msg.KEXINIT
    cookie: Cookie
    kex_algorithms: NameList
    server_host_key_algorithms: NameList
    encryption_algorithms_client_to_server: NameList
    encryption_algorithms_server_to_client: NameList
    mac_algorithms_client_to_server: NameList
    mac_algorithms_server_to_client: NameList
    compression_algorithms_client_to_server: NameList
    compression_algorithms_server_to_client: NameList
    languages_client_to_server: NameList = ()
    languages_server_to_client: NameList = ()
    first_kex_packet_follows: Boolean = False
    reserved: UInt32 = 0


@dataclass(frozen=True, slots=True)
class NewKeys(Message):  # noqa: D101 - RFC 4253 §7.3
    number = Msg.NEWKEYS


@dataclass(frozen=True, slots=True)
class KexEcdhInit(Message):  # noqa: D101 - RFC 5656 §4
    number = Msg.KEX_ECDH_INIT
    client_ephemeral: String


@dataclass(frozen=True, slots=True)
class KexEcdhReply(Message):  # noqa: D101 - RFC 5656 §4
    number = Msg.KEX_ECDH_REPLY
    server_host_key: String
    server_ephemeral: String
    signature: String


@dataclass(frozen=True, slots=True)
class KexDhGexRequest(Message):
    """RFC 4419 §3: sizes in bits."""

    number = Msg.KEX_DH_GEX_REQUEST
    minimum: UInt32
    preferred: UInt32
    maximum: UInt32


@dataclass(frozen=True, slots=True)
class KexDhGexGroup(Message):
    """RFC 4419 §3: the safe prime and the generator."""

    number = Msg.KEX_DH_GEX_GROUP
    p: MPInt
    g: MPInt


@dataclass(frozen=True, slots=True)
class KexDhGexInit(Message):  # noqa: D101 - RFC 4419 §3
    number = Msg.KEX_DH_GEX_INIT
    e: String


@dataclass(frozen=True, slots=True)
class KexDhGexReply(Message):  # noqa: D101 - RFC 4419 §3
    number = Msg.KEX_DH_GEX_REPLY
    server_host_key: String
    f: String
    signature: String


# ---- authentication: RFC 4252 --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserauthRequest(Message):  # noqa: D101 - RFC 4252 §5
    number = Msg.USERAUTH_REQUEST
    user_name: Text
    service_name: Text
    method_name: Text
    method_specific: Rest = field(default=b"", repr=False)  # a password may stand in it


@dataclass(frozen=True, slots=True)
class PublickeyQuery(Record):
    """The method-specific fields of "publickey" without a signature (RFC 4252 §7)."""

    has_signature: Boolean
    public_key_algorithm_name: Text
    public_key_blob: String


@dataclass(frozen=True, slots=True)
class PublickeyRequest(Record):
    """The method-specific fields of "publickey" with a signature (RFC 4252 §7)."""

    has_signature: Boolean
    public_key_algorithm_name: Text
    public_key_blob: String
    signature: String


@dataclass(frozen=True, slots=True)
class HostboundQuery(Record):
    """As `PublickeyQuery`, of "publickey-hostbound-v00@openssh.com" (OpenSSH PROTOCOL §3.1)."""

    has_signature: Boolean
    public_key_algorithm_name: Text
    public_key_blob: String
    server_host_key: String


@dataclass(frozen=True, slots=True)
class HostboundRequest(Record):
    """As `PublickeyRequest`, of "publickey-hostbound-v00@openssh.com"."""

    has_signature: Boolean
    public_key_algorithm_name: Text
    public_key_blob: String
    server_host_key: String
    signature: String


@dataclass(frozen=True, slots=True)
class PasswordRequest(Record):
    """The method-specific fields of "password" (RFC 4252 §8)."""

    is_change: Boolean
    password: Text = field(repr=False)


@dataclass(frozen=True, slots=True)
class InteractiveRequest(Record):
    """The method-specific fields of "keyboard-interactive" (RFC 4256 §3.1)."""

    language_tag: Text = ""
    submethods: Text = ""


@dataclass(frozen=True, slots=True)
class UserauthFailure(Message):  # noqa: D101 - RFC 4252 §5.1
    number = Msg.USERAUTH_FAILURE
    authentications_that_can_continue: NameList
    partial_success: Boolean


@dataclass(frozen=True, slots=True)
class UserauthSuccess(Message):  # noqa: D101 - RFC 4252 §5.1
    number = Msg.USERAUTH_SUCCESS


@dataclass(frozen=True, slots=True)
class UserauthBanner(Message):  # noqa: D101 - RFC 4252 §5.4
    number = Msg.USERAUTH_BANNER
    message: LooseText
    language_tag: LooseText = ""


@dataclass(frozen=True, slots=True)
class UserauthPkOk(Message):  # noqa: D101 - RFC 4252 §7
    number = Msg.USERAUTH_PK_OK
    public_key_algorithm_name: Text
    public_key_blob: String


@dataclass(frozen=True, slots=True)
class UserauthPasswdChangereq(Message):  # noqa: D101 - RFC 4252 §8
    number = Msg.USERAUTH_PASSWD_CHANGEREQ
    prompt: LooseText
    language_tag: LooseText = ""


@dataclass(frozen=True, slots=True)
class UserauthInfoRequest(Message):
    """RFC 4256 §3.2; the prompts are parsed by `prompts_untrusted`."""

    number = Msg.USERAUTH_INFO_REQUEST
    name: LooseText
    instruction: LooseText
    language_tag: LooseText
    num_prompts: UInt32
    prompts: Rest = b""


@dataclass(frozen=True, slots=True)
class UserauthInfoResponse(Message):
    """RFC 4256 §3.4; the responses are made by `info_response`."""

    number = Msg.USERAUTH_INFO_RESPONSE
    num_responses: UInt32
    responses: Rest = field(repr=False)


# ---- connection: RFC 4254 ------------------------------------------------------------------------

CANCEL: Final = "cancel-"  # before a request's name, it undoes that (§7.1)
EOW: Final = "eow@openssh.com"  # OpenSSH PROTOCOL §2.1: nobody reads that direction any more


@dataclass(frozen=True, slots=True)
class GlobalRequest(Message):  # noqa: D101 - RFC 4254 §4
    number = Msg.GLOBAL_REQUEST
    request_name: Text
    want_reply: Boolean
    request_specific: Rest = b""


@dataclass(frozen=True, slots=True)
class RequestSuccess(Message):  # noqa: D101 - RFC 4254 §4
    number = Msg.REQUEST_SUCCESS
    response_specific: Rest = b""


@dataclass(frozen=True, slots=True)
class RequestFailure(Message):  # noqa: D101 - RFC 4254 §4
    number = Msg.REQUEST_FAILURE


@dataclass(frozen=True, slots=True)
class ChannelOpen(Message):  # noqa: D101 - RFC 4254 §5.1
    number = Msg.CHANNEL_OPEN
    channel_type: Text
    sender_channel: UInt32
    initial_window_size: UInt32
    maximum_packet_size: UInt32
    type_specific: Rest = b""


@dataclass(frozen=True, slots=True)
class DirectTcpip(Record):
    """The type-specific fields of "direct-tcpip" (RFC 4254 §7.2)."""

    channel_type: ClassVar[str] = "direct-tcpip"
    host_to_connect: Text
    port_to_connect: UInt32
    originator_address: Text
    originator_port: UInt32


@dataclass(frozen=True, slots=True)
class ForwardedTcpip(Record):
    """The type-specific fields of "forwarded-tcpip" (RFC 4254 §7.2)."""

    channel_type: ClassVar[str] = "forwarded-tcpip"
    connected_address: Text
    connected_port: UInt32
    originator_address: Text
    originator_port: UInt32


@dataclass(frozen=True, slots=True)
class TcpipForward(Record):
    """The request-specific fields of "tcpip-forward" and its cancel (RFC 4254 §7.1)."""

    request_name: ClassVar[str] = "tcpip-forward"
    address_to_bind: Text
    port_to_bind: UInt32


@dataclass(frozen=True, slots=True)
class DirectStreamlocal(Record):
    """The type-specific fields of "direct-streamlocal@openssh.com" (OpenSSH PROTOCOL §2.4).

    What is reserved is not empty: OpenSSH's client puts the originator there.
    """

    channel_type: ClassVar[str] = "direct-streamlocal@openssh.com"
    socket_path: Text
    reserved_text: LooseText
    reserved_number: UInt32


@dataclass(frozen=True, slots=True)
class ForwardedStreamlocal(Record):
    """The type-specific fields of "forwarded-streamlocal@openssh.com" (OpenSSH PROTOCOL §2.4)."""

    channel_type: ClassVar[str] = "forwarded-streamlocal@openssh.com"
    socket_path: Text
    reserved: LooseText = ""


@dataclass(frozen=True, slots=True)
class StreamlocalForward(Record):
    """The request-specific fields of "streamlocal-forward@openssh.com" and its cancel."""

    request_name: ClassVar[str] = "streamlocal-forward@openssh.com"
    socket_path: Text


@dataclass(frozen=True, slots=True)
class ChannelOpenConfirmation(Message):  # noqa: D101 - RFC 4254 §5.1
    number = Msg.CHANNEL_OPEN_CONFIRMATION
    recipient_channel: UInt32
    sender_channel: UInt32
    initial_window_size: UInt32
    maximum_packet_size: UInt32
    type_specific: Rest = b""


@dataclass(frozen=True, slots=True)
class ChannelOpenFailure(Message):  # noqa: D101 - RFC 4254 §5.1
    number = Msg.CHANNEL_OPEN_FAILURE
    recipient_channel: UInt32
    reason_code: UInt32
    description: LooseText
    language_tag: LooseText = ""


@dataclass(frozen=True, slots=True)
class ChannelWindowAdjust(Message):  # noqa: D101 - RFC 4254 §5.2
    number = Msg.CHANNEL_WINDOW_ADJUST
    recipient_channel: UInt32
    bytes_to_add: UInt32


@dataclass(frozen=True, slots=True)
class ChannelExtendedData(Message):  # noqa: D101 - RFC 4254 §5.2
    number = Msg.CHANNEL_EXTENDED_DATA
    recipient_channel: UInt32
    data_type_code: UInt32
    data: String


@dataclass(frozen=True, slots=True)
class ChannelEof(Message):  # noqa: D101 - RFC 4254 §5.3
    number = Msg.CHANNEL_EOF
    recipient_channel: UInt32


@dataclass(frozen=True, slots=True)
class ChannelClose(Message):  # noqa: D101 - RFC 4254 §5.3
    number = Msg.CHANNEL_CLOSE
    recipient_channel: UInt32


@dataclass(frozen=True, slots=True)
class ChannelRequest(Message):  # noqa: D101 - RFC 4254 §5.4
    number = Msg.CHANNEL_REQUEST
    recipient_channel: UInt32
    request_type: Text
    want_reply: Boolean
    type_specific: Rest = b""


@dataclass(frozen=True, slots=True)
class ChannelSuccess(Message):  # noqa: D101 - RFC 4254 §5.4
    number = Msg.CHANNEL_SUCCESS
    recipient_channel: UInt32


@dataclass(frozen=True, slots=True)
class ChannelFailure(Message):  # noqa: D101 - RFC 4254 §5.4
    number = Msg.CHANNEL_FAILURE
    recipient_channel: UInt32


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """ping@openssh.com (OpenSSH PROTOCOL §1.9)."""

    number = Msg.PING
    data: String


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """ping@openssh.com (OpenSSH PROTOCOL §1.9)."""

    number = Msg.PONG
    data: String


def extensions_untrusted(message: ExtInfo) -> dict[str, bytes]:
    """Return the extensions by name; the count is checked against the bytes there are."""
    room = len(message.extensions)
    if message.nr_extensions > room // 8:
        raise RemoteProtocolError(
            f"EXT_INFO announces {message.nr_extensions} extensions in {room} bytes"
        )
    reader = wire.Reader(message.extensions)
    found = {}
    for _ in range(message.nr_extensions):
        name = reader.text()
        found[name] = reader.string()
    reader.end()
    return found


def ext_info(extensions: dict[str, bytes]) -> ExtInfo:
    """Build EXT_INFO."""
    return ExtInfo(
        len(extensions),
        b"".join([wire.text(name) + wire.string(value) for name, value in extensions.items()]),
    )


MAXIMUM_PROMPTS: Final = 100  # of one INFO_REQUEST; as many answers as OpenSSH's server takes


def prompts_untrusted(message: UserauthInfoRequest) -> list[tuple[str, bool]]:
    """Return the prompts, each with its echo flag; the count is checked before it is used."""
    room = len(message.prompts)
    if message.num_prompts > min(room // 5, MAXIMUM_PROMPTS):
        raise RemoteProtocolError(
            f"INFO_REQUEST announces {message.num_prompts} prompts in {room} bytes"
        )
    reader = wire.Reader(message.prompts)
    prompts = [(reader.loose_text(), reader.boolean()) for _ in range(message.num_prompts)]
    reader.end()
    return prompts


def info_request(name: str, instruction: str, prompts: list[tuple[str, bool]]) -> Message:
    """Build INFO_REQUEST."""
    fields = [wire.text(prompt) + wire.boolean(echo) for prompt, echo in prompts]
    return UserauthInfoRequest(name, instruction, "", len(prompts), b"".join(fields))


def info_response(answers: Sequence[str]) -> UserauthInfoResponse:
    """Build INFO_RESPONSE."""
    return UserauthInfoResponse(len(answers), b"".join(map(wire.text, answers)))
