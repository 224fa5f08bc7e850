"""The command line: help, a line for every mistake, and one small journey through its commands."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from moco.cli.commands.knn import _with_head
from moco.cli.main import COMMANDS, main
from moco.data import Encoded, open_source
from moco.evaluation import open_trained
from moco.evaluation.features import extract
from moco.runs.folder import Run
from moco.runs.recipes.recipes import RECIPES
from moco.runtime.device import choose_device


@pytest.fixture(scope="session")
def npz(random_npz) -> Path:
    return random_npz(96)


@pytest.fixture
def small(npz) -> str:
    """Options of a run that takes a second."""
    return (
        f"--data npz:{npz} --encoder tinyw0.25 --image-size 16 --dim 16 --queue-size 48 --batch-size 16 --bn-group 8 "
        "--epochs 2 --warmup 0 --knn-k 5 --knn-every 1 --log-every 2 --device cpu --precision fp32"
    )


def refused(capsys, line: str) -> str:
    """The message of a command line that ends with exit code 2: one line."""
    with pytest.raises(SystemExit) as left:
        main(shlex.split(line))
    assert left.value.code == 2
    message = capsys.readouterr()
    assert message.err.startswith("moco: ")
    assert message.err.endswith("\n")
    assert message.err.count("\n") == 1
    return message.err.removeprefix("moco: ").strip()


@pytest.mark.parametrize("line", ["", "-h", "--help", "help"])
def test_the_overview_names_the_commands(capsys, line):
    main(line.split())
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in COMMANDS)


def test_extras_keep_their_brackets(capsys):
    """[hf] is no markup."""
    main(["finetune"])
    assert "momentum-contrast[hf]" in re.sub(r"[\s│┃]+", "", capsys.readouterr().out).replace("'", "")


def test_version(capsys):
    main(["--version"])
    assert re.fullmatch(r"moco \d+\.\d+.*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("pretrain shapes-cpu --help", ["--queue-size", "--temperature", "--resume", "--out", "(default: 4096)"]),
        (
            "data --help",
            ["--sample", "--out", "--views", "folder:PATH", "hf:NAME", "'momentum-contrast[hf]'", "(default: 2000)"],
        ),
        ("pack --help", ["--size", "--format", "--quality", "--images-per-shard", "--workers", "{keep,jpeg,webp}"]),
        ("knn --help", ["RUN A run's folder", "--k", "--random", "--temperature", " compute options "]),
        ("embed --help", ["'momentum-contrast[parquet]'", "bank: the labelled images beside unlabelled"]),
        ("linear --help", ["--cached", "--lr", "(default: 30.0)"]),
        ("demo --help", ["--out"]),
    ],
)
def test_help_names_the_options(capsys, line, options):
    with pytest.raises(SystemExit) as left:
        main(line.split())
    assert not left.value.code
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(option in out for option in options)


@pytest.mark.parametrize("line", ["recipes", "pretrain", "pretrain --help"])
def test_recipes_are_listed(capsys, line):
    main(line.split())
    out = capsys.readouterr().out
    assert all(name in out for name in RECIPES)


def test_a_recipe_is_shown_whole(capsys):
    main(["recipes", "cifar10-r18"])
    out = capsys.readouterr().out
    for text in ("moco pretrain cifar10-r18", "queue_size: 4096", "temperature: 0.1", "epochs: 200", "lr: 0.06"):
        assert text in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pretran shapes-cpu", "no command 'pretran': did you mean pretrain?"),
        ("xyz", f"no command 'xyz': there are {', '.join(COMMANDS)}"),
        ("pretrain shapes-gpu", "no recipe named 'shapes-gpu': did you mean shapes-cpu?"),
        ("recipes cifar10-r81", "no recipe named 'cifar10-r81': did you mean cifar10-r18?"),
        ("pretrain --epochs 3", "the recipe comes first"),
        ("pretrain shapes-cpu --epoch 3", "no option --epoch: did you mean --epochs?"),
        ("pretrain shapes-cpu --que-size=3", "no option --que-size: did you mean --queue-size?"),
        (
            "pretrain shapes-cpu --momentum 0.9",
            "no option --momentum: --key-momentum is m of the key encoder, --sgd-momentum that of SGD",
        ),
        ("pretrain shapes-cpu --lanes 9", "no option --lanes: did you mean --shard-streams?"),
        ("pretrain shapes-cpu --zzz 9", "no option --zzz (moco pretrain shapes-cpu --help lists them)"),
        ("pretrain shapes-cpu more", "unexpected argument 'more'"),
        ("knn somewhere --rando", "no option --rando: did you mean --random?"),
        ("linear somewhere --cache", "no option --cache: did you mean --cached?"),
        ("demo --ou x", "no option --ou: did you mean --out?"),
        ("data shapes --sampel 3", "no option --sampel: did you mean --sample?"),
        ("pack shapes out --qualty 3", "no option --qualty: did you mean --quality?"),
    ],
)
def test_what_is_unknown_names_the_nearest(capsys, line, message):
    assert message in refused(capsys, line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--queue-size 0", "--queue-size 0: at least 1"),
        ("--batch-size 1", "--batch-size 1: at least 2"),
        ("--dim 0", "--dim 0: at least 1"),
        ("--temperature 0", "--temperature 0.0: above 0"),
        ("--temperature nan", "--temperature nan: above 0"),
        ("--key-momentum 1.5", "--key-momentum 1.5: in 0..1"),
        ("--key-momentum -0.1", "--key-momentum -0.1: in 0..1"),
        ("--seed 99999999999999999999", "--seed 99999999999999999999: in 0..9,223,372,036,854,775,807"),
        ("--batch-size 20", "--batch-size 20: a rank's micro-batch of 20 images is not a multiple of --bn-group 8"),
        ("--accumulation-steps 3", "--batch-size 16: is not a multiple of 3 (ranks: 1, --accumulation-steps 3)"),
        ("--views none", "no views named 'none' (there are v1, v2, v3"),
        ("--encoder resnet19", "resnet19"),
        ("--device gpu", "--device gpu: no such device: auto, cpu, cuda, mps, xpu or cuda:N"),
        ("--device cuda:99", "--device cuda:99: this machine has "),
        ("--data npz:nowhere.npz", "--data npz:nowhere.npz: no such path: nowhere.npz"),
        ("--data cifar10:nowhere", "--data cifar10:nowhere: no such path: nowhere (--data.download downloads it)"),
        ("--data folder:empty", "empty: no images here"),
        ("--data foldr:empty", "no such source: did you mean folder?"),
        ("--resume", "run: no such path"),
        ("--resume --out empty", "empty: no such run"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch, capsys, small, line, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert message in refused(capsys, f"pretrain shapes-cpu {small} --out run {line}")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("value", ["--epochs abc", "--lr", "--head conv", "--precision fp8"])
def test_a_value_of_another_type_ends_with_2_and_names_the_option(capsys, value):
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "shapes-cpu", *value.split()])
    assert left.value.code == 2
    assert value.split()[0] in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_refused_and_untouched(tmp_path, capsys, small):
    (tmp_path / "config.yaml").write_text("recipe: mine\n")
    message = refused(capsys, f"pretrain shapes-cpu {small} --out {tmp_path}")
    assert message == f"{tmp_path} already holds a run: --resume continues it, --out starts another in its own folder"
    assert (tmp_path / "config.yaml").read_text() == "recipe: mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_recipe_s_warm_up_is_its_share_of_the_iterations(tmp_path, npz):
    words = f"--data npz:{npz} --batch-size 16 --bn-group 8 --queue-size 16 --iterations 24 --knn-every 0 --device cpu"
    main(["pretrain", "cifar10-cpu", *words.split(), "--out", str(tmp_path / "run")])
    assert Run(tmp_path / "run").config().training.warmup == 2  # 1 of 12 epochs
    main(["pretrain", "cifar10-cpu", *words.split(), "--warmup", "3", "--out", str(tmp_path / "other")])
    assert Run(tmp_path / "other").config().training.warmup == 3


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_what_cannot_be_evaluated(tmp_path, capsys, command):
    assert "no such path" in refused(capsys, f"{command} {tmp_path}/none --device cpu")
    assert "no such run" in refused(capsys, f"{command} {tmp_path} --device cpu")
    (tmp_path / "notes.pt").write_text("not weights")
    assert str(tmp_path / "notes.pt") in refused(capsys, f"{command} {tmp_path}/notes.pt --device cpu")


def test_a_whole_journey(tmp_path, capsys, small, npz):
    run = tmp_path / "run"
    main(shlex.split(f"pretrain shapes-cpu {small} --out {run}"))
    assert "done: " in capsys.readouterr().out
    for name in ("config.yaml", "metrics.jsonl", "timing.jsonl", "log.txt"):
        assert (run / name).is_file()
    for name in ("views.png", "curves.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000000000.pt", "step-000000011.pt"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "loss" in line] == [2, 4, 6, 8, 10, 11]
    assert [line["step"] for line in metrics if "knn" in line] == [0, 6, 11]

    main(shlex.split(f"knn {run} --device cpu --precision fp32 --random"))
    evaluated = json.loads((run / "knn.json").read_text())
    assert (
        evaluated["accuracy"]["top-1"] == [line["knn"] for line in metrics if "knn" in line][-1]
    )  # the monitor's own number
    assert evaluated["accuracy"]["random weights"] == next(line["knn"] for line in metrics if "knn" in line)
    assert (evaluated["k"], evaluated["temperature"], evaluated["published"]) == (5, 0.1, None)
    assert evaluated["weights"].endswith("step-000000011.pt")

    main(shlex.split(f"linear {run} --cached --epochs 2 --batch-size 16 --lr 1 --device cpu"))
    evaluated = json.loads((run / "linear.json").read_text())
    assert 0 <= evaluated["accuracy"]["top-1"] <= 1
    assert (evaluated["epochs"], evaluated["cached"], evaluated["data"]) == (2, True, f"npz:{npz}")
    capsys.readouterr()

    for line, message in (
        ("knn {} --k 0", "--k 0: at least 1"),
        ("knn {} --temperature 0", "--temperature 0.0: above 0"),
        ("knn {} --image-size 0", "--image-size 0: at least 1"),
        ("linear {} --image-size 0", "--image-size 0: at least 1"),
        ("linear {} --epochs 0", "--epochs 0: at least 1"),
        ("linear {} --batch-size 200", "--batch-size 200: the data set has only 87 training images"),
        ("knn {} --encoder resnet18", "does not fit the encoder: missing: conv1.weight"),
    ):
        assert message in refused(capsys, f"{line.format(run)} --device cpu")


def test_knn_of_the_projection_head_s_output(tmp_path, capsys, small):
    """Against the head's two layers and the classifier written out, on the encoder's features."""
    run = tmp_path / "run"
    main(shlex.split(f"pretrain shapes-cpu {small} --out {run}"))
    main(shlex.split(f"knn {run} --device cpu --precision fp32 --head --random"))
    accuracy = json.loads((run / "knn-head.json").read_text())["accuracy"]
    assert accuracy.keys() == {"top-1", "random weights"}
    capsys.readouterr()

    trained, source = open_trained(run), open_source(Run(run).config().data.source)
    device = choose_device("cpu", "fp32")
    state = torch.load(run / "checkpoints/step-000000011.pt", weights_only=True)["mechanism"]
    weight, bias = ([state[f"query.head.{layer}.{name}"] for layer in (0, 2)] for name in ("weight", "bias"))

    def outputs(images):
        encoder, centre = trained.on(device)
        values, labels = extract(encoder, images, centre, device)
        hidden = (values @ weight[0].T + bias[0]).relu()
        return F.normalize(hidden @ weight[1].T + bias[1], dim=1), labels

    (bank, classes), (queries, labels) = outputs(source.labelled_train), outputs(source.labelled_test)
    cosines, nearest = (queries @ bank.T).topk(5, dim=1)
    votes = torch.zeros(len(queries), source.num_classes)
    votes.scatter_add_(1, classes[nearest], (cosines / 0.1).exp())
    assert accuracy["top-1"] == pytest.approx((votes.argmax(1) == labels).double().mean().item(), abs=1 / len(labels))

    encoder = _with_head(open_trained(run)).encoder
    assert torch.equal(encoder.get_parameter("head.2.weight"), state["query.head.2.weight"])
    assert not torch.equal(state["query.head.2.weight"], state["key.head.2.weight"])
    assert "is no run" in refused(capsys, "knn shapes-cpu --data shapes --device cpu --head")


def test_more_in_a_batch_than_images(tmp_path, capsys, small):
    message = refused(capsys, f"pretrain shapes-cpu {small} --batch-size 88 --out {tmp_path / 'run'}")
    assert message == "--batch-size 88: the data set has only 87 training images"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of 12 images, JPEG and PNG of different sizes; one is a copy, one cannot be read."""
    path = tmp_path / "[set]"  # rich would take this name for markup
    for k in range(24):
        file = path / "ab"[k % 2] / f"{k:02}.{'jpg' if k % 3 else 'png'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20 + k, 30, 3), 10 * k, np.uint8)).save(file)
    (path / "a" / "02.jpg").write_bytes((path / "a" / "04.jpg").read_bytes())
    (path / "a" / "08.jpg").write_bytes(b"broken")
    return path


def test_data_lists_what_is_there_and_draws_it(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.setattr("moco.cli.commands.common.console.width", 200)
    main(["data", f"folder:{folder}", "--out", str(tmp_path / "sheet.png")])
    message = capsys.readouterr()
    assert "[set]: training images" in message.out
    assert "[set]: test images" in message.out
    lines = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in message.out.splitlines() if "│" in line}
    # Of the two tables' rows those of the test images, which come last; the broken image is a training one.
    assert lines["images"] == "2"
    assert lines["labels"].startswith("2 classes")
    assert "2 classes; least / median / most images per class: 11 / 11 / 11" in message.out
    assert "1 are identical to another image, byte for byte" in message.out
    assert re.search(r"broken +│ 1 cannot be read:", message.out)
    assert "08.jpg" in message.out
    assert "JPEG" in message.out
    assert "PNG" in message.out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.getextrema() != ((255, 255),) * 3


def test_data_of_a_sample_is_marked_as_such(capsys, npz):
    main(["data", f"npz:{npz}", "--sample", "7"])
    out = capsys.readouterr().out
    assert "87; the rest of the table is of 7, sampled at random" in out
    assert "all 16 x 16" in out


def test_a_contact_sheet_shows_each_image_and_its_views(tmp_path, npz):
    main(["data", f"npz:{npz}", "--out", str(tmp_path / "sheet.png"), "--image-size", "8", "--views", "shapes"])
    with Image.open(tmp_path / "sheet.png") as sheet, np.load(npz) as arrays:
        pixels = np.asarray(sheet)
        # An original is shown whole and its pixels are not smoothed away: each colour of some image is on the sheet.
        top, left = 20, 8
        shown = pixels[top : top + 128 : 8, left : left + 128 : 8]
        assert any(np.array_equal(shown, image) for image in arrays["images"])


@pytest.fixture
def packed(monkeypatch) -> list:
    """What `moco.data.formats.pack.pack`, which has tests of its own, was called with."""
    calls: list = []
    monkeypatch.setattr(
        "moco.cli.commands.pack.pack", lambda *words, **options: calls.append((words, options)) or "packed"
    )
    return calls


def test_pack_hands_on_encoded_images_and_options_and_prints_what_comes_next(capsys, packed, folder):
    main(shlex.split(f"pack folder:{folder} out --size 64 --format webp --quality 80 --images-per-shard 5 --workers 3"))
    (((source, out), options),) = packed
    assert isinstance(source.train, Encoded)
    assert (len(source.train), len(source.test)) == (22, 2)
    assert out == Path("out")
    assert options == {
        "size": 64,
        "format": "webp",
        "quality": 80,
        "images_per_shard": 5,
        "workers": 3,
        "max_bad": 0.01,
    }
    assert "moco pretrain RECIPE --data shards:out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data folder:nowhere", "no such path: nowhere"),
        ("data foldr:x", "no such source: did you mean folder?"),
        ("data shapes --sample -1", "--sample -1: at least 0"),
        ("data shapes --image-size 0", "--image-size 0: at least 1"),
        ("data shapes --views v9", "no views named 'v9'"),
        ("data shapes --out sheet.jpg", "--out sheet.jpg: a contact sheet is a .png"),
        ("data shapes --out no/sheet.png", "--out no/sheet.png: no such folder: no"),
        ("pack folder:nowhere out", "no such path: nowhere"),
        ("pack shapes out --size 0", "--size 0: at least 1"),
        ("pack shapes out --quality 0", "--quality 0: in 1..100"),
        ("pack shapes out --quality 101", "--quality 101: in 1..100"),
        ("pack shapes out --images-per-shard 0", "--images-per-shard 0: at least 1"),
        ("pack shapes out --workers -1", "--workers -1: at least 0"),
    ],
)
def test_what_data_and_pack_refuse(tmp_path, monkeypatch, capsys, packed, line, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, line)
    assert not packed
    assert not list(tmp_path.iterdir())


def test_nothing_that_can_be_read_makes_no_contact_sheet(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    for k in range(3):
        (tmp_path / "set" / f"{k}.png").write_bytes(b"broken")
    main(["data", f"folder:{tmp_path / 'set'}"])
    assert "3 cannot be read" in capsys.readouterr().out
    assert "no image can be read" in refused(capsys, f"data folder:{tmp_path / 'set'} --out {tmp_path / 'sheet.png'}")
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("reproduce momentun", "invalid choice 'momentun' for argument 'experiment'"),
        ("pretrain shapes-cpu --mechanism moc", "invalid choice 'moc' for argument '--mechanism'"),
        ("pretrain shapes-cpu --epochs x", "Error parsing --epochs: invalid literal for int() with base 10: 'x'"),
        ("knn", "Missing from moco knn: RUN"),
    ],
)
def test_a_value_that_cannot_be_is_named_in_one_line(line, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(line.split())
    assert left.value.code == 2
    (text,) = capsys.readouterr().err.splitlines()
    assert text.startswith("moco: moco ")
    assert message in text
    assert text.endswith("--help)")
