"""How the samples of a data set are dealt out to clients."""
