"""Every command of the pages in docs/how-to runs, in order, on drawn images in place of a person's own."""

import re
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from torchvision import models
from torchvision.transforms.functional import to_pil_image

from moco.cli.main import main
from moco.data.sources.shapes import draw
from moco.runs.config import Compute
from moco.runs.suggest import Facts, suggest
from tests.documents import OUTSIDE, blocks, commands, understood, words_of_moco

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "how-to"
PAGES = {path.stem: path.read_text() for path in FOLDER.glob("*.md") if path.stem != "README"}
COMPUTE = "--device cpu --precision fp32 --workers 0"
SMALL = {
    "data": "--sample 6 --image-size 16",
    "pack": "--size 24 --images-per-shard 8 --workers 0",
    "suggest": COMPUTE,
    "pretrain": "--image-size 16 --dim 8 --queue-size 8 --batch-size 8 --bn-group 4 --iterations 3 "
    f"--warmup 0 --log-every 1 --monitor-every 2 --knn-k 3 {COMPUTE}",
    "knn": f"--image-size 16 --k 3 {COMPUTE}",
    "linear": f"--image-size 16 --epochs 1 --batch-size 8 {COMPUTE}",
    "embed": f"--image-size 16 {COMPUTE}",
    "search": f"--image-size 16 {COMPUTE}",
    "duplicates": f"--image-size 16 {COMPUTE}",
    "finetune": f"--image-size 16 --batch-size 4 --iterations 2 --log-every 1 {COMPUTE}",
    "predict": COMPUTE,
    "report": f"--points 12 {COMPUTE}",
}
"""Options after a command's own, which make it quick."""
SWAPPED = {
    "resnet50": "resnet18",
    "s3://bucket/": "",
    "--trials 3": "--trials 1",
    "--over-labels 20 100 all": "--over-labels 2",
    "K = 65536": "K = 64",
    "range(200)": "range(2)",
    "RandomResizedCrop(224": "RandomResizedCrop(16",
    "GaussianBlur(23": "GaussianBlur(3",
    "batch_size=256": "batch_size=8",
    "num_workers=8": "num_workers=0",
    "bn_group=32": "bn_group=2",
}
"""What stands on the pages, and what runs in its place."""


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A person's files: photographs, images in classes, some of them labelled, and a few that nobody has sorted."""
    root = tmp_path_factory.mktemp("material")
    files = [root / "photographs" / f"IMG_{number:04}.jpg" for number in range(1, 25)]
    for folder, each in (("images/train", 10), ("images/test", 4), ("labelled/train", 4), ("labelled/test", 2)):
        files += [root / folder / name / f"{number}.jpg" for name in ("cat", "dog") for number in range(each)]
    files += [root / "images" / "part-000" / f"{number}.jpg" for number in range(20)]
    torch.manual_seed(0)
    for path, image in zip(files, draw(torch.arange(len(files))).images, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(path, quality=95)
    shutil.copy(root / "images/train/cat/0.jpg", root / "photo.jpg")
    shutil.copy(root / "images/train/cat/0.jpg", root / "images/train/cat/copy.jpg")
    return root


@pytest.fixture
def place(material, tmp_path, monkeypatch) -> Path:
    """A copy of the material, where the commands run; what torchvision downloads is random weights."""
    shutil.copytree(material, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, **_: random_weights(url))
    return tmp_path / "home"


@cache
def random_weights(url: str) -> dict[str, torch.Tensor]:
    """In the place of a file like resnet18-f37072fd.pth; the same at every download."""
    return models.get_model(Path(url).name.partition("-")[0]).state_dict()


def run_command(command: list[str], encoder: str) -> None:
    """Runs a command of moco with options that make it quick; of another program only the name is known."""
    words = words_of_moco(command)
    if words is None:
        assert command[0] in OUTSIDE, f"no known program: {command[0]}"
        return
    small = SMALL.get(words[0], "") + (f" --encoder {encoder}" if words[0] == "pretrain" else "")
    try:
        understood(words)  # what stands on the page is right before it is made quick
        main([*words, *small.split()])
    except SystemExit as left:
        if (words[0], left.code) != ("doctor", 1):  # it finds a problem in a run of three steps
            raise AssertionError(f"exit code {left.code}: moco {' '.join(words)}") from left


def run_page(page: str, encoder: str = "tiny") -> None:
    """Runs the blocks of a page in order, those in Python with one set of names."""
    for shown, small in SWAPPED.items():
        page = page.replace(shown, small)
    names: dict = {}
    for block in blocks(page):
        if block.language == "python":
            exec(block.text, names)
        else:
            for command in commands(block):
                run_command(command, encoder)


@pytest.mark.parametrize("name", ["own-loop", "own-photographs"])
def test_a_page_runs_up_to_its_fourth_section(name, place):
    run_page(PAGES[name].partition("\n## 4")[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs_to_its_end(name, place):
    run_page(PAGES[name], encoder="resnet18" if name == "one-gpu" else "tiny")  # timm has no tiny


@pytest.mark.parametrize(
    "block",
    [
        "bash\nmoco data folder:photographs --sampel 5",
        "bash\nmoco data folder:photographs --sample 5.5",  # another value runs in its place
        "bash\nmoco data folder:photos",
        "bash\nmoco doctor runs/photographs",
        "bash\nmoco dactor runs/photographs",
        "bash\nmocco data folder:photographs",
        "bash\ntorchrun --nproc-per-node=8 -m moco linear runs/web",
        "python\nfrom moco import Moco",
    ],
)
def test_a_page_whose_block_does_not_run_fails(block, place, capsys):
    with pytest.raises((AssertionError, ImportError)):
        run_page(f"```{block}\n```")


def test_every_page_is_in_the_index():
    index = (FOLDER / "README.md").read_text()
    assert sorted(re.findall(r"^- \[.*\]\((.*)\.md\)$", index, re.M)) == sorted(PAGES)
    assert "docs/how-to/README.md" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_links_is_there(name):
    links = re.findall(r"\]\(([^)#]+)", PAGES[name])
    assert [link for link in links if not (FOLDER / link).exists()] == []


def test_what_is_swapped_stands_on_a_page():
    assert [shown for shown in SWAPPED if not any(shown in page for page in PAGES.values())] == []


def test_the_table_of_what_is_suggested_for_one_gpu():
    rows = [line.split("|")[1:-1] for line in PAGES["one-gpu"].splitlines() if line.startswith("| `--")]
    shown = [[cell.strip(" `") for cell in row] for row in rows]
    sides = (300, 32)
    chosen = [suggest(Facts("", 50_000, side, labelled=True, gpu=True), Compute())[1] for side in sides]
    values = [{choice.flag: str(choice.value) for choice in choices} for choices in chosen]
    assert shown == [[flag, *(each[flag] for each in values)] for flag, *_ in shown]
    assert len(shown) == 8
