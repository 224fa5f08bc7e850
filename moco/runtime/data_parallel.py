"""Gradients averaged over ranks by DistributedDataParallel, and the generators of random numbers."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class _Call(nn.Module):
    """A module whose forward is whatever it is given: DistributedDataParallel averages gradients after a forward."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def send_state(module: nn.Module) -> None:
    """Gives all ranks the main rank's state."""
    for value in module.state_dict().values():
        sent = value.contiguous()
        dist.broadcast(sent, src=0)
        value.copy_(sent)


def data_parallel(module: nn.Module, parameters: list[nn.Parameter]) -> DistributedDataParallel:
    """Starts all ranks with the main rank's state of a module, and averages the gradients of these parameters.

    It is called with a function that computes what backward starts from. Gradients are averaged while backward runs.
    Only what is trained is DistributedDataParallel's: BN statistics stay each rank's own.
    """
    send_state(module)
    ddp = DistributedDataParallel(_Call(parameters), init_sync=False, gradient_as_bucket_view=True)
    # The sum over ranks is rounded by a gradient's place in its bucket, and buckets are laid out anew after the first
    # backward. So that a continued run rounds as before, they are laid out now, by steps that do nothing.
    for _ in range(2):
        ddp(lambda: torch.stack([0 * p.sum() for p in parameters]).sum()).backward()
    for p in parameters:
        p.grad = None
    return ddp


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that a step may draw from (dropout, stochastic depth)."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Sets the generators to what `generator_states` gave."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"], device)
