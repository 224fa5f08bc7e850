"""Whole steps on one GPU, beside the released code's and lightly's, against the floor that is counted.

    python -m bench.gpu [--quick] [--minutes 8.5] [--json FILE] [--page FILE]      (or: make bench-gpu)

All sides work in one process, one after the other; the first steps of each warm up (compile, record). After the minutes
given no further work is begun: what was not reached is listed. --quick is for seeing that it runs, on a CPU too.
"""

import argparse
import gc
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.count import Ceilings, Count, count_step
from bench.gpu_sides import Sizes, Step, ours, ours_from_shards, ours_with_views, plain, with_lightly
from bench.side_by_side import Row, context

ROOT = Path(__file__).parents[1]
FULL = Sizes("resnet50", 224, 256, 65536, "resnet18", 32, 512, 4096)
QUICK = Sizes("tiny", 32, 8, 64, "tiny", 32, 16, 64)
# Ways to run a step: each is tried, and the fastest stands for us.
VARIANTS: dict[str, dict[str, bool]] = {"recorded": {"cuda_graph": True}, "eager": {"cuda_graph": False}}
COMPILED = {"compile": True, "cuda_graph": True}
"""Measured last, as compiling takes minutes where processors are slow."""


def variants(on_gpu: bool) -> dict[str, dict[str, bool]]:
    """Those that can be had."""
    return VARIANTS if on_gpu else {"eager": VARIANTS["eager"]}


@dataclass
class Bench:
    """The device, the clock, and what was measured."""

    device: torch.device
    sizes: Sizes
    quick: bool
    deadline: float
    rows: list[Row]

    def log(self, what: str) -> None:
        print(f"{self.deadline - time.monotonic():6.0f} s left  {what}", flush=True)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(self, work: str, sides: dict[str, Callable[[], Step]], goal: str = "", seconds: float = 0.5) -> Row:
        """Of each side the median of five turns in images/s, and the GPU memory that it takes; or why it failed.

        One side after the other, as a recorded step keeps its memory: two of them may not fit.
        """
        row: Row = {"work": work, "goal": goal, "images_per_second": {}, "memory_mb": {}, "failed": {}}
        for name, make in sides.items():
            if time.monotonic() > self.deadline:
                row["failed"][name] = "not reached in time"
                continue
            try:
                rates, row["memory_mb"][name] = self._turns(make, seconds)
                row["images_per_second"][name] = statistics.median(rates)
                self.log(f"{work}: {name}: {row['images_per_second'][name]:,.0f} images/s")
            except Exception as error:  # a missing package, no memory left, a compiler's
                row["failed"][name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
                self.log(f"{work}: {name} failed: {row['failed'][name]}")
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.rows.append(row)
        return row

    def _turns(self, make: Callable[[], Step], seconds: float) -> tuple[list[float], float]:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        step = make()
        for _ in range(1 if self.quick else 6):  # compiles, records
            step.take()
        self.wait()
        rates = [self._turn(step, 0 if self.quick else seconds) for _ in range(1 if self.quick else 5)]
        return rates, torch.cuda.max_memory_reserved(self.device) / 2**20 if on_gpu else 0.0

    def _turn(self, step: Step, seconds: float) -> float:
        images, start = 0, time.perf_counter()
        while images == 0 or time.perf_counter() - start < seconds:
            for _ in range(1 if self.quick else 4):
                images += step.take()
            self.wait()
        return images / (time.perf_counter() - start)

    def ceilings(self) -> Ceilings:
        """A large bf16 product of random numbers, and a large copy: what the machine gives at best."""
        n = 256 if self.quick else 8192
        a, b = (torch.randn(n, n, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        source = torch.empty(2**20 if self.quick else 2**31, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        product = self._seconds(lambda: torch.mm(a, b))
        copy = self._seconds(lambda: target.copy_(source))
        return Ceilings(2 * n**3 / product, 2 * source.numel() / copy)

    def _seconds(self, call: Callable[[], Any]) -> float:
        times = []
        for _ in range(6):
            self.wait()
            start = time.perf_counter()
            for _ in range(10):
                call()
            self.wait()
            times.append((time.perf_counter() - start) / 10)
        return statistics.median(times[1:])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--json", type=Path, help="where the figures go; bench/results/gpu-DEVICE.json")
    parser.add_argument("--page", type=Path, help="where the table goes; beside the figures")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if not options.quick and not torch.cuda.is_available():
        parser.error("there is no GPU here: --quick shows that it runs")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    deadline = time.monotonic() + 60 * options.minutes
    bench = Bench(device, QUICK if options.quick else FULL, options.quick, deadline, [])
    context = context_of(device, shlex.join(["python", "-m", "bench.gpu", *arguments]))
    name = context["device"].lower().replace(" ", "-")
    path = options.json or (None if options.quick else ROOT / f"bench/results/gpu-{name}.json")
    ceilings = bench.ceilings()
    context["ceilings"] = {"bf16_flops": ceilings.flops, "bytes_per_second": ceilings.bandwidth}
    bench.log(f"{ceilings.flops / 1e12:,.0f} TFLOP/s in bf16, {ceilings.bandwidth / 1e12:.2f} TB/s")
    for work in works(bench, ceilings):
        if time.monotonic() > deadline:
            what = " ".join([work.func.__name__, *(f"{k} {v:,}" for k, v in work.keywords.items())])
            bench.rows.append({"work": what, "not_reached": True})
            continue
        work()
        if path is not None:  # also when the next is cut off
            path.write_text(json.dumps({**context, "rows": bench.rows}, indent=1) + "\n")
    lines = table(context, bench.rows)
    page = options.page or (path.with_suffix(".md") if path else None)
    if page is not None:
        page.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def works(bench: Bench, ceilings: Ceilings) -> Iterator[partial[None]]:
    """What is measured, the most wanted first."""
    yield partial(large_step, bench, ceilings)
    yield partial(small_step, bench)
    yield partial(from_shards, bench)
    for queue in [128] if bench.quick else [4096, 16384, 65536, 262144, 1048576]:
        yield partial(grown, bench, f"K {queue:,}", queue=queue)
    for batch in [16] if bench.quick else [64, 128, 512, 1024, 2048]:
        yield partial(grown, bench, f"batch {batch:,}", batch=batch)
    if bench.device.type == "cuda":
        yield partial(compiled, bench)


def large_step(bench: Bench, ceilings: Ceilings) -> None:
    """The step of ResNet-50 beside the released code's, and in share of the floor."""
    s = bench.sizes
    sides: dict[str, Callable[[], Step]] = {}
    for name, options in variants(bench.device.type == "cuda").items():
        sides[f"moco, {name}"] = partial(ours, s, bench.device, **options)
        group = 32 if s.batch % 32 == 0 else s.batch // 2
        sides[f"moco, {name}, BN groups of {group}"] = partial(ours, s, bench.device, bn_group=group, **options)
    sides["the released code's, its defaults"] = partial(plain, s, bench.device, fair=False)
    sides["the same, autocast and channels last"] = partial(plain, s, bench.device, fair=True)
    goal = "3x its defaults; 3,000 images/s"
    row = bench.measure(f"step, {s.encoder}, {s.size} px, batch {s.batch}, K {s.queue:,}, views made", sides, goal)
    count: Count = count_step(s.encoder, s.size, s.batch, s.queue, None, s.size <= 96)
    floor = count.floor(ceilings)
    row["floor_images_per_second"] = s.batch / floor
    row["counted"] = {"tflop": sum(count.flops.values()) / 1e12, "gb": sum(count.bytes.values()) / 1e9}


def small_step(bench: Bench) -> None:
    """The step of ResNet-18 on 32-pixel images in memory, views included, beside lightly's."""
    s = bench.sizes
    sides: dict[str, Callable[[], Step]] = {
        f"moco, {name}": partial(ours_with_views, s, bench.device, **options)
        for name, options in variants(bench.device.type == "cuda").items()
    }
    sides["lightly"] = partial(with_lightly, s, bench.device, workers=max(1, (os.cpu_count() or 2) - 2))
    work = f"step with views, {s.small_encoder}, {s.small_size} px, batch {s.small_batch}, data in memory"
    bench.measure(work, sides, "20x", seconds=2)


def from_shards(bench: Bench) -> None:
    """The step of ResNet-50 fed from JPEG shards, beside the step alone."""
    s = bench.sizes
    fastest = _fastest(bench)
    with tempfile.TemporaryDirectory(prefix="moco-bench-") as folder:
        sides: dict[str, Callable[[], Step]] = {"the step alone": partial(ours, s, bench.device, **fastest)}
        for decoder in ("cpu", "gpu") if bench.device.type == "cuda" else ("cpu",):
            sides[f"from shards, decoded by the {decoder.upper()}"] = partial(
                ours_from_shards, s, bench.device, Path(folder), decoder, **fastest
            )
        bench.measure(f"the same from JPEG shards, {os.cpu_count()} cores", sides, "90 % of the step", seconds=4)


def grown(bench: Bench, what: str, **changes: int) -> None:
    """How step and memory grow with K or the batch."""
    sizes = bench.sizes._replace(**changes)
    bench.measure(f"the large step, {what}", {"moco": partial(ours, sizes, bench.device, **_fastest(bench))})


def compiled(bench: Bench) -> None:
    """Both steps with torch.compile."""
    s = bench.sizes
    bench.measure("the large step", {"moco, compiled and recorded": partial(ours, s, bench.device, **COMPILED)})
    fed = partial(ours_with_views, s, bench.device, **COMPILED)
    bench.measure("the small step with views", {"moco, compiled and recorded": fed}, seconds=2)


def _fastest(bench: Bench) -> dict[str, bool]:
    """The options of the variant that was fastest in the first work."""
    rates = bench.rows[0]["images_per_second"]
    return max(variants(bench.device.type == "cuda").items(), key=lambda item: rates.get(f"moco, {item[0]}", 0))[1]


def table(context: Row, rows: list[Row]) -> list[str]:
    """What was measured, as lines of Markdown."""
    ceilings = context["ceilings"]
    lines = [
        f"`{context['command']}`: {context['device']}, {context['cores']} cores, torch {context['torch']}, "
        f"{context['date']}, commit {context['commit']}. Ceilings: "
        f"{ceilings['bf16_flops'] / 1e12:,.0f} TFLOP/s in bf16, {ceilings['bytes_per_second'] / 1e12:.2f} TB/s.",
        "",
        "| work | side | images/s | beside ours | memory | goal |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "not_reached" in row:
            lines.append(f"| {row['work']} | | not reached in time | | | |")
            continue
        best = max((rate for name, rate in row["images_per_second"].items() if name.startswith("moco")), default=0.0)
        for name, rate in row["images_per_second"].items():
            share = "" if name.startswith("moco") else f"{best / rate:.1f}x slower" if best > rate else "faster"
            memory = f"{row['memory_mb'][name]:,.0f} MB" if row["memory_mb"][name] else ""
            lines.append(f"| {row['work']} | {name} | {rate:,.0f} | {share} | {memory} | {row['goal']} |")
        lines += [f"| {row['work']} | {name} | not measured: {why} | | | |" for name, why in row["failed"].items()]
        if "floor_images_per_second" in row:
            floor = row["floor_images_per_second"]
            lines.append(f"| {row['work']} | the floor, as counted | {floor:,.0f} | {best / floor:.0%} reached | | |")
    return lines


def context_of(device: torch.device, command: str) -> Row:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"device": name, **context(command), "commit": commit.stdout.strip() or "unknown"}


if __name__ == "__main__":
    main()
