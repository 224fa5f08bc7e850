"""Where a step's time on one GPU goes: by way to run it, and by kernel.

    python -m bench.gpu_profile small|large|compiled|norm [--seconds 60] [--quick]

small: ResNet-18 on 32-pixel images at batch 512, symmetric, BN in 8 groups, with its views and without, at 16 pixels,
and at batch 128. large: ResNet-50 at 224 pixels, batch 256, v2. compiled: the same with torch.compile. norm: BN alone,
in bytes a second. After the seconds given nothing further is begun.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from bench.gpu import COMPILED, FULL, QUICK, VARIANTS
from bench.gpu_sides import Step, fed, ours, plain, views_on
from moco.data import InMemory, Source
from moco.runs.config import Compute
from moco.runs.folder import Run
from moco.runs.options import with_options
from moco.runs.recipes.recipes import RECIPES
from moco.training import Pretraining
from moco.training.build import device_of

EAGER, RECORDED = VARIANTS["eager"], VARIANTS["recorded"]


class Clock:
    """Times steps one after the other, until its seconds are over."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.end = device, time.monotonic() + seconds
        self.on_gpu = device.type == "cuda"

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def time(self, name: str, make: Callable[[], Step], steps: int, kernels: bool = False) -> None:
        """Prints the median of three turns of so many steps, and what they launch in; with the kernels, a table."""
        if time.monotonic() > self.end:
            print(f"{name}: not reached in time", flush=True)
            return
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step = make()
        step.take()
        self.wait()
        first = time.perf_counter() - start
        for _ in range(5 if self.on_gpu else 0):
            step.take()
        turns = [self._turn(step, steps if self.on_gpu else 1) for _ in range(3 if self.on_gpu else 1)]
        seconds, launched, images = (statistics.median(column) for column in zip(*turns, strict=True))
        memory = torch.cuda.max_memory_allocated() / 2**20 if self.on_gpu else 0
        print(
            f"{name}: {1e3 * seconds:.2f} ms ({images / seconds:,.0f} images/s), launched in {1e3 * launched:.2f} ms, "
            f"the first after {first:.1f} s, {memory:,.0f} MB",
            flush=True,
        )
        if kernels and self.on_gpu:
            with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
                for _ in range(3):
                    step.take()
                self.wait()
            print(found.key_averages().table("self_cuda_time_total", row_limit=25, max_name_column_width=70))

    def _turn(self, step: Step, steps: int) -> tuple[float, float, float]:
        self.wait()
        start = time.perf_counter()
        images = sum(step.take() for _ in range(steps))
        launched = time.perf_counter() - start
        self.wait()
        return (time.perf_counter() - start) / steps, launched / steps, images / steps


def small(device: torch.device, quick: bool, batch: int, size: int, what: str, options: dict[str, Any]) -> Step:
    """A step of `cifar10-r18` in 8 BN groups: of views made already ("step"), with its own ("fed"), or these alone."""
    settings = {"batch_size": batch, "bn_group": batch // 8, "encoder": "tiny" if quick else "resnet18"}
    config = with_options(RECIPES["cifar10-r18"].config, **settings)
    config = replace(config, compute=Compute(device=device.type, **options))
    images = torch.randint(0, 256, (512 if quick else 50_000, 3, 32, 32), dtype=torch.uint8)
    run = Pretraining(config, Source(InMemory(images), None, None), Run(Path("none")), device_of(config.compute))
    if what == "fed":
        return fed(run, batch)
    batches = run.loader.training(batch, 0, 0, 1 << 30)
    made = [view.to(run.device.dtype) for view in views_on(batch, size, device, run.device.memory_format)]

    def take() -> int:
        if what == "views":
            next(batches)
        else:
            run.update(*made)
            run.pending.clear()
        return batch

    return Step(take)


def normalisation() -> None:
    """BN of bf16, forward and backward, by our kernels and PyTorch's: on a GPU alone."""
    from moco.contrast.batchnorm_gpu import batch_norm

    for shape, groups in (
        ((256, 64, 112, 112), 1),
        ((256, 256, 56, 56), 1),
        ((256, 256, 56, 56), 8),
        ((256, 2048, 7, 7), 1),
        ((512, 64, 32, 32), 8),
    ):
        x = torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        x.requires_grad_()
        weight, bias = (torch.ones(shape[1], device="cuda", requires_grad=True) for _ in range(2))
        running = (torch.zeros(shape[1], device="cuda"), torch.ones(shape[1], device="cuda"))
        count, gradient = torch.zeros((), dtype=torch.int64, device="cuda"), torch.randn_like(x)
        ours_ = partial(batch_norm, x, weight, bias, (*running, count), groups, 0.1, 1e-5)
        theirs = partial(F.batch_norm, x, *running, weight, bias, True)
        for name, forward in (("ours", ours_), ("PyTorch's, one group", theirs)):
            output = forward()
            backward = partial(torch.autograd.grad, output, (x, weight, bias), gradient, retain_graph=True)
            there, back = _milliseconds(forward), _milliseconds(backward)
            moved = x.numel() * 2 / 1e9  # read twice and written; in backward both are read twice
            print(
                f"{shape}, {groups} groups, {name}: forward {there:.3f} ms ({3 * moved / there:.2f} TB/s), backward "
                f"{back:.3f} ms ({5 * moved / back:.2f} TB/s)",
                flush=True,
            )


def _milliseconds(call: Callable[[], Any], times: int = 10) -> float:
    for _ in range(3):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / times


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.gpu_profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["small", "large", "compiled", "norm"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    options = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available()
    if not on_gpu and (not options.quick or options.what == "norm"):
        parser.error("there is no GPU here: --quick shows that it runs (norm does not)")
    device = torch.device("cuda" if on_gpu else "cpu")
    sizes, clock = QUICK if options.quick else FULL, Clock(device, options.seconds)
    recorded, compiled = (RECORDED, COMPILED) if on_gpu else (EAGER, EAGER)
    if options.what == "norm":
        normalisation()
    elif options.what == "compiled":
        clock.time("compiled and recorded", partial(ours, sizes, device, **compiled), 5, kernels=True)
    elif options.what == "large":
        clock.time("recorded", partial(ours, sizes, device, **recorded), 5, kernels=True)
        group = 32 if sizes.batch % 32 == 0 else sizes.batch // 2
        clock.time(f"recorded, BN groups of {group}", partial(ours, sizes, device, group, **recorded), 5)
        clock.time("the released code's, its defaults", partial(plain, sizes, device, fair=False), 3)
        clock.time("the same, autocast and channels last", partial(plain, sizes, device, fair=True), 5)
        clock.time("eager", partial(ours, sizes, device, **EAGER), 5)
    else:
        batch = sizes.small_batch
        step = partial(small, device, options.quick)
        clock.time("recorded", partial(step, batch, 32, "step", recorded), 20, kernels=True)
        clock.time("recorded, with views", partial(step, batch, 32, "fed", recorded), 32)
        clock.time("views alone", partial(step, batch, 32, "views", recorded), 32)
        clock.time("recorded, 16 pixels", partial(step, batch, 16, "step", recorded), 20)
        clock.time("recorded, batch 128", partial(step, max(16, batch // 4), 32, "step", recorded), 20)
        clock.time("recorded, batch 128, with views", partial(step, max(16, batch // 4), 32, "fed", recorded), 96)
        clock.time("eager", partial(step, batch, 32, "step", EAGER), 5)


if __name__ == "__main__":
    main()
