"""The algorithms that a configuration may choose from, one pair of lists for each keyword.

What a list of ssh_config(5) starts from (``+`` and ``-``) is the default; names and patterns choose
among the supported ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gateway.ssh import algorithms
from gateway.ssh.algorithms import (
    DEFAULT_HOST_KEY_ALGORITHMS,
    DEFAULT_KEX,
    DEFAULT_MACS,
    DEFAULT_USER_KEY_ALGORITHMS,
    PLAIN_KEY_ALGORITHMS,
)

__all__ = [
    "CA_SIGNATURE_ALGORITHMS",
    "CIPHERS",
    "DEFAULT_CA_SIGNATURE_ALGORITHMS",
    "DEFAULT_CIPHERS",
    "DEFAULT_HOST_KEY_ALGORITHMS",
    "DEFAULT_KEX",
    "DEFAULT_MACS",
    "DEFAULT_PUBKEY_ALGORITHMS",
    "HOST_KEY_ALGORITHMS",
    "KEX",
    "MACS",
    "PUBKEY_ALGORITHMS",
]


def _processor_has_aes() -> bool:
    """Look at the flags of the processor: "aes" on x86 and ARM alike (proc(5))."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return True
    return "aes" in flags


CIPHERS: Final = algorithms.DEFAULT_CIPHERS
DEFAULT_CIPHERS: Final = CIPHERS if _processor_has_aes() else algorithms.without_aes(CIPHERS)
KEX: Final = DEFAULT_KEX
MACS: Final = DEFAULT_MACS
HOST_KEY_ALGORITHMS: Final = DEFAULT_HOST_KEY_ALGORITHMS
PUBKEY_ALGORITHMS: Final = DEFAULT_USER_KEY_ALGORITHMS
CA_SIGNATURE_ALGORITHMS: Final = PLAIN_KEY_ALGORITHMS

DEFAULT_PUBKEY_ALGORITHMS: Final = DEFAULT_USER_KEY_ALGORITHMS
DEFAULT_CA_SIGNATURE_ALGORITHMS: Final = PLAIN_KEY_ALGORITHMS
