"""Questions to the person at the terminal."""

from __future__ import annotations

import trio
import trio.testing

from gateway.cli import terminal


async def test_one_question_at_a_time(monkeypatch):
    """Two threads that read one terminal would each get the other's answer."""
    asked = []

    async def with_terminal(_question):
        asked.append("begun")
        await trio.testing.wait_all_tasks_blocked()
        asked.append("answered")

    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "never")
    monkeypatch.setattr(terminal, "_with_terminal", with_terminal)
    person = terminal.Person()
    async with trio.open_nursery() as nursery:
        for ask in (person.ask, person.ask_secret, person.ask):
            nursery.start_soon(ask, "what? ")
    assert asked == ["begun", "answered"] * 3


async def test_a_question_that_is_given_up_makes_room_for_the_next(monkeypatch):
    async def unanswered(_question):
        await trio.sleep_forever()

    async def answered(_question):
        return "yes"

    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "never")
    person = terminal.Person()
    for ask in (person.ask, person.ask_secret):
        monkeypatch.setattr(terminal, "_with_terminal", unanswered)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "what? ")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        monkeypatch.setattr(terminal, "_with_terminal", answered)
        assert await ask("what? ") == "yes"


async def test_a_session_has_the_keys_to_itself(monkeypatch):
    """Who is being asked answers first; from then on only a window of its own may ask."""
    happened, answer, end = [], trio.Event(), trio.Event()

    async def with_terminal(_question):
        happened.append("asked")
        await answer.wait()
        happened.append("answered")
        return "yes"

    async def with_askpass(_askpass, _question):
        return "from a window"

    async def session():
        async with person.session():
            happened.append("session")
            await end.wait()

    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "never")
    monkeypatch.setattr(terminal, "_with_terminal", with_terminal)
    monkeypatch.setattr(terminal.Askpass, "ask", with_askpass)
    person = terminal.Person()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(person.ask, "what? ")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(session)
        await trio.testing.wait_all_tasks_blocked()
        answer.set()
        await trio.testing.wait_all_tasks_blocked()
        assert happened == ["asked", "answered", "session"]
        assert await person.ask("what? ") is None
        assert await person.ask_secret("what? ") is None
        monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
        assert await person.ask("what? ") == "from a window"
        monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "never")
        end.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await person.ask("what? ") == "yes"
