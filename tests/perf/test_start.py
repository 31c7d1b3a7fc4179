"""What a start costs: processor time next to that of trio alone, which nobody can do without."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parent.parent.parent
ROUNDS = 5
BUDGET = 2.5  # x `import trio`; 2.1 when this was written


def seconds(code, cache):
    """Processor time of an interpreter that runs this and ends."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with subprocess.Popen([sys.executable, "-c", code], cwd="/", env=environment) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


def test_the_modules_of_connect_load_quickly(tmp_path):
    codes = ("import trio", "import gateway.cli.connect")
    for code in codes:
        seconds(code, tmp_path)  # writes the bytecode
    times = [[seconds(code, tmp_path) for code in codes] for _ in range(ROUNDS)]
    # Of each round, since a machine that others use may be twice as fast a second later.
    ratio = statistics.median(ours_s / trio_s for trio_s, ours_s in times)
    assert ratio < BUDGET, times
