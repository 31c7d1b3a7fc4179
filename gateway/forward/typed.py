"""What a person types after ``~C`` about the forwardings of a link: `net.command_line.Forwards`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.forward.spec import Kind

if TYPE_CHECKING:
    from gateway.forward.table import Table


class TypedForwards:
    """A table by the letters and the words of ssh(1)'s options."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def list(self) -> list[str]:
        """Return a line for each."""
        return [str(active.forward) for active in self._table.active]

    async def add(self, kind: str, spec: str) -> str:
        """Set one up; return what to tell. Raises `GatewayError`."""
        active = await self._table.add(Kind(kind), spec)
        return f"Forwarding {active.forward}."

    async def cancel(self, kind: str, spec: str) -> str:
        """End one; return what to tell. Raises `GatewayError`."""
        await self._table.cancel(Kind(kind), spec)
        return f"Canceled -{kind} {spec}."
