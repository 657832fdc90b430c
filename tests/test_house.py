"""The house rules: what is imported from where, how long things are, and that every port has what it needs."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [p for name in ("services", "models", "feature_repo", "infra") for p in sorted((ROOT / name).rglob("*.py"))]
SOURCES.append(ROOT / "infra" / "stack")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400


@pytest.mark.parametrize("package", ["services", "models", "feature_repo"])
def test_each_package_is_imported_from_this_checkout(package: str) -> None:
    file = importlib.import_module(package).__file__
    assert file is not None
    assert Path(file).is_relative_to(ROOT)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_and_no_function_outgrows_its_reader(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{path}:{node.lineno} {node.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_every_port_has_a_contract_suite() -> None:
    ports = importlib.import_module("services.ports")
    names = [n for n, each in inspect.getmembers(ports, inspect.isclass) if each.__module__ == ports.__name__]
    suites = "\n".join(path.read_text() for path in (ROOT / "tests" / "contracts").glob("test_*.py"))
    missing = [name for name in names if not re.search(rf"\b{name}\b", suites)]
    assert not missing, f"no suite names {missing}"


def test_the_tree_in_the_readme_is_the_tree() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("## The tree", 1)[1].split("```")[1]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.strip()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    modules = {
        Path(path).name
        for path in tracked.splitlines()
        if path.startswith(("services/", "models/", "feature_repo/"))
        and path.endswith(".py")
        and "__init__" not in path
    }
    assert not modules - named, f"the README does not name {sorted(modules - named)}"


def test_no_file_names_a_registry_host_or_this_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    registries = "|".join(("pypi", "pythonhosted", "maven", "npm", "crates", "golang", "debian", "pytorch"))
    host = re.compile(rf"https?://[^\s/'\"]*(?:{registries})|index[-]url", re.I)
    for name in tracked.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".toml", ".md", ".txt", ".yaml", ".yml", ""} and path.is_file() and name != "LICENSE":
            text = path.read_text(errors="ignore")
            assert not host.search(text), name
