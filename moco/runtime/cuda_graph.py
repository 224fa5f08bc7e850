"""A step as one launch: its thousand kernels are recorded as a CUDA graph and replayed."""

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UP = 3
"""Calls before the recording: they set up what is made once (momentum buffers, cuDNN's choices)."""


class Graphed:
    """A function of tensors on a GPU, recorded as a CUDA graph at its fourth call and replayed from then on.

    Small images take a GPU less time than Python takes to launch their thousand kernels. The function may change only
    tensors that stay where they are (weights, queue, counters), and waits for nothing. At inputs of other shapes it is
    recorded again.

    Args:
        function: what is recorded; it returns one tensor.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.calls = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.graph is not None and [x.shape for x in inputs] != [x.shape for x in self.inputs]:
            self.graph, self.calls = None, 0
        self.calls += 1
        if self.calls <= _WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                result = self.function(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return result
        if self.graph is None:
            self.inputs = [tensor.clone() for tensor in inputs]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                self.result = self.function(*self.inputs)
            self.graph = graph
        torch._foreach_copy_(self.inputs, list(inputs))
        self.graph.replay()
        return self.result.clone()
