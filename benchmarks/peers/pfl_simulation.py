"""pfl-research 0.6: its simulated backend and federated averaging on the same network."""

from __future__ import annotations

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor
from torch.nn import functional
from work import BEGAN, LR, MEAN, MOMENTUM, STD, Clock, network, parse, say, time, trained, wait_for_order

work, arguments = parse()
net, images, labels = network(work), work.images(), work.labels()
# pfl switches to training mode; with frozen statistics the mode is the same in training.
net.train = lambda mode=True: net  # type: ignore[method-assign]


def loss(pixels: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of a batch."""
    return functional.cross_entropy(net((pixels.float() / 255 - MEAN) / STD).float(), targets)


net.loss = loss
net.metrics = lambda *batch: {}


def make_dataset(client: int) -> PyTorchTensorDataset:
    """A client's samples."""
    own = work.indices(client)
    return PyTorchTensorDataset((images[own], labels[own]), user_id=str(client))


class Orders(TrainingProcessCallback):
    """Waits for an order before each round but the first."""

    clock: Clock | None = None

    def after_central_iteration(self, *_: object, **__: object) -> tuple[bool, Metrics]:
        """Reports the round, and waits."""
        if self.clock is None:
            say(startup_s=time.perf_counter() - BEGAN)
        else:
            self.clock.stop()
        stop = not wait_for_order()
        self.clock = Clock()
        return stop, Metrics()


model = PyTorchModel(
    net,
    lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM),
    torch.optim.SGD(trained(net).values(), lr=1.0),
    amp_dtype=torch.bfloat16 if arguments.precision == "bf16" else None,
)
data = FederatedDataset(make_dataset, get_user_sampler("random", list(range(work.clients))))
FederatedAveraging().run(
    NNAlgorithmParams(10**6, 10**6, work.cohort, None),
    SimulatedBackend(data, None),
    model,
    NNTrainHyperParams(local_batch_size=work.batch, local_num_epochs=1, local_learning_rate=LR),
    None,
    [Orders()],
)
