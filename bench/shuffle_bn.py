"""What shuffling BN over groups of 32 costs: a whole MoCo step of ResNet-18 with it, against one with plain BN.

    python -m bench.shuffle_bn [--batch 128] [--size 32] [--repeats 5]

Both steps take turns in one process; the table gives medians and the ratio.
"""

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch

from moco.contrast import MoCo
from moco.encoders import build_encoder
from moco.runtime.device import choose_device


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    options = parser.parse_args(arguments)
    device = choose_device(precision=options.precision)
    steps = {"plain BN, no shuffling": step_of(device, None), "groups of 32, shuffled": step_of(device, 32)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    shape = (options.batch, 3, options.size, options.size)
    view1, view2 = (torch.randn(shape, device=device.device).to(memory_format=device.memory_format) for _ in range(2))
    for repeat in range(options.repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step(view1, view2)
            if device.device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first warms up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    plain, grouped = medians.values()
    for name, median in medians.items():
        print(f"{name:24} {1000 * median:8.0f} ms")
    print(f"{'ratio':24} {grouped / plain:8.3f}")
    if options.out:
        context = {
            "device": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "bf16": device.bf16,
        }
        if device.device.type == "cuda":
            context["device"] = torch.cuda.get_device_name(device.device)
        context |= {"threads": torch.get_num_threads(), "date": str(date.today())}
        command = f"python -m bench.shuffle_bn --batch {options.batch} --size {options.size}"
        result = {"command": command, **context, "seconds": medians, "ratio": grouped / plain}
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def step_of(device, bn_group):  # type: ignore[no-untyped-def]
    """A whole step: both encoders, the loss, its gradient, SGD."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", small_stem=True)
    moco = MoCo(encoder, queue_size=4096, bn_group=bn_group, shuffle=bn_group is not None)
    moco.to(device.device, memory_format=device.memory_format)
    optimizer = torch.optim.SGD(moco.query.parameters(), lr=0.03, momentum=0.9)

    def step(view1: torch.Tensor, view2: torch.Tensor) -> None:
        with device.autocast():
            loss = moco(view1, view2).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
