"""Which adapters and codecs a budget of bytes allows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fedadapt.adapters import attach
from fedadapt.codecs import make_codec
from fedadapt.errors import AttachError, ConfigError
from fedadapt.experiment.build import Experiment
from fedadapt.experiment.forecast import message_bytes
from fedadapt.federation.frame import Kind
from fedadapt.federation.plan import make_plan
from fedadapt.federation.serve import UPLOAD_SCALARS
from fedadapt.params import Group
from fedadapt.registry import create, describe, names

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""What is tried where an adapter has an option `rank`."""

CODECS = {
    "float32": 32,
    "bfloat16": 16,
    "int8": 8,
    "rotate > int4": 4,
    "rotate > int2": 2,
    "rotate > int1(rounding=nearest)": 1,
}
"""What is tried, with the bits of a value; their sizes are known, and ``> zstd`` behind any makes it smaller."""

_ENOUGH_BITS = 4
"""With fewer, a message loses about as much as it says, and more values make up for that less and less."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Proposal:
    """An adapter and a codec that keep within a budget.

    Args:
        adapter: its registered name.
        options: of the adapter.
        codec: for both directions.
        bits: of a value.
        num_values: shared by a client and the server.
        download: bytes of one message to a client that was there in the round before.
        upload: bytes of one message.
    """

    adapter: str
    options: dict[str, Any]
    codec: str
    bits: int
    num_values: int
    download: int
    upload: int

    @property
    def settings(self) -> list[str]:
        """The same as settings for the command line."""
        options = [f"adapter.{name}={value}" for name, value in self.options.items()]
        return [f"adapter={self.adapter}", *options, f"codec={self.codec}"]

    def as_json(self) -> dict[str, Any]:
        """The proposal as plain JSON values."""
        return {
            "adapter": {"name": self.adapter, **self.options},
            "codec": self.codec,
            "values": self.num_values,
            "download": self.download,
            "upload": self.upload,
            "settings": self.settings,
        }


def parse_bytes(text: str) -> int:
    """A number of bytes as people write it.

    Raises:
        ConfigError: it is not one.

    Example:
        >>> parse_bytes("32KiB"), parse_bytes("1.5 MB"), parse_bytes("900")
        (32768, 1500000, 900)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b|)\s*", text.lower())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise ConfigError(f"budget is {text!r}; write a number of bytes over 0, such as 32KiB, 1.5MB or 900")
    return int(float(match[1]) * _UNITS[match[2]])


def propose(experiment: Experiment, budget: int) -> list[Proposal]:
    """For each adapter that fits the backbone, the most that it can send within a budget; the best first.

    This is arithmetic and says nothing of accuracy. Proposals of 4 bits a value and more come before those of
    fewer; then more values come before fewer, and among as many, more bits.

    Args:
        experiment: whose backbone, norm policy, head policy and algorithm are taken.
        budget: bytes of one message, which neither direction exceeds.
    """
    best: dict[str, Proposal] = {}
    for proposal in _candidates(experiment):
        if max(proposal.download, proposal.upload) > budget:
            continue
        other = best.get(proposal.adapter)
        if other is None or _rank(proposal) > _rank(other):
            best[proposal.adapter] = proposal
    return sorted(best.values(), key=_rank, reverse=True)


def _rank(proposal: Proposal) -> tuple[bool, int, int]:
    return proposal.bits >= _ENOUGH_BITS, proposal.num_values, proposal.bits


def _candidates(experiment: Experiment) -> Iterator[Proposal]:
    config, algorithm = experiment.config, experiment.algorithm
    policy, head = config.norms.create("norm policy"), config.head.create("head policy")
    scalars = len(UPLOAD_SCALARS) + len(algorithm.local.scalars)
    for name in names("adapter"):
        tried = [{"rank": rank} for rank in RANKS] if "rank" in describe("adapter", name)[1] else [{}]
        for options in tried:
            try:
                adapter = create("adapter", name, options)
                model = attach(experiment.backbone, adapter, policy, experiment.seeds.torch("adapter"), head)
            except (AttachError, ConfigError):
                # It has no place on this backbone, or not at this rank.
                continue
            plan = make_plan(model, model.kept | algorithm.local.kept, dict.fromkeys(Group, 0))
            if not plan.groups():
                # Clients keep all that it trains.
                continue
            for codec, bits in CODECS.items():
                wire = replace(
                    experiment.wire,
                    plan=plan,
                    codec=make_codec(codec),
                    groups={},
                    download=None,
                    delta=codec != "float32",
                )
                down = message_bytes(wire, Kind.DOWNLOAD, len(algorithm.downloads), 0)
                up = message_bytes(wire, Kind.UPLOAD, len(algorithm.uploads), scalars)
                if down is not None and up is not None:
                    yield Proposal(name, options, codec, bits, plan.num_shared_bytes // 4, down, up)
