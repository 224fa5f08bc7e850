"""Every accelerator that PyTorch knows is found in one way; what is not there is refused in one line."""

import pytest
import torch

from moco.runtime.device import choose_device
from moco.runtime.errors import UserError


@pytest.fixture
def accelerator(monkeypatch):
    """`accelerator("xpu", 2)`: this machine has two; returns which was made the current one."""

    def have(kind: str | None, count: int = 0) -> list[int]:
        current: list[int] = []
        found = None if kind is None else torch.device(kind)
        monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available=False: found)
        monkeypatch.setattr("torch.accelerator.device_count", lambda: count)
        monkeypatch.setattr("torch.accelerator.set_device_index", current.append)
        return current

    return have


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_auto_is_the_accelerator_of_this_rank(accelerator, monkeypatch, kind):
    current = accelerator(kind, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("auto", kind):
        device = choose_device(name)
        assert (device.device.type, device.is_gpu) == (kind, True)
        assert device.device.index == (1 if kind == "xpu" else None)
    assert current == ([1, 1] if kind == "xpu" else [])


def test_without_one_it_is_the_cpu(accelerator):
    accelerator(None)
    assert choose_device().device == torch.device("cpu")
    assert choose_device(precision="bf16").bf16
    assert not choose_device(precision="fp32").bf16


@pytest.mark.parametrize(
    ("kind", "name", "line"),
    [
        (None, "cuda", "--device cuda: this machine has no accelerator"),
        ("xpu", "cuda", "--device cuda: this machine has xpu and no other accelerator"),
        ("xpu", "xpu:2", "--device xpu:2: there is no number 2: this machine has 2 of them, numbered from 0"),
        ("xpu", "gpu", "--device gpu: no such device: auto, cpu, cuda, mps, xpu or cuda:N"),
    ],
)
def test_what_is_not_there(accelerator, kind, name, line):
    accelerator(kind, 2)
    with pytest.raises(UserError) as caught:
        choose_device(name)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(("kernels", "bf16"), [("AVX512", True), ("AVX2", False)])
def test_bf16_is_chosen_where_pytorch_may_use_its_instructions(monkeypatch, kernels, bf16):
    """ATEN_CPU_CAPABILITY=avx2 on a processor that has them: bf16 without them takes four times as long as float32."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)
    assert choose_device("cpu").bf16 == bf16
