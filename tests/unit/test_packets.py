"""The binary packet protocol by itself (RFC 4253 §6). Hazards T9 and T10."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from gateway.errors import RemoteProtocolError
from gateway.ssh import packets
from gateway.ssh.ciphers import CIPHERS, AesGcm, NoCipher
from gateway.ssh.numbers import Msg
from gateway.ssh.packets import (
    BUFFER_SIZE,
    DATA_LIMIT,
    MAXIMUM_DATA,
    MAXIMUM_PACKET_LENGTH,
    POOL,
    POOL_KEEPS,
    ROOM,
    BufferPool,
    Inbound,
    Outbound,
)

KEY, IV = bytes(range(16)), b"ivivivivivi\xfe"


def no_cipher():
    return NoCipher()


def aes_gcm():
    return AesGcm(KEY, IV)


BOTH = pytest.mark.parametrize("make_cipher", [no_cipher, aes_gcm])


def receiving(make_cipher):
    inbound = Inbound()
    inbound.start_cipher(make_cipher(), reset_sequence_number=True)
    return inbound


def sending(make_cipher):
    outbound = Outbound(os.urandom)
    outbound.start_cipher(make_cipher(), reset_sequence_number=True)
    return outbound


def put(inbound, data):
    inbound.space()[: len(data)] = data
    inbound.filled(len(data))


def taken(outbound):
    view = outbound.data_to_send()
    data = bytes(view)
    outbound.data_sent(len(view))
    return data


def sealed(make_cipher, plain):
    cipher = make_cipher()
    packet = memoryview(bytearray(len(plain) + cipher.tag_size))
    cipher.seal_into(0, memoryview(plain), packet)
    return bytes(packet)


# ---- packet_length -------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "packet_length",
    [0, 1, 4, 5, 11, 15, 17, 35_001, 262_145, 262_148, 262_160, 2**31 - 1, 2**31, 2**32 - 1],
)
def test_a_bad_length_is_refused_from_its_four_bytes_alone(make_cipher, packet_length):
    """Before any of the packet arrived, and without room for it."""
    inbound = receiving(make_cipher)
    put(inbound, packet_length.to_bytes(4, "big"))
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match=f"packet_length {packet_length} is out of"):
            inbound.next_payload()
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()
    inbound.discard()


@BOTH
def test_the_largest_packet_passes_and_the_buffer_does_not_grow(make_cipher):
    cipher = make_cipher()
    length = MAXIMUM_PACKET_LENGTH - (4 if cipher.aligned_header else 0)
    payload = os.urandom(length - 1 - 4)
    plain = length.to_bytes(4, "big") + b"\4" + payload + bytes(4)
    packet = sealed(make_cipher, plain)
    inbound = receiving(make_cipher)
    for at in range(0, len(packet), 100_000):
        assert inbound.next_payload() is None
        put(inbound, packet[at : at + 100_000])
        assert len(inbound._buffer) == BUFFER_SIZE
    assert inbound.next_payload() == payload
    inbound.idle()
    assert inbound._buffer is None


@BOTH
def test_there_is_always_space_behind_a_partial_packet(make_cipher):
    """However the bytes fall, the carrier is never offered nothing."""
    outbound = sending(make_cipher)
    inbound = receiving(make_cipher)
    stream = b""
    for size in (1, 200_000, 7, MAXIMUM_DATA, 60_000, MAXIMUM_DATA):
        outbound._seal(bytes((2,)) * size)
        stream += taken(outbound)
    got = []
    while stream:
        space = inbound.space()
        assert len(space) >= packets.RECEIVE_SIZE
        put(inbound, stream[: len(space) - 1])
        stream = stream[len(space) - 1 :]
        while (payload := inbound.next_payload()) is not None:
            got.append(len(payload))
    assert got == [1, 200_000, 7, MAXIMUM_DATA, 60_000, MAXIMUM_DATA]
    inbound.idle()
    assert inbound._buffer is None


# ---- padding -------------------------------------------------------------------------------------


def frame(length, padding_length, fill=b"\2"):
    return length.to_bytes(4, "big") + bytes((padding_length,)) + fill * (length - 1)


@pytest.mark.parametrize(
    ("make_cipher", "length"), [(no_cipher, 12), (no_cipher, 28), (aes_gcm, 16), (aes_gcm, 32)]
)
@pytest.mark.parametrize("which", ["0", "1", "3", "all but one", "all", "beyond", "255"])
def test_bad_padding(make_cipher, length, which):
    """T10: less than 4, or nothing (or less than nothing) left for a payload."""
    padding = {
        "0": 0, "1": 1, "3": 3, "all but one": length - 1, "all": length, "beyond": length + 1,
        "255": 255,
    }[which]  # fmt: skip
    inbound = receiving(make_cipher)
    put(inbound, sealed(make_cipher, frame(length, padding)))
    with pytest.raises(RemoteProtocolError, match=f"padding_length {padding} in a packet"):
        inbound.next_payload()
    inbound.discard()


@BOTH
def test_a_payload_of_one_byte_and_the_most_padding(make_cipher):
    length = 252 if make_cipher is no_cipher else 256
    inbound = receiving(make_cipher)
    put(inbound, sealed(make_cipher, frame(length, length - 2)))
    assert inbound.next_payload() == b"\2"
    inbound.discard()


@BOTH
@pytest.mark.parametrize("kind", ["message", "data"])
def test_what_we_send_is_aligned_with_random_padding_of_at_least_4(make_cipher, kind):
    seen = set()
    for size in range(1, 70):
        outbound = sending(make_cipher)
        if kind == "data":
            ROOM[:size] = b"d" * size
            outbound.seal_channel_data(3, size)
        else:
            outbound.append(b"\2" * size)
        packet = bytearray(taken(outbound))
        length = int.from_bytes(packet[:4], "big")
        cipher = make_cipher()
        assert len(packet) == 4 + length + cipher.tag_size
        block = cipher.block_size
        assert (length + cipher.aligned_header) % block == 0 or kind == "data"
        if kind == "data" and make_cipher is no_cipher:
            continue  # there is no data in clear
        assert (length + cipher.aligned_header) % block == 0
        cipher.open_in_place(0, memoryview(packet))
        padding = packet[4]
        assert 4 <= padding < 4 + block
        body = packet[5 : 4 + length - padding]
        if kind == "data":
            assert body == bytes((94, 0, 0, 0, 3)) + size.to_bytes(4, "big") + b"d" * size
        else:
            assert body == b"\2" * size
        seen.add(bytes(packet[4 + length - padding : 4 + length]))
    assert len(seen) in (0, *range(30, 70)), "no constant padding"


# ---- numbers and nonces --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CIPHERS if "gcm" in name])
def test_each_packet_has_its_own_nonce_and_the_counter_wraps_alone(name):
    spec = CIPHERS[name]
    key, iv = os.urandom(spec.key_size), b"fix!" + b"\xff" * 7 + b"\xfe"
    one, two = spec.make(key, iv, "", b""), spec.make(key, iv, "", b"")
    outputs = set()
    for _ in range(4):
        plain = memoryview(frame(16, 4))
        packet = memoryview(bytearray(len(plain) + 16))
        one.seal_into(0, plain, packet)
        outputs.add(bytes(packet))
        two.open_in_place(0, packet)
        assert packet[:20] == plain
    assert len(outputs) == 4
    assert one._fixed == b"fix!", "only the counter of 8 bytes goes on (RFC 5647 §7.1)"
    assert one._counter == 2


def test_sequence_numbers_wrap_at_32_bits():
    inbound, outbound = receiving(aes_gcm), sending(aes_gcm)
    inbound.sequence_number = outbound.sequence_number = 0xFFFF_FFFF
    outbound.append(b"\2")
    put(inbound, taken(outbound))
    assert inbound.next_payload() == b"\2"
    assert (inbound.sequence_number, outbound.sequence_number) == (0, 0)
    inbound.discard()


# ---- buffers -------------------------------------------------------------------------------------


def test_buffers_are_lent_only_while_they_hold_something():
    free = len(POOL._free)
    outbound, inbound = sending(aes_gcm), receiving(aes_gcm)
    outbound.append(b"\2")
    assert outbound._wire is not None
    put(inbound, taken(outbound))
    assert outbound._wire is None
    inbound.idle()
    assert inbound._buffer is not None, "a packet is in it"
    assert inbound.next_payload() == b"\2"
    inbound.idle()
    assert inbound._buffer is None
    assert len(POOL._free) >= min(free, 1)


def test_discard_gives_all_back():
    outbound, inbound = sending(aes_gcm), receiving(aes_gcm)
    outbound.append(b"\2" * 100)
    put(inbound, b"\0\0\0\x20half")
    outbound.discard()
    inbound.discard()
    assert outbound._wire is None
    assert inbound._buffer is None
    assert outbound.data_to_send() is None
    assert not outbound.accepts_data


def test_data_stops_at_its_limit_and_control_messages_go_on():
    outbound = sending(aes_gcm)
    while outbound.accepts_data:
        outbound.seal_channel_data(0, 100_000)
    assert DATA_LIMIT <= outbound._end < DATA_LIMIT + 100_100
    outbound.append(b"\2" * 1000)
    assert not outbound._lane
    count = 0
    while not outbound._lane:
        outbound.append(b"\2" * 1000)
        count += 1
    assert count > 100
    outbound.append_transport(b"\2" * 1000)
    assert outbound._end < BUFFER_SIZE
    taken(outbound)
    assert not outbound._lane
    assert outbound.accepts_data
    taken(outbound)
    assert outbound._wire is None


def test_a_small_message_never_overtakes_a_large_one_that_waits():
    outbound, inbound = sending(aes_gcm), receiving(aes_gcm)
    while not outbound._lane:
        outbound.append(b"\2" * 30_000)
    outbound.append(b"\3")
    assert len(outbound._lane) == 2
    order = []
    while (view := outbound.data_to_send()) is not None:
        piece = bytes(view[: packets.RECEIVE_SIZE])
        outbound.data_sent(len(piece))
        put(inbound, piece)
        while (payload := inbound.next_payload()) is not None:
            order.append(payload[0])
    assert order == [2] * (len(order) - 1) + [3]
    inbound.idle()


def test_the_peer_that_reads_nothing_gets_no_more_transport_messages():
    outbound = sending(aes_gcm)
    while outbound._end < BUFFER_SIZE - 1400:
        outbound.append_transport(b"\2" * 1000)
    with pytest.raises(RemoteProtocolError, match="does not read what we send"):
        outbound.append_transport(b"\2" * 1400)
    outbound.discard()


def test_a_partial_send_keeps_the_rest():
    outbound = sending(no_cipher)
    outbound.append(b"\2" * 500)
    whole = bytes(outbound.data_to_send())
    outbound.data_sent(123)
    assert bytes(outbound.data_to_send()) == whole[123:]
    outbound.data_sent(len(whole) - 123)
    assert outbound.data_to_send() is None
    assert outbound.bytes_total == len(whole)


@pytest.mark.parametrize("size", [0, 1, MAXIMUM_DATA])
def test_channel_data_of_any_size(size):
    outbound, inbound = sending(aes_gcm), receiving(aes_gcm)
    data = os.urandom(size)
    ROOM[:size] = data
    outbound.seal_channel_data(0xFFFF_FFFF, size)
    stream = taken(outbound)
    for at in range(0, len(stream), packets.RECEIVE_SIZE):
        put(inbound, stream[at : at + packets.RECEIVE_SIZE])
    payload = inbound.next_payload()
    assert payload[0] == Msg.CHANNEL_DATA
    assert payload[1:5] == b"\xff" * 4
    assert payload[9:] == data
    inbound.idle()


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_lines_in_any_pieces(step):
    inbound = Inbound()
    text = b"first\r\nsecond\nSSH-2.0-x\r\nrest"
    lines = []
    for at in range(0, len(text), step):
        put(inbound, text[at : at + step])
        while (line := inbound.take_line(100)) is not None:
            lines.append(line)
    assert lines == [b"first\r", b"second", b"SSH-2.0-x\r"]
    inbound.discard()


# ---- buffers -------------------------------------------------------------------------------------


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_buffer_takes_the_memory_that_is_written_to():
    """Half a packet on each of many links is not a whole buffer on each."""
    pool = BufferPool()
    before = resident_bytes()
    lent = [pool.take() for _ in range(100)]
    for buffer in lent:
        buffer[:100] = bytes(100)
    grown = resident_bytes() - before
    assert grown < 100 * BUFFER_SIZE / 8
    for buffer in lent:
        buffer[:] = bytes(len(buffer))
    assert resident_bytes() - before > 90 * BUFFER_SIZE, "it can be measured"
    while lent:
        pool.give_back(lent.pop())
    del buffer
    assert resident_bytes() - before < (POOL_KEEPS + 20) * BUFFER_SIZE
