"""Which rule decides (stub; the policy part replaces this file)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.policy.rules import Policy


def explain(
    policy: Policy, groups_by_user: Mapping[str, frozenset[str]], user: str, words: Sequence[str]
) -> list[str]:
    """Return the sentences that say what is decided for a user, and by which rule."""
    groups = groups_by_user.get(user, frozenset())
    found = [
        rule.rule_id
        for rule in policy.rules
        if rule.action.value == words[0] and words[1] in [target.text for target in rule.to]
        if not (rule.users or rule.groups) or user in rule.users or groups & rule.groups
    ]
    return [f"allowed by {found[0]}" if found else "denied: no rule names it"]
