"""The mechanisms written out from their papers: the whole batch on one device, every logit and update spelled out."""

import copy
import math

import torch
from torch import nn
from torch.nn.functional import normalize


def shuffled(n, counter):
    """The random order that counter gives, one integer at a time: what `batchnorm.permutation` computes at once."""
    bits = []
    for i in range(n):
        x = i + counter * 0x9E3779B9 % 2**32
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        bits.append(x ^ x >> 16)
    return sorted(range(n), key=lambda i: bits[i])


class LiteralBatchNorm(nn.Module):
    """BN over groups of consecutive samples (None: the whole batch); running statistics move by the groups' mean."""

    def __init__(self, like, group):
        super().__init__()
        self.group, self.eps, self.momentum = group, like.eps, like.momentum
        self.weight, self.bias = copy.deepcopy(like.weight), copy.deepcopy(like.bias)
        self.register_buffer("running_mean", like.running_mean.clone())
        self.register_buffer("running_var", like.running_var.clone())

    def forward(self, x):
        outputs, means, variances = [], [], []
        for group in x.split(self.group or len(x)):
            values = group.transpose(0, 1).flatten(1)  # channels x (samples and places)
            mean = values.sum(dim=1, keepdim=True) / values.shape[1]
            variance = ((values - mean) ** 2).sum(dim=1, keepdim=True) / values.shape[1]
            output = (values - mean) / torch.sqrt(variance + self.eps)
            if self.weight is not None:
                output = output * self.weight[:, None] + self.bias[:, None]
            outputs.append(output.view_as(group.transpose(0, 1)).transpose(0, 1))
            means.append(mean[:, 0].detach())
            variances.append(variance[:, 0].detach() * values.shape[1] / (values.shape[1] - 1))
        for running, seen in ((self.running_mean, means), (self.running_var, variances)):
            running.copy_((1 - self.momentum) * running + self.momentum * sum(seen) / len(seen))
        return torch.cat(outputs)


def literal(module, group=None):
    """A copy of a module, with every BN as above."""
    module = copy.deepcopy(module)
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            module.set_submodule(name, LiteralBatchNorm(child, group))
    return module


def cross_entropy(logits):
    """-log softmax of the first of a query's logits, and whether it is the largest."""
    return -torch.log(torch.exp(logits[0]) / torch.exp(logits).sum()), bool(logits[0] > max(logits[1:]))


def descend(loss, modules, lr):
    """One step of SGD."""
    parameters = [p for module in modules for p in module.parameters()]
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for p, gradient in zip(parameters, gradients, strict=True):
            p -= lr * gradient


@torch.no_grad()
def momentum_step(f_k, f_q, m):
    for p_k, p_q in zip(f_k.parameters(), f_q.parameters(), strict=True):
        p_k.copy_(m * p_k + (1 - m) * p_q)


class Algorithm1:
    """Algorithm 1 of the paper, with shuffling BN (section 3.3); symmetric, if wanted, as v3 and lightly have it."""

    def __init__(self, f_q, queue, momentum, temperature, lr, group, shuffle, symmetric):
        self.f_q = literal(f_q, group)
        self.f_k = copy.deepcopy(self.f_q)  # the key encoder starts as a copy of the query encoder
        self.queue, self.enqueued = [key.clone() for key in queue], 0
        self.m, self.tau, self.lr, self.shuffle, self.symmetric = momentum, temperature, lr, shuffle, symmetric

    def step(self, view1, view2):
        """Returns the loss, the accuracy, and the key encoder that made the keys."""
        used = copy.deepcopy(self.f_k)
        enqueued = []
        results = []
        for direction, (x_q, x_k) in enumerate([(view1, view2), (view2, view1)][: 1 + self.symmetric]):
            q = normalize(self.f_q(x_q), dim=1)
            k = self.encode_keys(x_k, direction)
            results += [cross_entropy(torch.stack([k[i], *self.queue]) @ q[i] / self.tau) for i in range(len(q))]
            enqueued += list(k)
        loss, accuracy = (sum(values) / len(results) for values in zip(*results, strict=True))
        descend(loss, [self.f_q], self.lr)
        momentum_step(self.f_k, self.f_q, self.m)
        for key in enqueued:  # in the place of the oldest
            self.queue[self.enqueued % len(self.queue)] = key
            self.enqueued += 1
        return loss, accuracy, used

    @torch.no_grad()
    def encode_keys(self, x, direction):
        order = shuffled(len(x), 2 * self.enqueued + direction) if self.shuffle else list(range(len(x)))
        encoded = normalize(self.f_k(x[order]), dim=1)
        keys = torch.zeros_like(encoded)
        for place, image in enumerate(order):
            keys[image] = encoded[place]
        return keys


class LiteralEndToEnd:
    """Query i against key i and, as negatives, the keys of the other images; both encoders are trained."""

    def __init__(self, f_q, temperature, lr, group, shuffle, symmetric):
        self.f_q, self.f_k, self.steps = literal(f_q, group), literal(f_q, group), 0
        self.tau, self.lr, self.shuffle, self.symmetric = temperature, lr, shuffle, symmetric

    def step(self, view1, view2):
        """Returns the loss and the accuracy."""
        results = []
        for direction, (x_q, x_k) in enumerate([(view1, view2), (view2, view1)][: 1 + self.symmetric]):
            n = len(x_q)
            order = shuffled(n, 2 * self.steps + direction) if self.shuffle else list(range(n))
            q, encoded = normalize(self.f_q(x_q), dim=1), normalize(self.f_k(x_k[order]), dim=1)
            k = [encoded[order.index(image)] for image in range(n)]
            for i in range(n):
                results.append(cross_entropy(torch.stack([k[i], *k[:i], *k[i + 1 :]]) @ q[i] / self.tau))
        loss, accuracy = (sum(values) / len(results) for values in zip(*results, strict=True))
        descend(loss, [self.f_q, self.f_k], self.lr)
        self.steps += 1
        return loss, accuracy


class LiteralMemoryBank:
    """A vector for every image; K of them are drawn, the query's own image left out; then its vector moves."""

    def __init__(self, f_q, vectors, draws, momentum, temperature, lr, group):
        self.f_q, self.vectors, self.steps = literal(f_q, group), [v.clone() for v in vectors], 0
        self.draws, self.m, self.tau, self.lr = draws, momentum, temperature, lr
        self.left_out = 0

    def step(self, view, images):
        """Returns the loss and the accuracy."""
        drawn = []
        for i in range(self.draws):
            x = i + self.steps * 0x9E3779B9 % 2**32
            x = (x ^ x >> 16) * 0x7FEB352D % 2**32
            x = (x ^ x >> 15) * 0x846CA68B % 2**32
            drawn.append((x ^ x >> 16) % len(self.vectors))
        q = normalize(self.f_q(view), dim=1)
        results = []
        for query, image in zip(q, images.tolist(), strict=True):
            negatives = [self.vectors[j] for j in drawn if j != image]
            self.left_out += len(drawn) - len(negatives)
            results.append(cross_entropy(torch.stack([self.vectors[image], *negatives]) @ query / self.tau))
        loss, accuracy = (sum(values) / len(results) for values in zip(*results, strict=True))
        descend(loss, [self.f_q], self.lr)
        for query, image in zip(q.detach(), images.tolist(), strict=True):
            self.vectors[image] = normalize(self.m * self.vectors[image] + (1 - self.m) * query, dim=0)
        self.steps += 1
        return loss, accuracy


class LiteralMoCoV3:
    """Algorithm 1 of MoCo v3: ctr is 2 tau times the cross entropy over the batch's keys, m rises by half a cosine."""

    def __init__(self, f_q, predictor, momentum, temperature, lr, total_steps):
        self.f_q, self.predictor, self.steps = literal(f_q), literal(predictor), 0
        self.f_k = copy.deepcopy(self.f_q)
        self.m, self.tau, self.lr, self.total_steps = momentum, temperature, lr, total_steps

    def momentum(self):
        progress = min(self.steps, self.total_steps) / self.total_steps
        return 1 - (1 - self.m) * (math.cos(math.pi * progress) + 1) / 2

    def step(self, view1, view2):
        """Returns the loss and the accuracy."""
        q1, q2 = (normalize(self.predictor(self.f_q(x)), dim=1) for x in (view1, view2))
        momentum_step(self.f_k, self.f_q, self.momentum())
        with torch.no_grad():
            k2, k1 = (normalize(self.f_k(x), dim=1) for x in (view2, view1))
        loss1, accuracy1 = self.ctr(q1, k2)
        loss2, accuracy2 = self.ctr(q2, k1)
        descend(loss1 + loss2, [self.f_q, self.predictor], self.lr)
        self.steps += 1
        return loss1 + loss2, (accuracy1 + accuracy2) / 2

    def ctr(self, q, k):
        results = [cross_entropy(torch.stack([k[i], *k[:i], *k[i + 1 :]]) @ q[i] / self.tau) for i in range(len(q))]
        loss, accuracy = (sum(values) / len(results) for values in zip(*results, strict=True))
        return 2 * self.tau * loss, accuracy
