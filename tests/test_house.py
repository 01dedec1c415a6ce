"""The house's rules that a machine can check."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from korlab.experiment import registry
from korlab.report import site

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
ENTRY = {"index", "train", "evaluate", "summarize", "compare", "tune", "search", "reproduce"}
LIBRARY = [p for p in NOTEBOOKS if p.parent.name not in ("nbs", "bench", "guides")]
MODULES = sorted((ROOT / "korlab").rglob("*.py"))


def cells(path: Path) -> list[dict]:
    return [c | {"source": "".join(c["source"])} for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def named(paths: list[Path]) -> dict:
    return dict(argvalues=paths, ids=[str(p.relative_to(ROOT)) for p in paths])


@pytest.mark.parametrize("path", **named(LIBRARY))
def test_a_library_notebook_opens_with_title_summary_and_module(path):
    first, second = [c for c in cells(path) if c["cell_type"] != "raw"][:2], [c for c in cells(path) if c["cell_type"] == "code"][0]
    assert re.match(r"# .+\n\n> .+", first[0]["source"])
    assert re.fullmatch(r"#\| default_exp [\w.]+", second["source"].strip())
    exported = [c for c in cells(path) if c["source"].startswith("#| export")]
    shown = [c for c in cells(path) if c["cell_type"] == "code" and ("test_" in c["source"] or "assert" in c["source"])]
    assert len(shown) >= len(exported) / 3, "too few examples with an assertion"


@pytest.mark.parametrize("path", **named(NOTEBOOKS))
def test_every_notebook_can_be_started_and_is_never_skipped(path):
    meta = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert (meta["kernelspec"]["name"], meta["kernelspec"]["language"]) == ("python3", "python")
    source = "\n".join(c["source"] for c in cells(path))
    assert not re.search(r"^#\|\s*eval:\s*false", source, re.MULTILINE)
    if path.stem not in ("evaluate", "compare", "summarize", "search"):  # they need trained runs; pytest executes them
        assert "skip_exec" not in source


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]


def test_no_path_of_one_machine_is_committed():
    pattern = re.compile(r"(?<![\w.~…/-])/(?:home/[a-z]+|root|Users/[A-Za-z]+)/")
    for path in tracked("*.py", "*.ipynb", "*.md", "*.html", "*.yaml", "*.json", "*.toml", "*.ini", "Makefile"):
        if path.name != "test_house.py" and path.name != "test_report.py":
            found = pattern.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


def test_nothing_pickles_or_runs_foreign_code_or_kills_by_name():
    pattern = re.compile(r"torch\.save\(|torch\.load\(|\bpickle\.|trust_remote_code\s*=\s*True|pkill|killall")
    for path in tracked("korlab/**.py", "nbs/**.ipynb", "Makefile", ".ci/run"):
        found = pattern.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


def test_no_file_is_large():
    for path in tracked():
        assert path.stat().st_size < 1 << 20, f"{path.relative_to(ROOT)} is larger than 1 MiB"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("korlab"):
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        assert not (isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names)), f"{path}: star import"
    return found


@pytest.mark.parametrize("path", **named(MODULES))
def test_dependencies_point_one_way(path):
    """The core reaches a study only by name through the registry, and no study imports another."""
    own = path.relative_to(ROOT / "korlab").parts[0]
    studies = set(registry.STUDIES)
    for name in imports(path):
        home = name.split(".")[1] if name.startswith("korlab.") else ""
        assert home not in studies - {own}, f"{path.name} imports {name}"


def test_entry_notebooks_hold_no_logic():
    for name in ("train", "evaluate", "compare", "summarize", "search"):
        for cell in cells(ROOT / "nbs" / f"{name}.ipynb"):
            if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
                tree = ast.parse(cell["source"])
                assert not any(isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.For, ast.If, ast.While)) for n in ast.walk(tree))
                assert len([n for n in tree.body if not isinstance(n, (ast.Import, ast.ImportFrom))]) <= 3


@pytest.mark.parametrize("index, out", site.READMES.items())
def test_a_readme_says_what_its_notebook_says(index, out):
    assert site.readme_is_fresh(ROOT / "nbs" / index, ROOT / out), 'run: python -c "from korlab.report.site import render_readmes; render_readmes()"'
