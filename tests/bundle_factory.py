"""Builds a small MONAI bundle for tests: a UNet trained for a second to mark a bright ball, with the usual files."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 0,
    "norm": "batch",
}


#: A module of the bundle's own: run in the engine's process, it holds that there is no way out of it.
PROBE = '''"""Sees what a bundle can reach."""
import os
import socket
import sys


def alone():
    ran = getattr(sys.modules["__main__"], "__spec__", None)
    if ran is None or "inference.child" not in ran.name:
        return
    if any(key.startswith("OVERREAD") for key in os.environ):
        raise RuntimeError("the settings of the node are here")
    for reach in (lambda: socket.create_connection(("127.0.0.1", 9), 1), lambda: socket.getaddrinfo("localhost", 9)):
        try:
            reach()
        except PermissionError:
            continue
        raise RuntimeError("there is a network")
'''


def metadata(**changes: Any) -> dict[str, Any]:
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema.json",
        "version": "0.2.1",
        "changelog": {"0.2.1": "made by a test"},
        "monai_version": "1.6.1",
        "pytorch_version": "2.13.0",
        "numpy_version": "2.0.0",
        "name": "Bright ball",
        "task": "Bright ball segmentation",
        "description": "Marks a bright ball in a volume of CT.",
        "authors": "tests",
        "copyright": "Copyright (c) tests",
        "data_source": "synthetic balls, none of a patient",
        "data_type": "nibabel",
        "image_classes": "single channel data, intensity scaled to [0, 1]",
        "label_classes": "single channel data, 1 is ball, 0 is everything else",
        "pred_classes": "2 channels OneHot data, channel 1 is ball, channel 0 is background",
        "eval_metrics": {"mean_dice": 0.96},
        "intended_use": "This is an example, not to be used for diagnostic purposes",
        "references": [],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    "num_channels": 1,
                    "spatial_shape": [24, 24, 24],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": 2,
                    "spatial_shape": [24, 24, 24],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {"0": "background", "1": "ball"},
                }
            },
        },
    } | changes


def inference_config(**changes: Any) -> dict[str, Any]:
    """The inference configuration as bundles of the model zoo are written, resampling to 2 mm in RAS."""
    keys = "image"
    return {
        "imports": ["$import glob", "$import os", "$import scripts.probe as probe"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": NETWORK,
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": keys},
                {"_target_": "EnsureChannelFirstd", "keys": keys},
                {"_target_": "Orientationd", "keys": keys, "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": keys, "pixdim": [2.0, 2.0, 2.0], "mode": "bilinear"},
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": keys,
                    "a_min": -1000,
                    "a_max": 1000,
                    "b_min": 0,
                    "b_max": 1,
                    "clip": True,
                },
                {"_target_": "EnsureTyped", "keys": keys},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 4,
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [24, 24, 24],
            "sw_batch_size": 4,
            "overlap": 0.25,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"},
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            },
            {"_target_": "StatsHandler", "iteration_log": False},
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": True,
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)", "$probe.alone()"],
        "run": ["$@evaluator.run()"],
    } | changes


@cache
def trained_state() -> dict[str, Any]:
    """The weights of a UNet that has seen eighty balls, at 2 mm."""
    import torch
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    network = UNet(**{key: value for key, value in NETWORK.items() if key != "_target_"})
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-2)
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"), -1)
    for _ in range(40):
        balls = [
            ((places - rng.uniform(6, 18, 3)) ** 2).sum(-1) < rng.uniform(3, 7) ** 2 if rng.random() < 0.9 else None
            for _ in range(2)
        ]
        masks = np.stack([np.zeros((24,) * 3, bool) if ball is None else ball for ball in balls])
        images = np.where(masks, 0.8, 0.2) + rng.normal(0, 0.05, masks.shape)
        scores = network(torch.from_numpy(images[:, None].astype("f4")))
        loss = torch.nn.functional.cross_entropy(
            scores, torch.from_numpy(masks.astype("i8")), weight=torch.tensor([1.0, 3.0])
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {key: value.clone() for key, value in network.state_dict().items()}


def build_bundle(
    folder: Path, *, config: dict[str, Any] | None = None, about: dict[str, Any] | None = None, weights: str = "pt"
) -> Path:
    """Write the bundle: ``weights`` is ``pt``, ``lightning`` (a checkpoint as its trainer writes one) or ``ts``."""
    import torch
    from monai.networks.nets import UNet

    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "docs").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps(about or metadata()))
    (folder / "configs" / "inference.json").write_text(json.dumps(config or inference_config()))
    (folder / "docs" / "README.md").write_text("# Bright ball\n")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text("")
    (folder / "scripts" / "probe.py").write_text(PROBE)
    (folder / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    state = trained_state()
    if weights == "ts":
        network = UNet(**{key: value for key, value in NETWORK.items() if key != "_target_"}).eval()
        network.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.trace(network, torch.zeros(1, 1, 24, 24, 24)).save(str(folder / "models" / "model.ts"))
    elif weights == "lightning":
        content = {
            "epoch": 3,
            "global_step": 40,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {f"model._orig_mod.{key}": value for key, value in state.items()} | {"loss.w": torch.ones(2)},
            "hyper_parameters": {"rate": 0.03},
        }
        torch.save(content, folder / "models" / "model.pt")
    else:
        torch.save(state, folder / "models" / "model.pt")
    return folder
