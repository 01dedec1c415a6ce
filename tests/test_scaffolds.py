"""What `korlab new` makes runs as it is and keeps the rules of the house."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from nbdev.export import nb_export
from test_house import cells, definitions, exported, length
from test_new_study import AT_ONCE, run_in, words

from korlab.core.yamls import read_yaml
from korlab.experiment import studies
from korlab.workbench import scaffolds


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A checkout: the package, the entry notebooks and the settings."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "korlab", folder / "korlab", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "nbs").mkdir()
    for file in (ROOT / "settings.ini", ROOT / "pyproject.toml", *(ROOT / "nbs").glob("*.ipynb")):
        shutil.copy(file, folder / file.relative_to(ROOT))
    run_in(folder, "-m", "korlab", "new", "study", "lengths")
    return folder


def test_a_new_study_trains_scores_and_reports(lab):
    for chapter in sorted((lab / "nbs" / "lengths").glob("*.ipynb")):
        nb_export(chapter, lib_path=lab / "korlab")
    (lab / "korlab" / "lengths" / "__init__.py").touch()
    first = read_yaml(lab / "params" / "lengths" / "first.yaml")
    run_in(lab, "-c", AT_ONCE, json.dumps([words("train", lab / "out.ipynb", **first, name="one")]))
    assert "lengths" in run_in(lab, "-m", "korlab", "list", "--json") and (lab / "runs" / "lengths" / "one" / "metrics.json").is_file()
    run_in(lab, "-m", "korlab", "new", "experiment", "again", "--study", "lengths")
    assert read_yaml(lab / "params" / "lengths" / "again.yaml") == first
    done = subprocess.run([sys.executable, "-m", "korlab", "new", "study", "lengths"], cwd=lab, capture_output=True, text=True)
    assert done.returncode == 1 and "there is a study or folder 'lengths' already" in done.stderr


def test_what_is_made_keeps_the_rules_of_the_house(lab, tmp_path):
    made = [*(lab / "nbs" / "lengths").glob("*.ipynb"), scaffolds.make_notebook(tmp_path / "core" / "17_names.ipynb")]
    for path in made:
        assert cells(path)[0]["source"].startswith("# ") and "\n\n> " in cells(path)[0]["source"]
        for source in exported(path):
            assert length(source) <= 40 and len(definitions(source)) <= 3
    done = subprocess.run(["ruff", "check", "--config", ROOT / "pyproject.toml", *made], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", studies.models())
def test_an_experiment_of_every_model_is_its_recipe(name, tmp_path):
    """With every line that is commented out taken in, the parameters are those without any of them."""
    model = studies.model(name)
    text = scaffolds.experiment(model.study, name)
    (tmp_path / "plain.yaml").write_text(text, "utf-8")
    lines = [line.removeprefix("# ") if ": " in line and "  # " in line and "# data: " not in line else line for line in text.split("\n")]
    (tmp_path / "all.yaml").write_text("\n".join(lines), "utf-8")
    plain, every = (studies.configure(read_yaml(tmp_path / file)) for file in ("plain.yaml", "all.yaml"))
    assert plain.flat() == every.flat() and len(read_yaml(tmp_path / "all.yaml")) > 15
