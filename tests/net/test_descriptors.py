"""Descriptors that others have too: of each kind, with and without a file of our own."""

from __future__ import annotations

import fcntl
import os
import socket
import tty

import pytest
import trio
import trio.testing

from gateway.net.descriptors import Descriptor

DATA = os.urandom(1_000_000)


def pipe(_folder):
    return os.pipe()


def sockets(_folder):
    reading, writing = socket.socketpair()
    return reading.detach(), writing.detach()


def terminal(_folder):
    writing, reading = os.openpty()
    tty.setraw(reading)
    return reading, writing


def fifo(folder):
    path = folder / "fifo"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reading, fcntl.F_SETFL, 0)
    return reading, os.open(path, os.O_WRONLY)


KINDS = [pipe, sockets, terminal, fifo]


@pytest.fixture(params=["own", "thread"])
def way(request, monkeypatch):
    """With a file of our own, or as where it may not be opened again."""
    if request.param == "thread":
        monkeypatch.setattr("gateway.net.descriptors._open_again", refused)
    return request.param


def refused(number, access):
    raise PermissionError


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def ends(request, tmp_path):
    reading, writing = request.param(tmp_path)
    yield reading, writing
    for number in (reading, writing):
        os.close(number)


async def test_nothing_is_made_non_blocking(way, ends):
    await test_all_passes(way, ends)
    for number in ends:
        assert not fcntl.fcntl(number, fcntl.F_GETFL) & os.O_NONBLOCK


async def test_all_passes(way, ends):
    reading, writing = ends
    source, sink = Descriptor.for_reading(reading), Descriptor.for_writing(writing)
    got = bytearray()

    async def read():
        while len(got) < len(DATA):
            got.extend(await source.read())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await sink.write_all(DATA)
    assert got == DATA
    for descriptor in (source, sink):
        descriptor.close()
        descriptor.close()


async def test_others_made_it_non_blocking(way, ends):
    for number in ends:
        os.set_blocking(number, False)
    await test_all_passes(way, ends)


async def test_who_waits_can_be_cancelled(way, ends):
    reading, writing = ends
    source, sink = Descriptor.for_reading(reading), Descriptor.for_writing(writing)
    with trio.move_on_after(0.05) as scope:
        await source.read()
    assert scope.cancelled_caught
    os.write(writing, b"for the thread that still reads" * (way == "thread"))
    with trio.move_on_after(0.05) as scope:
        while True:
            await sink.write_all(DATA)
    assert scope.cancelled_caught
    if way == "thread":  # which still writes
        with open(reading, "rb", buffering=0, closefd=False) as rest:
            await trio.to_thread.run_sync(rest.read, 1 << 16)
    source.close()
    sink.close()


async def test_others_go_on_meanwhile(ends):
    reading, _ = ends
    source = Descriptor.for_reading(reading)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.read)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    source.close()


async def test_the_end_and_who_is_gone(tmp_path):
    reading, writing = os.pipe()
    source, sink = Descriptor.for_reading(reading), Descriptor.for_writing(writing)
    sink.close()
    os.close(writing)
    assert await source.read() == b""
    source.close()
    os.close(reading)
    reading, writing = os.pipe()
    sink = Descriptor.for_writing(writing)
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        await sink.write_all(b"x")
    sink.close()
    os.close(writing)


async def test_a_file_from_where_it_stands(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before" + DATA)
    number = os.open(path, os.O_RDWR)
    os.lseek(number, 6, os.SEEK_SET)
    source, sink = Descriptor.for_reading(number), Descriptor.for_writing(number)
    got = bytearray()
    while data := await source.read():
        got += data
    assert got == DATA
    await sink.write_all(b"after")
    assert path.read_bytes()[-10:] == DATA[-5:] + b"after"
    source.close()
    sink.close()
    os.close(number)


async def test_two_writers_wait_for_each_other():
    reading, writing = os.pipe()
    sink = Descriptor.for_writing(writing)
    source = Descriptor.for_reading(reading)
    blocks = [bytes([number]) * 200_000 for number in range(3)]
    got = bytearray()
    async with trio.open_nursery() as nursery:
        for block in blocks:
            nursery.start_soon(sink.write_all, block)
        while len(got) < 600_000:
            got += await source.read()
    runs = [got[at : at + 200_000] for at in range(0, 600_000, 200_000)]
    assert sorted(runs) == blocks
    for descriptor in (source, sink):
        descriptor.close()
    os.close(reading)
    os.close(writing)
