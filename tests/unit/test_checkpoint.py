"""Weights out of checkpoints: whatever a training wrote around them, and nothing that would run."""

from __future__ import annotations

import argparse
import collections
import functools
import os
from pathlib import Path
from typing import Any

import pytest

from inference.engines.checkpoint import load_weights
from inference.errors import EngineFailure

torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[torch]')")


def _network() -> Any:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2))


def _differ(network: Any) -> Any:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    return network


class Settings:
    """Hyper-parameters of a class that is not there where the weights are read."""

    def __init__(self) -> None:
        self.rate = 0.1
        self.loss = functools.partial(max, 1)


@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [
        ("", lambda state: state),
        ("", lambda state: {"model": state, "epoch": 3}),
        ("net.", lambda state: {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.5"}),
        ("model._orig_mod.", lambda state: {"state_dict": state | {"loss.weight": torch.ones(2)}}),
        ("module.", lambda state: {"model_state_dict": collections.OrderedDict(state)}),
        (
            "model.network.",
            lambda state: {
                "state_dict": state,
                "hyper_parameters": {"namespace": argparse.Namespace(rate=1), "settings": Settings()},
                "callbacks": {"checkpoint": {"best_model_path": Path("x")}},
            },
        ),
    ],
)
def test_weights_load_from_under_whatever_a_training_wrote(tmp_path: Path, prefix: str, wrap: Any) -> None:
    trained = _differ(_network())
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    torch.save(wrap(state), tmp_path / "last.ckpt")
    network = _network()
    unused = load_weights(network, tmp_path / "last.ckpt")
    for key, value in trained.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    assert unused == (("loss.weight",) if "_orig_mod" in prefix else ())


class _Hostile:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.place}",)


class _Evaluating:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.place)!r}, 'w')",)


@pytest.mark.parametrize("hostile", [_Hostile, _Evaluating])
def test_a_checkpoint_that_would_run_something_is_refused_by_what_it_names(tmp_path: Path, hostile: Any) -> None:
    place = tmp_path / "ran"
    torch.save({"state_dict": _network().state_dict(), "x": hostile(place)}, tmp_path / "last.ckpt")
    with pytest.raises(EngineFailure, match=r"system|eval"):
        load_weights(_network(), tmp_path / "last.ckpt")
    assert not place.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: {"epoch": 3}, "holds no state dict"),
        (_network, "holds no state dict"),
        (lambda: {"state_dict": {"other.weight": torch.ones(2)}}, r"lacks 6 of the 6 weights .* it holds other.weight"),
        (lambda: torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3), torch.nn.BatchNorm3d(3)).state_dict(), "the shape"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content(), tmp_path / "model.pt")
    with pytest.raises(EngineFailure, match=said):
        load_weights(_network(), tmp_path / "model.pt")


def test_a_file_that_is_no_checkpoint_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x04not a checkpoint")
    with pytest.raises(EngineFailure, match=r"save torch\.save"):
        load_weights(_network(), tmp_path / "model.pt")
