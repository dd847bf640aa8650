"""What the same input costs when it comes again: the look-up of a kept result, from the instances' rows to Findings.

Run with ``python -m benchmarks.cache``. Results of a classification and of a segmentation (a mask of 300 x 512 x 512)
lie in SQLite among 20,000 others; each is looked up by the node's own code, key and all.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from sqlalchemy import insert

from inference.card import load_card
from inference.findings import Classification, Code, Findings, Segment, Segmentation
from inference.registry import Registry
from node.settings import Settings
from node.workflow.models import Models
from node.workflow.remembering import key_of, recalled, remember
from node.workflow.way import Way
from storage import schema, studies
from storage.database import Database, migrate, now
from tests.dicom_factory import radiograph
from tests.model_factory import classification_card, mean_brightness, segmentation_card, thresholding, write_model
from tests.work import Holding

CODE = Code(value="1", scheme="99T", meaning="one")


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=200)
    options.add_argument("--others", type=int, default=20_000)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="cache-") as name:
        folder = Path(name)
        write_model(folder / "models", classification_card("levels"), mean_brightness())
        write_model(folder / "models", segmentation_card("blobs"), thresholding())
        url = f"sqlite:///{folder / 'overread.sqlite'}"
        migrate(url)
        database = Database(url)
        holding = Holding.at(folder / "var", database)
        registry = Registry.from_folder(folder / "models")
        (folder / "var" / "scratch").mkdir()
        way = Way(
            settings=Settings.model_validate({"data_dir": folder / "var", "models": folder / "models"}),
            database=database,
            blobs=holding.blobs,
            incoming=holding.incoming,
            scratch=folder / "var" / "scratch",
            models=Models(registry, folder / "var" / "models"),
        )
        (receipt,) = holding.receive([radiograph(folder / "one", np.zeros((64, 64), np.uint16))])
        study = holding.again(receipt.study_instance_uid)
        revision = holding.judge(study)
        workitem = holding.schedule(study, revision)
        with database.read() as connection:
            inputs = {"radiograph": tuple(studies.evidence(connection, study.id))}
        with database.write() as connection:
            at = now(connection)
            row = {"study_id": study.id, "model": "m 1", "provider": "p", "precision": "fp32", "findings": b"{}"}
            row |= {"digest": "0" * 64, "size": 2, "created_at": at, "used_at": at}
            connection.execute(
                insert(schema.result), [row | {"key": f"{number:064x}"} for number in range(chosen.others)]
            )
        image = inputs["radiograph"][0].sop_instance_uid
        print("| result | median ms | worst ms |\n| --- | --- | --- |")
        for title, model, findings, runs in (
            ("a classification", "levels", _classified(image), chosen.runs),
            ("a mask of 300 x 512 x 512", "blobs", _segmented(image), 5),
        ):
            card = load_card(folder / "models" / model)
            remember(way, workitem, card, key_of(card, inputs, way.engine_cache), findings)
            taken = []
            for _ in range(runs):
                began = time.perf_counter()
                again = recalled(way, key_of(card, inputs, way.engine_cache), inputs)
                taken.append(1000 * (time.perf_counter() - began))
                assert again is not None
            print(f"| {title} | {statistics.median(taken):.2f} | {max(taken):.2f} |")
        holding.close()
        database.close()


def _classified(image: str) -> Findings:
    found = tuple(
        Classification(name=f"finding {n}", code=CODE, probability=n / 18, threshold=0.5, image=image)
        for n in range(18)
    )
    return Findings(images=(image,), classifications=found, provider="onnxruntime:CPU", precision="fp32")


def _segmented(image: str) -> Findings:
    labels = np.zeros((300, 512, 512), np.uint8)
    labels[40:260, 150:380, 90:420] = 1
    segment = Segment(label=1, name="lung", code=CODE, category=CODE, volume_ml=3000.0)
    mask = Segmentation(segments=(segment,), images=(image,) * 300, labels=labels)
    return Findings(images=(image,), segmentation=mask, provider="onnxruntime:CPU", precision="fp32")


if __name__ == "__main__":
    main()
