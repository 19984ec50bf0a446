"""Who holds what: a partition of labels over clients as a page, and as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from fedadapt.errors import ConfigError
from fedadapt.report import figures
from fedadapt.report.document import Html, document, element, facts, figure, section, table, write_text

LEVELS = " ▁▂▃▄▅▆▇█"
"""Bars of the terminal, from none to full height."""

MAX_BAR = 60
"""Classes that still get a bar each in the terminal."""


def partition_page(
    label_counts: Sequence[Sequence[int]],
    class_names: Sequence[str],
    measures: Mapping[str, float | Sequence[float]],
    title: str,
    out: Path,
    domain_counts: Sequence[Sequence[int]] | None = None,
) -> Path:
    """Writes a page on who holds what: bars of each client's samples, and a heat map of clients by classes.

    Args:
        label_counts: K x D samples.
        class_names: D names.
        measures: numbers on the partition by name; a list holds one a client.
        title: of the page.
        out: the HTML file; it is replaced at once or not at all.
        domain_counts: K x E samples by domain, where domains are known.

    Returns:
        `out`.

    Raises:
        ConfigError: the counts are empty or do not fit the names, or a list of measures does not fit the clients.
        RunError: `out` cannot be written.
    """
    _check(label_counts, class_names, measures)
    sizes = [sum(row) for row in label_counts]
    numbers = [
        ("clients", f"{len(sizes)}"),
        ("samples", f"{sum(sizes):,}"),
        ("classes", f"{len(class_names)}"),
        ("smallest and largest client", f"{min(sizes):,} – {max(sizes):,}"),
        *((name, f"{value:.3g}") for name, value in measures.items() if isinstance(value, int | float)),
    ]
    by_client = {name: list(value) for name, value in measures.items() if not isinstance(value, int | float)}
    sections = [
        section(
            "Samples by client",
            figure(
                "samples-by-client",
                figures.label_bars(label_counts, class_names),
                f"Bars of the samples of {len(sizes)} clients, from {min(sizes)} to {max(sizes)} samples.",
                _client_table(label_counts, by_client),
            ),
            note="How much each client holds, and of which classes.",
        ),
        section(
            "Classes by client",
            holdings("holdings", label_counts, class_names),
            note="Training samples of each class on each client.",
        ),
    ]
    if domain_counts is not None:
        names = [f"domain {number}" for number in range(len(domain_counts[0]))]
        sections.append(
            section(
                "Domains by client",
                holdings("domains", domain_counts, names),
                note="Training samples of each domain on each client.",
            )
        )
    header = [element("h1", title), element("p", "Who holds what", class_="lead"), facts(numbers)]
    return write_text(out, document(f"{title} – fedadapt", header, sections))


def holdings(name: str, label_counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> Html:
    """A heat map of K x D `label_counts` with its table, as the element `name` of a page."""
    sizes = [sum(row) for row in label_counts]
    names = list(class_names) or [str(index) for index in range(len(label_counts[0]))]
    return figure(
        name,
        figures.label_heat_map(label_counts, names),
        f"Heat map of samples by client and class: {len(sizes)} clients with {min(sizes)} to {max(sizes)} samples, "
        f"{len(names)} classes.",
        table(
            "Samples by client and class",
            ["client", *names, "all"],
            [(f"client {client}", *row, sum(row)) for client, row in enumerate(label_counts)],
        ),
    )


def partition_table(
    label_counts: Sequence[Sequence[int]],
    class_names: Sequence[str],
    measures: Mapping[str, float | Sequence[float]] | None = None,
) -> Table:
    """Who holds what, for the terminal: a row a client, with a bar a class up to the client's largest class.

    Args:
        label_counts: K x D samples.
        class_names: D names.
        measures: as for `partition_page`; lists become columns, single numbers the caption.

    Raises:
        ConfigError: the counts are empty or do not fit the names, or a list of measures does not fit the clients.
    """
    measures = measures or {}
    _check(label_counts, class_names, measures)
    by_client = {name: value for name, value in measures.items() if not isinstance(value, int | float)}
    single = "\n".join(
        f"{name} {value:.3g}" for name, value in measures.items() if isinstance(value, int | float)
    )
    listing = Table(box=None, pad_edge=False, header_style="bold", caption=escape(single) or None)
    listing.caption_justify = "left"
    with_bars = len(class_names) <= MAX_BAR
    for head in ("client", "samples", "classes", *by_client):
        listing.add_column(escape(head), justify="right", no_wrap=True)
    if with_bars:
        listing.add_column(f"class 0 to {len(class_names) - 1}", no_wrap=True)
    for client, row in enumerate(label_counts):
        cells = [*_client_cells(client, row), *(f"{value[client]:.3g}" for value in by_client.values())]
        listing.add_row(*cells, *([_bar(row)] if with_bars else []))
    return listing


def _check(
    label_counts: Sequence[Sequence[int]],
    class_names: Sequence[str],
    measures: Mapping[str, float | Sequence[float]],
) -> None:
    if not label_counts or not class_names:
        raise ConfigError(
            f"a partition has at least one client and one class, got {len(label_counts)} and {len(class_names)}"
        )
    for client, row in enumerate(label_counts):
        if len(row) != len(class_names):
            raise ConfigError(
                f"client {client} has counts of {len(row)} classes, but {len(class_names)} are named"
            )
    for name, value in measures.items():
        if not isinstance(value, int | float) and len(value) != len(label_counts):
            raise ConfigError(
                f"measure {name!r} has {len(value)} numbers for {len(label_counts)} clients; give one each"
            )


def _client_cells(client: int, row: Sequence[int]) -> tuple[str, str, str]:
    return str(client), f"{sum(row):,}", str(sum(count > 0 for count in row))


def _client_table(label_counts: Sequence[Sequence[int]], by_client: Mapping[str, Sequence[float]]) -> Html:
    rows = [
        (*_client_cells(client, row), *(f"{value[client]:.3g}" for value in by_client.values()))
        for client, row in enumerate(label_counts)
    ]
    return table("Clients", ["client", "samples", "classes held", *by_client], rows)


def _bar(row: Sequence[int]) -> str:
    """One block a class; a class that is held is never drawn as none."""
    top = max(row) or 1
    return "".join(LEVELS[math.ceil(count / top * (len(LEVELS) - 1))] for count in row)
