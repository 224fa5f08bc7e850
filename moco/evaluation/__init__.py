"""Protocols on a trained encoder, each one function of (encoder, data). The monitor during training calls the same."""

from moco.evaluation.features import Features, encode, extract
from moco.evaluation.knn import evaluate_knn, knn_predict
from moco.evaluation.linear import evaluate_linear
from moco.evaluation.neighbours import Neighbours, nearest
from moco.evaluation.trained import Trained, open_trained

__all__ = [
    "Features",
    "Neighbours",
    "Trained",
    "encode",
    "evaluate_knn",
    "evaluate_linear",
    "extract",
    "knn_predict",
    "nearest",
    "open_trained",
]
