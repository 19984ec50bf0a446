"""The contract table of algorithms: one row for each, with what it promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from reference import (
    fedavg,
    fedavgm,
    fedbuff,
    feddyn,
    fedexp,
    fedlc,
    fednova,
    fedopt,
    fedprox,
    fedrs,
    fedsam,
    moon,
    personal,
    qfedavg,
    robust,
    scaffold,
)

from fedadapt.algorithms import Algorithm, LocalRule, Update
from fedadapt.algorithms.algorithm import Phase
from fedadapt.params import Group
from fedadapt.registry import create

PAIR = ((30, 1.0), (10, 0.5))
"""The usual updates of a number by hand: samples and what the one value changed by."""


@dataclass(frozen=True)
class Neutral:
    """Where a technique is another one.

    Args:
        options: with which it is its parent.
        parent: the other one's name, or what makes it.
        parent_options: its options.
        equal: clients have equal numbers of samples, and hence of steps.
        rounds: how long it stays so.
        tolerance: largest difference of a value, over the largest change.
    """

    options: dict[str, Any]
    parent: str | Callable[[], Algorithm] = "fedavg"
    parent_options: dict[str, Any] = field(default_factory=dict)
    equal: bool = False
    rounds: int = 2
    tolerance: float = 1e-4

    def make_parent(self):
        """The other one."""
        return (
            create("algorithm", self.parent, self.parent_options)
            if isinstance(self.parent, str)
            else self.parent()
        )


@dataclass(frozen=True)
class Case:
    """One algorithm with its slow literal version, its parent, and a number that was derived by hand.

    Args:
        name: as registered.
        reference: the literal version: ``step``, and where they are not those of federated averaging ``client``
            and ``streams``; written for `options`.
        by_hand: the model after one step from 1.0, of `updates`.
        neutral: where it is its parent; None for the root of all.
        options: of the algorithm.
        updates: samples and delta of each client of the number by hand.
        extra: further streams and scalars of each of those updates, by name.
        train: settings of local training that it needs.
        adapters: the trainable sets it is compared with its literal version on.
        norms: a policy that gives clients something to keep, if it allows one.
    """

    name: str
    reference: Any
    by_hand: float
    neutral: Neutral | None
    options: dict[str, Any] = field(default_factory=dict)
    updates: tuple[tuple[int, float], ...] = PAIR
    extra: tuple[dict[str, float], ...] = ({}, {}, {}, {}, {}, {}, {})
    train: dict[str, Any] = field(default_factory=dict)
    adapters: tuple[str, ...] = ("parallel", "full", "norm_head")
    norms: str = "local"

    def make(self):
        """The algorithm."""
        return create("algorithm", self.name, self.options)

    def hand_updates(self, scalars):
        """The updates of the number by hand."""
        found = []
        for client, (count, delta) in enumerate(self.updates):
            given = {"delta": delta} | self.extra[client]
            streams = {n: {"w": torch.tensor([v])} for n, v in given.items() if n not in scalars}
            own = {n: v for n, v in given.items() if n in scalars}
            found.append(Update(client, count, 1, streams, own))
        return found


def _body_only():
    """Averaging of all but the head, which every client keeps as it is."""
    body = frozenset(Group) - {Group.HEAD}
    return Algorithm("Body", local=LocalRule(kept=frozenset({Group.HEAD}), phases=(Phase(body),)))


TABLE = [
    # (30 * 1.0 + 10 * 0.5) / 40 = 0.875 is added to 1.0.
    Case("fedavg", fedavg, 1.875, None),
    # The server is that of fedavg.
    Case("fedprox", fedprox, 1.875, Neutral({"mu": 0.0}), {"mu": 0.5}),
    # The velocity is 0.875 and half of it is added.
    Case("fedavgm", fedavgm, 1.4375, Neutral({"momentum": 0.0}), {"momentum": 0.8, "lr": 0.5}),
    # m = 0.4 * 0.875 = 0.35, v = 0.3 * 0.765625, sqrt(v) = 0.479257; 0.1 * 0.35 / 0.529257 = 0.0661305.
    Case(
        "fedadam",
        fedopt.fedadam,
        1.0661305,
        Neutral({"beta1": 0.0, "lr": 1e4, "tau": 1e4}, tolerance=1e-3),
        {"lr": 0.1, "beta1": 0.6, "beta2": 0.7, "tau": 0.05},
    ),
    # From zero the sign is -1, so v is that of fedadam.
    Case(
        "fedyogi",
        fedopt.fedyogi,
        1.0661305,
        Neutral({"beta1": 0.0, "lr": 1e4, "tau": 1e4}, tolerance=1e-3),
        {"lr": 0.1, "beta1": 0.6, "beta2": 0.7, "tau": 0.05},
    ),
    # v = 0.765625, sqrt(v) = 0.875; 0.1 * 0.35 / 0.925 = 0.0378378.
    Case(
        "fedadagrad",
        fedopt.fedadagrad,
        1.0378378,
        Neutral({"beta1": 0.0, "lr": 1e4, "tau": 1e4}, tolerance=1e-3),
        {"lr": 0.1, "beta1": 0.6, "tau": 0.05},
    ),
    # Mean 1 of 5 and -3; (25 + 9) / (4 * 1.001) = 8.491508 times it.
    Case("fedexp", fedexp, 9.491508, Neutral({"eps": 1e9}, equal=True), updates=((1, 5.0), (1, -3.0))),
    # Lengths 1 and 3, shares 3/4 and 1/4: (0.75 + 0.75) * (0.75 * 1.0 + 0.25 * 0.5 / 3) = 1.1875.
    Case(
        "fednova",
        fednova,
        2.1875,
        Neutral({}, equal=True),
        extra=({"path_length": 1.0}, {"path_length": 3.0}),
    ),
    # The equal mean 0.75, times 0.7.
    Case(
        "scaffold",
        scaffold,
        1.525,
        Neutral({}, equal=True, rounds=1),
        {"lr": 0.7},
        extra=({"control_delta": 2.0}, {"control_delta": 4.0}),
    ),
    # Both of two answer: h = -0.3 * 0.75 = -0.225, and 1 + 0.75 + 0.225 / 0.3 = 2.5.
    # With a vanishing spring and everybody there, the first drift is the mean once more.
    Case(
        "feddyn",
        feddyn,
        2.5,
        Neutral(
            {"alpha": 1e-6}, "fedavgm", {"momentum": 0.0, "lr": 2.0}, equal=True, rounds=1, tolerance=1e-3
        ),
        {"alpha": 0.3},
    ),
    # The middle one of three.
    Case(
        "median",
        robust.median,
        3.0,
        # Trimming all but the middle one of seven, and all but the middle two of six.
        Neutral({}, "trimmed_mean", {"fraction": 0.43}),
        updates=((1, 1.0), (1, 2.0), (1, 900.0)),
    ),
    # A quarter of four is left out at each end: the mean of 1 and 2.
    Case(
        "trimmed_mean",
        robust.trimmed_mean,
        2.5,
        Neutral({"fraction": 0.0}, equal=True),
        {"fraction": 0.25},
        updates=((1, 1.0), (1, 2.0), (1, -900.0), (1, 900.0)),
    ),
    # Two nearest of five: 1.5 has 0.25 + 0.25, the least.
    Case(
        "krum",
        robust.krum,
        2.5,
        Neutral({}, "multi_krum", {"selected": 1}),
        updates=((1, 1.0), (1, 1.5), (1, 2.0), (1, 2.75), (1, -900.0)),
    ),
    # The next is 2.0 with 0.25 + 0.5625; the mean of 1.5 and 2.0.
    Case(
        "multi_krum",
        robust.multi_krum,
        2.75,
        Neutral({"attackers": 0}, equal=True),
        {"selected": 2},
        updates=((1, 1.0), (1, 1.5), (1, 2.0), (1, 2.75), (1, -900.0)),
    ),
    # The five around 1.2 are picked; of those the three nearest their median 1.2 are averaged.
    Case(
        "bulyan",
        robust.bulyan,
        2.2,
        Neutral({"attackers": 0}, equal=True),
        updates=((1, 1.0), (1, 1.1), (1, 1.2), (1, 1.3), (1, 1.4), (1, 5.0), (1, -900.0)),
    ),
    # Three of four in one place hold the point of least distance there.
    Case(
        "geometric_median",
        robust.geometric_median,
        2.0,
        Neutral({"smoothing": 1e6}, equal=True),
        updates=((1, 1.0), (1, 1.0), (1, 1.0), (1, 9.0)),
    ),
    # 1.0 is cut to 0.5, where the other one is.
    Case("norm_clipping", robust.norm_clipping, 1.5, Neutral({"largest": 1e6}), {"largest": 0.5}),
    # The clients of fedprox, the server of fedavgm.
    Case(
        "chain",
        SimpleNamespace(client=fedprox.client, step=fedavgm.step, streams=fedavgm.streams),
        1.4375,
        Neutral({"of": ["fedavg"]}),
        {"of": [{"name": "fedprox", "mu": 0.5}, {"name": "fedavgm", "momentum": 0.8, "lr": 0.5}]},
    ),
    # L = 2. Weights 2 * 2^1.5 and 2 * 1; h are 1.5 * 2^0.5 * 2^2 + 2 * 2^1.5 = 14.14214 and 1.5 * 1 + 2 = 3.5.
    # (5.656854 * 1.0 + 2 * 0.5) / 17.64214 = 0.377328.
    Case(
        "qfedavg",
        qfedavg,
        1.377328,
        Neutral({"q": 0.0}, equal=True),
        {"q": 1.5},
        extra=({"start_loss": 2.0, "lr": 0.5}, {"start_loss": 1.0, "lr": 0.5}),
    ),
    # Where only clients do something of their own, the server is that of fedavg; their numbers are in doctests.
    Case("fedrs", fedrs, 1.875, Neutral({"alpha": 1.0}), {"alpha": 0.3}),
    Case("fedlc", fedlc, 1.875, Neutral({"tau": 0.0}), {"tau": 0.8}),
    Case("fedsam", fedsam.fedsam, 1.875, Neutral({"rho": 0.0}), {"rho": 0.1}),
    Case("fedasam", fedsam.fedasam, 1.875, Neutral({"rho": 0.0}), {"rho": 0.3, "eta": 0.2}),
    Case("moon", moon, 1.875, Neutral({"mu": 0.0}), {"mu": 0.7}),
    Case("fedper", personal.fedper, 1.875, Neutral({"kept": []})),
    Case(
        "fedrep", personal.fedrep, 1.875, Neutral({"head_epochs": 0}, parent=_body_only), train={"epochs": 2}
    ),
    Case("ditto", personal.ditto, 1.875, Neutral({"pull": 0.0}), {"pull": 0.4}),
    Case(
        "perada",
        personal.perada,
        1.875,
        Neutral({"pull": 0.0}),
        {"pull": 0.4},
        adapters=("parallel", "low_rank"),
    ),
    Case("apfl", personal.apfl, 1.875, Neutral({"alpha": 0.0}), {"alpha": 0.3}, norms="frozen"),
    # Nobody is late: the equal mean 0.75, times 0.5.
    Case(
        "fedbuff",
        SimpleNamespace(step=fedbuff.step),
        1.375,
        Neutral({}, equal=True),
        {"lr": 0.5},
    ),
]
