"""What BindInterface, TCPKeepAlive and IPQoS do to the socket of a link."""

import contextlib
import errno
import os
import socket

import pytest
import trio

from gateway.net.dial import DialError, DialOptions, dial


def has_ipv6():
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")


@pytest.mark.parametrize(
    ("address", "level", "option"),
    [
        ("127.0.0.1", socket.IPPROTO_IP, socket.IP_TOS),
        pytest.param("::1", socket.IPPROTO_IPV6, socket.IPV6_TCLASS, marks=needs_ipv6),
    ],
)
async def test_traffic_class_and_keep_alive(address, level, option):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        options = DialOptions(traffic_class=0xB8, keep_alive=True)
        with await dial(address, port, options) as marked, await dial(address, port) as plain:
            assert marked.getsockopt(level, option) == 0xB8
            assert plain.getsockopt(level, option) == 0
            assert marked.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert not plain.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.skipif(os.getuid() != 0, reason="older kernels let only root do it")
async def test_an_interface():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with await dial("127.0.0.1", port, DialOptions(bind_interface="lo")) as sock:
            name = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
            assert name.rstrip(b"\0") == b"lo"
        with pytest.raises(DialError) as caught, trio.fail_after(30):
            await dial("127.0.0.1", port, DialOptions(bind_interface="nosuch0"))
        assert caught.value.error_number == errno.ENODEV
