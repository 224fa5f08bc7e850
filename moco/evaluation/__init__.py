"""Protocols on a trained encoder, each one function of (encoder, data). The monitor during training calls the same."""

from moco.evaluation.embedding import Embedding, embed, fingerprint
from moco.evaluation.feature_files import FeatureFile
from moco.evaluation.feature_writer import write_features
from moco.evaluation.features import Features, encode, extract
from moco.evaluation.knn import evaluate_knn, knn_predict
from moco.evaluation.linear import evaluate_linear
from moco.evaluation.load import Preprocess, load_encoder
from moco.evaluation.neighbours import Neighbours, nearest
from moco.evaluation.search import search_bank
from moco.evaluation.trained import Trained, open_trained

__all__ = [
    "Embedding",
    "FeatureFile",
    "Features",
    "Neighbours",
    "Preprocess",
    "Trained",
    "embed",
    "encode",
    "evaluate_knn",
    "evaluate_linear",
    "extract",
    "fingerprint",
    "knn_predict",
    "load_encoder",
    "nearest",
    "open_trained",
    "search_bank",
    "write_features",
]
