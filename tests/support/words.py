"""Every word of handshake and auth messages against either role, and the machine that shows.

``explore`` sends every word up to a length from where a protocol stands: depth first, so that words
share their prefixes, and back to a `Snapshot` after each letter. A word that has closed the link is
not made longer: a closed link ignores everything. What is seen goes into a `Machine`, whose states
are what a peer could tell apart, not what our code calls its phases; `tests/pair/test_words.py`
compares it with the phase table. ``python -m tests.support.words`` prints its figures, and with
``--write`` draws it into PROTOCOL.md.

The peer is the attacker at its best: it has the keys of both directions, the right host key and a
right signature, so that nothing is refused for its content that another order would let pass.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

from gateway import events
from gateway.errors import RemoteProtocolError
from gateway.ssh import groups, kex, messages, wire
from gateway.ssh.algorithms import STRICT_C, STRICT_S, Preferences
from gateway.ssh.numbers import Msg
from gateway.ssh.protocol import ClientSetup, Protocol, ServerSetup
from gateway.ssh.transport import Phase, Role
from gateway.ssh.userauth import (
    PUBLICKEY,
    SERVICE_CONNECTION,
    SERVICE_USERAUTH,
    ClientAuth,
    signed_data,
)
from tests.support.pair import HOST_KEY, USER_KEY, feed, inject, local_kexinit, take

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

LENGTH: Final = 4
USER: Final = "alice"
CURVE: Final = "curve25519-sha256"
GROUP_EXCHANGE: Final = "diffie-hellman-group-exchange-sha256"  # for clients only, in two rounds
_PRIME: Final = groups.modp_prime(2048)


# ---- going back ----------------------------------------------------------------------------------


class Snapshot:
    """All that an object of ours knows at one moment, and all that it leads to, to go back to.

    The objects stay the same ones, as everything that points to them expects: what is put back is
    their attributes and the contents of their lists. What is not ours and has a state of its own,
    such as a stream cipher of AES-CTR, cannot be put back.
    """

    def __init__(self, root: object) -> None:
        self._containers: list[tuple[Any, Any]] = []  # attributes are in one too, or are slots
        self._slots: list[tuple[object, str, Any]] = []
        self._counts: list[tuple[dict[str, Any], str, int]] = []
        self._seen: set[int] = set()
        self._walk(root)
        self.restore()  # what has counted was asked for its next number

    def _walk(self, value: Any) -> None:
        kind: Any = type(value)
        is_container = kind in _CONTAINERS
        if not (is_container or _has_state(kind)) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if is_container:
            self._containers.append((value, value.copy()))
            for item in value.values() if kind is dict else value:
                self._walk(item)
            return
        attributes = getattr(value, "__dict__", {})
        for name, item in attributes.items():
            if isinstance(item, itertools.count):
                self._counts.append((attributes, name, next(item)))
        self._walk(attributes)
        for name in _slots(kind):
            if hasattr(value, name):
                self._slots.append((value, name, getattr(value, name)))
                self._walk(getattr(value, name))

    def restore(self) -> None:
        """Go back. A snapshot is good for any number of times."""
        for container, content in self._containers:
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(content)
        for target, name, value in self._slots:
            setattr(target, name, value)
        for attributes, name, value in self._counts:
            attributes[name] = itertools.count(value)


_CONTAINERS: Final = frozenset((dict, deque, list, set))


@cache
def _has_state(kind: Hashable) -> bool:
    assert isinstance(kind, type)
    return (
        kind.__module__.startswith("gateway.")
        and not issubclass(kind, Enum | type)
        and not (dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen)  # type: ignore[attr-defined]
    )


@cache
def _slots(kind: Hashable) -> tuple[str, ...]:
    assert isinstance(kind, type)
    names = itertools.chain(*(getattr(base, "__slots__", ()) for base in kind.__mro__))
    return tuple(name for name in names if name != "__weakref__")


# ---- the alphabet --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Letter:
    """A message that the peer sends; ``make`` gives it the content that fits where we stand."""

    name: str
    number: int
    make: Callable[[Side], bytes]

    def __str__(self) -> str:
        return self.name


def _fixed(name: str, message: messages.Message) -> Letter:
    payload = message.encode()
    return Letter(name, payload[0], lambda _side: payload)


@cache
def _kexinit(role: Role, method: str, *, strict: bool, guesses: bool) -> bytes:
    """Offer to ``role`` what the other role of ours offers; ``guesses`` of a method: wrongly."""
    offer = local_kexinit(_fresh(Role.SERVER if role is Role.CLIENT else Role.CLIENT, CURVE))
    _, *markers = offer.kex_algorithms
    names = [method, *(name for name in markers if strict or name not in (STRICT_C, STRICT_S))]
    return dataclasses.replace(
        offer,
        kex_algorithms=("a-guess", *names) if guesses else tuple(names),
        first_kex_packet_follows=guesses,
    ).encode()


def _kex_reply(side: Side) -> bytes:
    """Answer our client's KEX_ECDH_INIT as the server with the right host key would."""
    method = side.protocol.transport._method
    if side.role is Role.SERVER or not isinstance(method, kex.OneRound):
        return messages.KexEcdhReply(HOST_KEY.public.blob, bytes(32), b"").encode()
    init = messages.KexEcdhInit(method._client_value).encode()
    value, hashed, k = kex.METHODS[CURVE](os.urandom).respond_untrusted(init)
    signature = _signature_of_exchange(side.protocol, method, hashed, k)
    return messages.KexEcdhReply(HOST_KEY.public.blob, value, signature).encode()


def _gex_reply(side: Side) -> bytes:
    """Answer our client's KEX_DH_GEX_INIT likewise."""
    method = side.protocol.transport._method
    if not isinstance(method, kex.GroupExchange) or method._agreement is None:
        return messages.KexDhGexReply(HOST_KEY.public.blob, b"\x09", b"").encode()
    f, k = kex.FiniteField(_PRIME, groups.GENERATOR, os.urandom).respond(method._agreement.start())
    signature = _signature_of_exchange(side.protocol, method, method._hashed + wire.string(f), k)
    return messages.KexDhGexReply(HOST_KEY.public.blob, f, signature).encode()


def _signature_of_exchange(client: Protocol, method: kex.Method, hashed: bytes, k: bytes) -> bytes:
    exchange_hash = client.transport._hash(method, HOST_KEY.public.blob, hashed, k)
    return HOST_KEY.sign(exchange_hash, HOST_KEY.public.algorithm)


def _signed_request(side: Side) -> bytes:
    """Log in with a right signature."""
    algorithm, blob = USER_KEY.public.algorithm, USER_KEY.public.blob
    data = signed_data(
        side.protocol.transport.session_id, USER, SERVICE_CONNECTION, algorithm, blob
    )
    fields = messages.PublickeyRequest(True, algorithm, blob, USER_KEY.sign(data, algorithm))
    return _request(PUBLICKEY, fields.encode()).encode()


def _request(method: str, fields: bytes = b"") -> messages.UserauthRequest:
    return messages.UserauthRequest(USER, SERVICE_CONNECTION, method, fields)


_KEY: Final = (USER_KEY.public.algorithm, USER_KEY.public.blob)
_QUERY: Final = messages.PublickeyQuery(False, *_KEY).encode()

LETTERS: Final = (
    _fixed("DISCONNECT", messages.DisconnectMessage(11, "bye")),
    _fixed("IGNORE", messages.Ignore(b"x")),
    _fixed("UNIMPLEMENTED", messages.Unimplemented(0)),
    _fixed("DEBUG", messages.Debug(False, "x")),
    _fixed("SERVICE_REQUEST", messages.ServiceRequest(SERVICE_USERAUTH)),
    _fixed("SERVICE_ACCEPT", messages.ServiceAccept(SERVICE_USERAUTH)),
    _fixed("EXT_INFO", messages.ext_info({})),
    Letter(
        "KEXINIT",
        Msg.KEXINIT,
        lambda side: _kexinit(side.role, side.method, strict=side.strict, guesses=False),
    ),
    Letter(
        "KEXINIT, wrong guess",
        Msg.KEXINIT,
        lambda side: _kexinit(side.role, side.method, strict=side.strict, guesses=True),
    ),
    _fixed("NEWKEYS", messages.NewKeys()),
    _fixed("KEX_ECDH_INIT", messages.KexEcdhInit(b"\x09" + bytes(31))),
    Letter("KEX_ECDH_REPLY", Msg.KEX_ECDH_REPLY, _kex_reply),
    _fixed("KEX_DH_GEX_GROUP", messages.KexDhGexGroup(_PRIME, groups.GENERATOR)),
    Letter("KEX_DH_GEX_REPLY", Msg.KEX_DH_GEX_REPLY, _gex_reply),
    _fixed("USERAUTH_REQUEST, none", _request("none")),
    _fixed("USERAUTH_REQUEST, query", _request(PUBLICKEY, _QUERY)),
    Letter("USERAUTH_REQUEST, signed", Msg.USERAUTH_REQUEST, _signed_request),
    _fixed("USERAUTH_FAILURE", messages.UserauthFailure((PUBLICKEY,), partial_success=False)),
    _fixed("USERAUTH_SUCCESS", messages.UserauthSuccess()),
    _fixed("USERAUTH_BANNER", messages.UserauthBanner("x")),
    _fixed("USERAUTH_PK_OK", messages.UserauthPkOk(*_KEY)),
    _fixed("USERAUTH_INFO_RESPONSE", messages.info_response(["x"])),
    _fixed("GLOBAL_REQUEST", messages.GlobalRequest("x", True)),
    _fixed("CHANNEL_OPEN", messages.ChannelOpen("session", 0, 1 << 20, 32768)),
    Letter(
        "CHANNEL_DATA",
        Msg.CHANNEL_DATA,
        lambda _side: bytes((Msg.CHANNEL_DATA, *bytes(4), 0, 0, 0, 1)) + b"x",
    ),
)
NAMED: Final = {letter.name: letter for letter in LETTERS}


# ---- where words begin ---------------------------------------------------------------------------


def honest(role: Role, method: str = CURVE) -> tuple[str, ...]:
    """Return what a peer without guile sends, from its version to the login's end."""
    if role is Role.SERVER:
        return (
            *("KEXINIT", "KEX_ECDH_INIT", "NEWKEYS", "SERVICE_REQUEST"),
            "USERAUTH_REQUEST, signed",
        )
    gex = ("KEX_DH_GEX_GROUP", "KEX_DH_GEX_REPLY")
    return (
        *("KEXINIT", *(gex if method == GROUP_EXCHANGE else ("KEX_ECDH_REPLY",)), "NEWKEYS"),
        *("SERVICE_ACCEPT", "USERAUTH_FAILURE", "USERAUTH_PK_OK", "USERAUTH_SUCCESS"),
    )


STARTS: Final = ("version", "NEWKEYS", "login", "rekey")
"""Where words begin: behind this much of the honest one; for a rekey, all of it and a KEXINIT."""


def _fresh(role: Role, method: str) -> Protocol:
    offers = Preferences(kex=(method,), ciphers=("aes128-gcm@openssh.com",))
    if role is Role.CLIENT:
        return Protocol(ClientSetup(USER, (USER_KEY.public,), offers), 0.0)
    authorize = lambda user, key: int((user, key) == (USER, USER_KEY.public))  # noqa: E731
    return Protocol(ServerSetup((HOST_KEY,), authorize, offers), 0.0)


@dataclass
class Side:
    """One protocol, its owner, and the peer's temper.

    An owner who is ``slow`` neither trusts a host key nor signs; the moments before it does are
    states too.
    """

    role: Role
    strict: bool = True
    slow: bool = False
    method: str = CURVE
    protocol: Protocol = field(init=False)

    def __post_init__(self) -> None:
        self.protocol = _fresh(self.role, self.method)
        take(self.protocol)
        feed(self.protocol, b"SSH-2.0-hostile\r\n")
        self.act()

    def begin(self, start: str) -> Side:
        """Let the honest words up to a starting point be said.

        For a login even a slow owner has trusted the host key, and for a rekey has signed.
        """
        word = honest(self.role, self.method)
        keys = word.index("NEWKEYS") + 1
        said = {
            "version": (),
            "NEWKEYS": word[:keys],
            "login": word[: keys + 1],
            "rekey": (*word, "KEXINIT"),
        }[start]
        slow, self.slow = self.slow, self.slow and start not in ("login", "rekey")
        for name in said:
            self.say(NAMED[name])
        self.slow = slow
        return self

    def say(self, letter: Letter) -> list[events.Event]:
        """Let the peer send it; do what an owner does, and return what happened."""
        inject(self.protocol, letter.make(self))
        return self.act()

    def act(self) -> list[events.Event]:
        """Answer events, and let what we have to say be gone."""
        happened = []
        while (event := self.protocol.next_event()) is not None:
            happened.append(event)
            if isinstance(event, events.HostKeyReceived) and not self.slow:
                self.protocol.accept_host_key()
            if isinstance(event, events.SignatureWanted) and not self.slow:
                auth = self.protocol.auth
                assert isinstance(auth, ClientAuth)
                auth.provide_signature(USER_KEY.sign(event.data, event.algorithm))
        take(self.protocol)
        return happened


# ---- what is seen --------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class State:
    """What a peer can tell apart. ``details`` are what decides besides the phase."""

    phase: str
    dialogue: str = ""
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.phase}: {self.dialogue}" if self.dialogue else self.phase


NOT_FIRST: Final = "not the first packet"
CLOSED: Final = State(Phase.CLOSED.value)


def state_of(protocol: Protocol) -> State:
    """Name the state that a protocol is in."""
    transport, auth = protocol.transport, protocol.auth
    if transport.phase is Phase.CLOSED:
        return CLOSED
    details = {
        "one packet to ignore": transport._ignore_next_kex_packet,
        "host key not accepted": bool(transport._material) and not transport._newkeys_sent,
        f"{transport._extensions_received} EXT_INFO": transport._extensions_received > 0,
    }
    dialogue = ""
    if isinstance(auth, ClientAuth) and transport.phase in (Phase.SERVICE, Phase.AUTH):
        dialogue = auth.state.value
    if isinstance(transport._method, kex.GroupExchange) and transport._method._agreement:
        dialogue = "group received"
    if transport.phase is Phase.KEXINIT and protocol.inbound.sequence_number:
        dialogue = NOT_FIRST
    return State(
        transport.phase.value, dialogue, tuple(name for name, holds in details.items() if holds)
    )


@dataclass
class Machine:
    """What became of each letter in each state, over all words that were sent."""

    role: Role
    strict: bool
    slow: bool = False
    method: str = CURVE
    transitions: dict[tuple[State, Letter], set[State]] = field(default_factory=dict)
    words: int = 0
    """Sent: all whose prefix had not closed the link."""

    @property
    def states(self) -> list[State]:
        """All that were reached, but for the closed link."""
        return sorted({state for state, _ in self.transitions})

    def note(self, state: State, letter: Letter, outcome: State) -> None:
        """Note one letter's outcome."""
        self.words += 1
        self.transitions.setdefault((state, letter), set()).add(outcome)

    def alive(self) -> Iterator[tuple[State, Letter, State]]:
        """Yield what did not close the link."""
        for (state, letter), outcomes in self.transitions.items():
            for outcome in outcomes - {CLOSED}:
                yield state, letter, outcome


def explore(side: Side, length: int, machine: Machine, known: set[State] | None = None) -> None:
    """Say every word of up to ``length`` letters; ``side`` is as it was afterwards.

    With ``known``, only states that are not in it are gone on from, and go there: this finds the
    same machine, with words of any length, if a `State` has all that decides.
    """
    before, state = Snapshot(side.protocol), state_of(side.protocol)
    if known is not None:
        known.add(state)
    for letter in LETTERS:
        try:
            happened = side.say(letter)
        except RemoteProtocolError:
            assert side.protocol.outbound.data_to_send(), "DISCONNECT"
            happened = side.act()
            assert state_of(side.protocol) == CLOSED
        outcome = state_of(side.protocol)
        logged_in = any(isinstance(event, events.Authenticated) for event in happened)
        assert not logged_in or outcome.phase == Phase.CONNECTION.value, (state, letter)
        machine.note(state, letter, outcome)
        if outcome != CLOSED and length > 1 and outcome not in (known or ()):
            explore(side, length - 1, machine, known)
        before.restore()


class Kind(TypedDict):
    """Which machine."""

    role: Role
    strict: bool
    slow: bool
    method: str


KINDS: Final = tuple(
    Kind(role=role, strict=strict, slow=slow, method=method)
    for role, slow, method in (
        (Role.CLIENT, False, CURVE),
        (Role.CLIENT, True, CURVE),
        (Role.CLIENT, False, GROUP_EXCHANGE),
        (Role.SERVER, False, CURVE),
    )
    for strict in (True, False)
)
"""The machines there are. A server's owner is asked nothing, and it does no group exchange."""


def name_of(kind: Kind) -> str:
    """Return its name for people."""
    names = {
        kind["role"].value: True,
        "strict" if kind["strict"] else "not strict": True,
        "slow owner": kind["slow"],
        "group exchange": kind["method"] == GROUP_EXCHANGE,
    }
    return " ".join(name for name, holds in names.items() if holds)


def learn(kind: Kind, *, length: int = LENGTH) -> Machine:
    """Say every word of up to ``length`` letters from every starting point."""
    machine = Machine(**kind)
    for start in STARTS:
        explore(Side(**kind).begin(start), length, machine)
    return machine


def learn_states(kind: Kind) -> Machine:
    """Say one word for each state and letter."""
    machine = Machine(**kind)
    known: set[State] = set()
    for start in STARTS:
        explore(Side(**kind).begin(start), 1000, machine, known)
    return machine


# ---- the drawing ---------------------------------------------------------------------------------

PAGE: Final = Path(__file__).resolve().parents[2] / "PROTOCOL.md"
BEGIN: Final = "<!-- drawn by python -m tests.support.words --write -->\n"
END: Final = "<!-- end of the drawing -->\n"


def draw() -> str:
    """Return the machines of both roles, as they are found, in Markdown."""
    return "\n".join(map(draw_role, Role))


def draw_role(role: Role) -> str:
    """Return the machine of one role."""
    return "".join(f"{line}\n" for line in _lines(role))


def _lines(role: Role) -> Iterator[str]:
    machines = [learn_states(kind) for kind in KINDS if kind["role"] is role]
    outcomes: dict[str, dict[str, set[str]]] = {}  # by state and letter, without the details
    for machine in machines:
        for (state, letter), found in machine.transitions.items():
            row = outcomes.setdefault(str(state), {})
            row.setdefault(letter.name, set()).update(map(str, found))
    order = {phase.value: number for number, phase in enumerate(Phase)}
    names = sorted(outcomes, key=lambda name: order[name.partition(":")[0]])
    yield from (f"**The {role.value}**", "", "```mermaid", "stateDiagram-v2")
    for name in names:
        yield f'    state "{name}" as {_identifier(name)}'
    yield f"    [*] --> {_identifier(names[0])}"
    for before in names:
        for after in names:
            said = [letter for letter, found in outcomes[before].items() if after in found]
            if said and before != after:
                yield f"    {_identifier(before)} --> {_identifier(after)}: {' | '.join(said)}"
    yield from ("```", "", "| state | takes, and stays |", "|---|---|")
    for name in names:
        shown = [
            _letter(said) + ("" if found == {name} else " \\*")
            for said, found in outcomes[name].items()
            if name in found
        ]
        yield f"| {name} | {', '.join(shown) or '-'} |"


def _identifier(state: str) -> str:
    return state.replace(": ", "_").replace(" ", "_").replace("-", "_")


def _letter(name: str) -> str:
    return name.replace(", ", " (") + (")" if ", " in name else "")


def page_with(drawing: str) -> str:
    """Return PROTOCOL.md with this drawing in it."""
    before, found, rest = PAGE.read_text().partition(BEGIN)
    _, ended, after = rest.partition(END)
    assert found, "PROTOCOL.md has no place for it"
    assert ended, "PROTOCOL.md has no place for it"
    return f"{before}{BEGIN}\n{drawing}\n{END}{after}"


def main() -> None:
    """Print the figures of all words; with ``--write`` draw the machines into PROTOCOL.md."""
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page_with(draw()))
        return
    words = sum(len(LETTERS) ** length for length in range(1, LENGTH + 1))
    print(  # noqa: T201
        f"{len(LETTERS)} messages; {words} words of up to {LENGTH} of them from each of "
        f"{len(STARTS)} starting points; sent are those whose prefix has not closed the link"
    )
    for kind in KINDS:
        machine = learn(kind)
        alive = sum(1 for _ in machine.alive())
        print(  # noqa: T201
            f"{name_of(kind):36} {len(machine.states):2} states; of {len(machine.transitions)} "
            f"states x messages {alive} keep the link; {machine.words} words sent"
        )


if __name__ == "__main__":
    main()
