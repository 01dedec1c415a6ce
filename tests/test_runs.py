"""Whole processes: a run killed at any moment goes on with the same command and ends where a straight one ends."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, flags, papermill
from safetensors.torch import load_file

from korlab.core import files
from korlab.experiment import results
from korlab.experiment.checkpoints import newest_whole_checkpoint
from korlab.experiment.training import Clock

PLAN = TINY | {"max_steps": 24, "eval_steps": 8, "batch_size": 4, "keep_checkpoints": 3}


def start(folder: Path) -> subprocess.Popen:
    """Begin a run in the background."""
    command = [sys.executable, "-m", "papermill", "nbs/train.ipynb", str(folder / "out.ipynb"), "--no-progress-bar",
               *flags(name="killed", **PLAN)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            env=os.environ | {"KORLAB_RUNS": str(folder)}, start_new_session=True)


def wait_for(condition, seconds: float = 120) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "the run did not get that far"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    outcome = papermill(folder / "out.ipynb", *flags(name="killed", **PLAN), runs=folder)
    assert outcome.code == 0, outcome.text[-2000:]
    return folder / "summarization" / "killed"


def test_a_killed_run_ends_where_a_straight_one_ends(straight, tmp_path):
    folder = tmp_path / "summarization" / "killed"
    process = start(tmp_path)
    wait_for(lambda: (folder / "checkpoints" / "checkpoint-8" / "manifest.json").exists())
    status = files.read_json(folder / "status.json")
    os.kill(status["pid"], signal.SIGKILL)  # the kernel, which does the work, is in a session of its own
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (status["state"], status["stage"]) == ("running", "train")
    assert not (folder / "metrics.json").exists()

    outcome = papermill(tmp_path / "out.ipynb", *flags(name="killed", **PLAN), runs=tmp_path)
    assert outcome.code == 0, outcome.text[-2000:]
    notes = [n["text"] for n in files.read_json(folder / "status.json")["notes"]]
    assert any(text.startswith("Going on from checkpoint-") for text in notes)

    ours, theirs = (load_file(f / "model" / "model.safetensors") for f in (folder, straight))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours), "weights differ from the uninterrupted run"
    assert [r.get("loss") for r in history(folder)] == [r.get("loss") for r in history(straight)]
    assert splits(folder) == splits(straight)


def history(folder: Path) -> list[dict]:
    return files.read_jsonl(folder / "history.jsonl")


def splits(folder: Path) -> dict:
    return files.read_json(folder / "metrics.json")["splits"]


@pytest.mark.parametrize("victim", ["model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth", "manifest.json"])
@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_a_torn_checkpoint_is_set_aside_with_a_notice(straight, tmp_path, victim, harm):
    """Whatever file of the newest checkpoint is damaged, the one before it is used and the reader is told."""
    for step in (8, 16, 24):
        source, target = straight / "checkpoints" / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}"
        target.mkdir()
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / "checkpoint-24" / victim
    broken.unlink() if harm == "gone" else broken.write_bytes(broken.read_bytes()[:-7])
    notes: list[str] = []
    assert newest_whole_checkpoint(tmp_path, notes.append) == tmp_path / "checkpoint-16"
    assert len(notes) == 1 and "checkpoint-24" in notes[0]
    assert (tmp_path / "torn-checkpoint-24").is_dir()


def test_a_finished_run_is_read_back_not_repeated(straight, tmp_path):
    before = (straight / "model" / "model.safetensors").stat().st_mtime_ns
    outcome = papermill(tmp_path / "again.ipynb", *flags(name="killed", **PLAN), runs=straight.parent.parent)
    assert outcome.code == 0, outcome.text[-2000:]
    assert (straight / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_the_run_folder_is_complete(straight):
    names = {"config.json", "environment.json", "data.json", "metrics.json", "history.jsonl", "status.json", "model", "checkpoints"}
    assert names <= {p.name for p in straight.iterdir()}
    assert not [p for p in straight.rglob("*.tmp")]
    config = files.read_json(straight / "config.json")["effective"]
    assert {name: config[name] for name in PLAN} == PLAN
    place = files.read_json(straight / "environment.json")
    assert place["seed"] == 42 and place["versions"]["torch"] and "git" in place
    data = files.read_json(straight / "data.json")
    assert data["rows"]["train"] == PLAN["train_rows"] and all(len(h) == 64 for h in data["sha256"].values())


def test_reported_n_is_the_number_scored(straight):
    rows = [one for one in results.parse(files.read_json(straight / "metrics.json")).scored]
    for name, result in splits(straight).items():
        with open(straight / "predictions" / f"{name}.csv", encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        assert list(table[0]) == ["fname", "summary"]
        counted = {one.system: one.n for one in rows if one.split == name}
        (n,) = {one.n for one in rows if one.split == name and not one.baseline}
        assert len(table) == n == files.read_json(straight / "data.json")["rows"][name]
        assert result["errors"] and all(kinds["n"] == counted[system] for system, kinds in result["errors"].items())


def test_parameters_reach_the_trainer(straight):
    """The values typed after -p are those the optimiser saw, not the defaults."""
    state = json.loads((straight / "checkpoints" / "checkpoint-24" / "trainer_state.json").read_text())
    assert state["max_steps"] == PLAN["max_steps"] and state["eval_steps"] == PLAN["eval_steps"]
    assert Clock.__name__ in state["stateful_callbacks"]  # by this name a resumed run finds the seconds it has spent
