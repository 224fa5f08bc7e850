"""The embedded data set `shapes`: coloured, textured, anti-aliased objects of ten outlines, drawn by the program.

Nothing is downloaded and nothing stored: the image of a number is a pure function of (seed, number). The class is the
outline, and a texture goes with it, as in real things. Colour, size, position, rotation, background, distractors and
noise are drawn independently of it, so neither raw pixels nor colour statistics give it away. Each object comes with
its mask and box.

A batch is a few large tensor operations. They are +, -, *, /, sqrt, floor and comparisons only, which IEEE 754 rounds
in one way: the usual sin and exp may differ in the last bit with the place in the batch, and then so would an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moco.views.counter_rng import uniform

Range = tuple[float, float]

# How hard the data set is. Lengths are fractions of the image side unless stated otherwise, luma runs from 0 to 1.
OBJECT_SIZE: Range = (0.50, 0.80)  # diameter of the circle around the object
OVERHANG = 0.10  # how far that circle may stick out of the frame, in its radii
OBJECT_CONTRAST: Range = (0.30, 0.45)  # luma between the object and its background
OBJECT_CHROMA: Range = (0.02, 0.08)
TEXTURE_CONTRAST: Range = (0.35, 0.50)  # luma within the object, away from the background
TEXTURE_FREQUENCY: Range = (1.0, 1.5)  # cycles per radius of the object
RIM_WIDTH: Range = (0.10, 0.16)  # in radii of the object
RIM_STRENGTH: Range = (0.5, 1.0)  # 0: no rim, 1: the rim is as far from the background as luma goes
BACKGROUND_LUMA: Range = (0.08, 0.30)  # distance from mid-grey, to either side
BACKGROUND_CHROMA: Range = (0.0, 0.04)
BACKGROUND_CONTRAST: Range = (0.0, 0.12)  # luma within the background
BACKGROUND_FREQUENCY: Range = (1.0, 3.0)  # cycles per image side
DISTRACTORS = 3  # at most; each is there with the next probability
DISTRACTOR_PROBABILITY = 0.3
DISTRACTOR_LENGTH: Range = (0.0, 0.12)
DISTRACTOR_RADIUS: Range = (0.02, 0.05)
DISTRACTOR_CONTRAST: Range = (0.10, 0.30)
NOISE: Range = (0.01, 0.05)  # half-width of the uniform noise of a pixel and channel

SMALLEST = 8  # pixels a side: below it outlines are indistinguishable
# Pixels drawn at once: on a CPU the planes of a chunk should stay in its cache, elsewhere large operations are cheap.
_CHUNK_CPU, _CHUNK_OTHER = 2**17, 2**23
# Streams of random numbers that no view of an image uses, even if it is drawn with the same seed.
_STREAM = 0x5A00
_OBJECT, _TEXTURE, _COLOUR, _BACKGROUND, _NOISE, _DISTRACTOR = range(_STREAM, _STREAM + 6)


class Drawing(NamedTuple):
    """A batch of `shapes`, on the device of the index."""

    images: Tensor  # uint8 (n, 3, size, size)
    labels: Tensor  # int64 (n,), places in CLASSES
    masks: Tensor  # bool (n, size, size): the object's pixels
    boxes: Tensor  # float32 (n, 4): x1, y1, x2, y2 in pixels, half-open, tight around the mask


def draw(index: Tensor, size: int = 32, seed: int = 0) -> Drawing:
    """Draw the images of these numbers.

    An image depends on its number, the size and the seed alone: on a CPU to the last bit, whatever else is in the
    batch. Labels are uniform and independent over the numbers; they and the scene are the same at every size.

    Args:
        index: integers (n,), non-negative: the images' numbers; n may be 0.
        size: side of the images in pixels, 8 or more.
        seed: any integer of up to 64 bits; another seed is another data set of the same kind.

    Raises:
        ValueError: `index` is no vector of non-negative integers, or `size` is below 8.
    """
    if index.dim() != 1 or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"index must be a vector of integers, not {index.dtype} of shape {tuple(index.shape)}")
    if len(index) and int(index.min()) < 0:
        raise ValueError(f"index must not be negative, but holds {int(index.min())}")
    if size < SMALLEST:
        raise ValueError(f"size must be at least {SMALLEST} pixels, not {size}")
    if not len(index):
        return Drawing(*(field[:0] for field in draw(index.new_zeros(1), size, seed)))
    pixels = _CHUNK_CPU if index.device.type == "cpu" else _CHUNK_OTHER
    chunks = index.long().split(max(1, pixels // size**2))
    drawings = [_draw_chunk(chunk, size, seed) for chunk in chunks]
    return drawings[0] if len(drawings) == 1 else Drawing(*map(torch.cat, zip(*drawings, strict=True)))


def _draw_chunk(index: Tensor, size: int, seed: int) -> Drawing:
    random = _Random(seed, index, _OBJECT)
    labels = random.choice(len(CLASSES))
    axis = torch.arange(size, device=index.device, dtype=torch.float32) + 0.5
    grid = _Grid(axis[None, None, :], axis[None, :, None])

    radius = random.between(OBJECT_SIZE) * (size / 2)
    room = (size / 2 - (1 - OVERHANG) * radius).clamp(min=0)
    centre_x, centre_y = (size / 2 + room * random.between((-1, 1)) for _ in range(2))
    place = grid.turned(centre_x, centre_y, random.between((0, 1)))
    distance = _choose(labels, _OUTLINES, place.x / radius, place.y / radius).mul_(radius)
    coverage = (0.5 - distance).clamp_(0, 1)

    colours = _Colours(_Random(seed, index, _COLOUR))
    canvas = _background(_Random(seed, index, _BACKGROUND), colours, grid, size)
    for i in range(DISTRACTORS):
        _add_distractor(canvas, _Random(seed, index, _DISTRACTOR + i), colours, grid, size)
    _mix(canvas, coverage, _object(_Random(seed, index, _TEXTURE), labels, colours, place, distance, radius))
    _add_noise(canvas, _Random(seed, index, _NOISE))

    # A thin part may pass between the pixel centres of a tiny image: the best covered pixel is always the object's.
    masks = coverage >= coverage.amax((1, 2), keepdim=True).clamp(max=0.5)
    return Drawing(canvas.mul_(255).round_().clamp_(0, 255).to(torch.uint8), labels, masks, boxes_of(masks))


def draw_backgrounds(index: Tensor, size: int, seed: int = 0) -> Tensor:
    """The grounds of the images of these numbers with their distractors, but without object and noise.

    Args: as of `draw`. Returns uint8 (n, 3, size, size).
    """
    axis = torch.arange(size, device=index.device, dtype=torch.float32) + 0.5
    grid = _Grid(axis[None, None, :], axis[None, :, None])
    colours = _Colours(_Random(seed, index, _COLOUR))
    canvas = _background(_Random(seed, index, _BACKGROUND), colours, grid, size)
    for i in range(DISTRACTORS):
        _add_distractor(canvas, _Random(seed, index, _DISTRACTOR + i), colours, grid, size)
    return canvas.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


class _Random:
    """The uniform numbers of a batch for one purpose, handed out in a fixed order as (n, 1, 1), ready for pixels."""

    def __init__(self, seed: int, index: Tensor, stream: int) -> None:
        self._columns = iter(uniform(seed, index, 16, stream=stream).unbind(1))

    def between(self, bounds: Range) -> Tensor:
        return (next(self._columns) * (bounds[1] - bounds[0]) + bounds[0])[:, None, None]

    def choice(self, count: int) -> Tensor:
        """int64 (n,) in 0 .. count - 1."""
        return (next(self._columns) * count).long().clamp(max=count - 1)


class _Grid(NamedTuple):
    """Where the pixels are: x and y broadcast to (n, size, size)."""

    x: Tensor
    y: Tensor

    def turned(self, x: Tensor, y: Tensor, turn: Tensor) -> _Grid:
        """Seen from (x, y), with the axes turned by a part of a full turn."""
        cos, sin = _sine(turn + 0.25), _sine(turn)
        # The two products are a row and a column an image; only their sum is a plane.
        dx, dy = self.x - x, self.y - y
        return _Grid(dx * cos + dy * sin, dy * cos - dx * sin)


def _sine(turn: Tensor) -> Tensor:
    """sin(2 pi turn) to about 2e-4: the Taylor series of a quarter wave, unfolded."""
    s = 1 - 4 * ((turn + 0.25).frac() - 0.5).abs()
    square = s * s
    return s * (1.5707963 + square * (-0.6459641 + square * (0.0796926 - square * 0.0046818)))


def _choose(kind: Tensor, functions: Sequence[Callable[..., Tensor]], *planes: Tensor) -> Tensor:
    """What `functions[kind]` makes of each image's planes (n, size, size)."""
    result = torch.empty_like(planes[0])
    for k, function in enumerate(functions):
        rows = (kind == k).nonzero().squeeze(1)
        if len(rows):
            result[rows] = function(*(plane[rows] for plane in planes))
    return result


# The outlines: signed distances, negative inside, in a frame where each fits about the unit circle and none is much
# larger in area than another. They are exact near the edges, where anti-aliasing needs them.


def _disk(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt_() - 0.78


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return ((x * x + y * y).sqrt_() - 0.70).abs_() - 0.22


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.68


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs() * 0.8660254 + y * 0.5, -y) - 0.53


def _star(x: Tensor, y: Tensor) -> Tensor:
    # Mirrored into the tenth of the plane that holds one edge, from the tip (0, 1) to the notch at 36 degrees.
    x = x.abs()
    for kx, ky in ((0.8090170, -0.5877853), (-0.8090170, -0.5877853)):
        beyond = (x * kx + y * ky).clamp_(min=0) * 2
        x, y = x - beyond * kx, y - beyond * ky
    notch_x, notch_y = 0.45 * 0.5877853, 0.45 * 0.8090170
    length: float = (notch_x**2 + (1 - notch_y) ** 2) ** 0.5
    return (x.abs() * (1 - notch_y) + (y - 1) * notch_x) / length


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.maximum(torch.maximum(x, y) - 0.95, torch.minimum(x, y) - 0.27)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    # A square on its tip and a disk on each of its upper edges.
    x, y, a = x.abs(), y + 0.14, 0.72
    lobe = ((x - a / 2) ** 2 + (y - a / 2) ** 2).sqrt_() - a * 0.7071068
    return torch.minimum(lobe, (x + y.abs() - a) * 0.7071068)


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    x = x - 0.15
    return torch.maximum((x * x + y * y).sqrt_() - 0.95, 0.72 - ((x - 0.42) ** 2 + y * y).sqrt_())


def _capsule(x: Tensor, y: Tensor) -> Tensor:
    return ((x.abs() - 0.62).clamp_(min=0) ** 2 + y * y).sqrt_() - 0.36


def _hourglass(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.maximum(y - 0.74, (x - 0.9 * y - 0.07) / 1.3453624)


_OUTLINES = (_disk, _ring, _square, _triangle, _star, _cross, _heart, _crescent, _capsule, _hourglass)
CLASSES: tuple[str, ...] = tuple(outline.__name__.strip("_") for outline in _OUTLINES)


# The textures: from 0 to 1, of texture coordinates in cycles and, for the object's, the distance to its outline.


def _wave(u: Tensor) -> Tensor:
    """A triangle wave of period 1 between 0 and 1."""
    return (u - u.floor()).sub_(0.5).abs_().mul_(2)


def _sharpen(t: Tensor) -> Tensor:
    return t.sub_(0.5).mul_(3).add_(0.5).clamp_(0, 1)


def _plain(u: Tensor, v: Tensor, d: Tensor) -> Tensor:
    return torch.zeros_like(u)


def _gradient(u: Tensor, v: Tensor, d: Tensor) -> Tensor:
    return _wave(u * 0.25)


def _blobs(u: Tensor, v: Tensor, d: Tensor) -> Tensor:
    return _wave(u * 0.6) * _wave(v * 0.6)


def _stripes(u: Tensor, v: Tensor, d: Tensor) -> Tensor:
    return _sharpen(_wave(u))


def _checker(u: Tensor, v: Tensor, d: Tensor) -> Tensor:
    return _sharpen((_wave(u) - 0.5) * (_wave(v) - 0.5) * 3 + 0.5)


def _dots(u: Tensor, v: Tensor, d: Tensor) -> Tensor:
    return _sharpen(1.1 - (_wave(u) ** 2 + _wave(v) ** 2).sqrt_())


def _contours(u: Tensor, v: Tensor, d: Tensor) -> Tensor:
    return _sharpen(_wave(d))


_BACKGROUND_TEXTURES = (_plain, _gradient, _blobs, _stripes, _checker, _dots)
_OBJECT_TEXTURES = (*_BACKGROUND_TEXTURES, _contours)
# Outline and texture go together, as in real things; some textures belong to two outlines.
_TEXTURE_OF_CLASS = (5, 0, 4, 3, 1, 6, 2, 1, 3, 5)


class _Colours:
    """The luma plan of a scene: a dark ground with a light object on it, or the other way round.

    Texture moves the object's luma away from the ground, and the ground's away from the object, so that the contrast
    between the two is the least there is.
    """

    def __init__(self, random: _Random) -> None:
        self.side = (random.between((0, 2)).floor() * 2 - 1)[..., 0]
        self.ground = 0.5 - self.side * random.between(BACKGROUND_LUMA)[..., 0]
        self.object = self.ground + self.side * random.between(OBJECT_CONTRAST)[..., 0]
        self.rim = 0.5 + self.side * 0.5

    def pair(self, random: _Random, luma: Tensor, contrast: Tensor, chroma: Range) -> tuple[Tensor, Tensor]:
        """Two colours (n, 3, 1, 1) of one chroma: of this luma, and moved from it by `contrast`, both (n, 1)."""
        tint = _chroma(random, chroma)
        first, second = ((step + tint).clamp(0, 1)[..., None, None] for step in (luma, luma + contrast))
        return first, second


def _chroma(random: _Random, amount: Range) -> Tensor:
    """Red, green and blue (n, 3) to add to a grey: a random hue that leaves its luma (BT.601) as it is."""
    strength, hue = random.between(amount)[..., 0], random.between((0, 1))[..., 0]
    blue, red = strength * _sine(hue + 0.25), strength * _sine(hue)
    return torch.cat((red * 1.402, blue * -0.344136 + red * -0.714136, blue * 1.772), 1)


def _background(random: _Random, colours: _Colours, grid: _Grid, size: int) -> Tensor:
    kind = random.choice(len(_BACKGROUND_TEXTURES))
    frequency = random.between(BACKGROUND_FREQUENCY) / size
    u, v = grid.turned(random.between((0, size)), random.between((0, size)), random.between((0, 1)))
    u, v = u * frequency, v * frequency
    contrast = -colours.side * random.between(BACKGROUND_CONTRAST)[..., 0]
    base, other = colours.pair(random, colours.ground, contrast, BACKGROUND_CHROMA)
    return base + (other - base) * _choose(kind, _BACKGROUND_TEXTURES, u, v, u)[:, None]


def _object(
    random: _Random, labels: Tensor, colours: _Colours, place: _Grid, distance: Tensor, radius: Tensor
) -> Tensor:
    """The object's surface (n, 3, size, size), as if it filled the frame."""
    kind = torch.tensor(_TEXTURE_OF_CLASS, device=labels.device)[labels]
    frequency = random.between(TEXTURE_FREQUENCY) / radius
    u, v = place.turned(random.between((-1, 1)) * radius, random.between((-1, 1)) * radius, random.between((0, 1)))
    texture = _choose(kind, _OBJECT_TEXTURES, u * frequency, v * frequency, distance * (2 * frequency))
    contrast = colours.side * random.between(TEXTURE_CONTRAST)[..., 0]
    base, other = colours.pair(random, colours.object, contrast, OBJECT_CHROMA)
    surface = base + (other - base) * texture[:, None]
    rim = (distance + (random.between(RIM_WIDTH) * radius + 0.5)).clamp_(0, 1).mul_(random.between(RIM_STRENGTH))
    _mix(surface, rim, colours.rim[..., None, None])
    return surface


def _add_distractor(canvas: Tensor, random: _Random, colours: _Colours, grid: _Grid, size: int) -> None:
    """A dot or a short bar behind the object, in some of the images."""
    present = random.between((0, 1)) < DISTRACTOR_PROBABILITY
    u, v = grid.turned(random.between((0, size)), random.between((0, size)), random.between((0, 1)))
    length, radius = random.between(DISTRACTOR_LENGTH) * size, random.between(DISTRACTOR_RADIUS) * size
    distance = ((u.abs_() - length).clamp_(min=0) ** 2 + v * v).sqrt_()
    coverage = (radius + 0.5 - distance).clamp_(0, 1) * present
    contrast = colours.side * random.between(DISTRACTOR_CONTRAST)[..., 0]
    _, colour = colours.pair(random, colours.ground, contrast, OBJECT_CHROMA)
    _mix(canvas, coverage, colour)


def _mix(canvas: Tensor, coverage: Tensor, colour: Tensor) -> None:
    """Lay `colour` over the canvas (n, 3, size, size), in place, in proportion to coverage (n, size, size)."""
    canvas.add_((colour - canvas).mul_(coverage[:, None]))


def _add_noise(canvas: Tensor, random: _Random) -> None:
    """Uniform noise, by a 32-bit hash of (image, pixel) of which each channel takes ten bits: Philox would be slow."""
    keys = [(random.between((-1, 1)) * 2.0**31).to(torch.int64).clamp(max=2**31 - 1).int() for _ in range(2)]
    strength = random.between(NOISE) / 512
    side = canvas.shape[-1]
    x = torch.arange(side * side, device=canvas.device, dtype=torch.int32).view(1, side, side) * -1640531527 + keys[0]
    x = ((x ^ (x >> 16)) * 0x7FEB352D) ^ keys[1]
    x = (x ^ (x >> 15)) * -2073254261
    x = x ^ (x >> 16)
    for channel in range(3):
        bits = (x >> (10 * channel)) & 1023
        canvas[:, channel] += (bits - 511.5) * strength


def boxes_of(masks: Tensor) -> Tensor:
    """The smallest boxes around masks (n, size, size), none of them empty."""
    size = masks.shape[-1]
    columns, rows = masks.any(1).byte(), masks.any(2).byte()
    first = [line.argmax(1) for line in (columns, rows)]
    last = [size - line.flip(1).argmax(1) for line in (columns, rows)]
    return torch.stack((*first, *last), 1).float()
