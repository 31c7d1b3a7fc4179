"""T50: what a server may say to a person, before the login and after it, is harmless to show."""

from __future__ import annotations

import logging

import pytest
import trio.testing

from gateway.ssh import messages
from gateway.ways.login import HostLogin
from tests.support.memory import TestDialogue, linked, make_links

NASTY = "\x1b[2J\x1b]0;title\x07\r\n\u202e\u2028\x9b31mroot# \0" + "x" * 200_000


class Person:
    """Whoever is told."""

    def __init__(self):
        self.heard = []

    def say(self, text):
        self.heard.append(text)


def assert_harmless(lines):
    for line in lines:
        assert line.isprintable()
        assert len(line) < 1000


@pytest.mark.parametrize("text", [NASTY, "\x1b[A\n" * 50_000, "\r" * 1000 + "\x1b[K", "\x9b" * 9])
async def test_a_banner(text, autojump_clock):
    """As it comes over a link, by the code that shows it: line by line, each of them cut."""
    login = HostLogin.__new__(HostLogin)
    login._person = Person()
    dialogue = TestDialogue()
    dialogue.banner = login.banner
    links = make_links()
    send = links.server.protocol.auth._send

    def after_a_banner(payload):
        if payload == messages.UserauthSuccess().encode():
            send(messages.UserauthBanner(text).encode())
        send(payload)

    links.server.protocol.auth._send = after_a_banner
    async with linked(links, log_in=False):
        await links.client.log_in(dialogue, 30.0)
    heard = login._person.heard
    assert 0 < len(heard) <= 100
    assert_harmless(heard)


async def test_a_debug_message(autojump_clock, caplog):
    """It explains a refusal, so it is kept; and it is logged."""
    caplog.set_level(logging.DEBUG)
    links = make_links()
    async with linked(links):
        links.server.protocol.outbound.append(messages.Debug(True, NASTY).encode())
        links.server.flush()
        await trio.testing.wait_all_tasks_blocked()
        assert links.client.last_words.startswith("\\x1b[2J")
        assert_harmless([links.client.last_words])
    said = [record.getMessage() for record in caplog.records if "x1b" in record.getMessage()]
    assert said
    assert_harmless(said)
