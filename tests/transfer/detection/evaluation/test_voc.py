import numpy as np
import pytest
import torch

from moco.transfer.detection.evaluation.voc import evaluate_voc
from moco.transfer.detection.instances import Detections, Target, Truth
from tests.transfer.detection.reference_numbers import evaluation

REFERENCE = evaluation("voc_eval")
SETS = sorted(key[:5] for key in REFERENCE if key.endswith("_gt"))


def images(name: str) -> tuple[list[Detections], list[Truth]]:
    gt, dt = torch.from_numpy(REFERENCE[f"{name}_gt"]), torch.from_numpy(REFERENCE[f"{name}_dt"])
    detections, truths = [], []
    for i in range(int(REFERENCE[f"{name}_nimg"])):
        own, real = dt[dt[:, 0] == i], gt[gt[:, 0] == i]
        detections.append(Detections(own[:, 3:], own[:, 2], own[:, 1].long()))
        target = Target(real[:, 2:6].float() - torch.tensor([1.0, 1, 0, 0]), real[:, 1])
        nothing = torch.zeros(len(real))
        truths.append(Truth(target, real[:, 6].bool(), nothing.bool(), nothing.double(), (500, 500)))
    return detections, truths


@pytest.mark.parametrize("metric", ["2007", "2012"])
@pytest.mark.parametrize("name", SETS)
def test_every_set_has_detectron2_s_numbers(name, metric):
    """Where scores are equal, only with a stable sort."""
    expected = {key: value for key, value in REFERENCE.items() if key.startswith(f"{name}_{metric}")}
    found = evaluate_voc(*images(name), len(expected[f"{name}_{metric}_per_class"]), eleven_points=metric == "2007")
    keys = [f"{name}_{metric}_stable"] + [f"{name}_{metric}"] * (not REFERENCE["flags_ties"][int(name[3:])])
    for key in keys:
        assert np.allclose(found.per_class, expected[f"{key}_per_class"], rtol=0, atol=1e-12, equal_nan=True)
        assert np.allclose((found.ap, found.ap50, found.ap75), expected[key], rtol=0, atol=1e-9, equal_nan=True)


def test_without_detections_there_is_nothing_and_no_warning():
    _, truths = images("set01")
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert evaluate_voc([none] * len(truths), truths, 4, eleven_points=False).ap == 0
