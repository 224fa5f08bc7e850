from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moco.runtime.errors import UserError
from moco.transfer.config import LabelledData, Schedule, TransferConfig, check, number_of, scaled

RECIPE = Schedule()


@given(images=st.integers(1, 10**6), number=st.integers(1, 10**6), share=st.floats(1e-3, 100))
def test_labels_are_a_number_or_a_share_of_at_least_one_image(images, number, share):
    assert number_of(str(number), images) == number
    assert number_of("all", images) == images
    assert 1 <= number_of(f"{share}%", images) <= images
    assert number_of("100%", images) == images


@pytest.mark.parametrize("labels", ["", "0", "-3", "0%", "100.1%", "nan%", "inf%", "%", "ten", "1.5", "1e2"])
def test_other_labels_are_refused(labels):
    with pytest.raises(UserError, match=f"--labels {labels}: give all"):
        number_of(labels, 200)


@given(batch=st.sampled_from([1, 2, 4, 8, 32, 64]))
def test_with_another_batch_as_many_images_are_seen_at_a_rate_in_proportion(batch):
    training, about = scaled(replace(RECIPE, batch_size=batch), RECIPE)
    assert training.lr / batch == pytest.approx(RECIPE.lr / 16)
    assert training.iterations * batch == RECIPE.iterations * 16
    assert tuple(step * batch for step in training.milestones) == tuple(step * 16 for step in RECIPE.milestones)
    assert about.startswith(f"batch {batch} for the recipe's 16, so by the linear rule: lr 0.02 -> ")


def test_what_was_given_stays_and_what_does_not_change_is_not_named():
    given = replace(RECIPE, batch_size=4, lr=0.3, iterations=50, warmup=7)
    training, about = scaled(given, RECIPE)
    assert training == replace(given, milestones=(38, 46))
    assert about.startswith("batch 4 for the recipe's 16 and 50 steps for the recipe's 24000")
    assert about.endswith("by the linear rule: milestones (18000, 22000) -> (38, 46)")
    assert scaled(replace(given, milestones=(5,)), RECIPE)[0].milestones == (5,)
    none = replace(RECIPE, warmup=0)
    assert "warmup" not in scaled(replace(none, batch_size=4), none)[1]
    assert scaled(RECIPE, RECIPE) == (RECIPE, "")


def test_in_a_shorter_run_the_rate_falls_at_the_same_shares():
    training, about = scaled(replace(RECIPE, iterations=240), RECIPE)
    assert training == replace(RECIPE, iterations=240, milestones=(180, 220))
    assert about == "240 steps for the recipe's 24000, so: milestones (18000, 22000) -> (180, 220)"


@pytest.mark.parametrize(
    ("config", "ranks", "message"),
    [
        (TransferConfig(), 3, "--batch-size 16: is not a multiple of the 3 ranks"),
        (TransferConfig(training=Schedule(lr=0.0)), 1, "--lr 0.0: above 0"),
        (TransferConfig(data=LabelledData(max_bad=1.5)), 1, "--max-bad 1.5: in 0..1"),
        (TransferConfig(data=LabelledData(labels="no")), 1, "--labels no"),
    ],
)
def test_numbers_out_of_their_ranges_are_refused(config, ranks, message):
    with pytest.raises(UserError, match=message):
        check(config, ranks)
