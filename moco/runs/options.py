"""Options as dataclasses: their ranges, and how they are written to a file, read, checked and compared."""

import ast
import math
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from moco.runtime.errors import UserError, did_you_mean

Options = TypeVar("Options")


@dataclass(frozen=True)
class Range:
    """What values an option may have: `Annotated[int, Range(1)]` is at least 1. None is always allowed."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """`low` itself is excluded."""
    below: bool = False
    """`high` itself is excluded."""

    def holds(self, value: float | tuple[float, ...] | None) -> bool:
        """False for nan too. Of several values, whether it holds for each."""
        if value is None:
            return True
        if isinstance(value, tuple):
            return all(self.holds(one) for one in value)
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            words = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
            return words + (", and finite" if self.below else "")
        high = f"{self.high:g}" if self.high < 1e6 else f"{self.high:,}"
        return f"in {self.low:g}..{high}" + (f", {high} excluded" if self.below else "")


AtLeast0, AtLeast1, Share = Range(0), Range(1), Range(0, 1)
Finite, Above0 = Range(0, math.inf, below=True), Range(0, math.inf, above=True, below=True)


def nearest_option(name: str, known: Iterable[str]) -> str:
    """Which option was meant by one that there is not: ": did you mean --lr?", or "" if none is near.

    Args:
        name: as it was spelled, `--momentum` or `momentum`.
        known: all options that there are, spelled alike.
    """
    known_as = {option.lstrip("-").replace("-", "_"): option for option in known}
    plain = name.lstrip("-").replace("-", "_")
    if plain == "momentum" and {"key_momentum", "sgd_momentum"} <= set(known_as):  # in the released code it is SGD's
        return f": {known_as['key_momentum']} is m of the key encoder, {known_as['sgd_momentum']} that of SGD"
    renamed = {old: new for (_, old), new in RENAMED.items()}.get(plain)
    return f": did you mean {known_as[renamed]}?" if renamed in known_as else did_you_mean(name, known_as.values())


def check_ranges(options: Any) -> None:
    """Raises UserError, naming option and range, for the first value of a dataclass of options outside its range."""
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        if is_dataclass(value):
            check_ranges(value)
        for allowed in getattr(hint, "__metadata__", ()):
            if isinstance(allowed, Range) and not allowed.holds(value):
                raise UserError(f"{flag(name)} {value}: {allowed}")


def flag(name: str) -> str:
    """An option as the command line spells it."""
    return "--" + {"source": "data", "download": "data.download"}.get(name, name.replace("_", "-"))


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass of groups of options as plain dicts, lists, numbers and strings, as config.yaml holds them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in asdict(config).items()}


def from_dict(values: dict[str, Any], where: str, default: Options) -> Options:
    """The inverse of `to_dict`; what is not there is as in `default`.

    Raises UserError that begins with `where` for what this version does not know.
    """
    config: Any = default
    for group, content in values.items():
        before = getattr(config, group, None)
        if before is None:
            raise UserError(f"{where}: no such group of options: {group}")
        if is_dataclass(before):
            content = replace(before, **_options_of(content, before, where, group))  # type: ignore[type-var]
        elif not isinstance(content, type(before)):
            raise UserError(f"{where}: {group}: {content!r} is not of type {type(before).__name__}")
        config = replace(config, **{group: content})
    return config  # type: ignore[no-any-return]


def _options_of(content: Any, default: Any, where: str, group: str) -> dict[str, Any]:
    """One group of options as it was read, each of its type; UserError."""
    if not isinstance(content, dict):
        raise UserError(f"{where}: {group}: is not a group of options")
    content = {RENAMED.get((group, name), name): value for name, value in content.items()}
    if unknown := set(content) - {f.name for f in fields(default)}:
        raise UserError(f"{where}: no such option in {group}: {', '.join(sorted(unknown))}")
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    hints = get_type_hints(type(default))
    for name, value in read.items():
        if not fits(value, hints[name]):
            wrong = f"{value!r} is not of type {spelled(hints[name])}{_advice(value)}"
            raise UserError(f"{where}: {group}: {name}: {wrong}")
    return read


RENAMED = {
    ("contrast", "momentum"): "key_momentum",
    ("data", "lanes"): "shard_streams",
    ("training", "accumulate"): "accumulation_steps",
    ("compute", "resident_mb"): "cache_mb",
}
"""Options that 0.1.0 and what came before 0.2.0 spelled otherwise, by group and name."""


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that was read is of an option's type."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is UnionType:
        return any(fits(value, part) for part in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _advice(value: Any) -> str:
    """YAML reads 3e-2 as text: it wants a point before the e."""
    try:
        return f": write {float(value)!r}" if isinstance(value, str) else ""
    except ValueError:
        return ""


def spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def differences(one: Any, other: Any, may_change: Collection[str]) -> list[str]:
    """What two configurations differ in, in the words of the options: "lr 0.03 -> 0.06". Without those that may."""
    rows, before, after = [], to_dict(one), to_dict(other)
    for group, content in before.items():
        pairs = content.items() if isinstance(content, dict) else [(group, content)]
        changed = after[group] if isinstance(content, dict) else after
        rows += [
            f"{name} {value} -> {changed[name]}"
            for name, value in pairs
            if value != changed[name] and name not in may_change
        ]
    return rows


def with_options(config: Options, **options: Any) -> Options:
    """The configuration with some options changed, each named as on the command line (`queue_size=4096`)."""
    changed: Any = config
    for group in fields(changed):
        part = getattr(changed, group.name)
        own = {f.name for f in fields(part)} & set(options) if is_dataclass(part) else set()
        if own:
            part = replace(part, **{name: options.pop(name) for name in own})
            changed = replace(changed, **{group.name: part})
    if options:
        raise TypeError(f"no such option: {', '.join(options)}")
    return changed  # type: ignore[no-any-return]


def parse_option(text: str, groups: Iterable[type]) -> tuple[str, Any]:
    """`bn_group=4` or `bn-group=4` as name and value. Raises UserError for what no option is, or can be."""
    name, equals, words = text.partition("=")
    name = "source" if name == "data" else name.replace("-", "_")
    hints = {key: hint for group in groups for key, hint in get_type_hints(group).items()}
    if not equals or not words:
        raise UserError(f"{text!r}: give NAME=VALUE, such as epochs=4")
    if name not in hints:
        raise UserError(f"{text!r}: no such option{nearest_option(name, hints)}")
    constants = {"none": None, "true": True, "false": False}
    try:
        value = constants[words.lower()] if words.lower() in constants else ast.literal_eval(words)
    except (ValueError, SyntaxError):
        value = words
    if not fits(value, hints[name]):
        raise UserError(f"{text!r}: the value is not of type {spelled(hints[name])}")
    return name, value
