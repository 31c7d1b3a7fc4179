"""Which packages `scripts/check` asks about, and what it makes of the answers."""

from __future__ import annotations

from scripts.audit_dependencies import NO_ANSWER, VULNERABLE, installed, judge


def package(name: str, *vulns: dict[str, object]) -> dict[str, object]:
    return {"name": name, "version": "1.0", "vulns": list(vulns)}


UNKNOWN = {"name": "ours", "skip_reason": "not found"}


def test_what_an_installation_brings_is_asked_about() -> None:
    found = installed("gateway", frozenset({"vpn"}), {})
    assert {"trio", "cryptography", "cffi", "bcrypt", "pydantic-core", "h11"} <= set(found)
    assert not {"pytest", "asyncssh", "ruff", "pip-audit"} & set(found)


def test_no_answer_is_neither_good_nor_bad() -> None:
    assert judge(None)[0] == NO_ANSWER
    assert judge({"dependencies": [UNKNOWN, UNKNOWN]})[0] == NO_ANSWER


def test_a_vulnerability_is_named_with_its_remedy() -> None:
    bad = package("trio", {"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"]})
    worse = package("h11", {"id": "PYSEC-2", "fix_versions": []})
    status, lines = judge({"dependencies": [package("bcrypt"), bad, UNKNOWN, worse]})
    assert status == VULNERABLE
    assert lines == [
        "trio 1.0: PYSEC-1 (mended in 1.1, 2.0)",
        "h11 1.0: PYSEC-2 (mended in no version yet)",
    ]
    fine = judge({"dependencies": [package("bcrypt"), UNKNOWN]})
    assert fine == (0, ["no vulnerability is known of 1 of 2 packages"])
