"""What a run is made of: written and read back, compared, and refused in the words of the option that is wrong."""

import re
from dataclasses import replace

import pytest
import yaml

from moco.runs.config import MAY_CHANGE, Config, Contrast, Training, check, in_steps
from moco.runs.options import differences, from_dict, nearest_option, to_dict, with_options
from moco.runs.recipes.recipes import RECIPES
from moco.runtime.errors import UserError


def changed(room: str, **values: object) -> Config:
    config = Config()
    return replace(config, **{room: replace(getattr(config, room), **values)})


@pytest.mark.parametrize("name", RECIPES)
def test_through_yaml_and_back(name):
    config = RECIPES[name].config
    again = from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config))), "here", Config())
    assert again == config
    assert differences(again, config, MAY_CHANGE) == []


def test_every_value_that_is_not_the_default_comes_back():
    config = Config(
        recipe="mine",
        contrast=Contrast(queue_size=48, temperature=0.1, head="mlp", symmetric=True, bn_group=None, shuffle=False),
        training=Training(lr=1e-7, milestones=(1, 2.5), schedule="exponential", seed=3),
    )
    again = from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config))), "here", Config())
    assert again == config
    assert isinstance(again.training.milestones, tuple)


def test_differences_are_named_by_option():
    one = Config(recipe="a")
    other = replace(one, recipe="b", training=replace(one.training, lr=0.06, milestones=(1, 2)))
    assert differences(one, other, MAY_CHANGE) == [
        "recipe a -> b",
        "lr 0.03 -> 0.06",
        "milestones [120, 160] -> [1, 2]",
    ]


OUT_OF_RANGE = [
    ("contrast", "queue_size", [0, -1]),
    ("contrast", "dim", [0, -128]),
    ("contrast", "temperature", [0, -0.07, float("nan")]),
    ("contrast", "key_momentum", [-0.1, 1.01, float("nan")]),
    ("contrast", "bn_group", [0, 1, -8]),
    ("contrast", "hidden", [0]),
    ("views", "image_size", [0]),
    ("training", "epochs", [0]),
    ("training", "batch_size", [1, 0, -256]),
    ("training", "accumulation_steps", [0]),
    ("training", "lr", [0, -1, float("nan")]),
    ("training", "gamma", [0]),
    ("training", "decay_every", [0]),
    ("training", "warmup", [-1]),
    ("training", "sgd_momentum", [1, -0.1]),
    ("training", "weight_decay", [-1e-4]),
    ("training", "seed", [-1, 2**63]),
    ("data", "max_bad", [-0.1, 1.1]),
    ("compute", "workers", [-1]),
    ("log", "knn_every", [-1]),
    ("log", "knn_k", [0]),
    ("log", "knn_temperature", [0]),
    ("log", "log_every", [0]),
    ("log", "checkpoint_minutes", [-1]),
    ("log", "keep_checkpoints", [0]),
]


@pytest.mark.parametrize(
    ("room", "name", "value"), [(room, name, value) for room, name, values in OUT_OF_RANGE for value in values]
)
def test_a_number_out_of_range_names_its_option_and_the_value(room, name, value):
    with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} {value}: ") as caught:
        check(changed(room, **{name: value}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        changed("contrast", key_momentum=0),
        changed("contrast", key_momentum=1),
        changed("contrast", queue_size=1, dim=1),
        changed("contrast", queue_size=65537),
        changed("log", knn_every=0, checkpoint_minutes=0),
        changed("training", accumulation_steps=8),
        changed("training", optimizer="lars"),
        Config(contrast=Contrast(mechanism="moco-v3"), training=Training(batch_size=250)),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(config):
    check(config)


@pytest.mark.parametrize(
    ("batch_size", "steps", "ranks", "bn_group", "message"),
    [
        (250, 1, 1, 32, "--batch-size 250: a rank's micro-batch of 250 images .* --bn-group 32"),
        (256, 16, 1, 32, "--batch-size 256: a rank's micro-batch of 16 images .* --bn-group 32"),
        (256, 1, 16, 32, "--batch-size 256: a rank's micro-batch of 16 images .* --bn-group 32"),
        (256, 1, 3, None, r"--batch-size 256: is not a multiple of 3 \(ranks: 3, --accumulation-steps 1\)"),
        (256, 3, 1, None, r"--batch-size 256: is not a multiple of 3 \(ranks: 1, --accumulation-steps 3\)"),
        (4, 8, 1, None, r"--batch-size 4: is not a multiple of 8 \(ranks: 1, --accumulation-steps 8\)"),
    ],
)
def test_a_batch_that_does_not_divide(batch_size, steps, ranks, bn_group, message):
    config = Config(
        contrast=Contrast(bn_group=bn_group), training=Training(batch_size=batch_size, accumulation_steps=steps)
    )
    with pytest.raises(UserError, match=message):
        check(config, ranks)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("momentum", ": key_momentum is m of the key encoder, sgd_momentum that of SGD"),
        ("accumulate", ": did you mean accumulation_steps?"),
        ("resident_mb", ": did you mean cache_mb?"),
        ("tempratur", ": did you mean temperature?"),
        ("zzz", ""),
    ],
)
def test_the_option_that_may_have_been_meant(name, hint):
    names = ["lr", "key_momentum", "sgd_momentum", "accumulation_steps", "cache_mb", "temperature"]
    assert nearest_option(name, names) == hint
    spelled = [f"--{name.replace('_', '-')}" for name in names]
    assert nearest_option(f"--{name.replace('_', '-')}", spelled).count("--") == len(
        re.findall(r"[a-z]+_[a-z]+|temperature", hint)
    )


def test_the_options_of_version_0_1_0_are_read_by_their_names_of_today():
    values = {
        "contrast": {"momentum": 0.5},
        "data": {"lanes": 3},
        "training": {"accumulate": 2},
        "compute": {"resident_mb": 7},
    }
    config = from_dict(values, "config.yaml", Config())
    assert config.contrast.key_momentum == 0.5
    assert config.data.shard_streams == 3
    assert config.training.accumulation_steps == 2
    assert config.compute.cache_mb == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"training": {"optimizer": "adam"}},
            "x.yaml: training: optimizer: 'adam' is not of type Literal['sgd', 'lars', 'adamw', 'muon']",
        ),
        ({"training": {"learning_rate": 1, "lr": 1}}, "x.yaml: no such option in training: learning_rate"),
        ({"optimiser": {}}, "x.yaml: no such group of options: optimiser"),
        ({"training": 3}, "x.yaml: training: is not a group of options"),
        ({"training": None}, "x.yaml: training: is not a group of options"),
        ({"training": {"lr": "3e-2"}}, "x.yaml: training: lr: '3e-2' is not of type float: write 0.03"),
    ],
)
def test_what_this_version_does_not_know_is_refused(values, message):
    with pytest.raises(UserError) as caught:
        from_dict(values, "x.yaml", Config())
    assert str(caught.value) == message


def test_a_recipe_in_epochs_keeps_its_shares_of_a_run_in_steps():
    recipe = Config(training=Training(epochs=200, warmup=5, milestones=(120, 160), decay_every=10, iterations=1000))
    recipe = with_options(recipe, knn_every=50)
    steps = in_steps(recipe, {"milestones"})
    assert (steps.training.warmup, steps.training.decay_every, steps.log.knn_every) == (25, 50, 250)
    assert steps.training.milestones == (120, 160)  # named on the command line: in steps
    assert in_steps(recipe, set()).training.milestones == (600, 800)
    short = with_options(recipe, iterations=1)
    assert (in_steps(short, set()).training.warmup, in_steps(short, set()).log.knn_every) == (0, 1)
    assert in_steps(with_options(recipe, knn_every=0), set()).log.knn_every == 0
