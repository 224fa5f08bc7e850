"""The memory bank (Fig. 2b; Wu et al., 2018): a vector for every image of the set, a dictionary drawn from them."""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.contrast.loss import InfoNCE, info_nce
from moco.contrast.mechanism import check_temperature, with_head
from moco.contrast.ranks import gather
from moco.contrast.shuffle import random_bits


class MemoryBank(nn.Module):
    """Contrast with what the images' features were when they were last seen.

    Only `query` is trained. The bank is the same on all ranks, and is part of the state dict.

    Args:
        encoder, dim, temperature, head, hidden, bn_group, num_features: as of `MoCo`.
        images: how many the data set has; each takes 4 * dim bytes.
        draws: K, the vectors that are drawn at random, with repetition, at each step, the same for all queries; the
            query's own image is no negative.
        momentum: of an image's vector: v <- normalise(momentum * v + (1 - momentum) * q), in 0..1.

    Raises:
        ValueError: a number out of range, or an encoder whose features cannot be told.
    """

    vectors: Tensor
    steps: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        images: int,
        dim: int = 128,
        draws: int = 65536,
        momentum: float = 0.5,
        temperature: float = 0.07,
        *,
        head: Literal["linear", "mlp"] = "linear",
        hidden: int | None = None,
        bn_group: int | None = None,
        num_features: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is in 0..1, not {momentum}")
        if images < 2 or draws < 1:
            raise ValueError(f"a memory bank has at least 2 images and 1 draw, not {images} and {draws}")
        check_temperature(temperature)
        self.draws, self.momentum, self.temperature = draws, momentum, temperature
        self.query = with_head(encoder, dim, head, hidden, bn_group, num_features)
        vectors = torch.randn(images, dim)
        self.register_buffer("vectors", F.normalize(vectors, dim=1, out=vectors))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, view: Tensor, images: Tensor) -> InfoNCE:
        """The loss of one step; in evaluation the bank stays as it is.

        Args:
            view: (n, ...), the inputs of the encoder.
            images: int64 (n,), which images they are.
        """
        (result,) = self.parts(view, images)
        return result

    def parts(self, view: Tensor, images: Tensor, count: int = 1) -> Iterator[InfoNCE]:
        """The same step in `count` parts of the batch, for gradient accumulation; all draw the same dictionary."""
        images = images.to(self.vectors.device)
        drawn = self.draw()
        positives, negatives = self.vectors[images], self.vectors[drawn]
        queries = []
        for part, positive, own in zip(view.chunk(count), positives.chunk(count), images.chunk(count), strict=True):
            query = F.normalize(self.query(part).float(), dim=1)
            queries.append(query.detach())
            yield info_nce(query, positive, negatives, self.temperature, excluded=drawn == own[:, None])
        if self.training:
            self._refresh(gather(images), gather(torch.cat(queries)))
            self.steps += 1

    def draw(self) -> Tensor:
        """Which vectors are this step's dictionary, int64 (draws,)."""
        return random_bits(self.draws, self.steps) % len(self.vectors)

    @torch.no_grad()
    def _refresh(self, images: Tensor, queries: Tensor) -> None:
        moved = self.vectors[images].lerp(queries, 1 - self.momentum)
        self.vectors.index_copy_(0, images, F.normalize(moved, dim=1))
