import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moco.contrast import Queue


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 20), st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_the_queue_holds_the_last_keys_in_order(size, batches):
    """Any K, also one that is no multiple of the batch, or smaller than it."""
    queue = Queue(size, 1)
    start = queue.keys.flatten().tolist()
    everything = []
    for n in batches:
        keys = torch.arange(len(everything), len(everything) + n, dtype=torch.float32)[:, None]
        queue.enqueue(keys)
        everything += keys.flatten().tolist()
    expected = start
    for i, key in enumerate(everything):
        expected[i % size] = key
    assert queue.keys.flatten().tolist() == expected
    assert int(queue.enqueued) == queue.total == len(everything)


def test_the_queue_is_in_the_state_dict():
    queue = Queue(10, 4)
    queue.enqueue(torch.randn(7, 4))
    other = Queue(10, 4)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(queue.keys, other.keys)
    assert int(other.enqueued) == other.total == 7


def test_the_queue_starts_with_unit_vectors_of_every_direction():
    keys = Queue(500, 8).keys
    assert torch.allclose(keys.norm(dim=1), torch.ones(500))
    assert keys.mean(dim=0).abs().max() < 0.1


def test_enqueued_keys_have_no_gradient():
    queue = Queue(4, 2)
    queue.enqueue(torch.ones(2, 2, requires_grad=True))
    assert not queue.keys.requires_grad


def test_keys_of_half_precision_go_in():
    queue, keys = Queue(4, 2), torch.randn(2, 2).half()
    queue.enqueue(keys)
    assert torch.equal(queue.keys[:2], keys.float())


@pytest.mark.parametrize(("size", "dim"), [(0, 4), (4, 0)])
def test_a_queue_of_nothing_is_refused(size, dim):
    with pytest.raises(ValueError, match="at least 1 key of 1 dimension"):
        Queue(size, dim)
