"""What a login asks a person: passwords, and whatever the server makes up (RFC 4256).

A server's text is shown escaped and never alone on the line that is answered: ``(user@host)`` in
front of it says who asks, so that a server cannot imitate the question for a key's passphrase.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.errors import printable
from gateway.ssh.userauth import INTERACTIVE, PASSWORD, PUBLICKEY

if TYPE_CHECKING:
    from gateway import events
    from gateway.config.ssh_config import HostConfig
    from gateway.config.trust import Person

MAXIMUM_LINES: Final = 100  # of one text from the server


def login_methods(config: HostConfig) -> tuple[str, ...]:
    """Return the methods that may be used, in order. Nobody is asked in batch mode."""
    return tuple(
        method for method in config.preferred_authentications if not why_not(config, method)
    )


def why_not(config: HostConfig, method: str) -> str:
    """Say which setting forbids a method, or nothing."""
    switches = {
        PUBLICKEY: (config.pubkey_authentication, "PubkeyAuthentication"),
        PASSWORD: (config.password_authentication, "PasswordAuthentication"),
        INTERACTIVE: (config.kbd_interactive_authentication, "KbdInteractiveAuthentication"),
    }
    if method not in switches:
        return "not supported"
    allowed, keyword = switches[method]
    if not allowed:
        return f"{keyword} is no"
    if method != PUBLICKEY and config.batch_mode:
        return "BatchMode is yes"
    if method not in config.preferred_authentications:
        return "not among PreferredAuthentications"
    return ""


class Questions:
    """Asks the person for one host."""

    def __init__(self, config: HostConfig, person: Person) -> None:
        self._who = f"{config.user}@{config.host_name}"
        self._person = person

    async def password(self, attempt: int) -> str | None:
        """Ask for the password; None if nobody is there."""
        if attempt > 1:
            self._person.say("permission denied, please try again")
        return await self._person.ask_secret(f"{self._who}'s password: ")

    async def answers(self, wanted: events.AnswersWanted) -> tuple[str, ...] | None:
        """Show what the server says and ask what it asks; None if nobody is there."""
        for line in (*lines_of(wanted.name), *lines_of(wanted.instruction)):
            self._person.say(line)
        answers = []
        for prompt in wanted.prompts:
            *before, question = lines_of(prompt.text) or [""]
            for line in before:
                self._person.say(line)
            ask = self._person.ask if prompt.echo else self._person.ask_secret
            answer = await ask(f"({self._who}) {question}")
            if answer is None:
                return None
            answers.append(answer)
        return tuple(answers)


def lines_of(text: str) -> list[str]:
    """Return a server's text in lines that can be shown; blank ones are left out."""
    lines = [line for line in text.splitlines() if line.strip()]
    return [printable(line) for line in lines[:MAXIMUM_LINES]]
