"""A site's worker: one process that holds the data and the model, and answers message after message.

``python -m fedadapt.experiment.worker SOCKET SITE [RECIPE]``; ``fedadapt join`` starts it, and again if it dies.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from fedadapt.engines.flower import pipe
from fedadapt.engines.flower.desk import SiteDesk
from fedadapt.errors import FedadaptError
from fedadapt.experiment.config import load_config
from fedadapt.experiment.site import FederationSite


def open_desk(paths: Mapping[str, Path]) -> pipe.Desk:
    """The desk of the site that ``site`` names, with the ``recipe`` that it insists on, if there is one.

    Raises:
        FedadaptError: a file is wrong, or the data cannot be read.
    """
    recipe = paths.get("recipe")
    site = FederationSite(paths["site"], None if recipe is None else load_config(recipe))
    site.load()
    return SiteDesk(site, _say)


def _say(line: str) -> None:
    # A log that cannot be written, because the disk is full, is no reason not to answer.
    with suppress(OSError):
        sys.stdout.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}\n")
        sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Answers at a socket until it is stopped; returns an exit code if it cannot begin."""
    place, *files = (Path(argument) for argument in arguments)
    try:
        desk = open_desk(dict(zip(("site", "recipe"), files, strict=False)))
    except FedadaptError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    with pipe.listen(place) as listener:
        pipe.attend(listener, desk)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
