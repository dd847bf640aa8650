"""The documentation names every key that the configuration has, with the default that it has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from node.peers import Login, Peer
from node.security.tls import Acceptor, PeerTls
from node.settings import (
    DimseDestination,
    FolderDestination,
    HL7Notifier,
    Route,
    Settings,
    StowDestination,
)

DOC = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
#: Keys whose documentation is a chapter or a table of its own.
_NAMED: dict[str, tuple[type[BaseModel], ...]] = {
    "dimse.tls": (Acceptor,),
    "peers.NAME": (Peer,),
    "peers.NAME.tls": (PeerTls,),
    "peers.NAME.login": (Login,),
    "destinations.NAME": (DimseDestination, StowDestination, FolderDestination),
    "notifiers.NAME": (HL7Notifier,),
    "routes": (Route,),
}


def _keys() -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found += [(f"{name}.{key}", inner.get_default()) for key, inner in section.model_fields.items()]
        elif name not in ("peers", "destinations", "notifiers"):
            found.append((name, field.get_default()))
    for prefix, kinds in _NAMED.items():
        for kind in kinds:
            found += [(f"{prefix}.{key}", inner.get_default()) for key, inner in kind.model_fields.items()]
    return found


@pytest.mark.parametrize(("key", "default"), _keys(), ids=lambda one: one if isinstance(one, str) else "")
def test_every_key_is_documented_with_its_default(key: str, default: Any) -> None:
    rows = re.findall(rf"^\| `{re.escape(key)}` \|.*$", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 1, f"{key} stands in {len(rows)} rows of {DOC.name}"
    if isinstance(default, bool):
        assert f"`{str(default).lower()}`" in rows[0]
    elif isinstance(default, (int, float, Path)) or (isinstance(default, str) and default):
        assert f"`{default}`" in rows[0]


def test_every_documented_key_exists() -> None:
    documented = set(re.findall(r"^\| `([a-zA-Z_.]+)` \|", DOC.read_text(encoding="utf-8"), re.MULTILINE))
    known = {key for key, _ in _keys()}
    assert documented - known == set()
    assert get_args(Settings.model_fields["routes"].annotation)


def test_the_routes_in_the_documentation_load() -> None:
    import yaml

    blocks = re.findall(r"```yaml\n(- name.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        for route in yaml.safe_load(block):
            Route.model_validate(route)


def test_the_readme_leads_to_every_page() -> None:
    pages = {f"docs/{page.relative_to(DOC.parent)}" for page in DOC.parent.rglob("*.md")}
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)", (DOC.parents[1] / "README.md").read_text(encoding="utf-8")))
    assert linked == pages
