"""Items over threads: the results of one thread, in order, and PyTorch's threads as they were."""

import threading

import pytest
import torch

from moco.runtime.threads import each, one_thread, portions


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order(threads):
    assert each(lambda item: item * item, range(50)) == [item * item for item in range(50)]
    assert each(str, []) == []


def test_each_thread_computes_alone(threads):
    at_once = threading.Barrier(threads)

    def compute(_):
        at_once.wait(10)
        return threading.get_ident(), torch.get_num_threads()

    seen = each(compute, range(threads)) if threads > 1 else [compute(0)]
    assert len({thread for thread, _ in seen}) == threads
    assert {number for _, number in seen} == {1}


def test_pytorchs_own_threads_stay(threads):
    each(abs, range(8))
    assert torch.get_num_threads() == threads
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [threads]


def test_what_an_item_raises_is_raised(threads):
    def fail(item):
        if item == 5:
            raise KeyError("five")

    with pytest.raises(KeyError, match="five"):
        each(fail, range(8))


def test_each_within_each_ends(threads):
    assert each(lambda item: sum(each(abs, range(item))), range(8)) == [sum(range(item)) for item in range(8)]


@pytest.mark.parametrize("length", [0, 1, 7, 100, 1001])
def test_portions_are_all_of_it_once(threads, length):
    made = portions(length, at_most=16)
    assert [row for rows in made for row in range(length)[rows]] == list(range(length))
    assert all(0 < rows.stop - rows.start <= 16 for rows in made)


def test_one_thread_is_undone(threads):
    def fail():
        with one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == threads
