"""Who holds which samples: a function of the client's number, not a list of all clients."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import final, overload

import torch
from jaxtyping import Int64
from torch import Tensor

from fedadapt.data.holdout import hold_out
from fedadapt.errors import ConfigError, DataError
from fedadapt.seeds import Seeds

RECENT = 1024
"""Clients whose samples stay at hand, so that whoever is asked is worked out once."""


@final
@dataclass(frozen=True, eq=False)
class Holdings(Sequence[Int64[Tensor, " _"]]):
    """Which samples each client holds, ascending, worked out when it is asked for.

    Args:
        num_clients: K.
        of: from a client's number to places in the split.
        size: from a client's number to how many they are, which may cost less.
        largest: no client holds more.
        digest: over all that decides the above, the split aside.
        sizes: of all clients, where they are in memory anyway.

    Example:
        >>> held = Holdings.dealt([torch.tensor([0, 3]), torch.tensor([1])])
        >>> len(held), held[0].tolist(), held.size(1), held.largest
        (2, [0, 3], 1, 2)
    """

    num_clients: int
    of: Callable[[int], Int64[Tensor, " _"]]
    size: Callable[[int], int]
    largest: int
    digest: bytes
    sizes: Int64[Tensor, " K"] | None = None

    @classmethod
    def dealt(cls, clients: Sequence[Int64[Tensor, " _"]]) -> Holdings:
        """What clients hold as pieces of one index, which is as long as there are samples.

        Raises:
            DataError: a client would hold nothing.
        """
        order, sizes = torch.cat(list(clients)), torch.tensor([len(own) for own in clients])
        if int(sizes.min()) == 0:
            raise DataError(
                f"client {int(sizes.argmin())} would hold no samples; use fewer clients or another data.partition"
            )
        ends = sizes.cumsum(0)
        digest = hashlib.blake2b(order.numpy().tobytes() + sizes.numpy().tobytes(), digest_size=16).digest()

        def size(client: int) -> int:
            return int(sizes[client])

        def of(client: int) -> Int64[Tensor, " _"]:
            return order[int(ends[client]) - size(client) : int(ends[client])]

        return cls(len(sizes), of, size, int(sizes.max()), digest, sizes)

    @classmethod
    def drawn(
        cls,
        num_clients: int,
        of: Callable[[int], Int64[Tensor, " _"]],
        size: Callable[[int], int],
        largest: int,
        rule: str,
    ) -> Holdings:
        """What clients hold by a rule, which costs nothing until they are asked; they may overlap.

        Args:
            num_clients: K.
            of: from a client's number to places in the split, ascending.
            size: from a client's number to how many they are.
            largest: no client holds more.
            rule: says all that `of` depends on, the split aside.
        """
        digest = hashlib.blake2b(f"{num_clients} {rule}".encode(), digest_size=16).digest()
        return cls(num_clients, lru_cache(maxsize=RECENT)(of), size, largest, digest)

    def __len__(self) -> int:
        return self.num_clients

    @overload
    def __getitem__(self, client: int) -> Int64[Tensor, " _"]: ...

    @overload
    def __getitem__(self, client: slice) -> Sequence[Int64[Tensor, " _"]]: ...

    def __getitem__(self, client: int | slice) -> Int64[Tensor, " _"] | Sequence[Int64[Tensor, " _"]]:
        if isinstance(client, slice):
            return [self.of(number) for number in range(*client.indices(self.num_clients))]
        if not 0 <= client < self.num_clients:
            raise IndexError(f"client {client} is not from 0 to {self.num_clients - 1}")
        return self.of(client)

    def divide(self, labels: Int64[Tensor, " N"], fraction: float, seeds: Seeds) -> tuple[Holdings, Holdings]:
        """What each client trains on, and what it measures itself on; see `hold_out`.

        Args:
            labels: of the whole split.
            fraction: the share to measure on, from 0 (none) to below 1.
            seeds: a client's draw depends on them and its number alone.

        Raises:
            ConfigError: clients may overlap, so that others would train on what one measures itself on.
        """
        if fraction and self.sizes is None:
            raise ConfigError(
                f"data.local_test_fraction is {fraction}, but clients of this data.partition overlap and would train on what "
                "others hold out; set it to 0 and use the test set, or choose a partition that deals samples out"
            )

        @lru_cache(maxsize=RECENT)
        def both(client: int) -> tuple[Int64[Tensor, " _"], Int64[Tensor, " _"]]:
            return hold_out(self.of(client), labels, fraction, seeds.torch("local test", client=client))

        def part(which: int) -> Holdings:
            return Holdings.drawn(
                self.num_clients,
                lambda client: both(client)[which],
                lambda client: len(both(client)[which]),
                self.largest,
                f"part {which} of {self.digest.hex()}, {fraction} held out by {seeds.root}",
            )

        return (part(0) if fraction else self), part(1)


def _nothing(client: int) -> Int64[Tensor, " _"]:
    raise IndexError(f"client {client} is not here")


NOBODY = Holdings(0, _nothing, lambda client: 0, 0, b"")
"""Where nobody's samples are, as on the server of a real federation."""
