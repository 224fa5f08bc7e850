import pytest

from moco.runtime.errors import UserError
from moco.transfer.detection.dataset import open_detection


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cocoo:x", r"no such set of annotated images: did you mean coco\?"),
        ("voc", "a path is missing: voc:PATH"),
        ("voc:nowhere", "no such path: nowhere"),
    ],
)
def test_a_wrong_spelling_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        open_detection(spec)


def test_shapes_need_no_path():
    train, test = open_detection("shapes", size=64)
    assert (len(train), len(test)) == (10_000, 2_000)
    assert train.image(0).shape == (3, 64, 64)
    assert train.with_objects().tolist() == list(range(10_000))


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo"])
def test_an_empty_folder_is_refused(tmp_path, kind):
    with pytest.raises(UserError, match=str(tmp_path)):
        open_detection(f"{kind}:{tmp_path}")
