"""Algorithm 1 of the paper, written out from its description, and as slow as it likes."""

import copy
import math

import torch
import torch.nn.functional as F


class Algorithm1:
    """One device, plain BN or none, the queue as a list of keys, every logit and update spelled out."""

    def __init__(self, f_q, queue, momentum, temperature, lr):
        self.f_q = f_q
        self.f_k = copy.deepcopy(f_q)  # the key encoder starts as a copy of the query encoder
        self.queue = [key.clone() for key in queue]
        self.pointer = 0
        self.m, self.tau, self.lr = momentum, temperature, lr

    def step(self, x_q, x_k):
        """Returns the logits (n, 1 + K) over the temperature, the loss, and the key parameters that made the keys."""
        used = [p.detach().clone() for p in self.f_k.parameters()]
        q = F.normalize(self.f_q(x_q), dim=1)
        with torch.no_grad():
            k = F.normalize(self.f_k(x_k), dim=1)
        rows = []
        for i in range(len(q)):
            positive = (q[i] * k[i]).sum()
            negatives = [(q[i] * key).sum() for key in self.queue]
            rows.append(torch.stack([positive, *negatives]) / self.tau)
        logits = torch.stack(rows)
        # Cross-entropy with label 0, the positive's place.
        loss = torch.stack([-torch.log(torch.exp(row[0]) / torch.exp(row).sum()) for row in rows]).mean()
        self.f_q.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in self.f_q.parameters():
                p -= self.lr * p.grad
            for p_k, p_q in zip(self.f_k.parameters(), self.f_q.parameters(), strict=True):
                p_k.copy_(self.m * p_k + (1 - self.m) * p_q)
        # Enqueue this mini-batch's keys in the place of the oldest.
        for key in k:
            self.queue[self.pointer] = key
            self.pointer = (self.pointer + 1) % len(self.queue)
        return logits.detach(), loss.item(), used


def guessing(queue_size):
    """The loss of a model that knows nothing."""
    return math.log(queue_size + 1)
