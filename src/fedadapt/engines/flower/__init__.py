"""A federation between real nodes on Flower's deployment engine; the only room that imports flwr."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fedadapt.errors import EngineError

LOWEST, BELOW = (1, 41), (1, 42)
"""The releases of Flower whose commands and messages are known to be as they are used here."""


def require_flower() -> None:
    """Checks that Flower is here in a release that fits.

    Raises:
        EngineError: it is not.
    """
    wanted = f"flwr>={LOWEST[0]}.{LOWEST[1]},<{BELOW[0]}.{BELOW[1]}"
    try:
        found = version("flwr")
    except PackageNotFoundError:
        raise EngineError(
            f"Flower is not installed; install it with: pip install 'fedadapt[flower]' ({wanted})"
        ) from None
    release = tuple(int(part) for part in found.split(".")[:2])
    if not LOWEST <= release < BELOW:
        raise EngineError(f"flwr {found} is installed, this fedadapt works with {wanted}; install that")
