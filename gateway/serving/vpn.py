"""What a server has for clients that want a VPN: addresses to lend, and a guardian for its network.

Everything that changes this machine goes through the guardian, which undoes it whatever ends us:
once for the server (forwarding, and one table of nftables), once for the device of each client.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from gateway.errors import NetworkSetupError
from gateway.serving.leases import Leases
from gateway.ssh.tunnel import LeaseReply
from gateway.tun.facts import Facts
from gateway.tun.guardian import Guardian
from gateway.tun.server_plan import server_base_plan, server_plan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.config.server_config import TunnelConfig
    from gateway.policy.addresses import Network
    from gateway.policy.leases import Lease
    from gateway.ssh.tunnel import LeaseRequest
    from gateway.tun.device import Device

log = logging.getLogger(__name__)


class VpnHost:
    """The VPN of one server, while ``run`` runs. A session is whatever tells links apart."""

    def __init__(self, config: TunnelConfig, listening: Iterable[int]) -> None:
        """``listening`` are the ports that this machine listens on."""
        self._config = config
        self._listening = tuple(listening)
        self._leases = Leases(config)
        self.pool = self._leases.pool
        self._lent: dict[int, Lease] = {}
        self._guardian = Guardian()
        self._facts = Facts()  # of the start: what a client's device needs of them stays
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Set this machine up, and undo all of it at the end. Raises `NetworkSetupError`."""
        async with self._guardian as guardian:
            for line in guardian.found.undone:
                log.warning("undone, left behind by a gateway that was killed: %s", line)
            config, self._facts = self._config, await guardian.facts()
            await guardian.apply(
                server_base_plan(
                    config.pool, self._listening, guardian.table, self._facts,
                    config.flows_per_client, masquerade=config.masquerade,
                )
            )  # fmt: skip
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._leases.run)
                task_status.started()
                await trio.sleep_forever()

    # -- addresses ---------------------------------------------------------------------------------

    def recall(self) -> None:
        """Read who had which address, as the user who wrote it."""
        self._leases.load()

    def lease(
        self,
        session: int,
        user_name: str,
        request: LeaseRequest,
        routes: tuple[Network, ...],
    ) -> LeaseReply:
        """Lend addresses to a link, the same ones if it asks again. Raises `NoLease`."""
        self._lent[session] = lease = self._leases.lease(user_name, session)
        wanted = lease.only(ipv4=request.wants_ipv4, ipv6=request.wants_ipv6)
        if wanted.client_addresses:  # else better than nothing: the client says what it misses
            lease = wanted
        return LeaseReply(lease.client_addresses, lease.server_addresses, self._config.mtu, routes)

    def leased(self, session: int) -> Lease | None:
        """Return what a link was lent."""
        return self._lent.get(session)

    def release(self, session: int) -> None:
        """The link is gone."""
        if self._lent.pop(session, None) is not None:
            self._leases.release(session)

    # -- devices -----------------------------------------------------------------------------------

    async def set_up(self, device: Device, lease: Lease) -> int:
        """Give a client's device its addresses; return the plan's number. `NetworkSetupError`."""
        return await self._guardian.apply(
            server_plan(
                device.name,
                [end.ip for end in lease.server_addresses],
                [end.ip for end in lease.client_addresses],
                self._config.mtu,
                self._facts,
            )
        )

    def tear_down(self, device: Device, plan: int) -> None:
        """Undo a plan, then close its device: not before, or another might have its name."""
        if self._nursery is None:
            device.close()
        else:
            self._nursery.start_soon(self._tear_down, device, plan)

    async def _tear_down(self, device: Device, plan: int) -> None:
        try:
            for line in (await self._guardian.undo(plan)).failed:
                log.warning("could not be undone: %s", line)
        except NetworkSetupError as error:
            log.warning("%s: %s", device.name, error)
        finally:
            device.close()
