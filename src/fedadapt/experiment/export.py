"""Takes the trained network out of a run, in the formats that others read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedadapt.adapters import save_adapter, save_peft
from fedadapt.backbones.weights import save_weights
from fedadapt.errors import AttachError, RunError, one_line
from fedadapt.experiment.memory import settled
from fedadapt.experiment.run import between_sites, rebuild
from fedadapt.experiment.site import FederationSite
from fedadapt.experiment.trained import Trained
from fedadapt.federation.serve import predicting
from fedadapt.files import whole, write_whole
from fedadapt.runs.store import RunStore

METADATA = "fedadapt"
"""Under which name a graph file says what it is, as JSON."""

TOLERANCE = 1e-4
"""Largest difference, relative to the largest output, between a network and its exported graph."""


class Format(StrEnum):
    """What can be written: the merged network as weights or as a graph, or the adapter by itself."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    ONNX = "onnx"
    ADAPTER = "adapter"
    PEFT = "peft"


def export(run: Path, out: Path, form: Format = Format.SAFETENSORS, client: int | None = None) -> Trained:
    """Writes what a run has trained, and returns it.

    ``safetensors``, ``torch`` and ``onnx`` are the plain network that computes the same without adapters: its
    tensors under the backbone's own names; a program of ``torch.export``; an ONNX graph. Graphs take normalised
    images, any number of them. ``adapter`` and ``peft`` are what was trained by itself, to be put onto the backbone.

    Args:
        run: the run's directory; or a site file, for what the site has of the federation that it answered last.
        out: a file; for ``peft`` a folder.
        form: see above.
        client: whose own model; None for the global one.

    Raises:
        AttachError: the adapter cannot be merged, or not be written in this format.
        ConfigError: the site file cannot be read.
        RunError: there is no such run or no such model, its backbone is not here, or `out` cannot be written.
    """
    if out.resolve() == run.resolve():
        raise RunError(f"{out} is what is exported from; name another file")
    trained = _trained(run, client)
    with _writing(out):
        WRITERS[form](trained, out)
    return trained


def _trained(run: Path, client: int | None) -> Trained:
    if run.is_file():
        if client is not None:
            raise RunError(f"{run} is a site file, and a site has one model; leave --client out")
        return FederationSite(run).trained()
    with RunStore.read(run) as store:
        experiment = rebuild(store)
        shared, last = experiment.global_params(store.state()), store.last_round or 0
        kept = experiment.plan.kept()
        apart = between_sites(store.manifest)
        if client is None:
            if kept:
                groups = sorted({experiment.model.groups[name].value for name in kept})
                way = (
                    "each site writes its own: fedadapt export SITE_FILE FILE"
                    if apart
                    else "name the client whose model is wanted with --client"
                )
                raise RunError(
                    f"clients of run {run} keep {' and '.join(groups)}, so what they share is nobody's model; {way}"
                )
            return Trained(experiment, shared, last)
        if not (kept or experiment.algorithm.local.personal):
            raise RunError(f"clients of run {run} have no models of their own; leave --client out")
        if apart:
            raise RunError(
                f"what the sites of run {run} keep is with them; each writes its own model: fedadapt export SITE_FILE FILE"
            )
        clients = experiment.config.data.num_clients
        memory = settled(store.memory(client)) if 0 <= client < clients else None
        if memory is None:
            why = "never took part" if 0 <= client < clients else f"is not from 0 to {clients - 1}"
            raise RunError(f"client {client} of run {run} {why}, so it has no model; name another")
        return Trained(experiment, predicting(experiment.algorithm, shared, memory), last, client)


def _safetensors(trained: Trained, out: Path) -> None:
    save_weights(trained.merged(), out, trained.metadata())


def _adapter(trained: Trained, out: Path) -> None:
    save_adapter(trained.experiment.model, trained.params, out)


def _peft(trained: Trained, out: Path) -> None:
    save_peft(trained.experiment.model, trained.params, out)


def _torch(trained: Trained, out: Path) -> None:
    network, images = _network_and_images(trained)
    batch, written = torch.export.Dim("batch", min=1), io.BytesIO()
    with _tracing(Format.TORCH):
        program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
        # Into memory: in the middle of a file that cannot be written torch ends the process.
        torch.export.save(program, written, extra_files={METADATA: json.dumps(trained.metadata())})
    _check(program.module(), network, images)
    write_whole(out, written.getvalue())


def _onnx(trained: Trained, out: Path) -> None:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch makes graphs with it
    except ImportError as error:
        raise AttachError(
            "format 'onnx' needs packages that are not here; run: pip install 'fedadapt[onnx]'"
        ) from error
    network, images = _network_and_images(trained)
    batch = torch.export.Dim("batch", min=1)
    with _tracing(Format.ONNX):
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    if program is None:
        raise AttachError("torch made no ONNX graph of this network; export another format")
    program.model.metadata_props[METADATA] = json.dumps(trained.metadata())
    with whole(out) as part:
        program.save(part)
        with _tracing(Format.ONNX):
            session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
        _check(lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), network, images)


WRITERS: dict[Format, Callable[[Trained, Path], None]] = {
    Format.SAFETENSORS: _safetensors,
    Format.TORCH: _torch,
    Format.ONNX: _onnx,
    Format.ADAPTER: _adapter,
    Format.PEFT: _peft,
}


def _network_and_images(trained: Trained) -> tuple[nn.Module, Tensor]:
    """The merged network, and images to trace it with: two, since of one image a graph would know the number."""
    network = trained.merged().eval().requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    return network, torch.randn(2, *trained.metadata()["image"], generator=generator)


def _check(graph: Callable[[Tensor], Tensor], network: nn.Module, images: Tensor) -> None:
    """Raises if the graph computes something else."""
    with torch.no_grad():
        # Three, so that a graph that holds the number of images it was made with is found out.
        more = torch.cat((images, images[:1]))
        expected, found = network(more), graph(more)
    difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not difference <= TOLERANCE:
        raise AttachError(
            f"the exported graph differs from the network by {difference:.1e} of its largest output "
            f"(at most {TOLERANCE:.0e} is allowed); export another format"
        )


@contextmanager
def _tracing(form: Format) -> Iterator[None]:
    """Makes one line of whatever torch finds in a network that a graph cannot hold."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise AttachError(
            f"format {form.value!r} cannot hold this network ({type(error).__name__}: {one_line(error)[:200]}); export another"
        ) from error


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Makes one line of whatever keeps `out` from being written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"cannot write {out} ({reason}); name a file in a folder with room that you may write to"
        ) from error
