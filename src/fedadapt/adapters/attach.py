"""Puts an adapter onto a backbone: the model that all training and evaluation runs through.

Every trainable tensor has a leading client axis K; the frozen rest has none. A batch is client-major,
``[K*B, C, H, W]``, and goes through the frozen layers as one. One client is K = 1.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedadapt.adapters.adapter import Adapter
from fedadapt.adapters.dropout import Dropout
from fedadapt.adapters.families import kernels
from fedadapt.adapters.heads import HeadPolicy, trained_head
from fedadapt.adapters.hosts import change_input
from fedadapt.adapters.placement import choose
from fedadapt.adapters.probe import noise, probe
from fedadapt.adapters.sites import Site, find_sites, shared_modules
from fedadapt.backbones import Backbone
from fedadapt.errors import AttachError
from fedadapt.norms import ClientBatchNorm, ClientNorm, NormPolicy, Pass, affine_axis
from fedadapt.params import Group, Params, expand, is_finite
from fedadapt.seeds import Seeds

NORM_TYPES = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
CLIENT_NORMS = (ClientBatchNorm, ClientNorm)


class AdaptedModel:
    """A frozen backbone with an adapter, called with the tensors of K clients.

    Attributes:
        backbone: what it was made from, untouched.
        adapter: what is trained.
        policy: what happens to norms.
        head: what happens to the head.
        seed: what the branches' fixed and initial values follow from.
        sites: where branches sit.
        groups: the group of every tensor of the model.
        start: the tensors that training changes, at their initial values, without client axis: those trained
            by gradient, then the moving statistics.
        moving: names of the latter.
        passing: what its norms and branches know of a call.
        digest: hexadecimal SHA-256 over all that is frozen: the backbone, and what branches do not train, before
            any compute type rounds it. Two parties with the same digest and the same tensors mean the same.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        policy: NormPolicy,
        seed: int,
        head: HeadPolicy | None = None,
    ) -> None:
        self.backbone, self.adapter, self.policy, self.seed = backbone, adapter, policy, seed
        self.head = head or trained_head()
        self.passing = Pass()
        # The copy shares every tensor with the backbone; only the module objects are new.
        shared = [*backbone.module.parameters(), *backbone.module.buffers()]
        self.module = copy.deepcopy(backbone.module, {id(tensor): tensor for tensor in shared})
        found = [site for site in find_sites(self.module) if site.name != backbone.head]
        norms = [n for n, m in self.module.named_modules() if isinstance(m, NORM_TYPES)]
        wanted = [*(site.name for site in found), *norms]
        self._seen = probe(backbone.name, backbone.module, backbone.image, wanted)
        self._shared = shared_modules(self.module)
        self.sites = self._place_branches(found)
        branches = adapter.branches
        self._resting = branches.placement.resting(list(self._seen), self.sites) if branches else set[str]()
        self.groups: dict[str, Group] = {}
        self._replace_norms_and_head()
        self._name_groups()
        trained = [n for n, _ in self.module.named_parameters() if self._is_trained(n)]
        self.moving = [
            f"{prefix}.{name}"
            for prefix, module in self.module.named_modules()
            if isinstance(module, ClientBatchNorm) and module.moving
            for name, _ in module.named_buffers()
            if name.startswith("running_")
        ]
        tensors = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        self._plain = {n for n in trained if self.groups[n] is Group.BACKBONE}
        self.start: Params = {
            n: (tensors[n].detach() if n in self._plain else tensors[n].detach()[0]).clone()
            for n in [*trained, *self.moving]
        }
        if not trained:
            raise AttachError(
                f"adapter {adapter.name!r} with head {self.head.name!r} trains nothing on backbone {backbone.name!r}; train "
                "the head, or choose another adapter"
            )
        self.dtype = torch.float32
        self.digest = self._digest_frozen(tensors)
        self._try_out()

    @property
    def max_clients(self) -> int | None:
        """How many clients one call may hold; None for any number, 1 if backbone weights are trained."""
        return 1 if self._plain else None

    def map_values(self, image: Sequence[int]) -> tuple[int, int]:
        """Values of the largest map that one image makes, and of all together, at sites and norms.

        Args:
            image: channels, height and width; maps grow with the pixels.
        """
        growth = image[1] * image[2] / (self.backbone.image[1] * self.backbone.image[2])
        seen = [
            self._seen[n] for n, _ in self.module.named_modules() if n in self._seen and self._seen[n].shape
        ]
        sizes = [math.prod(one.shape) * growth / 2 for one in seen]
        return math.ceil(max(sizes, default=0)), math.ceil(sum(sizes))

    def part(self, module: nn.Module, passing: Pass | None = None) -> AdaptedModel:
        """The same with a part or copy of its network; a part is given maps in the place of images."""
        part = copy.copy(self)
        part.module, part.passing = module, passing or self.passing
        return part

    @property
    def kept(self) -> frozenset[Group]:
        """The groups that each client keeps to itself."""
        return self.policy.kept | self.head.kept

    def check(self, params: Params, what: str) -> None:
        """Refuses tensors that are not those of this model.

        Args:
            params: without client axis.
            what: they are, for the message.

        Raises:
            AttachError: names or shapes are not those of `start`, or values are no floats, infinite or NaN.
        """
        for name in sorted({*self.start, *params}):
            ours, theirs = (tuple(p[name].shape) if name in p else None for p in (self.start, params))
            if ours != theirs:
                raise AttachError(
                    f"{what} does not fit adapter {self.adapter.name!r} here: tensor {name!r} is {theirs}, should be {ours}"
                )
        for name, tensor in params.items():
            if tensor.dtype not in FLOATS:
                raise AttachError(
                    f"{what} holds {name!r} as {tensor.dtype}; values must be floats of 16 or 32 bits"
                )
        if not is_finite(params):
            odd = next(name for name in params if not is_finite({name: params[name]}))
            raise AttachError(
                f"{what} holds infinite or NaN values, in {odd!r}; take one that did not diverge"
            )

    def exact(self) -> AdaptedModel:
        """The same model in fp32 on the CPU, made anew: what branches do not train is rounded in other types."""
        made = AdaptedModel(self.backbone, self.adapter, self.policy, self.seed, self.head)
        return made.to("cpu", torch.float32)

    def to(self, device: str | torch.device, dtype: torch.dtype) -> AdaptedModel:
        """Moves the frozen part to a device and a compute type, in place; batch norms stay in fp32.

        Trainable tensors are cast as they are used, so gradients and updates stay in fp32.
        """
        # Layers that share a tensor go on sharing it; the old one is held so that its id is not given away.
        done: dict[int, tuple[Tensor, Tensor]] = {}
        for module in self.module.modules():
            is_norm = isinstance(module, (_BatchNorm, *CLIENT_NORMS))
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                if id(tensor) in done:
                    setattr(module, name, done[id(tensor)][1])
                    continue
                moved = tensor.to(
                    device, dtype if tensor.is_floating_point() and not is_norm else tensor.dtype
                )
                if moved.ndim == 4:
                    moved = moved.contiguous(memory_format=torch.channels_last)
                # Replaced, not changed: the tensor is shared with the backbone, which stays as it is.
                if isinstance(tensor, nn.Parameter):
                    moved = nn.Parameter(moved, requires_grad=False)
                done[id(tensor)] = (tensor, moved)
                setattr(module, name, moved)
        self.start = {n: t.to(device) for n, t in self.start.items()}
        self.dtype = dtype
        return self

    def __call__(
        self,
        params: Params,
        images: Float[Tensor, "N ..."],
        *,
        mask: Bool[Tensor, "K B"] | None = None,
        training: bool = False,
        noise: Sequence[int] = (),
    ) -> Float[Tensor, "N D"]:
        """Logits in fp32.

        Args:
            params: all tensors of `start`, stacked: each ``[K, ...]``. Moving statistics among them are
                changed in place if `training`.
            images: client-major, K*B of them, ``[N, C, H, W]``; of a `part` the maps that it is given.
            mask: which samples are real; only moving statistics look at it. None if all are.
            training: whether moving statistics move.
            noise: what each client's dropout follows from; empty to drop nothing.
        """
        self.passing.mask, self.passing.training, self.passing.noise = mask, training, noise
        tensors = {
            name: tensor.squeeze(0).to(self.dtype) if name in self._plain else tensor
            for name, tensor in params.items()
        }
        logits: Tensor = torch.func.functional_call(self.module, tensors, (images.to(self.dtype),))
        return logits.float()

    def with_features(
        self,
        params: Params,
        images: Float[Tensor, "N ..."],
        *,
        mask: Bool[Tensor, "K B"] | None = None,
        training: bool = False,
        noise: Sequence[int] = (),
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N F"]]:
        """Logits, and the features that the head made them from; arguments as in a call."""
        seen: list[Tensor] = []
        head = self.module.get_submodule(self.backbone.head)
        handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            logits = self(params, images, mask=mask, training=training, noise=noise)
        finally:
            handle.remove()
        return logits, seen[0].float()

    def _try_out(self) -> None:
        """Runs two clients with an image each: a library may use a layer in other ways than by calling it."""
        clients = self.max_clients or 2
        try:
            with torch.inference_mode():
                self(expand(self.start, clients), noise(self.backbone.image, clients))
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise AttachError(
                f"backbone {self.backbone.name!r} does not run with adapter {self.adapter.name!r} ({reason}); leave the "
                "layer out with adapter.sites.exclude, or choose adapter 'head'"
            ) from error

    def _digest_frozen(self, tensors: Params) -> str:
        own = (Group.ADAPTER, Group.HEAD)
        fixed = [(n, t) for n, t in tensors.items() if self.groups[n] in own and n not in self.start]
        if not fixed:
            return self.backbone.digest
        digest = hashlib.sha256(self.backbone.digest.encode())
        for name, tensor in fixed:
            digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _is_trained(self, name: str) -> bool:
        group, (place, _, own) = self.groups[name], name.rpartition(".")
        if group is Group.NORM_AFFINE and (place in self._resting or own not in self.adapter.norm_tensors):
            return False
        return group in self.adapter.trains and not (group is Group.HEAD and self.head.build is None)

    def _place_branches(self, found: list[Site]) -> list[Site]:
        branches = self.adapter.branches
        if branches is None:
            return []
        family = kernels(self.backbone.name, thin=branches.thin) if branches.kernel_sizes else ()
        sites = choose(
            branches.placement,
            found,
            self._seen,
            kinds=branches.kinds,
            kernel_sizes=family or branches.kernel_sizes,
            fits=branches.fits,
        )
        if not sites and (branches.needed or branches.placement.picks):
            raise AttachError(self._no_site(found))
        if sites:
            branches.check(sites)
        for site in sites:
            self._refuse_shared(site.name)
            generator = Seeds(self.seed).torch(f"branch {site.name}")
            host = branches.build(site, generator)
            if branches.placement.dropout:
                change_input(host, Dropout(site.name, branches.placement.dropout, self.passing))
            self.module.set_submodule(site.name, host)
        return sites

    def _no_site(self, found: list[Site]) -> str:
        convs = [site for site in found if site.kind == "conv"]
        present = sorted({"x".join(map(str, site.kernel_size)) for site in convs})
        own_padding = sum(type(site.module) is not nn.Conv2d and not site.has_centre for site in convs)
        return (
            f"backbone {self.backbone.name!r} has no site for adapter {self.adapter.name!r}: of its {len(convs)} "
            f"convolutions (kernels: {', '.join(present) or 'none'}; {own_padding} pad by the size of the map) and "
            f"{len(found) - len(convs)} linear layers none fits; set adapter.sites.kernel_sizes or choose another adapter, "
            "'norm_head' for one without sites"
        )

    def _refuse_shared(self, name: str) -> None:
        if name in self._shared:
            raise AttachError(
                f"backbone {self.backbone.name!r} uses one module under several names ({', '.join(self._shared[name])}), "
                "so it cannot be changed in one place; give each place a module of its own"
            )

    def _replace_norms_and_head(self) -> None:
        norms = [(n, m) for n, m in self.module.named_modules() if isinstance(m, NORM_TYPES)]
        for name, norm in norms:
            client_norm = self._client_norm(name, norm) if self._seen[name].by_image else None
            if client_norm is not None:
                self._refuse_shared(name)
                self.module.set_submodule(name, client_norm)
        if Group.HEAD in self.adapter.trains and self.head.build is not None:
            self._refuse_shared(self.backbone.head)
            head = cast("nn.Linear", self.module.get_submodule(self.backbone.head))
            generator = Seeds(self.seed).torch("head")
            self.module.set_submodule(self.backbone.head, self.head.build(head, generator))

    def _client_norm(self, name: str, norm: nn.Module) -> nn.Module | None:
        """What takes a norm's place; None if it stays, since nothing of it changes."""
        trained = Group.NORM_AFFINE in self.adapter.trains and name not in self._resting
        if isinstance(norm, _BatchNorm):
            if not (trained or self.policy.moving):
                return None
            return ClientBatchNorm(
                norm, moving=self.policy.moving, pass_=self.passing, pooled=self.policy.pooled
            )
        if not trained or getattr(norm, "weight", None) is None:
            return None
        axis = affine_axis(norm, self._seen[name].shape)
        if axis is None:
            raise AttachError(
                f"backbone {self.backbone.name!r} has a {type(norm).__name__} at {name!r} whose affine is not one factor and "
                "summand for each channel, so it cannot be trained by client; choose adapter 'head'"
            )
        return ClientNorm(norm, axis)

    def _name_groups(self) -> None:
        for prefix, module in self.module.named_modules():
            for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                full = f"{prefix}.{name}" if prefix else name
                if isinstance(module, (*NORM_TYPES, *CLIENT_NORMS)):
                    running = name.startswith("running_") or name in ("num_batches_tracked", "origin")
                    trained = Group.NORM_AFFINE in self.adapter.trains and prefix not in self._resting
                    trained = trained and not isinstance(module, CLIENT_NORMS)
                    # A norm that no image passes through has no place for clients: it counts as the backbone.
                    affine = Group.BACKBONE if trained else Group.NORM_AFFINE
                    self.groups[full] = Group.NORM_STATISTICS if running else affine
                elif prefix == self.backbone.head or prefix.startswith(f"{self.backbone.head}."):
                    self.groups[full] = Group.HEAD
                elif any(prefix.startswith(f"{site.name}.adapter") for site in self.sites):
                    self.groups[full] = Group.ADAPTER
                else:
                    self.groups[full] = Group.BACKBONE


def attach(
    backbone: Backbone,
    adapter: Adapter,
    policy: NormPolicy,
    generator: torch.Generator,
    head: HeadPolicy | None = None,
) -> AdaptedModel:
    """Puts `adapter` onto `backbone` without changing the backbone.

    Args:
        backbone: stays as it is; its tensors are shared.
        adapter: what to train.
        policy: what to do with norms.
        generator: gives the seed of the branches; one number is drawn, whatever the adapter.
        head: what to do with the head; None to train and share it.

    Raises:
        AttachError: the backbone cannot be run, or has no site that the adapter fits.

    Example:
        >>> from fedadapt.registry import create
        >>> generator = torch.Generator().manual_seed(0)
        >>> backbone = create("backbone", "resnet20")(10, generator)
        >>> model = attach(backbone, create("adapter", "parallel"), create("norm policy", "frozen"), generator)
        >>> len(model.sites)
        19
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return AdaptedModel(backbone, adapter, policy, seed, head)
