"""Run by test_loop.py on each rank: trains the toy task in FOLDER/two, and one with broken images.

Each rank meets one of the two broken images, which is under --max-bad; together they are over it.
"""

from pathlib import Path

from moco.runtime.errors import UserError
from moco.runtime.ranks import joined, on_main, rank
from moco.transfer.config import TransferLog
from moco.transfer.run import SegmentationRun
from moco.transfer.segmentation.config import SegmentationConfig
from tests.transfer.toy import Toy, config, run


def main(words: list[str]) -> None:
    (folder,) = map(Path, words)
    log = TransferLog(log_every=1, evaluate_every=2)
    with joined():
        train(folder / "two", config(log), Toy(precise_bn=2))
        met = []
        try:
            train(folder / "broken", config(log, max_bad=0.1), Toy(broken=(2, 7)))
        except UserError as error:
            met.append(str(error))
        (folder / f"{rank()}.txt").write_text("\n".join(met))


def train(folder: Path, own: SegmentationConfig, task: Toy) -> None:
    on_main(lambda: SegmentationRun.create(folder, own) and None)
    run(folder, own, task, resume=True)
