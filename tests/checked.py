"""The type checker that `conftest.py` puts around every function of fedadapt while tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception

# As in mypy, an int may stand where a float is asked for.
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with every call checked: types, shapes, and one size for one letter.

    Two annotations mean nothing at run time, `Self` and a protocol that is not `runtime_checkable`. A function
    that has one is left to mypy as a whole; decorate the protocol to have the shapes beside it checked.
    """
    try:
        return _beartype(function)
    except (BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception):
        return function
