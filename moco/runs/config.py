"""The configuration of a run: every option with its range. A published default names its source."""

import ast
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from moco.runtime.errors import UserError, did_you_mean


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


@dataclass(frozen=True)
class Data:
    """Where images come from."""

    source: Annotated[str, tyro.conf.arg(name="data", metavar="SOURCE")] = "shapes"
    """shapes, cifar10:PATH, folder:PATH, shards:PATTERN, hf:NAME, ... (moco data --help lists them)."""
    download: Annotated[bool, tyro.conf.arg(name="data.download")] = False
    """Download the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""
    max_bad: Annotated[float, Share] = 0.01
    """Stop when more than this share of the images cannot be read."""
    shard_streams: Annotated[int, AtLeast1] = 64
    """Streams in which remote shards are read in parallel, by all ranks together; any number."""
    per_class: Annotated[int | None, AtLeast1] = None
    """Train only on the first N images of each class, for a quick trial; None: on all."""


@dataclass(frozen=True)
class Views:
    """The pretext task: what a random view of an image is."""

    views: str = "v2"
    """v1 (He et al. 2020), v2 (Chen et al. 2020), v3 (BYOL), v3-vit, simclr, cifar (v2 without blur) or shapes."""
    image_size: Annotated[int, AtLeast1] = 224
    """Height and width of a view in pixels."""


@dataclass(frozen=True)
class Encoder:
    """What maps an image to features."""

    encoder: str = "resnet50"
    """resnet18/34/50, resnet50w2, resnet50w4, resnext50_32x8d, tiny, vit_s_16, or any torchvision or timm name."""
    small_stem: bool = False
    """A ResNet's stem for small images: 3x3 without stride, no max-pooling."""
    freeze_patches: bool = False
    """Freeze a ViT's patch projection at its initial weights (random, or those of --init), with a fixed sine-cosine
    position embedding (MoCo v3)."""
    init: str = "random"
    """Weights to start from: random, a run's folder, a file (released checkpoints of MoCo v1, v2, v3 and others),
    torchvision:NAME[:WEIGHTS], timm:NAME or hf:OWNER/NAME."""


@dataclass(frozen=True)
class Contrast:
    """Section 3 of the paper; the defaults are those of section 4."""

    dim: Annotated[int, AtLeast1] = 128
    """Dimensions of queries and keys."""
    queue_size: Annotated[int, AtLeast1] = 65536
    """K, the keys in the dictionary."""
    key_momentum: Annotated[float, Share] = 0.999
    """m of the key encoder's momentum update (Eq. 2); in moco-v3 that of the first step, rising to 1."""
    temperature: Annotated[float, Above0] = 0.07
    """tau of InfoNCE (Eq. 1)."""
    head: Literal["linear", "mlp"] = "linear"
    """Projection head: linear (v1) or mlp, of 2 layers (v2)."""
    symmetric: bool = False
    """Symmetric loss: each view is the query once and the key once."""
    bn_group: Annotated[int | None, Range(2)] = 32
    """BN statistics are computed over groups of N images (32 in the paper, one group a GPU); None: over a rank's
    images. In moco-v3 they are always computed over the whole batch of all ranks, and nothing is shuffled."""
    shuffle: bool = True
    """Keys are encoded in other BN groups than queries (shuffling BN)."""
    mechanism: Literal["moco", "end-to-end", "memory-bank", "moco-v3"] = "moco"
    """Fig. 2: moco; end-to-end: the mini-batch is the dictionary; memory-bank: K vectors drawn from one per image.
    moco-v3: MoCo v3, whose keys are those of the mini-batch, symmetric, with heads of its own and m rising to 1."""
    bank_momentum: Annotated[float, Share] = 0.5
    """Momentum of an image's vector in the memory bank."""
    hidden: Annotated[int, AtLeast1] = 4096
    """Width of the hidden layers of moco-v3's projector and predictor."""


@dataclass(frozen=True)
class Training:
    """The loop; the defaults are those of section 4 (ImageNet)."""

    epochs: Annotated[int, AtLeast1] = 200
    """Passes over the data set."""
    iterations: Annotated[int | None, AtLeast1] = None
    """Steps in all, in place of epochs. Schedule, warm-up and --knn-every then count steps too."""
    batch_size: Annotated[int, Range(2)] = 256
    """Images a step, over all ranks and gradient-accumulation steps."""
    accumulation_steps: Annotated[int, AtLeast1] = 1
    """Gradient-accumulation steps: less memory, and the same gradient if BN groups divide the batch of each step."""
    lr: Annotated[float, Above0] = 0.03
    """Peak learning rate."""
    schedule: Literal["step", "cosine", "exponential"] = "step"
    """step: x gamma at each milestone; cosine: to 0; exponential: x gamma every `decay_every`."""
    milestones: Annotated[tuple[float, ...], AtLeast0] = (120, 160)
    """Epochs (or steps) at which the step schedule multiplies the learning rate by gamma."""
    gamma: Annotated[float, Above0] = 0.1
    """Factor of the step and exponential schedules."""
    decay_every: Annotated[float, Above0] = 1.0
    """Epochs (or steps) between two decays of the exponential schedule."""
    warmup: Annotated[float, Finite] = 0.0
    """Epochs (or steps) in which the learning rate rises linearly from 0."""
    sgd_momentum: Annotated[float, Range(0, 1, below=True)] = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: Annotated[float, Finite] = 1e-4
    """Weight decay, on every parameter; in LARS not on biases and normalisation."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of everything random in the run: weights, order of the images, views."""
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    """sgd (the paper); lars, for large batches on ResNets, or adamw, for ViTs (MoCo v3)."""


@dataclass(frozen=True)
class Compute:
    """How a run is computed. Precision and compilation change its results by rounding only, all else does not."""

    device: str = "auto"
    """auto, cpu, cuda, mps, xpu, or one of several GPUs: cuda:N."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16: autocast; auto: where the hardware multiplies bf16 natively."""
    channels_last: bool = True
    """Memory format of images and weights: channels_last, which is faster for convolutions."""
    workers: Annotated[int, AtLeast0] = 2
    """Processes that load images which are not cached in memory, for a GPU; on a CPU this process does, by threads."""
    decoder: Literal["auto", "cpu", "gpu"] = "auto"
    """Where JPEGs are decoded: by the workers (cpu) or on the GPU; auto: whichever is measured to be faster."""
    cache_mb: Annotated[int, AtLeast0] = 4096
    """A data set of equal-sized images up to this size in MB is cached in memory (the GPU's, if there is one)."""
    compile: bool = False
    """Compile the encoders by torch.compile: takes a minute at the start and gives fewer, larger kernels on a GPU."""
    cuda_graph: bool = False
    """Record a step as one CUDA graph, on one GPU: for small images, whose kernels launch slower than they run."""


@dataclass(frozen=True)
class Log:
    """What is logged, monitored, evaluated and saved during training."""

    knn_every: Annotated[int, AtLeast0] = 10
    """Epochs (or steps, with --iterations) between two kNN evaluations; 0: none. There is one at the end too."""
    knn_k: Annotated[int, AtLeast1] = 200
    """k of the kNN classifier: the neighbours that vote."""
    knn_temperature: Annotated[float, Above0] = 0.1
    """A vote weighs exp(similarity / temperature): 0.1 for CIFAR, 0.07 for ImageNet (InstDisc)."""
    log_every: Annotated[int, AtLeast1] = 10
    """Steps between two lines of metrics."""
    monitor_every: Annotated[int | None, AtLeast0] = None
    """Steps between two runs of the monitor; None: a hundredth of the run, at least 100; 0: never."""
    checkpoint_minutes: Annotated[float, AtLeast0] = 5.0
    """Minutes between two checkpoints; there is one at the start, at the end, and when the run is stopped."""
    keep_checkpoints: Annotated[int, AtLeast1] = 3
    """How many checkpoints are kept, the last ones."""


@dataclass(frozen=True)
class Config:
    recipe: Annotated[str, tyro.conf.Suppress] = ""
    data: Data = field(default_factory=Data)
    views: Views = field(default_factory=Views)
    encoder: Encoder = field(default_factory=Encoder)
    contrast: Contrast = field(default_factory=Contrast)
    training: Training = field(default_factory=Training)
    compute: Compute = field(default_factory=Compute)
    log: Log = field(default_factory=Log)


@dataclass(frozen=True)
class Linear:
    """Linear classification on frozen features (section 4.1): one fully connected layer, SGD with momentum 0.9."""

    epochs: Annotated[int, AtLeast1] = 100
    """The learning rate falls to a tenth after 60 and 80 of 100 epochs, and in proportion."""
    batch_size: Annotated[int, AtLeast1] = 256
    """Images a step, over all ranks."""
    lr: Annotated[float, Above0] = 30.0
    """Learning rate at the start."""
    weight_decay: Annotated[float, AtLeast0] = 0.0
    """Weight decay."""
    cached: bool = False
    """Compute the features of centre crops once and train on them: quicker, without augmented crops."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the crops and of their order."""


def with_options(config: Config, **options: Any) -> Config:
    """The configuration with some options changed, each named as on the command line (`queue_size=4096`)."""
    for room in fields(config):
        part = getattr(config, room.name)
        own = {f.name for f in fields(part)} & set(options) if is_dataclass(part) else set()
        if own:
            changed = replace(part, **{name: options.pop(name) for name in own})
            config = replace(config, **{room.name: changed})
    if options:
        raise TypeError(f"no such option: {', '.join(options)}")
    return config


def parse_option(text: str) -> tuple[str, Any]:
    """`bn_group=4` or `bn-group=4` as name and value. Raises UserError for what no option is, or can be."""
    name, equals, spelled = text.partition("=")
    name = "source" if name == "data" else name.replace("-", "_")
    rooms = (Data, Views, Encoder, Contrast, Training, Log)
    hints = {key: hint for room in rooms for key, hint in get_type_hints(room).items()}
    if not equals or not spelled:
        raise UserError(f"{text!r}: give NAME=VALUE, such as epochs=4")
    if name not in hints:
        raise UserError(f"{text!r}: no such option{nearest_option(name, hints)}")
    words = {"none": None, "true": True, "false": False}
    try:
        value = words[spelled.lower()] if spelled.lower() in words else ast.literal_eval(spelled)
    except (ValueError, SyntaxError):
        value = spelled
    if not _fits(value, hints[name]):
        raise UserError(f"{text!r}: the value is not of type {_spelled(hints[name])}")
    return name, value


def nearest_option(name: str, known: Iterable[str]) -> str:
    """Which option was meant by one that there is not: ": did you mean --lr?", or "" if none is near.

    Args:
        name: as it was spelled, `--momentum` or `momentum`.
        known: all options that there are, spelled alike.
    """
    spelled = {option.lstrip("-").replace("-", "_"): option for option in known}
    plain = name.lstrip("-").replace("-", "_")
    if plain == "momentum" and {"key_momentum", "sgd_momentum"} <= set(spelled):  # in the released code it is SGD's
        return f": {spelled['key_momentum']} is m of the key encoder, {spelled['sgd_momentum']} that of SGD"
    renamed = {old: new for (_, old), new in RENAMED.items()}.get(plain)
    return f": did you mean {spelled[renamed]}?" if renamed in spelled else did_you_mean(name, spelled.values())


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


def check(config: Config, ranks: int = 1, images: int | None = None) -> None:
    """Raises UserError, naming the option, for the first number out of its range, or that does not fit the others.

    Args:
        images: the number of training images, once it is known.
    """
    check_ranges(config)
    contrast, training = config.contrast, config.training
    if images is not None and images < training.batch_size:
        raise UserError(f"--batch-size {training.batch_size}: the data set has only {images} training images")
    if config.compute.cuda_graph and ranks > 1:
        raise UserError(f"--cuda-graph: a step is recorded on one GPU, not on {ranks} ranks")
    micro_batch, rest = divmod(training.batch_size, ranks * training.accumulation_steps)
    if rest or not micro_batch:
        raise UserError(
            f"--batch-size {training.batch_size}: is not a multiple of {ranks * training.accumulation_steps} "
            f"(ranks: {ranks}, --accumulation-steps {training.accumulation_steps})"
        )
    if contrast.mechanism != "moco-v3" and contrast.bn_group and micro_batch % contrast.bn_group:
        raise UserError(
            f"--batch-size {training.batch_size}: a rank's micro-batch of {micro_batch} images is not a multiple of "
            f"--bn-group {contrast.bn_group}: change one of them"
        )


def to_dict(config: Config) -> dict[str, Any]:
    """Plain dicts, lists, numbers and strings, as config.yaml holds them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()} | {
        "training": {**asdict(config.training), "milestones": list(config.training.milestones)}
    }


def from_dict(values: dict[str, Any], where: str) -> Config:
    """The inverse of `to_dict`. Raises UserError that begins with `where` for what this version does not know."""
    config = Config()
    for room, content in values.items():
        if isinstance(content, dict):
            content = {RENAMED.get((room, name), name): value for name, value in content.items()}
        default = getattr(config, room, None)
        if default is None:
            raise UserError(f"{where}: no such group of options: {room}")
        if not is_dataclass(default):
            if not isinstance(content, type(default)):
                raise UserError(f"{where}: {room}: {content!r} is not of type {type(default).__name__}")
            config = replace(config, **{room: content})
            continue
        if not isinstance(content, dict):
            raise UserError(f"{where}: {room}: is not a group of options")
        known = {f.name for f in fields(default)}
        if unknown := set(content) - known:
            raise UserError(f"{where}: no such option in {room}: {', '.join(sorted(unknown))}")
        content = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        hints = get_type_hints(type(default))
        for name, value in content.items():
            if not _fits(value, hints[name]):
                raise UserError(
                    f"{where}: {room}: {name}: {value!r} is not of type {_spelled(hints[name])}{_advice(value)}"
                )
        config = replace(config, **{room: replace(default, **content)})  # type: ignore[arg-type, type-var]
    return config


RENAMED = {
    ("contrast", "momentum"): "key_momentum",
    ("data", "lanes"): "shard_streams",
    ("training", "accumulate"): "accumulation_steps",
    ("compute", "resident_mb"): "cache_mb",
}
"""Options that 0.1.0 and what came before 0.2.0 spelled otherwise, by group and name."""


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that was read is of an option's type."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is UnionType:
        return any(_fits(value, part) for part in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _advice(value: Any) -> str:
    """YAML reads 3e-2 as text: it wants a point before the e."""
    try:
        return f": write {float(value)!r}" if isinstance(value, str) else ""
    except ValueError:
        return ""


def _spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


AUTO = ("precision", "decoder")
"""Options whose `auto` is decided when a run is started, and stored: the numbers depend on them."""

MAY_CHANGE = {"workers", "device", *(f.name for f in fields(Log))}
"""Options that may be others when a run is continued: the numbers do not depend on them."""


def differences(one: Config, other: Config) -> list[str]:
    """What two runs differ in, in the words of the options: "lr 0.03 -> 0.06". Without those that `MAY_CHANGE`."""
    rows, before, after = [], to_dict(one), to_dict(other)
    for room, content in before.items():
        pairs = content.items() if isinstance(content, dict) else [(room, content)]
        changed = after[room] if isinstance(content, dict) else after
        rows += [
            f"{name} {value} -> {changed[name]}"
            for name, value in pairs
            if value != changed[name] and name not in MAY_CHANGE
        ]
    return rows
