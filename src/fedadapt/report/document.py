"""One HTML document that needs nothing else: style, script, plotly and data are inside, and every text escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedadapt.errors import RunError
from fedadapt.files import write_whole

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
"""What the browser lets the page do; loading anything from anywhere is not among it."""


@dataclass(frozen=True)
class Html:
    """Markup, as opposed to text: everything that is not `Html` is escaped where it meets markup."""

    text: str


def markup(*parts: Html | object) -> Html:
    """The parts one after the other; text is escaped."""
    return Html("".join(part.text if isinstance(part, Html) else html.escape(str(part)) for part in parts))


def element(tag: str, *parts: Html | object, **attributes: object) -> Html:
    """``<tag attributes>parts</tag>``; a trailing underscore of an attribute is dropped, others become hyphens.

    Example:
        >>> element("p", "a < b", class_="lead").text
        '<p class="lead">a &lt; b</p>'
    """
    names = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    inside = "".join(f' {name}="{html.escape(str(value))}"' for name, value in names)
    return Html(f"<{tag}{inside}>{markup(*parts).text}</{tag}>")


def _void(tag: str, **attributes: object) -> Html:
    """An element that has no end."""
    return Html(element(tag, **attributes).text.removesuffix(f"</{tag}>"))


def table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numeric: Sequence[bool] | None = None,
    kind: str = "wide",
) -> Html:
    """A captioned table that scrolls sideways by itself where it is wider than the page.

    Args:
        caption: what the table holds.
        heads: one heading a column; none leaves out the head.
        rows: cells by row; the first cell names the row.
        numeric: which columns hold numbers; all but the first if left out.
        kind: the style: ``wide`` or ``settings``.
    """
    flags = numeric if numeric is not None else [index > 0 for index in range(len(heads))]
    classes = [{"class_": "number"} if flag else {} for flag in flags] or [{}, {}]
    head = [element("th", text, scope="col", **style) for text, style in zip(heads, classes, strict=False)]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", **classes[0]),
            *(element("td", cell, **style) for cell, style in zip(row[1:], classes[1:], strict=True)),
        )
        for row in rows
    ]
    return element(
        "div",
        element(
            "table",
            element("caption", element("span", caption)),
            element("thead", element("tr", *head)) if head else Html(""),
            element("tbody", *body),
            class_=kind,
        ),
        class_="scroll",
        role="region",
        aria_label=caption,
        tabindex=0,
    )


def figure(name: str, drawing: Figure, description: str, numbers: Html) -> Html:
    """A drawing, and the same numbers as a table for who cannot or would not look.

    Args:
        name: the element's id, unique in the document.
        drawing: what plotly draws.
        description: what the drawing shows, for who does not see it.
        numbers: the table.
    """
    # Inside a script element only "<" can end it, and JSON may write that as an escape.
    data = str(drawing.to_json()).replace("<", "\\u003c")
    height = f"height:{drawing.layout.height}px"
    return element(
        "figure",
        element("div", class_="plot", id=name, role="img", aria_label=description, style=height),
        element("script", Html(data), type="application/json", id=f"{name}-figure"),
        element("button", "Save as SVG", type="button", class_="save", data_figure=name),
        folded("Show the numbers", numbers),
    )


def section(title: str, *parts: Html, note: str = "") -> Html:
    """A part of the page under a heading, with a sentence on what is to be seen."""
    return element("section", element("h2", title), element("p", note) if note else Html(""), *parts)


def folded(summary: str, *parts: Html, **attributes: object) -> Html:
    """Parts that open on a click."""
    return element("details", element("summary", summary), *parts, **attributes)


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """The few numbers that matter most, each with what it is."""
    return element(
        "dl",
        *(element("div", element("dt", name), element("dd", value)) for name, value in pairs),
        class_="facts",
    )


def document(
    title: str, header: Sequence[Html], body: Sequence[Html], *, refresh_s: int | None = None
) -> str:
    """The whole document.

    Args:
        title: of the browser's window.
        header: the parts above the first section, with the page's one ``h1``.
        body: the sections.
        refresh_s: seconds after which the page reads its file again, with what the reader opened left open
            and where he was; never if left out.
    """
    from plotly.offline import get_plotlyjs

    room = resources.files(__package__)
    style, script = (room.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    void: list[dict[str, Any]] = [
        {"charset": "utf-8"},
        {"http_equiv": "Content-Security-Policy", "content": POLICY},
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
        {"name": "color-scheme", "content": "light dark"},
        {"name": "generator", "content": "fedadapt"},
    ]
    metas = [_void("meta", **attributes) for attributes in void]
    again: dict[str, Any] = {}
    if refresh_s is not None:
        again["data_refresh"] = refresh_s
        metas.append(element("noscript", _void("meta", http_equiv="refresh", content=refresh_s)))
    page = element(
        "html",
        element(
            "head",
            *metas,
            element("title", title),
            _void("link", rel="icon", href="data:,"),
            element("style", Html(style)),
        ),
        element(
            "body",
            element("header", *header),
            element("main", *body),
            element("footer", element("p", "Made with fedadapt. This page is one file and loads nothing.")),
            element("noscript", element("p", "The figures need JavaScript; the tables do not.")),
            element("script", Html(get_plotlyjs())),
            element("script", Html(script)),
        ),
        lang="en",
        **again,
    )
    return f"<!doctype html>\n{page.text}\n"


def write_text(out: Path, text: str) -> Path:
    """Writes a text file so that a reader sees the old one or the new one, never half of one.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        write_whole(Path(out), text.encode())
    except OSError as error:
        raise RunError(
            f"cannot write {str(out)!r} ({error.strerror}); free space or give another path"
        ) from error
    return Path(out)
