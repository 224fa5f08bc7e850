"""An image a thread."""

import os
import threading

import pytest
import torch

from moco.contrast.threads import in_threads


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "together"), [(0, 4), (3, 4), (8, 4), (11, 4), (5, 1)])
def test_every_item_comes_once(threads, count, together):
    seen = []
    in_threads(lambda first, last: seen.extend(range(first, last)), count, together)
    assert sorted(seen) == list(range(count))


def test_a_thread_has_one_core_to_itself_and_the_others_keep_theirs(threads):
    cores, met = [], threading.Barrier(threads)

    def work(first, last):
        cores.append(torch.get_num_threads())
        if threads > 1:
            met.wait(10)  # so that it is a thread each

    in_threads(work, threads if threads > 1 else 2, 1)
    assert set(cores) == {1}
    assert torch.get_num_threads() == threads
    elsewhere = []
    other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert elsewhere == [threads]


def test_an_error_is_raised_where_it_was_called(threads):
    def work(first, last):
        if first == 2:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        in_threads(work, 4, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child process by fork")
def test_a_forked_child_has_threads_of_its_own(threads):
    in_threads(lambda first, last: None, 4, 1)
    child = os.fork()
    if not child:
        seen = []
        in_threads(lambda first, last: seen.append(first), 4, 1)
        os._exit(0 if sorted(seen) == [0, 1, 2, 3] else 1)
    assert os.waitpid(child, 0)[1] == 0
