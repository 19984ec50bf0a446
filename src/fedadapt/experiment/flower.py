"""The two apps that Flower starts: the server of a run, and a site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedadapt.engines.flower.apps import make_client_app, make_server_app
from fedadapt.experiment.config import load_config
from fedadapt.experiment.federated import lead
from fedadapt.experiment.site import FederationSite


def _open_site(paths: Mapping[str, Path]) -> FederationSite:
    recipe = paths.get("recipe")
    return FederationSite(paths["site"], None if recipe is None else load_config(recipe))


server_app = make_server_app(lead)
site_app = make_client_app(_open_site)
