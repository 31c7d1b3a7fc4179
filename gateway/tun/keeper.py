"""Makes plans and unmakes them, with a journal: what the guardian's process and `cleanup` do.

Everything here is done under the folder's lock, so what one reads of the others' journals is true
until it is done. A step is announced in the journal before it is made, so an end at any moment,
kill -9 included, leaves nothing that the next one does not find.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gateway.errors import NetworkSetupError
from gateway.tun.journal import (
    Journal,
    Place,
    Process,
    free_table,
    locked,
    open_folder,
    read_journals,
)
from gateway.tun.steps import Family, Link, Step, StepFailed, Switch, in_short
from gateway.tun.sysctls import is_on, turn_on, values_before, write_setting, writes_to_restore

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.tun.facts import Facts
    from gateway.tun.journal import Record
    from gateway.tun.netlink import Kernel

_CAP_NET_ADMIN: Final = 12  # <linux/capability.h>
FAMILIES: Final[tuple[Family, ...]] = ("ipv4", "ipv6")
LOCK_TIMEOUT_S: Final = 10


@dataclass
class Report:
    """What was undone, and what could not be: lines for a person."""

    undone: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def check_rights() -> None:
    """Raise `NetworkSetupError` where this process may not change the network."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
        effective = next(line.split()[1] for line in status if line.startswith("CapEff:"))
    if not int(effective, 16) >> _CAP_NET_ADMIN & 1:
        raise NetworkSetupError(
            "this machine's network may be changed by root alone (CAP_NET_ADMIN): run it with sudo"
        )


def _kernel() -> Kernel:
    try:
        from gateway.tun.netlink import Kernel  # noqa: PLC0415 - brings pyroute2
    except ImportError as error:
        raise NetworkSetupError(
            f"the VPN needs what is not installed here ({error.name}): install gateway[vpn]"
        ) from error
    return Kernel()


def look() -> tuple[int, Facts]:
    """Return a table that is free and what plans have to know; needs no rights, changes nothing."""
    kernel = _kernel()
    try:
        forwarding = [family for family in FAMILIES if is_on(Switch(family))]
        return free_table(kernel.tables_in_use()), kernel.facts(forwarding)
    finally:
        kernel.close()


class Keeper:
    """One guardian's work: its journal and the kernel. ``parent`` is whom it works for."""

    def __init__(self, parent: Process) -> None:
        check_rights()
        self._folder = open_folder()
        self._parent = parent
        self._kernel = _kernel()
        self._journal: Journal | None = None
        self._plans = 0

    def begin(self) -> tuple[int, Report]:
        """Finish what others left, then begin a journal. Return our table, and what was left."""
        with locked(self._folder, LOCK_TIMEOUT_S) as lock:
            report = self._finish_abandoned(lock)
            self._journal = Journal.create(self._folder, self._parent, self._kernel.tables_in_use())
        return self._journal.header.table, report

    def clean_up(self) -> Report:
        """Finish what others left, and nothing else."""
        with locked(self._folder, LOCK_TIMEOUT_S) as lock:
            return self._finish_abandoned(lock)

    def facts(self) -> Facts:
        """Return what plans have to know of this machine."""
        with locked(self._folder, LOCK_TIMEOUT_S):
            forwarding = [
                family
                for family in FAMILIES
                if is_on(Switch(family)) and not self._holders(Switch(family))
            ]
            return self._kernel.facts(forwarding)

    def apply(self, steps: list[Step]) -> int:
        """Make all steps of a plan, or none; return its number. Raises `NetworkSetupError`."""
        self._plans += 1
        with locked(self._folder, LOCK_TIMEOUT_S) as lock:
            for step in steps:
                try:
                    self._make(step, lock)
                except (StepFailed, OSError) as said:  # OSError: the journal could not be written
                    report = self._undo(self._own(), self._plans, lock)
                    raise refused(step, said, report) from said
        return self._plans

    def undo(self, plan: int) -> Report:
        """Undo one plan, last step first."""
        with locked(self._folder) as lock:
            return self._undo(self._own(), plan, lock)

    def end(self) -> Report:
        """Undo everything, and remove the journal unless something is left in it."""
        with locked(self._folder) as lock:
            return self._finish(self._own(), lock)

    def close(self) -> None:
        """Close the netlink socket."""
        self._kernel.close()

    # ---- making

    def _own(self) -> Journal:
        if self._journal is None:
            raise RuntimeError("begin() comes first")
        return self._journal

    def _make(self, step: Step, lock: int) -> None:
        journal = self._own()
        if isinstance(step, Switch):
            self._make_switch(step, journal)
            return
        before = self._kernel.before(step)
        record = journal.will_make(self._plans, step, before)
        try:
            self._kernel.make(step, before, keep=lock)
        except StepFailed:
            # One message to the kernel was refused as a whole; a link may be changed by half.
            if not isinstance(step, Link):
                journal.is_undone(record)
            raise

    def _make_switch(self, step: Switch, journal: Journal) -> None:
        holders = self._holders(step)
        if holders:
            before = holders[0][1].before  # from before the first of us
        elif is_on(step):
            return  # somebody else's
        else:
            before = dict(values_before(step))
        journal.will_make(self._plans, step, before)
        try:
            turn_on(step, before)
        except OSError as error:
            raise StepFailed(error.strerror or str(error)) from error

    def _holders(self, switch: Switch) -> list[tuple[Path, Record]]:
        """Return the records of all gateways of this network that need a switch."""
        here = Place.here()
        return [
            (journal.path, record)
            for journal in read_journals(self._folder)
            if journal.header.place == here
            for record in journal.records.values()
            if record.step == switch
        ]

    # ---- undoing

    def _finish_abandoned(self, lock: int) -> Report:
        report = Report()
        here = Place.here()
        for journal in read_journals(self._folder):
            if journal.header.place == here:
                if journal.header.is_abandoned(self._parent):
                    self._add(report, self._finish(journal, lock))
            elif journal.header.place.is_gone(here):
                journal.remove()
        return report

    def _finish(self, journal: Journal, lock: int) -> Report:
        report = self._undo(journal, None, lock)
        if not journal.records:
            journal.remove()
        return report

    def _undo(self, journal: Journal, plan: int | None, lock: int) -> Report:
        report = Report()
        for record in reversed(list(journal.records.values())):
            if plan is not None and record.plan != plan:
                continue
            try:
                if self._unmake(journal, record, lock):
                    report.undone.append(in_short(record.step))
            except Exception as said:  # noqa: BLE001 - also with a bug here, the rest is undone
                reason = said if isinstance(said, StepFailed) else repr(said)
                report.failed.append(f"{in_short(record.step)}: {reason}")
            else:
                journal.is_undone(record)
        return report

    def _unmake(self, journal: Journal, record: Record, lock: int) -> bool:
        if not isinstance(record.step, Switch):
            return self._kernel.unmake(record.step, record.before, keep=lock)
        mine = (journal.path, record.number)
        if any((path, other.number) != mine for path, other in self._holders(record.step)):
            return False  # the last one turns it off, also where we had begun to
        if record.writes is None:
            journal.will_write(record, writes_to_restore(record.step, record.before))
        return _write_all(record.writes or [])

    @staticmethod
    def _add(report: Report, more: Report) -> None:
        report.undone += more.undone
        report.failed += more.failed


def _write_all(writes: list[tuple[str, str]]) -> bool:
    for path, value in writes:
        try:
            write_setting(path, value)
        except FileNotFoundError:
            continue  # its device is gone
        except OSError as error:
            raise StepFailed(f"{path}: {error.strerror}") from error
    return bool(writes)


def refused(step: Step, said: Exception, report: Report) -> NetworkSetupError:
    """Return the error of a plan that came to nothing."""
    text = f"`{in_short(step)}` failed: {said}"
    if report.failed:
        text += f"; this could not be undone: {'; '.join(report.failed)}"
    else:
        text += "; everything is as it was before"
    return NetworkSetupError(text)
