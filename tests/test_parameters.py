"""What a person types: every mistake stops before any work with one sentence, and every value reaches the run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, TINY, flags, papermill

from korlab.core.yamls import read_yaml
from korlab.experiment import params, studies
from korlab.sparse import search
from korlab.workbench import comparing, spaces

ENTRY = {  # entry notebook -> what writes its parameters cell
    "train": studies.training_cell,
    "evaluate": studies.evaluation_cell,
    "compare": lambda: params.cell_source({"": comparing.CompareParams}),
    "tune": lambda: params.cell_source({"": spaces.TuneParams}),
    "search": lambda: params.cell_source({"": search.SearchParams}),
}


def cell(notebook: str, tag: str = "parameters") -> str:
    cells = nbformat.read(ROOT / "nbs" / f"{notebook}.ipynb", as_version=4).cells
    tagged = [c.source for c in cells if tag in c.metadata.get("tags", [])]
    assert len(tagged) == 1, f"{notebook}.ipynb has {len(tagged)} cells tagged {tag}"
    return tagged[0]


@pytest.mark.parametrize("notebook", ENTRY)
def test_the_parameters_cell_says_what_the_dataclasses_say(notebook):
    assert cell(notebook) == ENTRY[notebook](), "paste what the function in ENTRY returns"


@pytest.mark.parametrize("notebook", [*ENTRY, "summarize"])
def test_entry_notebooks_have_a_kernel_papermill_can_start(notebook):
    spec = nbformat.read(ROOT / "nbs" / f"{notebook}.ipynb", as_version=4).metadata.kernelspec
    assert (spec.name, spec.language) == ("python3", "python")


MISTAKES = [
    (["-p", "modle", "kobart"], "unknown parameter 'modle': did you mean 'model'?"),
    (["-p", "model", "bert"], "unknown model 'bert'"),
    (["-p", "learning_rate", "abc"], "learning_rate='abc': expected a number"),
    (["-p", "epochs", "-1"], "epochs=-1.0: must be greater than 0"),
    (["-p", "size", "full"], "could not be loaded"),
    (["-p", "data", "data/nothing.csv"], "data/nothing.csv"),
]


@pytest.mark.parametrize("words, sentence", MISTAKES, ids=[m[0][1] + m[0][2] for m in MISTAKES])
def test_a_mistake_stops_papermill_with_one_sentence(words, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    outcome = papermill(tmp_path / "out.ipynb", *words, runs=tmp_path / "runs")
    assert outcome.code == 1
    assert sentence in outcome.text


@pytest.mark.parametrize("given, sentence", [
    ({"scheduler": "constant", "warmup": 100}, "needs scheduler to be something other than 'constant'"),
    ({"max_steps": 5, "epochs": 9}, "needs max_steps to be unset"),
    ({"data_policy": "strict"}, "no effect because data='embedded'"),
    ({"checkpoint": "somewhere"}, "no effect because size='mini'"),
    ({"length_penalty": 0.8}, "no effect because num_beams=1"),
    ({"name": "../elsewhere"}, "a name is a folder's name"),
    ({"name": ""}, "a name is a folder's name"),
])
def test_a_value_without_effect_or_place_is_refused(given, sentence):
    with pytest.raises(params.ParameterError, match=re.escape(sentence)):
        studies.configure(given)


BAD_FILES = {
    "unknown key": (b"model: kobart\nlerning_rate: 1e-3\n", "did you mean 'learning_rate'?"),
    "duplicate key": (b"seed: 1\nseed: 2\n", "line 2: the key 'seed' appears twice"),
    "boolean key": (b"on: 1\n", "put it in quotes"),
    "nested": (b"training:\n  epochs: 3\n", "a parameter is a single value"),
    "not yaml": (b"model: [kobart\n", "this is not readable YAML"),
    "a list": (b"- kobart\n", "expected lines of `name: value`"),
}


@pytest.mark.parametrize("content, sentence", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_experiment_file_stops_korlab_run(content, sentence, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    done = subprocess.run([str(Path(sys.executable).with_name("korlab")), "run", str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_yaml_key_stops_papermill(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: kobart\nlerning_rate: 1e-3\n")
    outcome = papermill(tmp_path / "out.ipynb", "-f", str(file), runs=tmp_path / "runs")
    assert outcome.code == 1 and "unknown parameter 'lerning_rate'" in outcome.text


def test_every_experiment_file_is_valid():
    base = read_yaml(ROOT / "params" / "base.yaml")
    files = sorted(p for p in (ROOT / "params").glob("*/*.yaml"))
    assert files
    for file in files:
        config = studies.configure(base | read_yaml(file))
        assert studies.model(config.run.model).study == file.parent.name


@pytest.mark.parametrize("text, value", [("5e-5", 5e-5), ("5.0e-5", 5e-5), ("0.00005", 5e-5), ("'5e-5'", 5e-5)])
def test_yaml_spellings_of_a_learning_rate(text, value, tmp_path):
    file = tmp_path / "rate.yaml"
    file.write_text(f"learning_rate: {text}\n")
    assert studies.configure(read_yaml(file)).training.learning_rate == value


def test_cleaning_keeps_the_parameters_tag(tmp_path):
    """nbdev_clean deletes cell tags unless told not to; papermill would then silently train the defaults."""
    copy = tmp_path / "lab"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "runs", ".cache", "reports"))
    clean = Path(sys.executable).with_name("nbdev_clean")
    subprocess.run([str(clean)], cwd=copy, check=True, capture_output=True)
    for name in (*ENTRY, "summarize"):
        cells = json.loads((copy / "nbs" / f"{name}.ipynb").read_text())["cells"]
        assert ["parameters"] in [c["metadata"].get("tags") for c in cells]


def test_values_reach_the_run_through_papermill(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("learning_rate: 5e-4\ntracking: none\nseed: 3\n")
    outcome = papermill(tmp_path / "out.ipynb", "-f", str(file), *flags(name="mine", **TINY | {"seed": 9}), runs=tmp_path)
    assert outcome.code == 0, outcome.text[-2000:]
    config = json.loads((tmp_path / "summarization" / "mine" / "config.json").read_text())
    assert (config["effective"]["learning_rate"], config["effective"]["seed"]) == (5e-4, 9)
    injected = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert any("injected-parameters" in c.metadata.get("tags", []) for c in injected.cells)


def test_settings_are_all_read():
    """A key in settings.ini that nothing reads would be a promise nobody keeps."""
    from configparser import ConfigParser
    from dataclasses import fields

    from korlab.core.settings import Settings

    parser = ConfigParser()
    parser.read(ROOT / "settings.ini")
    keys = {key for section in parser.sections() for key in parser[section]}
    assert keys == {f.name for f in fields(Settings)} - {"root"}
    sources = "\n".join(p.read_text() for p in (ROOT / "korlab").rglob("*.py"))
    for key in keys:
        assert f"settings().{key}" in sources, f"nothing reads settings().{key}"

