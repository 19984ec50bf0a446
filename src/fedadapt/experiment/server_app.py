"""The app of a server that Flower starts."""

from __future__ import annotations

from fedadapt.engines.flower.server_app import make_server_app
from fedadapt.experiment.federated import lead

app = make_server_app(lead)
