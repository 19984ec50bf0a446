"""The exchange plan for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from fedadapt.report.tables import format_bytes


def plan_table(told: Mapping[str, Any]) -> Iterator[Table | str]:
    """The groups of a forecast as a table, then its bytes in sentences.

    Args:
        told: what `fedadapt.experiment.forecast.forecast` returns.
    """
    table = Table(
        title=f"{told['run']}: adapter {told['adapter']!r} on {told['backbone']['name']}, {told['algorithm']}"
    )
    for column in ("group", "trained", "travels", "tensors", "values", "bytes a message"):
        table.add_column(column, justify="left" if column in ("group", "trained", "travels") else "right")
    for group in told["groups"]:
        table.add_row(
            group["group"],
            "yes" if group["trained"] else "no",
            group["travels"],
            f"{group['tensors']:,}" if group["tensors"] else "",
            f"{group['values']:,}",
            _size(group["bytes"]),
        )
    yield table
    messages, rounds = told["message_bytes"], told["round_bytes"]
    yield f"a client and round: {_size(messages['download'])} down, {_size(messages['upload'])} up"
    yield f"a round of {told['cohort']} clients: {_size(rounds['download'])} down, {_size(rounds['upload'])} up"
    if any(told["first_bytes"].values()):
        first = told["first_bytes"]
        yield f"class means before the first round: {_size(first['download'])} down, {_size(first['upload'])} up"
    yield f"the run of {told['rounds']} rounds: {_size(told['run_bytes'])}"
    share = "" if told["share"] is None else f"; a download is {100 * told['share']:.2f} % of it"
    yield f"the full model: {_size(told['full_model_bytes'])}{share}"
    backbone = told["backbone"]
    yield f"once for each client without it: the backbone, {_size(backbone['once'])}, digest {backbone['digest'][:16]}"
    ratio = told["ratio"]
    if ratio["round"] is not None:
        yield (
            f"full fine-tuning in fp32 moves {_times(ratio['round'])} the bytes a round; over the run "
            f"{_times(ratio['run'])} if all have the backbone, {_times(ratio['run_with_backbone'])} if nobody has"
        )


def proposal_table(told: Mapping[str, Any]) -> Iterator[Table | str]:
    """What a budget allows, if there is one, as a table and a line to use the first.

    Args:
        told: a forecast with ``budget`` in bytes and ``proposals``, the best first.
    """
    if "budget" not in told:
        return
    table = Table(title=f"within {format_bytes(told['budget'])} a client and direction")
    for column in ("adapter", "codec", "values", "down", "up"):
        table.add_column(
            column, justify="left" if column in ("adapter", "codec") else "right", overflow="fold"
        )
    for proposal in told["proposals"]:
        name, *options = proposal["adapter"].items()
        adapter = " ".join([name[1], *(f"{option}={value}" for option, value in options)])
        sizes = (format_bytes(proposal[way]) for way in ("download", "upload"))
        table.add_row(adapter, proposal["codec"], f"{proposal['values']:,}", *sizes)
    if not told["proposals"]:
        yield f"no adapter fits into {format_bytes(told['budget'])}, not even with 1 bit a value"
        return
    yield table
    yield "more values before fewer, 4 bits and more before less; accuracy has to be measured"
    yield "take the first: " + " ".join(f"--set '{setting}'" for setting in told["proposals"][0]["settings"])
    yield "'> zstd' behind a codec makes it smaller still, by how much depends on the values"


def _times(ratio: float | None) -> str:
    return "an unknown multiple of" if ratio is None else f"{ratio:.3g} times"


def _size(num_bytes: int | None) -> str:
    return (
        "depends on the values" if num_bytes is None else f"{format_bytes(num_bytes)} ({num_bytes:,} bytes)"
    )
