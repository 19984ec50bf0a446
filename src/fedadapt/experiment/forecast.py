"""What a run will train and send, known before it runs."""

from __future__ import annotations

from typing import Any

from fedadapt.experiment.build import Experiment
from fedadapt.federation.frame import framing_bytes
from fedadapt.federation.plan import Travel
from fedadapt.federation.serve import UPLOAD_SCALARS


def forecast(experiment: Experiment) -> dict[str, Any]:
    """The exchange plan in numbers, as plain JSON values.

    Returns:
        ``groups``: for each group what happens to it, its tensors and values, and the bytes of it in one
        message; ``message_bytes``: of one download and one upload, framing included; ``round_bytes``: of all
        clients of a round, each way; ``run_bytes``: of the whole run, both ways; ``full_model_bytes``: of the
        plain network as fp32, and ``share``: what one download is of it; ``backbone``: its name, digest and
        the bytes a party fetches once. Sizes that depend on the values are None.
    """
    config, plan, codec = experiment.config, experiment.plan, experiment.wire.codec
    sizes = {group: codec.num_bytes(plan.layout(group)) for group in plan.groups()}
    cohort = min(config.cohort or config.data.num_clients, config.data.num_clients)

    def message(streams: int, scalars: int) -> int | None:
        known = [size for size in sizes.values() if size is not None]
        if len(known) < len(sizes):
            return None
        return streams * sum(known) + framing_bytes(scalars, streams * len(sizes))

    messages = {
        "download": message(len(experiment.algorithm.downloads), 0),
        "upload": message(
            len(experiment.algorithm.uploads), len(UPLOAD_SCALARS) + len(experiment.algorithm.local.scalars)
        ),
    }
    rounds = {way: None if size is None else cohort * size for way, size in messages.items()}
    both = [size for size in rounds.values() if size is not None]
    full = 4 * experiment.backbone.num_parameters
    return {
        "run": config.name,
        "adapter": config.adapter.name,
        "algorithm": experiment.algorithm.name,
        "codec": codec.name,
        "clients": config.data.num_clients,
        "cohort": cohort,
        "rounds": config.rounds,
        "groups": [
            {
                "group": s.group.value,
                "trained": s.trained,
                "travels": s.travel.value,
                "tensors": s.num_tensors,
                "values": s.num_values,
                "bytes": sizes[s.group] if s.travel is Travel.SHARED else 0,
            }
            for s in plan.summary()
        ],
        "message_bytes": messages,
        "round_bytes": rounds,
        "run_bytes": config.rounds * sum(both) if len(both) == len(rounds) else None,
        "full_model_bytes": full,
        "share": None if messages["download"] is None else messages["download"] / full,
        "backbone": {
            "name": experiment.backbone.name,
            "digest": experiment.backbone.digest,
            "bytes": experiment.backbone.num_bytes,
        },
    }
