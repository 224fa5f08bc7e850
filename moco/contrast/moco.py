"""Momentum contrast: two views in, a loss out (Fig. 2c and Algorithm 1)."""

import copy
import math
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from moco.contrast.batchnorm import permutation
from moco.contrast.collectives import exchange, gather, local, world_size
from moco.contrast.heads import Head, normalised, with_head
from moco.contrast.loss import InfoNCE, info_nce, mean_of
from moco.contrast.mechanism import Backward, Mechanism, check_chunks, check_momentum, check_temperature
from moco.contrast.momentum import momentum_update
from moco.contrast.queue import Queue


class MoCo(Mechanism):
    """Momentum contrast around any encoder.

        moco = MoCo(encoder, dim=128, queue_size=65536, momentum=0.999, temperature=0.07)
        loss, accuracy = moco(view1, view2)

    Only `moco.query` has parameters to train; its `backbone` is the encoder given. With several ranks
    (torch.distributed) the queue holds the keys of all ranks, in rank order, and is the same on each; gradients are
    averaged by DistributedDataParallel(moco, broadcast_buffers=False), or by your own loop.

    Args:
        encoder: maps a batch of inputs (n, ...) to features (n, num_features). Its weights are kept.
        dim: dimensions of queries and keys.
        queue_size: K, the number of negatives; any number.
        momentum: m of Eq. 2, in 0..1.
        temperature: tau of Eq. 1, above 0.
        head: what maps features to `dim` numbers: "linear" is the paper's (v1), "mlp" is v2's, of 2 layers.
        hidden: width of the MLP head's hidden layer; as wide as the features if not given (2048 for ResNet-50, as v2).
        symmetric: each view is also the other's query: twice the work and twice the keys a step; the loss is the mean.
        bn_group: BN statistics are computed over groups of so many samples (32 in the paper), in training.
        shuffle: keys are encoded in another order, and so in other BN groups, than queries (shuffling BN).
        num_features: features of the encoder, if it has no attribute of that name and its last layer does not show it.

    Raises:
        ValueError: a number out of range, or an encoder whose number of features is unknown.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.07,
        *,
        head: Head = "linear",
        hidden: int | None = None,
        symmetric: bool = False,
        bn_group: int | None = None,
        shuffle: bool = True,
        num_features: int | None = None,
    ) -> None:
        super().__init__()
        check_momentum(momentum)
        check_temperature(temperature)
        self.momentum, self.temperature, self.symmetric, self.shuffle = momentum, temperature, symmetric, shuffle
        self.query = with_head(encoder, dim, head, hidden, bn_group, num_features)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.queue = Queue(queue_size, dim)

    def forward(self, view1: Tensor, view2: Tensor) -> InfoNCE:
        """Algorithm 1 up to the loss. In evaluation mode the key encoder and the queue stay as they are.

        The momentum update comes just before the keys are encoded, as in the released code: after the optimiser's last
        step, where Algorithm 1 has it too.

        Args:
            view1: (n, ...), the inputs of the query encoder.
            view2: the same for the key encoder; row i of both are views of one image.
        """
        pairs = self._pairs(view1, view2)
        q = [self.encode_queries(x_q) for x_q, _ in pairs]  # queries: NxC
        self.update_key_encoder()  # f_k = m f_k + (1 - m) f_q
        k = [self.encode_keys(x_k, stream=i) for i, (_, x_k) in enumerate(pairs)]  # keys of all ranks, no gradient
        queue = self.queue.keys  # KxC; backward does not read it, so the keys may be enqueued before
        result = mean_of([self.contrast(q_i, local(k_i), queue) for q_i, k_i in zip(q, k, strict=True)])
        self._enqueue(k)
        return result

    def accumulate(self, view1: Tensor, view2: Tensor, *, chunks: int, backward: Backward) -> None:
        """The same step for gradient accumulation, in `chunks` micro-batches of equal size.

        All are contrasted with the same dictionary, and the keys are enqueued after the last: the mean gradient is
        that of the whole batch, if the BN groups divide a micro-batch.

        Args:
            view1, view2: as of `forward`.
            chunks: the number of gradient-accumulation steps; must divide the batch.
            backward: is called for each micro-batch with a function without arguments, which returns its InfoNCE, and
                back-propagates the loss, divided by `chunks`, before it returns.

        Raises:
            ValueError: a batch that `chunks` does not divide.
        """
        check_chunks(len(view1), chunks)
        pairs = self._pairs(view1, view2)
        self.update_key_encoder()
        k = [self.encode_keys(x_k, chunks, stream=i) for i, (_, x_k) in enumerate(pairs)]
        views = zip(*[x_q.chunk(chunks) for x_q, _ in pairs], strict=True)
        positives = zip(*[local(k_i).chunk(chunks) for k_i in k], strict=True)
        for x_q, k_q in zip(views, positives, strict=True):
            backward(partial(self._contrast_chunk, x_q, k_q))
        self._enqueue(k)

    def _contrast_chunk(self, views: Iterable[Tensor], positives: Iterable[Tensor]) -> InfoNCE:
        """Queries of a micro-batch of each direction's view (n / chunks, ...) against their keys and the queue."""
        pairs = zip(views, positives, strict=True)
        return mean_of([self.contrast(self.encode_queries(x_q), k_q, self.queue.keys) for x_q, k_q in pairs])

    def encode_queries(self, view: Tensor) -> Tensor:
        """Queries of a view (n, ...): float32 (n, dim), L2-normalised, with gradient."""
        return normalised(self.query(view))

    def update_key_encoder(self) -> None:
        """The momentum update (Eq. 2), in training mode."""
        if self.training:
            momentum_update(self.key, self.query, self.momentum)

    @torch.no_grad()
    def encode_keys(self, view: Tensor, chunks: int = 1, stream: int = 0, enqueued: int | None = None) -> Tensor:
        """Keys of every rank's view (n, ...), in rank order: float32 (world_size * n, dim), L2-normalised, no gradient.

        In training mode they are encoded in an order permuted over all ranks, and brought back into the original order
        (shuffling BN, section 3.3).

        Args:
            chunks: encodes the batch in this number of micro-batches, which takes less memory.
            stream: 0, or 1 for the second view of a symmetric step, which is permuted otherwise.
            enqueued: encode with the permutation that was used when the queue had received so many keys; None: now.
        """
        order = None
        if self.shuffle and self.training:
            order = permutation(world_size() * len(view), 2 * self._counter(enqueued) + stream)
            view = exchange(view, order)
        keys = gather(torch.cat([normalised(self.key(chunk)) for chunk in view.chunk(chunks)]))
        return keys if order is None else torch.empty_like(keys).index_copy_(0, order.to(keys.device), keys)

    def _counter(self, enqueued: int | None) -> Tensor:
        """Which permutation is next; with one rank it stays on the device, with several the CPU plans the exchange."""
        if enqueued is not None:
            return torch.tensor(enqueued)
        return self.queue.enqueued if world_size() == 1 else torch.tensor(self.queue.total)

    def contrast(self, queries: Tensor, positives: Tensor, dictionary: Tensor) -> InfoNCE:
        """Queries (n, dim) against their keys (n, dim) and the dictionary (K, dim), all L2-normalised."""
        return info_nce(queries, positives, dictionary, self.temperature)

    def _enqueue(self, keys: list[Tensor]) -> None:
        if self.training:
            for k in keys:
                self.queue.enqueue(k)

    def chance_loss(self, batch_size: int) -> float:
        return math.log(len(self.queue.keys) + 1)
