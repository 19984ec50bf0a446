"""Where commands print."""

from __future__ import annotations

from rich.console import Console

FILE_WIDTH = 140
"""Columns of output that goes to a file or pipe, where nothing tells how wide the reader is."""


def make_console() -> Console:
    """A console on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=FILE_WIDTH)
    return console
