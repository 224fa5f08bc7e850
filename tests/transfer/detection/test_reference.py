"""Every stage of every structure gives the numbers of Detectron2, from its weights and the images alone.

A stage reads what Detectron2's own stage read (proposals, sampled regions), so that no decision depends on rounding:
decisions are equal, and numbers to 1e-5. Whole passes follow, from images to losses and detections.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moco.transfer.detection import roi_heads, rpn
from moco.transfer.detection.detector import crop
from moco.transfer.detection.names import detectron2_name
from moco.transfer.detection.roi_heads import Regions, detections, match_regions, pool, sample_regions
from moco.transfer.detection.rpn import Limits, match_anchors, sample_anchors
from moco.transfer.detection.sampler import random_order
from moco.transfer.detection.solver import build_sgd, learning_rate
from tests.transfer.detection.reference_numbers import MODELS, THINNING, config, detector, inputs, numbers, sizes

thinned = THINNING.thin
ROWS = THINNING.rows
"""Every how manieth region is compared; of means over space, which are of every 8th, every how manieth of these."""


def pytest_generate_tests(metafunc):
    """Each test for each structure; C4 with masks, whose conv5 runs on every region, takes whole steps when slow."""
    is_step = metafunc.function in (test_three_steps, test_the_seed_draws_what_detectron2_draws)
    slow = [pytest.mark.slow] if is_step else []
    metafunc.parametrize("name", [pytest.param(name, marks=slow if name == "c4_mask" else []) for name in MODELS])


@cache
def rounds_alike():
    """Whether this processor adds up as the one that made the numbers: then features are equal to the last bit.

    It is so with AVX2. Elsewhere the last bits differ, deep heads amplify them, and a ReLU whose input is 0 but for
    rounding passes its gradient or does not.
    """
    model, (images, _) = detector(MODELS[0]), inputs()
    features = model.features(model.batch(images))[0]
    return torch.equal(thinned(features), next(iter(numbers(MODELS[0]).under("train/features").values())))


def tolerance(elsewhere):
    return 1e-5 if rounds_alike() else elsewhere


def close(mine, theirs, rtol=1e-5, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(mine).detach().double(), theirs.double(), rtol=rtol, atol=atol)


def close_losses(mine, theirs, total=None):
    assert mine.keys() == theirs.keys()
    if total is not None:
        close(sum(mine.values()), total, rtol=1e-5, atol=0)
    for key, value in theirs.items():
        close(mine[key], value, rtol=1e-5, atol=0)


def close_outputs(mine, theirs):
    """Relative to the largest: a logit near 0 is a sum of large numbers."""
    close(mine, theirs, atol=tolerance(5e-5) * max(1, float(theirs.abs().max())))


def close_pooled(mine, expected, path):
    assert list(mine.shape) == expected.values(f"{path}/shape")
    close_outputs(thinned(mine[:2].contiguous()), expected(f"{path}/first"))
    close_outputs(mine.mean((2, 3))[:: 8 * ROWS], expected(f"{path}/mean"))


def close_rpn(logits, deltas, features, expected, stage):
    for level, (logit, delta) in enumerate(zip(logits, deltas, strict=True)):
        height, width = features[level].shape[2:]
        raw = (x.unflatten(1, (height, width, -1)).flatten(3).permute(0, 3, 1, 2) for x in (logit, delta))
        for mine, kind in zip(raw, ("logits", "deltas"), strict=True):
            close_outputs(thinned(mine.contiguous()), expected(f"{stage}/{kind}/{level}"))


def same_boxes(mine, theirs):
    """The same boxes and logits, whatever the order of those whose logits are equal but for rounding."""
    close_outputs(mine.logits, theirs["logits"])
    ours, expected = (
        torch.cat([boxes, 100 * logits[:, None]], 1).double()
        for boxes, logits in ((mine.boxes, mine.logits), (theirs["boxes"], theirs["logits"]))
    )
    rows = torch.cdist(expected, ours).argmin(1)
    assert rows.unique().numel() == len(rows) == len(ours)
    close_outputs(mine.boxes[rows], theirs["boxes"])


def saved_regions(name, targets, path, classes):
    """Detectron2's own sample of its own proposals."""
    result, expected = [], numbers(name)
    for image, target in enumerate(targets):
        boxes = torch.cat([expected(f"train/proposals/{image}/boxes"), target.boxes])
        rows = expected(f"{path}/{image}").long()
        kinds = expected(f"{classes}/{image}").long()
        objects = expected(f"train/roi/matched_idxs/{image}").long()[rows]
        result.append(Regions(boxes[rows], kinds, objects, int((kinds < background(name)).sum())))
    return result


def background(name):
    """The class of regions without an object."""
    return config(name)["MODEL.ROI_HEADS.NUM_CLASSES"]


def gradients(model):
    return {detectron2_name(model, k): p.grad.double() for k, p in model.named_parameters() if p.grad is not None}


def close_gradients(model, expected, path):
    """Norms, relative. A gradient that is 0 but for rounding, as of a weight before BN, to a share of the largest."""
    names, mine = expected.text("param_names"), gradients(model)
    assert mine.keys() == set(names) - set(expected.text("train/grad_none"))
    reference = expected(f"{path}/grad_norm")
    norms = torch.stack([mine[key].norm() for key in names])
    close(norms, reference, rtol=tolerance(2e-3), atol=float(reference.max()) * tolerance(2e-3) / 100)
    return [mine[key] for key in names]


@cache
def trained(name):
    """A step's forward and backward pass on Detectron2's sample, and what its parts read and gave."""
    model, (images, targets) = detector(name), inputs()
    seen = SimpleNamespace(model=model, targets=targets)

    def keep(key):
        return lambda _, given, found: setattr(seen, key, (given[0], found))

    hooks = [model.box_predictor.register_forward_hook(keep("predictor"))]
    hooks += [model.mask_head.register_forward_hook(keep("mask"))] if model.mask_head else []
    hooks += [model.extra_norm.register_forward_hook(keep("res5"))] if name.startswith("c4") else []
    seen.features = model.features(model.batch(images))
    seen.anchors = model.rpn.anchors(seen.features)
    seen.logits, seen.deltas = model.rpn(seen.features)
    seen.losses = model.rpn.losses(
        torch.cat(seen.anchors), torch.cat(seen.logits, 1), torch.cat(seen.deltas, 1), targets, model.order
    )
    seen.regions = saved_regions(name, targets, "train/sampled_idxs", "train/roi/sampled_gt_classes")
    seen.losses |= model.region_losses(seen.features, seen.regions, targets)
    sum(seen.losses.values()).backward()
    for hook in hooks:
        hook.remove()
    return seen


def test_images_are_normalised_and_padded(name):
    """C4's and DC5's batches are the FPN's without its padding to a multiple of 32."""
    stages, model = numbers("stages"), trained(name).model
    batch, theirs = model.batch(inputs()[0]), stages("inputs/batch_divisor32")
    if name != "fpn_mask":
        shape = stages.values("inputs/batch_divisor0_shape")
        assert list(batch.shape) == shape
        theirs = theirs[..., : shape[3]]
    assert torch.equal(batch[:, :, :: -(-batch.shape[2] // theirs.shape[2])], theirs)
    assert torch.equal(model.mean.flatten(), stages("inputs/pixel_mean"))
    assert torch.equal(model.std.flatten(), stages("inputs/pixel_std"))


def test_settings_that_these_images_do_not_show(name):
    """Of the limits before NMS, C4 and DC5 have fewer anchors than the training one."""
    model, cfg = trained(name).model, config(name)
    for limits, phase in ((model.rpn.training_limits, "TRAIN"), (model.rpn.limits, "TEST")):
        assert limits.before_nms == cfg[f"MODEL.RPN.PRE_NMS_TOPK_{phase}"]
        assert limits.after_nms == cfg[f"MODEL.RPN.POST_NMS_TOPK_{phase}"]
    assert cfg["MODEL.RPN.BATCH_SIZE_PER_IMAGE"] == rpn.SAMPLED
    assert list(rpn.OVERLAP) == cfg["MODEL.RPN.IOU_THRESHOLDS"]
    assert cfg["MODEL.RPN.NMS_THRESH"] == rpn.NMS
    assert model.sampled_regions == cfg["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"]
    assert model.beta == cfg["MODEL.RPN.SMOOTH_L1_BETA"] == cfg["MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA"]
    assert cfg["MODEL.ROI_HEADS.POSITIVE_FRACTION"] == roi_heads.FOREGROUND
    assert cfg["MODEL.ROI_HEADS.IOU_THRESHOLDS"] == [roi_heads.MIN_OVERLAP]
    assert cfg["MODEL.ROI_HEADS.SCORE_THRESH_TEST"] == roi_heads.MIN_SCORE
    assert cfg["MODEL.ROI_HEADS.NMS_THRESH_TEST"] == roi_heads.NMS
    assert cfg["TEST.DETECTIONS_PER_IMAGE"] == roi_heads.DETECTIONS


def test_features_anchors_and_what_the_rpn_gives(name):
    seen, expected = trained(name), numbers(name)
    for mine, theirs in zip(seen.features, expected.under("train/features").values(), strict=True):
        close_outputs(thinned(mine), theirs)
    for level, anchor in enumerate(seen.anchors):
        assert torch.equal(thinned(anchor), expected(f"train/anchors/{level}"))
    close_rpn(seen.logits, seen.deltas, seen.features, expected, "train")


def test_anchors_are_matched_and_sampled(name):
    seen, expected = trained(name), numbers(name)
    for image, target in enumerate(seen.targets):
        indices, labels = match_anchors(torch.cat(seen.anchors), target)
        assert torch.equal(indices, expected("train/rpn/matched_idxs")[image].long())
        assert torch.equal(labels, expected("train/rpn/matched_labels")[image].long())
        sampled = sample_anchors(labels, seen.model.order)
        assert torch.equal(sampled, expected("train/rpn/sampled_labels")[image].long())


def test_proposals(name):
    seen, expected = trained(name), numbers(name)
    proposals = seen.model.rpn.propose(seen.anchors, seen.logits, seen.deltas, sizes())
    for image, one in enumerate(proposals):
        same_boxes(one, expected.under(f"train/proposals/{image}"))


def test_proposals_are_matched_and_sampled(name):
    expected, (_, targets) = numbers(name), inputs()
    for image, target in enumerate(targets):
        proposals = expected(f"train/proposals/{image}/boxes")
        objects, labels = match_regions(torch.cat([proposals, target.boxes]), target)
        assert torch.equal(objects, expected(f"train/roi/matched_idxs/{image}").long())
        assert torch.equal(labels, expected(f"train/roi/matched_labels/{image}").long())
        regions, rows = sample_regions(proposals, target, background(name), trained(name).model.order)
        saved = trained(name).regions[image]
        assert torch.equal(rows, expected(f"train/sampled_idxs/{image}").long())
        assert torch.equal(regions.classes, saved.classes)
        assert regions.foreground == saved.foreground
        assert torch.equal(regions.boxes, saved.boxes)
        assert torch.equal(regions.boxes, expected(f"train/sampled_boxes/{image}"))
        foreground = slice(regions.foreground)
        objects = target.boxes[regions.objects[foreground]]
        assert torch.equal(objects, expected(f"train/sampled_gt_boxes/{image}")[foreground])


def test_what_the_heads_give(name):
    seen, expected = trained(name), numbers(name)
    boxes = [each.boxes for each in seen.regions]
    close_pooled(pooled(seen.model, seen.features, boxes), expected, "train/pooled")
    vectors, (logits, deltas) = seen.predictor
    if name.startswith("c4"):
        close_pooled(seen.res5[1].detach(), expected, "train/head")
        close_outputs(vectors[:: 8 * ROWS], expected("train/head/mean"))
    else:
        close_outputs(vectors[:: 8 * max(1, ROWS // 4)], expected("train/head/vectors"))
    close_outputs(logits[::ROWS], expected("train/class_logits"))
    close_outputs(deltas.flatten(1)[::ROWS], expected("train/box_deltas"))


def pooled(model, features, boxes):
    with torch.no_grad():
        if name_of(model) == "FPN":
            return model.regions(features, boxes)
        return pool(features, [model.stride], boxes, 14 if name_of(model) == "C4" else 7)


def name_of(model):
    return type(model).__name__


def test_masks(name):
    seen, expected = trained(name), numbers(name)
    if "train/mask/targets" not in expected.arrays:
        return
    regions, logits = seen.mask
    classes = expected("train/mask/gt_class")
    assert list(logits.shape) == expected.values("train/mask/shape")
    masks = [crop(target, each, logits.shape[-1]) for target, each in zip(seen.targets, seen.regions, strict=True)]
    assert np.array_equal(np.packbits(torch.cat(masks).numpy()), expected.arrays["train/mask/targets"])
    assert torch.equal(torch.cat([each.classes[: each.foreground] for each in seen.regions]), classes)
    close_outputs(thinned(logits[torch.arange(len(classes)), classes]), expected("train/mask/logits"))
    close_outputs(logits.mean((2, 3)), expected("train/mask/logits_mean"))
    if name == "fpn_mask":
        close_pooled(regions, expected, "train/mask/pooled")


def test_losses_gradients_and_statistics(name):
    seen, expected = trained(name), numbers(name)
    close_losses(seen.losses, expected.under("train/losses"), expected("train/loss_sum"))
    reference = expected("train/grad_norm")
    for mine, norm, total in zip(
        close_gradients(seen.model, expected, "train"), reference, expected("train/grad_sum"), strict=True
    ):
        # Of numbers of both signs: relative to what the norm allows their sum to be.
        largest = float(norm) * mine.numel() ** 0.5 + float(reference.max()) / 100
        close(mine.sum(), total, rtol=0, atol=tolerance(2e-3) * largest)
    own = gradients(seen.model)
    for key, values in expected.under("train/grad_full").items():
        largest = float(values.abs().max()) + float(reference.max()) / 100
        close(thinned(own[key]), values, rtol=0, atol=tolerance(2e-3) * largest)
    state = {detectron2_name(seen.model, k): v for k, v in seen.model.state_dict().items()}
    after = expected.under("train/bn_after")
    assert {key for key in state if key.endswith(("running_mean", "running_var", "tracked"))} == set(after)
    for key, value in after.items():
        close(state[key], value)


def test_a_whole_pass(name):
    close_losses(detector(name)(*inputs()), numbers(name).under("train/losses"))


def test_an_image_without_objects(name):
    close_losses(detector(name)(*inputs(empty=True)), numbers(name).under("without_objects"))


def test_bitmaps_in_place_of_polygons(name):
    expected = numbers(name)
    if "bitmask/targets" not in expected.arrays:
        return
    _, targets = inputs(bitmaps=True)
    side = expected.values("train/mask/shape")[-1]
    masks = [crop(target, each, side) for target, each in zip(targets, trained(name).regions, strict=True)]
    assert np.array_equal(np.packbits(torch.cat(masks).numpy()), expected.arrays["bitmask/targets"])
    close_losses(detector(name)(*inputs(bitmaps=True)), expected.under("bitmask/losses"))


def test_the_seed_draws_what_detectron2_draws(name):
    model, (images, targets), expected = detector(name), inputs(), numbers(name)
    features = model.features(model.batch(images))
    anchors = torch.cat(model.rpn.anchors(features))
    torch.manual_seed(expected.value("seeded/seed"))
    for image, target in enumerate(targets):
        labels = sample_anchors(match_anchors(anchors, target)[1], random_order)
        assert torch.equal(labels, expected("seeded/sampled_labels")[image].long())
    for image, target in enumerate(targets):
        _, rows = sample_regions(expected(f"train/proposals/{image}/boxes"), target, background(name), random_order)
        assert torch.equal(rows, expected(f"seeded/sampled_idxs/{image}").long())
    torch.manual_seed(expected.value("seeded/seed"))
    logits, deltas = model.rpn(features)
    losses = model.rpn.losses(anchors, torch.cat(logits, 1), torch.cat(deltas, 1), targets, random_order)
    regions = saved_regions(name, targets, "seeded/sampled_idxs", "seeded/sampled_gt_classes")
    losses |= model.region_losses(features, regions, targets)
    sum(losses.values()).backward()
    close_losses(losses, expected.under("seeded/losses"), expected("seeded/loss_sum"))
    close_gradients(model, expected, "seeded")


def test_three_steps(name):
    model, (images, targets), expected, cfg = detector(name), inputs(), numbers(name), config(name)
    base, decay = cfg["SOLVER.BASE_LR"], cfg["SOLVER.WEIGHT_DECAY"]
    optimizer = build_sgd(model, base, cfg["SOLVER.MOMENTUM"], decay)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    for step in range(len(expected.values("steps3/lr"))):
        rate = learning_rate(step, base, cfg["SOLVER.STEPS"], cfg["SOLVER.WARMUP_ITERS"], cfg["SOLVER.GAMMA"])
        assert rate == pytest.approx(float(expected(f"steps3/lr/{step}")), rel=1e-12)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = model(images, targets)
        close_losses(losses, expected.under(f"steps3/losses/{step}"))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    moved = {detectron2_name(model, k): (v.detach() - before[k]).double() for k, v in model.named_parameters()}
    sizes = {detectron2_name(model, k): float(v.double().norm()) for k, v in before.items()}
    deltas = zip(expected.text("param_names"), expected("steps3/delta_norm"), expected("steps3/delta_sum"), strict=True)
    for key, norm, total in deltas:
        # A step moves a weight by few of its last bits, to which it is rounded each time; from the second step on
        # ReLUs flip, as the weights' last bits differ.
        rounding = 3 * 2**-24 * sizes[key] + float(norm) * 5e-3
        close(moved[key].norm(), norm, rtol=0, atol=rounding)
        close(moved[key].sum(), total, rtol=0, atol=rounding * moved[key].numel() ** 0.5)


@cache
@torch.no_grad()
def evaluated(name):
    """The stages of evaluation, on Detectron2's proposals."""
    model, (images, _), expected = detector(name).eval(), inputs(), numbers(name)
    features = model.features(model.batch(images))
    proposals = [expected(f"eval/proposals/{image}/boxes") for image in range(len(images))]
    logits, deltas = model.box_predictor(model.box_vectors(model.regions(features, proposals)))
    found = detections(logits, deltas, proposals, sizes())
    return SimpleNamespace(
        model=model, features=features, proposals=proposals, logits=logits, deltas=deltas, found=found
    )


@torch.no_grad()
def test_features_and_proposals_in_evaluation(name):
    seen, expected = evaluated(name), numbers(name)
    theirs = expected.under("eval/features")
    for mine, key in zip(seen.features, expected.under("train/features"), strict=True):
        if key in theirs:
            close_outputs(thinned(mine), theirs[key])
        else:
            close_outputs(mine.mean((2, 3)), expected(f"eval/features_mean/{key}"))
    logits, deltas = seen.model.rpn(seen.features)
    close_rpn(logits, deltas, seen.features, expected, "eval")
    anchors = seen.model.rpn.anchors(seen.features)
    for image, one in enumerate(seen.model.rpn.propose(anchors, logits, deltas, sizes())):
        same_boxes(one, expected.under(f"eval/proposals/{image}"))
    limits, seen.model.rpn.limits = (
        seen.model.rpn.limits,
        Limits(expected.value("limits/before"), expected.value("limits/after")),
    )
    for image, one in enumerate(seen.model.rpn.propose(anchors, logits, deltas, sizes())):
        same_boxes(one, expected.under(f"limits/proposals/{image}"))
    seen.model.rpn.limits = limits


@torch.no_grad()
def test_what_the_heads_give_in_evaluation(name):
    seen, expected = evaluated(name), numbers(name)
    close_pooled(pooled(seen.model, seen.features, seen.proposals), expected, "eval/pooled")
    close_outputs(seen.logits[::ROWS], expected("eval/class_logits"))
    close_outputs(seen.deltas.flatten(1)[::ROWS], expected("eval/box_deltas"))
    for image, found in enumerate(seen.found):
        theirs = expected.under(f"eval/raw/{image}")
        assert torch.equal(found.classes, theirs["classes"])
        close_outputs(found.scores, theirs["scores"])
        close_outputs(found.boxes, theirs["boxes"])
    if "eval/mask/logits" in expected.arrays:
        logits = seen.model.mask_head(seen.model.mask_regions(seen.features, [each.boxes for each in seen.found]))
        classes = torch.cat([each.classes for each in seen.found])
        assert list(logits.shape) == expected.values("eval/mask/shape")
        close_outputs(thinned(logits[torch.arange(len(classes)), classes]), expected("eval/mask/logits"))
        close_outputs(logits.mean((2, 3)), expected("eval/mask/logits_mean"))
        for image, masks in enumerate(seen.model.mask_probabilities(seen.features, seen.found)):
            close_outputs(masks.mean((1, 2)), expected(f"eval/raw/{image}/mask_probs_mean"))


@torch.no_grad()
def test_detections(name):
    model, (images, _), expected = detector(name).eval(), inputs(), numbers(name)
    for image, found in enumerate(model(images, sizes=sizes("output_sizes_hw"))):
        theirs = expected.under(f"eval/post/{image}")
        assert torch.equal(found.classes, theirs["classes"])
        close_outputs(found.scores, theirs["scores"])
        close_outputs(found.boxes, theirs["boxes"])
        if "mask_area" in theirs:
            assert list(found.masks.shape[1:]) == expected.values(f"eval/post/{image}/size_hw")
            # A pixel whose probability is 0.5 but for rounding may change sides.
            assert (found.masks.sum(dim=(1, 2)) - theirs["mask_area"]).abs().max() <= 2
