"""What a person sees of a running run: one line a round, and a bar for the round that is under way."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedadapt.experiment.build import Experiment
from fedadapt.experiment.run import Watcher
from fedadapt.report.tables import format_bytes
from fedadapt.runs.records import Direction, Outcome, RoundRecord, absences


class ProgressWatcher(Watcher):
    """Prints rounds as they are committed; on a terminal also a bar with the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._named = "accuracy"
        self._moved = 0
        self._only_empty: str | None = ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._rounds = self._progress.add_task("rounds", total=None, note="")
        self._clients = self._progress.add_task("clients", total=None, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if kind is None and self._only_empty:
            self._console.print(
                f"warning: no round changed the model; in the last one: {self._only_empty}; "
                "look at train.lr, train.clip_norm and section population of the recipe",
                highlight=False,
                markup=False,
            )

    def begin(self, experiment: Experiment, last_round: int) -> None:
        """Says what is about to run."""
        config, plan = experiment.config, experiment.plan
        self._named = "shared part alone" if plan.kept() else "accuracy"
        self._console.print(
            f"{config.name}: {experiment.algorithm.name}, adapter {config.adapter.name!r} on {experiment.backbone.name}, "
            f"{config.data.num_clients} clients, {config.rounds} rounds, "
            f"{format_bytes(plan.num_shared_bytes)} each way a client and round",
            highlight=False,
        )
        if experiment.attackers:
            self._console.print(f"{len(experiment.attackers)} of them attack: {config.attack.name}")
        if (features := experiment.features) is not None:
            self._console.print(
                "images are not augmented: what the frozen layers make of them is computed once and kept, "
                f"{format_bytes(features.num_bytes)}"
            )
        if last_round:
            self._console.print(f"going on after round {last_round}")
            self._only_empty = None
        self._progress.update(self._rounds, total=config.rounds, completed=last_round)

    def clients(self, round: int, cohort: int, done: int) -> None:
        """Moves the bar of the round."""
        del round
        self._progress.update(self._clients, total=cohort, completed=done)

    def committed(self, record: RoundRecord) -> None:
        """One line for the round."""
        by_way = {
            way: sum(entry.num_bytes for entry in record.ledger if entry.direction is way)
            for way in Direction
        }
        self._moved += sum(by_way.values())
        metrics = record.metrics
        parts = [
            f"round {record.round:>3}",
            f"train loss {metrics['train_loss']:.3f}" if "train_loss" in metrics else "",
        ]
        # Where clients keep tensors, what is shared is nobody's model: it is named apart.
        named = {"accuracy": self._named, "client_accuracy_mean": "clients"}
        parts += [f"{title} {100 * metrics[name]:.2f} %" for name, title in named.items() if name in metrics]
        parts += [
            f"down {format_bytes(by_way[Direction.DOWNLOAD])}",
            f"up {format_bytes(by_way[Direction.UPLOAD])}",
        ]
        lost = sum(client.outcome is not Outcome.ACCEPTED for client in record.clients)
        parts += [f"{lost} clients lost"] if lost and not record.empty else []
        parts += [f"{record.wall_s:.1f} s"]
        self._console.print("  ".join(part for part in parts if part))
        if record.empty:
            said = absences(record.clients) or "nobody was there to be asked"
            self._console.print(f"  empty, the model stays as it was: {said}", highlight=False, markup=False)
            self._only_empty = said if self._only_empty is not None else None
        else:
            self._only_empty = None
        self._progress.update(self._rounds, completed=record.round, note=f"{format_bytes(self._moved)} moved")
        self._progress.update(self._clients, completed=0)
