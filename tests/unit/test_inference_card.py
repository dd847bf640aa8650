"""A card is believed only when every key and every byte is what it says."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference.card import Card, load_card
from inference.engine import open_engine
from inference.errors import CardError
from inference.extras import lacking
from inference.registry import Registry
from tests.model_factory import classification_card, code, mean_brightness, segmentation_card, thresholding, write_model


def card_with(folder: Path, **changes: Any) -> Card:
    return load_card(write_model(folder, segmentation_card(**changes), thresholding()))


def refused(folder: Path, card: dict[str, Any]) -> str:
    path = write_model(folder, card, thresholding())
    with pytest.raises(CardError) as caught:
        load_card(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_card_is_read_from_its_file_or_its_folder(tmp_path: Path) -> None:
    path = write_model(tmp_path, segmentation_card(), thresholding())
    card = load_card(path)
    assert card == load_card(path.parent)
    assert card.directory == path.parent
    assert card.path == path
    assert card.outputs[0].code.meaning == "Right lung"
    assert (card.resources.seconds, card.resources.memory_mb) == (30, 2048)


def test_resources_have_defaults(tmp_path: Path) -> None:
    content = segmentation_card()
    del content["resources"]
    card = load_card(write_model(tmp_path, content, thresholding()))
    assert (card.resources.seconds, card.resources.memory_mb) == (120, 4096)


def test_changed_weights_are_refused_by_the_files_name(tmp_path: Path) -> None:
    path = write_model(tmp_path, segmentation_card(), thresholding())
    with (path.parent / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(CardError, match=re.escape("files.model.onnx.sha256: expected")):
        load_card(path)


def test_absent_weights_are_refused_by_the_files_name(tmp_path: Path) -> None:
    path = write_model(tmp_path, segmentation_card(), thresholding())
    (path.parent / "model.onnx").unlink()
    with pytest.raises(CardError, match=re.escape(f"files.model.onnx: no such file in {path.parent}")):
        load_card(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"intendeduse": "x"}, "intendeduse: unknown key"),
        ({"slab": {"slices": 8, "overlaps": 2}}, "slab.overlaps: unknown key"),
        ({"slab": {"slices": 8, "overlap": 8}}, "slab: overlap: expected less than slices"),
        ({"engine": "pickle"}, "engine: Input should be 'onnx'"),
        ({"task": "poetry"}, "task: Input should be 'segmentation', 'classification', 'detection' or 'measurement'"),
        ({"version": 1.0}, 'version: expected text: write it in quotes, "1.0"'),
        ({"name": "My CT"}, "name: expected small letters, digits and . _ -, beginning with"),
        ({"files": {"../model.onnx": {"sha256": "0" * 64}}}, "files: '../model.onnx' is not the plain name"),
        ({"files": {"model.onnx": {"sha256": "abc"}}}, "files.model.onnx.sha256: expected the 64 hexadecimal digits"),
        ({"tensors": {"image": "hu"}}, "tensors: a segmentation names"),
        ({"resources": {"seconds": 0}}, "resources.seconds: expected greater than 0, found 0"),
        ({"resources": {"seconds": float("inf")}}, "resources.seconds: Input should be a finite number"),
        ({"resources": {"threads": 10**9}}, "resources.threads: expected less than"),
        ({"resources": {"memory_mb": 10**15}}, "resources.memory_mb: expected less than"),
        ({"inputs": [{"role": "ct", "kind": "volume", "slice_spacing_mm": [0, float("inf")]}]}, "slice_spacing_mm"),
        ({"outputs": []}, "outputs:"),
        ({"manufacturer": "A\\B"}, "manufacturer: expected 1 to 64 characters on one line"),
        ({"boxes": {"form": "xywh"}}, "boxes: only a model whose tensors are boxes"),
        ({"postprocess": [{"smooth": {}}]}, "postprocess.0.smooth: unknown key"),
        ({"preprocess": [{"normalize": {"mean": [0], "std": [1]}}]}, "z_score; a mean and a standard deviation"),
        (
            {"samples": [{"name": "a", "images": "a", "expect": {"rigth lung": 1}}]},
            "samples: 'a' expects 'rigth lung'; the outputs are left lung, right lung",
        ),
        ({"postprocess": [{}]}, "postprocess.0: expected exactly one of"),
        ({"postprocess": [{"fill_holes": None}]}, "postprocess.0: fill_holes: expected its parameters"),
        (
            {"postprocess": [{"require_volume": {"minimum_ml": 1, "otherwise": "no-such"}}]},
            "'no-such' does not stand under not_analysed",
        ),
        (
            {"inputs": [{"role": "ct", "kind": "volume", "match": {"Modalty": "CT"}}]},
            "inputs.0: match.Modalty: not a DICOM keyword",
        ),
        (
            {"inputs": [{"role": "ct", "kind": "radiograph"}]},
            "a segmentation of a radiograph has nchw",
        ),
        (
            {"inputs": [{"role": "ct", "kind": "volume", "slice_spacing_mm": [3, 1]}]},
            "slice_spacing_mm: expected [least, most]",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_card_names_file_key_and_what_was_expected(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(tmp_path, segmentation_card(**changes))


@pytest.mark.parametrize("missing", ["intended_use", "limits", "licence", "outputs", "inputs", "title"])
def test_a_card_that_leaves_out_what_people_must_know_is_refused(tmp_path: Path, missing: str) -> None:
    content = segmentation_card()
    del content[missing]
    assert f"{missing}: missing" in refused(tmp_path, content)


def test_a_key_that_stands_twice_is_refused_by_its_line(tmp_path: Path) -> None:
    path = write_model(tmp_path, classification_card(), mean_brightness())
    path.write_text(
        path.read_text().replace("  select: each\n", "  select: each\n  limits: {matrix: [9, 99]}\n  limits: {}\n")
    )
    line = path.read_text().split("\n").index("  limits: {}") + 1
    with pytest.raises(CardError, match=rf"line {line}: the key 'limits' stands twice"):
        load_card(path)


@pytest.mark.parametrize("card", [segmentation_card(), classification_card()], ids=lambda card: str(card["task"]))
def test_no_two_outputs_have_the_same_name_or_code(tmp_path: Path, card: dict[str, Any]) -> None:
    first = card["outputs"][0]
    place = "label" if "label" in first else "index"
    other = first | {place: 7, "name": "other", "code": code("EFFUSION", "Effusion", "99T")}
    same_name = refused(tmp_path / "name", card | {"outputs": [first, other | {"name": first["name"]}]})
    assert f"the name {first['name']!r} stands twice" in same_name
    same_code = refused(tmp_path / "code", card | {"outputs": [first, other | {"code": first["code"]}]})
    assert f"{first['name']!r} and 'other' have the same code, {first['code']['value']} (SCT)" in same_code
    still_open = [one | {"code": code("open", one["name"], "99OPEN")} for one in (first, other)]
    load_card(write_model(tmp_path / "open", card | {"outputs": still_open}, mean_brightness()))


@pytest.mark.parametrize(
    ("value", "scheme", "expected"),
    [
        ("27925005", "SCT", "its check digit is wrong"),
        ("27952004", "SCT", "its check digit is wrong"),
        ("Nodule", "SCT", "expected 6 to 18 digits"),
        ("12", "SCT", "expected 6 to 18 digits"),
        ("27925004", "SNOMED", "no coding scheme designator (PS3.16 section 8): write SCT"),
        ("RID3875", "RadLex", "write RADLEX"),
        ("27925004", "MINE", "begins with 99"),
    ],
)
def test_a_code_that_can_be_none_is_refused_in_words(tmp_path: Path, value: str, scheme: str, expected: str) -> None:
    [output] = classification_card()["outputs"]
    text = refused(tmp_path, classification_card(outputs=[output | {"code": code(value, "Nodule", scheme)}]))
    assert "outputs.0.code: " in text
    assert expected in text


def test_a_bound_is_told_with_what_was_found_and_of_which_output_and_the_cards_path_once(tmp_path: Path) -> None:
    [output] = classification_card()["outputs"]
    told = refused(tmp_path, classification_card(outputs=[output | {"threshold": 50}], title=""))
    assert "outputs.0.threshold: expected less than 1, found 50 (the output 'nodule')" in told
    assert "; outputs" in told
    assert told.count("card.yaml") == 1


def test_a_text_with_a_colon_is_told_to_stand_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text("name: a\ntitle: Lungs: CT\n")
    with pytest.raises(CardError, match=r"at line 2: mapping values are not allowed here; .*stands in quotes"):
        load_card(tmp_path)


def test_a_mistake_inside_a_list_is_one_complaint_and_a_hash_may_be_in_capitals(tmp_path: Path) -> None:
    [role] = classification_card()["inputs"]
    text = refused(tmp_path, classification_card(inputs=[role | {"selekt": "each"}]))
    assert text.endswith("card.yaml: inputs.0.selekt: unknown key")
    path = write_model(tmp_path, classification_card(), mean_brightness())
    load_card(path)
    digits = re.search(r"[0-9a-f]{64}", path.read_text())
    assert digits
    path.write_text(path.read_text().replace(digits[0], digits[0].upper()))
    assert load_card(path).files["model.onnx"].sha256 == digits[0]


def test_a_program_says_by_name_what_it_measured_and_needs_no_index(tmp_path: Path) -> None:
    output = {"name": "ratio", "code": code("RATIO", "Ratio", "99T"), "unit": code("1", "no units", "UCUM")}
    card = {
        **classification_card(task="measurement", engine="command", outputs=[output]),
        "command": {"argv": ["/bin/true"], "output": "json"},
    }
    for key in ("tensors", "preprocess"):
        del card[key]
    assert load_card(write_model(tmp_path, card, mean_brightness())).outputs[0].index is None


def test_outputs_fit_their_task(tmp_path: Path) -> None:
    outputs = segmentation_card()["outputs"]
    assert "label of their own" in refused(tmp_path, segmentation_card(outputs=[outputs[0], outputs[0]]))
    assert "threshold" in refused(tmp_path, segmentation_card(outputs=[outputs[0] | {"threshold": 0.5}]))
    assert "code" in refused(tmp_path, segmentation_card(outputs=[outputs[0] | {"code": {"value": "1"}}]))
    wrong = classification_card()["outputs"][0] | {"threshold": 1.5}
    assert "outputs.0.threshold" in refused(tmp_path, classification_card(outputs=[wrong]))


@pytest.mark.parametrize("content", ["- a\n- b\n", "name: [", "\xff\xfe", ""])
def test_what_is_no_card_is_refused_by_its_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(CardError, match=re.escape(str(path))):
        load_card(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("made_at: 2026-99-99", "not what its form says"),
        (f"number: {'9' * 5000}", "not what its form says"),
        (f"number: 0x{'f' * 20}", "more than 64 bits"),
        ("number: !!int x", "not what its form says"),
        ("number: !!float ''", "not what its form says"),
        (f"deep: {'[' * 3000}", "nested more than"),
        (f"bomb: [&a0 [x], {', '.join(f'&a{n} [*a{n - 1}, *a{n - 1}]' for n in range(1, 25))}]", "comes to more than"),
        ("loop: &a [*a]", "an alias of what it lies in"),
        (f"long: {'x' * (1 << 20)}", "larger than 1 MB"),
    ],
    ids=["date", "digits", "hexadecimal", "int", "float", "depth", "aliases", "loop", "size"],
)
def test_a_hostile_card_is_a_problem_of_its_own_and_no_other_models(tmp_path: Path, line: str, expected: str) -> None:
    write_model(tmp_path, segmentation_card("good"), thresholding())
    bad = write_model(tmp_path, segmentation_card("bad"), thresholding())
    bad.write_text(f"{bad.read_text(encoding='utf-8')}{line}\n", encoding="utf-8")
    registry = Registry.from_folder(tmp_path, lenient=True)
    assert registry.names() == ("good",)
    assert expected in registry.problems[bad.parent]


def test_the_digest_and_the_device_uid_change_with_behaviour_alone(tmp_path: Path) -> None:
    base = card_with(tmp_path / "base")
    for number, same in enumerate(
        [
            {"title": "Other"},
            {"performance": "better"},
            {"limits": "x"},
            {"resources": {"seconds": 9}},
            {"manufacturer": "A"},
        ]
    ):
        card = card_with(tmp_path / f"same{number}", **same)
        assert (card.digest, card.device_uid) == (base.digest, base.device_uid)
    outputs = segmentation_card()["outputs"]
    different = [
        {"version": "1.0.1"},
        {"slab": {"slices": 9, "overlap": 2}},
        {"postprocess": []},
        {"outputs": [outputs[0]]},
        {"inputs": [{"role": "ct", "kind": "volume"}]},
        {"not_analysed": {"nothing-bright": {"meaning": "other words"}}},
    ]
    digests = {card_with(tmp_path / f"other{n}", **changes).digest for n, changes in enumerate(different)}
    assert len(digests | {base.digest}) == len(different) + 1


def test_other_weights_or_thresholds_are_another_device(tmp_path: Path) -> None:
    first = load_card(write_model(tmp_path / "a", classification_card(), mean_brightness()))
    weights = load_card(write_model(tmp_path / "b", classification_card(), mean_brightness(0.1)))
    outputs = [classification_card()["outputs"][0] | {"threshold": 0.51}]
    threshold = load_card(write_model(tmp_path / "c", classification_card(outputs=outputs), mean_brightness()))
    uids = {first.device_uid, weights.device_uid, threshold.device_uid}
    assert len(uids) == 3
    for uid in uids:
        assert re.fullmatch(r"2\.25\.[1-9][0-9]*", uid)
        assert len(uid) <= 64
    assert re.fullmatch("[0-9a-f]{64}", first.digest)


def test_a_registry_finds_models_by_name(tmp_path: Path) -> None:
    write_model(tmp_path, segmentation_card("zeta"), thresholding())
    write_model(tmp_path, classification_card("alpha"), mean_brightness())
    (tmp_path / "notes").mkdir()
    registry = Registry.from_folder(tmp_path)
    assert registry.names() == ("alpha", "zeta")
    assert registry.get("zeta").task == "segmentation"
    assert [card.name for card in registry] == ["alpha", "zeta"]
    assert "zeta" in registry
    assert len(registry) == 2
    with pytest.raises(CardError, match="alpha, zeta"):
        registry.get("beta")


def test_a_folder_that_is_not_its_cards_name_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, segmentation_card("one"), thresholding()).parent.rename(tmp_path / "two")
    with pytest.raises(CardError, match="expected 'two'"):
        Registry.from_folder(tmp_path)
    with pytest.raises(CardError, match="folder"):
        Registry.from_folder(tmp_path / "absent")


@pytest.mark.parametrize(
    ("package", "extra"),
    [("openvino", "openvino"), ("grpc", "kserve"), ("tritonclient.grpc", "kserve"), ("torch.nn", "torch")],
)
def test_a_package_that_is_not_here_is_told_with_the_command_that_installs_it(package: str, extra: str) -> None:
    assert lacking(ModuleNotFoundError(name=package)) == (
        f"needs {package}, which is not installed here: .venv/bin/pip install -e '.[{extra}]'"
    )
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert extra in project["project"]["optional-dependencies"]


def test_every_shipped_card_loads_and_its_model_opens() -> None:
    folder = Path(__file__).resolve().parents[2] / "conf" / "models"
    for card in Registry.from_folder(folder):
        open_engine(card)
        for name, entry in card.files.items():
            assert hashlib.sha256((card.directory / name).read_bytes()).hexdigest() == entry.sha256
        assert yaml.safe_load(card.path.read_text(encoding="utf-8"))["name"] == card.name
