"""A study: a grid of runs over any keys of a recipe, done side by side, each of them once."""

from fedadapt.experiment.study.conduct import Spectator, conduct
from fedadapt.experiment.study.file import Study, load_study

__all__ = ["Spectator", "Study", "conduct", "load_study"]
