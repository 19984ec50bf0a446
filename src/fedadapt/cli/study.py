"""``fedadapt study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedadapt.cli.options import RunsFolderOption, SetOption
from fedadapt.errors import ConfigError, RunError


def command(
    study: Annotated[Path, typer.Argument(help="A study file in TOML.", show_default=False)],
    settings: SetOption = [],  # noqa: B006 - typer copies it
    runs: RunsFolderOption = Path("runs"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="At most so many cells side by side; by default one a core.")
    ] = None,
    cell: Annotated[list[int], typer.Option(help="Only the cell of this number; repeatable.")] = [],  # noqa: B006
    only: Annotated[
        list[str], typer.Option(metavar="AXIS=VALUE", help="Only cells with this value; repeatable.")
    ] = [],  # noqa: B006
    check: Annotated[
        Path | None, typer.Option(help="Results to compare with; the rates that they found are taken over.")
    ] = None,
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished cells again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and how much it is.")
    ] = False,
) -> None:
    """Run a grid of federations from a study file, side by side; finished cells are never done again."""
    from fedadapt.cli.console import make_console
    from fedadapt.cli.study_progress import StudyProgress, compared, foretold, outcomes
    from fedadapt.experiment.study import conduct, load_study
    from fedadapt.experiment.study.compare import compare
    from fedadapt.experiment.study.conduct import choose, current, foresee, share_out
    from fedadapt.runs.results import Results

    console = make_console()
    loaded = load_study(study, settings)
    wanted = choose(loaded, cell, [_pattern(text) for text in only])
    known = {}
    if check is not None:
        with Results.read(check) as results:
            known = current(results)
    if dry_run:
        plan, found = foresee(loaded, runs, wanted, known)
        for part in foretold(loaded, plan, found, known, share_out(jobs, len(wanted))):
            console.print(part)
        return
    with StudyProgress(console) as spectator:
        file, plan, found = conduct(
            loaded, runs, jobs=jobs, wanted=wanted, known=known, overwrite=overwrite, spectator=spectator
        )
    console.print(outcomes(plan, found))
    typer.echo(f"done: {file}   see it with: fedadapt results {file} OUT")
    if check is not None:
        checked = compare(plan, found, known)
        console.print(compared(checked))
        if wrong := sum(not one.agrees for one in checked):
            raise RunError(f"{wrong} of {len(checked)} cells are not what {check} says")


def _pattern(text: str) -> dict[str, str]:
    axis, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"--only takes AXIS=VALUE, got {text!r}; for instance --only seed=0")
    return {axis: value}
