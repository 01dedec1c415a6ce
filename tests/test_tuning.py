"""A search: what it refuses, what a kill leaves behind, and that it then finds what it would have found undisturbed."""

import csv
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import optuna
import pytest
from conftest import ROOT, TINY, in_a_child
from test_tracking import Line, OneWeight, Stop, wandb_file, wandb_records
from transformers import TrainerCallback

from korlab.core import files
from korlab.core.errors import LabError
from korlab.core.yamls import read_yaml
from korlab.experiment import params, runs, studies
from korlab.summarization.data import embedded
from korlab.summarization.dialogues import save_dialogues
from korlab.workbench import spaces, tuning

QUICKSTART = str(ROOT / "params" / "summarization" / "quickstart.yaml")
SPACES = ROOT / "params" / "summarization" / "search"
SMALL = """
learning_rate: {low: 3.0e-4, high: 6.0e-3, log: true}
num_beams: [1, 2]
length_penalty: {low: 0.5, high: 2.0}
"""
CONDITIONAL = """
scheduler: [constant, linear]
warmup: {low: 0, high: 0.2}
patience: [0, 2]
threshold: [0.0, 0.1]
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A private folder for runs, with a small space in it."""
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    (tmp_path / "space.yaml").write_text(SMALL)
    return tmp_path


def opened(lab: Path, name: str = "search", **given) -> tuning.Search:
    values = " ".join(f"{k}={v}" for k, v in TINY.items())
    asked = {"name": name, "experiment": QUICKSTART, "space": str(lab / "space.yaml"), "values": values}
    return tuning.open_search(asked | given)


def formula(search, trial, sampled):
    """A training in a microsecond: six evaluations that rise to a value that depends on the rate alone."""
    height = 1 - abs(sampled["learning_rate"] - 2e-3) * 200
    for number in range(6):
        trial.report(height * (number + 1) / 6, number)
        if trial.should_prune():
            raise optuna.TrialPruned
    return height


def story(search: tuning.Search) -> list[tuple]:
    """Everything about the trials that must not depend on interruptions."""
    return [(t.number, t.state.name, t.params, t.value, t.intermediate_values) for t in search.optuna.trials]


# ---- the space ---------------------------------------------------------------------------------------------------

def test_the_published_space_is_the_published_one():
    base = read_yaml(ROOT / "params" / "summarization" / "baseline_kobart.yaml")
    space = spaces.load_space(SPACES / "published.yaml", base)
    ranges = {name: (d.low, d.high, d.log) for name, d in space.items() if hasattr(d, "low")}
    assert ranges == {"learning_rate": (1e-6, 1e-4, True), "epochs": (3, 10, False), "warmup": (0, 0.2, False),
                      "weight_decay": (0, 0.1, False), "length_penalty": (0.5, 2.0, False)}
    assert space["scheduler"].choices == ("linear", "cosine", "cosine_with_restarts", "polynomial")
    assert space["num_beams"].choices == (2, 4, 6, 8)


WRONG = {
    "unknown name": ("lerning_rate: [1, 2]", "did you mean 'learning_rate'?"),
    "duplicate key": ("epochs: [1, 2]\nwarmup: [0, 1]\nepochs: [3, 4]", "line 3: the key 'epochs' appears twice"),
    "duplicate bound": ("epochs: {low: 1, low: 2, high: 3}", "line 1: the key 'low' appears twice"),
    "single value": ("epochs: 3", "a single value belongs in the experiment"),
    "one choice": ("num_beams: [4]", "at least two choices"),
    "repeated choice": ("num_beams: [4, 4]", "at least two choices, each once"),
    "no bound": ("epochs: {low: 3}", "'high' is missing"),
    "unknown key": ("epochs: {low: 3, high: 4, lgo: true}", "unknown key 'lgo'"),
    "upside down": ("epochs: {low: 4, high: 3}", "low must be less than high"),
    "log from zero": ("warmup: {low: 0, high: 0.2, log: true}", "a log scale needs low above 0"),
    "log with step": ("epochs: {low: 1, high: 3, log: true, step: 1}", "a log scale needs low above 0 and no step"),
    "odd step": ("epochs: {low: 1, high: 2, step: 0.3}", "step=0.3 does not divide the range"),
    "step of zero": ("epochs: {low: 1, high: 2, step: 0}", "step=0.0 does not divide the range"),
    "log no boolean": ("epochs: {low: 1, high: 2, log: often}", "epochs: log='often'"),
    "out of bounds": ("weight_decay: {low: 0, high: 3}", "weight_decay=3.0: must be 1 or less"),
    "bad choice": ("scheduler: [linear, cosin]", "did you mean 'cosine'?"),
    "not whole": ("num_beams: {low: 1.5, high: 3}", "expected a whole number"),
    "range of words": ("scheduler: {low: 1, high: 2}", "needs a parameter that is a number"),
    "null": ("epochs: [1, null]", "None is not a single value"),
    "nested": ("epochs: [[1, 2], 3]", "is not a single value"),
    "what is compared": ("eval_rows: [10, 20]", "a search keeps it fixed"),
    "no effect at all": ("length_penalty: {low: 0.5, high: 2}", "would have no effect in any trial"),
    "empty": ("", "expected lines of"),
    "a list": ("- epochs", "expected lines of"),
    "not yaml": ("epochs: {low", "this is not readable YAML"),
}


@pytest.mark.parametrize("text, sentence", WRONG.values(), ids=WRONG)
def test_a_wrong_space_is_one_sentence(text, sentence, tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(LabError) as caught:
        spaces.load_space(file, {"num_beams": 1})
    assert sentence in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_every_proposal_can_be_run(lab):
    """Beams of 1 with a length penalty, a constant rate with a warm-up: nothing sampled stops a search."""
    (lab / "space.yaml").write_text(SMALL + CONDITIONAL)
    search, seen = opened(lab, trials=25), []

    def configure(search, trial, sampled):
        c = studies.configure(search.values(trial))
        seen.append((c.own.num_beams, c.own.length_penalty, c.training.scheduler, c.training.warmup, c.training.patience, c.training.threshold))
        return 1.0

    tuning.optimize(search, configure)
    assert {beams > 1 for beams, *_ in seen} == {True, False}
    for beams, penalty, scheduler, warmup, patience, threshold in seen:
        assert (penalty is None) == (beams == 1)
        assert (warmup is None) == (scheduler == "constant")
        assert (threshold is None) == (patience == 0)
    rows = tuning.trial_rows(search)
    assert [row["length_penalty"] for row in rows] == [penalty for _, penalty, *_ in seen]


# ---- kills -------------------------------------------------------------------------------------------------------

def killed_after(lab: Path, lines: int, torn: bool, **given) -> bool:
    """Work on a search in a process of its own that is killed after so many lines of the journal; True if it was."""
    from optuna.storages.journal import JournalFileBackend

    def work():
        append, count = JournalFileBackend.append_logs, [0]

        def dying(self, logs):
            count[0] += 1
            if count[0] > lines:
                if torn:
                    with open(self._file_path, "ab") as file:
                        file.write(json.dumps(logs[0]).encode()[:20])
                    Path(self._file_path + ".lock").symlink_to(self._file_path)
                os.kill(os.getpid(), signal.SIGKILL)
            append(self, logs)

        JournalFileBackend.append_logs = dying
        tuning.optimize(opened(lab, **given), formula)

    return in_a_child(work) == signal.SIGKILL


def test_a_search_killed_again_and_again_finds_the_same(lab):
    whole = opened(lab, "search", trials=20)
    tuning.optimize(whole, formula)
    undisturbed = story(whole)
    assert {state for _, state, *_ in undisturbed} == {"COMPLETE", "PRUNED"}
    assert len({str(sampled) for _, _, sampled, *_ in undisturbed}) == 20
    whole.close()
    (lab / "runs").rename(lab / "undisturbed")
    kills = 0
    for turn in range(100):
        if not killed_after(lab, lines=11 + 7 * (turn % 4), torn=turn % 2 == 0, trials=20):
            break
        kills += 1
    assert kills > 8
    again = opened(lab, "search", trials=20)
    assert story(again) == undisturbed
    assert sum(row["interruptions"] for row in tuning.trial_rows(again)) > 5
    assert (again.folder / "best.yaml").read_text() == (lab / "undisturbed/summarization/search/best.yaml").read_text()


def test_more_trials_later_are_the_trials_of_a_longer_search(lab):
    long = opened(lab, "long", trials=16)
    tuning.optimize(long, formula)
    for trials in (5, 13, 16, 16):
        short = opened(lab, "short", trials=trials)
        tuning.optimize(short, formula)
        assert len(short.optuna.trials) == trials
        short.close()
    assert story(short) == story(long)


KILLED_IN_TRIAL_1 = """
import os, signal
from korlab.experiment import checkpoints
from korlab.workbench import spaces, tuning
seal = checkpoints.write_manifest
def seal_and_die(folder):
    seal(folder)
    if "trial-001" in str(folder) and folder.name == "checkpoint-4":
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.write_manifest = seal_and_die
tuning.optimize(tuning.open_search({given!r}))
"""


@pytest.mark.slow
def test_a_trial_killed_in_training_goes_on_from_its_checkpoint(lab):
    from transformers import PreTrainedModel

    import korlab.summarization.trainer  # noqa: F401  (a warning at import would keep a trial's frame in pytest's log)

    save_dialogues(embedded().rows["train"][:70], lab / "rows.csv")
    values = TINY | {"eval_steps": 2, "tracking": "none", "rouge_mode": "char", "data": lab / "rows.csv"}
    words = " ".join(f"{k}={v}" for k, v in values.items())
    given = {"name": "killed", "experiment": QUICKSTART, "space": str(lab / "space.yaml"), "trials": 2, "values": words}
    others = {id(o) for o in gc.get_objects() if issubclass(type(o), PreTrainedModel)}  # of tests before this one
    command = [sys.executable, "-c", KILLED_IN_TRIAL_1.format(given=given)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    for name in ("killed", "whole"):
        search = tuning.open_search(given | {"name": name})
        tuning.optimize(search)
        search.close()
        if name == "killed":
            resumed = story(search)
    assert resumed == story(search) and [state for _, state, *_ in resumed] == ["COMPLETE"] * 2
    folder = lab / "runs" / "summarization"
    notes = [note["text"] for note in files.read_json(folder / "killed-trial-001" / "status.json")["notes"]]
    assert "Going on from checkpoint-4." in notes
    assert files.read_json(folder / "killed" / "trials.json")["trials"][1]["interruptions"] == 1
    for number in range(2):  # records stay, test was not scored, and only the best keeps its weights
        trial = search.trial_folder(number)
        assert (trial / "history.jsonl").exists() and not (trial / "checkpoints").exists()
        assert not (trial / "metrics.json").exists()
        assert (trial / "model").exists() == (number == search.best.number)
    gc.collect()
    assert not [o for o in gc.get_objects() if issubclass(type(o), PreTrainedModel) and id(o) not in others], "a model is still in memory"
    config = studies.configure(read_yaml(folder / "killed" / "best.yaml"))
    assert (config.training.max_steps, config.run.name, config.own.num_beams) == (6, "killed-best", search.best.params["num_beams"])


# ---- pruning and failing -----------------------------------------------------------------------------------------

def pretend(monkeypatch) -> None:
    """Runs without a model: six evaluations, then a final model, the way ModelTrainer reports and leaves files."""
    def train(run, model, data, callbacks):
        with run.stage("train"):
            (run.path("checkpoints") / "checkpoint-6").mkdir(parents=True)
            height = 1 - abs(run.config.training.learning_rate - 2e-3) * 200
            for step in range(1, 7):
                scores, state = {"eval_rougeL": height * step / 6}, SimpleNamespace(global_step=step)
                callbacks[0].on_evaluate(SimpleNamespace(eval_steps=1), state, None, metrics=scores)
            run.path("model").mkdir()
        return {"eval_metrics": scores}

    fake = replace(studies.study("summarization"), data=lambda run: None, model=lambda run, data: None, train=train)
    monkeypatch.setattr(studies, "study", lambda name: fake)


def test_pruned_trials_keep_their_folder_marked(lab, monkeypatch):
    pretend(monkeypatch)
    search = opened(lab, trials=12)
    tuning.optimize(search)
    states = [t.state.name for t in search.optuna.trials]
    assert states[:5] == ["COMPLETE"] * 5 and "PRUNED" in states
    for trial in search.optuna.trials:
        folder = search.trial_folder(trial.number)
        status = files.read_json(folder / "status.json")
        pruned = trial.state.name == "PRUNED"
        assert status["state"] == status["stages"]["train"]["state"] == ("pruned" if pruned else "done")
        assert status["error"] is None
        assert not pruned or len(trial.intermediate_values) > 3, "three evaluations are never pruned"
        assert not (folder / "checkpoints").exists()
        assert (folder / "model").exists() == (trial.number == search.best.number)
    with open(search.folder / "trials.csv", encoding="utf-8", newline="") as file:
        assert [row["state"].upper() for row in csv.DictReader(file)] == states


def test_a_failure_is_recorded_and_the_search_goes_on(lab):
    def shaky(search, trial, sampled):
        if trial.number in (1, 2):
            raise MemoryError("no memory left")
        return float("nan") if trial.number == 4 else formula(search, trial, sampled)

    search = opened(lab, trials=6)
    tuning.optimize(search, shaky)
    rows = tuning.trial_rows(search)
    assert [row["trial"] for row in rows if row["state"] == "fail"] == [1, 2, 4] and len(rows) == 9
    assert [rows[n]["error"] for n in (1, 4)] == ["MemoryError: no memory left", "ValueError: eval_rougeL is nan"]


def test_every_trial_is_a_record_of_its_own_and_says_how_it_ended(lab, monkeypatch):
    """Three trainings in one process: one runs through, one fails, one is pruned; W&B keeps its first settings for the process."""
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)

    class Score(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **_):
            metrics["eval_rougeL"] = 0.5

    def train(run, model, data, callbacks):
        number = int(run.folder.name[-3:])
        with run.stage("train"):
            extra = [Score(), *callbacks, *([Stop(4, ValueError("loss is nan"))] if number == 1 else [])]
            return Line(run.config, OneWeight(), run.folder, callbacks=extra, dev=True, note=lambda text: None).train()

    fake = replace(studies.study("summarization"), data=lambda run: None, model=lambda run, data: None, train=train)
    monkeypatch.setattr(studies, "study", lambda name: fake)
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: trial.number == 2)
    search = opened(lab, trials=2, values="max_steps=6 eval_steps=3 logging_steps=1 tracking=wandb tracking_offline=true")
    tuning.optimize(search)
    assert [t.state.name for t in search.trials] == ["COMPLETE", "FAIL", "PRUNED"]
    found = [wandb_records(search.trial_folder(number)) for number in range(3)]
    assert [len(one) for one in found] == [1, 1, 1] and len({one[0][0] for one in found}) == 3
    assert [one[0][1:3] for one in found] == [("search", [0]), ("search", [1]), ("search", [0])]
    assert [len(one[0][3]) for one in found] == [6, 4, 3]
    pruned = wandb_file(next(search.trial_folder(2).rglob("*.wandb")))
    reason = {item.key: json.loads(item.value_json) for one in pruned for item in one.summary.update}.get("stopped")
    assert reason == "eval_rougeL is worse than the median of earlier trials at evaluation 1"


def test_what_the_lab_refuses_stops_the_search_and_is_tried_again(lab):
    def refused(search, trial, sampled):
        raise runs.RunError("the folder is taken")

    search = opened(lab, trials=2)
    with pytest.raises(runs.RunError, match="the folder is taken"):
        tuning.optimize(search, refused)
    tuning.optimize(search, formula)
    assert [row["state"] for row in tuning.trial_rows(search)] == ["complete"] * 2


def test_hours_count_all_calls(lab, monkeypatch):
    now = iter(range(0, 10**9, 600))
    monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: next(now)))
    for hours, trials in ((0.5, 3), (0.5, 3), (1.0, 6)):  # a trial takes 600 seconds here
        search = opened(lab, trials=50, hours=hours)
        tuning.optimize(search, lambda search, trial, sampled: 1.0)
        assert len(search.optuna.trials) == trials
        search.close()


def test_a_killed_trial_has_counted_its_time(lab, monkeypatch):
    now = iter(range(0, 10**9, 600))
    monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: next(now)))
    search = opened(lab)
    trial = search.optuna.ask()
    report = tuning.reporter(trial, search.measure)
    for step in (4, 8, 10):  # the last evaluation is no multiple of eval_steps
        args, state = SimpleNamespace(eval_steps=4), SimpleNamespace(global_step=step)
        report.on_evaluate(args, state, None, metrics={"eval_rougeL": 0.1})
    assert search.optuna.trials[0].intermediate_values == {0: 0.1, 1: 0.1, 2: 0.1}
    assert tuning.next_trial(search).user_attrs["seconds"] == 1800


# ---- the folder --------------------------------------------------------------------------------------------------

def test_nothing_is_pickled(lab, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a search pickles nothing")

    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    for trials in (6, 12):
        search = opened(lab, trials=trials)
        tuning.optimize(search, formula)
        search.close()
    snapshots = optuna.storages.journal._base.BaseJournalSnapshot  # pickled every 100 trials
    assert not isinstance(search.optuna._storage._backend, snapshots)
    journal = (search.folder / "journal.log").read_text(encoding="utf-8")
    assert all(isinstance(json.loads(line), dict) for line in journal.splitlines())


def test_another_search_under_the_same_name_is_refused(lab):
    opened(lab).close()
    (lab / "other.yaml").write_text(SMALL.replace("[1, 2]", "[1, 4]"))
    changes = [
        ({"space": str(lab / "other.yaml")}, "num_beams"),
        ({"objective": "eval_rouge1"}, "objective: 'eval_rougeL' → 'eval_rouge1'"),
        ({"seed": 7}, "seed of proposals: 42 → 7"),
        ({"values": "max_steps=7"}, "max_steps: 6 → 7"),
    ]
    for change, sentence in changes:
        with pytest.raises(runs.RunError, match="searched with other parameters") as caught:
            opened(lab, **change)
        assert sentence in str(caught.value)
    opened(lab, trials=9, hours=9).close()  # limits may change, and a refusal leaves no lock behind


def test_the_parameters_cell_says_what_the_dataclass_says():
    cells = nbformat.read(ROOT / "nbs" / "tune.ipynb", as_version=4).cells
    tagged = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert tagged == [params.cell_source({"": spaces.TuneParams})]
