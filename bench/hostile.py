"""The peers of `scripts/bench floods`, in a process of their own: `python -m bench.hostile JSON`.

It does one task and prints as JSON what came of it: `flood`, one of `tests.support.floods`; `hold`,
connections that say a byte every 10 s; `listen`, clients that have a port listened on, of which
nothing more is said, for they are going to be killed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.ssh.keyfiles import parse_private_key_file_untrusted
from gateway.ssh.messages import GlobalRequest, TcpipForward
from gateway.ssh.transport import Phase
from tests.support.aborts import BYTE_EVERY_S, SLOW, Holders
from tests.support.floods import Until, floods
from tests.support.raw_client import Place

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

Outcome = dict[str, float]
SOCKS_START = b"\x05\x01"  # half of a greeting (RFC 1928 §3)
LOOK_S = 0.1


def flood(place: Place, target: int, name: str, count: int, seconds: float) -> Outcome:
    """One flood, to its end or for so long."""
    until = Until(count, seconds)
    floods((place.host, target))[name].run(place, until)
    return {
        "said": until.said,
        "links": until.links,
        "refused": until.refused,
        "unended": until.unended,
        "seconds": until.took_s,
    }


def hold(place: Place, target: int, count: int, seconds: float) -> Outcome:
    """Hold on to an SSH port, from all steps of a login; at most so many are there at once."""
    holders = Holders((place.host, target))
    holders.hold([place] * count, SLOW)
    print("ready", flush=True)
    most, began_s = 0, time.monotonic()
    while time.monotonic() - began_s < seconds:
        most = max(most, holders.tick())
        time.sleep(LOOK_S)
    return {"came": holders.came, "most": most, "left": holders.tick()}


def hold_socks(place: Place, target: int, count: int, seconds: float) -> Outcome:
    """The same with a SOCKS port; who is closed does not come again."""
    del target
    held = [place.connect() for _ in range(count)]
    for sock in held:
        sock.sendall(SOCKS_START[:1])
        sock.setblocking(False)
    print("ready", flush=True)
    began_s = next_byte_s = time.monotonic()
    while held and time.monotonic() - began_s < seconds:
        time.sleep(LOOK_S)
        held = [sock for sock in held if _is_open(sock)]
        if time.monotonic() - next_byte_s > BYTE_EVERY_S:
            next_byte_s = time.monotonic()
            for sock in held:
                sock.send(SOCKS_START[1:])
    return {"came": count, "left": len(held), "seconds": time.monotonic() - began_s}


def _is_open(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(100))
    except BlockingIOError:
        return True
    except OSError:
        return False


def listen(place: Place, target: int, count: int) -> Outcome:
    """Have so many clients, each with a port that is listened on and a channel that is open."""
    asked = GlobalRequest("tcpip-forward", True, TcpipForward("localhost", 0).encode()).encode()
    clients = []
    for _ in range(count):  # one after the other, or some would be dropped before their login
        client = place.client()
        clients.append(client)
        client.reach(Phase.CONNECTION)
        client.say(asked)
        client.open_tcpip((place.host, target))
        client.settle_opens()
    print("ready", flush=True)
    while True:
        time.sleep(BYTE_EVERY_S)


TASKS: dict[str, Callable[..., Outcome]] = {
    "flood": flood,
    "hold": hold,
    "hold socks": hold_socks,
    "listen": listen,
}


def main(request: dict[str, Any]) -> None:
    text = Path(request["key"]).read_bytes()
    key = parse_private_key_file_untrusted(text, request.pop("key")).decrypt()
    place = Place(request.pop("host"), request.pop("port"), request.pop("user"), key)
    print(json.dumps(TASKS[request.pop("task")](place, **request)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
