"""The mechanism: two views in, a loss out (Fig. 2c and Algorithm 1)."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.contrast.dictionary import Queue
from moco.contrast.loss import InfoNCE, info_nce
from moco.contrast.momentum import momentum_update
from moco.contrast.ranks import gather, local
from moco.contrast.shuffle import group_batch_norm, permutation


class MoCo(nn.Module):
    """Momentum contrast around any encoder.

        moco = MoCo(encoder, dim=128, queue_size=65536, momentum=0.999, temperature=0.07)
        loss, accuracy, *_ = moco(view1, view2)

    Only `moco.query` has parameters to train; its `backbone` is the encoder given. Over ranks (torch.distributed) the
    queue holds the keys of all ranks, in the order of the ranks, and is the same on each; averaging the gradients is
    left to the loop.

    Args:
        encoder: maps a batch of inputs (n, ...) to features (n, num_features). Weights are taken over as they are.
        dim: dimensions of queries and keys.
        queue_size: K, the negatives in the dictionary; any number.
        momentum: m of Eq. 2, in 0..1.
        temperature: tau of Eq. 1, above 0.
        head: what maps features to `dim` numbers: "linear" is the paper's (v1), "mlp" is v2's, of 2 layers.
        hidden: width of the MLP head's hidden layer; as wide as the features if not given (2048 for ResNet-50, as v2).
        symmetric: each view is also the other's query: twice the work and twice the keys a step; the loss is the mean.
        bn_group: BN statistics are taken over groups of so many samples (32 in the paper), in training.
        shuffle: keys are encoded in another order, and so in other BN groups, than queries (shuffling BN).
        num_features: features of the encoder, if it has no attribute of that name and its last layer does not tell.

    Raises:
        ValueError: a number out of range, or an encoder whose features cannot be told.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.07,
        *,
        head: Literal["linear", "mlp"] = "linear",
        hidden: int | None = None,
        symmetric: bool = False,
        bn_group: int | None = None,
        shuffle: bool = True,
        num_features: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is in 0..1, not {momentum}")
        check_temperature(temperature)
        self.momentum, self.temperature, self.symmetric, self.shuffle = momentum, temperature, symmetric, shuffle
        self.query = with_head(encoder, dim, head, hidden, bn_group, num_features)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.queue = Queue(queue_size, dim)

    def forward(self, view1: Tensor, view2: Tensor) -> InfoNCE:
        """One step of Algorithm 1 up to the loss; in evaluation the key encoder and the queue stay as they are.

        The momentum update comes first, as in the released code: between the optimiser's last step and these keys,
        where Algorithm 1 has it too.

        Args:
            view1: (n, ...), the inputs of the query encoder.
            view2: the same for the key encoder; row i of both are views of one image.
        """
        (result,) = self.parts(view1, view2)
        return result

    def parts(self, view1: Tensor, view2: Tensor, count: int = 1) -> Iterator[InfoNCE]:
        """The same step in `count` parts of the batch, for gradient accumulation: back-propagate each as it comes.

        All parts look up the same dictionary and the keys are enqueued after the last, so the mean gradient is that of
        the whole batch, if BN statistics are taken over groups that divide a part.
        """
        if self.training:
            momentum_update(self.key, self.query, self.momentum)
        pairs = [(view1, view2), (view2, view1)] if self.symmetric else [(view1, view2)]
        keys = [self.encode_keys(view, count, stream) for stream, (_, view) in enumerate(pairs)]
        negatives = self.queue.keys.clone()  # back-propagation reads what the queue was
        positives = [local(k).chunk(count) for k in keys]
        queries = [view.chunk(count) for view, _ in pairs]
        for part in range(count):
            look_ups = [self.look_up(q[part], k[part], negatives) for q, k in zip(queries, positives, strict=True)]
            yield mean_of(look_ups)
        if self.training:
            for k in keys:
                self.queue.enqueue(k)

    @torch.no_grad()
    def encode_keys(self, view: Tensor, count: int = 1, stream: int = 0) -> Tensor:
        """Keys of every rank's view (n, ...), in the order of the ranks: float32 (world_size * n, dim), normalised.

        They are encoded in `count` parts, in an order permuted over all ranks and restored after (shuffling BN).
        """
        order = None
        if self.shuffle and self.training:
            view = gather(view)
            order = permutation(len(view), self.queue.enqueued * 2 + stream)
            view = view[local(order)]
        keys = gather(torch.cat([F.normalize(self.key(part).float(), dim=1) for part in view.chunk(count)]))
        return keys if order is None else torch.empty_like(keys).index_copy_(0, order, keys)

    def look_up(self, view: Tensor, positive: Tensor, negatives: Tensor) -> InfoNCE:
        """Queries of a view (n, ...) looked up among their keys (n, dim) and the negatives (k, dim)."""
        query = F.normalize(self.query(view).float(), dim=1)
        return info_nce(query, positive, negatives, self.temperature)


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is above 0, not {temperature}")


def with_head(
    encoder: nn.Module,
    dim: int,
    head: Literal["linear", "mlp"],
    hidden: int | None,
    bn_group: int | None,
    num_features: int | None,
) -> nn.Sequential:
    """The encoder as `backbone` and a projection head as `head`, with BN groups; arguments as of `MoCo`."""
    if bn_group is not None and bn_group < 2:
        raise ValueError(f"a BN group has at least 2 samples, not {bn_group}")
    features = count_features(encoder) if num_features is None else num_features
    whole = nn.Sequential(OrderedDict(backbone=encoder, head=projection_head(head, features, dim, hidden)))
    if bn_group is not None:
        group_batch_norm(whole, bn_group)
    return whole


def projection_head(kind: Literal["linear", "mlp"], num_features: int, dim: int, hidden: int | None) -> nn.Module:
    """Features (n, num_features) to (n, dim): the fully connected layer of v1, or v2's MLP of 2 layers."""
    if kind == "linear":
        return nn.Linear(num_features, dim)
    if kind == "mlp":
        hidden = hidden or num_features
        return nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
    raise ValueError(f'a head is "linear" or "mlp", not "{kind}"')


def count_features(encoder: nn.Module) -> int:
    """What the encoder says of itself (timm's attribute), or the width of its last layer."""
    if isinstance(declared := getattr(encoder, "num_features", None), int):
        return declared
    for layer in reversed(list(encoder.modules())):
        for width in ("out_features", "num_features", "out_channels"):
            if isinstance(found := getattr(layer, width, None), int):
                return found
    raise ValueError("how many features the encoder gives cannot be told: pass num_features")


def mean_of(results: list[InfoNCE]) -> InfoNCE:
    """The mean loss and accuracy of several look-ups, and all their logits."""
    if len(results) == 1:
        return results[0]
    losses, accuracies, positives, negatives = zip(*results, strict=True)
    loss, accuracy = torch.stack(losses).mean(), torch.stack(accuracies).mean()
    return InfoNCE(loss, accuracy, torch.cat(positives), torch.cat(negatives))
