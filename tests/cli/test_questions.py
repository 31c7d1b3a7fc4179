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
