"""Run by test_fcn.py on each rank: writes "equal" to FOLDER/<rank> if two ranks give what one does."""

from pathlib import Path

import torch
import torch.distributed as dist

from moco.contrast.collectives import average, local, rank
from moco.transfer.segmentation.fcn import pixel_loss
from moco.transfer.segmentation.miou import confusion, over_ranks


def main(words: list[str]) -> None:
    (folder,) = map(Path, words)
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, 6, 7), torch.randint(0, 3, (4, 6, 7))
    labels[0] = labels[1, 2:] = 255
    ignored = labels == 255
    whole = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)
    matrix = confusion(logits.argmax(1), labels, 3)

    dist.init_process_group("gloo")
    scale = torch.ones(1, requires_grad=True)
    loss = pixel_loss(local(logits) * scale, local(labels))
    loss.backward()
    averaged = [loss.detach().clone()]
    average(averaged)
    torch.testing.assert_close(averaged[0], whole)
    assert int(ignored.sum()) == 42 + 28
    assert torch.equal(over_ranks(confusion(local(logits).argmax(1), local(labels), 3)), matrix)

    gradient = [scale.grad]
    average(gradient)
    single = torch.ones(1, requires_grad=True)
    torch.nn.functional.cross_entropy(logits * single, labels, ignore_index=255).backward()
    torch.testing.assert_close(gradient[0], single.grad)
    (folder / str(rank())).write_text("equal")
    dist.destroy_process_group()
