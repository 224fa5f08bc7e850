"""What a run is made of. A default that is published names its source; a recipe fills in the rest."""

import ast
import difflib
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from moco.errors import UserError


@dataclass(frozen=True)
class Data:
    """Where images come from."""

    source: Annotated[str, tyro.conf.arg(name="data", metavar="SOURCE")] = "shapes"
    """shapes, cifar10:PATH, folder:PATH, shards:PATTERN, hf:NAME, ... (moco data --help lists them)."""
    download: Annotated[bool, tyro.conf.arg(name="data.download")] = False
    """Fetch the data set if PATH does not hold it (cifar10, cifar100, stl10, imagenette)."""
    max_bad: float = 0.01
    """The share of unreadable images above which the run stops."""
    lanes: int = 64
    """Streams in which remote shards are read, shared by all ranks and their workers."""
    per_class: int | None = None
    """Train on the first so many images of each class alone, for a quick look; None: on all."""


@dataclass(frozen=True)
class Views:
    """The pretext task: what a random view of an image is."""

    views: str = "v2"
    """v1 (He et al. 2020), v2 (Chen et al. 2020), v3 (two kinds, as BYOL's), v3-vit (v3, crops from 8 %), simclr, cifar
    (v2 without blur) or shapes (cifar, larger crops)."""
    image_size: int = 224
    """Height and width of a view in pixels."""


@dataclass(frozen=True)
class Encoder:
    """What maps an image to features."""

    encoder: str = "resnet50"
    """resnet18/34/50, resnet50w2, resnet50w4, resnext50_32x8d, tiny, vit_s_16, or any torchvision or timm name."""
    small_stem: bool = False
    """A ResNet's stem for small images: 3x3 without stride, no max-pooling."""
    freeze_patches: bool = False
    """A ViT's patch projection stays as it was drawn, and its positions are fixed sines and cosines (MoCo v3)."""


@dataclass(frozen=True)
class Contrast:
    """Section 3 of the paper; the defaults are those of section 4."""

    dim: int = 128
    """Dimensions of queries and keys."""
    queue_size: int = 65536
    """K, the keys in the dictionary."""
    momentum: float = 0.999
    """m of the momentum update (Eq. 2); in moco-v3 that of the first step."""
    temperature: float = 0.07
    """tau of InfoNCE (Eq. 1)."""
    head: Literal["linear", "mlp"] = "linear"
    """linear (v1) or mlp, of 2 layers (v2)."""
    symmetric: bool = False
    """Each view is also the other's query."""
    bn_group: int | None = 32
    """BN statistics are taken over groups of so many images (32 in the paper, a GPU each); None: over a rank's. In
    moco-v3 they are always taken over the whole batch of all ranks, and nothing is shuffled."""
    shuffle: bool = True
    """Keys are encoded in other BN groups than queries (shuffling BN)."""
    mechanism: Literal["moco", "end-to-end", "memory-bank", "moco-v3"] = "moco"
    """Fig. 2: moco; end-to-end: the mini-batch is the dictionary; memory-bank: K vectors drawn from one per image.
    moco-v3: MoCo v3, whose keys are those of the mini-batch, symmetric, with heads of its own and m rising to 1."""
    bank_momentum: float = 0.5
    """Of an image's vector in the memory bank."""
    hidden: int = 4096
    """Width of the hidden layers of moco-v3's projector and predictor."""


@dataclass(frozen=True)
class Training:
    """The loop; the defaults are those of section 4 (ImageNet)."""

    epochs: int = 200
    """How often every image is seen."""
    iterations: int | None = None
    """Steps in all, in place of epochs. Schedule, warm-up and --knn-every then count steps too."""
    batch_size: int = 256
    """Images a step, over all ranks and parts."""
    accumulate: int = 1
    """A step's batch goes through the encoder in so many parts: less memory, the same gradient (given BN groups)."""
    lr: float = 0.03
    """Learning rate at its highest."""
    schedule: Literal["step", "cosine", "exponential"] = "step"
    """step: x gamma at each milestone; cosine: to 0; exponential: x gamma every `decay_every`."""
    milestones: tuple[float, ...] = (120, 160)
    """Epochs (or steps) at which the step schedule falls."""
    gamma: float = 0.1
    """Factor of the step and exponential schedules."""
    decay_every: float = 1.0
    """Epochs (or steps) between two falls of the exponential schedule."""
    warmup: float = 0.0
    """Epochs (or steps) in which the learning rate rises linearly from 0."""
    sgd_momentum: float = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: float = 1e-4
    """Weight decay, on every parameter; in LARS not on biases and normalisation."""
    seed: int = 0
    """All that is random in the run is a function of it."""
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    """sgd (the paper); lars, for large batches on ResNets, or adamw, for ViTs (MoCo v3)."""


@dataclass(frozen=True)
class Compute:
    """How the same numbers are reached; precision and compilation change their last digits, the others nothing."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16: autocast; auto: where the hardware multiplies bf16 natively."""
    channels_last: bool = True
    """Memory format of images and weights, the faster for convolutions."""
    workers: int = 2
    """Processes that read images which do not fit into memory."""
    decoder: Literal["auto", "cpu", "gpu"] = "auto"
    """Where JPEGs are decoded: by the workers, or on the GPU; auto: on a GPU whichever is faster, as measured."""
    resident_mb: int = 4096
    """A data set of equal-sized images up to this size in MB lies on the device whole."""
    compile: bool = False
    """Compile the encoders (torch.compile): a minute at the start, on a GPU fewer and larger kernels after it."""
    cuda_graph: bool = False
    """Record a step as one CUDA graph, on one GPU: for small images, which take longer to launch than to work on."""


@dataclass(frozen=True)
class Log:
    """What is told of a run while it goes, and what is kept."""

    knn_every: int = 10
    """Epochs (or steps, with --iterations) between two kNN evaluations; 0: none. There is one at the end too."""
    knn_k: int = 200
    """Neighbours that vote."""
    knn_temperature: float = 0.1
    """A vote weighs exp(similarity / temperature): 0.1 for CIFAR, 0.07 for ImageNet (InstDisc)."""
    log_every: int = 10
    """Steps between two lines of metrics."""
    monitor_every: int | None = None
    """Steps between two looks of the monitor; None: a hundredth of the run, at least 100; 0: none."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints; there is one at the end, and when the run is told to stop."""
    keep_checkpoints: int = 3
    """How many of the last checkpoints are kept."""


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

    epochs: int = 100
    """The learning rate falls to a tenth after 60 and 80 of 100 epochs, and in proportion."""
    batch_size: int = 256
    """Images a step, over all ranks."""
    lr: float = 30.0
    """Learning rate at the start."""
    weight_decay: float = 0.0
    """Weight decay."""
    cached: bool = False
    """Compute the features of centre crops once and train on them: a quick answer, without the augmented crops."""
    seed: int = 0
    """Of the crops and their order."""


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
        near = difflib.get_close_matches(name, hints, n=1)
        raise UserError(f"{text!r}: no such option" + (f": did you mean {near[0]}?" if near else ""))
    words = {"none": None, "true": True, "false": False}
    try:
        value = words[spelled.lower()] if spelled.lower() in words else ast.literal_eval(spelled)
    except (ValueError, SyntaxError):
        value = spelled
    if not _fits(value, hints[name]):
        raise UserError(f"{text!r}: is not of type {_spelled(hints[name])}")
    return name, value


def guessing(config: Config) -> float:
    """The loss (Eq. 1) of a model that knows nothing, and guesses among the positive and the negatives, in nats."""
    contrast = config.contrast
    if contrast.mechanism in ("moco", "memory-bank"):
        return math.log(contrast.queue_size + 1)
    in_batch = math.log(config.training.batch_size)
    # Its loss is of both views, each scaled by 2 tau.
    return 4 * contrast.temperature * in_batch if contrast.mechanism == "moco-v3" else in_batch


def keys_per_step(config: Config) -> int:
    """How many keys come into MoCo's queue at a step."""
    return config.training.batch_size * (2 if config.contrast.symmetric else 1)


def require_all(rules: list[tuple[bool, str]]) -> None:
    """Raises UserError with the message of the first rule that does not hold."""
    for holds, message in rules:
        if not holds:
            raise UserError(message)


def check(config: Config, ranks: int = 1, images: int | None = None) -> None:
    """Raises UserError, naming option and range, for the first number that cannot work, alone or with the others.

    Args:
        images: how many there are to train on, once that is known.
    """
    contrast, training, log = config.contrast, config.training, config.log
    rules = [
        (contrast.dim >= 1, f"--dim {contrast.dim}: at least 1"),
        (contrast.queue_size >= 1, f"--queue-size {contrast.queue_size}: at least 1"),
        (0 <= contrast.momentum <= 1, f"--momentum {contrast.momentum}: in 0..1"),
        (contrast.temperature > 0, f"--temperature {contrast.temperature}: above 0"),
        (contrast.bn_group is None or contrast.bn_group >= 2, f"--bn-group {contrast.bn_group}: at least 2, or None"),
        (0 <= contrast.bank_momentum <= 1, f"--bank-momentum {contrast.bank_momentum}: in 0..1"),
        (contrast.hidden >= 1, f"--hidden {contrast.hidden}: at least 1"),
        (
            contrast.mechanism not in ("end-to-end", "moco-v3") or training.accumulate == 1,
            f"--accumulate {training.accumulate}: --mechanism {contrast.mechanism} takes the mini-batch as the "
            "dictionary, whole",
        ),
        (
            contrast.mechanism != "memory-bank" or not contrast.symmetric,
            "--symmetric: --mechanism memory-bank has one view of an image: --no-symmetric",
        ),
        (config.views.image_size >= 1, f"--image-size {config.views.image_size}: at least 1"),
        (training.epochs >= 1, f"--epochs {training.epochs}: at least 1"),
        (training.batch_size >= 2, f"--batch-size {training.batch_size}: at least 2"),
        (training.accumulate >= 1, f"--accumulate {training.accumulate}: at least 1"),
        (0 < training.lr < math.inf, f"--lr {training.lr}: above 0, and finite"),
        (training.gamma > 0, f"--gamma {training.gamma}: above 0"),
        (training.iterations is None or training.iterations >= 1, f"--iterations {training.iterations}: at least 1"),
        (training.decay_every > 0, f"--decay-every {training.decay_every}: above 0"),
        (training.warmup >= 0, f"--warmup {training.warmup}: at least 0"),
        (0 <= training.sgd_momentum < 1, f"--sgd-momentum {training.sgd_momentum}: in 0..1, 1 excluded"),
        (training.weight_decay >= 0, f"--weight-decay {training.weight_decay}: at least 0"),
        (0 <= training.seed < 2**63, f"--seed {training.seed}: in 0..2^63 - 1"),
        (0 <= config.data.max_bad <= 1, f"--max-bad {config.data.max_bad}: in 0..1"),
        (config.data.lanes >= 1, f"--lanes {config.data.lanes}: at least 1"),
        (
            config.data.per_class is None or config.data.per_class >= 1,
            f"--per-class {config.data.per_class}: at least 1",
        ),
        (config.compute.workers >= 0, f"--workers {config.compute.workers}: at least 0"),
        (log.knn_every >= 0, f"--knn-every {log.knn_every}: at least 0"),
        (log.knn_k >= 1, f"--knn-k {log.knn_k}: at least 1"),
        (log.knn_temperature > 0, f"--knn-temperature {log.knn_temperature}: above 0"),
        (log.log_every >= 1, f"--log-every {log.log_every}: at least 1"),
        (log.monitor_every is None or log.monitor_every >= 0, f"--monitor-every {log.monitor_every}: at least 0"),
        (log.checkpoint_minutes >= 0, f"--checkpoint-minutes {log.checkpoint_minutes}: at least 0"),
        (log.keep_checkpoints >= 1, f"--keep-checkpoints {log.keep_checkpoints}: at least 1"),
    ]
    require_all(rules)
    if images is not None and images < training.batch_size:
        raise UserError(f"--batch-size {training.batch_size}: the data set has only {images} training images")
    if config.compute.cuda_graph and ranks > 1:
        raise UserError(f"--cuda-graph: a step is recorded on one GPU, not on {ranks} ranks")
    part, rest = divmod(training.batch_size, ranks * training.accumulate)
    if rest or not part:
        raise UserError(
            f"--batch-size {training.batch_size} does not divide into {ranks} rank(s) x {training.accumulate} part(s)"
        )
    if contrast.mechanism != "moco-v3" and contrast.bn_group and part % contrast.bn_group:
        raise UserError(
            f"--batch-size {training.batch_size}: {part} images go through the encoder at once, which does not divide "
            f"into BN groups of {contrast.bn_group}: change --batch-size or --bn-group"
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
        default = getattr(config, room, None)
        if default is None:
            raise UserError(f"{where}: no such part of a configuration: {room}")
        if not is_dataclass(default):
            if not isinstance(content, type(default)):
                raise UserError(f"{where}: {room}: {content!r} is not of type {type(default).__name__}")
            config = replace(config, **{room: content})
            continue
        if not isinstance(content, dict):
            raise UserError(f"{where}: {room} holds no options")
        known = {f.name for f in fields(default)}
        if unknown := set(content) - known:
            raise UserError(f"{where}: no such option in {room}: {', '.join(sorted(unknown))}")
        content = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        hints = get_type_hints(type(default))
        for name, value in content.items():
            if not _fits(value, hints[name]):
                raise UserError(f"{where}: {room}: {name}: {value!r} is not of type {_spelled(hints[name])}")
        config = replace(config, **{room: replace(default, **content)})  # type: ignore[arg-type, type-var]
    return config


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


def _spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


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
