"""What is in a set of images, as a table for the terminal."""

from collections import Counter
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from moco.data.survey import Survey, histogram

_BAR = 30
_SHOWN = 10


def survey_table(title: str, found: Survey, trained_on: Survey | None = None) -> Table:
    """A row for each property; for test images also how many of them are among the training images."""
    # As Text, since a path may hold what rich takes for markup.
    table = Table(title=Text(title), title_justify="left", show_header=False, min_width=len(title))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(found, trained_on):
        table.add_row(name, Text(text))
    return table


def _rows(found: Survey, trained_on: Survey | None) -> Iterator[tuple[str, str]]:
    n = len(found.examined)
    yield (
        "images",
        f"{found.total:,}" + ("" if n == found.total else f"; the rest of the table is of {n:,}, sampled at random"),
    )
    yield "labels", _labels(found.per_class)
    if found.sizes:
        yield "width x height", _sizes(found.sizes)
        shorter: Counter[int] = Counter()
        for size, count in found.sizes.items():
            shorter[min(size)] += count
        if len(shorter) > 1:
            yield "shorter side", _bars(shorter)
    yield "formats", _shares(found.formats, n)
    yield "colour modes", _shares(found.modes, n)
    whole = found.num_bytes / n * found.total
    yield "bytes", f"{'' if n == found.total else 'about '}{_bytes(whole)}, {_bytes(found.num_bytes / n)} an image"
    yield (
        "duplicates",
        f"{found.duplicates:,} are identical to another image, byte for byte" if found.duplicates else "none",
    )
    if trained_on is not None and (common := len(found.digests & trained_on.digests)):
        yield "leaks", f"{common:,} are identical to one of the training images examined"
    yield "broken", "\n".join(_broken(list(found.broken.values()))) if found.broken else "none"


def _labels(per_class: list[int] | None) -> str:
    if per_class is None:
        return "none"
    sizes = f"{per_class[-1]:,} / {_median(Counter(per_class)):,} / {per_class[0]:,}"
    return f"{len(per_class)} classes; least / median / most images per class: {sizes}"


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    if len(sizes) == 1:
        ((width, height),) = sizes
        return f"all {width} x {height}"
    sides: list[Counter[int]] = [Counter(), Counter()]
    for size, count in sizes.items():
        for side, length in zip(sides, size, strict=True):
            side[length] += count
    least, median, most = (" x ".join(str(of(side)) for side in sides) for of in (min, _median, max))
    return f"least {least}, median {median}, most {most} (width and height separately); {len(sizes):,} distinct sizes"


def _median(counts: Counter[int]) -> int:
    """The lower median of whole numbers, each counted so often."""
    ordered = sorted(counts.elements())
    return ordered[(len(ordered) - 1) // 2]


def _bars(values: Counter[int]) -> str:
    bins = histogram(values)
    longest = max(count for *_, count in bins)
    ranges = [f"{low}-{high}" if high > low else str(low) for low, high, _ in bins]
    width = max(map(len, ranges))
    return "\n".join(
        f"{name:>{width}} {'█' * max(round(_BAR * count / longest), count > 0)} {count:,}"
        for name, (*_, count) in zip(ranges, bins, strict=True)
    )


def _shares(counts: Counter[str], n: int) -> str:
    return ", ".join(f"{name} {count:,} ({100 * count / n:.3g} %)" for name, count in counts.most_common()) or "none"


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} bytes" if unit == "bytes" else f"{number:,.1f} {unit}"


def _broken(errors: list[str]) -> list[str]:
    more = [f"... and {len(errors) - _SHOWN:,} more"] if len(errors) > _SHOWN else []
    return [f"{len(errors):,} cannot be read:", *errors[:_SHOWN], *more]
