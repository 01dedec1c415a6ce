"""The README.md beside final weights: its code runs, its scores are the run's, its folder stays whole, and a person can go on from it."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY
from in_process import execute, korlab

from korlab.experiment import results
from korlab.experiment.checkpoints import damage
from korlab.experiment.runs import find_run, reopen
from korlab.metrics.measures import written
from korlab.report.model_cards import write_model_card


@pytest.fixture(params=["summarization", "sparse", "coref", "ivr"])
def run(request, short, quickstart, recalls):
    """A finished run of each study."""
    folder = {"summarization": quickstart, "coref": recalls / "coref" / "recalls"}.get(request.param, short / request.param / "short")
    return reopen(folder)


def card(run) -> tuple[dict, str]:
    _, front, text = run.path("model", "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_code_of_a_card_runs_from_the_folder_alone(run, tmp_path):
    shutil.copytree(run.path("model"), tmp_path / "somewhere")
    code = card(run)[1].split("```python\n")[1].split("```")[0]
    program = f"import sys; sys.modules['korlab'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "somewhere", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-2000:]
    assert len([line for line in code.splitlines() if line and not line.startswith(("from", "import"))]) <= 3


def test_a_card_says_what_the_run_says(run):
    front, text = card(run)
    found = results.read(run)
    (index,) = front["model-index"]
    own = [found.own(split) for split in found.splits]
    assert [entry["dataset"]["split"] for entry in index["results"]] == [one.split for one in own]
    for one, entry in zip(own, index["results"], strict=True):
        for metric in entry["metrics"]:
            measure = run.study.measure(metric["type"])
            assert (metric["args"]["n"], metric["args"]["mode"]) == (one.n, one.mode)
            assert metric["value"] == round(one.measures[measure.name].mean * measure.scale, measure.digits)
            assert metric["args"]["low"] <= metric["value"] <= metric["args"]["high"]
    first = run.study.measures[0]
    shown = [one for one in found.scored if not one.baseline or one.mode == found.modes(one.split)[0]]
    assert any(one.baseline for one in shown)
    for one in shown:
        assert any(written(first, one.measures[first.name]) in line and one.system in line and f"{one.n:,}" in line
                   for line in text.splitlines()), one
    assert "license" not in front and "base_model" not in front and "mini" in front["tags"] and "korlab" in front["tags"]
    assert "This is a mini" in text and "generated text" in text and "None is chosen yet" in text
    assert run.read("environment")["versions"]["korlab"] in text and run.read("environment")["git"]["commit"][:7] in text
    assert str(run.folder.parent) not in text and str(Path.home()) + "/" not in text


def test_the_hub_reads_a_card(run):
    from huggingface_hub import ModelCard

    read = ModelCard.load(run.path("model", "README.md")).data
    assert read.library_name in ("transformers", "sentence-transformers") and read.eval_results[0].metric_args["n"] > 0


def test_a_sealed_folder_stays_whole_and_the_card_is_replaced(run):
    assert damage(run.path("model")) is None
    assert "README.md" not in json.loads(run.path("model", "manifest.json").read_text())["files"]
    before = run.path("model", "README.md").read_text("utf-8")
    run.path("model", "README.md").write_text("torn")
    assert write_model_card(run).read_text("utf-8") == before and damage(run.path("model")) is None
    assert not list(run.path("model").glob(".README*"))


def test_a_card_claims_no_score_that_is_not_there(short, tmp_path):
    shutil.copytree(short / "sparse" / "short", tmp_path / "short")
    lone = reopen(tmp_path / "short")
    lone.path("metrics.json").unlink()
    write_model_card(lone)
    front, text = card(lone)
    assert "This model has not been scored." in text and "model-index" not in front and "metrics" not in front and "| test |" not in text


def test_fine_tuning_goes_on_from_one_s_own_run(quickstart, tmp_path, monkeypatch):
    """As README says it: size full, checkpoint the folder of a run's model, data one's own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    with open(tmp_path / "mine.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(i, f"#Person1#: {i}번 방을 빌릴 수 있나요?\n#Person2#: 네, {i}시부터 비어 있어요.", f"#Person1#은 {i}번 방을 빌린다.") for i in range(40)]
        csv.writer(file).writerows([("fname", "dialogue", "summary"), *rows])
    given = {key: value for key, value in TINY.items() if key not in ("vocab_size", "train_rows")} | {"max_steps": 2, "eval_steps": 2, "warmup": 0}
    said = re.search(r"papermill nbs/train.ipynb out.ipynb -p model kobart -p size full (.*-p checkpoint runs/\S+/model.*)", (ROOT / "README.md").read_text("utf-8"))
    extra = dict(re.findall(r"-p (\w+) (\S+)", said[1]))
    extra |= {"checkpoint": extra["checkpoint"].replace("runs/summarization/quickstart", str(quickstart)), "data": str(tmp_path / "mine.csv")}
    done = execute("train", tmp_path / "out.ipynb", model="kobart", size="full", name="further", tracking="none", **extra, **given)
    assert done.error is None, done.error
    further = find_run("further")
    assert further.read("model")["origin"].startswith("folder ") and "/model" in further.read("model")["origin"]
    front, text = card(further)
    assert "base_model" not in front and "mini" not in front["tags"] and "started from" in text and str(tmp_path) not in text


def test_a_command_prints_what_a_model_folder_says_outside_any_run(quickstart, tmp_path):
    """A model folder that somebody was given works by its path alone."""
    shutil.copytree(quickstart / "model", tmp_path / "given")
    (tmp_path / "in.csv").write_text("fname,dialogue\n1,\"#Person1#: 내일 볼까요?\n#Person2#: 네, 두 시에 봐요.\"\n", encoding="utf-8")
    done = korlab("summarize", str(tmp_path / "given"), str(tmp_path / "in.csv"), "--to", str(tmp_path / "out.csv"), "-p", "model", "kobart", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.csv").read_text("utf-8").startswith("fname,summary\n1,")
