"""How hypothesis searches: the same examples everywhere, and no example fails for being slow."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
# For hunting: `pytest --hypothesis-profile=explore` draws new examples each time.
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("repeatable")
