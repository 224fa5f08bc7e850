"""Features on the disk: in the order of the sets, continued where they were stopped."""

import json

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from moco.data import Encoded, Files, ImageSet, InMemory
from moco.encoders import build_encoder
from moco.evaluation import embed, encode, fingerprint
from moco.evaluation.embedding import Row, rows_of
from moco.runtime.device import choose_device
from moco.runtime.errors import UserError
from moco.views import CentreCrop

DEVICE = choose_device(name="cpu", precision="fp32", channels_last=False)
VIEWS = CentreCrop("v2", 8)
ABOUT = {"weights": "w"}


class KilledError(Exception):
    pass


class Means(nn.Module):
    """The mean of each channel; it may fail before a batch, and counts the images that it saw."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.fails_at, self.calls, self.seen = fails_at, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        if self.calls == self.fails_at:
            raise KilledError
        self.calls += 1
        self.seen += len(images)
        return images.mean(dim=(2, 3))


def random_images(n: int, seed: int = 0) -> InMemory:
    generator = torch.Generator().manual_seed(seed)
    return InMemory(torch.randint(256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(n) % 3)


SETS = {"train": random_images(23), "test": random_images(9, seed=1)}


@pytest.fixture
def saved_at_once(monkeypatch):
    monkeypatch.setattr("moco.evaluation.embedding._SECONDS", -1.0)


def values_of(embedding) -> Tensor:
    return torch.cat(list(embedding.blocks()))


def expected() -> Tensor:
    return torch.cat([encode(Means(), images, VIEWS, DEVICE)[0] for images in SETS.values()])


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_features_come_in_the_order_of_the_sets(tmp_path, batch_size):
    embedding = embed(Means(), SETS, VIEWS, DEVICE, tmp_path / "f", ABOUT, batch_size)
    torch.testing.assert_close(values_of(embedding), expected())
    rows = list(embedding.rows())
    assert (len(rows), len(embedding), embedding.num_features) == (32, 32, 3)
    assert rows[:2] == [Row("train", 0, "image 0", 0), Row("train", 1, "image 1", 1)]
    assert rows[-1] == Row("test", 8, "image 8", 2)


@pytest.mark.parametrize("fails_at", [0, 1, 3, 6, 7, 8])
@pytest.mark.parametrize("then", [4, 3, 100])
def test_what_was_stopped_continues_with_any_batch(tmp_path, saved_at_once, fails_at, then):
    """Batches of 4: six of the first set, three of the second."""
    with pytest.raises(KilledError):
        embed(Means(fails_at), SETS, VIEWS, DEVICE, tmp_path / "f", ABOUT, 4)
    again = Means()
    embedding = embed(again, SETS, VIEWS, DEVICE, tmp_path / "f", ABOUT, then)
    torch.testing.assert_close(values_of(embedding), expected())
    done = min(4 * fails_at, 23) + 4 * max(0, fails_at - 6)
    if then == 4:
        assert again.calls == 9 - fails_at
    elif then == 3 and done < 23:
        assert again.calls == (8 - done // 3) + 3
    embed(untouched := Means(), SETS, VIEWS, DEVICE, tmp_path / "f", ABOUT, then)
    assert untouched.calls == 0


def test_what_was_written_after_the_last_note_is_written_again(tmp_path, saved_at_once):
    """As after a kill between the features and the note of them."""
    with pytest.raises(KilledError):
        embed(Means(2), SETS, VIEWS, DEVICE, tmp_path / "f", ABOUT, 4)
    with (tmp_path / "f/features").open("ab") as file:
        file.write(b"\0" * 100)
    embedding = embed(Means(), SETS, VIEWS, DEVICE, tmp_path / "f", ABOUT, 4)
    torch.testing.assert_close(values_of(embedding), expected())


@pytest.mark.parametrize("bad", [[0], [3, 4], [8], [0, 1, 7, 8]])
def test_unreadable_images_have_no_row(tmp_path, saved_at_once, bad):
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    for number, path in enumerate(paths):
        path.write_bytes(b"no") if number in bad else Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    sets = {"a": Encoded(Files(paths), max_bad=1), "b": SETS["test"]}
    with pytest.raises(KilledError):
        embed(Means(3), sets, VIEWS, DEVICE, tmp_path / "f", ABOUT, 2)
    embedding = embed(Means(), sets, VIEWS, DEVICE, tmp_path / "f", ABOUT, 2)
    assert embedding.unreadable == bad
    assert embedding.unreadable_names() == [str(paths[number]) for number in bad]
    good = [number for number in range(9) if number not in bad]
    assert [row.position for row in embedding.rows()] == [*good, *range(9)]
    values, _ = encode(Means(), sets["a"], VIEWS, DEVICE)
    torch.testing.assert_close(values_of(embedding)[: len(good)], values)


def test_too_many_unreadable_images_are_an_error(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(b"no") if number else Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(UserError, match="more than --max-bad"):
        embed(Means(), {"a": Encoded(Files(paths))}, VIEWS, DEVICE, tmp_path / "f", ABOUT, 2)


def test_what_was_unreadable_before_a_stop_counts_after_it(tmp_path, saved_at_once):
    """Two before it and two after it, of 40: each under --max-bad, together over it."""
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        path.write_bytes(b"no") if number in (0, 1, 30, 31) else Image.new("RGB", (8, 8)).save(path)

    def images(max_bad: float = 0.06) -> dict[str, Encoded]:
        return {"a": Encoded(Files(paths), max_bad=max_bad)}

    with pytest.raises(KilledError):
        embed(Means(4), images(), VIEWS, DEVICE, tmp_path / "f", ABOUT, 4)
    for _ in range(2):
        with pytest.raises(UserError, match=r"of 40 images cannot be read, more than --max-bad 0\.06"):
            embed(Means(), images(), VIEWS, DEVICE, tmp_path / "f", ABOUT, 4)
    assert len(embed(Means(), images(0.1), VIEWS, DEVICE, tmp_path / "f", ABOUT, 4)) == 36


@pytest.mark.parametrize("change", ["a file", "pixels"])
def test_other_images_of_the_same_names_are_other_work(tmp_path, saved_at_once, change):
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)

    def sets() -> dict[str, ImageSet]:
        return {"a": random_images(23) if change == "pixels" else Encoded(Files(paths))}

    with pytest.raises(KilledError):
        embed(Means(2), sets(), VIEWS, DEVICE, tmp_path / "f", ABOUT, 4)
    others = sets()
    if change == "pixels":
        others["a"].images[22, 2, 7, 7] += 1
    else:
        Image.new("RGB", (8, 8), (9, 9, 9)).save(paths[0])
    with pytest.raises(UserError, match=r"other work \(images\)"):
        embed(Means(), others, VIEWS, DEVICE, tmp_path / "f", ABOUT, 4)


@pytest.mark.parametrize("change", ["about", "images"])
def test_a_folder_of_other_work_is_refused_and_kept(tmp_path, saved_at_once, change):
    with pytest.raises(KilledError):
        embed(Means(2), SETS, VIEWS, DEVICE, tmp_path / "f", ABOUT, 4)
    before = (tmp_path / "f/features").read_bytes()
    sets = SETS | {"test": random_images(10)} if change == "images" else SETS
    about = ABOUT if change == "images" else {"weights": "other"}
    with pytest.raises(UserError, match=rf"other work \({'weights' if change == 'about' else 'images'}\)"):
        embed(Means(), sets, VIEWS, DEVICE, tmp_path / "f", about, 4)
    assert (tmp_path / "f/features").read_bytes() == before


def test_a_damaged_note_and_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f/progress.json").write_text(json.dumps({"about": {}}))
    with pytest.raises(UserError, match="is damaged"):
        embed(Means(), SETS, VIEWS, DEVICE, tmp_path / "f", ABOUT)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        embed(Means(), SETS, VIEWS, DEVICE, tmp_path / "file/f", ABOUT)


def test_the_fingerprint_is_of_weights_and_input():
    torch.manual_seed(0)
    encoder = build_encoder("tiny")
    first = fingerprint(encoder, VIEWS)
    assert fingerprint(encoder, CentreCrop("v2", 8)) == first
    assert fingerprint(encoder, CentreCrop("v2", 16)) != first
    assert fingerprint(encoder, CentreCrop("cifar", 8)) != first
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    assert fingerprint(encoder, VIEWS) != first


def test_rows_of_places_over_all_sets():
    rows = rows_of(SETS, [31, 0, 23, 22, 23])
    assert list(rows) == [0, 22, 23, 31]
    assert [(row.split, row.position) for row in rows.values()] == [
        ("train", 0),
        ("train", 22),
        ("test", 0),
        ("test", 8),
    ]
    assert rows[0].title == "train: image 0"
    assert Row("train", 0, "a/b.png", 0).title == "a/b.png"


def test_features_that_are_fewer_than_the_note_of_them_are_damaged(tmp_path, saved_at_once):
    with pytest.raises(KilledError):
        embed(Means(2), SETS, VIEWS, DEVICE, tmp_path / "f", ABOUT, 4)
    (tmp_path / "f/features").write_bytes(b"\0" * 12)
    with pytest.raises(UserError, match="features: is damaged: delete"):
        embed(Means(), SETS, VIEWS, DEVICE, tmp_path / "f", ABOUT, 4)


def test_what_features_are_of_may_hold_what_json_changes(tmp_path, saved_at_once):
    about = {"mean": (0.5, 0.5)}  # a list when it is read again
    with pytest.raises(KilledError):
        embed(Means(2), SETS, VIEWS, DEVICE, tmp_path / "f", about, 4)
    assert len(embed(Means(), SETS, VIEWS, DEVICE, tmp_path / "f", about, 4)) == 32


def test_nothing_is_cut_off_before_the_note_is_of_less(tmp_path, saved_at_once, monkeypatch):
    """A larger batch begins earlier. A process that dies as it cuts leaves a note that is true of the file."""
    with pytest.raises(KilledError):
        embed(Means(3), SETS, VIEWS, DEVICE, tmp_path / "f", ABOUT, 4)  # 12 images
    monkeypatch.setattr("moco.evaluation.embedding._SECONDS", 1e9)
    with pytest.raises(KilledError):
        embed(Means(0), SETS, VIEWS, DEVICE, tmp_path / "f", ABOUT, 7)  # begins again at image 7
    done = json.loads((tmp_path / "f/progress.json").read_text())["done"]
    assert done == 7 == (tmp_path / "f/features").stat().st_size // 12
