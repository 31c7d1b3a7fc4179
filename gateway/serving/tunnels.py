"""Tunnels that clients ask for: tun@openssh.com (OpenSSH PROTOCOL §2.3), a device for each.

Whether a client may have one, and of which kind and number, rules and keys say. A client that was
lent addresses before gets a device that is set up for them, and may send from nothing else; any
other gets one as sshd's, to be set up by who administers this machine. Where packets may go, the
rules say in either case. A device is its channel's and ends with it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from gateway.config.interfaces import own_subnets
from gateway.errors import ConnectionLost, NetworkSetupError, RemoteProtocolError
from gateway.policy.leases import NoLease
from gateway.policy.rules import Action
from gateway.serving.authorize import authorize_device
from gateway.serving.channels import Refused
from gateway.ssh.numbers import OpenFailure
from gateway.ssh.tunnel import (
    CHANNEL_TYPE,
    OFFLOAD_CHANNEL_TYPE,
    LeaseRequest,
    OffloadConfirmation,
    OffloadOpen,
    TunOpen,
)
from gateway.tun.device import Device
from gateway.tun.packet import ANY_UNIT, Addresses, Drop, Mode
from gateway.tun.superpump import LEAST_PACKET_SIZE, TOO_SMALL, make_pump

if TYPE_CHECKING:
    from gateway import events
    from gateway.policy.leases import Lease
    from gateway.policy.rules import Verdict
    from gateway.serving.channels import Channels, Record
    from gateway.tun.packet import IpAddress

MAXIMUM_REPORTED: Final = 100  # destinations of one tunnel that were refused
_INTERNAL_ERROR: Final = "an internal error of the server"
_NO_POOL: Final = "this server lends no addresses: it has no [tunnel] in its configuration"


class Tunnels:
    """The tunnels of one link."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._shared = channels.shared
        self._link = channels.link
        self._known: set[Addresses] = set()

    def close(self) -> None:
        """The link is gone."""
        if self._shared.vpn is not None:
            self._shared.vpn.release(self._link.link_id)

    def forget(self) -> None:
        """Ask again where packets may go: rules, or this machine's addresses, may have changed."""
        for addresses in self._known:
            addresses.forget()

    # -- addresses ---------------------------------------------------------------------------------

    def lease(self, request_specific: bytes) -> bytes:
        """Answer the request for addresses. Raises `Refused` or `RemoteProtocolError`."""
        request = LeaseRequest.decode_untrusted(request_specific)
        verdict, _ = self._device_verdict(Mode.POINT_TO_POINT, None)
        if not verdict.allowed:
            raise Refused(verdict.reason, rule_id=verdict.rule_id)
        vpn, subject = self._shared.vpn, self._channels.login.subject
        if vpn is None:
            raise Refused(_NO_POOL)
        routes = self._shared.policy.allowed_networks(subject)
        try:
            reply = vpn.lease(self._link.link_id, subject.user_name, request, routes)
        except NoLease as error:
            raise Refused(str(error)) from error
        return reply.encode()

    # -- devices -----------------------------------------------------------------------------------

    def requested(self, event: events.ChannelOpenRequested) -> None:
        """Take an open. Raises `Refused`."""
        request, offloads = _decode(event)
        mode = Mode(request.tunnel_mode)
        asked = f"{mode.kind}{'' if request.unit is None else request.unit}"
        verdict, unit = self._device_verdict(mode, request.unit)
        if not verdict.allowed:
            raise Refused(verdict.reason, asked=asked, rule_id=verdict.rule_id)
        channel_id = event.channel_id
        record = self._channels.begin(CHANNEL_TYPE, asked)
        record.rule_id = verdict.rule_id
        self._decided(channel_id, asked, verdict)

        async def run() -> None:
            try:
                device = _open_device(mode, unit, offloads)
                await self._open(channel_id, device, record)
            except NetworkSetupError as error:
                self._failed(channel_id, record, str(error))

        self._channels.start_soon(run, lambda: self._failed(channel_id, record, _INTERNAL_ERROR))

    def _device_verdict(self, mode: Mode, unit: int | None) -> tuple[Verdict, int | None]:
        return authorize_device(self._shared.policy, self._channels.login, mode.kind, unit)

    def _decided(self, channel_id: int, what: str, verdict: Verdict) -> None:
        self._channels.decided(
            channel_id, Action.TUN.value, what, verdict.reason,
            allowed=verdict.allowed, rule_id=verdict.rule_id,
        )  # fmt: skip

    def _failed(self, channel_id: int, record: Record, reason: str) -> None:
        if record.channel_id < 0:
            record.fail(channel_id, reason)
        self._link.refuse_channel(channel_id, OpenFailure.CONNECT_FAILED, reason)

    async def _open(self, channel_id: int, device: Device, record: Record) -> None:
        """Set the device up if the client has addresses, and carry."""
        vpn, is_ip = self._shared.vpn, device.mode is Mode.POINT_TO_POINT
        lease = vpn.leased(self._link.link_id) if vpn and is_ip else None
        closing = ExitStack()
        closing.callback(device.close)
        try:
            if vpn is not None and lease is not None:
                plan = await vpn.set_up(device, lease)
                closing.pop_all()
                closing.callback(vpn.tear_down, device, plan)
            port = self._link.confirm_channel(channel_id, _confirmation(device))
            addresses = self._addresses(channel_id, device, lease)
            pump = make_pump(device, port, addresses.judge if is_ip else None)
            closing.callback(pump.close, _INTERNAL_ERROR)  # before the device, which it watches

            def ended(reason: str) -> None:
                closing.close()
                lost = ", ".join(f"{count} {drop.value}" for drop, count in pump.drops.items())
                record.end(port, f"{reason}; packets lost: {lost}" if lost else reason)

            record.start(port, device.name)
            self._channels.carry(pump)
            closing.callback(self._channels.done, pump)
            self._known.add(addresses)
            closing.callback(self._known.discard, addresses)
            pump.start(ended)
        except BaseException as error:
            closing.close()
            if isinstance(error, ConnectionLost):
                record.fail(channel_id, "the connection ended first", device.name)
                return
            raise

    # -- where packets may go ----------------------------------------------------------------------

    def _addresses(self, channel_id: int, device: Device, lease: Lease | None) -> Addresses:
        vpn = self._shared.vpn
        reported = 0

        def decide(source: IpAddress, destination: IpAddress) -> Drop | None:
            nonlocal reported
            if lease is not None and not lease.holds(source):
                return Drop.SOURCE
            if self._is_near_end(destination, device, lease):
                return None
            if vpn is not None and destination in vpn.pool:
                return Drop.DESTINATION  # another client
            verdict = self._verdict_on(destination)
            if verdict.allowed:
                return None
            if reported < MAXIMUM_REPORTED:
                reported += 1
                self._decided(channel_id, f"{device.name} to {destination}", verdict)
            return Drop.DESTINATION

        return Addresses(decide)

    def _verdict_on(self, destination: IpAddress) -> Verdict:
        return self._shared.policy.decide_tun_packet(self._channels.login.subject, destination)

    def _is_near_end(self, destination: IpAddress, device: Device, lease: Lease | None) -> bool:
        """Whether it is the server's own address in this very tunnel."""
        if lease is not None:
            return any(destination == end.ip for end in lease.server_addresses)
        return any(
            subnet.name == device.name and subnet.interface.ip == destination
            for subnet in own_subnets()
        )


def _open_device(mode: Mode, unit: int | None, offloads: int | None) -> Device:
    device = Device.open(mode, ANY_UNIT if unit is None else unit, offload=offloads is not None)
    try:
        if offloads is not None:
            device.leave_unfinished(offloads)
    except BaseException:
        device.close()
        raise
    return device


def _confirmation(device: Device) -> bytes:
    return b"" if device.offloads is None else OffloadConfirmation(device.offloads).encode()


def _decode(event: events.ChannelOpenRequested) -> tuple[TunOpen, int | None]:
    """Return what is asked for, and of a gateway what its device may be given unfinished."""
    offloads = None
    try:
        if event.channel_type == OFFLOAD_CHANNEL_TYPE:
            offer = OffloadOpen.decode_untrusted(event.type_specific)
            request, offloads = offer.plain, offer.offloads
        else:
            request = TunOpen.decode_untrusted(event.type_specific)
    except RemoteProtocolError as error:
        raise Refused(str(error), OpenFailure.CONNECT_FAILED) from error
    if request.problem or (offloads is not None and request.tunnel_mode != Mode.POINT_TO_POINT):
        problem = request.problem or "offloads are for layer 3"
        raise Refused(problem, OpenFailure.CONNECT_FAILED)
    if offloads is not None and event.maximum_packet_size < LEAST_PACKET_SIZE:
        raise Refused(TOO_SMALL, OpenFailure.CONNECT_FAILED)
    return request, offloads
