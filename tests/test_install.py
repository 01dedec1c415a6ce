"""An installed package: what a light one can do, what it says of what it lacks, and the lab that it makes."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from conftest import ROOT

from korlab.core.extras import EXTRAS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
IMPORTED = {  # distribution -> module, where these differ
    "python-dotenv": "dotenv", "pyyaml": "yaml", "beautifulsoup4": "bs4", "pillow": "PIL", "mlflow-skinny": "mlflow",
    "opensearch-py": "opensearchpy", "pyseismic-lsr": "seismic", "markdown-it-py": "markdown_it",
}
BROUGHT = {"traitlets": "nbconvert", "IPython": "jupyterlab", "cycler": "matplotlib"}  # module -> what depends on it
UNNAMED = {"unsloth", "flashdeberta", "disentangled_flash", "sqlalchemy", "alembic", "nbdev", "sentencepiece", "protobuf"}


def modules(requirements: list[str]) -> set[str]:
    names = [re.match(r"[\w.-]+", one)[0] for one in requirements]
    return {IMPORTED.get(name, name.replace("-", "_")) for name in names} - {"korlab"}


LIGHT = modules(PROJECT["dependencies"])


def foreign(path: Path, top: bool) -> set[str]:
    """The packages of others that a module imports: anywhere, or as soon as it is imported itself."""
    found, tree = set(), ast.parse(path.read_text("utf-8"))
    checking = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {id(inner) for node in checking for inner in ast.walk(node)}
    for node in tree.body if top else ast.walk(tree):
        if id(node) not in skipped:
            if isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
    return {name.split(".")[0] for name in found} - set(sys.stdlib_module_names) - {"korlab"}


SOURCES = [path for path in (ROOT / "korlab").rglob("*.py") if path.name != "_modidx.py"]


def test_every_package_that_is_imported_is_light_or_an_extra_s():
    for path in SOURCES:
        assert foreign(path, top=False) <= LIGHT | set(EXTRAS) | UNNAMED, path


@pytest.mark.parametrize("folder", ["core", "metrics", "experiment", "report", "workbench", "cli"])
def test_importing_the_floors_takes_the_light_packages(folder):
    """Those of training apart, which nobody imports without training."""
    for path in (ROOT / "korlab" / folder).glob("*.py"):
        if path.stem not in ("batches", "computing", "training"):
            assert foreign(path, top=True) <= LIGHT, path


def test_the_table_of_extras_is_what_pyproject_says():
    extras = {name: modules(asked) for name, asked in PROJECT["optional-dependencies"].items()}
    for module, extra in EXTRAS.items():
        assert BROUGHT.get(module, module) in extras[extra], module
    assert set().union(*(extras[name] for name in ("train", "search", "lab", "parquet"))) <= set(EXTRAS) | UNNAMED
    assert not LIGHT & set(EXTRAS)


# ---- a wheel, in an environment of its own -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of an environment with a wheel of korlab, beside the packages of the running one."""
    place = tmp_path_factory.mktemp("installed")
    pytest.importorskip("setuptools", "77")
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if name.startswith(("korlab/", "nbs/", "params/")) or name in ("pyproject.toml", "setup.py", "settings.ini", "README.md", "LICENSE"):
            (place / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "clone" / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], check=True, cwd=place / "clone", capture_output=True, text=True)
    venv.create(home := place / "venv", with_pip=False)
    wheel = place / "clone" / done.stdout.split()[-1]
    target = next(home.glob("lib/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    (target / "others.pth").write_text(str(Path(pytest.__file__).parents[1]))
    return home


def python(home: Path, code: str, *words: object, where: Path) -> subprocess.CompletedProcess:
    """Run code with an installed package, from a folder."""
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "KORLAB_RUNS")} | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run([home / "bin" / "python", "-P", "-c", code, *map(str, words)], cwd=where, capture_output=True, text=True, env=environ)


def call(home: Path, *words: object, where: Path, before: str = "") -> subprocess.CompletedProcess:
    """`korlab …` of an installed package."""
    return python(home, f"{before}\nfrom korlab.cli.main import main; main()", *words, where=where)


LIGHT_ONLY = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {sorted({*EXTRAS, *UNNAMED})!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
real = importlib.util.find_spec
def find_spec(name, package=None):
    try:
        return real(name, package)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
"""


def test_the_installed_package_is_the_one_from_the_wheel(installed, tmp_path):
    done = call(installed, "--version", where=tmp_path, before="import korlab; print(korlab.__file__)")
    assert done.stdout.splitlines()[0].startswith(str(installed)) and done.stdout.splitlines()[1].startswith("korlab ")


@pytest.mark.parametrize("words", [
    ["list"], ["status"], ["report"], ["run", "x.yaml"], ["evaluate"], ["compare"], ["tune", "a.yaml", "--space", "b.yaml"],
    ["summarize", "x", "in.csv", "--to", "out.csv"], ["sparse", "train", "x.yaml"], ["sparse", "export", "x", "--to", "y", "--license", "mit"],
    ["coref", "fill", "[MASK]"], ["ivr", "all"],
], ids=" ".join)
def test_what_needs_a_lab_says_so_in_one_sentence(words, installed, tmp_path):
    done = call(installed, *words, where=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "this needs a lab" in done.stderr and "`korlab new lab FOLDER`" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--help"], ["list", "--help"], ["models", "--json"], ["new", "lab", "--help"]], ids=" ".join)
def test_what_needs_neither_lab_nor_extra_works_anywhere(words, installed, tmp_path):
    done = call(installed, *words, where=tmp_path, before=LIGHT_ONLY)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_light_install_scores_reads_and_names_the_extra_of_the_rest(installed, tmp_path):
    code = ("from korlab.metrics.rouge import rouge\nfrom korlab.core.text import morphemes\nimport korlab.metrics.retrieval, korlab.metrics.recall, korlab.metrics.bits\n"
            "import korlab.core.rows, korlab.core.sources, korlab.experiment.studies\n"
            "print(round(rouge(['나는 책을 읽는다.'], ['나는 책을 읽었다.']).means['rouge1'], 3))\n"
            "try:\n    import korlab.sparse.head\nexcept ImportError as error:\n    print(error)")
    done = python(installed, LIGHT_ONLY + code, where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ("this needs torch, which is not installed: pip install 'korlab[search]'"), done.stderr
    assert float(done.stdout.splitlines()[0]) > 0.5
    found = json.loads(call(installed, "doctor", "--json", where=tmp_path, before=LIGHT_ONLY).stdout)
    said = {one["what"]: one for one in found}
    assert (said["torch build"]["advice"], said["lab"]["state"]) == ("pip install 'korlab[search]'", "optional")
    assert said["Kiwi"]["state"] == "ok" and "korlab new lab" in said["lab"]["advice"]
    lone = call(installed, "sparse", "search", "책", where=tmp_path, before=LIGHT_ONLY)
    assert lone.returncode == 1 and re.fullmatch(r"korlab: this needs \w+, which is not installed: pip install 'korlab\[search\]'\n", lone.stderr)


def test_a_new_lab_is_whole_and_nothing_is_overwritten(installed, tmp_path):
    made = call(installed, "new", "lab", "my lab", where=tmp_path)
    assert made.returncode == 0 and "korlab doctor" in made.stdout, made.stderr
    lab = tmp_path / "my lab"
    assert {path.stem for path in (lab / "nbs").glob("*.ipynb")} == {"lab", "train", "evaluate", "compare", "tune", "summarize", "search", "fill"}
    assert (lab / "README.md").read_text().startswith("# my lab") and "runs/" in (lab / ".gitignore").read_text()
    assert {p.relative_to(ROOT) for p in (ROOT / "params").rglob("*.yaml")} == {p.relative_to(lab) for p in (lab / "params").rglob("*.yaml")}
    for name in ("settings.ini", "nbs/train.ipynb"):
        assert (lab / name).read_bytes() == (ROOT / name).read_bytes()
    assert call(installed, "list", where=lab).returncode == 0
    for words, file in ((("experiment", "mine", "--study", "coref"), "params/coref/mine.yaml"), (("notebook", "nbs/look.ipynb"), "nbs/look.ipynb")):
        done = call(installed, "new", *words, where=lab)
        assert done.returncode == 0 and (lab / file).is_file(), done.stderr
    code = "import papermill, sys; print(sorted(papermill.inspect_notebook('nbs/train.ipynb'))[:2])"
    done = python(installed, code, where=lab)
    assert "accumulation" in done.stdout, done.stderr
    dry = call(installed, "run", "params/summarization/quickstart.yaml", "--dry-run", where=lab)
    assert dry.returncode == 0 and "kobart" in dry.stdout, dry.stderr
    again = call(installed, "new", "lab", "my lab", where=tmp_path)
    assert again.returncode == 1 and ".gitignore exists already" in again.stderr
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "settings.ini").write_text("mine")
    refused = call(installed, "new", "lab", "half", where=tmp_path)
    assert "half/settings.ini exists already" in refused.stderr and [p.name for p in (tmp_path / "half").iterdir()] == ["settings.ini"]
