"""The command line."""

from fedadapt.cli.app import main

__all__ = ["main"]
