"""Diffie-Hellman in the integers modulo a safe prime (RFC 4253 §8, RFC 3526, RFC 8268).

The arithmetic is Python's ``pow``: `cryptography` has deprecated finite-field Diffie-Hellman. Its
time depends on the exponent, which is used once and then forgotten, over a network, behind a curve
in both sides' preferences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.errors import RemoteProtocolError
from gateway.ssh.numbers import Disconnect

if TYPE_CHECKING:
    from collections.abc import Callable

GENERATOR: Final = 2
EXPONENT_SIZE: Final = 64  # bytes: twice the strength of any cipher here (RFC 4419 §6.2)
MINIMUM_BITS: Final = 2048
PREFERRED_BITS: Final = 3072
MAXIMUM_BITS: Final = 8192

# RFC 3526: p = 2^n - 2^(n-64) - 1 + 2^64 * (floor(2^(n-130) * pi) + k)
_RFC_3526: Final = {2048: 124476, 4096: 240904, 8192: 4743158}


def _pi_times_two_to(bits: int) -> int:
    """Return floor(2^bits * pi), by Machin's formula in integers."""
    guard = 64
    one = 1 << (bits + guard)

    def arctan_of_inverse(x: int) -> int:
        term = total = one // x
        n, sign = 3, -1
        while term:
            term //= x * x
            total += sign * (term // n)
            n, sign = n + 2, -sign
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239)) >> guard


def modp_prime(bits: int) -> int:
    """Return the prime of RFC 3526's group of this size: it is defined by a formula."""
    pi = _pi_times_two_to(bits - 130)
    return (1 << bits) - (1 << (bits - 64)) - 1 + ((pi + _RFC_3526[bits]) << 64)


class DiffieHellman:
    """One side of one exchange in a group."""

    def __init__(self, p: int, g: int, randbytes: Callable[[int], bytes]) -> None:
        self._p = p
        self._x = int.from_bytes(randbytes(EXPONENT_SIZE), "big") | 1 << (8 * EXPONENT_SIZE - 1)
        self.public = pow(g, self._x, p)

    def shared(self, peer_public: int) -> int:
        """Return the shared secret; e or f outside [2, p-2] is refused (RFC 4253 §8)."""
        if not 2 <= peer_public <= self._p - 2:
            raise RemoteProtocolError(
                "the peer's Diffie-Hellman value is out of range", Disconnect.KEY_EXCHANGE_FAILED
            )
        return pow(peer_public, self._x, self._p)


def check_group_untrusted(p: int, g: int) -> None:
    """Refuse a group that a server made up and that is too small, too large or trivial."""
    bits = p.bit_length()
    if not MINIMUM_BITS <= bits <= MAXIMUM_BITS or not p & 1 or not 2 <= g <= p - 2:
        raise RemoteProtocolError(
            f"the server's Diffie-Hellman group of {bits} bits is not acceptable",
            Disconnect.KEY_EXCHANGE_FAILED,
        )
