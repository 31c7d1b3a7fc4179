"""Files in gateway/ and bench/ have at most 600 lines, functions at most 60.

Docstrings are not counted in functions.

What is over its limit for a good reason stands in ALLOWED, with the reason.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

CHECKED = ("gateway", "bench")
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60

# "gateway/file.py" or "gateway/file.py:Class.method": its own limit, and why it may be that long.
ALLOWED: dict[str, tuple[int, str]] = {}

type_of_function = (ast.FunctionDef, ast.AsyncFunctionDef)


def functions(node: ast.AST, outer: str = "") -> list[tuple[str, int, int]]:
    """Qualified name, first line and length of every function below ``node``."""
    found: list[tuple[str, int, int]] = []
    for child in ast.iter_child_nodes(node):
        name = outer
        if isinstance(child, (*type_of_function, ast.ClassDef)):
            name = f"{outer}.{child.name}" if outer else child.name
        if isinstance(child, type_of_function):
            found.append((name, child.lineno, length(child)))
        found += functions(child, name)
    return found


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def check_file(path: Path, name: str) -> list[tuple[str, str, int, int]]:
    """Everything measured in one file: (key in ALLOWED, place to show, lines, default limit)."""
    text = path.read_text(encoding="utf-8")
    measured = [(name, name, len(text.splitlines()), MAX_FILE_LINES)]
    measured += [
        (f"{name}:{function}", f"{name}:{line}: {function}", lines, MAX_FUNCTION_LINES)
        for function, line, lines in functions(ast.parse(text, name))
    ]
    return measured


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    problems = []
    unused = set(ALLOWED)
    for path in sorted(path for top in CHECKED for path in (root / top).rglob("*.py")):
        for key, place, lines, default in check_file(path, path.relative_to(root).as_posix()):
            limit = ALLOWED[key][0] if key in ALLOWED else default
            if lines > limit:
                problems.append(f"{place} has {lines} lines, the limit is {limit}")
            if lines > default:
                unused.discard(key)
    problems += [f"{key} is in ALLOWED and does not need to be" for key in sorted(unused)]
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
