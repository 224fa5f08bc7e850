"""Every stage of every structure gives the numbers of Detectron2, from its weights and the images alone."""

import numpy as np
import pytest
import torch

from moco.transfer.detection.detector import crop
from moco.transfer.detection.names import detectron2_name
from moco.transfer.detection.roi_heads import match_regions, sample_regions
from moco.transfer.detection.rpn import Limits, match_anchors, sample_anchors
from moco.transfer.detection.sampler import random_order
from moco.transfer.detection.solver import build_sgd, learning_rate
from tests.transfer.detection.reference_numbers import MODELS, detector, inputs, numbers

SIZES = [(160, 208), (128, 176)]
pytestmark = pytest.mark.parametrize("name", MODELS)


def close(mine, theirs, rtol=1e-5, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(mine).double(), theirs.double(), rtol=rtol, atol=atol)


def thinned(values):
    return values.flatten()[::64] if values.numel() > 4000 else values


def close_losses(mine, theirs):
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        close(mine[key], value, rtol=1e-5, atol=0)


def norms(model):
    return {detectron2_name(model, k): p.grad.double().norm() for k, p in model.named_parameters()}


def close_norms(model, reference, name):
    """To 1e-5 relative; a gradient that is 0 but for rounding, as that of a bias before BN, to the largest's 1e-7."""
    mine = torch.stack([norms(model)[key] for key in numbers(name).text("param_names")])
    close(mine, reference, rtol=2e-5, atol=float(reference.max()) * 1e-7)


def test_losses_gradients_and_statistics(name):
    model, (images, targets), expected = detector(name), inputs(), numbers(name)
    losses = model(images, targets)
    sum(losses.values()).backward()
    close_losses(losses, expected.under("losses"))
    close_norms(model, expected("grad_norm"), name)
    state = {detectron2_name(model, k): v for k, v in model.state_dict().items()}
    for key, value in expected.under("bn_after").items():
        close(state[key], value)


def test_each_stage_of_training(name):
    model, (images, targets), expected = detector(name), inputs(), numbers(name)
    features = model.features(model.batch(images))
    for mine, theirs in zip(features, expected.under("features").values(), strict=True):
        close(thinned(mine), theirs)
    anchors = model.rpn.anchors(features)
    logits, deltas = model.rpn(features)
    for level, (anchor, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
        assert torch.equal(thinned(anchor), expected(f"anchors/{level}"))
        height, width = features[level].shape[2:]
        raw = (x.unflatten(1, (height, width, -1)).flatten(3).permute(0, 3, 1, 2) for x in (logit, delta))
        for mine, theirs in zip(raw, (expected(f"logits/{level}"), expected(f"deltas/{level}")), strict=True):
            close(thinned(mine.contiguous()), theirs, rtol=1e-4)
    for image, target in enumerate(targets):
        indices, labels = match_anchors(torch.cat(anchors), target)
        assert torch.equal(indices, expected("rpn/matched_idxs")[image].long())
        assert torch.equal(labels, expected("rpn/matched_labels")[image].long())
        assert torch.equal(sample_anchors(labels, model.order), expected("rpn/sampled_labels")[image].long())
    proposals = model.rpn.propose(anchors, logits, deltas, SIZES)
    sampled = []
    for image, (one, target) in enumerate(zip(proposals, targets, strict=True)):
        close(one.logits, expected(f"proposals/{image}/logits"))
        assert torch.equal(
            match_regions(torch.cat([one.boxes, target.boxes]), target)[1],
            expected(f"roi/matched_labels/{image}").long(),
        )
        regions, rows = sample_regions(one.boxes, target, 5, model.order)
        assert torch.equal(rows, expected(f"roi/sampled_idxs/{image}").long())
        sampled.append(regions)
    regions = model.regions(features, [each.boxes for each in sampled])
    logits, deltas = model.box_predictor(model.box_vectors(regions))
    swapped = (logits[::8] - expected("class_logits")).abs().max(dim=1).values > 1e-4
    assert swapped.sum() <= 4  # proposals of nearly equal score change places
    if "mask/targets" in expected.arrays:
        masks = torch.cat(
            [crop(t, each, 28 if name == "fpn_mask" else 14) for t, each in zip(targets, sampled, strict=True)]
        )
        assert np.array_equal(np.packbits(masks.numpy()), expected.arrays["mask/targets"])


def test_an_image_without_objects(name):
    close_losses(detector(name)(*inputs(empty=True)), numbers(name).under("without_objects"))


def test_bitmaps_in_place_of_polygons(name):
    if "bitmask/targets" in numbers(name).arrays:
        close_losses(detector(name)(*inputs(bitmaps=True)), numbers(name).under("bitmask/losses"))


def test_the_seed_draws_what_detectron2_draws(name):
    model, (images, targets), expected = detector(name), inputs(), numbers(name)
    model.order = random_order
    torch.manual_seed(123)
    losses = model(images, targets)
    sum(losses.values()).backward()
    close_losses(losses, expected.under("seeded/losses"))
    close_norms(model, expected("seeded/grad_norm"), name)


def test_three_steps(name):
    model, (images, targets), expected = detector(name), inputs(), numbers(name)
    optimizer = build_sgd(model, 0.02)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    for step in range(3):
        rate = learning_rate(step, 0.02, [18000, 22000], 100 if name == "c4_box" else 1000)
        assert rate == pytest.approx(float(expected(f"steps3/lr/{step}")), rel=1e-12)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = model(images, targets)
        for key, value in expected.under(f"steps3/losses/{step}").items():
            close(losses[key], value, rtol=5e-5, atol=0)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    moved = {detectron2_name(model, k): (v.detach() - before[k]).double().norm() for k, v in model.named_parameters()}
    mine = torch.stack([moved[key] for key in expected.text("param_names")])
    close(mine, expected("steps3/delta_norm"), rtol=1e-3, atol=1e-7)


@torch.no_grad()
def test_detections(name):
    model, (images, _), expected = detector(name).eval(), inputs(), numbers(name)
    for image, found in enumerate(model(images, sizes=[(240, 312), (100, 137)])):
        theirs = expected.under(f"post/{image}")
        assert torch.equal(found.classes, theirs["classes"])
        close(found.scores, theirs["scores"])
        close(found.boxes, theirs["boxes"], atol=1e-3)
        if "mask_area" in theirs:
            assert (found.masks.sum(dim=(1, 2)) - theirs["mask_area"]).abs().max() <= 2


@torch.no_grad()
def test_limits_of_proposals(name):
    model, (images, _) = detector(name).eval(), inputs()
    model.rpn.limits = Limits(300, 60)
    features = model.features(model.batch(images))
    for image, one in enumerate(model.rpn.propose(model.rpn.anchors(features), *model.rpn(features), SIZES)):
        close(one.boxes, numbers(name)(f"limits/{image}"), atol=1e-3)
