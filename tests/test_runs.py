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
from in_process import papermill as papermill_here
from safetensors.torch import load_file

from korlab.core import files
from korlab.core.errors import LabError
from korlab.experiment import results
from korlab.experiment.checkpoints import newest_whole_checkpoint
from korlab.experiment.runs import RunError, RunFolder, _recorded, find_run, holder, locked, open_run, reopen
from korlab.experiment.training import Clock
from korlab.summarization.data import embedded
from korlab.summarization.dialogues import save_dialogues
from korlab.workbench import comparing, verdicts, watching
from korlab.workbench.suite import Suite

PLAN = TINY | {"max_steps": 24, "eval_steps": 8, "batch_size": 4, "keep_checkpoints": 3}


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> dict:
    """What every run here is given, on eighty rows of its own."""
    rows = tmp_path_factory.mktemp("rows") / "rows.csv"
    save_dialogues(embedded().rows["train"][:80], rows)
    return PLAN | {"data": str(rows)}


def start(folder: Path, plan: dict) -> subprocess.Popen:
    """Begin a run in the background."""
    command = [sys.executable, "-m", "papermill", "nbs/train.ipynb", str(folder / "out.ipynb"), "--no-progress-bar",
               *flags(name="killed", **plan)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            env=os.environ | {"KORLAB_RUNS": str(folder)}, start_new_session=True)


def wait_for(condition, seconds: float = 120) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "the run did not get that far"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def straight(plan, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    outcome = papermill_here(folder / "out.ipynb", *flags(name="killed", **plan), runs=folder)
    assert outcome.code == 0, outcome.text[-2000:]
    return folder / "summarization" / "killed"


BETWEEN = """
import sys
from korlab.experiment.runs import open_run
run = open_run({"name": "stopped"})
with run.stage("data"):
    pass
print("between", flush=True)
sys.stdin.read()
"""


def test_a_run_stopped_between_two_stages_is_not_done(tmp_path, monkeypatch):
    """One word for it everywhere: running while its process lives, interrupted when that is gone, and a suite takes it up again."""
    from korlab.experiment.runs import find_run
    from korlab.workbench import listing

    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", BETWEEN], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "between\n"
    assert [one.state for one in listing.listing()[0]] == ["running"]
    process.terminate()
    process.wait()
    assert [one.state for one in listing.listing()[0]] == [find_run("stopped").state] == ["interrupted"]
    assert files.read_json(find_run("stopped").path("status.json"))["state"] != "done"


def test_a_killed_run_ends_where_a_straight_one_ends(plan, straight, tmp_path):
    folder = tmp_path / "summarization" / "killed"
    process = start(tmp_path, plan)
    wait_for(lambda: (folder / "checkpoints" / "checkpoint-8" / "manifest.json").exists())
    status = files.read_json(folder / "status.json")
    os.kill(status["pid"], signal.SIGKILL)  # the kernel, which does the work, is in a session of its own
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (status["state"], status["stage"]) == ("running", "train")
    assert not (folder / "metrics.json").exists()

    outcome = papermill(tmp_path / "out.ipynb", *flags(name="killed", **plan), runs=tmp_path)
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


def test_seconds_are_those_that_passed_whatever_the_clock_says(tmp_path, monkeypatch):
    times = iter(range(0, 10**6, 3600))
    monkeypatch.setattr(time, "time", lambda: next(times))
    run, clock = RunFolder(tmp_path), Clock()
    with _recorded(run, "train"):
        clock.on_train_begin(None, None, None)
        clock.on_train_end(None, None, None)
    assert run.status["stages"]["train"]["seconds"] < 60 and clock.seconds < 60


def test_workers_of_a_loader_that_outlive_a_killed_run_hold_no_lock(tmp_path):
    """They are forked, and notice only after seconds that their process is gone."""
    lock = locked(tmp_path)
    reading, writing = os.pipe()
    if not (worker := os.fork()):
        os.write(writing, b".")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(reading, 1)
        assert holder(tmp_path) == os.getpid(), "the run itself works on"
        lock.close()  # as the system does for a killed process
        locked(tmp_path).close()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


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


def test_a_finished_run_is_read_back_not_repeated(plan, straight, tmp_path):
    before = (straight / "model" / "model.safetensors").stat().st_mtime_ns
    outcome = papermill_here(tmp_path / "again.ipynb", *flags(name="killed", **plan), runs=straight.parent.parent)
    assert outcome.code == 0, outcome.text[-2000:]
    assert (straight / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_the_run_folder_is_complete(plan, straight):
    names = {"config.json", "environment.json", "data.json", "metrics.json", "history.jsonl", "status.json", "model", "checkpoints"}
    assert names <= {p.name for p in straight.iterdir()}
    assert not [p for p in straight.rglob("*.tmp")]
    config = files.read_json(straight / "config.json")["effective"]
    assert {name: config[name] for name in plan} == plan
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


@pytest.fixture
def three(tmp_path, monkeypatch):
    """Three finished runs that were never trained, the newest last, and the suite they came from."""
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    made = [results.stand_in(name, {"test": scores}, tracking="none") for name, scores in (
        ("one", [0.1, 0.2, 0.3]), ("two", [0.2, 0.3, 0.4]), ("three", [0.3, 0.4, 0.5]))]
    for age, run in enumerate(reversed(made)):
        os.utime(run.path("config.json"), (time.time() - age, time.time() - age))
    listed = [{"experiment": f"params/{run.folder.name}.yaml", "label": run.folder.name, "run": f"summarization/{run.folder.name}",
               "state": "done", "error": None} for run in made]
    suite = {"name": "night", "state": "done", "pid": 0, "started": "", "ended": "", "experiments": listed}
    files.write_json(tmp_path / "suites" / "night" / "summary.json", suite)
    return [run.folder for run in made]


DAMAGE = {
    "config.json": ["{", "[]", "5", "{}", '{"effective": [], "given": {}}', '{"effective": {"model": "gone"}, "given": {}}', "\0"],
    "metrics.json": ["{", "[]", "{}"],
    "status.json": ["{", "[]", "{}"],
    "data.json": ["{", "[]", "{}"],
}


@pytest.mark.parametrize("file, content", [(file, content) for file, contents in DAMAGE.items() for content in contents])
def test_one_damaged_record_is_named_and_blocks_no_other_run(file, content, three, capsys):
    (three[-1] / file).write_text(content)
    if file in ("config.json", "metrics.json"):
        assert find_run("latest").folder == three[1]
        said = capsys.readouterr().err
        assert "'latest' passes over 1 newer run" in said and f"three/{file}" in said
    assert find_run("one").folder == three[0] and find_run(str(three[1])).folder == three[1]
    with pytest.raises(LabError, match=f"three/{file}.*(is damaged|is not a record|holds no scores).*"):
        comparing.choose_entries("one,three")
    entries = {entry.name: entry for entry in comparing.choose_entries("night")}
    assert entries["one"].done and entries["two"].done
    assert entries["three"].state == "unreadable" and f"three/{file}" in entries["three"].error
    found = comparing.open_comparison({"runs": "night"})
    assert len(verdicts.scores(found)) >= 2 and any("unreadable" in line for line in comparing.cautions(found))


def test_a_foreign_config_above_a_checkpoint_blocks_nothing(three):
    """Every folder above a checkpoint is asked whether it is a run."""
    from korlab.experiment.evaluations import open_evaluation

    (three[0] / "model").mkdir()
    (three[0] / "model" / "model.safetensors").write_bytes(b"")
    for content in ("{", "[]", "5", '{"architectures": []}'):
        (three[0].parents[1] / "config.json").write_text(content)
        run, checkpoint = open_evaluation({"run": str(three[0] / "model")})
        run.close()
        assert checkpoint == three[0] / "model" and run.config.run.name is None


@pytest.mark.parametrize("name", ["status.json", "progress.json"])
def test_a_damaged_record_hides_no_other_line_of_a_suite(name, three, monkeypatch):
    suite = Suite(three[0].parents[1] / "suites" / "night")
    experiments = [one | {"state": "running"} for one in suite.read()["experiments"]]
    suite.write(experiments=experiments)
    (three[1] / name).write_text("{")
    monkeypatch.setattr(watching, "driver", lambda suite: object())
    lines = {row["experiment"]: row for row in watching.progress(suite)}
    assert f"two/{name} is damaged" in lines["two"]["result"]
    assert lines["one"]["stage"] == lines["three"]["stage"] == "evaluate"


def test_a_record_leads_where_its_command_was_given(tmp_path, monkeypatch):
    """A relative path is read from the folder of that command; names of runs still follow from what was typed."""
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    for place in ("here", "there"):
        files.write(tmp_path / place / "rows.csv", "")
    monkeypatch.chdir(tmp_path / "here")
    run = open_run({"model": "kobart", "data": "rows.csv", "test_data": "owner/name"})
    run.close()
    assert run.folder.name == "kobart-mini-0864ba96"
    monkeypatch.chdir(tmp_path / "there")
    found = reopen(run.folder).config.rows
    assert (found.data, found.test_data) == (str(tmp_path / "here" / "rows.csv"), "owner/name")
    record = files.read_json(run.path("config.json"))
    assert record["effective"]["data"] == "rows.csv" and record["folder"] == str(tmp_path / "here")
    files.write_json(run.path("config.json"), {key: value for key, value in record.items() if key != "folder"})
    assert reopen(run.folder).config.rows.data == str(tmp_path / "there" / "rows.csv"), "a record from before: as it was then"


def test_a_run_that_trained_keeps_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    run = open_run({"name": "mine"})
    with run.stage("train"):
        pass
    run.close()
    with pytest.raises(RunError, match="seed: 42 → 8"):
        open_run({"name": "mine", "seed": 8})
    open_run({"name": "mine"}).close()
    assert [folder.name for folder in run.folder.parent.iterdir()] == ["mine"]


def test_a_run_of_a_suite_that_was_deleted_is_gone(three):
    import shutil

    shutil.rmtree(three[1])
    entries = {entry.name: entry.state for entry in comparing.choose_entries("night")}
    assert entries == {"one": "done", "two": "gone", "three": "done"}
    assert len(verdicts.scores(comparing.open_comparison({"runs": "night"}))) >= 2
