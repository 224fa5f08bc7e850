"""The order of images is a pure function of (seed, epoch), and so is what reaches the device."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moco.data import Encoded, Files, InMemory, Loader, epoch_order, evaluation_plan, training_plan
from moco.data.images import in_memory
from moco.errors import UserError
from moco.views import PRETEXTS, CentreCrop, Views

CPU = torch.device("cpu")


def smooth(seed, height, width):
    """A picture with large structures: rounding a resized one to bytes changes it little."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (fine[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()


def write(folder, count, bad=(), sizes=((30, 24), (21, 40), (24, 24))):
    paths = []
    for i in range(count):
        paths.append(folder / f"{i:03}.png")
        if i in bad:
            paths[i].write_bytes(b"this is no image")
        else:
            Image.fromarray(smooth(i, *sizes[i % len(sizes)])).save(paths[i])
    return paths


def collect(images, views, plan, workers=0):
    return list(Loader(images, views, CPU, workers).batches(plan))


@given(n=st.integers(1, 500), seed=st.integers(0, 2**63), epoch=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_epoch_order_is_a_pure_permutation(n, seed, epoch):
    order = epoch_order(n, seed, epoch).clone()
    assert order.sort().values.tolist() == list(range(n))
    torch.rand(3)
    epoch_order.cache_clear()
    assert torch.equal(epoch_order(n, seed, epoch), order)


def test_epoch_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    epoch_order.cache_clear()
    epoch_order(100, 0, 0)
    assert torch.equal(torch.rand(3), expected)


def test_epoch_orders_differ_over_epoch_and_seed():
    orders = [epoch_order(1000, seed, epoch) for seed in (0, 1, 2**32) for epoch in (0, 1)]
    for i, one in enumerate(orders):
        assert (one != torch.arange(1000)).float().mean() > 0.98
        assert all((one != other).float().mean() > 0.98 for other in orders[:i])


@given(n=st.integers(1, 200), data=st.data(), seed=st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_training_plan(n, data, seed):
    batch = data.draw(st.integers(1, n))
    steps = n // batch
    plan = [(epoch, index.tolist()) for epoch, index in training_plan(n, batch, seed, 0, 3 * steps)]
    assert len(plan) == 3 * steps
    assert [epoch for epoch, _ in plan] == [epoch for epoch in range(3) for _ in range(steps)]
    for epoch in range(3):
        seen = [i for own, index in plan if own == epoch for i in index]
        assert len(seen) == len(set(seen)) == steps * batch
        assert set(seen) <= set(range(n))
    resumed = data.draw(st.integers(0, 3 * steps))
    rest = [(epoch, index.tolist()) for epoch, index in training_plan(n, batch, seed, resumed, 3 * steps)]
    assert rest == plan[resumed:]


@given(n=st.integers(1, 200), batch=st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_evaluation_plan(n, batch):
    plan = list(evaluation_plan(n, batch))
    assert all(epoch == 0 and len(index) == batch for epoch, index in plan)
    asked = torch.cat([index for _, index in plan])
    assert asked[:n].tolist() == list(range(n))
    assert len(asked) < n + batch
    assert (asked[n:] == n - 1).all()


def test_in_memory_gives_the_views_of_the_images():
    images = torch.randint(0, 256, (10, 3, 24, 24), dtype=torch.uint8)
    views = Views("v2", size=16, seed=4)
    batches = collect(InMemory(images), views, training_plan(10, 4, 4, 1, 5))
    for batch, (epoch, index) in zip(batches, training_plan(10, 4, 4, 1, 5), strict=True):
        assert torch.equal(batch.images, index)
        for ours, expected in zip(batch.views, views(images[index], index, epoch), strict=True):
            assert torch.equal(ours, expected)


def test_on_disk_is_the_same_for_any_number_of_workers(tmp_path):
    files, views = Encoded(Files(write(tmp_path, 11))), Views("v2", size=16, seed=1, channels_last=True)
    plans = [list(training_plan(11, 4, 1, 0, 5)) for _ in range(2)]
    alone, together = (collect(files, views, plan, workers) for plan, workers in zip(plans, (0, 2), strict=True))
    assert len(alone) == len(together) == 5
    for one, other, (_, index) in zip(alone, together, plans[0], strict=True):
        assert torch.equal(one.images, index)
        assert torch.equal(one.images, other.images)
        assert [view.shape for view in one.views] == [(4, 3, 16, 16)] * 2
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


def test_on_disk_does_not_depend_on_the_batch(tmp_path):
    files, views = Encoded(Files(write(tmp_path, 6))), Views("v1", size=16, seed=1)
    (whole,) = collect(files, views, [(3, torch.arange(6))])
    for i, batch in enumerate(collect(files, views, [(3, torch.tensor([i])) for i in range(6)])):
        for ours, expected in zip(batch.views, whole.views, strict=True):
            torch.testing.assert_close(ours[0], expected[i], rtol=0, atol=2e-5)


@pytest.mark.parametrize("recipe", ["v1", "v2", "cifar", "centre"])
def test_on_disk_agrees_with_in_memory(tmp_path, recipe):
    files = Encoded(Files(write(tmp_path, 12, sizes=((32, 28),))))
    views = CentreCrop("cifar", size=20) if recipe == "centre" else Views(recipe, size=20, seed=2)
    plan = [(1, torch.arange(12))]
    (disk,), (memory,) = collect(files, views, plan), collect(in_memory(files, 1), views, plan)
    std = torch.tensor(views.pretext.normalisation[1])[:, None, None]
    for one, other in zip(disk.views, memory.views, strict=True):
        difference = ((one - other) * std).abs() * 255
        # A crop is rounded to bytes on its way from a worker; jitter may then stretch that, in a few pixels.
        assert difference.mean() < 0.6
        assert difference.quantile(0.99) < 2
        assert difference.max() < (1.01 if recipe == "centre" else 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_replaced_and_reported_once(tmp_path, workers, logged):
    files = Encoded(Files(write(tmp_path, 8, bad=[3, 4, 7])), max_bad=0.4)
    views = Views("v2", size=16, seed=0)
    batches = collect(files, views, [(epoch, torch.arange(8)) for epoch in (0, 0, 1)], workers)
    for batch in batches:
        assert batch.images.tolist() == [0, 1, 2, 5, 5, 5, 6, 0]
        for view in batch.views:
            assert torch.equal(view[3], view[5])
            assert torch.equal(view[0], view[7])
    named = sorted(record.getMessage().split(".png")[0][-3:] for record in logged.records)
    assert named == ["003", "004", "007"]
    assert files.bad == {3, 4, 7}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_files(tmp_path, workers, logged):
    files = Encoded(Files(write(tmp_path, 8, bad=[3])))
    with pytest.raises(UserError, match=r"1 of 8 images.*003\.png"):
        collect(files, Views("v2", size=16, seed=0), evaluation_plan(8, 4), workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_told_in_one_line(tmp_path, workers):
    files = Encoded(Files(write(tmp_path, 3, bad=[0, 1, 2])), max_bad=1.0)
    with pytest.raises(UserError, match=r"^3 images in a row cannot be read: .*000\.png") as caught:
        collect(files, Views("v2", size=16, seed=0), evaluation_plan(3, 3), workers)
    assert "\n" not in str(caught.value)


def test_centre_crops_of_several_sizes(tmp_path):
    files = Encoded(Files(write(tmp_path, 5, sizes=((24, 24), (50, 24)))))
    (batch,) = collect(files, CentreCrop("v1", size=24), evaluation_plan(5, 5))
    assert len(batch.views) == 1
    assert batch.views[0].shape == (5, 3, 24, 24)
    mean, std = (torch.tensor(part)[:, None, None] for part in PRETEXTS["v1"].normalisation)
    whole = (batch.views[0][0] * std + mean) * 255
    assert np.array_equal(whole.round().permute(1, 2, 0).byte().numpy(), smooth(0, 24, 24))
