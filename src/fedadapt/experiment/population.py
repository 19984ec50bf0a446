"""From what a run file says of its clients to a population, and what of it cannot be."""

from __future__ import annotations

from fedadapt.algorithms import Algorithm
from fedadapt.data.holdings import Holdings
from fedadapt.errors import ConfigError
from fedadapt.experiment.config import RunConfig
from fedadapt.federation.population import Population
from fedadapt.federation.sampling import Pool
from fedadapt.seeds import Seeds


def build_population(
    config: RunConfig, held: Holdings, seeds: Seeds, algorithm: Algorithm, *, delta: bool
) -> Population:
    """The clients of a run, and who is asked.

    Args:
        config: the run.
        held: what each client holds, in a simulation.
        seeds: of the run.
        algorithm: the technique.
        delta: whether downloads are steps.

    Raises:
        ConfigError: more clients would be asked than there are, or an option is wrong or of no use.
    """
    chosen, registered = config.population, config.data.num_clients
    population = Population(
        Pool(registered, held),
        config.cohort or registered,
        seeds,
        chosen.sampling.create("sampling"),
        **chosen.model_dump(exclude={"sampling"}),
    )
    if population.asks > registered:
        over = (
            f" with population.over_selection={chosen.over_selection:g}" if chosen.over_selection > 1 else ""
        )
        raise ConfigError(
            f"a round would ask {population.asks} clients{over}, but data.num_clients is {registered}; "
            f"set cohort to at most {int(registered / chosen.over_selection)}"
        )
    if algorithm.server.buffer is not None:
        _check_buffered(population, algorithm, delta=delta)
    elif chosen.slowness and chosen.deadline_s is None and chosen.over_selection == 1:
        raise ConfigError(
            f"population.slowness is {chosen.slowness:g}, but every round waits for everybody; "
            "set population.deadline_s or over_selection, or leave it out"
        )
    return population


def _check_buffered(population: Population, algorithm: Algorithm, *, delta: bool) -> None:
    """Refuses what has no meaning where clients come and go by themselves."""
    for key, used, why in (
        ("population.sampling", not population.sampling.even, "whoever is free is asked"),
        ("population.over_selection", population.over_selection > 1, "every update that comes is taken"),
        (
            "population.deadline_s",
            population.deadline_s is not None,
            "late updates are taken, at less weight",
        ),
        ("codec.delta", delta, "clients are at work on models of different rounds"),
    ):
        if used:
            default = "; set it to false" if key == "codec.delta" else "; leave it out"
            raise ConfigError(f"{key} cannot be used with algorithm {algorithm.name}: {why}{default}")
