"""torchxrayvision's models: brought in by name, answering as the library does, on ONNX Runtime and on torch.

Nothing can be downloaded here, so the released file is one of the same layout with seeded weights, given out by a web
server on this machine.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import yaml
from typer.testing import CliRunner

from inference.card import Card, load_card
from inference.engine import ImageFile, Job, open_engine
from inference.errors import CardError, EngineFailure
from inference.imagefile import open_image
from inference.preprocess import torchxrayvision_input
from inference.radiograph import radiograph_of
from tests.dicom_factory import radiograph

torch = pytest.importorskip("torch", reason="torch is not installed (the extra torch)")

NAME = "densenet121-res224-all"


@pytest.fixture(scope="module")
def library() -> Any:
    from inference.engines.torchvision_schemas import import_torchvision

    import_torchvision()
    import torchxrayvision

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torchxrayvision
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def released(library: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A whole pickled module as the library releases it, and the network as the library would make of it."""
    from inference.engines.torchxrayvision_catalogue import entry

    wanted = entry(NAME)
    torch.manual_seed(11)
    network = library.models.DenseNet(weights=None, num_classes=18)
    points = torch.tensor(library.models.model_urls[NAME]["op_threshs"])
    with torch.no_grad():
        # So that the calibrated answers lie all over 0 to 1.
        network.classifier.weight.mul_(4)
        network.classifier.bias.copy_(torch.logit(points) + torch.linspace(-2.5, 4, 18))
    network.eval()
    path = tmp_path_factory.mktemp("release") / wanted.file
    torch.save(network, path)
    network.op_threshs = points
    network.input_resolution = 224
    return path, network


@pytest.fixture(scope="module")
def release_server(released: tuple[Path, Any]) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(released[0].parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def pulled(
    library: Any, release_server: str, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Card, str]:
    """The card that ``overread models pull`` made, and what the command said."""
    folder = tmp_path_factory.mktemp("node")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HOME", str(folder))
        ran = _pull(folder, "--mirror", release_server, "--images", str(shared_data / "cxr_dicom"))
    assert ran.exit_code == 0, ran.output
    assert (folder / ".torchxrayvision" / "models_data").is_dir()
    [path] = (folder / "var" / "models" / NAME).glob("*/card.yaml")
    return load_card(path), ran.output


def _pull(folder: Path, *options: str) -> Any:
    from node.cli import app

    (folder / "none").mkdir(exist_ok=True)
    values = {"data_dir": str(folder / "var"), "models": str(folder / "none"), "routes": [], "destinations": {}}
    (folder / "node.yaml").write_text(yaml.safe_dump(values))
    arguments = ["models", "pull", f"torchxrayvision:{NAME}", "--config", str(folder / "node.yaml")]
    return CliRunner().invoke(app, [*arguments, *options])


def _real(shared_data: Path) -> list[ImageFile]:
    return [ImageFile(path.stem, path) for path in sorted((shared_data / "cxr_dicom").glob("*.dcm"))]


def _as_the_library_reads(library: Any, path: Path) -> np.ndarray[Any, Any]:
    """By the library alone: its normalisation, its inversion of MONOCHROME1, its crop; the network resizes."""
    dataset = pydicom.dcmread(path)
    largest = 2**dataset.BitsStored - 1
    pixels = dataset.pixel_array
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = largest - pixels
    image = library.utils.normalize(pixels, largest)
    return np.asarray(library.datasets.XRayCenterCrop()(image[None]))


def test_a_pull_says_how_far_its_model_is_from_the_library_on_random_and_real_images(pulled: tuple[Card, str]) -> None:
    assert "over 8 images (3 real)" in pulled[1]


def test_the_card_names_each_pathology_with_its_code_and_what_it_is_for(pulled: tuple[Card, str], library: Any) -> None:
    card = pulled[0]
    targets = library.models.model_urls[NAME]["labels"]
    assert [one.name for one in card.outputs] == [target.replace("_", " ").lower() for target in targets]
    assert len({one.code for one in card.outputs}) == 18
    assert {one.threshold for one in card.outputs} == {0.5}
    assert card.engine == "onnx"
    assert not card.demonstration
    assert "Research use only" in str(card.intended_use)
    calibration = next(step.calibrate for step in card.postprocess if step.calibrate)
    assert np.allclose(np.array(calibration.thresholds), library.models.model_urls[NAME]["op_threshs"])


def test_codes_from_dicoms_dictionary_are_that_dictionarys() -> None:
    from pydicom.sr._concepts_dict import concepts

    from inference.bring.chest_codes import FINDINGS

    known = {(scheme, value) for scheme, words in concepts.items() for meanings in words.values() for value in meanings}
    used = {(scheme, value) for value, scheme, _ in FINDINGS.values()}
    # Those that DICOM's value sets lack were looked up elsewhere; the page of these models says where.
    page = (Path(__file__).resolve().parents[2] / "docs" / "models" / "torchxrayvision.md").read_text()
    assert not {value for scheme, value in used - known if scheme == "SCT" and value not in page}
    assert not {one for one in used - known if one[0] == "DCM"}
    assert all(len(value) <= 16 for _, value in used)  # what Code Value (0008,0100) holds


def test_findings_on_real_radiographs_are_those_of_the_library(
    pulled: tuple[Card, str], released: tuple[Path, Any], library: Any, shared_data: Path
) -> None:
    card, network = pulled[0], released[1]
    engine = open_engine(card.model_copy(update={"inputs": (_any_radiograph(card),)}))
    spread: list[float] = []
    for file in _real(shared_data):
        image = torch.from_numpy(_as_the_library_reads(library, file.path))[None]
        with torch.inference_mode():
            expected = network(image)[0].numpy()
        findings = engine.run(Job(card.path, {"radiograph": (file,)}))
        found = np.array([one.probability for one in findings.classifications])
        assert np.abs(found - expected).max() <= 1e-4, file.key
        spread.extend(expected)
    engine.close()
    assert min(spread) < 0.1
    assert max(spread) > 0.9


def _any_radiograph(card: Card) -> Any:
    """The card's role without its limits: what these pictures are is not the matter here."""
    return type(card.inputs[0]).model_validate({"role": "radiograph", "kind": "radiograph", "select": "each"})


@pytest.mark.parametrize("shape", [(61, 80), (300, 240), (500, 501), (224, 224)], ids=str)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_the_input_tensor_is_the_librarys(
    library: Any, tmp_path: Path, shape: tuple[int, int], photometric: str
) -> None:
    pixels = np.random.default_rng(1).integers(0, 4096, shape)
    path = radiograph(tmp_path, pixels, photometric=photometric, WindowCenter="100", WindowWidth="50")
    whole = torch.from_numpy(_as_the_library_reads(library, path))[None]
    expected = library.utils.fix_resolution(whole, 224, None)[0, 0].numpy()
    found = torchxrayvision_input(radiograph_of(open_image(ImageFile("x", path))), 224)
    np.testing.assert_allclose(found, expected, atol=0.1)  # the range is 2,048, and torch weighs in single precision


def test_the_native_engine_answers_bit_by_bit_as_the_library(
    pulled: tuple[Card, str], released: tuple[Path, Any], shared_data: Path, tmp_path: Path
) -> None:
    from inference.engines.torchxrayvision import open_model

    network = released[1]
    weights = {name: value for name, value in network.state_dict().items() if name != "op_threshs"}
    torch.save(weights, tmp_path / "model.pt")
    card = yaml.safe_load(pulled[0].path.read_text()) | {
        "engine": "torchxrayvision",
        "torchxrayvision": {"model": NAME},
        "files": {"model.pt": {"sha256": hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()}},
        "postprocess": [],
        "resources": {"threads": 1},
    }
    card.pop("explain")
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    model = open_model(load_card(tmp_path))
    for file in _real(shared_data):
        image = torchxrayvision_input(radiograph_of(open_image(file)), 224)[None, None]
        answers = model.infer({"image": image})
        with torch.inference_mode():
            expected = network(torch.from_numpy(image)).numpy()
            maps = torch.relu(network.features(torch.from_numpy(image))).numpy()
        assert (answers["output"] == expected).all()
        assert (answers["features"] == maps).all()
    model.close()


def test_a_class_activation_map_is_torchs_own(
    pulled: tuple[Card, str], released: tuple[Path, Any], shared_data: Path
) -> None:
    from inference.engines.onnx import open_model
    from inference.explain import activation_maps

    card, network = pulled[0], released[1]
    image = torchxrayvision_input(radiograph_of(open_image(_real(shared_data)[0])), 224)[None, None]
    model = open_model(card)
    features = model.infer({"image": image})["features"]
    model.close()
    weights = np.load(card.directory / "head.npy")
    maps = activation_maps(features, weights, range(18))
    with torch.inference_mode():
        inside = torch.relu(network.features(torch.from_numpy(image)))
        expected = torch.einsum("oc,chw->ohw", network.classifier.weight, inside[0])
        scores = network.classifier(inside.mean((2, 3)))[0] - network.classifier.bias
    np.testing.assert_allclose(maps, expected.numpy(), atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(maps.mean((1, 2)), scores.numpy(), atol=1e-3, rtol=1e-3)


def test_a_model_that_would_differ_is_not_added(library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inference.bring import torchxrayvision as bringing
    from inference.engines.torchxrayvision_catalogue import entry

    network = library.baseline_models.mira.SexModel(weights=False)
    released = tmp_path / "released.ckpt"
    torch.save({"epoch": 3, "state_dict": network.state_dict()}, released)
    monkeypatch.setattr(bringing, "_random_images", lambda size: [np.eye(size, dtype=np.float32) * 900])
    (tmp_path / "kept").mkdir()
    assert bringing.bring(entry("mira-sex"), released, tmp_path / "kept", native=True).difference <= 1e-6
    assert [one.name for one in load_card(tmp_path / "kept").outputs] == ["male", "female"]
    # No difference is below this bound: it shows that the comparison decides.
    monkeypatch.setattr(bringing, "TOLERANCE", -1.0)
    (tmp_path / "refused").mkdir()
    with pytest.raises(EngineFailure, match="differs from the library by"):
        bringing.bring(entry("mira-sex"), released, tmp_path / "refused", native=True)


def test_an_unknown_name_is_answered_with_those_that_there_are(library: Any) -> None:
    from inference.engines.torchxrayvision_catalogue import entry, names

    with pytest.raises(CardError, match=r"densenet121-res224-rsna.*xinario-view"):
        entry("densenet999")
    for name in names():
        wanted = entry(name)
        assert wanted.url.startswith("https://github.com/mlmed/torchxrayvision/releases/download/v1/")
        assert wanted.targets


def test_a_download_that_breaks_off_or_is_refused_leaves_nothing(release_server: str, tmp_path: Path) -> None:
    from inference.bring.torchxrayvision import download

    with pytest.raises(CardError, match="404"):
        download(f"{release_server}/absent.pt", tmp_path / "absent.pt")
    with pytest.raises(CardError, match="--from"):
        download("http://127.0.0.1:9/nobody.pt", tmp_path / "nobody.pt")
    assert not list(tmp_path.iterdir())


class _Calls:
    """What a pickle calls when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def test_a_module_in_the_format_before_torch_1_6_is_read_like_todays(tmp_path: Path) -> None:
    from inference.engines.unpickling import _read

    old = tmp_path / "old.pt"
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU())
    torch.save(network, old, _use_new_zipfile_serialization=False)
    weights = _read(old)
    assert list(weights) == list(network.state_dict())
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())


def test_a_file_that_wants_a_command_run_is_refused_with_its_name(tmp_path: Path) -> None:
    from inference.engines.unpickling import module_weights

    mark = tmp_path / "was-here"
    evil = tmp_path / "evil.pt"
    network = torch.nn.Linear(2, 2)
    network.extra = _Calls(os.system, f"touch {mark}")
    torch.save(network, evil)
    with pytest.raises(EngineFailure, match=r"it wants os\.system"):
        module_weights(evil)
    assert not mark.exists()


def test_a_file_that_is_not_read_in_time_is_given_up_with_its_process(tmp_path: Path) -> None:
    from inference.engines.unpickling import module_weights

    path = tmp_path / "late.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(EngineFailure, match="not read within"):
        module_weights(path, seconds=0.2)


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        (_Calls(eval, "1 + 1"), "builtins.eval"),
        (_Calls(exec, "pass"), "builtins.exec"),
        (_Calls(getattr, "x", "upper"), "builtins.getattr"),
        (_Calls(torch.load, "other.pt"), "torch.serialization.load"),
        (_Calls(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        (_Calls(functools.partial, print), "functools.partial"),
        (_Calls(pickle.loads, b"N."), "pickle.loads"),
        (_Calls(torch.jit.load, "x"), "torch.jit._serialization.load"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_else_a_file_names_is_refused_with_its_name(tmp_path: Path, wish: _Calls, named: str) -> None:
    from inference.engines.unpickling import _read

    path = tmp_path / "evil.pt"
    network = torch.nn.Linear(2, 2)
    network.extra = wish
    torch.save(network, path)
    with pytest.raises(pickle.UnpicklingError, match=named.replace(".", r"\.")):
        _read(path)


class _Shape:
    """A module of the library's with a state of the attacker's choice."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.nn.Linear, (), self.state


@pytest.mark.parametrize(
    "state",
    [
        {"_parameters": {"weight": "no tensor"}},
        {"_parameters": ["weight"]},
        {"_modules": {"inner": "no module"}},
        {"_parameters": {}, "__class__": "X", "state_dict": "mine", "forward": "mine"},
        ["no mapping"],
    ],
    ids=["text for a tensor", "list for a mapping", "text for a module", "attributes", "list"],
)
def test_an_allowed_class_with_a_state_that_is_none_gives_no_weights(tmp_path: Path, state: Any) -> None:
    from inference.engines.unpickling import _read

    path = tmp_path / "odd.pt"
    torch.save(_Shape(state), path)
    with pytest.raises(pickle.UnpicklingError):
        _read(path)


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    from inference.engines.unpickling import _read

    honest, forged = tmp_path / "honest.pt", tmp_path / "forged.pt"
    network = torch.nn.Linear(7, 5)
    torch.save(network, honest)
    assert set(_read(honest)) == {"weight", "bias"}
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(forged, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            # The size (5, 7) in the pickle, made larger: BININT1 5, BININT1 7, TUPLE2.
            target.writestr(name, data.replace(b"K\x05K\x07\x86", b"K\x7fK\x7f\x86") if name.endswith(".pkl") else data)
    with pytest.raises(pickle.UnpicklingError, match="beyond its storage"):
        _read(forged)


def test_torchscript_and_tar_archives_are_no_weights(tmp_path: Path) -> None:
    import tarfile

    from inference.engines.unpickling import _read

    script = tmp_path / "script.pt"
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("x/constants.pkl", b"N.")
        archive.writestr("x/data.pkl", b"N.")
    with pytest.raises(pickle.UnpicklingError, match="TorchScript"):
        _read(script)
    tar = tmp_path / "old.tar"
    with tarfile.open(tar, "w") as archive_:
        archive_.add(script, "storages")
    with pytest.raises(pickle.UnpicklingError, match="tar"):
        _read(tar)


def test_the_process_that_reads_can_open_no_socket_and_start_nothing(tmp_path: Path) -> None:
    import subprocess
    import sys

    source = tmp_path / "any.pt"
    source.write_bytes(b"x" * 100)
    program = (
        "import json, os, sys, socket, subprocess\n"
        "from pathlib import Path\n"
        "from inference.engines import unpickling as u\n"
        "u._confine(Path(sys.argv[1]), Path(sys.argv[1] + '.out'), 20)\n"
        "said = []\n"
        "for wish in (lambda: socket.create_connection(('127.0.0.1', 9)), lambda: subprocess.Popen(['true']),\n"
        "             lambda: os.system('true'), lambda: open(sys.argv[1], 'wb'), lambda: os.fork()):\n"
        "    try:\n"
        "        wish()\n"
        "        said.append('done')\n"
        "    except u._Refused as refused:\n"
        "        said.append('refused')\n"
        "print(json.dumps(said))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(source)], capture_output=True, check=True, timeout=60)
    assert json.loads(ran.stdout) == ["refused"] * 5
