"""Runs a backbone once on noise, to see what passes through its modules and that it runs at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedadapt.errors import AttachError


@dataclass(frozen=True)
class Seen:
    """What passed through a module.

    Args:
        by_image: whether its input has rows for every image, image by image: only then can the rows be told
            apart by client. False too for a module that is never called.
        shape: of its input, with two images.
        size: pixels or tokens that come out of it for one image.
    """

    by_image: bool
    shape: tuple[int, ...]
    size: int


NOTHING = Seen(by_image=False, shape=(), size=0)


def noise(image: tuple[int, int, int], count: int) -> Tensor:
    """Normalised images of noise, always the same."""
    return torch.randn(count, *image, generator=torch.Generator().manual_seed(0))


def probe(
    name: str, module: nn.Module, image: tuple[int, int, int], wanted: Iterable[str]
) -> dict[str, Seen]:
    """Runs `module` on one image and on two, and says what each of the `wanted` submodules saw.

    Args:
        name: of the backbone, for messages.
        module: in eval mode.
        image: shape of an image.
        wanted: dotted names.

    Returns:
        By name, in the order in which images come to them; last those that they never come to.

    Raises:
        AttachError: the module cannot be run, or mixes images.
    """
    inputs: dict[str, list[torch.Size]] = {}
    outputs: dict[str, torch.Size] = {}

    def watch(place: str) -> None:
        def note(_: nn.Module, given: tuple[object, ...], out: object) -> None:
            # What is called by keyword, or gives more than a tensor, is no place for a branch.
            if given and isinstance(given[0], Tensor) and isinstance(out, Tensor):
                inputs.setdefault(place, []).append(given[0].shape)
                outputs[place] = out.shape

        handles.append(module.get_submodule(place).register_forward_hook(note))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    images = noise(image, 2)
    try:
        with torch.inference_mode():
            for place in wanted:
                watch(place)
            alone = module(images[:1])
            first = {place: shapes.copy() for place, shapes in inputs.items()}
            inputs.clear()
            together = module(images)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AttachError(
            f"backbone {name!r} cannot run in eval mode on an image of {'x'.join(map(str, image))} ({reason}); "
            "give it images of a shape that it takes, or repair the model"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    _check(name, alone, together)
    seen = {}
    for place, out in outputs.items():
        alone_there, together_there = first.get(place, []), inputs.get(place, [])
        if len(alone_there) != len(together_there):
            # It is called otherwise when images come together.
            continue
        pairs = zip(alone_there, together_there, strict=True)
        by_image = all(len(both) > 1 and both[0] == 2 * one[0] for one, both in pairs)
        is_map = isinstance(module.get_submodule(place), nn.Conv2d)
        size = out[2:].numel() if is_map else out[:-1].numel() // 2
        seen[place] = Seen(by_image, tuple(inputs[place][0]), size)
    return seen | {place: NOTHING for place in wanted if place not in seen}


def _check(name: str, alone: object, together: object) -> None:
    """Refuses what comes out of one image and of two if it is no logits, or not by image."""
    if not (isinstance(alone, Tensor) and isinstance(together, Tensor)):
        raise AttachError(
            f"backbone {name!r} gives a {type(together).__name__}, not a tensor of logits; wrap it in a module that returns "
            "the logits alone"
        )
    if not bool(together.isfinite().all()):
        raise AttachError(f"backbone {name!r} gives infinite or NaN outputs; look at its weights")
    if together.shape != (2, *alone.shape[1:]) or not torch.allclose(
        together[:1], alone, rtol=1e-2, atol=1e-3
    ):
        raise AttachError(
            f"backbone {name!r} gives an image another output when it comes with others, or is random in eval mode; "
            "use norms with running statistics and no sampling"
        )
