import numpy as np
import pytest
import torch
from PIL import Image

from moco.runtime.errors import UserError
from moco.transfer.segmentation.masks import read_mask
from moco.transfer.segmentation.sets import CITYSCAPES_IDS, open_segmentation


def picture(path, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path)


def mask(path, values, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, dtype=np.uint8))
    if mode == "P":
        image.putpalette([255 - i // 3 for i in range(768)])
    elif mode != "L":
        image = image.convert(mode)
    image.save(path)


def rows(*values):
    """A mask of 4 rows of 6 pixels, each row of one value."""
    return [[value] * 6 for value in values]


@pytest.fixture
def own(tmp_path):
    for i in range(3):
        picture(tmp_path / "images" / f"{i}.jpg")
        mask(tmp_path / "masks" / f"{i}.png", rows(0, 1, i, 255))
    return tmp_path


def test_voc(tmp_path):
    root = tmp_path / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")
    for stem in "abc":
        picture(root / "JPEGImages" / f"{stem}.jpg")
        mask(root / "SegmentationClass" / f"{stem}.png", rows(0, 15, 20, 255), "P")
    for path in (tmp_path, root):
        train, val = open_segmentation(f"voc:{path}")
        assert (len(train), len(val), len(train.classes)) == (2, 1, 21)
        image, labels = train.read(1)
        assert image.shape == (3, 4, 6)
        assert labels.tolist() == rows(0, 15, 20, 255)
        assert train.name(1).endswith("b.jpg")
    (lists / "train_aug.txt").write_text("c\nb\na\n")
    for stem in "abc":
        mask(root / "SegmentationClassAug" / f"{stem}.png", rows(0, 1, 2, 3))
    train, val = open_segmentation(f"voc:{root}")
    assert (len(train), len(val)) == (3, 1)
    assert train.read(0)[1].tolist() == rows(0, 1, 2, 3)


@pytest.mark.parametrize("kind", ["labelTrainIds", "labelIds"])
def test_cityscapes(tmp_path, kind):
    values = rows(0, 18, 7, 255) if kind == "labelTrainIds" else rows(7, 33, 20, 4)
    for split in ("train", "val"):
        picture(tmp_path / "leftImg8bit" / split / "ulm" / "ulm_1_2_leftImg8bit.png")
        mask(tmp_path / "gtFine" / split / "ulm" / f"ulm_1_2_gtFine_{kind}.png", values)
    train, val = open_segmentation(f"cityscapes:{tmp_path}")
    assert (len(train), len(val), len(train.classes), train.classes[18]) == (1, 1, 19, "bicycle")
    assert list(CITYSCAPES_IDS.values()) == sorted(CITYSCAPES_IDS.values())
    assert train.read(0)[1].tolist() == rows(0, 18, 7, 255)


def test_own(own):
    train, val = open_segmentation(f"own:{own}")
    assert ([train.name(i)[-5:] for i in range(2)], val.name(0)[-5:]) == (["1.jpg", "2.jpg"], "0.jpg")
    assert train.classes == ("0", "1", "2")
    assert train.read(1)[1].tolist() == rows(0, 1, 2, 255)
    assert train.subset([1]).name(0) == train.name(1)
    (own / "classes.txt").write_text("ground\ncell\nnucleus\n")
    (own / "train.txt").write_text("0\n2\n")
    (own / "val.txt").write_text("1\n")
    train, val = open_segmentation(f"own:{own}")
    assert (train.classes, len(train), val.name(0)[-5:]) == (("ground", "cell", "nucleus"), 2, "1.jpg")


def test_shapes():
    train, val = open_segmentation("shapes", size=32)
    assert (len(train), len(val), train.classes[0], len(train.classes)) == (10_000, 2_000, "background", 11)
    image, labels = train.read(7)
    assert image.shape == (3, 32, 32)
    assert len(labels.unique()) == 2
    assert not torch.equal(val.read(7)[0], image)
    assert torch.equal(train.subset([3, 7]).read(1)[1], labels)


def read_all(path):
    for part in open_segmentation(f"own:{path}"):
        for i in range(len(part)):
            part.read(i)


def spoil_size(own):
    mask(own / "masks" / "1.png", [[0, 1]])


def spoil_missing_mask(own):
    (own / "masks" / "2.png").unlink()


def spoil_missing_image(own):
    (own / "train.txt").write_text("0\nnone\n")
    (own / "val.txt").write_text("1\n")


def spoil_value(own):
    (own / "classes.txt").write_text("ground\ncell\n")


def spoil_colours(own):
    mask(own / "masks" / "1.png", rows(0, 1, 2, 3), "RGB")


def spoil_file(own):
    (own / "masks" / "1.png").write_bytes((own / "masks" / "1.png").read_bytes()[:50])


def spoil_black_and_white(own):
    for i in range(3):
        mask(own / "masks" / f"{i}.png", rows(0, 255, 255, 0))


def spoil_list(own):
    (own / "train.txt").write_text("0\n")


def spoil_stem(own):
    picture(own / "images" / "1.png")


def spoil_image(own):
    (own / "images" / "1.jpg").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_size, r"1\.jpg: is 6x4 pixels and its mask 2x1"),
        (spoil_missing_mask, r"2\.png: no such mask \(1 of 3 masks"),
        (spoil_missing_image, r"none\.jpg: no such image"),
        (spoil_value, r"2\.png: holds the value 2, but the 2 classes are 0 to 1"),
        (spoil_colours, r"1\.png: .* not RGB"),
        (spoil_file, r"1\.png: is no mask"),
        (spoil_black_and_white, r"masks: .* write class 1 as the value 1"),
        (spoil_list, r"val\.txt: no list"),
        (spoil_stem, "has this stem"),
        (spoil_image, r"1\.jpg: is no image"),
    ],
)
def test_bad_input_is_one_line(own, spoil, message):
    spoil(own)
    with pytest.raises(UserError, match=message) as raised:
        read_all(own)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spec", ["vox:x", "own:", "own:/nowhere", "voc:{}", "cityscapes:{}", "own:{}"])
def test_what_is_not_there_is_refused(tmp_path, spec):
    with pytest.raises(UserError):
        open_segmentation(spec.format(tmp_path))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_values_are_the_file_s_whatever_its_bits(tmp_path, bits):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    image.putpalette([0] * 768)
    image.save(tmp_path / "palette.png", bits=bits)
    assert read_mask(tmp_path / "palette.png").tolist() == [[0, 1]]


@pytest.mark.parametrize(("bits", "row"), [(1, 0b01000000), (2, 0b00010000), (4, 0b00000001)])
def test_grey_of_few_bits_is_not_scaled(tmp_path, bits, row):
    """Written by hand, as Pillow writes no such files."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes([0, row]))) + chunk(b"IEND", b"")
    (tmp_path / "grey.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert read_mask(tmp_path / "grey.png").tolist() == [[0, 1]]


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_an_image_that_exif_turns_in_place_may_not_fit_its_mask(own, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (6, 4)).save(own / "images" / "1.jpg", exif=exif)
    train, _ = open_segmentation(f"own:{own}")
    if orientation == 1:
        assert train.read(0)[0].shape == (3, 4, 6)
        return
    with pytest.raises(UserError, match=r"1\.jpg: its EXIF turns or mirrors it"):
        train.read(0)
