"""The memory bank (Fig. 2b; Wu et al., 2018): a vector for every image of the set, a dictionary sampled from them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.contrast.batchnorm import random_bits
from moco.contrast.collectives import gather
from moco.contrast.heads import Head, normalised, with_head
from moco.contrast.loss import InfoNCE, info_nce
from moco.contrast.mechanism import Backward, Mechanism, check_chunks, check_momentum, check_temperature


class MemoryBank(Mechanism):
    """Contrast with what the images' features were when they were last seen.

    Only `query` is trained. The bank is the same on all ranks, and is part of the state dict.

    Args:
        encoder, dim, temperature, head, hidden, bn_group, num_features: as of `MoCo`.
        images: how many the data set has; each takes 4 * dim bytes.
        draws: K, the vectors that are sampled at random, with replacement, at each step, the same for all queries; the
            query's own image is no negative.
        momentum: of an image's vector: v <- normalise(momentum * v + (1 - momentum) * q), in 0..1.

    Raises:
        ValueError: a number out of range, or an encoder whose number of features is unknown.
    """

    num_views = 1
    takes_index = True
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
        head: Head = "linear",
        hidden: int | None = None,
        bn_group: int | None = None,
        num_features: int | None = None,
    ) -> None:
        super().__init__()
        check_momentum(momentum)
        if images < 2 or draws < 1:
            raise ValueError(f"a memory bank has at least 2 images and 1 draw, not {images} and {draws}")
        check_temperature(temperature)
        self.draws, self.momentum, self.temperature = draws, momentum, temperature
        self.query = with_head(encoder, dim, head, hidden, bn_group, num_features)
        vectors = torch.randn(images, dim)
        self.register_buffer("vectors", F.normalize(vectors, dim=1, out=vectors))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, view: Tensor, images: Tensor) -> InfoNCE:
        """The loss of one step; in evaluation mode the bank stays as it is.

        Args:
            view: (n, ...), the inputs of the encoder.
            images: int64 (n,), the images' indices in the data set.
        """
        images = images.to(self.vectors.device)
        queries = normalised(self.query(view))
        result = self.contrast(queries, images, self.draw())
        self._refresh(images, queries)
        return result

    def accumulate(self, view: Tensor, images: Tensor, *, chunks: int, backward: Backward) -> None:
        """The same step in `chunks` micro-batches, as `MoCo.accumulate`; all share one dictionary."""
        check_chunks(len(view), chunks)
        images, drawn = images.to(self.vectors.device), self.draw()
        queries: list[Tensor] = []
        for chunk, own in zip(view.chunk(chunks), images.chunk(chunks), strict=True):

            def loss(chunk: Tensor = chunk, own: Tensor = own) -> InfoNCE:
                q = normalised(self.query(chunk))
                queries.append(q.detach())
                return self.contrast(q, own, drawn)

            backward(loss)
        self._refresh(images, torch.cat(queries))

    def draw(self) -> Tensor:
        """Which vectors are this step's dictionary, int64 (draws,)."""
        return random_bits(self.draws, self.steps) % len(self.vectors)

    def contrast(self, queries: Tensor, images: Tensor, drawn: Tensor) -> InfoNCE:
        """Queries (n, dim) of images (n,) against those images' vectors and the vectors drawn (K,)."""
        return info_nce(queries, self.vectors[images], self.vectors[drawn], self.temperature, (images, drawn))

    @torch.no_grad()
    def _refresh(self, images: Tensor, queries: Tensor) -> None:
        if self.training:
            images, queries = gather(images), gather(queries.detach())
            moved = self.vectors[images].lerp(queries, 1 - self.momentum)
            self.vectors.index_copy_(0, images, F.normalize(moved, dim=1))
            self.steps += 1

    def chance_loss(self, batch_size: int) -> float:
        return math.log(self.draws + 1)
