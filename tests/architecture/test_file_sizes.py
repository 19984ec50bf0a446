"""A file is small enough to read in one go, and its name says what is in it."""

from __future__ import annotations

import ast
import re
from pathlib import PurePosixPath

MAX_LINES = 400
EMPTY_WORDS = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc"}


def words(name: str) -> set[str]:
    """The lower-case words of a name in snake_case or CamelCase."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_no_file_is_long(sources):
    """No source file has more than 400 lines."""
    lengths = {source.path: len(source.text.splitlines()) for source in sources}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_no_file_or_class_has_an_empty_name(sources):
    """No file, package or class is named after nothing in particular, such as utils or manager."""
    names = [(source.path, part) for source in sources for part in PurePosixPath(source.path).parts]
    names += [
        (source.path, node.name)
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
    ]
    assert [(path, name) for path, name in names if words(name) & EMPTY_WORDS] == []


def test_words_of_a_name():
    """The rule sees through both ways of writing names."""
    assert words("run_utils.py") & EMPTY_WORDS == {"utils"}
    assert words("RunManager") & EMPTY_WORDS == {"manager"}
    assert words("HTTPHelper") & EMPTY_WORDS == {"helper"}
    assert words("managed_commons") & EMPTY_WORDS == set()
