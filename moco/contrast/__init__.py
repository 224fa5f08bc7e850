"""Section 3 of the paper and nothing else; it imports torch alone, so that it fits into anyone's training loop."""

from moco.contrast.dictionary import Queue
from moco.contrast.loss import InfoNCE, info_nce
from moco.contrast.mechanism import MoCo
from moco.contrast.momentum import momentum_update
from moco.contrast.shuffle import GroupBatchNorm, group_batch_norm

__all__ = ["GroupBatchNorm", "InfoNCE", "MoCo", "Queue", "group_batch_norm", "info_nce", "momentum_update"]
