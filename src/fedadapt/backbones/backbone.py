"""What a backbone is: a module, where its head sits, and a digest of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from fedadapt.errors import BackboneError


@dataclass(frozen=True)
class Backbone:
    """A network in eval mode with a fresh linear head, and what is needed to use it rightly.

    Args:
        name: for people and for the manifest.
        module: takes images ``[N, C, H, W]`` and returns logits ``[N, D]``.
        head: dotted name of the linear layer that makes the logits.
        mean: of the pixels (0..1) it was trained on, by channel; None if it was not pretrained.
        std: likewise.
        digest: see `content_digest`.
        num_bytes: of everything but the head: what a party fetches once.
        image: channels, height and width of an image it can be tried out on.
    """

    name: str
    module: nn.Module
    head: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    digest: str
    num_bytes: int
    image: tuple[int, int, int] = (3, 32, 32)

    @property
    def num_parameters(self) -> int:
        """Parameters, head included."""
        return sum(p.numel() for p in self.module.parameters())


BuildBackbone = Callable[[int, torch.Generator], Backbone]
"""What a registered backbone factory returns: ``(num_classes, generator) -> Backbone``.

The generator draws what is not loaded: the head, and all weights where nothing is pretrained.
"""


@contextmanager
def drawn_from(generator: torch.Generator) -> Iterator[None]:
    """Lets libraries that draw from torch's global generator draw from `generator`, and leaves no trace."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        yield


def finish(
    name: str,
    module: nn.Module,
    head: str,
    num_classes: int,
    generator: torch.Generator,
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None,
    image: tuple[int, int, int] = (3, 32, 32),
) -> Backbone:
    """Gives `module` a fresh head with `num_classes` outputs, freezes it, and computes its digest.

    Raises:
        BackboneError: there is no linear layer at `head`.
    """
    try:
        old = module.get_submodule(head)
    except AttributeError:
        old = None
    if not isinstance(old, nn.Linear):
        found = "nothing" if old is None else f"a {type(old).__name__}"
        raise BackboneError(
            f"backbone {name!r} has no linear head at {head!r} but {found}; name its last nn.Linear, or choose a "
            "variant that ends in one"
        )
    # A plain constructor would draw from torch's global generator.
    new = nn.utils.skip_init(nn.Linear, old.in_features, num_classes)
    nn.init.normal_(new.weight, 0.0, 0.01, generator=generator)
    nn.init.zeros_(new.bias)
    module.set_submodule(head, new)
    module.eval().requires_grad_(requires_grad=False)
    mean, std = moments or (None, None)
    num_bytes = sum(tensor.nbytes for _, tensor in content(module, head))
    return Backbone(name, module, head, mean, std, content_digest(module, head), num_bytes, image)


def content_digest(module: nn.Module, head: str) -> str:
    """SHA-256 over the name, type, shape and bytes of every tensor but the head's.

    Two parties whose backbones have the same digest compute the same features. ``num_batches_tracked``
    is left out: it changes no output.
    """
    digest = hashlib.sha256()
    for name, tensor in content(module, head):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def content(module: nn.Module, head: str) -> list[tuple[str, torch.Tensor]]:
    """The tensors that make a backbone what it is, by name: all but the head's and what changes no output."""
    return [
        (name, tensor)
        for name, tensor in sorted(module.state_dict().items())
        if not name.startswith(f"{head}.") and not name.endswith("num_batches_tracked")
    ]
