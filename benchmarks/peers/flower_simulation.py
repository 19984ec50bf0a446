"""Flower 1.41: its Ray simulation on the same network; each actor keeps network and images between clients."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from work import BEGAN, Clock, Work, network, parse, say, time, train_client, trained, wait_for_order

work, arguments = parse()
client_app, server_app = ClientApp(), ServerApp()
precision = arguments.precision


@cache
def held(work: Work) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """What an actor keeps."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    return network(work), work.images(), work.labels()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A client's round."""
    net, images, labels = held(work)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
    own = work.indices(int(context.node_config["partition-id"]) % work.clients)
    train_client(net, images[own], labels[own], work.batch, precision)
    arrays = ArrayRecord({name: tensor.detach() for name, tensor in trained(net).items()})
    return Message(content=RecordDict({"arrays": arrays}), reply_to=message)


@server_app.main()
def main(grid: Grid, _context: Context) -> None:
    """The rounds."""
    state = {name: tensor.detach().clone() for name, tensor in trained(network(work)).items()}
    nodes = sorted(grid.get_node_ids())
    while len(nodes) < NODES:
        time.sleep(0.1)
        nodes = sorted(grid.get_node_ids())
    generator = torch.Generator().manual_seed(0)
    clock = None
    while True:
        chosen = torch.randperm(len(nodes), generator=generator)[: work.cohort].tolist()
        content = RecordDict({"arrays": ArrayRecord(state)})
        messages = [Message(content=content, dst_node_id=nodes[n], message_type="train") for n in chosen]
        replies = [r.content["arrays"].to_torch_state_dict() for r in grid.send_and_receive(messages)]
        if len(replies) != work.cohort:
            raise RuntimeError(f"{len(replies)} of {work.cohort} clients replied")
        state = {name: sum(reply[name] for reply in replies) / len(replies) for name in state}
        if clock is None:
            say(startup_s=time.perf_counter() - BEGAN)
        else:
            clock.stop()
        if not wait_for_order():
            return
        clock = Clock()


# A hundred thousand nodes are not practical in its simulation; their number costs only start-up there.
NODES = min(work.clients, 1_000)
resources = {"num_cpus": arguments.cpus, "num_gpus": 0.0}
run_simulation(server_app, client_app, NODES, backend_config={"client_resources": resources})
