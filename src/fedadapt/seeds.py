"""One root seed, and an independent generator for every purpose, round and client.

Nothing in fedadapt touches a global random state. Whoever needs randomness names what for, in which round
and for which client, and gets a generator that depends on these names and the root seed alone: not on how
many clients share a batch, in which order they run, or what was drawn before a run was resumed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

from fedadapt.errors import ConfigError


@dataclass(frozen=True)
class Seeds:
    """The root of all randomness of a run.

    Args:
        root: any integer from 0 to 2**63 - 1.

    Raises:
        ConfigError: `root` is out of range.

    Example:
        >>> Seeds(7).derive("batches", round=3, client=1) == Seeds(7).derive("batches", round=3, client=1)
        True
        >>> Seeds(7).derive("batches", round=3, client=1) == Seeds(7).derive("batches", round=3, client=2)
        False
    """

    root: int

    def __post_init__(self) -> None:
        if not 0 <= self.root < 2**63:
            raise ConfigError(f"seed must be from 0 to 2**63 - 1, got {self.root}")

    def derive(self, purpose: str, *, round: int = 0, client: int = -1) -> int:
        """The 63-bit seed for one purpose; `round` 0 is before the first, `client` -1 is the server."""
        key = f"{self.root}/{purpose}/{round}/{client}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1

    def uniform(self, purpose: str, *, round: int = 0, client: int = -1) -> float:
        """One number between 0 and 1 for one purpose, at a tenth of what a generator costs.

        Example:
            >>> 0 < Seeds(7).uniform("dropout", round=3, client=1) < 1
            True
        """
        # Of 63 bits the upper 52 and a half: a float has no room for more, and neither 0 nor 1 can come out.
        return ((self.derive(purpose, round=round, client=client) >> 11) + 0.5) / 2**52

    def normal(self, purpose: str, *, round: int = 0, client: int = -1) -> float:
        """One standard normal number for one purpose, from `uniform`."""
        return NormalDist().inv_cdf(self.uniform(purpose, round=round, client=client))

    def torch(self, purpose: str, *, round: int = 0, client: int = -1) -> torch.Generator:
        """A fresh CPU generator of torch for one purpose; torch uses 32 bits of its seed, so two may coincide."""
        return torch.Generator().manual_seed(self.derive(purpose, round=round, client=client))

    def numpy(self, purpose: str, *, round: int = 0, client: int = -1) -> np.random.Generator:
        """A fresh generator of numpy for one purpose."""
        return np.random.default_rng(self.derive(purpose, round=round, client=client))
