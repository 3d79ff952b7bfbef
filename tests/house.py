"""The measures that keep the package easy to read. ``python tests/house.py`` prints them, next to their limits.

The exit status is 1 when a limit is passed. Everything is read from the source, and nothing of it is imported, so
that the measures are the same on every Python and system.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1] / "farm_executor"

MOST_METHODS = 40  # of a class
MOST_LINES = 600  # of a file
MOST_PRIVATE = 0  # accesses to another module's private names
LEAST_COMMENTS = 6  # whole lines of them, per 100 lines of code
MOST_CHANGING = 6  # attributes of the class in LINK

COMMENTED = ("core", "client")  # where the difficulty is, and so the reasons are
FRIENDS = (
    "client/farm/future.py",
    "core/scheduler.py",
)  # these share their insides with their neighbours, for speed
LINK = "client/farm/link.py"
OF_PYTHON = {("data/byvalue.py", "_timeout")}  # a `threading.Barrier`'s, which has no public name for it
NAMED_TUPLE = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}  # public, in spite of their names
NOT_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


class Measure(NamedTuple):
    """One number, and whether it is within its limit."""

    name: str
    value: float
    limit: str
    kept: bool
    where: list[str]


class Module:
    """One file of the package."""

    def __init__(self, path: Path, root: Path) -> None:
        self.name = path.relative_to(root).as_posix()
        self.text = path.read_text("utf-8")
        self.tree = ast.parse(self.text)
        self.nodes = list(ast.walk(self.tree))
        self.private = {name for node in self.nodes for name in _defined(node) if is_private(name)}

    def classes(self) -> Iterator[ast.ClassDef]:
        """The classes, also those within others."""
        return (node for node in self.nodes if isinstance(node, ast.ClassDef))


def is_private(name: str) -> bool:
    """Whether a name is its module's own affair."""
    return name.startswith("_") and not name.startswith("__") and name != "_" and name not in NAMED_TUPLE


def methods(node: ast.ClassDef) -> set[str]:
    """The names of a class's methods; overloads, and a property with its setter, count once."""
    found: set[str] = set()
    bodies: list[ast.stmt] = list(node.body)
    while bodies:
        statement = bodies.pop()
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(statement.name)
        elif isinstance(statement, ast.If):
            bodies += [*statement.body, *statement.orelse]
    return found


def private_accesses(module: Module, elsewhere: set[str]) -> Iterator[str]:
    """Where a module uses private names that it does not define itself, but other modules of the package do."""
    foreign = elsewhere - module.private
    outside = {
        alias.asname or alias.name.partition(".")[0]
        for node in module.nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if not alias.name.startswith(PACKAGE.name)
    }
    for node in module.nodes:
        if isinstance(node, ast.Attribute) and node.attr in foreign:
            base = node.value
            # What is inherited is a class's own, and what `os` and `sys` call private is not ours to judge.
            if isinstance(base, ast.Name) and base.id in {"self", "cls", *outside}:
                continue
            if (module.name, node.attr) in OF_PYTHON:
                continue
            if isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "super":
                continue
            yield f"{module.name}:{node.lineno} {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            for alias in node.names:
                if is_private(alias.name):
                    yield f"{module.name}:{node.lineno} import {alias.name}"


def comments_and_code(module: Module) -> tuple[int, int]:
    """How many lines are wholly comments, and how many have code; docstrings are neither."""
    docstrings: set[int] = set()
    for node in module.nodes:
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    comments, code = 0, set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.COMMENT:
            comments += token.line.lstrip().startswith("#")
        elif token.type not in NOT_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return comments, len(code - docstrings)


def changing(node: ast.ClassDef) -> set[str]:
    """The attributes that a class's methods assign, except in the constructor."""
    return {
        found.attr
        for method in node.body
        if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) and method.name != "__init__"
        for found in ast.walk(method)
        if isinstance(found, ast.Attribute) and isinstance(found.ctx, (ast.Store, ast.Del))
        if isinstance(found.value, ast.Name) and found.value.id == "self"
    }


def measure(root: Path = PACKAGE) -> list[Measure]:
    """Measure the package whose folder is given."""
    modules = [Module(path, root) for path in sorted(root.rglob("*.py"))]
    sizes = [(len(methods(node)), f"{each.name} {node.name}") for each in modules for node in each.classes()]
    lines = [(each.text.count("\n"), each.name) for each in modules]
    friendly = {name for each in modules if each.name in FRIENDS for name in each.private}
    defined = {name for each in modules for name in each.private} - friendly
    accesses = [text for each in modules if each.name not in FRIENDS for text in private_accesses(each, defined)]
    counts = [
        comments_and_code(each) for each in modules if each.name.startswith(tuple(f"{x}/" for x in COMMENTED))
    ]
    ratio = 100 * sum(comments for comments, _ in counts) / max(sum(code for _, code in counts), 1)
    links = [node for each in modules if each.name == LINK for node in each.classes()]
    changed, link = max(((changing(node), node.name) for node in links), key=lambda pair: len(pair[0]))
    return [
        _at_most("methods of the largest class", sizes, MOST_METHODS),
        _at_most("lines of the largest file", lines, MOST_LINES),
        Measure(
            "private accesses between modules",
            len(accesses),
            f"<= {MOST_PRIVATE}",
            len(accesses) <= MOST_PRIVATE,
            accesses,
        ),
        Measure(
            f"comments per 100 lines in {' and '.join(COMMENTED)}",
            round(ratio, 1),
            f">= {LEAST_COMMENTS}",
            ratio >= LEAST_COMMENTS,
            [],
        ),
        Measure(
            f"changing attributes of {link}",
            len(changed),
            f"<= {MOST_CHANGING}",
            len(changed) <= MOST_CHANGING,
            sorted(changed),
        ),
    ]


def _defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
        if isinstance(node, ast.ClassDef):
            yield from _slots(node)
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        if isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}:
            yield node.attr
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id


def _slots(node: ast.ClassDef) -> Iterator[str]:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__slots__":
            for part in ast.walk(statement.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


def _at_most(name: str, sizes: list[tuple[int, str]], limit: int) -> Measure:
    """The largest of some; all that are beyond the limit are named, or else the largest."""
    largest = max(sizes)
    beyond = sorted((size for size in sizes if size[0] > limit), reverse=True) or [largest]
    return Measure(
        name, largest[0], f"<= {limit}", largest[0] <= limit, [f"{text}: {size}" for size, text in beyond]
    )


def main() -> int:
    """Print the measures, and what passes a limit."""
    measures = measure()
    for each in measures:
        print(f"{'ok  ' if each.kept else 'OVER'} {each.name}: {each.value:g} ({each.limit})")
        for place in each.where:
            print(f"       {place}")
    return not all(each.kept for each in measures)


if __name__ == "__main__":
    sys.exit(main())
