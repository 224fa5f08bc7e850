"""What this process computes on: its device, its precision, and its place among the ranks."""

import ctypes
import os
import resource
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from moco.config import Compute
from moco.errors import UserError


@dataclass(frozen=True)
class Device:
    """Where and how the numbers are computed."""

    device: torch.device
    bf16: bool
    channels_last: bool

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @property
    def dtype(self) -> torch.dtype:
        """What convolutions compute in."""
        return torch.bfloat16 if self.bf16 else torch.float32

    def free_bytes(self) -> int:
        """Memory that can be had now."""
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
        except (OSError, StopIteration):  # not Linux
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def peak_mb(self) -> float:
        """The most memory that this process took: the GPU's, or the machine's, in MB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        unit = 1 if sys.platform == "darwin" else 1024  # of what getrusage counts in, bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def choose_device(compute: Compute) -> Device:
    """The device that is asked for; `auto` is this rank's GPU if there is one. UserError if it is not there."""
    name = compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {compute.device}: no such device: auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {compute.device}: it is auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {compute.device}: this machine has {torch.cuda.device_count()} GPU(s)")
        torch.cuda.set_device(device)
    if compute.cuda_graph and device.type != "cuda":
        raise UserError("--cuda-graph: there is no GPU to record on")
    if compute.decoder == "gpu" and device.type != "cuda":
        raise UserError("--decoder gpu: there is no GPU to decode on")
    if device.type == "cpu":
        _keep_freed_memory()
    bf16 = compute.precision == "bf16" or (compute.precision == "auto" and _fast_bf16(device))
    return Device(device, bf16, compute.channels_last)


def _keep_freed_memory() -> None:
    """Asks glibc to keep freed memory: what is given back is cleared page by page when it is used again."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def _fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products are native: Ampere and later, or a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


def start_ranks(device: torch.device) -> None:
    """Joins the ranks that torchrun started, if it did. CPU tensors travel by gloo, GPU tensors by NCCL."""
    if "RANK" in os.environ and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)


def stop_ranks() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
