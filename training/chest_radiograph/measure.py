"""Measure a classifier: AUC with its confidence interval, Youden's threshold, and the shipped file's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Truths = NDArray[np.bool_]
Scores = NDArray[np.floating[Any]]


def auc(truth: Truths, score: Scores) -> float:
    """Area under the ROC curve by ranks (Mann and Whitney); ties count half."""
    from scipy.stats import rankdata

    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def interval(truth: Truths, score: Scores, repeats: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % confidence interval of the AUC by bootstrap over positives and negatives apart."""
    rng = np.random.default_rng(seed)
    present, absent = score[truth], score[~truth]
    values = []
    for _ in range(repeats):
        a = rng.choice(present, len(present))
        b = rng.choice(absent, len(absent))
        values.append(auc(np.r_[np.ones(len(a), bool), np.zeros(len(b), bool)], np.r_[a, b]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def youden(truth: Truths, score: Scores) -> float:
    """Threshold at which sensitivity plus specificity is greatest, in the middle of the gap between two scores."""
    candidates = np.unique(score)
    sensitivity = np.array([(score[truth] >= c).mean() for c in candidates])
    specificity = np.array([(score[~truth] < c).mean() for c in candidates])
    best = int(np.argmax(sensitivity + specificity))
    return float(candidates[max(best - 1, 0) : best + 1].mean())


def predict(model: Path, images: NDArray[Any]) -> NDArray[np.float32]:
    """Ask the ONNX file about model inputs [n, 256, 256] (uint8 of 0..255, or float of 0..1): probabilities [n, 5]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    scale = 255 if images.dtype == np.uint8 else 1
    answers = [
        session.run(["probability"], {"image": (images[i : i + 50, None] / scale).astype(np.float32)})[0]
        for i in range(0, len(images), 50)
    ]
    return np.concatenate(answers)
