"""The exception tree is the one that its module draws, and each branch has an exit code of its own."""

from __future__ import annotations

import re

from fedadapt import errors
from fedadapt.errors import FedadaptError


def classes(root=FedadaptError):
    """`root` and everything below it that is defined in fedadapt.errors."""
    below = [c for c in root.__subclasses__() if c.__module__ == errors.__name__]
    return [root, *(found for child in below for found in classes(child))]


def test_the_drawn_tree_is_the_real_one():
    """Names, parents, order and exit codes in the docstring are those of the classes."""
    drawn, path = [], []
    for line in errors.__doc__.splitlines():
        found = re.match(r"^ {4}([│├└─ ]*)(\w+) +(\d+) ", line)
        if found:
            depth = len(found[1]) // 4
            path = [*path[:depth], found[2]]
            drawn.append((found[2], path[-2] if depth else None, int(found[3])))
    real = [
        (c.__name__, None if c is FedadaptError else c.__bases__[0].__name__, c.exit_code) for c in classes()
    ]
    assert drawn == real


def test_branches_have_different_exit_codes():
    """A script can tell by the exit code which kind of error ended a command."""
    codes = [
        c.exit_code
        for c in [FedadaptError, *FedadaptError.__subclasses__()]
        if c.__module__ == errors.__name__
    ]
    assert len(set(codes)) == len(codes)
    assert not {0} & set(codes)


def test_wrong_settings_are_value_errors_too():
    """Whoever catches ValueError, as pydantic does, catches a wrong configuration."""
    assert issubclass(errors.ConfigError, ValueError)
