"""Section 3 of the paper, and MoCo v3; it imports torch alone, so that it fits into anyone's training loop."""

from moco.contrast.batchnorm import GroupBatchNorm, SyncBatchNorm, group_batch_norm, synchronise_batch_norm
from moco.contrast.end_to_end import EndToEnd
from moco.contrast.loss import InfoNCE, info_nce
from moco.contrast.mechanism import Mechanism
from moco.contrast.memory_bank import MemoryBank
from moco.contrast.moco import MoCo
from moco.contrast.moco_v3 import MoCoV3
from moco.contrast.momentum import momentum_update
from moco.contrast.queue import Queue

__all__ = [
    "EndToEnd",
    "GroupBatchNorm",
    "InfoNCE",
    "Mechanism",
    "MemoryBank",
    "MoCo",
    "MoCoV3",
    "Queue",
    "SyncBatchNorm",
    "group_batch_norm",
    "info_nce",
    "momentum_update",
    "synchronise_batch_norm",
]
