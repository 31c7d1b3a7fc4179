"""The data types of RFC 4251 §5: a bounds-checked reader and one encoder for each type.

Every length and count from the network is checked against the bytes that remain before anything is
allocated or looped over. The reader raises `RemoteProtocolError` and nothing else.
"""

from __future__ import annotations

from typing import Final

from gateway.errors import RemoteProtocolError

MAXIMUM_NAME_LENGTH: Final = 64  # RFC 4251 §6: names are at most 64 characters
MAXIMUM_MPINT_LENGTH: Final = 16384 // 8 + 1  # as OpenSSH: SSHBUF_MAX_BIGNUM, plus the sign byte


class Reader:
    """Takes fields from the front of one message; `end` says that nothing may be left."""

    __slots__ = ("_data", "_end", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._end = len(data)

    @property
    def remaining(self) -> int:
        """How many bytes are still unread."""
        return self._end - self._position

    def take(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        start = self._position
        if length > self._end - start:
            raise RemoteProtocolError(
                f"a field of {length} bytes with only {self._end - start} bytes left"
            )
        self._position = start + length
        return self._data[start : self._position]

    def byte(self) -> int:
        """Return one byte as a number."""
        return self.take(1)[0]

    def boolean(self) -> bool:
        """Return a boolean; RFC 4251 §5: every value but zero is true."""
        return self.take(1) != b"\0"

    def uint32(self) -> int:
        """Return a 32-bit number."""
        return int.from_bytes(self.take(4), "big")

    def uint64(self) -> int:
        """Return a 64-bit number."""
        return int.from_bytes(self.take(8), "big")

    def string(self) -> bytes:
        """Return a length-prefixed string of bytes."""
        return self.take(self.uint32())

    def text(self) -> str:
        """Return a string that must be UTF-8 without NUL: a name that we act upon."""
        data = self.string()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise RemoteProtocolError(f"a name is not UTF-8: {data[:64]!r}") from None
        if "\0" in text:
            raise RemoteProtocolError(f"a name holds a NUL: {data[:64]!r}")
        return text

    def loose_text(self) -> str:
        """Return a string meant for people; bad UTF-8 is replaced. Not safe to print as it is."""
        return self.string().decode("utf-8", "replace")

    def name_list(self) -> tuple[str, ...]:
        """Return a name-list: comma-separated ASCII names, none of them empty (RFC 4251 §5)."""
        data = self.string()
        if not data:
            return ()
        if not data.isascii() or b"\0" in data:
            raise RemoteProtocolError("a name-list is not printable ASCII")
        names = tuple(data.decode("ascii").split(","))
        if "" in names:
            raise RemoteProtocolError("a name-list holds an empty name")
        return names

    def mpint(self) -> int:
        """Return a non-negative multiple-precision integer in its only legal form."""
        data = self.string()
        if len(data) > MAXIMUM_MPINT_LENGTH:
            raise RemoteProtocolError(f"an mpint of {len(data)} bytes")
        if data and data[0] & 0x80:
            raise RemoteProtocolError("a negative mpint")
        if data and data[0] == 0 and (len(data) == 1 or not data[1] & 0x80):
            raise RemoteProtocolError("an mpint with needless leading zeros")
        return int.from_bytes(data, "big")

    def rest(self) -> bytes:
        """Return everything that is left."""
        return self.take(self._end - self._position)

    def end(self) -> None:
        """Refuse trailing bytes."""
        if self._position != self._end:
            raise RemoteProtocolError(f"{self._end - self._position} bytes after the last field")


def boolean(value: bool) -> bytes:  # noqa: FBT001 - the RFC's type
    """Encode a boolean."""
    return b"\1" if value else b"\0"


def uint32(value: int) -> bytes:
    """Encode a 32-bit number."""
    return value.to_bytes(4, "big")


def uint64(value: int) -> bytes:
    """Encode a 64-bit number."""
    return value.to_bytes(8, "big")


def string(value: bytes) -> bytes:
    """Encode a string of bytes."""
    return len(value).to_bytes(4, "big") + value


def text(value: str) -> bytes:
    """Encode text as UTF-8."""
    return string(value.encode("utf-8", "surrogateescape"))


def name_list(names: tuple[str, ...]) -> bytes:
    """Encode a name-list."""
    return string(",".join(names).encode("ascii"))


def mpint(value: int) -> bytes:
    """Encode a non-negative multiple-precision integer."""
    return string(value.to_bytes(value.bit_length() // 8 + 1, "big") if value else b"")
