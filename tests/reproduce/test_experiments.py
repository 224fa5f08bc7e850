import pytest

from moco.reproduce import EXPERIMENTS
from moco.reproduce.experiment import MEASURES
from moco.runs.config import check
from moco.runtime.errors import UserError

SCALES = ["cpu", "gpu", "imagenet"]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_of_every_grid_can_start(name, scale):
    cells = EXPERIMENTS[name].cells(scale)
    for cell in cells:
        check(cell.config)
    assert len({cell.name for cell in cells}) == len(cells)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_claims_are_of_cells_that_there_are(name, scale):
    experiment = EXPERIMENTS[name]
    there = {(cell.series, cell.x) for cell in experiment.cells(scale)}
    for claim in experiment.claims(scale):
        assert {claim.better, claim.worse} <= there
        assert claim.measure in MEASURES


@pytest.mark.parametrize("scale", SCALES)
def test_a_grid_varies_what_it_is_about_and_nothing_else(scale):
    for cell in EXPERIMENTS["momentum"].cells(scale):
        assert cell.config.contrast.key_momentum == cell.x
    for cell in EXPERIMENTS["mechanisms"].cells(scale):
        training, contrast = cell.config.training, cell.config.contrast
        if cell.series == "end-to-end":  # linear scaling
            first = next(c for c in EXPERIMENTS["mechanisms"].cells(scale) if c.series == "MoCo").config.training
            assert training.batch_size == cell.x
            assert training.lr / training.batch_size == pytest.approx(first.lr / first.batch_size)
        else:
            assert contrast.queue_size == cell.x
    with_, without = EXPERIMENTS["shuffle-bn"].cells(scale)
    assert with_.config.contrast.shuffle
    assert not without.config.contrast.shuffle


def test_what_is_set_holds_for_every_run_and_end_to_end_still_scales():
    mechanisms = EXPERIMENTS["mechanisms"].cells("cpu", {"lr": 0.02, "epochs": 3})
    assert {cell.config.training.epochs for cell in mechanisms} == {3}
    rates = {cell.x: cell.config.training.lr for cell in mechanisms if cell.series == "end-to-end"}
    assert rates == pytest.approx({size: 0.02 * size / 64 for size in rates})
    with pytest.raises(UserError, match="it is what mechanisms varies"):
        EXPERIMENTS["mechanisms"].cells("cpu", {"queue_size": 7})


def test_data_elsewhere_is_not_taken_for_cifar_100():
    cells = EXPERIMENTS["small-scale"].cells("gpu", {"source": "cifar10:/elsewhere"})
    sources = {cell.series.split(",")[0]: cell.config.data.source for cell in cells}
    assert sources["CIFAR-10"] == "cifar10:/elsewhere"
    assert sources["CIFAR-100"] == "cifar100:/elsewhere"
    assert sources["Imagenette"] == "imagenette:data"


def test_the_published_figures_stand_beside_the_settings_they_are_of():
    momentum = {cell.x: cell.published for cell in EXPERIMENTS["momentum"].cells("imagenet")}
    assert momentum[0.0] is None  # it fails
    assert {m: published.value for m, published in momentum.items() if published} == {
        0.9: 55.2,
        0.99: 57.8,
        0.999: 59.0,
        0.9999: 58.9,
    }
    largest = {c.series: c.published.value for c in EXPERIMENTS["mechanisms"].cells("imagenet") if c.x == 65536}
    assert largest == {"MoCo": 60.6, "memory bank": 58.0}
    encoders = [cell.published.value for cell in EXPERIMENTS["encoders"].cells("imagenet")]
    assert encoders == [60.6, 63.9, 65.4, 68.6]
    small = {cell.label: cell.published for cell in EXPERIMENTS["small-scale"].cells("gpu")}
    assert [published.value for published in small.values()] == [83.8, 84.7, 89.9, 92.94, 69.89, 56.0, 87.4]
    assert [published.protocol for published in small.values()] == ["knn"] * 3 + ["linear"] * 2 + ["knn"] * 2
    (r50,) = EXPERIMENTS["small-scale"].cells("imagenet")
    assert (r50.config.encoder.encoder, r50.published.value) == ("resnet50", 61.5)
    # Below the paper's scale they stand beside what corresponds: the largest dictionary, the same encoder.
    for scale, largest in (("cpu", 1024), ("gpu", 16384)):
        shown = {cell.label for cell in EXPERIMENTS["mechanisms"].cells(scale) if cell.published}
        assert shown == {f"MoCo {largest:,}", f"memory bank {largest:,}"}
    assert [cell.x for cell in EXPERIMENTS["encoders"].cells("gpu") if cell.published] == ["resnet50", "resnet50w2"]
