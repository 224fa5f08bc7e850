"""What this process computes on: its device, its precision, its memory."""

import ctypes
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moco.runtime.convolution import use_products
from moco.runtime.errors import UserError

_MOST_WORKERS = 8
"""Processes that load images for a GPU, unless more are asked for: each takes some 300 MB."""


@dataclass(frozen=True)
class Device:
    """Where and how the numbers are computed."""

    device: torch.device
    bf16: bool
    channels_last: bool

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @property
    def is_gpu(self) -> bool:
        """Whether it is an accelerator: cuda, mps, xpu."""
        return self.device.type != "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """What convolutions compute in."""
        return torch.bfloat16 if self.bf16 else torch.float32

    def free_bytes(self) -> int:
        """Memory that is available now."""
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
        except (OSError, StopIteration):  # not Linux
            return _physical_bytes()

    def reset_peak(self) -> None:
        """Begins a new measurement of `peak_mb`, where the device can."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_mb(self) -> float:
        """The most memory that this process took, the GPU's or else the machine's, in MB; nan where that is unknown."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        try:
            import resource
        except ImportError:  # Windows
            return float("nan")
        unit = 1 if sys.platform == "darwin" else 1024  # of what getrusage counts in, bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20

    def place(self, module: nn.Module) -> Any:
        """The module, brought to this device and memory format to be trained there."""
        module.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        if self.device.type == "cpu":
            use_products(module, amx=self.bf16 and has_amx())
        return module

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def choose_device(name: str = "auto", precision: str = "auto", channels_last: bool = True) -> Device:
    """The device of this rank.

    Args:
        name: auto (this rank's accelerator if there is one), cpu, cuda, mps, xpu, or one of several: cuda:N.
        precision: bf16, fp32, or auto: bf16 where the hardware multiplies it natively.
        channels_last: the memory format of images and weights.

    Raises UserError if the device is not there.
    """
    device = _find(name)
    if device.type == "cpu":
        _keep_freed_memory()
    elif device.index is not None:
        torch.accelerator.set_device_index(device.index)
    bf16 = precision == "bf16" or (precision == "auto" and _fast_bf16(device))
    return Device(device, bf16, channels_last)


def worker_processes(workers: int | None, device: torch.device) -> int:
    """How many processes load images for this rank's device: so many, or as suits it.

    A CPU computes with all cores, so there loading them in turn with the same threads is faster than processes that
    compete with these, and send each other images.
    """
    if workers is not None:
        return workers
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


def _find(name: str) -> torch.device:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        name = "cpu" if accelerator is None else accelerator.type
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: no such device: auto, cpu, cuda, mps, xpu or cuda:N") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if accelerator is None or device.type != accelerator.type:
        have = "no accelerator" if accelerator is None else f"{accelerator.type} and no other accelerator"
        raise UserError(f"--device {name}: this machine has {have} (or this PyTorch was built without it)")
    if device.type == "mps":
        return device
    index = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
    if index >= (count := torch.accelerator.device_count()):
        raise UserError(
            f"--device {name}: there is no number {index}: this machine has {count} of them, numbered from 0"
        )
    return torch.device(device.type, index)


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 8 * 2**30


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory: what is given back is cleared page by page when it is used again."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def _fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products are native: Ampere and later, or a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return torch.cpu._is_avx512_bf16_supported() and _takes_avx512()


def has_amx() -> bool:
    """Whether the CPU's bf16 products are computed by AMX."""
    return torch.cpu._is_amx_tile_supported() and _takes_avx512()


def _takes_avx512() -> bool:
    """PyTorch may be kept from what the processor has (ATEN_CPU_CAPABILITY)."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
