"""What was tested is what runs: the way to run a model is measured before its test, and another way needs another."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from inference.card import load_card
from inference.engines.choice import Choice, Measured, Way, read_choice, write_choice
from inference.engines.machine import CACHE_VARIABLE
from inference.engines.tune import measure
from inference.errors import EngineFailure
from inference.samples import job_of
from inference.sizing import CORES_VARIABLE, cores
from node.cli import app
from node.errors import ModelRefused
from node.ops.check import check
from node.settings import Settings
from node.workflow import arriving, governing, overview
from node.workflow.engines import Engines, cache_of, cores_of, note_cores
from node.workflow.measuring import is_unmeasured, made_cache, note_changed
from node.workflow.models import installed, register, store_of
from storage import models
from tests.dicom_factory import radiograph
from tests.model_factory import classification_card, finding, write_model
from tests.small_nets import convolutions
from tests.work import Holding

FILE = "model.onnx"
BF16 = Choice(Way("openvino", "bf16"), tuple(Measured(Way(p, q)) for p, q in (("cpu", "fp32"), ("openvino", "bf16"))))  # type: ignore[arg-type]


@pytest.fixture
def settings(embedded: Holding, tmp_path: Path) -> Settings:
    """A node whose two workers share the cores, with one classifier that has a sample of what it said when made."""
    outputs = [finding(n) for n in range(3)]
    values = classification_card(
        preprocess=[{"radiograph_input": {"size": 32}}],
        outputs=outputs,
        resources={"seconds": 30, "memory_mb": 2048},
        samples=[{"name": "one", "images": "one"}],
    )
    place = write_model(tmp_path / "models", values, convolutions(seed=3)).parent
    rng = np.random.default_rng(0)
    radiograph(place / "one", np.kron(rng.integers(0, 4000, (6, 6)), np.ones((12, 12))))
    made = Settings.model_validate(
        {"data_dir": embedded.root, "models": place.parent, "routes": [], "perform": {"workers": 2}}
    )
    with embedded.database.write() as connection:
        register(connection, installed(made), store_of(made))
    return made


def test_a_test_measures_first_and_what_it_tested_is_what_the_node_runs(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    def model_line() -> str:
        return next(f"{one.found} {one.todo}" for one in check(settings) if one.what == "model levels 1.0.0")

    assert "live, never tested here; not measured on this machine" in model_line()
    assert "overread models test levels@1.0.0" in model_line()
    steps: list[str] = []
    report = governing.run_test(
        settings,
        embedded.database,
        "levels",
        by="ann",
        measure=True,
        progress=lambda _done, _all, what="samples": steps.append(what),
    )
    assert report["passed"], report
    assert steps[1] == "measure cpu/fp32"
    assert steps[-1] == "samples"
    card = load_card(settings.models / "levels")
    # As a worker's engine will look it up, and no other.
    choice = read_choice(card, FILE, cache_of(settings), cores_of(settings))
    assert choice is not None
    assert choice.measured_on == "samples"
    (shown,) = overview.versions(settings, embedded.database)
    assert (shown.way, shown.todo, shown.idle) == (f"{choice.way}, measured on samples", "", "no route names it")
    (tmp_path / "scratch").mkdir()
    engines = Engines(
        tmp_path / "scratch",
        cache=cache_of(settings),
        cores=cores_of(settings),
        memory_mb=4096,
        idle_seconds=60,
    )
    try:
        engines.run(card, job_of(card, card.samples[0]), lambda: None)
        assert " ".join(engines.identity(card) or ()) == report["way"]
        engines.close_idle({card.digest})
        assert engines.identity(card) is not None
        # Measured anew with another outcome, the process that runs the old way is ended.
        other = Choice(Way("cpu", "fp32") if choice.way.provider == "openvino" else Way("openvino", "fp32"))
        write_choice(card, FILE, other, cache_of(settings), cores_of(settings))
        engines.close_idle({card.digest})
        assert engines.identity(card) is None
    finally:
        engines.close()


def test_what_passed_its_test_on_another_way_has_to_pass_it_again(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    governing.run_test(settings, embedded.database, "levels", by="ann")
    with embedded.database.write() as connection:
        one = models.get(connection, "levels", "1.0.0")
    governing.promote(settings, embedded.database, "levels", "candidate", by="ann")
    card = load_card(settings.models / "levels")
    write_choice(card, FILE, BF16, cache_of(settings), cores_of(settings))
    told = list(note_changed(settings, embedded.database, [card], {one.name: ""}, by="ann"))
    with pytest.raises(ModelRefused, match="on ONNX Runtime, and here openvino/bf16 runs it now") as refused:
        governing.promote(settings, embedded.database, "levels", by="ann")
    assert "overread models test levels@1.0.0" in str(refused.value)
    assert told == [str(refused.value).removesuffix(", and promote it then")]
    with embedded.database.read() as connection:
        assert models.history(connection)[0].action == "tuned"
    (shown,) = overview.versions(settings, embedded.database)
    assert "its test was passed on another way" in shown.way
    # A shadow lets nothing out, and whoever pins the way has none to measure.
    governing.promote(settings, embedded.database, "levels", "shadow", by="ann")
    pinned = settings.models / "levels" / "card.yaml"
    values = yaml.safe_load(pinned.read_text()) | {"version": "2.0.0", "onnx": {"providers": ["cpu"]}}
    pinned.write_text(yaml.safe_dump(values))
    with embedded.database.write() as connection:
        register(connection, installed(settings), store_of(settings))
    assert not is_unmeasured(settings, load_card(pinned))
    assert [one.way for one in overview.versions(settings, embedded.database) if one.version == "2.0.0"] == [""]


def test_a_choice_is_found_by_the_cores_of_the_node_and_not_by_those_of_who_asks(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"perform": settings.perform.model_copy(update={"workers": 1})})
    card, there = load_card(settings.models / "levels"), os.sched_getaffinity(0)
    assert cores_of(settings) == len(there)
    os.sched_setaffinity(0, {min(there)})
    try:
        # As a service that is held to one core starts.
        note_cores(settings)
    finally:
        os.sched_setaffinity(0, there)
    assert cores_of(settings) == 1
    write_choice(card, FILE, BF16, cache_of(settings), cores_of(settings))
    assert read_choice(card, FILE, cache_of(settings), 1) == BF16
    # And an engine that is tried where there are fewer than the node has.
    write_choice(card, FILE, BF16, cache_of(settings), len(there) + 3)
    monkeypatch.setenv(CACHE_VARIABLE, str(cache_of(settings)))
    assert read_choice(card, FILE) == (BF16 if len(there) == 1 else None)
    monkeypatch.setenv(CORES_VARIABLE, str(len(there) + 3))
    assert (read_choice(card, FILE), cores()) == (BF16, len(there))


def test_what_was_measured_and_cannot_be_read_is_said_and_is_not_taken_for_unmeasured(
    embedded: Holding, settings: Settings
) -> None:
    card = load_card(settings.models / "levels")
    write_choice(card, FILE, BF16, cache_of(settings), cores_of(settings))
    (kept,) = (cache_of(settings) / "choices").iterdir()
    kept.write_text("")
    (shown,) = overview.versions(settings, embedded.database)
    assert shown.way == "what was measured on this machine cannot be read (it is damaged): ONNX Runtime"
    kept.unlink()
    kept.mkdir()
    (shown,) = overview.versions(settings, embedded.database)
    assert f"cannot be read ({kept}: Is a directory)" in shown.way
    assert "overread models tune levels@1.0.0" in shown.todo


def test_what_a_command_leaves_can_be_read_by_the_user_of_the_node(
    embedded: Holding, settings: Settings, tmp_path: Path
) -> None:
    # Root may work for a node of another user; anybody else works as that user, or for one of the same group.
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    os.chown(settings.data_dir, owner, -1)
    card = load_card(settings.models / "levels")
    before = os.umask(0o027)
    try:
        write_choice(card, FILE, BF16, made_cache(settings), cores_of(settings))
        new = write_model(tmp_path / "new", classification_card("other"), convolutions(seed=4)).parent
        arriving.add(settings, embedded.database, new, by="ann")
    finally:
        os.umask(before)
    made = [one for top in (cache_of(settings), store_of(settings)) for one in (top, *top.rglob("*"))]
    assert len([one for one in made if one.is_file()]) == 4
    assert {one.stat().st_uid for one in made} == {owner}
    assert {one.stat().st_mode & 0o777 for one in made if one.is_dir()} == {0o750}
    assert {one.stat().st_mode & 0o777 for one in made if one.is_file()} == {0o640}


def test_a_way_on_which_the_samples_do_not_come_out_is_not_taken(embedded: Holding, settings: Settings) -> None:
    place = settings.models / "levels" / "card.yaml"
    # Here OpenVINO converts all but the last step, so that whatever was chosen before its samples tell.
    model = convolutions(seed=3)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32), "square"))
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Det", ["square"], ["one"]))
    model.graph.node.append(helper.make_node("Mul", ["before", "one"], ["probability"]))
    values = yaml.safe_load(place.read_text()) | {"version": "2.0.0"}
    write_model(settings.models, {key: value for key, value in values.items() if key != "files"}, model)
    shown = CliRunner().invoke(app, ["models", "test", str(place.parent), "--show"])
    assert shown.exit_code == 0, shown.output
    # What is shown can stand in the card.
    said = yaml.safe_load(shown.stdout)["samples"]
    place.write_text(yaml.safe_dump(yaml.safe_load(place.read_text()) | {"samples": said}))
    card = load_card(place.parent)
    with embedded.database.write() as connection:
        register(connection, installed(settings), store_of(settings))
    ways = tuple(Way(provider, "fp32") for provider in ("cpu", "openvino"))
    write_choice(card, FILE, Choice(ways[1], tuple(map(Measured, ways))), cache_of(settings), cores_of(settings))
    report = governing.run_test(settings, embedded.database, "levels@2.0.0", by="ann", measure=True)
    assert (report["passed"], report["choice"], report["way"]) == (True, "", "onnxruntime:CPU fp32")
    assert "on openvino/fp32 the samples do not come out as expected" in report["remark"]
    kept = read_choice(card, FILE, cache_of(settings), cores_of(settings))
    assert kept is not None
    assert (kept.way, kept.measured[1].problem) == (ways[0], "the samples do not come out as expected")


def test_the_next_best_way_is_the_fastest_that_has_shown_no_problem() -> None:
    took = {"cpu/fp32": 9.0, "openvino/fp32": 4.0, "openvino/bf16": 2.0}
    ways = [Way("cpu", "fp32"), Way("openvino", "fp32"), Way("openvino", "bf16")]
    choice = Choice(ways[2], tuple(Measured(way, milliseconds=took[str(way)]) for way in ways))
    second = choice.without("wrong")
    assert (second.way, [one.problem for one in second.measured]) == (ways[1], ["", "", "wrong"])
    assert second.without("wrong too").way == ways[0]
    assert Choice(ways[2]).without("wrong").way == ways[0]


def test_measuring_stays_within_the_memory_of_the_card(tmp_path: Path) -> None:
    card = load_card(write_model(tmp_path, classification_card(resources={"memory_mb": 64}), convolutions(seed=3)))
    with pytest.raises(EngineFailure, match="held more than the 64 MB"):
        measure(card, tmp_path / "cache")
