"""The site file: what a site says of its data and of itself. Reading it loads nothing heavy."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from fedadapt.errors import ConfigError
from fedadapt.files import read_toml
from fedadapt.registry import Choice, Section, first_problem


class SiteConfig(Section):
    """What a site file says."""

    source: Choice
    client: int | None = Field(
        default=None, ge=0, description="this site's number, where the server does not give it one"
    )
    classes: dict[str, str] = Field(
        default={}, description="the federation's name of a class, by the name it has here"
    )
    share: bool = Field(
        default=False, description="hold only the share that the recipe's partition gives this client"
    )
    device: str | None = Field(default=None, description="where to compute; none: as the recipe says")
    weights: str | None = Field(default=None, description="the backbone's weight file here")
    folder: Path = Field(
        default=Path("fedadapt-site"), description="where this site keeps what it must not lose"
    )


def load_site(path: Path) -> SiteConfig:
    """Reads a site file; relative paths in it are relative to where it lies.

    Raises:
        ConfigError: it cannot be read, or says something that cannot be.
    """
    document = read_toml(path, "site file")
    try:
        return SiteConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(
            f"site file {path}: {first_problem(error, dict.fromkeys(SiteConfig.model_fields, ''))}"
        ) from None
