"""The configuration of a run: every option with its range. A published default names its source."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

import tyro

from moco.runs.options import Above0, AtLeast0, AtLeast1, Finite, Range, Share, check_ranges, with_options
from moco.runtime.errors import UserError


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
    start_scale: Annotated[float, Range(0.1, 1)] = 1.0
    """Progressive resizing: height and width of the views of the first steps, as a share of --image-size; 1: all views
    have one size."""
    start_share: Annotated[float, Share] = 0.75
    """The share of the steps that are the first."""

    @property
    def start_size(self) -> int:
        """Height and width in pixels of the views of the first steps."""
        return max(1, round(self.start_scale * self.image_size))


@dataclass(frozen=True)
class Encoder:
    """What maps an image to features."""

    encoder: str = "resnet50"
    """resnet18/34/50, tiny, any of them narrower (resnet18w0.25), resnet50w2, resnet50w4, resnext50_32x8d,
    vit_s_16, or any torchvision or timm name."""
    small_stem: bool = False
    """A ResNet's stem for small images: 3x3 without stride, no max-pooling."""
    freeze_patches: bool = False
    """Freeze a ViT's patch projection at its initial weights (random, or those of --init), with a fixed sine-cosine
    position embedding (MoCo v3)."""
    init: str = "random"
    """Weights to start from: random, a run's folder, a file (released checkpoints of MoCo v1, v2, v3 and others),
    torchvision:NAME[:WEIGHTS], timm:NAME, hf:OWNER/NAME, or shapes-cpu or cifar10-cpu, weights that come along."""


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
    """Steps in all, in place of epochs. Schedule, warm-up and --knn-every then count steps too; a recipe's, in epochs,
    are kept at the same share of the run."""
    batch_size: Annotated[int, Range(2)] = 256
    """Images a step, over all ranks and gradient-accumulation steps."""
    accumulation_steps: Annotated[int, AtLeast1] = 1
    """Gradient-accumulation steps: less memory, and the same gradient if BN groups divide the batch of each step."""
    lr: Annotated[float, Above0] = 0.03
    """Peak learning rate."""
    schedule: Literal["step", "cosine", "exponential"] = "step"
    """step: x gamma at each milestone; cosine: to 0; exponential: x gamma every --decay-every."""
    milestones: Annotated[tuple[float, ...], AtLeast0] = (120, 160)
    """Epochs (or steps) at which the step schedule multiplies the learning rate by gamma."""
    gamma: Annotated[float, Above0] = 0.1
    """Factor of the step and exponential schedules."""
    decay_every: Annotated[float, Above0] = 1.0
    """Epochs (or steps) between two decays of the exponential schedule."""
    warmup: Annotated[float, Finite] = 0.0
    """Epochs (or steps) in which the learning rate rises linearly from 0."""
    sgd_momentum: Annotated[float, Range(0, 1, below=True)] = 0.9
    """Momentum of SGD, LARS and Muon."""
    weight_decay: Annotated[float, Finite] = 1e-4
    """Weight decay, on every parameter; in LARS not on biases and normalisation."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of everything random in the run: weights, order of the images, views."""
    optimizer: Literal["sgd", "lars", "adamw", "muon"] = "sgd"
    """sgd (the paper); lars, for large batches on ResNets, or adamw, for ViTs (MoCo v3); muon, whose updates are
    orthogonal, for the best accuracy in few epochs."""


@dataclass(frozen=True)
class BaseCompute:
    """What pre-training and transfer have in common."""

    device: str = "auto"
    """auto, cpu, cuda, mps, xpu, or one of several GPUs: cuda:N."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16: autocast; auto: where the hardware multiplies bf16 natively."""
    channels_last: bool = True
    """Memory format of images and weights: channels_last, which is faster for convolutions."""
    workers: Annotated[int | None, AtLeast0] = None
    """Processes that load images, on each rank; None: up to 8 where there is a GPU, by its cores; on a CPU none, where
    the threads that compute load them too. Images that are cached in memory need none."""


@dataclass(frozen=True)
class Compute(BaseCompute):
    """How a run is computed. Precision and compilation change its results by rounding only, all else does not."""

    decoder: Literal["auto", "cpu", "gpu"] = "auto"
    """Where JPEGs are decoded: by the workers (cpu) or on the GPU; auto: whichever is measured to be faster."""
    cache_mb: Annotated[int, AtLeast0] = 4096
    """A data set of equal-sized images up to this size in MB is cached in memory (the GPU's, if there is one)."""
    compile: bool = False
    """Compile the encoders by torch.compile: takes a minute at the start and gives fewer, larger kernels on a GPU."""
    cuda_graph: bool | None = None
    """Record a step as a CUDA graph, as small images take a GPU less time than launching their kernels; None: on one
    CUDA GPU, unless the encoder is timm's."""


@dataclass(frozen=True)
class Log:
    """What is logged, monitored, evaluated and saved during training."""

    knn_every: Annotated[int, AtLeast0] = 10
    """Epochs (or steps, with --iterations) between two kNN evaluations; 0: none. There is one at the end too."""
    knn_k: Annotated[int, AtLeast1] = 200
    """k of the kNN classifier: the neighbours that vote."""
    knn_temperature: Annotated[float, Above0] = 0.1
    """A vote weighs exp(similarity / temperature): 0.1 for CIFAR, 0.07 for ImageNet (InstDisc)."""
    logger: Literal["tensorboard", "wandb", "mlflow"] = "tensorboard"
    """Where metrics go. TensorBoard's events are always written to the run's folder; wandb or mlflow takes them as well
    (pip install 'momentum-contrast[wandb]', '[mlflow]')."""
    log_every: Annotated[int, AtLeast1] = 10
    """Steps between two lines of metrics.jsonl."""
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
    """Passes over the training images; the learning rate falls to a tenth after 60 % and again after 80 % of them."""
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


def in_steps(config: Config, named: Collection[str]) -> Config:
    """A recipe's options in epochs at the same share of --iterations, but for those that the command line names.

    Args:
        config: with `training.iterations`, and all else still in epochs.
        named: options that the command line names, which stay: they are in steps.
    """
    assert config.training.iterations is not None
    share = config.training.iterations / config.training.epochs
    training, every = config.training, config.log.knn_every
    steps = {
        "warmup": float(round(share * training.warmup)),
        "milestones": tuple(float(round(share * milestone)) for milestone in training.milestones),
        "decay_every": share * training.decay_every,
        "knn_every": max(1, round(share * every)) if every else 0,
    }
    return with_options(config, **{name: value for name, value in steps.items() if name not in named})


AUTO = ("precision", "decoder")
"""Options whose `auto` is decided when a run is started, and stored: the numbers depend on them."""

MAY_CHANGE = {"workers", "device", "cuda_graph", *(f.name for f in fields(Log))}
"""Options that may be others when a run is continued: the numbers do not depend on them."""

GROUPS = (Data, Views, Encoder, Contrast, Training, Log)
"""Those whose options `moco reproduce --set` may change."""
