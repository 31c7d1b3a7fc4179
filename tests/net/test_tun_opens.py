"""Tunnels that come to nothing while they are opened leave neither channel nor device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio
import trio.testing

from gateway import events
from gateway.errors import ChannelOpenError, NetworkSetupError, RemoteProtocolError
from gateway.serving import tunnels
from gateway.ssh.tunnel import (
    CHANNEL_TYPE,
    OFFLOAD_CHANNEL_TYPE,
    OffloadConfirmation,
    OffloadOpen,
    TunOpen,
)
from gateway.tun import client
from gateway.tun.client import DeviceTunnel
from gateway.tun.packet import ANY_UNIT, Mode
from gateway.tun.pump import Pump
from tests.support.memory import linked, make_links
from tests.support.serving import running_box
from tests.support.tun import FakeDevice


class LostDevice(FakeDevice):
    """A device that somebody deletes before it is used."""

    made = ()

    @classmethod
    def open(cls, mode, _unit, *, offload=False):
        device = cls(mode, offloads=0 if offload else None)
        cls.made = (*cls.made, device)
        return device

    def leave_unfinished(self, _offloads):
        raise NetworkSetupError("it is gone")

    @property
    def is_closed(self):
        return self.kernel.fileno() < 0


@pytest.fixture
def lost_device(monkeypatch):
    for module in (client, tunnels):
        monkeypatch.setattr(module, "Device", LostDevice)
    monkeypatch.setattr(LostDevice, "made", ())
    return LostDevice


@pytest.mark.parametrize(
    ("confirmation", "error"),
    [(b"", RemoteProtocolError), (OffloadConfirmation(1).encode(), NetworkSetupError)],
)
@pytest.mark.usefixtures("lost_device")
async def test_a_channel_that_the_client_cannot_use_is_closed(confirmation, error):
    links, opened = make_links(), []

    def confirm(event):
        if isinstance(event, events.ChannelOpenRequested):
            opened.append(links.server.confirm_channel(event.channel_id, confirmation))

    links.handle = confirm
    async with linked(links):
        tunnel = DeviceTunnel(Mode.POINT_TO_POINT, ANY_UNIT)
        try:
            with pytest.raises(error):
                await tunnel.open(links.link, pytest.fail)
            with trio.fail_after(30):
                while not opened[0].close_received:
                    await trio.sleep(0.005)
        finally:
            tunnel.close()


async def test_a_device_that_the_server_cannot_use_is_closed(lost_device):
    async with running_box() as box:
        box.rules.tun.add("tun")
        client = await box.log_in()
        request = OffloadOpen(int(Mode.POINT_TO_POINT), ANY_UNIT, 1).encode()
        with pytest.raises(ChannelOpenError, match="it is gone"):
            await client.link.open_channel(OFFLOAD_CHANNEL_TYPE, request)
        (device,) = lost_device.made
        assert device.is_closed
        assert box.server.shared.channels == 0


class LendingVpn(SimpleNamespace):
    """A VPN that lends an address to everybody and counts what is torn down."""

    def __init__(self):
        super().__init__(torn_down=0, leased=lambda _session: object(), release=lambda _: None)

    async def set_up(self, _device, _lease):
        return 1

    def tear_down(self, device, _plan):
        self.torn_down += 1
        device.close()


def defect(*_):
    raise ZeroDivisionError


@pytest.mark.parametrize("with_lease", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "reported"),
    [
        (tunnels, "make_pump", [events.ChannelFailed]),
        (Pump, "_look_at_channel", [events.ChannelStarted, events.ChannelEnded]),
    ],
)
async def test_a_defect_after_the_confirmation_closes_the_device(
    lost_device, monkeypatch, owner, name, reported, with_lease
):
    async with running_box() as box:
        box.rules.tun.add("tun")
        client, vpn = await box.log_in(), LendingVpn()
        if with_lease:
            monkeypatch.setattr(box.server.shared, "vpn", vpn)
        monkeypatch.setattr(owner, name, defect)
        request = TunOpen(int(Mode.POINT_TO_POINT), ANY_UNIT).encode()
        port = await client.link.open_channel(CHANNEL_TYPE, request)
        await trio.testing.wait_all_tasks_blocked()
        assert port.close_received
        (device,) = lost_device.made
        assert device.is_closed
        assert vpn.torn_down == with_lease
        assert box.server.shared.channels == 0
        kinds = (events.ChannelFailed, events.ChannelStarted, events.ChannelEnded)
        assert [type(event) for event in box.reported if isinstance(event, kinds)] == reported
