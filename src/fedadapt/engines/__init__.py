"""Engines carry requests to clients and bring back replies; they know nothing of algorithms."""
