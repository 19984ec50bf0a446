"""Training: the one local loop over the client axis, its optimisers, evaluation, and central pretraining."""
