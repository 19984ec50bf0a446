"""Everything public says what it is, and every test says what behaviour it holds."""

from __future__ import annotations

import ast
import re

import pytest

SECTIONS = ("Attributes", "Args", "Yields", "Returns", "Raises", "Example", "Source", "Differs")
# The class docstring of a module says what its `forward` computes.
SELF_EVIDENT = {"forward"}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(tree: ast.Module):
    """The module, its public classes and functions, and the public methods of those classes."""
    yield "module", tree
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, Documented) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


def documented_elsewhere(node) -> bool:
    """Whether the docstring belongs to another definition: the class, the property or the implementation."""
    names = {ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ())}
    return node_name(node) in SELF_EVIDENT or any(name.endswith((".setter", "overload")) for name in names)


def node_name(node) -> str:
    """The name of a class or function; nothing for a module."""
    return getattr(node, "name", "")


def test_everything_public_has_a_docstring(sources):
    """Every public module, class, function and method of the package has a docstring."""
    missing = [
        f"{source.path}: {name}"
        for source in sources
        for name, node in public(source.tree)
        if not ast.get_docstring(node) and not documented_elsewhere(node)
    ]
    assert missing == []


def test_every_test_states_one_behaviour(test_sources):
    """Every test file has a docstring, and every test function's is a sentence with a full stop."""
    missing = []
    for source in test_sources:
        if not ast.get_docstring(source.tree):
            missing.append(source.path)
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                fixture = any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)
                first = (ast.get_docstring(node) or "").split("\n\n")[0]
                if not fixture and not first.endswith("."):
                    missing.append(f"{source.path}: {node.name}")
    assert missing == []


def test_sections_come_in_one_order(sources):
    """The sections of every docstring come in the order that CONTRIBUTING.md gives."""
    disordered = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, Documented):
                found = sections(ast.get_docstring(node) or "")
                if found != sorted(found, key=SECTIONS.index):
                    disordered.append(f"{source.path}: {node_name(node)} has {found}")
    assert disordered == []


def sections(docstring: str) -> list[str]:
    """The section headings of a docstring, in the order of the text."""
    return re.findall(rf"^({'|'.join(SECTIONS)}):(?:\s|$)", docstring, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("What.\n\nArgs:\n    a: b.\n\nRaises:\n    E: x.", ["Args", "Raises"]),
        ("What.\n\nSource: someone, 2020.\n\nArgs:\n    a: b.", ["Source", "Args"]),
        ("What, in prose: Args of no section.", []),
    ],
)
def test_sections_are_found(docstring, expected):
    """A section is a heading at the start of a line, with its text below or behind it."""
    assert sections(docstring) == expected
