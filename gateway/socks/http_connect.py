"""HTTP as a proxy's client: CONNECT (RFC 9110 §9.3.6) with Basic authentication (RFC 7617).

The grammar of HTTP is h11's, which bounds what it keeps. Imported only where such a proxy is used.
"""

from __future__ import annotations

import base64
from typing import Final

import h11

from gateway.errors import LocalProtocolError, RemoteProtocolError, printable
from gateway.socks.upstream import ProxyRefused, checked_host

HEADER_LIMIT: Final = 16 * 1024  # bytes of a response's header; h11's own choice too
INFORMATIONAL_LIMIT: Final = 8  # responses 1xx before the one that counts

_VERSION: Final = b"HTTP/"
_REMEDIES: Final = {
    400: "it does not understand the request: is this an HTTP proxy?",
    401: "it wants a login that is not a proxy's: is this a proxy?",
    403: "its rules forbid it: many allow port 443 only; ask who runs it",
    404: "is this a proxy, or a web server?",
    405: "is this a proxy that allows CONNECT, or a web server?",
    501: "is this a proxy that allows CONNECT, or a web server?",
    502: "it does not reach the host: check the name, which the proxy looks up, and the port",
    503: "it does not reach the host: check the name, which the proxy looks up, and the port",
    504: "the host did not answer in time: is it up, and does a firewall let the proxy through?",
}


class HttpConnect:
    """One connection through an HTTP proxy; `gateway.socks.upstream.Handshake`."""

    def __init__(
        self, host: str, port: int, user: str | None = None, password: str | None = None
    ) -> None:
        name = checked_host(host).decode()
        target = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
        headers = [("Host", target)]
        if user is not None:
            token = base64.b64encode(f"{user}:{password or ''}".encode()).decode()
            headers.append(("Proxy-Authorization", f"Basic {token}"))
        self._has_credentials = user is not None
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_LIMIT)
        try:
            request = h11.Request(method="CONNECT", target=target, headers=headers)
            self._outgoing = self._http.send(request) or b""
            self._outgoing += self._http.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError as error:
            raise LocalProtocolError(f"HTTP has no way to say this: {error}") from error
        self._informational = 0
        self._head = b""
        self.is_done = False

    def data_to_send(self) -> bytes:
        """See `Handshake`."""
        data, self._outgoing = self._outgoing, b""
        return data

    def receive(self, data: bytes) -> int:
        """See `Handshake`."""
        self._head += data[: len(_VERSION) - len(self._head)]
        if not _VERSION.startswith(self._head):  # h11 would wait for a whole header
            raise RemoteProtocolError(
                f"the proxy's reply begins with {printable(self._head)}, which is not HTTP: "
                "check its URL"
            )
        try:
            self._http.receive_data(data)
            while not self.is_done:
                event = self._http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return len(data)
                if isinstance(event, h11.InformationalResponse):
                    self._count_informational()
                elif isinstance(event, h11.Response):
                    self._judge(event)
        except h11.RemoteProtocolError as error:
            raise RemoteProtocolError(
                f"the proxy's reply is not HTTP ({printable(str(error), 80)}): check its URL"
            ) from error
        rest, _ = self._http.trailing_data
        return len(data) - len(rest)

    def _count_informational(self) -> None:
        self._informational += 1
        if self._informational > INFORMATIONAL_LIMIT:
            raise RemoteProtocolError("the proxy goes on with informational responses")

    def _judge(self, response: h11.Response) -> None:
        code = response.status_code
        if 200 <= code < 300:
            self.is_done = True
            return
        reason = f"it answered {code} {printable(bytes(response.reason), 80)}".rstrip()
        if code == 407 and self._has_credentials:
            remedy = "it does not take this user and password: check them in its URL"
        elif code == 407:
            remedy = "write user and password into its URL"
        else:
            remedy = _REMEDIES.get(code, "its log may say why")
        raise ProxyRefused(f"{reason}: {remedy}")
