"""What clients do is a function of the seed, the round and their number."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedadapt.federation.population import Population
from fedadapt.federation.sampling import Pool
from fedadapt.federation.sampling.uniform import uniform
from fedadapt.seeds import Seeds

PLAIN = Population(Pool(10**6), 10, Seeds(4), uniform())


def test_by_itself_everybody_does_everything():
    """No habits: all answer, with all the work, in the time of the steps."""
    conduct = PLAIN.conduct(1, 7, 12)
    assert (conduct.answers, conduct.effort, conduct.takes_s) == (True, 1.0, 12.0)
    assert len(PLAIN.asked(1)) == 10


@pytest.mark.parametrize(("factor", "asks"), [(1.0, 10), (1.1, 11), (1.3, 13), (1.25, 13)])
def test_over_selection_rounds_up(factor, asks):
    """Ten updates wanted at 1.25 are 12.5 clients, so 13; and 1.1 is 11 although its float is a little more."""
    assert replace(PLAIN, over_selection=factor).asks == asks
    assert len(replace(PLAIN, over_selection=factor).asked(3)) == asks


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_dropouts_come_at_their_rate(rate):
    """Of 2,000 clients a quarter drop out, give or take five standard deviations; at 0 none and at 1 all."""
    population = replace(PLAIN, dropout=rate)
    gone = sum(not population.conduct(1, client, 1).answers for client in range(2000))
    assert abs(gone - 2000 * rate) <= 5 * math.sqrt(2000 * rate * (1 - rate))


def test_time_by_hand():
    """At slowness 0.5 a client takes e^(z / 2) times two seconds for each of the steps that it takes."""
    population = replace(PLAIN, slowness=0.5, step_s=2.0, least_work=0.5)
    for round in (1, 2):
        conduct = population.conduct(round, 3, 11)
        assert conduct.effort == 0.5 + 0.5 * Seeds(4).uniform("work", round=round, client=3)
        pace = math.exp(Seeds(4).normal("speed", client=3) / 2)
        assert conduct.takes_s == pytest.approx(2 * pace * math.ceil(11 * conduct.effort))


def test_what_a_client_does_depends_on_nobody_else():
    """The same client and round, the same conduct, whoever was asked before; another round, another one."""
    population = replace(PLAIN, dropout=0.5, slowness=1.0, least_work=0.2)
    first = [population.conduct(2, client, 9) for client in range(50)]
    assert [population.conduct(2, client, 9) for client in reversed(range(50))] == first[::-1]
    assert first != [population.conduct(3, client, 9) for client in range(50)]
