"""The configuration: what is wrong is named by file, key and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.errors import ConfigurationError
from node.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]


def _write(folder: Path, text: str) -> Path:
    path = folder / "node.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_configuration_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = load_settings(Path("conf/node.yaml"))
    assert [route.name for route in settings.route_list] == ["chest-ct", "chest-radiograph"]
    assert settings.demonstration_models is False


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERREAD__DIMSE__PORT", "11199")
    monkeypatch.setenv("OVERREAD__DEMONSTRATION_MODELS", "true")
    settings = load_settings(_write(tmp_path, "dimse: {ae_title: HERE, port: 104}\nroutes: []\n"))
    assert (settings.dimse.port, settings.dimse.ae_title, settings.demonstration_models) == (11199, "HERE", True)


ROUTE = "{name: a, match: {Modality: CT}, models: [m], deliver: [%s], notify: [%s]}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("dimse: {prot: 1}", r"node.yaml: dimse.prot: unknown key"),
        ("dimse: {port: 99999}", r"node.yaml: dimse.port: .*65535"),
        ("dimse: {ae_title: A_TITLE_THAT_IS_TOO_LONG}", r"dimse.ae_title: .*16"),
        ("completion: {quiet_seconds: 0}", r"completion.quiet_seconds: .*greater than 0"),
        ("destinations: {pacs: {kind: dimse, host: h, port: 1}}", r"destinations.pacs.dimse.ae_title: Field required"),
        ("destinations: {pacs: {kind: fax}}", r"destinations.pacs: .*'dimse', 'stow', 'folder'"),
        ("routes: [" + ROUTE % ("pacs", "") + "]", r"routes.a.deliver: no 'pacs' is configured"),
        ("routes: [" + ROUTE % ("", "emr") + "]", r"routes.a.notify: no 'emr' is configured"),
        ("routes: [{name: a, match: {Modalty: CT}, models: [m]}]", r"match.Modalty: not a DICOM keyword"),
        ("routes: [" + ROUTE % ("", "") + ", " + ROUTE % ("", "") + "]", r"two routes are named 'a'"),
        ("- a list", r"expected a mapping"),
        ("a: [", r"not valid YAML"),
        ("dimse: {bind: 0.0.0.0}", r"dimse.bind: 0.0.0.0 is reachable from outside; .*allowed_ae_titles"),
        ("http: {bind: 0.0.0.0}", r"http.bind: 0.0.0.0 is reachable from outside; .*OVERREAD__HTTP__TOKEN"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = _write(tmp_path, text if "routes" in text or text.startswith(("-", "a:")) else text + "\nroutes: []\n")
    with pytest.raises(ConfigurationError, match=complaint):
        load_settings(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere.yaml: no such file"):
        load_settings(tmp_path / "nowhere.yaml")


def test_listening_outside_is_taken_with_a_list_and_a_token_or_when_asked_for_by_name(tmp_path: Path) -> None:
    guarded = "dimse: {bind: 0.0.0.0, allowed_ae_titles: [CT1]}\nhttp: {bind: 0.0.0.0, token: secret}\nroutes: []\n"
    assert load_settings(_write(tmp_path, guarded)).http.token is not None
    by_name = "dimse: {bind: 0.0.0.0}\nhttp: {bind: 0.0.0.0}\nallow_open_network: true\nroutes: []\n"
    assert load_settings(_write(tmp_path, by_name)).allow_open_network
