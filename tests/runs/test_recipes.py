"""Recipes: each can run, and the published ones say what was published (shared/paper.md has the sources)."""

import shlex

import pytest

from moco.runs.config import Config, check
from moco.runs.published import PUBLISHED
from moco.runs.recipes.recipes import RECIPES, get_recipe
from moco.runtime.errors import UserError
from moco.views import get_pretext


@pytest.mark.parametrize("name", RECIPES)
def test_each_can_run(name):
    recipe = get_recipe(name)
    check(recipe.config)
    get_pretext(recipe.config.views.views)
    assert recipe.name == name
    assert shlex.split(recipe.command)[:3] == ["moco", "pretrain", name]
    assert recipe.about
    assert recipe.cost
    assert recipe.reaches


def assert_published(config: Config, **rooms: dict[str, object]) -> None:
    for room, values in rooms.items():
        actual = getattr(config, room)
        assert {name: getattr(actual, name) for name in values} == values


SECTION_4 = {
    "lr": 0.03,
    "epochs": 200,
    "batch_size": 256,
    "weight_decay": 1e-4,
    "sgd_momentum": 0.9,
    "accumulation_steps": 1,
}
IMAGENET_DICTIONARY = {"queue_size": 65536, "key_momentum": 0.999, "dim": 128, "bn_group": 32, "shuffle": True}


def test_imagenet_v1_is_section_4_of_the_paper():
    assert_published(
        get_recipe("imagenet-r50-v1").config,
        encoder={"encoder": "resnet50", "small_stem": False},
        views={"views": "v1", "image_size": 224},
        contrast={**IMAGENET_DICTIONARY, "temperature": 0.07, "head": "linear", "symmetric": False},
        training={**SECTION_4, "schedule": "step", "milestones": (120, 160), "gamma": 0.1, "warmup": 0},
        log={"knn_k": 200, "knn_temperature": 0.07},
    )
    assert PUBLISHED["imagenet-r50-v1", "linear"].value == 60.6


def test_imagenet_v2_changes_the_head_the_views_the_schedule_and_the_temperature():
    assert_published(
        get_recipe("imagenet-r50-v2").config,
        encoder={"encoder": "resnet50", "small_stem": False},
        views={"views": "v2", "image_size": 224},
        contrast={**IMAGENET_DICTIONARY, "temperature": 0.2, "head": "mlp", "symmetric": False},
        training={**SECTION_4, "schedule": "cosine", "warmup": 0},
        log={"knn_k": 200, "knn_temperature": 0.07},
    )
    assert PUBLISHED["imagenet-r50-v2", "linear"].value == 67.5


def test_cifar10_is_the_benchmark_of_200_epochs():
    assert_published(
        get_recipe("cifar10-r18").config,
        encoder={"encoder": "resnet18", "small_stem": True},
        views={"views": "cifar", "image_size": 32},
        contrast={"queue_size": 4096, "key_momentum": 0.99, "temperature": 0.1, "symmetric": True, "dim": 128},
        training={
            "lr": 0.06,
            "epochs": 200,
            "batch_size": 128,
            "weight_decay": 5e-4,
            "sgd_momentum": 0.9,
            "schedule": "cosine",
            "warmup": 0,
        },
        log={"knn_k": 200, "knn_temperature": 0.1},
    )
    assert get_pretext("cifar")[0].blur_probability == 0
    assert PUBLISHED["cifar10-r18", "knn"].value == 83.8


V3 = {"mechanism": "moco-v3", "key_momentum": 0.99, "dim": 256, "hidden": 4096}


def test_imagenet_v3_is_the_released_codes_command_of_100_epochs():
    """lr 0.6, weight decay 1e-6, crops from 20 %; the learning rate times batch / 256."""
    assert_published(
        get_recipe("imagenet-r50-v3").config,
        encoder={"encoder": "resnet50", "small_stem": False},
        views={"views": "v3", "image_size": 224},
        contrast={**V3, "temperature": 1.0},
        training={
            "optimizer": "lars",
            "lr": pytest.approx(9.6),
            "epochs": 100,
            "batch_size": 4096,
            "weight_decay": 1e-6,
            "sgd_momentum": 0.9,
            "schedule": "cosine",
            "warmup": 10,
        },
    )
    assert get_pretext("v3")[0].area == (0.2, 1.0)
    assert PUBLISHED["imagenet-r50-v3", "linear"].value == 68.9


def test_imagenet_v3_with_a_vit_is_the_released_codes_command():
    assert_published(
        get_recipe("imagenet-vits-v3").config,
        encoder={"encoder": "vit_s_16", "freeze_patches": True},
        views={"views": "v3-vit", "image_size": 224},
        contrast={**V3, "temperature": 0.2},
        training={
            "optimizer": "adamw",
            "lr": pytest.approx(2.4e-3),
            "epochs": 300,
            "batch_size": 4096,
            "weight_decay": 0.1,
            "schedule": "cosine",
            "warmup": 40,
        },
    )
    assert [pretext.area for pretext in get_pretext("v3-vit")] == [(0.08, 1.0)] * 2
    assert PUBLISHED["imagenet-vits-v3", "linear"].value == 73.2


def test_every_published_figure_belongs_to_a_recipe_and_names_its_source():
    for (recipe, protocol), published in PUBLISHED.items():
        assert recipe in RECIPES
        assert protocol in ("knn", "linear")
        assert published.source


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10-r19", "no recipe named 'cifar10-r19': did you mean cifar10-r18?"),
        ("imagenet-r50v2", "no recipe named 'imagenet-r50v2': did you mean imagenet-r50-v2?"),
        ("zzz", f"no recipe named 'zzz': there are {', '.join(RECIPES)}"),
    ],
)
def test_an_unknown_name_names_the_nearest(name, message):
    with pytest.raises(UserError) as caught:
        get_recipe(name)
    assert str(caught.value) == message
