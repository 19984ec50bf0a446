"""The handshake: what a federation tells a party that joins, and what the party says of itself.

Names and shapes are agreed here, once; from then on frames carry digests only.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from fedadapt.errors import FrameError, one_line

TERMS = "terms.json"
"""The file in which a server says its terms, and a site keeps those that it agreed to."""

MAX_TEXT = 2**20
"""Characters of a document of the handshake; longer ones are refused unread."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")]
Line = Annotated[str, Field(max_length=500)]
Complaint = Annotated[Line, AfterValidator(one_line)]
"""What went wrong elsewhere, as it may be shown here."""


class Document(BaseModel):
    """Something that travels as JSON and is checked on arrival."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Terms(Document):
    """What all parties of a run must have in common.

    Args:
        run: which run it is; a new run with the same recipe is another one.
        recipe: the whole configuration, as JSON.
        class_names: of the labels, in the order of their numbers.
        image: channels, height and width.
        mean: of the pixels by channel, for normalisation.
        std: likewise.
        backbone: digest of the frozen network.
        backbone_bytes: of the network as a weight file, should a party have to fetch it.
        layout: digest of the names and shapes that travel.
        codec: how they are packed, with every option.
        version: of fedadapt.
    """

    run: Digest
    recipe: str = Field(max_length=MAX_TEXT)
    class_names: tuple[Line, ...]
    image: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]
    backbone: Digest
    backbone_bytes: int = Field(ge=0, le=2**40)
    layout: Digest
    codec: Line
    version: Line

    @model_validator(mode="after")
    def _has_moments_of_each_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.image[0]:
            raise ValueError(
                f"{len(self.mean)} means and {len(self.std)} deviations of {self.image[0]} channels"
            )
        return self

    @property
    def recipe_digest(self) -> str:
        """A digest of the recipe, in hexadecimal."""
        return hashlib.blake2b(self.recipe.encode(), digest_size=16).hexdigest()


class Fit(Document):
    """What a party says to the terms.

    Args:
        client: its number.
        num_examples: samples it will train on.
        recipe: digest of the recipe it got, or of its own if it was given one to insist on.
        backbone: digest of the network it has; empty if it has none.
        layout: digest of what it would send; empty if it cannot tell yet.
        codec: what it would pack with.
        version: of its fedadapt.
        missing_from: it lacks the backbone's weight file from this byte on; None if it has the backbone.
        problem: why it cannot take part, in one line; empty if it can.
    """

    client: int = Field(ge=-1)
    num_examples: int = Field(default=0, ge=0)
    recipe: str = ""
    backbone: str = ""
    layout: str = ""
    codec: Line = ""
    version: Line = ""
    missing_from: int | None = Field(default=None, ge=0)
    problem: Complaint = ""


D = TypeVar("D", bound=Document)


def misfit(terms: Terms, fit: Fit) -> str:
    """The first thing in which a party differs from the terms, in one line; empty if it fits.

    Both sides call it: the party before it answers, the server because it does not take a party's word.
    """
    if fit.problem:
        return fit.problem
    for what, ours, theirs in (
        ("fedadapt", terms.version, fit.version),
        ("recipe", terms.recipe_digest, fit.recipe),
        ("codec", terms.codec, fit.codec),
        ("backbone", terms.backbone, fit.backbone),
        ("layout", terms.layout, fit.layout),
    ):
        if ours != theirs:
            return (
                f"{what} is {theirs[:12] or 'missing'} at client {fit.client}, the federation has {ours[:12]}; "
                f"all parties need the same {what}"
            )
    return ""


def parse(kind: type[D], text: object) -> D:
    """Reads a document that arrived.

    Raises:
        FrameError: it is no such document.
    """
    if not isinstance(text, str) or len(text) > 2 * MAX_TEXT:
        raise FrameError(f"{kind.__name__} is no text of at most {2 * MAX_TEXT} characters")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        # The name of a key that may not be there is the sender's.
        place = one_line(".".join(str(part) for part in problem["loc"]))[:100]
        raise FrameError(f"{kind.__name__} is malformed at {place or 'its root'}: {problem['msg']}") from None
