"""A study is one folder: a throw-away one, put beside a copy of the lab with nothing else touched, does all there is to do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, flags

PARAMETERS = '''
from dataclasses import dataclass
from korlab.experiment.params import setting
from korlab.experiment.studies import Model

@dataclass(frozen=True)
class Params:
    "Only what a cup of tea needs."
    minutes: float | None = setting(None, "steeping time", above=0)
    covered: bool = setting(True, "with a lid", rescore=True)

MODELS = (Model("green-tea", "leaf", "nobody/tea", "a leaf", {"mini": {"minutes": 3.0, "epochs": 1.0}, "full": {}}),)
'''

STUDY = '''
from types import SimpleNamespace
from korlab.experiment.results import Items, Scored, write
from korlab.experiment.runs import Run, record_data
from korlab.experiment.studies import Page, SideBySide, Study
from korlab.metrics.measures import Measure
from korlab.report import pages
from korlab.tea.parameters import MODELS, Params

BETTER = "{better}"
TASTE = Measure("taste", "Taste", better=BETTER, scale=1, digits=3, top=None)

def data(run: Run) -> list[float]:
    with run.stage("data"):
        record_data(run, {{"train": 1, "test": 9}}, {{"train": "aa", "test": "bb"}})
    return [0.1 * cup for cup in range(1, 10)]

def model(run: Run, cups: list[float]) -> float:
    return run.config.own.minutes

def train(run: Run, minutes: float, cups: list[float], callbacks=()) -> dict:
    if not run.done("train"):
        with run.stage("train"):
            for step in (1, 2):
                for callback in callbacks:
                    callback.on_evaluate(SimpleNamespace(eval_steps=1), SimpleNamespace(global_step=step), None, {{TASTE.dev: minutes}})
            run.write("train", {{"train_metrics": {{"cpu_seconds": 0.1}}, "eval_metrics": {{TASTE.dev: minutes}}}})
            run.path("model").mkdir(exist_ok=True)
            run.path("model", "model.safetensors").write_bytes(b"")
    return run.read("train")

def score(run: Run, cups: list[float]):
    from korlab.metrics.stats import bootstrap_table
    values = [cup * run.config.own.minutes for cup in cups]
    floor = bootstrap_table({{"taste": [1.0] * len(cups)}})
    rows = [Scored(run.entry.name, "test", "cups", len(cups), bootstrap_table({{"taste": values}}), "v1"),
            Scored("water", "test", "cups", len(cups), floor, "v1", baseline=True)]
    items = Items([str(i) for i in range(len(cups))], {{"cups": {{"taste": values}}}})
    with run.stage("evaluate"):
        return write(run, rows, {{"test": items}}, {{"test": {{}}}})

def evaluate(run: Run, minutes: float, cups: list[float]):
    return score(run, cups)

def evaluate_on(run: Run, checkpoint):
    return score(run, data(run))

STUDY = Study(
    name="tea", params=Params, models=MODELS, measures=(TASTE,), dev=(TASTE,), selects="taste", data=data, model=model,
    train=train, evaluate=evaluate, evaluate_on=evaluate_on, headline=lambda run: "차가 우러났다.",
    pages={{"data": (Page("data", pages.sources),), "evaluate": (Page("scores", lambda run: [pages.scores(run), pages.distribution(run)]),)}},
    comparison=SideBySide(pages=(Page("compare.leaves", lambda found: []),)),
)
'''

ABOUT = """# data: 찻잎

잎차 아홉 잔이다.

# scores: 맛

떫은 정도이다.

# compare.scores:
# compare.costs:
# compare.parameters:
# compare.others:
# compare.leaves: 잎
"""


@pytest.fixture(scope="module", params=[pytest.param("higher", marks=pytest.mark.slow), "lower"])
def lab(request, tmp_path_factory) -> tuple[Path, str]:
    """A copy of the lab with one folder more."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("korlab", "nbs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "guides", "bench"))
    shutil.copy(ROOT / "settings.ini", folder)
    tea = folder / "korlab" / "tea"
    tea.mkdir()
    (tea / "__init__.py").touch()
    (tea / "parameters.py").write_text(PARAMETERS, encoding="utf-8")
    (tea / "study.py").write_text(STUDY.format(better=request.param), encoding="utf-8")
    (folder / "nbs" / "tea").mkdir()
    (folder / "nbs" / "tea" / "about.ko.md").write_text(ABOUT, encoding="utf-8")
    params = folder / "params" / "tea"
    params.mkdir(parents=True)
    (params / "short.yaml").write_text("model: green-tea\nminutes: 2\n", encoding="utf-8")
    (params / "space.yaml").write_text("minutes: {low: 1, high: 5}\n", encoding="utf-8")
    return folder, request.param


def run_in(lab: Path, *words: str) -> str:
    env = os.environ | {"PYTHONPATH": str(lab), "KORLAB_RUNS": str(lab / "runs")}
    done = subprocess.run([sys.executable, *words], cwd=lab, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def words(notebook: str, out: Path, **values: object) -> list[str]:
    return [f"nbs/{notebook}.ipynb", str(out), "--no-progress-bar", *flags(**values)]


AT_ONCE = f"""
import json, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from in_process import command
for words in json.loads(sys.argv[1]):
    command([*words, "--engine", "in-process"], standalone_mode=False)
"""


def papermill(lab: Path, better: str, *notebooks: list[str]) -> None:
    """Execute entry notebooks: each in a process and a kernel of its own, those of the second lab in one process."""
    if better == "lower":
        run_in(lab, "-c", AT_ONCE, json.dumps(notebooks))
        return
    for one in notebooks:
        run_in(lab, "-m", "papermill", *one)


def test_a_new_study_does_all_there_is_to_do(lab):
    folder, better = lab
    runs = folder / "runs" / "tea"
    runs.mkdir(parents=True)
    run_in(folder, "-c", "from korlab.cli.main import main; main()", "run", "params/tea/short.yaml")
    report = (runs / "short" / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# green-tea · mini · embedded") and "차가 우러났다." in report

    searched = {"experiment": "params/tea/short.yaml", "space": "params/tea/space.yaml", "name": "search", "trials": 5}
    papermill(folder, better, words("train", runs / "out.ipynb", model="green-tea", name="long", minutes=4),
              words("evaluate", runs / "evaluated.ipynb", run="long", covered=False, name="again"),
              words("compare", runs / "compared.ipynb", runs="short,long", name="two"), words("tune", runs / "tuned.ipynb", **searched))
    page = (runs / "out.ipynb").read_text(encoding="utf-8")
    assert "## 맛" in page and "떫은 정도이다." in page
    metrics = json.loads((runs / "long" / "metrics.json").read_text(encoding="utf-8"))
    assert [one["system"] for one in metrics["scores"]] == ["green-tea", "water"]

    again = json.loads((runs / "long" / "evaluations" / "again" / "config.json").read_text(encoding="utf-8"))
    assert (again["given"]["covered"], again["effective"]["covered"]) == (False, False)

    compared = json.loads((folder / "runs" / "comparisons" / "tea" / "two" / "comparison.json").read_text(encoding="utf-8"))
    assert compared["better"] == better and compared["runs"][1]["against_baseline"]["difference"]["mean"] > 0
    verdict = {"higher": "높다", "lower": "높다 (더 나쁘다)"}[better]
    assert verdict in (runs / "compared.ipynb").read_text(encoding="utf-8")

    trials = json.loads((runs / "search" / "trials.json").read_text(encoding="utf-8"))["trials"]
    values = [one["value"] for one in trials if one["state"] == "complete"]
    best = (max if better == "higher" else min)(values)
    assert f"{best:.4f} on dev" in (runs / "search" / "best.yaml").read_text(encoding="utf-8")


def test_what_the_new_study_declares_is_its_own(lab):
    """Its default is not read back as somebody's wish, and a name of another study is refused."""
    folder, _ = lab
    code = "from korlab.experiment.runs import open_run; r = open_run({'model': 'green-tea', 'name': 'own'}); print(r.config.own.covered, r.given)"
    env = os.environ | {"PYTHONPATH": str(folder), "KORLAB_RUNS": str(folder / "runs")}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "True {'model': 'green-tea', 'name': 'own'}", done.stderr[-2000:]
    parameters = folder / "korlab" / "tea" / "parameters.py"
    before = parameters.read_text(encoding="utf-8")
    parameters.write_text(before.replace("minutes: float | None = setting(None", "epochs: float | None = setting(None"), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    parameters.write_text(before, encoding="utf-8")
    assert "the parameter 'epochs' has two owners" in done.stderr
