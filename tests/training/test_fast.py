"""What makes a step faster changes no numbers: compilation their last digits, a CUDA graph nothing."""

from dataclasses import replace
from functools import partialmethod

import pytest
import torch

from moco.data import InMemory, Source
from moco.runs.config import Compute, Config, Contrast, Encoder, Training, Views, check
from moco.runs.folder import Run
from moco.runtime.errors import UserError
from moco.training import Pretraining
from moco.training.build import device_of

CONFIG = Config(
    views=Views("cifar", 16),
    encoder=Encoder("tinyw0.25"),
    contrast=Contrast(16, 48, 0.9, 0.1, head="mlp", symmetric=True, bn_group=8),
    training=Training(epochs=4, batch_size=16, lr=0.06, schedule="cosine"),
    compute=Compute(device="cpu", precision="fp32"),
)


def losses(tmp_path, config: Config, steps: int = 6) -> torch.Tensor:
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    run = Pretraining(
        config,
        Source(InMemory(images), None, None),
        Run(tmp_path),
        device_of(config.compute),
    )
    for batch in run.batches(0, steps):
        run.update(*run.inputs(batch))
    return run.pending_values()[:, 0].cpu()


@pytest.mark.slow
def test_a_compiled_run_has_the_same_losses(tmp_path, monkeypatch):
    expected = losses(tmp_path, CONFIG)
    # The code that is made of it is the compiler's affair, and takes it a minute.
    monkeypatch.setattr("torch.nn.Module.compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    compiled = losses(tmp_path, replace(CONFIG, compute=replace(CONFIG.compute, compile=True)))
    torch.testing.assert_close(compiled, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("mechanism", ["moco", "end-to-end", "memory-bank", "moco-v3"])
def test_a_recorded_run_has_the_same_losses(tmp_path, mechanism):
    contrast = replace(CONFIG.contrast, mechanism=mechanism, symmetric=mechanism != "memory-bank", hidden=32)
    config = replace(CONFIG, contrast=contrast, compute=replace(CONFIG.compute, device="cuda"))
    assert_recorded_is_the_same(tmp_path, config)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("optimizer", ["lars", "adamw", "muon"])
def test_a_recorded_run_of_another_optimizer_has_the_same_losses(tmp_path, optimizer):
    training = replace(CONFIG.training, optimizer=optimizer, lr=0.001)
    assert_recorded_is_the_same(
        tmp_path, replace(CONFIG, training=training, compute=replace(CONFIG.compute, device="cuda"))
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_run_whose_views_grow_is_recorded_again(tmp_path):
    views = replace(CONFIG.views, start_scale=0.5, start_share=0.5)
    config = replace(CONFIG, views=views, compute=replace(CONFIG.compute, device="cuda"))
    assert_recorded_is_the_same(tmp_path, config, 16)


def assert_recorded_is_the_same(tmp_path, config: Config, steps: int = 12) -> None:
    eager, recorded = (
        losses(tmp_path, replace(config, compute=replace(config.compute, cuda_graph=graph)), steps)
        for graph in (False, True)
    )
    torch.testing.assert_close(recorded, eager, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_step_is_recorded_by_default_on_a_gpu_but_not_timm_s(tmp_path):
    source = Source(InMemory(torch.zeros(64, 3, 16, 16, dtype=torch.uint8)), None, None)
    config = replace(CONFIG, compute=replace(CONFIG.compute, device="cuda"))
    assert Pretraining(config, source, Run(tmp_path), device_of(config.compute)).recorded
    pytest.importorskip("timm")
    config = replace(config, encoder=Encoder("timm:test_resnet.r160_in1k"))
    assert not Pretraining(config, source, Run(tmp_path), device_of(config.compute)).recorded


def test_a_step_on_a_cpu_is_not_recorded(tmp_path):
    source = Source(InMemory(torch.zeros(64, 3, 16, 16, dtype=torch.uint8)), None, None)
    assert not Pretraining(CONFIG, source, Run(tmp_path), device_of(CONFIG.compute)).recorded


def test_there_is_no_graph_without_a_gpu_nor_on_several_ranks():
    with pytest.raises(UserError, match="no CUDA GPU to record on"):
        device_of(replace(CONFIG.compute, cuda_graph=True))
    with pytest.raises(UserError, match="on one GPU, not on 2 ranks"):
        check(replace(CONFIG, compute=replace(CONFIG.compute, cuda_graph=True)), ranks=2)
