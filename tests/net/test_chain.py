"""The chain of links to a host: how it ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from gateway.ways.chain import Chain
from tests.support.memory import make_links


class Host:
    """A host of the way, in memory."""

    name = "the server"
    config = SimpleNamespace(connect_timeout_s=10)

    def __init__(self, links):
        self.links = links

    def link(self, _carrier):
        return self.links.client

    async def log_in(self, _client, timeout_s):
        return await self.links.log_in(timeout_s)

    def host_keys_update(self, _client):
        return None


async def test_a_defect_in_a_link_is_no_reason_to_wait_for_ever(monkeypatch):
    links = make_links()

    async def first_carrier(_self, _host, _timeout_s):
        return links.client_carrier, trio.current_time()

    def defect(_time_s):
        raise ZeroDivisionError

    async def connect():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(links.server.run)
            chain = Chain(nursery, [Host(links)])
            try:
                await chain.reach()
                links.link.on_tick = defect
                links.link.look_by(trio.current_time())
                await trio.sleep_forever()
            finally:
                await chain.aclose()

    monkeypatch.setattr(Chain, "_first_carrier", first_carrier)
    with pytest.raises(ExceptionGroup) as caught:
        await connect()
    assert caught.group_contains(ZeroDivisionError)
    assert links.client_carrier.is_closed
