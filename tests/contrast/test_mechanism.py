"""What each mechanism states about itself."""

import inspect
import math

import pytest
import torch
from torch.nn.functional import normalize

from moco.contrast import EndToEnd, Mechanism, MemoryBank, MoCo, MoCoV3
from tests.contrast.test_moco import batch, small_encoder

N = 12
# Name: how it is made, num_views, takes_index, keys per step, whether a batch can be taken in chunks.
MECHANISMS = {
    "moco": (lambda: MoCo(small_encoder(), 8, 50), 2, False, N, True),
    "moco, symmetric": (lambda: MoCo(small_encoder(), 8, 50, symmetric=True), 2, False, 2 * N, True),
    "end-to-end": (lambda: EndToEnd(small_encoder(), 8), 2, False, N, False),
    "end-to-end, symmetric": (lambda: EndToEnd(small_encoder(), 8, symmetric=True), 2, False, 2 * N, False),
    "memory bank": (lambda: MemoryBank(small_encoder(), 10_000, 8, 50), 1, True, N, True),
    "moco v3": (lambda: MoCoV3(small_encoder(), 8, temperature=0.3, hidden=16), 2, False, 2 * N, False),
}


def inputs(mechanism: Mechanism) -> list[torch.Tensor]:
    """What its facts say that it takes, of N images."""
    return [*batch(0, N)[: mechanism.num_views], *([torch.arange(100, 100 + N)] if mechanism.takes_index else [])]


@pytest.mark.parametrize("name", MECHANISMS)
def test_facts(name):
    make, num_views, takes_index, keys, in_parts = MECHANISMS[name]
    mechanism = make()
    facts = (mechanism.num_views, mechanism.takes_index, mechanism.keys_per_step(N), hasattr(mechanism, "accumulate"))
    assert facts == (num_views, takes_index, keys, in_parts)
    assert mechanism(*inputs(mechanism)).loss.isfinite()


@pytest.mark.parametrize("name", MECHANISMS)
def test_keys_per_step_are_those_that_are_encoded(name):
    mechanism = MECHANISMS[name][0]()
    encoded = []
    encoder = getattr(mechanism, "key", mechanism.query)  # the memory bank keeps its queries
    encoder.register_forward_hook(lambda module, args, output: encoded.append(len(output)))
    mechanism(*inputs(mechanism))
    assert sum(encoded) == mechanism.keys_per_step(N)


@pytest.mark.parametrize("name", MECHANISMS)
def test_chance_loss_is_that_of_equal_similarities(name):
    """Every key and query is the same vector: the loss says in which of how many the positive is."""
    mechanism = MECHANISMS[name][0]()
    for buffer in ("queue.keys", "vectors"):
        if buffer in dict(mechanism.named_buffers()):
            mechanism.get_buffer(buffer).copy_(normalize(torch.ones(8), dim=0))
    last = mechanism.predictor[-1] if hasattr(mechanism, "predictor") else mechanism.query.head
    for layer in (last, mechanism.key.head if hasattr(mechanism, "key") else last):
        layer.register_forward_hook(lambda module, args, output: torch.ones_like(output))
    if isinstance(mechanism, MemoryBank):
        assert not set(mechanism.draw().tolist()) & set(range(100, 100 + N)), "an image's own vector would be left out"
    loss = mechanism(*inputs(mechanism)).loss.item()
    assert loss == pytest.approx(mechanism.chance_loss(N), abs=1e-5)
    expected = {"moco": 51, "memory": 51, "end-to-end": N}
    if name != "moco v3":
        assert loss == pytest.approx(math.log(expected[name.split(",")[0].split()[0]]), abs=1e-5)


def test_a_mechanism_without_a_chance_loss_is_unfinished():
    with pytest.raises(NotImplementedError):
        Mechanism().chance_loss(4)


@pytest.mark.parametrize(
    ("mechanism", "expected"),
    [
        (MoCo, {"dim": 128, "queue_size": 65536, "momentum": 0.999, "temperature": 0.07}),
        (EndToEnd, {"dim": 128, "temperature": 0.07}),
        (MemoryBank, {"dim": 128, "draws": 65536, "momentum": 0.5, "temperature": 0.07}),
        (MoCoV3, {"dim": 256, "momentum": 0.99, "temperature": 1.0, "hidden": 4096}),
    ],
)
def test_defaults_are_the_papers(mechanism, expected):
    """MoCo's section 3 and 4, InstDisc's, MoCo v3's."""
    parameters = inspect.signature(mechanism.__init__).parameters
    assert {name: parameters[name].default for name in expected} == expected
