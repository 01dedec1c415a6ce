"""The house's rules that a machine can check."""

import ast
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from korlab.experiment import studies
from korlab.experiment.config import SHARED, EvaluationParams
from korlab.experiment.params import cell_source, declared
from korlab.report import api, site
from korlab.workbench.comparing import CompareParams
from korlab.workbench.spaces import TuneParams

NBS, PACKAGE = ROOT / "nbs", ROOT / "korlab"
FLOORS = ("core", "metrics", "experiment", "report", "workbench")  # each stands on the ones before it
HOUSE = (*FLOORS, *studies.names(), "cli")
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
CHAPTERS = [p for p in NOTEBOOKS if p.parent.name in HOUSE]
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py", "_modidx.py"))
WAITING = ("evaluate", "compare", "tune", "summarize", "search", "fill")  # they need trained runs; pytest executes them


@cache
def cells(path: Path) -> list[dict]:
    return [c | {"source": "".join(c["source"])} for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def exported(path: Path) -> list[str]:
    """The exported cells that hold definitions: source without the directive and without blank lines at the ends."""
    found = [c["source"].removeprefix("#| export").strip() for c in cells(path) if c["source"].startswith("#| export")]
    return [source for source in found if definitions(source)]


def definitions(source: str) -> list[ast.stmt]:
    return [n for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]


def is_declaration(node: ast.stmt) -> bool:
    """A class of declared parameters: a list to read, as long as what it lists."""
    body = node.body[1:] if isinstance(node, ast.ClassDef) else ()
    return bool(body) and all(isinstance(n, ast.AnnAssign) for n in body)


def length(source: str) -> int:
    """Lines of code, without literals and declarations, which are read as tables are."""
    tree = ast.parse(source)
    tables = [n for n in tree.body if is_declaration(n) or isinstance(n, (ast.Assign, ast.AnnAssign))]
    skipped = {line for n in tables for line in range(n.lineno, n.end_lineno + 1)}
    return sum(bool(line.strip()) and number not in skipped for number, line in enumerate(source.splitlines(), 1))


def named(paths: list[Path]) -> dict:
    return dict(argvalues=paths, ids=[str(p.relative_to(ROOT)) for p in paths])


# ---- notebooks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", **named(CHAPTERS))
def test_a_chapter_opens_with_title_summary_and_module(path):
    first = [c for c in cells(path) if c["cell_type"] != "raw"][0]
    second = [c for c in cells(path) if c["cell_type"] == "code"][0]
    assert re.match(r"# .+\n\n> .+", first["source"])
    module = re.fullmatch(r"#\| default_exp ([\w.]+)", second["source"].strip())
    assert module and module[1].split(".")[0] == path.parent.name, "a chapter exports into the folder of its own name"
    assert re.match(r"\d\d[a-z]?_", path.name), "two digits, and a letter where one was squeezed in"


def is_error(node: ast.stmt) -> bool:
    """A class that only has a name and a docstring: an error, or another marker."""
    return isinstance(node, ast.ClassDef) and len(node.body) == 1


@pytest.mark.parametrize("path", **named(CHAPTERS))
def test_exported_cells_are_small(path):
    for source in exported(path):
        name = definitions(source)[0].name
        assert length(source) <= 40, f"{path.name}: the cell of {name} has {length(source)} lines"
        count = sum(not is_error(node) for node in definitions(source))
        assert count <= 3, f"{path.name}: the cell of {name} has {count} definitions"


@pytest.mark.parametrize("folder", HOUSE)
def test_a_folder_keeps_its_cells_short_and_tries_them(folder):
    chapters = [path for path in CHAPTERS if path.parent.name == folder]
    sources = [source for path in chapters for source in exported(path)]
    median = statistics.median(map(length, sources))
    assert median <= 12, f"{folder}: the median exported cell has {median} lines"
    others = [c["source"] for path in chapters for c in cells(path) if c["cell_type"] == "code"]
    tried = [s for s in others if not re.match(r"#\| (export|default_exp)", s) and re.search(r"\b(test_\w+|assert)\b", s)]
    assert len(tried) >= 0.8 * len(sources), f"{folder}: {len(tried)} cells try {len(sources)} exported ones"


@pytest.mark.parametrize("path", **named(NOTEBOOKS))
def test_every_notebook_can_be_started_and_is_never_skipped(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    meta = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert (meta["kernelspec"]["name"], meta["kernelspec"]["language"]) == ("python3", "python")
    source = "\n".join(c["source"] for c in cells(path))
    assert not re.search(r"^#\|\s*eval:\s*false", source, re.MULTILINE)
    if path.stem not in WAITING:
        assert "skip_exec" not in source


def test_entry_notebooks_hold_no_logic():
    for name in ("train", *WAITING):
        for cell in cells(NBS / f"{name}.ipynb"):
            if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
                tree = ast.parse(cell["source"])
                logic = (ast.FunctionDef, ast.ClassDef, ast.For, ast.If, ast.While)
                assert not any(isinstance(n, logic) for n in ast.walk(tree))
                assert len([n for n in tree.body if not isinstance(n, (ast.Import, ast.ImportFrom))]) <= 3


# ---- parameters --------------------------------------------------------------------------------------------------


def parameters_cell(name: str) -> str:
    return next(c["source"] for c in cells(NBS / f"{name}.ipynb") if "parameters" in c["metadata"].get("tags", []))


def test_each_parameter_has_one_owner_and_cells_are_what_the_generator_writes():
    declared([*SHARED.values(), *(studies.parameters(name).Params for name in studies.names())])
    declared([EvaluationParams, *studies.rescoring_specs()])
    assert parameters_cell("train") == studies.training_cell()
    assert parameters_cell("evaluate") == studies.evaluation_cell()
    assert parameters_cell("compare") == cell_source({"": CompareParams})
    assert parameters_cell("tune") == cell_source({"": TuneParams})


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(m for m in sys.modules if '.' not in m))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())


def test_looking_at_parameters_loads_nothing_heavy():
    modules = ", ".join(f"korlab.{name}.parameters" for name in studies.names())
    configured = "from korlab.experiment import studies; studies.configure({}); studies.training_cell()"
    for statement in (f"import {modules}", configured):
        assert not {"numpy", "torch", "transformers", "scipy"} & loaded_by(statement)


# ---- the order of the house --------------------------------------------------------------------------------------


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module of the package that a module imports, at its top or inside a function."""
    package, found = module_of(path).split(".")[:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not any(a.name == "*" for a in node.names), f"{path}: star import"
            base = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            found |= {home, *(f"{home}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    known = {module_of(one) for one in MODULES}
    return frozenset(found & known)


def chapter_of() -> dict[str, Path]:
    """Module -> the notebook it is exported from."""
    found = {}
    for path in CHAPTERS:
        source = next(c["source"] for c in cells(path) if c["source"].startswith("#| default_exp"))
        found[f"korlab.{source.split()[-1]}"] = path
    return found


@pytest.mark.parametrize("path", **named(MODULES))
def test_imports_go_one_way(path):
    """Never to a higher floor, never to another study, and within a folder only to an earlier chapter."""
    own, chapters = path.relative_to(PACKAGE).parts[0], chapter_of()
    lower = {name: FLOORS[: FLOORS.index(name)] for name in FLOORS} | {name: FLOORS for name in studies.names()} | {"cli": FLOORS}
    for name in imports(path) - {module_of(path)}:
        home = name.split(".")[1]
        assert home == own or home in lower[own], f"{module_of(path)} imports {name}"
        if home == own:
            earlier, later = chapters[name].name, chapters[module_of(path)].name
            assert earlier < later, f"{later} imports {earlier}"


def test_every_module_has_a_chapter():
    assert set(chapter_of()) == {module_of(path) for path in MODULES}


def names_of_studies() -> set[str]:
    """What only a study may say: its name, its models', its measures'."""
    found = set(studies.names()) | set(studies.models())
    for name in studies.names():
        study = studies.study(name)
        found |= {text for m in (*study.measures, *study.dev) for text in (m.name, m.label, m.dev)}
    return found


@pytest.mark.parametrize("path", **named([p for p in MODULES if p.relative_to(PACKAGE).parts[0] in set(FLOORS) - {"metrics"}]))
def test_the_house_names_no_study_model_or_measure(path):
    text = path.read_text(encoding="utf-8").replace("scipy.sparse", "")
    for name in names_of_studies() - {"loss"}:
        assert not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), f"{path.name} says {name!r}"


# ---- names -------------------------------------------------------------------------------------------------------


def public_names(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def travelling(path: Path) -> set[str]:
    """Types that public functions and records of a module take and give: whoever calls them holds one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            notes = [node.returns, *(a.annotation for a in (*node.args.args, *node.args.kwonlyargs))]
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            notes = [n.annotation for n in node.body if isinstance(n, ast.AnnAssign)]
        else:
            continue
        found |= {word for note in notes if note for word in re.findall(r"\w+", ast.unparse(note))}
    return found


def test_public_means_used():
    """A name without an underscore is used outside its chapter, travels, or is an error somebody may catch."""
    texts = {path: "\n".join(c["source"] for c in cells(path)) for path in NOTEBOOKS}
    others = [p for p in (ROOT / "tests").glob("*.py")] + [ROOT / "CONTRIBUTING.md", ROOT / "README.md", ROOT / "pyproject.toml"]
    texts |= {path: path.read_text(encoding="utf-8") for path in others}
    words = {path: Counter(re.findall(r"\w+", text)) for path, text in texts.items()}
    total = sum(words.values(), Counter())
    homes = {module: path for module, path in chapter_of().items()}
    idle = [
        f"{module_of(path)}.{name}" for path in MODULES for name in public_names(path)
        if total[name] == words[homes[module_of(path)]][name]
        and name not in travelling(path) and not name.endswith("Error")
    ]
    assert not idle, f"{len(idle)} public names are used nowhere else: {', '.join(idle)}"


def test_everything_public_is_documented():
    """What the API pages show says something of every name, parameter, field and result."""
    modules = api.modules(PACKAGE)
    bare = [what for source in modules for what in api.undocumented(source, api.types(modules))]
    assert not bare, f"{len(bare)} have no docstring or comment: {', '.join(bare)}"


# ---- files -------------------------------------------------------------------------------------------------------


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]


def test_no_path_of_one_machine_is_committed():
    pattern = re.compile(r"(?<![\w.~…/-])/(?:(?:home/[a-z]+|root|Users/[A-Za-z]+)/|[\w./-]+/site-packages/)")
    for path in tracked("*.py", "*.ipynb", "*.md", "*.html", "*.yaml", "*.json", "*.toml", "*.ini", "Makefile"):
        if path.name != "test_house.py" and path.name != "test_report.py":
            found = pattern.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


def test_nothing_pickles_or_runs_foreign_code_or_kills_by_name():
    pattern = re.compile(r"torch\.save\(|torch\.load\(|\bpickle\.|trust_remote_code\s*=\s*True|pkill|killall")
    for path in tracked("korlab/**.py", "nbs/**.ipynb", "Makefile", ".ci/run"):
        found = pattern.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


def test_nothing_is_timed_by_a_clock_that_somebody_sets():
    timed = [str(path) for path in tracked("korlab/**/*.py") if re.search(r"\btime\.time\(|create_time\(", path.read_text(encoding="utf-8"))]
    assert not timed, "time.monotonic or time.perf_counter measures how long something took"


def loads(call: ast.Call) -> bool:
    """Whether a call reads what somebody else may have made: a configuration, a tokenizer or weights."""
    name, base = getattr(call.func, "attr", getattr(call.func, "id", "")), ast.unparse(call.func)
    return (name in ("from_pretrained", "from_config") and "Embedding" not in base
            or name in ("SparseEncoder", "SentenceTransformer", "CrossEncoder", "Transformer", "pipeline") and bool(call.args))


def test_whatever_loads_a_model_runs_nobodys_code():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and loads(node)] if "from_" in text or "sentence_tr" in text else []
        for call in map(ast.unparse, calls):
            assert "**NO_CODE" in call or "=NO_CODE" in call or "**NO_PICKLE" in call, f"{path.relative_to(ROOT)}: {call}"
            assert "**NO_PICKLE" in call or not re.match(r"AutoModel\w*\.from_pretrained", call) or "gguf" in text, f"{path.relative_to(ROOT)}: {call}"


def test_no_file_is_large():
    for path in tracked():
        assert path.stat().st_size < 1 << 20, f"{path.relative_to(ROOT)} is larger than 1 MiB"


@pytest.mark.parametrize("index, out", site.READMES.items())
def test_a_readme_says_what_its_notebook_says(index, out):
    assert site.readme_is_fresh(NBS / index, ROOT / out), 'run: python -c "from korlab.report.site import render_readmes; render_readmes()"'


def test_what_security_md_names_is_there():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in tracked("tests/*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 20 and not [name for name in named if f"def {name}(" not in tests]
    assert all((ROOT / path).is_file() for path in re.findall(r"`(nbs/[\w/.]+)`", text))
