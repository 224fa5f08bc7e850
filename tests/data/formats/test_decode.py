"""Bytes become RGB pixels as a person expects, or one line that says what is wrong."""

import io
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from moco.data.formats.decode import MAX_PIXELS, UnreadableImageError, decode, plain_jpeg_size
from tests.data.test_dataset import as_bytes, picture


def read_image(path):
    return decode(path.read_bytes(), str(path))


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "PNG"])
def test_lossless_formats(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert np.array_equal(as_bytes(image), picture())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_become_rgb(tmp_path, mode):
    path, source = tmp_path / "a.png", Image.fromarray(picture()).convert(mode)
    source.save(path)
    image = read_image(path)
    assert image.shape == (3, 12, 10)
    assert np.array_equal(as_bytes(image), np.array(source.convert("RGB")))


def test_cmyk(tmp_path):
    Image.new("CMYK", (10, 12), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = read_image(tmp_path / "a.jpg").float().mean(dim=(1, 2))
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, lambda a: a), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_exif_rotation(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(as_bytes(read_image(tmp_path / "a.png")), upright(picture()))


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", "truncated"])
def test_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    if content == "truncated":
        Image.fromarray(picture(0, 200, 200)).save(path)
        content = path.read_bytes()[:5000]
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"broken\.png: \w+") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_is_what_pillow_gives(subsampling):
    data = encoded(Image.fromarray(picture(0, 61, 83)), "JPEG", quality=90, subsampling=subsampling)
    expected = pil_to_tensor(Image.open(io.BytesIO(data)))
    assert (decode(data, "a").int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_grey(format):
    image = decode(encoded(Image.fromarray(picture()[..., 0]), format), "a")
    assert image.shape == (3, 12, 10)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


def test_16_bits_are_scaled():
    deep = (picture()[..., 0].astype(np.uint16) << 8) + 77
    image = decode(encoded(Image.fromarray(deep), "PNG"), "a")
    assert np.array_equal(as_bytes(image)[..., 0], picture()[..., 0])
    with pytest.raises(UnreadableImageError, match=r"a\.tif: has 32 bits per channel"):
        decode(encoded(Image.fromarray(deep.astype(np.float32)), "TIFF"), "a.tif")


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_what_is_transparent_is_white(format, options):
    rgba = np.dstack([picture(), np.full((12, 10), 255, np.uint8)])
    rgba[:4, :, 3] = 0
    image = as_bytes(decode(encoded(Image.fromarray(rgba), format, **options), "a"))
    assert (image[:4] == 255).all()
    assert np.array_equal(image[4:], picture()[4:])


def test_a_palette_with_a_transparent_colour():
    source = Image.new("P", (4, 2), 0)
    source.putpalette([10, 20, 30, 200, 100, 50])
    source.putpixel((3, 1), 1)
    image = as_bytes(decode(encoded(source, "PNG", transparency=0), "a"))
    assert (image[0] == 255).all()
    assert image[1, 3].tolist() == [200, 100, 50]


@pytest.mark.parametrize(("format", "options"), [("GIF", {}), ("WEBP", {"lossless": True})])
def test_of_an_animation_the_first_frame(format, options):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert as_bytes(decode(data, "a"))[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_one_pixel(format):
    assert decode(encoded(Image.new("RGB", (1, 1), "white"), format), "a").tolist() == [[[255]]] * 3


def jpeg_of_size(width, height):
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png_of_size(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("make", [jpeg_of_size, png_of_size])
def test_a_size_that_would_fill_the_memory_is_refused(make):
    data = make(20000, 20000)
    assert len(data) < 1000
    with pytest.raises(UnreadableImageError, match=r"^a: has 20000x20000 pixels, more than 100 million$"):
        decode(data, "a")
    assert plain_jpeg_size(data) is None


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"", "the file is empty"),
        (b"<html><body>404", "is no image of a known format: begins with '<html><body>404'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n(a program)", "is no image of a known format"),
        (b"\xff\xd8\xff", "cannot be decoded"),
        (b"\0" * 1000, "is no image of a known format"),
    ],
)
def test_what_is_no_image(data, wrong):
    with pytest.raises(UnreadableImageError) as caught:
        decode(data, "a.jpg")
    assert str(caught.value).startswith(f"a.jpg: {wrong}")


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_jpeg(keep):
    data = encoded(Image.fromarray(picture(0, 100, 100)), "JPEG")
    with pytest.raises(UnreadableImageError, match=r"^a\.jpg: "):
        decode(data[: int(keep * len(data))], "a.jpg")


def test_jpegs_that_every_decoder_gives_alike():
    image = Image.fromarray(picture(0, 30, 40))
    turned = Image.Exif()
    turned[0x0112] = 6
    assert plain_jpeg_size(encoded(image, "JPEG")) == (30, 40)
    assert plain_jpeg_size(encoded(image.convert("L"), "JPEG", progressive=True)) == (30, 40)
    for other in (
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "JPEG", exif=turned),
        encoded(image, "PNG"),
        b"",
        b"\xff\xd8\xff\xc0",
    ):
        assert plain_jpeg_size(other) is None


SOUND = [
    encoded(Image.fromarray(picture(0, 24, 31)), format, **options)
    for format, options in [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("PNG", {"bits": 4}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {"save_all": True, "append_images": [Image.new("RGB", (31, 24))]}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ]
]


@st.composite
def damaged(draw):
    """An image file that was cut off, had bytes changed, taken out, put in or doubled."""
    data = bytearray(draw(st.sampled_from(SOUND)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "change", "remove", "insert", "repeat"])):
            case "cut":
                del data[at:]
            case "change":
                data[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
            case "remove":
                del data[at : at + draw(st.integers(1, 64))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=64))
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 256))]
    return bytes(data)


def decode_in_time(data):
    """What `decode` gives or raises, and an error if that takes it more than ten seconds."""
    outcome = []

    def work():
        try:
            outcome.append(decode(data, "a"))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert outcome, "decode hangs"
    return outcome[0]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=400, deadline=None)
@given(st.one_of(damaged(), st.binary(max_size=200), st.binary(max_size=100).map(lambda rest: SOUND[0][:20] + rest)))
def test_damaged_bytes_give_an_image_or_one_line(data):
    outcome = decode_in_time(data)
    if isinstance(outcome, torch.Tensor):
        assert outcome.dtype == torch.uint8
        assert outcome.shape[0] == 3
        assert 0 < outcome[0].numel() <= MAX_PIXELS
    else:
        assert isinstance(outcome, UnreadableImageError), outcome
        assert str(outcome).startswith("a: ")
        assert "\n" not in str(outcome)
    plain_jpeg_size(data)


def test_avif_is_decoded(tmp_path):
    picture = Image.new("RGB", (40, 24), (200, 30, 60))
    file = io.BytesIO()
    picture.save(file, "AVIF", quality=95)
    pixels = decode(file.getvalue(), "x")
    assert pixels.shape == (3, 24, 40)
    assert (pixels.float() - torch.tensor([200.0, 30, 60])[:, None, None]).abs().max() < 8


def test_without_torchcodec_pillow_gives_the_same(monkeypatch):
    file = io.BytesIO()
    Image.effect_noise((50, 30), 60).convert("RGB").save(file, "JPEG", quality=85)
    before = decode(file.getvalue(), "x")
    monkeypatch.setattr("moco.data.formats.decode.decode_jpeg", None)
    assert torch.equal(decode(file.getvalue(), "x"), before)
