"""A program with a guardian, for tests that kill one or both: ``python -m tests.support.guarded``.

Its argument names one of PLANS. It says `ready` with its guardian's table and process, and ends
when its input does, with what was undone; a word on its input names a further plan to apply.
"""

from __future__ import annotations

import sys
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

import trio

from gateway.tun.guardian import Guardian
from gateway.tun.plan import Carrier, Wanted, client_plan
from gateway.tun.server_plan import server_base_plan, server_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.tun.facts import Facts
    from gateway.tun.steps import Step

DEVICE = "gw0"
SUBNETS = (ip_network("10.20.0.0/16"), ip_network("fd20::/16"))


def client(table: int, facts: Facts, *, full_tunnel: bool = True) -> tuple[Step, ...]:
    wanted = Wanted(
        DEVICE,
        (ip_interface("10.8.0.2/32"), ip_interface("fd08::2/128")),
        1400,
        SUBNETS,
        (ip_network("10.20.5.0/24"),),
        full_tunnel,
    )
    return client_plan(wanted, Carrier(ip_address("10.20.1.1"), 22, 999), table, facts)


def subnets(table: int, facts: Facts) -> tuple[Step, ...]:
    return client(table, facts, full_tunnel=False)


def forwarding(table: int, facts: Facts) -> tuple[Step, ...]:
    return server_base_plan(
        [ip_network("10.8.0.0/24"), ip_network("fd08::/64")], [22], table, facts
    )


def one_client(_table: int, facts: Facts) -> tuple[Step, ...]:
    here = (ip_address("10.8.0.1"), ip_address("fd08::1"))
    return server_plan(DEVICE, here, (ip_address("10.8.0.2"), ip_address("fd08::2")), 1400, facts)


def server(table: int, facts: Facts) -> tuple[Step, ...]:
    return (*forwarding(table, facts), *one_client(table, facts))


PLANS: dict[str, Callable[[int, Facts], tuple[Step, ...]]] = {
    plan.__name__: plan for plan in (client, subnets, forwarding, one_client, server)
}


async def main(plan: str) -> None:
    async with Guardian() as guardian:
        for line in guardian.found.undone:
            print(f"found: {line}", flush=True)  # noqa: T201 - a program
        await guardian.apply(PLANS[plan](guardian.table, await guardian.facts()))
        print(f"ready {guardian.table} {guardian.pid}", flush=True)  # noqa: T201 - a program
        async for line in trio.wrap_file(sys.stdin):
            await guardian.apply(PLANS[line.strip()](guardian.table, await guardian.facts()))
            print("applied", flush=True)  # noqa: T201 - a program
    for line in guardian.undone.undone:
        print(f"undone: {line}", flush=True)  # noqa: T201 - a program


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
