"""Files become RGB bytes; unreadable ones are left out, named, and not too many."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data import Encoded, Files, InMemory, dataset
from moco.data.dataset import in_memory
from moco.data.formats.decode import UnreadableImageError
from moco.runtime.errors import UserError
from moco.views import Views


def picture(seed=0, height=12, width=10):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(folder, count, bad=(), sizes=((12, 10),)):
    paths = []
    for i in range(count):
        paths.append(folder / f"{i:03}.png")
        if i in bad:
            paths[i].write_bytes(b"this is no image")
        else:
            Image.fromarray(picture(i, *sizes[i % len(sizes)])).save(paths[i])
    return paths


def as_bytes(image):
    return image.permute(1, 2, 0).numpy()


def test_in_memory_keeps_order_and_labels(tmp_path):
    paths = write(tmp_path, 5)
    images = in_memory(Encoded(Files(paths), torch.arange(5)), limit_mb=1)
    assert isinstance(images, InMemory)
    assert len(images) == 5
    assert all(np.array_equal(as_bytes(image), picture(i)) for i, image in enumerate(images.images))
    assert images.labels.tolist() == [0, 1, 2, 3, 4]


def test_in_memory_leaves_out_a_bad_image_and_its_label(tmp_path, logged):
    images = in_memory(Encoded(Files(write(tmp_path, 120, bad=[7])), torch.arange(120)), limit_mb=1)
    assert len(images) == 119
    assert images.labels.tolist() == [i for i in range(120) if i != 7]
    assert np.array_equal(as_bytes(images.images[7]), picture(8))
    (record,) = logged.records
    assert record.levelno == logging.WARNING
    assert "007.png" in record.getMessage()


def test_in_memory_without_labels(tmp_path):
    assert in_memory(Encoded(Files(write(tmp_path, 3))), limit_mb=1).labels is None


def test_in_memory_refuses_more_than_a_hundredth(tmp_path, logged):
    with pytest.raises(UserError, match=r"2 of 120 images cannot be read.*--max-bad 0\.01.*009\.png"):
        in_memory(Encoded(Files(write(tmp_path, 120, bad=[7, 9]))), limit_mb=1)
    assert len(logged.records) == 2


def test_max_bad_is_a_choice(tmp_path, logged):
    assert len(in_memory(Encoded(Files(write(tmp_path, 10, bad=[0, 9])), max_bad=0.2), limit_mb=1)) == 8


def test_nothing_readable_is_a_user_error(tmp_path, logged):
    with pytest.raises(UserError, match="none of 3 images"):
        in_memory(Encoded(Files(write(tmp_path, 3, bad=[0, 1, 2])), max_bad=1.0), limit_mb=1)


def test_in_memory_declines_other_sizes_and_large_sets(tmp_path):
    paths = write(tmp_path, 4, sizes=((12, 10), (10, 12)))
    assert in_memory(Encoded(Files(paths)), limit_mb=1) is None
    assert in_memory(Encoded(Files(paths[::2])), limit_mb=0) is None
    assert len(in_memory(Encoded(Files(paths[::2])), limit_mb=1)) == 2


def test_readable_near_takes_the_next_readable_and_wraps(tmp_path):
    files, errors = Encoded(Files(write(tmp_path, 5, bad=[2, 3, 4]))), {}
    assert files.readable_near(1, errors)[0] == 1
    assert errors == {}
    position, image = files.readable_near(2, errors)
    assert position == 0
    assert np.array_equal(as_bytes(image), picture(0))
    assert sorted(errors) == [2, 3, 4]
    assert "002.png" in errors[2]


def test_readable_near_gives_up(tmp_path):
    with pytest.raises(UserError, match=r"3 consecutive images cannot be read.*000\.png"):
        Encoded(Files(write(tmp_path, 3, bad=[0, 1, 2]))).readable_near(0, {})


def test_report_names_each_file_once_and_stops_at_too_many(logged):
    files = Encoded(Files(["x"] * 100), max_bad=0.02)
    files.report({})
    files.report({3: "a.png: broken"})
    files.report({3: "a.png: broken", 4: "b.png: broken"})
    assert [record.getMessage()[-13:] for record in logged.records] == ["a.png: broken", "b.png: broken"]
    with pytest.raises(UserError, match=r"3 of 100 .*--max-bad 0\.02.*c\.png"):
        files.report({5: "c.png: broken"})
    files.report({})  # reported once


@pytest.mark.parametrize("labels", [None, torch.arange(6)])
def test_subsets(tmp_path, labels):
    index = torch.tensor([4, 1])
    memory = InMemory(torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 3, 2, 2), labels).subset(index)
    assert memory.images[:, 0, 0, 0].tolist() == [4, 1]
    files = Encoded(Files(write(tmp_path, 6)), labels, max_bad=0.5).subset(index)
    assert [files.name(i)[-7:] for i in range(2)] == ["004.png", "001.png"]
    assert files.max_bad == 0.5
    for part in (memory, files):
        assert len(part) == 2
        assert part.labels is None if labels is None else part.labels.tolist() == [4, 1]


def test_a_subset_counts_its_unreadable_images_against_the_whole_set(logged):
    whole = Encoded(Files([f"{i}.png" for i in range(100)]), max_bad=0.02)
    first, last = whole.subset(torch.arange(24)), whole.subset(torch.arange(90, 100)).subset(torch.tensor([9, 8]))
    first.report({3: "3.png: broken"})
    last.report({0: "99.png: broken"})
    first.report({3: "3.png: broken"})
    assert whole.unreadable.rows == {3, 99}
    assert len(logged.records) == 2
    with pytest.raises(UserError, match="3 of 100 images cannot be read"):
        last.report({1: "98.png: broken"})


def test_an_unreadable_image_among_the_first_does_not_stop_the_contact_sheet(tmp_path, logged):
    from moco.report.pictures import draw_views

    images = Encoded(Files(write(tmp_path, 120, bad=[2])))
    draw_views(images, Views("v1", size=8, seed=0), tmp_path / "views.png")
    assert (tmp_path / "views.png").is_file()
    assert images.unreadable.rows == {2}


def test_ranks_agree_on_what_is_unreadable(monkeypatch):
    images = Encoded(Files([f"{i}.png" for i in range(100)]), max_bad=0.03)
    monkeypatch.setattr(dataset, "gather_objects", lambda rows: [rows, {7, 8}])
    images.report({3: "3.png: broken"})
    images.subset(torch.arange(50)).agree_on_unreadable()
    assert images.unreadable.rows == {3, 7, 8}
    monkeypatch.setattr(dataset, "gather_objects", lambda rows: [rows, {9}])
    with pytest.raises(UserError, match=r"4 of 100 .*--max-bad 0\.03") as caught:
        images.agree_on_unreadable()
    assert caught.value.agreed


def test_what_was_unreadable_before_counts_by_its_place_in_the_whole_set():
    images = Encoded(Files([f"{i}.png" for i in range(100)]), max_bad=0.02)
    half = images.subset(torch.arange(50, 100))
    half.agree_on_unreadable([0, 7])
    assert images.unreadable.rows == {50, 57}
    with pytest.raises(UserError, match=r"3 of 100 .*--max-bad 0\.02"):
        half.agree_on_unreadable([9])


class Remote(Files):
    remote = True


def test_both_kinds_follow_one_protocol(tmp_path):
    files = Encoded(Files(write(tmp_path, 30)), torch.arange(30))
    memory = in_memory(files, limit_mb=1)
    remote = Encoded(Remote(write(tmp_path, 30)), torch.arange(30))
    for images in (files, memory, remote):
        assert torch.equal(images.pixels(4).permute(1, 2, 0), torch.from_numpy(picture(4)))
        assert torch.equal(images.subset(torch.tensor([9, 4])).pixels(1), images.pixels(4))
        assert len(images.sample(50)) == 30
        assert images.to(torch.device("cpu")).labels is images.labels
        images.agree_on_unreadable()
    assert len({images.digest() for images in (files, memory, files.subset(torch.arange(29)))}) == 3
    assert files.digest() == remote.digest()
    assert memory.read(4) is None
    assert files.read(4) == (tmp_path / "004.png").read_bytes()
    assert (files.name(4), memory.name(4)) == (str(tmp_path / "004.png"), "image 4")
    assert [images.random_access for images in (files, memory, remote)] == [True, True, False]
    sample = files.sample(10)
    assert torch.equal(sample, memory.sample(10))
    assert len(set(sample.tolist())) == 10
    assert sample.tolist() != list(range(10))
    assert remote.sample(10).tolist() == list(range(10))
    with pytest.raises(UnreadableImageError):
        Encoded(Files([tmp_path / "none.png"])).pixels(0)
