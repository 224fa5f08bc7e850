"""The order of images is a pure function of (seed, epoch), and so is what reaches the device."""

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data import Encoded, Files, Indices, InMemory, Loader, evaluation_plan, open_source, training_plan
from moco.data.dataset import in_memory
from moco.runtime.errors import UserError
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


def asked(epoch, images):
    return Indices(torch.full((len(images),), epoch), torch.tensor(list(images)))


def collect(images, views, plan, workers=0):
    return list(Loader(images, views, CPU, workers).batches(plan))


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
    (whole,) = collect(files, views, [asked(3, range(6))])
    for i, batch in enumerate(collect(files, views, [asked(3, [i]) for i in range(6)])):
        for ours, expected in zip(batch.views, whole.views, strict=True):
            assert torch.equal(ours[0], expected[i])


@pytest.mark.parametrize("recipe", ["v1", "v2", "cifar", "centre"])
def test_on_disk_agrees_with_in_memory(tmp_path, recipe):
    files = Encoded(Files(write(tmp_path, 12, sizes=((32, 28),))))
    views = CentreCrop("cifar", size=20) if recipe == "centre" else Views(recipe, size=20, seed=2)
    plan = [asked(1, range(12))]
    (disk,), (memory,) = collect(files, views, plan), collect(in_memory(files, 1), views, plan)
    assert all(torch.equal(one, other) for one, other in zip(disk.views, memory.views, strict=True))


def test_views_are_the_same_bits_cached_or_not_for_any_workers(tmp_path):
    write(tmp_path, 9, sizes=((32, 28),))
    plan = list(training_plan(9, 4, 0, 0, 4))
    made = []
    for cache_mb, workers in ((4096, 0), (0, 0), (0, 2)):
        source = open_source(f"folder:{tmp_path}", cache_mb=cache_mb)
        assert isinstance(source.train, InMemory if cache_mb else Encoded)
        batches = collect(source.train, Views("v3", size=20, seed=2), plan, workers)
        made.append([view for batch in batches for view in batch.views])
    for other in made[1:]:
        assert all(torch.equal(one, two) for one, two in zip(made[0], other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_replaced_and_reported_once(tmp_path, workers, logged):
    files = Encoded(Files(write(tmp_path, 8, bad=[3, 4, 7])), max_bad=0.4)
    views = Views("v2", size=16, seed=0)
    batches = collect(files, views, [asked(epoch, range(8)) for epoch in (0, 0, 1)], workers)
    for batch in batches:
        assert batch.images.tolist() == [0, 1, 2, 5, 5, 5, 6, 0]
        for view in batch.views:
            assert torch.equal(view[3], view[5])
            assert torch.equal(view[0], view[7])
    named = sorted(record.getMessage().split(".png")[0][-3:] for record in logged.records)
    assert named == ["003", "004", "007"]
    assert files.unreadable.rows == {3, 4, 7}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_files(tmp_path, workers, logged):
    files = Encoded(Files(write(tmp_path, 8, bad=[3])))
    with pytest.raises(UserError, match=r"1 of 8 images.*003\.png"):
        collect(files, Views("v2", size=16, seed=0), evaluation_plan(8, 4), workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_told_in_one_line(tmp_path, workers):
    files = Encoded(Files(write(tmp_path, 3, bad=[0, 1, 2])), max_bad=1.0)
    with pytest.raises(UserError, match=r"^3 consecutive images cannot be read: .*000\.png") as caught:
        collect(files, Views("v2", size=16, seed=0), evaluation_plan(3, 3), workers)
    assert "\n" not in str(caught.value)


def test_centre_crops_of_several_sizes(tmp_path):
    files = Encoded(Files(write(tmp_path, 5, sizes=((24, 24), (50, 24)))))
    (batch,) = collect(files, CentreCrop("v1", size=24), evaluation_plan(5, 5))
    assert len(batch.views) == 1
    assert batch.views[0].shape == (5, 3, 24, 24)
    mean, std = (torch.tensor(part)[:, None, None] for part in PRETEXTS["v1"][0].normalisation)
    whole = (batch.views[0][0] * std + mean) * 255
    assert np.array_equal(whole.round().permute(1, 2, 0).byte().numpy(), smooth(0, 24, 24))
