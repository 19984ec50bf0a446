"""From what a run file says to a finished run."""

from fedadapt.experiment.config import RunConfig, load_config, make_config
from fedadapt.experiment.run import resume, run

__all__ = ["RunConfig", "load_config", "make_config", "resume", "run"]
