"""What a measurement of the monitor costs, in steps, of a recipe on this machine.

    python -m bench.monitor [RECIPE ...] [--data SOURCE] [--steps 8]

It measures at most every 100 steps, so that a measurement of one step is 1 % of a run. CPU seconds on a CPU, so that
other programs' share is left out.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from moco.data import open_source
from moco.diagnosis.monitor import Monitor
from moco.runs.folder import Run
from moco.runs.options import with_options
from moco.runs.recipes.recipes import get_recipe
from moco.training import Pretraining
from moco.training.build import device_of


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.monitor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=["shapes-cpu"])
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args(arguments)
    source = open_source(options.data)
    for name in options.recipes:
        config = with_options(get_recipe(name).config, source=options.data)
        device = device_of(config.compute)

        def now(on_gpu: bool = device.device.type == "cuda") -> float:
            if on_gpu:
                torch.cuda.synchronize()
                return time.perf_counter()
            return time.process_time()

        run = Pretraining(config, source, Run(Path(tempfile.gettempdir()) / "bench"), device)
        monitor = Monitor(config, run.mechanism, run.loader, len(source.train), device)
        steps, measurements = [], []
        for batch in run.loader.training(config.training.batch_size, 0, 0, options.steps):
            start = now()
            run.update(*run.inputs(batch))
            steps.append(now() - start)
        for _ in range(4):
            start = now()
            monitor.measure(options.steps)
            measurements.append(now() - start)
        step, measurement = statistics.median(steps[1:]), statistics.median(measurements[1:])
        cost = f"a measurement {1e3 * measurement:,.0f} ms: {measurement / step:.2f} steps"
        print(f"{name}: a step {1e3 * step:,.0f} ms, {cost}")


if __name__ == "__main__":
    main()
