"""--eval-only of moco finetune, moco detect and moco segment."""

from dataclasses import replace
from pathlib import Path

from moco.cli.options import Transfer
from moco.transfer.config import TransferConfig
from moco.transfer.run import RUNS


def evaluate(task: str, default: TransferConfig, path: Path, options: Transfer) -> None:
    """Evaluates a run's newest checkpoint, on its own test images or on those of another --data than the default's."""
    from moco.cli.commands.common import print_on_main, together
    from moco.report.transfer_page import write_transfer_page
    from moco.runs.checkpoint import read_checkpoint, require_checkpoint
    from moco.runtime.device import choose_device
    from moco.runtime.ranks import is_main, on_main
    from moco.training.log import start_logging
    from moco.transfer.compare import folder_name
    from moco.transfer.tasks import open_task
    from moco.transfer.trainer import Trainer

    with together():
        start_logging(None, is_main())
        run = RUNS[task].open(path)
        config, given = run.config(), options.config
        facts = on_main(lambda: read_checkpoint(require_checkpoint(run)).get("facts") or {})
        others = given.data.source not in (default.data.source, config.data.source)
        if others:
            config = replace(config, data=replace(config.data, source=given.data.source, labels="all"))
        config = replace(config, compute=given.compute)
        device = choose_device(given.compute.device, given.compute.precision, given.compute.channels_last)
        trainer = Trainer(config, open_task(config, facts), run, device)
        trainer.load()
        unfinished = trainer.step < config.training.iterations
        if unfinished and not others:  # BN's statistics are computed anew, which a finished run's checkpoint holds
            measured = trainer.evaluate()
        else:
            trainer.model.eval()
            measured = trainer.task.evaluate(device, given.compute.workers)
        # The run's own results stay, and those of an unfinished run are not taken for its results.
        aside = path / f"evaluation-{folder_name(given.data.source) if others else f'step-{trainer.step}'}"
        where = options.out or (aside if others or unfinished else path)
        on_main(lambda: where.mkdir(parents=True, exist_ok=True))
        on_main(lambda: measured.write(where))
        if where == path:
            on_main(lambda: write_transfer_page(path, path / "report.html"))
        print_on_main(", ".join(f"{name} {value:.1f}" for name, value in measured.numbers.items()))
        print_on_main(f"written to {where / 'results.json'}")
