"""The encoders of Table 1 and the paper's own neck as detectors; batches with few or no objects."""

import pytest
import torch
from torchvision.models import resnet18, resnet50

from moco.encoders.resnet import resnext50_32x8d, wide_resnet50
from moco.runtime.errors import UserError
from moco.transfer.detection.instances import Target
from moco.transfer.detection.roi_heads import pool
from moco.transfer.detection.rpn import suppress
from moco.transfer.detection.structures import build_detector

ENCODERS = {
    "resnet18": resnet18,
    "resnext50": resnext50_32x8d,
    "wide": lambda: wide_resnet50(2 / 8),
    "torchvision's wide": lambda: resnet50(width_per_group=128),
}
WIDTHS = {
    "c4": {"masks": True, "mask_width": 8},
    "dc5": {"width": 16},
    "fpn": {"masks": True, "pyramid": 8, "convs": 8, "width": 16, "mask_convs": 8},
}


def batch(*with_objects):
    """Images of 64 x 96 pixels, each with an object or without."""
    torch.manual_seed(0)
    images, targets = [], []
    for has_object in with_objects:
        images.append(torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8))
        count = int(has_object)
        masks = torch.zeros(count, 64, 96, dtype=torch.bool)
        masks[:, 20:50, 20:60] = True
        targets.append(Target(torch.tensor([[10.0, 10, 70, 60]])[:count], torch.tensor([1])[:count], masks))
    return images, targets


def step(detector, *with_objects):
    losses = detector(*batch(*with_objects))
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(value.isfinite().all() for value in detector.state_dict().values())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("structure", WIDTHS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_is_trained_and_detects(structure, encoder):
    detector = build_detector(structure, ENCODERS[encoder](), 2, **WIDTHS[structure])
    detector.rpn.training_limits.after_nms = detector.rpn.limits.after_nms = 8
    losses = step(detector, True)
    assert all(value > 0 for value in losses.values())
    with torch.no_grad():
        found = detector.eval()(batch(True)[0])
    assert len(found) == 1
    assert found[0].scores.isfinite().all()


def test_the_paper_s_neck_is_512_channels_with_bn_at_stride_16():
    detector = build_detector("dc5", resnet18(), 2, width=16)
    convolution, norm = detector.neck
    assert convolution.weight.shape == (512, 512, 3, 3)
    assert convolution.bias is None
    assert norm.num_features == 512
    assert detector.rpn.conv.in_channels == 512
    assert detector.features(torch.zeros(2, 3, 64, 96))[0].shape == (2, 512, 4, 6)


@pytest.mark.parametrize("structure", WIDTHS)
@pytest.mark.parametrize("with_objects", [(True, False), (False, False)])
def test_images_without_foreground(structure, with_objects):
    """Without any the mask head has no rows: its loss is 0, its gradients are 0, its BN stays."""
    detector = build_detector(structure, resnet18(), 2, **WIDTHS[structure])
    detector.rpn.training_limits.after_nms = 8
    before = {k: v.clone() for k, v in detector.state_dict().items() if k.startswith("mask_head") and "running" in k}
    losses = step(detector, *with_objects)
    assert (losses["loss_box_reg"] > 0) == any(with_objects)
    if not any(with_objects) and structure != "dc5":
        assert losses["loss_mask"] == 0
        assert not any(p.grad.any() for p in detector.mask_head.parameters())
        assert all(torch.equal(detector.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("structure", WIDTHS)
def test_evaluation_needs_no_gradient_and_may_find_nothing(structure, monkeypatch):
    detector = build_detector(structure, resnet18(), 2, **WIDTHS[structure]).eval()
    monkeypatch.setattr("moco.transfer.detection.roi_heads.MIN_SCORE", 1.0)
    monkeypatch.setattr(detector, "detect", lambda features, *_: features)
    assert not any(level.requires_grad for level in detector(batch(True)[0]))
    monkeypatch.undo()
    monkeypatch.setattr("moco.transfer.detection.roi_heads.MIN_SCORE", 1.0)
    assert [len(found) for found in detector(batch(True, False)[0])] == [0, 0]


def test_a_proposal_that_is_not_finite_is_left_out():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, torch.inf, 20], [20, 20, 30, 30], [torch.nan, 0, 5, 5]])
    logits = torch.tensor([1.0, 9, torch.nan, 8])
    found = suppress(boxes, logits, (40, 40), torch.zeros(4, dtype=torch.int64), 10)
    assert found.boxes.tolist() == [[0, 0, 10, 10]]


def test_boxes_are_pooled_in_float32_whatever_the_features_are():
    torch.manual_seed(0)
    features, boxes = (
        torch.randn(1, 4, 60, 80),
        torch.rand(9, 2).mul(400).repeat(1, 2) + torch.tensor([0, 0, 101.3, 77.7]),
    )
    low = features.bfloat16()
    expected = pool([low.float()], [16], [boxes + 500], 7)
    found = pool([low], [16], [boxes + 500], 7)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected, rtol=2**-8, atol=1e-6)


def test_an_encoder_without_stages_is_refused():
    with pytest.raises(UserError, match="needs a ResNet's stages"):
        build_detector("c4", torch.nn.Linear(3, 3), 2)
