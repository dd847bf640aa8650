"""Evaluate the shipped `chest-radiograph-demo` on the test family and write its card.

Run by `python -m training.chest_radiograph.evaluate`. Every figure comes from the ONNX file that is shipped, asked
through ONNX Runtime about images that went through `inference.preprocess.radiograph_input`.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from phantoms.radiograph import FINDINGS
from training.chest_radiograph.card import write_card
from training.chest_radiograph.data import PARTS, Radiographs, load
from training.chest_radiograph.measure import Scores, auc, interval, predict

MODEL = Path("conf/models/chest-radiograph-demo/chest-radiograph-demo.onnx")
CACHE = Path("build/chest-radiograph")

BINS = {
    "nodule": (6, 8, 10, 15, 20, 30.1),
    "consolidation": (35, 60, 90, 141),
    "pleural effusion": (12, 20, 40, 80, 151),
    "pneumothorax": (8, 12, 20, 35, 61),
}
"""Edges of the bins by size, in mm; the heart is binned by thirds of its width."""


def overall(test: Radiographs, scores: Scores, thresholds: dict[str, float]) -> list[str]:
    """Return one line of a Markdown table a finding: AUC, sensitivity and specificity at the card's threshold."""
    lines = [
        "| finding | with / without | AUC (95 % interval) | sensitivity | specificity | threshold |",
        "|---|---|---|---|---|---|",
    ]
    for i, name in enumerate(FINDINGS):
        truth, score = test.labels[:, i], scores[:, i]
        low, high = interval(truth, score)
        called = score >= thresholds[name]
        lines.append(
            f"| {name} | {truth.sum()} / {(~truth).sum()} | {auc(truth, score):.3f} ({low:.3f} to {high:.3f}) "
            f"| {called[truth].mean():.2f} | {1 - called[~truth].mean():.2f} | {thresholds[name]} |"
        )
    return lines


def _thirds(sizes: Scores) -> tuple[float, ...]:
    low, first, second, high = np.quantile(sizes, [0, 1 / 3, 2 / 3, 1])
    return round(low, 1) - 0.1, round(first, 1), round(second, 1), round(high, 1) + 0.1


def by_size(test: Radiographs, scores: Scores, thresholds: dict[str, float]) -> list[str]:
    """Return a Markdown table of the AUC by size: the cases of one bin against all radiographs without the finding."""
    lines = ["| finding | size in mm | cases | AUC (95 % interval) | sensitivity |", "|---|---|---|---|---|"]
    for i, name in enumerate(FINDINGS):
        truth, score, size = test.labels[:, i], scores[:, i], test.sizes[:, i]
        edges = BINS.get(name) or _thirds(size[truth])
        for low, high in pairwise(edges):
            inside = truth & (size >= low) & (size < high)
            if not inside.any():
                continue
            kept = inside | ~truth
            bounds = interval(inside[kept], score[kept])
            lines.append(
                f"| {name} | {low:g} to {high:.0f} | {inside.sum()} | {auc(inside[kept], score[kept]):.3f} "
                f"({bounds[0]:.3f} to {bounds[1]:.3f}) | {(score[inside] >= thresholds[name]).mean():.2f} |"
            )
    return lines


def main() -> None:
    """Print the tables and write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    given = parser.parse_args()
    thresholds = json.loads((CACHE / "thresholds.json").read_text())
    test = load("test", CACHE)
    scores = predict(given.model, test.images)
    tables = [*overall(test, scores, thresholds), "", *by_size(test, scores, thresholds)]
    print("\n".join(tables))
    (CACHE / "tables.md").write_text("\n".join(tables) + "\n")
    areas = {name: auc(test.labels[:, i], scores[:, i]) for i, name in enumerate(FINDINGS)}
    write_card(given.model, thresholds, areas, PARTS["test"].count, PARTS["train"].count)


if __name__ == "__main__":
    main()
