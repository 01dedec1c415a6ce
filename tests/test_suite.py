"""A suite as it is left overnight: failures, kills, the background, and the one table of the morning."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, TINY

from korlab.core.files import read_json
from korlab.summarization.data import embedded
from korlab.summarization.dialogues import save_dialogues
from korlab.workbench import plans, suite, watching

KORLAB = str(Path(sys.executable).with_name("korlab"))


def korlab(*words: str, runs: Path, **how) -> subprocess.CompletedProcess:
    return subprocess.run(
        [KORLAB, *words], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"KORLAB_RUNS": str(runs)}, timeout=300, **how
    )


def deaf() -> None:
    """What a shell does to a command it starts with `&`: interrupts are ignored, and every child inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture(scope="module")
def experiments(tmp_path_factory) -> list[str]:
    """Two experiments of a few seconds on sixty rows."""
    folder = tmp_path_factory.mktemp("experiments")
    save_dialogues(embedded().rows["train"][:60], folder / "rows.csv")
    given = TINY | {"model": "kobart", "data": folder / "rows.csv", "max_steps": 30, "eval_steps": 5, "learning_rate": 0.003,
                    "rouge_mode": "char"}
    del given["train_rows"]
    files = []
    for name, seed in (("one", 1), ("two", 2)):
        text = "".join(f"{key}: {value}\n" for key, value in (given | {"seed": seed}).items())
        (folder / f"{name}.yaml").write_text(text)
        files.append(str(folder / f"{name}.yaml"))
    return files


def table(runs: Path) -> list[dict]:
    """What must not depend on when and how often a suite was killed."""
    one, = runs.glob("suites/*/summary.json")
    keys = ("label", "state", "score", "n", "rouge1", "rouge2", "rougeL", "trainable", "parameters")
    return [{key: entry.get(key) for key in keys} for entry in read_json(one)["experiments"]]


def wait_for(what, seconds: float = 120) -> None:
    until = time.time() + seconds
    while not what():
        assert time.time() < until, "waited in vain"
        time.sleep(0.1)


@pytest.mark.slow
def test_killed_twice_and_stopped_once_gives_the_same_table(experiments, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = korlab("run", *experiments, "-j", "2", runs=whole)
    assert done.returncode == 0, done.stderr[-2000:]

    chance = random.Random()
    moments = sorted(chance.uniform(6, 28) for _ in range(2))
    print("killed after", moments)  # shown when the test fails
    for moment in moments:
        driver = subprocess.Popen(
            [KORLAB, "run", *experiments], cwd=ROOT, env=os.environ | {"KORLAB_RUNS": str(broken)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        time.sleep(moment)
        driver.kill()
        driver.wait()
    started = korlab("run", *experiments, "--background", runs=broken)
    assert started.returncode == 0, started.stderr
    folder, = (broken / "suites").iterdir()
    number = int((folder / "suite.pid").read_text())
    wait_for(lambda: not psutil.pid_exists(number) or (folder / "suite.pid").exists())
    stopped = korlab("stop", runs=broken)
    assert stopped.returncode == 0 and "has stopped" in stopped.stdout or not psutil.pid_exists(number)
    done = korlab("run", *experiments, runs=broken)
    assert done.returncode == 0, done.stderr[-2000:]
    assert table(broken) == table(whole)
    for name in ("one", "two"):
        histories = [(runs / "summarization" / name / "history.jsonl").read_text().splitlines() for runs in (whole, broken)]
        losses = [[json.loads(line).get("loss") for line in lines] for lines in histories]
        assert losses[0] == losses[1]
    assert not list(folder.glob("suite.pid"))


def test_a_suite_in_the_background_is_seen_and_stopped(experiments, tmp_path):
    started = korlab("run", *experiments, "--background", "--suite", "night", runs=tmp_path, preexec_fn=deaf)
    assert started.returncode == 0 and "night" in started.stdout, started.stderr
    folder = tmp_path / "suites" / "night"
    second = korlab("run", *experiments, "--suite", "night", runs=tmp_path)
    assert second.returncode == 1 and "is being run by process" in second.stderr
    status = tmp_path / "summarization" / "one" / "status.json"
    wait_for(lambda: status.exists() and read_json(status).get("stage") == "train")
    shown = korlab("status", runs=tmp_path)
    assert "running as process" in shown.stdout and "train" in shown.stdout and "MiB" in shown.stdout
    watched = korlab("monitor", "--once", runs=tmp_path)
    assert "CPU" in watched.stdout and "one" in watched.stdout
    assert korlab("logs", runs=tmp_path).returncode == 0
    kernel = psutil.Process(read_json(status)["pid"])
    stopped = korlab("stop", "night", runs=tmp_path)
    assert stopped.returncode == 0 and "night has stopped" in stopped.stdout, stopped.stderr
    assert read_json(folder / "summary.json")["state"] == "stopped"
    wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE, 10)
    states = [entry["state"] for entry in read_json(folder / "summary.json")["experiments"]]
    assert states == ["interrupted", "waiting"]
    assert not (tmp_path / "summarization" / "one" / "metrics.json").exists()  # it was ended, not waited for
    assert "was not running" in korlab("stop", "night", runs=tmp_path).stdout


def test_it_goes_on_after_failures_and_is_honest_about_them(experiments, tmp_path):
    missing, typo, one = (tmp_path / f"{name}.yaml" for name in ("missing", "typo", "one"))
    text = Path(experiments[0]).read_text().replace("max_steps: 30", "max_steps: 5")
    one.write_text(text)
    missing.write_text(text.replace("rows.csv", "nothing.csv"))
    typo.write_text(text.replace("learning_rate", "learning_rat"))
    done = korlab("run", str(missing), str(typo), str(one), runs=tmp_path / "runs")
    assert done.returncode == 1
    assert "nothing.csv" in done.stderr and "did you mean 'learning_rate'?" in done.stderr
    found = {entry["label"]: entry for entry in table(tmp_path / "runs")}
    assert {name: entry["state"] for name, entry in found.items()} == {"missing": "failed", "typo": "failed", "one": "done"}
    run = tmp_path / "runs" / "summarization" / "one"
    assert (run / "report.html").exists() and read_json(run / "status.json")["state"] == "done"
    assert read_json(tmp_path / "runs" / "summarization" / "missing" / "status.json")["state"] == "failed"
    folder, = (tmp_path / "runs" / "suites").iterdir()
    assert {file.name for file in (folder / "logs").iterdir()} == {"1_missing.log", "2_typo.log", "3_one.log"}
    assert "did you mean 'learning_rate'?" in (folder / "logs" / "2_typo.log").read_text()
    assert "typo" in (folder / "summary.csv").read_text() and "| one | done |" in (folder / "summary.md").read_text()


def test_a_process_number_that_was_given_away_is_not_signalled(tmp_path):
    """The number in summary.json and in the lock belongs to this test now; it must not be taken for a driver."""
    (tmp_path / "suite").mkdir()
    facts = {"name": "suite", "state": "running", "pid": os.getpid(), "experiments": []}
    (tmp_path / "suite" / "summary.json").write_text(json.dumps(facts))
    (tmp_path / "suite" / ".lock").write_text(str(os.getpid()))
    found = suite.Suite(tmp_path / "suite")
    assert watching.driver(found) is None and watching.stop_suite(found) is False


def test_a_clock_that_was_set_ends_no_suite(tmp_path, monkeypatch):
    """The system tells the start of a process by the clock of the day, which somebody may set in between."""
    facts = {"name": "suite", "state": "running", "pid": os.getpid(), "process_started": time.time(), "experiments": []}
    with suite.lock_suite(tmp_path / "suite"):
        (tmp_path / "suite" / "summary.json").write_text(json.dumps(facts))
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: time.time() + 3600)
        assert watching.driver(suite.Suite(tmp_path / "suite")).pid == os.getpid()


def test_quick_is_one_epoch_of_each_in_runs_of_their_own():
    recipes = sorted((ROOT / "params" / "summarization").glob("0*.yaml"))
    planned = [plans.plan(file, quick=True) for file in recipes]
    assert len(planned) == 7 and {one.values["epochs"] for one in planned} == {1}
    assert all(one.folder.name.endswith("-quick") for one in planned)
    shown = korlab("run", *map(str, recipes), "--dry-run", "-1", runs=ROOT / "nowhere")
    assert shown.returncode == 0 and shown.stdout.count("│ learning_rate ") == 7 and not (ROOT / "nowhere").exists()


def test_a_background_command_that_fails_at_once_says_why(experiments, tmp_path):
    """The driver of the background is refused by the one in the foreground of this test."""
    folder = tmp_path / "suites" / "taken"
    folder.mkdir(parents=True)
    os.environ["KORLAB_RUNS"], before = str(tmp_path), os.environ.get("KORLAB_RUNS")
    try:
        held = suite.open_suite([plans.plan(Path(file)) for file in experiments], "taken")
        refused = korlab("run", *experiments, "--background", "--suite", "taken", runs=tmp_path)
        held.close()
    finally:
        os.environ.pop("KORLAB_RUNS") if before is None else os.environ.update(KORLAB_RUNS=before)
    assert refused.returncode == 1 and "is being run by process" in refused.stderr
    assert not (folder / "suite.log").exists(), "nothing was started, so a log of the one that runs stays as it is"
