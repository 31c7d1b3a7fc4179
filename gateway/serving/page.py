"""The page that a session shows: who you are, what you may do, what is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import printable

if TYPE_CHECKING:
    from gateway.policy.rules import Rule
    from gateway.serving.channels import Channels


def session_page(channels: Channels) -> str:
    """Return the page as text, with a newline at the end of each line."""
    login, shared = channels.login, channels.shared
    subject = login.subject
    links, open_channels = shared.users.counts(subject.user_name)
    lines = ["This is a jump box of gateway: tunnels, and no shell.", "", "You are"]
    lines += _table(
        ("user", subject.user_name),
        ("key", ", ".join(key.fingerprint for key in login.keys)),
        ("groups", ", ".join(sorted(subject.groups)) or "none"),
        ("principals", ", ".join(sorted(subject.principals))),
        ("from", subject.address),
    )
    lines += ["", "You may"]
    applicable = [rule for rule in shared.policy.rules if rule.is_for(subject)]
    lines += [f"  {printable(_shown(rule))}" for rule in applicable] or ["  open nothing"]
    lines += ["", "Open now"]
    lines += _table(("connections", str(links)), ("channels", str(open_channels)))
    lines += ["", "To keep a tunnel open, use ssh -N with -L, -R or -D; to pass through, -J or -W."]
    return "".join(f"{line}\n" for line in lines)


def _shown(rule: Rule) -> str:
    targets = ", ".join(target.text for target in rule.to)
    return f"{'' if rule.allow else 'not '}{rule.action.value} {targets} (rule {rule.rule_id})"


def _table(*rows: tuple[str, str]) -> list[str]:
    return [f"  {name:<12}{printable(value)}" for name, value in rows if value]
