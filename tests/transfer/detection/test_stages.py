"""Single operations against what Detectron2 computed for the same inputs."""

import copy

import pytest
import torch
from torchvision.models import resnet50

from moco.transfer.detection.boxes import ROI_WEIGHTS, RPN_WEIGHTS, decode, encode
from moco.transfer.detection.matcher import match_overlaps
from moco.transfer.detection.names import detectron2_name, from_detectron2, to_detectron2
from moco.transfer.detection.precise_bn import precise_bn
from moco.transfer.detection.roi_heads import levels_of, pool
from moco.transfer.detection.solver import WARMUP_FACTOR, build_sgd, learning_rate
from moco.transfer.detection.structures import build_detector
from tests.transfer.detection.reference_numbers import MODELS, config, detector, inputs, numbers, text

STAGES = numbers("stages")


def of_stages(path):
    """The names right under a path."""
    return sorted({key.split("/")[1] for key in STAGES.arrays if key.startswith(f"{path}/")})


@pytest.mark.parametrize(
    ("key", "weights"), [("rpn_weights_1111", RPN_WEIGHTS), ("roi_weights_10_10_5_5", ROI_WEIGHTS)]
)
def test_coding_of_boxes(key, weights):
    given = STAGES.under("box_transform")
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(encode(given["src"], given["target"], weights), given[f"{key}/get_deltas"], **close)
    deltas = given["deltas_in"] * given[f"{key}/apply_deltas_input_factor"].float()
    torch.testing.assert_close(decode(given["src"], deltas, weights), given[f"{key}/apply_deltas"], **close)


@pytest.mark.parametrize("case", sorted({int(key.split("/")[0]) for key in STAGES.under("matcher")}))
def test_matcher(case):
    given = STAGES.under(f"matcher/{case}")
    for key, arguments in (("rpn", (0.3, 0.7, True)), ("roi", (0.5, 0.5, False))):
        indices, labels = match_overlaps(given["iou"], *arguments)
        assert torch.equal(indices, given[f"{key}_matched_idxs"])
        assert torch.equal(labels, given[f"{key}_labels"].long())


def test_pooling_from_a_pyramid():
    features = list(STAGES.under("fpn_pool/features").values())
    boxes = list(STAGES.under("fpn_pool/boxes").values())
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(pool(features, [4, 8, 16, 32], boxes, 7), STAGES("fpn_pool/out_7"), **close)
    mean = pool(features, [4, 8, 16, 32], boxes, 14).mean(dim=(2, 3))
    torch.testing.assert_close(mean, STAGES("fpn_pool/out_14_mean"), **close)


def test_levels_of_a_pyramid():
    assert torch.equal(levels_of(STAGES("fpn_levels/boxes"), 4), STAGES("fpn_levels/level_minus_2"))


@pytest.mark.parametrize("name", of_stages("cell_anchors"))
def test_cell_anchors_and_strides(name):
    anchors, given = build_full(name).rpn.anchors, STAGES.under(f"cell_anchors/{name}")
    for level, theirs in given.items():
        assert torch.allclose(anchors.get_buffer(f"cell{level}"), theirs, rtol=1e-6)
    assert list(anchors.strides) == STAGES.values(f"anchor_strides/{name}")
    assert len(anchors.strides) == len(given)


@pytest.mark.parametrize("key", [key for key in of_stages("solver") if key.startswith("schedule")])
def test_schedules(key):
    steps, milestones = (STAGES.values(f"solver/{key}/{kind}") for kind in ("iterations", "steps"))
    base, warmup, gamma, factor = (
        STAGES.value(f"solver/{key}/{kind}") for kind in ("base_lr", "warmup_iters", "gamma", "warmup_factor")
    )
    given = STAGES(f"solver/{key}/lr").tolist()
    assert [learning_rate(step, base, milestones, warmup, gamma) for step in steps] == pytest.approx(given, rel=1e-9)
    assert factor == WARMUP_FACTOR
    assert STAGES.value(f"solver/{key}/warmup_method") == "linear"


@pytest.mark.parametrize("name", [name for name in MODELS if name in of_stages("solver")])
def test_optimizer_groups(name):
    model, base = detector(name), config(name)["SOLVER.BASE_LR"]
    names = {id(p): detectron2_name(model, key) for key, p in model.named_parameters()}
    optimizer = build_sgd(model, base)
    groups = optimizer.param_groups
    assert type(optimizer).__name__ == STAGES.value(f"solver/{name}/optimizer")
    assert len(groups) == len({key.split("/")[0] for key in STAGES.under(f"solver/{name}/groups")})
    for number, group in enumerate(groups):
        path = f"solver/{name}/groups/{number}"
        assert {names[id(p)] for p in group["params"]} == set(STAGES.values(f"{path}/params"))
        for key in ("lr", "momentum", "weight_decay", "nesterov", "dampening"):
            assert group[key] == STAGES.arrays[f"{path}/{key}"]
        assert group["lr"] == base * STAGES.value(f"{path}/initial_lr_over_base")


def test_precise_bn_of_detectron2():
    model, (images, targets) = detector("c4_box"), inputs()
    precise_bn(model, [(images, targets), (images[:1], targets[:1]), (images[1:], targets[1:])])
    state = to_detectron2(model)
    theirs = STAGES.under("precise_bn")
    assert set(theirs) == {key for key in state if key.endswith(("running_mean", "running_var"))}
    for key, value in theirs.items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-5)


def test_precise_bn_has_the_variance_of_all_pixels_and_changes_nothing_else():
    layer = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    batches = [torch.randn(n, 3, side, side) * n + side for n, side in ((2, 5), (1, 9), (4, 3))]
    precise_bn(layer, [(batch,) for batch in batches])
    pixels = torch.cat([batch.transpose(0, 1).flatten(1) for batch in batches], dim=1)
    assert torch.allclose(layer[0].running_mean, pixels.mean(dim=1), rtol=1e-5)
    assert torch.allclose(layer[0].running_var, pixels.var(dim=1, correction=0), rtol=1e-5)
    assert int(layer[0].num_batches_tracked) == 0


def build_full(name):
    *_, (logits, _) = text("init")[name]["roi_heads.box_predictor.cls_score.weight"]
    options = {"c4_mask": {"masks": True}, "dc5": {"neck": 0}, "fpn_mask": {"masks": True}}
    return build_detector(name.split("_")[0], resnet50(), logits - 1, **options.get(name, {}))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "dc5" else ()) for name in text("init")]
)
def test_initial_values(name):
    stats = text("init")[name]
    for key, value in to_detectron2(build_full(name)).items():
        if key.endswith("num_batches_tracked"):
            continue
        mean, std, low, high, shape = stats[key]
        assert list(value.shape) == shape, key
        noise = max(std, 1e-12) / value.numel() ** 0.5
        assert abs(float(value.mean()) - mean) <= 7 * noise, key
        assert abs(float(value.std(correction=0)) - std) <= 7 * noise, key
        uniform = std > 0 and high < 1.8 * std
        assert (float(value.max()) < 1.8 * std) == uniform or not std, key
        assert std or float(value.min()) == low, key


@pytest.mark.parametrize("name", MODELS)
def test_names_of_a_converted_checkpoint(name):
    model = detector(name)
    expected = text("checkpoint")[name]
    mine = {detectron2_name(model, key): key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    wanted = {key for key in expected if not key.endswith("num_batches_tracked")}
    assert set(mine) == wanted
    for theirs, key in mine.items():
        assert key.startswith("encoder.") == bool(expected[theirs])
        assert theirs.endswith(expected[theirs])
    state = copy.deepcopy(model.state_dict())
    back = from_detectron2(model, to_detectron2(model))
    assert all(torch.equal(back[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "c4_mask" else ()) for name in MODELS]
)
def test_checkpointing_changes_nothing_but_memory(name):
    results = []
    for checkpointing in (False, True):
        model = detector(name)
        model.checkpointing = checkpointing
        losses = model(*inputs())
        sum(losses.values()).backward()
        results.append((losses, [p.grad for p in model.parameters()], dict(model.named_buffers())))
    (losses, gradients, buffers), (again, gradients_again, buffers_again) = results
    assert all(torch.allclose(losses[key], again[key]) for key in losses)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(gradients, gradients_again, strict=True))
    assert all(torch.equal(buffers[key], buffers_again[key]) for key in buffers)
