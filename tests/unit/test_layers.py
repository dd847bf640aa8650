"""The packages know each other as drawn, and importing the node brings no heavy runtime."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {"node": {"node", "inference", "storage"}, "inference": {"inference"}, "storage": {"storage"}}
OURS = {"node", "inference", "storage", "phantoms", "training", "demo", "tests"}


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_it_may_know(package: str) -> None:
    strays = {
        (str(file.relative_to(ROOT)), name)
        for file in (ROOT / package).rglob("*.py")
        for name in _imports(file)
        if name.split(".")[0] in OURS - ALLOWED[package]
    }
    assert strays == set()


def test_the_readers_of_the_demonstration_know_nothing_of_the_node() -> None:
    strays = {
        (file.name, name)
        for file in (ROOT / "demo").rglob("*.py")
        for name in _imports(file)
        if name.split(".")[0] in {"node", "inference", "storage"}
    }
    assert strays == set()


def test_torch_is_imported_only_by_its_engines_and_by_training() -> None:
    users = {
        str(file.relative_to(ROOT))
        for package in ("node", "inference", "storage", "phantoms", "demo")
        for file in (ROOT / package).rglob("*.py")
        if any(name.split(".")[0] in {"torch", "torchxrayvision", "monai"} for name in _imports(file))
    }
    assert {user for user in users if not user.startswith("inference/engines/")} == set()


def test_importing_the_node_brings_no_model_runtime() -> None:
    script = (
        "import sys, node, node.app, node.cli\n"
        "heavy = {'torch', 'onnxruntime', 'highdicom', 'scipy'} & set(sys.modules)\n"
        "print(*sorted(heavy))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_no_package_has_an_import_cycle() -> None:
    """Module by module, within and across packages; imports under TYPE_CHECKING run never and do not count."""
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for package in ALLOWED
        for file in (ROOT / package).rglob("*.py")
        if "migrations" not in file.parts
    }
    graph = {
        name: {one for one in _imports_at_load(file) if one in modules and one != name}
        for name, file in modules.items()
    }
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if state.get(name) == 2:
            return
        assert state.get(name) != 1, " -> ".join((*path, name))
        state[name] = 1
        for other in graph[name]:
            visit(other, (*path, name))
        state[name] = 2

    for name in graph:
        visit(name, ())


def _imports_at_load(file: Path) -> set[str]:
    found: set[str] = set()
    package = not file.name.startswith("__init__")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # "from package import module" loads the package too, but the package itself asks nothing of the module.
            found |= names | ({node.module} if package else set())
    return found
