"""The containers fit together: what compose says, what the images are built from, and what the node itself takes."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from node.settings import DimseDestination, Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
#: As compose and Orthanc both write them: ${NAME}, ${NAME:-default}, ${NAME:?complaint}.
VARIABLE = re.compile(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    return found


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions, continuation lines joined and comments left out."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.split("\n")) if word
    ]


def last_stage(dockerfile: Path) -> list[tuple[str, str]]:
    found = instructions(dockerfile)
    begins = [number for number, (word, _) in enumerate(found) if word == "FROM"]
    return found[begins[-1] :]


def value_of(dockerfile: Path, word: str) -> str:
    (found,) = [rest for name, rest in last_stage(dockerfile) if name == word]
    return found


def environment_of(service: dict[str, Any], **given: str) -> dict[str, str]:
    """Return a service's environment as compose gives it, with the variables of the shell that calls it."""

    def filled(match: re.Match[str]) -> str:
        name, operator, rest = match.group(1), match.group(2), match.group(3)
        if name not in given and operator == ":?":
            raise LookupError(rest)
        return given.get(name, rest if operator == ":-" else "")

    return {name: VARIABLE.sub(filled, str(value)) for name, value in service["environment"].items()}


def pacs_configuration(environment: dict[str, str]) -> dict[str, Any]:
    """Return orthanc.json as Orthanc reads it: without comments, with the environment put in."""
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "orthanc" / "orthanc.json").read_text(encoding="utf-8"), flags=re.DOTALL)
    found: dict[str, Any] = json.loads(VARIABLE.sub(lambda one: environment.get(one[1], one[3] or ""), text))
    return found


@pytest.fixture
def composed(services: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Give the configuration that the node's container reads."""
    for name, value in environment_of(services["node"], OVERREAD_TOKEN=TOKEN).items():
        monkeypatch.setenv(name, value)
    for pair in [rest for word, rest in last_stage(ROOT / "Dockerfile") if word == "ENV"]:
        for name, value in re.findall(r"(OVERREAD__\w+)=(\S+)", pair):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    return load_settings(Path("conf/node.yaml"))


def test_the_node_takes_the_environment_that_compose_gives_it(composed: Settings) -> None:
    assert composed.http.token is not None
    assert composed.http.token.get_secret_value() == TOKEN
    assert composed.allow_open_network is False
    assert (composed.dimse.bind, composed.http.bind) == ("0.0.0.0", "0.0.0.0")


def test_compose_does_not_start_the_node_without_a_token(services: dict[str, Any]) -> None:
    with pytest.raises(LookupError, match="set a token first"):
        environment_of(services["node"])


def test_node_and_pacs_know_each_other_by_the_names_that_they_have(
    composed: Settings, services: dict[str, Any]
) -> None:
    destination = composed.destinations["pacs"]
    assert isinstance(destination, DimseDestination)
    pacs = composed.peers[destination.peer]
    told = environment_of(services["orthanc"])
    configuration = pacs_configuration(told)
    assert pacs.host in services
    assert (pacs.ae_title, pacs.port) == (configuration["DicomAet"], configuration["DicomPort"])
    assert composed.dimse.strangers is None, "nobody but peers may call"
    ae_title, host, port = configuration["DicomModalities"]["overread"]
    assert services[host] is services["node"]
    assert (ae_title, port) == (composed.dimse.ae_title, composed.dimse.port)
    emr = composed.notifiers["emr"]
    command = services[emr.host]["command"]
    assert str(emr.port) == command[command.index("--port") + 1]


def test_every_variable_of_the_pacs_is_read_by_its_configuration(services: dict[str, Any]) -> None:
    read = (ROOT / "orthanc" / "orthanc.json").read_text("utf-8") + (ROOT / "orthanc" / "auto-forward.lua").read_text()
    for name in services["orthanc"]["environment"]:
        assert name in read


def test_the_ports_that_are_exposed_are_the_nodes_and_only_loopback_publishes_them(
    composed: Settings, services: dict[str, Any]
) -> None:
    ports = {str(composed.dimse.port), str(composed.http.port)}
    assert set(value_of(ROOT / "Dockerfile", "EXPOSE").split()) == ports
    assert {one.rpartition(":")[2] for one in services["node"]["ports"]} == ports
    for service in services.values():
        assert all(one.startswith("127.0.0.1:") for one in service.get("ports", ()))


def test_the_node_is_built_in_stages_and_runs_as_nobody_special() -> None:
    assert [word for word, _ in instructions(ROOT / "Dockerfile")].count("FROM") > 1
    found = last_stage(ROOT / "Dockerfile")
    users = [rest for word, rest in found if word == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    assert re.search(rf"useradd .*\b{users[-1]}\b", " ".join(rest for word, rest in found if word == "RUN"))
    assert not any("pip install" in rest for word, rest in found if word == "RUN")


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "orthanc/Dockerfile"])
def test_each_image_says_how_its_health_is_asked_and_starts_one_program(dockerfile: str) -> None:
    _, _, command = value_of(ROOT / dockerfile, "HEALTHCHECK").partition("CMD ")
    assert isinstance(json.loads(command), list)
    assert isinstance(json.loads(value_of(ROOT / dockerfile, "ENTRYPOINT")), list)


def test_the_health_that_is_asked_is_one_that_the_node_gives(composed: Settings) -> None:
    url = re.search(r"http://127.0.0.1:(\d+)(/[a-z/]+)", value_of(ROOT / "Dockerfile", "HEALTHCHECK"))
    assert url is not None
    assert (int(url.group(1)), url.group(2)) == (composed.http.port, "/health/live")


def test_what_the_node_keeps_lies_in_a_volume(composed: Settings, services: dict[str, Any]) -> None:
    assert value_of(ROOT / "Dockerfile", "VOLUME") == str(composed.data_dir)
    declared = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["volumes"]
    (mounted,) = services["node"]["volumes"]
    name, _, path = mounted.partition(":")
    assert path == str(composed.data_dir)
    assert name in declared


@pytest.mark.parametrize("folder", [".", "orthanc"])
def test_everything_that_an_image_copies_is_there_and_not_ignored(folder: str) -> None:
    ignored = ROOT / folder / ".dockerignore"
    kept = [line[1:] for line in ignored.read_text().split() if line.startswith("!")] if ignored.exists() else ["*"]
    for word, rest in instructions(ROOT / folder / "Dockerfile"):
        if word != "COPY" or rest.startswith("--from"):
            continue
        for source in rest.split()[:-1]:
            assert (ROOT / folder / source).exists(), source
            assert any(fnmatch(source, one) for one in kept), f"{source} is left out by .dockerignore"


def test_who_waits_for_a_healthy_service_waits_for_one_that_can_say_so(services: dict[str, Any]) -> None:
    waited = {
        other
        for one in services.values()
        for other, how in one.get("depends_on", {}).items()
        if how["condition"] == "service_healthy"
    }
    assert waited == {"orthanc"}
    for name in waited:
        built = services[name]["build"]
        assert value_of(ROOT / built / "Dockerfile", "HEALTHCHECK")
    for one in services.values():
        for mount in one.get("volumes", ()):
            source = mount.partition(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists()
