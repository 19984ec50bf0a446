"""Who is asked in a round: one way a file."""

from fedadapt.federation.sampling.base import Choose, Pool, Sampling

__all__ = ["Choose", "Pool", "Sampling"]
