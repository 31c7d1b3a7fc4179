"""Every word of up to four handshake and auth messages, to either role.

Hazards T1-T7, T13, T15, T24, T25.

The machine that words show is compared with three things that were written apart from each other:
the phase table, the line that RFC 4253 §7-§10 and RFC 4252 draw, and the drawing in PROTOCOL.md.
"""

from __future__ import annotations

import itertools

import pytest

from gateway.ssh.numbers import Msg
from gateway.ssh.transport import ALLOWED, Phase, Role
from tests.support import words
from tests.support.words import (
    CLOSED,
    CURVE,
    GROUP_EXCHANGE,
    KINDS,
    LETTERS,
    NAMED,
    NOT_FIRST,
    PAGE,
    name_of,
)

LINE = {
    True: ("kexinit", "kex strict", "newkeys strict", "service", "auth", "connection"),
    False: ("kexinit", "kex", "newkeys", "service", "auth", "connection"),
}
CIRCLE = ("connection", "rekey", "rekey newkeys", "connection")
KEXINITS = {"KEXINIT", "KEXINIT, wrong guess"}
KEX_REPLIES = {"KEX_ECDH_REPLY", "KEX_DH_GEX_REPLY"}
ONWARD = {
    Role.SERVER: {
        "kexinit": KEXINITS,
        "kex": {"KEX_ECDH_INIT"},
        "kex strict": {"KEX_ECDH_INIT"},
        "newkeys": {"NEWKEYS"},
        "newkeys strict": {"NEWKEYS"},
        "service": {"SERVICE_REQUEST"},
        "auth": {"USERAUTH_REQUEST, signed"},
        "connection": KEXINITS,
        "rekey": {"KEX_ECDH_INIT"},
        "rekey newkeys": {"NEWKEYS"},
    },
    Role.CLIENT: {
        "kexinit": KEXINITS,
        "kex": KEX_REPLIES,
        "kex strict": KEX_REPLIES,
        "newkeys": {"NEWKEYS"},
        "newkeys strict": {"NEWKEYS"},
        "service": {"SERVICE_ACCEPT"},
        "auth": {"USERAUTH_SUCCESS"},
        "connection": KEXINITS,
        "rekey": KEX_REPLIES,
        "rekey newkeys": {"NEWKEYS"},
    },
}
"""What leads from one phase to the next, and nothing else does."""

CLIENT = {"role": Role.CLIENT, "strict": True, "slow": False, "method": CURVE}
CLIENTS_DIALOGUE = {
    ("none sent", "USERAUTH_FAILURE", "key offered"),
    ("key offered", "USERAUTH_FAILURE", "exhausted"),
    ("key offered", "USERAUTH_PK_OK", "signature sent"),
    ("signature sent", "USERAUTH_FAILURE", "exhausted"),
}

EMPTY = {
    ("kex", Msg.KEX_DH_GEX_REPLY),  # another method was agreed on
    ("kex strict", Msg.KEX_DH_GEX_REPLY),
    ("rekey", Msg.KEX_DH_GEX_REPLY),
    ("connection", Msg.CHANNEL_DATA),  # no channel is open
}
"""What the table allows, but no content of ours is right for."""


kinds = pytest.mark.parametrize("kind", KINDS, ids=name_of)
curve = pytest.mark.parametrize("kind", [k for k in KINDS if k["method"] == CURVE], ids=name_of)
quick = pytest.mark.parametrize("kind", [k for k in KINDS if not k["slow"]], ids=name_of)


# ---- what a machine must be ----------------------------------------------------------------------


def check_determined(machine):
    """A state is all that decides: so the words that were not said would have shown no more."""
    for (state, letter), outcomes in machine.transitions.items():
        assert len(outcomes) == 1, (state, letter, outcomes)


def check_table(machine):
    """The link lives after a message that ``ALLOWED`` names, and after no other."""
    took, named = set(), set()
    for (state, letter), (outcome,) in machine.transitions.items():
        phase = Phase(state.phase)
        if letter.number in ALLOWED[phase][machine.role]:
            named.add((state.phase, letter.number))
            if outcome != CLOSED:
                took.add((state.phase, letter.number))
        elif "one packet to ignore" in state.details and 30 <= letter.number < 50:
            left = tuple(d for d in state.details if d != "one packet to ignore")
            assert (outcome.phase, outcome.details) == (state.phase, left), "T15: exactly one"
        else:
            assert outcome == CLOSED, (state, letter, outcome)
    never = {(phase, number) for phase, number in named - took if number != Msg.DISCONNECT}
    if not machine.slow:
        assert never - EMPTY == set(), "the table allows what nobody can use"


def check_line(machine):
    """From phase to phase there is one way, and the login is at the end of it."""
    line = LINE[machine.strict]
    ways = {*itertools.pairwise(line), *itertools.pairwise(CIRCLE)}
    onward = {}
    for state, letter, outcome in machine.alive():
        if outcome.phase != state.phase:
            assert (state.phase, outcome.phase) in ways, (state, letter, outcome)
            assert not (machine.strict and state.dialogue == NOT_FIRST), "T3"
            onward.setdefault(state.phase, set()).add(letter.name)
    other = {CURVE: "KEX_DH_GEX_REPLY", GROUP_EXCHANGE: "KEX_ECDH_REPLY"}[machine.method]
    expected = {phase: ONWARD[machine.role][phase] - {other} for phase, _ in ways}
    if not machine.slow:
        assert onward == expected
    for phase, names in onward.items():
        assert names <= expected[phase], phase


def check(machine):
    check_determined(machine)
    check_table(machine)
    check_line(machine)


# ---- the words -----------------------------------------------------------------------------------


@curve
def test_every_word_of_up_to_four_messages(kind):
    """T7: from the version, after NEWKEYS, in the login and in a rekey."""
    machine = words.learn(kind)
    check(machine)
    assert machine.words > 10_000
    known = words.learn_states(kind).transitions
    assert machine.transitions.items() <= known.items(), "what PROTOCOL.md has drawn"


@kinds
def test_words_of_any_length_show_no_other_state(kind):
    machine = words.learn_states(kind)
    check(machine)
    assert len(machine.transitions) == len(machine.states) * len(LETTERS)


@quick
def test_the_login_is_reached_by_the_honest_word_alone(kind):
    """One accepting path: every word without detours that begins at the version (T6, T24, T25)."""
    machine = words.learn_states(kind)
    found = []

    def follow(state, word):
        if state.phase == "connection":
            found.append(word)
            return
        for letter in LETTERS:
            (outcome,) = machine.transitions[state, letter]
            stays = (outcome.phase, outcome.dialogue) == (state.phase, state.dialogue)
            detour = stays or outcome.details or outcome.dialogue == NOT_FIRST
            if outcome != CLOSED and not detour:
                follow(outcome, (*word, letter.name))

    follow(words.state_of(words.Side(**kind).protocol), ())
    honest = words.honest(kind["role"], kind["method"])
    if kind["role"] is Role.SERVER:
        assert found == [honest]
    else:  # a server may also let us in without a proof, as "none" asks
        assert sorted(found) == sorted([honest, (*honest[:-3], "USERAUTH_SUCCESS")])


def test_the_clients_dialogue():
    machine = words.learn_states(CLIENT)
    moves = {
        (state.dialogue, letter.name, outcome.dialogue)
        for state, letter, outcome in machine.alive()
        if state.phase == outcome.phase == "auth" and state.dialogue != outcome.dialogue
    }
    assert moves == CLIENTS_DIALOGUE


def test_a_client_whose_user_still_looks_at_the_host_key_logs_in_nowhere():
    """The server's half is switched; nothing of the login is answered, no success is one."""
    machine = words.learn_states({**CLIENT, "slow": True})
    waiting = [s for s in machine.states if "host key not accepted" in s.details]
    assert {state.phase for state in waiting} == {"newkeys strict", "service"}
    for state, letter, outcome in machine.alive():
        if state in waiting:
            assert "host key not accepted" in outcome.details, (state, letter)


# ---- the comparison can fail ---------------------------------------------------------------------

TOO_MUCH = [
    (Role.SERVER, Phase.KEXINIT, "USERAUTH_REQUEST, signed"),  # T6
    (Role.SERVER, Phase.KEXINIT, "NEWKEYS"),
    (Role.SERVER, Phase.KEX_STRICT, "IGNORE"),  # T1
    (Role.SERVER, Phase.KEX_STRICT, "EXT_INFO"),  # T5
    (Role.SERVER, Phase.NEWKEYS_STRICT, "DEBUG"),  # T4
    (Role.SERVER, Phase.NEWKEYS_STRICT, "USERAUTH_REQUEST, none"),
    (Role.SERVER, Phase.SERVICE, "USERAUTH_REQUEST, signed"),
    (Role.SERVER, Phase.SERVICE, "CHANNEL_OPEN"),  # T24
    (Role.SERVER, Phase.AUTH, "GLOBAL_REQUEST"),  # T24
    (Role.SERVER, Phase.AUTH, "SERVICE_REQUEST"),
    (Role.SERVER, Phase.AUTH, "KEXINIT"),
    (Role.SERVER, Phase.REKEY, "GLOBAL_REQUEST"),  # T13
    (Role.CLIENT, Phase.NEWKEYS_STRICT, "EXT_INFO"),
    (Role.CLIENT, Phase.AUTH, "CHANNEL_OPEN"),
    (Role.CLIENT, Phase.REKEY_NEWKEYS, "CHANNEL_OPEN"),
]
TOO_LITTLE = [
    (Role.SERVER, Phase.SERVICE, "EXT_INFO"),
    (Role.SERVER, Phase.CONNECTION, "KEXINIT"),
    (Role.CLIENT, Phase.AUTH, "USERAUTH_BANNER"),
]


def differs(role):
    """Whether the machine of a role is another one than PROTOCOL.md has, or no machine at all."""
    try:
        return words.draw_role(role) not in PAGE.read_text()
    except Exception:  # noqa: BLE001 - a message where its state is missing: a defect all right
        return True


@pytest.mark.parametrize(
    ("role", "phase", "name", "more"),
    [(*row, True) for row in TOO_MUCH] + [(*row, False) for row in TOO_LITTLE],
    ids=lambda value: getattr(value, "value", None) or str(value),
)
def test_a_table_with_one_entry_more_or_less_is_noticed(monkeypatch, role, phase, name, more):
    number = NAMED[name].number
    row = ALLOWED[phase][role]
    assert (number in row) is not more
    monkeypatch.setitem(ALLOWED[phase], role, row | {number} if more else row - {number})
    assert differs(role)


# ---- the drawing ---------------------------------------------------------------------------------


def test_the_drawing_in_protocol_md_is_what_is_seen():
    """If not: python -m tests.support.words --write, and look at what has changed."""
    assert PAGE.read_text() == words.page_with(words.draw())
