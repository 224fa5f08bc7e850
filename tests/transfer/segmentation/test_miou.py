import math

import pytest
import torch

from moco.transfer.segmentation.miou import confusion, scores


def literal(predicted, labels, classes):
    """Intersection over union of each class (None: it is nowhere), pixel by pixel, and the share that is right."""
    pairs = [(p, t) for p, t in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True) if t != 255]
    ious = []
    for k in range(classes):
        intersection = sum(p == k and t == k for p, t in pairs)
        union = sum(p == k or t == k for p, t in pairs)
        ious.append(intersection / union if union else None)
    return ious, sum(p == t for p, t in pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_a_literal_loop(seed):
    torch.manual_seed(seed)
    labels = torch.randint(0, 4, (3, 9, 11), dtype=torch.uint8)  # 4 is predicted alone, 5 is nowhere
    labels[torch.rand(labels.shape) < 0.2] = 255
    predicted = torch.randint(0, 5, labels.shape)
    predicted[torch.rand(labels.shape) < 0.5] = 1
    matrix = sum(confusion(p, t, 6) for p, t in zip(predicted, labels, strict=True))
    found = scores(matrix)
    ious, accuracy = literal(predicted, labels, 6)
    assert ious[4] == 0
    assert ious[5] is None
    assert [None if math.isnan(x) else pytest.approx(x) for x in found.iou.tolist()] == ious
    assert found.miou == pytest.approx(sum(x for x in ious if x is not None) / 5)
    assert found.accuracy == pytest.approx(accuracy)


def test_rows_are_labels_and_columns_predictions():
    matrix = confusion(torch.tensor([1, 1, 2]), torch.tensor([0, 255, 2]), 3)
    assert matrix.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_without_a_pixel_there_is_no_score():
    found = scores(confusion(torch.tensor([1]), torch.tensor([255]), 2))
    assert math.isnan(found.miou)
    assert math.isnan(found.accuracy)
