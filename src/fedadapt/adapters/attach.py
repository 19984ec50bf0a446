"""Puts an adapter onto a backbone: the model that all training and evaluation runs through.

Every trainable tensor has a leading client axis K; the frozen rest has none. A batch is client-major,
``[K*B, C, H, W]``, and goes through the frozen layers as one. One client is K = 1.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedadapt.adapters.adapter import Adapter, Beside
from fedadapt.adapters.sites import Site, find_sites
from fedadapt.backbones import Backbone
from fedadapt.errors import AttachError
from fedadapt.norms import ClientBatchNorm, NormPolicy, Pass
from fedadapt.params import Group, Params

NORM_TYPES = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


class ClientLinear(nn.Module):
    """The head: one linear layer for each client, ``[K*B, C]`` to ``[K*B, D]``."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias
        self.weight = nn.Parameter(linear.weight.detach().clone()[None], requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone()[None], requires_grad=False)

    def forward(self, x: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        by_client = x.unflatten(0, (self.weight.shape[0], -1))
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return torch.baddbmm(bias[:, None], by_client, weight.transpose(1, 2)).flatten(0, 1)


class AdaptedModel:
    """A frozen backbone with an adapter, called with the tensors of K clients.

    Attributes:
        backbone: what it was made from, untouched.
        adapter: what is trained.
        policy: what happens to norms.
        sites: where branches sit.
        groups: the group of every tensor of the model.
        start: the tensors that training changes, at their initial values, without client axis: those trained
            by gradient, then the moving statistics.
        moving: names of the latter.
    """

    def __init__(
        self, backbone: Backbone, adapter: Adapter, policy: NormPolicy, generator: torch.Generator
    ) -> None:
        self.backbone, self.adapter, self.policy = backbone, adapter, policy
        self._pass = Pass()
        # The copy shares every tensor with the backbone; only the module objects are new.
        shared = [*backbone.module.parameters(), *backbone.module.buffers()]
        self.module = copy.deepcopy(backbone.module, {id(tensor): tensor for tensor in shared})
        self.sites = self._place_branches(generator)
        self.groups: dict[str, Group] = {}
        self._replace_norms_and_head()
        self._name_groups()
        trained = [n for n, _ in self.module.named_parameters() if self.groups[n] in adapter.trains]
        if policy.moving:
            self.moving = [n for n, g in self.groups.items() if g is Group.NORM_STATISTICS]
        else:
            self.moving = []
        tensors = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        self._plain = {n for n in trained if self.groups[n] is Group.BACKBONE}
        self.start: Params = {
            n: (tensors[n].detach() if n in self._plain else tensors[n].detach()[0]).clone()
            for n in [*trained, *self.moving]
        }
        self.dtype = torch.float32

    @property
    def max_clients(self) -> int | None:
        """How many clients one call may hold; None for any number, 1 if backbone weights are trained."""
        return 1 if self._plain else None

    @property
    def num_parameters(self) -> int:
        """Parameters of the plain network, adapters left out."""
        return self.backbone.num_parameters

    def to(self, device: str | torch.device, dtype: torch.dtype) -> AdaptedModel:
        """Moves the frozen part to a device and a compute type, in place; norm layers stay in fp32.

        Trainable tensors are cast as they are used, so gradients and updates stay in fp32.
        """
        for module in self.module.modules():
            is_norm = isinstance(module, (*NORM_TYPES, ClientBatchNorm))
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                moved = tensor.to(
                    device, dtype if tensor.is_floating_point() and not is_norm else tensor.dtype
                )
                if moved.ndim == 4:
                    moved = moved.contiguous(memory_format=torch.channels_last)
                # Replaced, not changed: the tensor is shared with the backbone, which stays as it is.
                if isinstance(tensor, nn.Parameter):
                    moved = nn.Parameter(moved, requires_grad=False)
                setattr(module, name, moved)
        self.start = {n: t.to(device) for n, t in self.start.items()}
        self.dtype = dtype
        return self

    def __call__(
        self,
        params: Params,
        images: Float[Tensor, "N C H W"],
        *,
        mask: Bool[Tensor, "K B"] | None = None,
        training: bool = False,
    ) -> Float[Tensor, "N D"]:
        """Logits in fp32.

        Args:
            params: all tensors of `start`, stacked: each ``[K, ...]``. Moving statistics among them are
                changed in place if `training`.
            images: client-major, K*B of them.
            mask: which samples are real; only moving statistics look at it. None if all are.
            training: whether moving statistics move.
        """
        self._pass.mask, self._pass.training = mask, training
        tensors = {
            name: tensor.squeeze(0).to(self.dtype) if name in self._plain else tensor
            for name, tensor in params.items()
        }
        logits: Tensor = torch.func.functional_call(self.module, tensors, (images.to(self.dtype),))
        return logits.float()

    def with_features(
        self,
        params: Params,
        images: Float[Tensor, "N C H W"],
        *,
        mask: Bool[Tensor, "K B"] | None = None,
        training: bool = False,
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N F"]]:
        """Logits, and the features that the head made them from; arguments as in a call."""
        seen: list[Tensor] = []
        head = self.module.get_submodule(self.backbone.head)
        handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            logits = self(params, images, mask=mask, training=training)
        finally:
            handle.remove()
        return logits, seen[0].float()

    def _place_branches(self, generator: torch.Generator) -> list[Site]:
        if self.adapter.fits is None or self.adapter.build is None:
            return []
        found = find_sites(self.module)
        sites = [site for site in found if self.adapter.fits(site)]
        if not sites:
            kernels = sorted({"x".join(map(str, site.module.kernel_size)) for site in found})
            raise AttachError(
                f"backbone {self.backbone.name!r} has no site for adapter {self.adapter.name!r}: of its {len(found)} plain "
                f"convolutions (kernels: {', '.join(kernels) or 'none'}) none fits; set adapter.kernel_sizes or choose "
                "an adapter without sites, such as 'norm_head'"
            )
        for site in sites:
            branch = self.adapter.build(site, generator)
            self.module.set_submodule(site.name, Beside(site.module, branch))
        return sites

    def _replace_norms_and_head(self) -> None:
        if Group.NORM_AFFINE in self.adapter.trains or self.policy.moving:
            norms = [(n, m) for n, m in self.module.named_modules() if isinstance(m, NORM_TYPES)]
            for name, norm in norms:
                if not isinstance(norm, nn.BatchNorm2d):
                    raise AttachError(
                        f"backbone {self.backbone.name!r} has a {type(norm).__name__} at {name!r}, whose affine cannot "
                        "be trained yet; choose a backbone with batch norms, or adapter 'head'"
                    )
                if norm.running_mean is None:
                    raise AttachError(
                        f"backbone {self.backbone.name!r} has a batch norm without running statistics at {name!r}; "
                        "use one that was trained with track_running_stats=True"
                    )
                self.module.set_submodule(
                    name, ClientBatchNorm(norm, moving=self.policy.moving, pass_=self._pass)
                )
        if Group.HEAD in self.adapter.trains:
            head = cast("nn.Linear", self.module.get_submodule(self.backbone.head))
            self.module.set_submodule(self.backbone.head, ClientLinear(head))

    def _name_groups(self) -> None:
        for prefix, module in self.module.named_modules():
            for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                full = f"{prefix}.{name}" if prefix else name
                if isinstance(module, ClientBatchNorm | _BatchNorm):
                    running = name.startswith("running_") or name == "num_batches_tracked"
                    self.groups[full] = Group.NORM_STATISTICS if running else Group.NORM_AFFINE
                elif isinstance(module, NORM_TYPES):
                    self.groups[full] = Group.NORM_AFFINE
                elif prefix == self.backbone.head:
                    self.groups[full] = Group.HEAD
                elif any(prefix.startswith(f"{site.name}.adapter") for site in self.sites):
                    self.groups[full] = Group.ADAPTER
                else:
                    self.groups[full] = Group.BACKBONE


def attach(
    backbone: Backbone, adapter: Adapter, policy: NormPolicy, generator: torch.Generator
) -> AdaptedModel:
    """Puts `adapter` onto `backbone` without changing the backbone.

    Args:
        backbone: stays as it is; its tensors are shared.
        adapter: what to train.
        policy: what to do with norms.
        generator: for adapters with a random start.

    Raises:
        AttachError: the backbone has no site that the adapter fits.

    Example:
        >>> from fedadapt.registry import create
        >>> generator = torch.Generator().manual_seed(0)
        >>> backbone = create("backbone", "resnet20")(10, generator)
        >>> model = attach(backbone, create("adapter", "parallel"), create("norm policy", "frozen"), generator)
        >>> len(model.sites)
        19
    """
    return AdaptedModel(backbone, adapter, policy, generator)
