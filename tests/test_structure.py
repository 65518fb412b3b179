"""The house: one room for each phase, small files and classes, imports that run one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunerob

PACKAGE = Path(prunerob.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = (
    "commands",
    "sweeps",
    "reports",
    "artefacts",
    "pruning",
    "training",
    "robustness",
    "data",
    "runs",
    "attacks",
    "networks",
)
"""From the top to the bottom: a room imports from those behind it, and from the root's modules."""

GROUND = ("errors", "noise", "optimizers", "pixels", "schedules", "statistics")
"""Modules at the root that every room may import."""

DOOR = ("__init__", "__main__", "cli")
"""Modules at the root through which one comes in; a worker of a sweep comes in through cli."""


def module_of(file: Path) -> tuple[str, ...]:
    return file.relative_to(PACKAGE).with_suffix("").parts


def imports(file: Path) -> Iterator[tuple[str, ...]]:
    """What a file imports of the package, wherever in it, as parts of the module's name."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = tuple(node.module.split("."))
            if parts[0] == "prunerob":
                for alias in node.names:
                    inner = (*parts[1:], alias.name)
                    is_module = PACKAGE.joinpath(*inner).with_suffix(".py").is_file()
                    yield inner if is_module else parts[1:]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = tuple(alias.name.split("."))
                if parts[0] == "prunerob":
                    yield parts[1:]


def test_the_rooms_are_known() -> None:
    assert {module_of(f)[0] for f in FILES if f.parent != PACKAGE} == set(ROOMS)
    modules = {f.stem for f in FILES if f.parent == PACKAGE}
    assert modules == {*GROUND, *DOOR}
    assert len(modules - {"__init__"}) <= 8


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(module_of(file)))
def test_a_file_is_small_and_imports_from_behind_it(file: Path) -> None:
    text = file.read_text("utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            assert len(methods) <= 25, f"{node.name} has {len(methods)} methods"
    here = module_of(file)[0]
    for target in imports(file):
        if not target or target[0] in GROUND or target[0] == here or here in DOOR:
            continue
        if target == ("cli",):
            assert module_of(file) == ("sweeps", "worker")
            continue
        assert here in ROOMS, f"{here} is the ground; it imports {'.'.join(target)}"
        assert ROOMS.index(target[0]) > ROOMS.index(here), f"up to {'.'.join(target)}"


def test_no_circle() -> None:
    graph = {module_of(f): {t for t in imports(f) if t and t != module_of(f)} for f in FILES}
    done: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], path: tuple[tuple[str, ...], ...]) -> None:
        assert module not in path, " -> ".join(".".join(m) for m in (*path, module))
        if module in done:
            return
        for target in graph.get(module, graph.get((*module, "__init__"), set())):
            if target != ("cli",):
                visit(target, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())
