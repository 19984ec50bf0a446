"""Federated techniques as values: what a client does to its gradients, and what the server does with updates."""

from fedadapt.algorithms.algorithm import Algorithm, LocalRule, ServerRule, Setting, Update

__all__ = ["Algorithm", "LocalRule", "ServerRule", "Setting", "Update"]
