"""Known vulnerabilities of what an installation of gateway brings, as pip-audit finds them.

Asked about are the versions that are installed here, of what `pip install gateway[vpn]` needs and
all that this needs; not the tools of tests and checks. Status 0: none is known; 1: some are; 75:
there was no answer, because this machine is offline or its index does not tell (EX_TEMPFAIL).
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

VULNERABLE, NO_ANSWER = 1, 75
DEADLINE_S = 20  # in all, beside the other checks, which take about as long
SILENCE_S = 3


def installed(name: str, extras: frozenset[str], found: dict[str, str]) -> dict[str, str]:
    """Add the versions of all that a package needs to ``found``."""
    for line in metadata.requires(name) or ():
        needed = Requirement(line)
        marker = needed.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        key = canonicalize_name(needed.name)
        if key not in found:
            try:
                found[key] = metadata.version(key)
            except metadata.PackageNotFoundError:  # an extra that could not be built here
                continue
            installed(key, frozenset(needed.extras), found)
    return found


def ask(versions: dict[str, str]) -> dict[str, Any] | None:
    """Return what pip-audit says of them; None if it came to nothing."""
    with TemporaryDirectory() as folder:
        pins = Path(folder, "requirements.txt")
        pins.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
        command = [
            sys.executable, "-m", "pip_audit", "--requirement", str(pins), "--no-deps",
            "--disable-pip", "--progress-spinner", "off", "--format", "json",
            "--timeout", str(SILENCE_S),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
            answer: dict[str, Any] = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError):
            return None
    return answer


def judge(answer: dict[str, Any] | None) -> tuple[int, list[str]]:
    """Return the exit status and what to print."""
    packages = answer["dependencies"] if answer else []
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        return NO_ANSWER, ["the index gave no answer about any package"]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}"
        f" (mended in {', '.join(found['fix_versions']) or 'no version yet'})"
        for package in known
        for found in package["vulns"]
    ]
    if lines:
        return VULNERABLE, lines
    return 0, [f"no vulnerability is known of {len(known)} of {len(packages)} packages"]


def main() -> int:
    """Ask and print; return the exit status."""
    status, lines = judge(ask(installed("gateway", frozenset({"vpn"}), {})))
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
