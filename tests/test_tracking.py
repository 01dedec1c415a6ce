"""Tracking services without a network, and secrets that nothing writes down."""

import json
import os
import shutil
import sqlite3
import struct
import subprocess
from contextlib import contextmanager

import pytest
import torch
from conftest import ROOT, TINY, flags, papermill
from transformers import TrainerCallback

from korlab.experiment import studies, tracking
from korlab.experiment.params import ParameterError
from korlab.experiment.training import Training
from korlab.summarization.data import embedded
from korlab.summarization.dialogues import save_dialogues

SECRET = "korlab-secret-5f1e0c"
FAST = TINY | {"max_steps": 2, "eval_steps": 2, "train_rows": 40, "eval_rows": 2, "rouge_mode": "char"}


def everything_in(folder) -> dict:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A copy of the lab whose .env holds a secret; processes started in it are told nothing else."""
    for name in ("nbs", "params", "korlab", "settings.ini"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".env").write_text(f"WANDB_API_KEY={SECRET}\nHF_TOKEN={SECRET}\n")
    return tmp_path


@pytest.mark.parametrize("service", [pytest.param(one, marks=pytest.mark.slow) for one in ("wandb", "mlflow")])
def test_an_offline_record_is_kept_and_no_secret_in_it(lab, service, monkeypatch):
    pytest.importorskip(service)
    monkeypatch.setattr("conftest.ROOT", lab)
    runs = lab / "runs"
    save_dialogues(embedded().rows["train"][:50], lab / "rows.csv")
    outcome = papermill(lab / "out.ipynb", *flags(
        model="kobart", name="tracked", tracking=service, tracking_offline=True, tracking_tags="baseline,kobart",
        tracking_project="nlp-competition", data=lab / "rows.csv", **FAST), runs=runs)
    assert outcome.code == 0, outcome.text[-2000:]
    run = runs / "summarization" / "tracked"
    found = everything_in(run) | everything_in(runs) | {"out": (lab / "out.ipynb").read_bytes(), "printed": outcome.text.encode()}
    assert not [name for name, text in found.items() if SECRET.encode() in text]
    name = json.loads((run / "tracking.json").read_text())["name"]
    assert name.endswith("-tracked")
    if service == "wandb":
        assert list(run.glob("wandb/offline-run-*/*.wandb"))
    else:
        database = sqlite3.connect(run / "mlflow.db")
        assert {"eval_rouge_sum", "loss"} <= {key for key, in database.execute("select key from metrics")}
        assert {"baseline", "kobart"} <= {key for key, in database.execute("select key from tags")}
        assert ("nlp-competition",) in database.execute("select name from experiments").fetchall()


def test_what_the_services_are_told(tmp_path):
    config = studies.configure({"tracking": "wandb", "tracking_offline": True, "tracking_entity": "lab",
                                 "tracking_project": "nlp-competition", "tracking_tags": "baseline, kobart"})
    told = tracking.told(config, tmp_path)
    assert told["project"] == "nlp-competition" and told["entity"] == "lab"
    assert told["tags"] == ["baseline", "kobart"] and told["mode"] == "offline"
    assert told["name"] == tracking.run_name(tmp_path) and told["dir"] == str(tmp_path)


# ---- the environment decides unless a parameter says otherwise ---------------------------------------------------

@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment that says nothing of the services, an empty home and an empty working folder."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    return monkeypatch


SAID = {"WANDB_PROJECT": ("project", "theses"), "WANDB_ENTITY": ("entity", "school"), "WANDB_MODE": ("mode", "offline"),
        "WANDB_RUN_GROUP": ("group", "spring"), "WANDB_NAME": ("name", "my own"), "WANDB_DIR": ("dir", "/elsewhere")}


def test_what_the_environment_says_of_wandb_stands(bare, tmp_path):
    plain = studies.configure({"tracking": "wandb"})
    for name, (_, value) in SAID.items():
        bare.setenv(name, value)
    told = tracking.told(plain, tmp_path)
    assert {name: told[name] for name, _ in SAID.values()} == dict(SAID.values())
    assert told["tags"] is None, "WANDB_TAGS is left to W&B"
    tracking.check(plain)  # offline by the environment: no login is needed
    over = plain.but(tracking_project="mine", tracking_entity="me", tracking_offline=True)
    told = tracking.told(over, tmp_path)
    assert (told["project"], told["entity"], told["mode"], told["dir"]) == ("mine", "me", "offline", str(tmp_path))
    with pytest.raises(ParameterError, match="no login for api.wandb.ai"):
        tracking.check(plain.but(tracking_offline=False))


@pytest.mark.parametrize("said, experiment, number", [
    ({}, "korlab", None), ({"MLFLOW_EXPERIMENT_NAME": "theses"}, "theses", None), ({"MLFLOW_EXPERIMENT_ID": "7"}, None, "7"),
])
def test_what_the_environment_says_of_mlflow_stands(said, experiment, number, bare, tmp_path):
    for name, value in said.items():
        bare.setenv(name, value)
    plain = studies.configure({"tracking": "mlflow"})
    told = tracking.told(plain, tmp_path)
    assert (told["uri"], told["experiment"], told["experiment_id"]) == (None, experiment, number)
    told = tracking.told(plain.but(tracking_project="mine"), tmp_path)
    assert (told["experiment"], told["experiment_id"]) == ("mine", None)
    told = tracking.told(plain.but(tracking_offline=True), tmp_path)
    assert told["experiment_id"] is None, "a database of one's own has no experiment of a server"


def test_a_login_at_a_server_of_ones_own_is_seen(bare, tmp_path):
    plain = studies.configure({"tracking": "wandb"})
    (tmp_path / ".netrc").write_text("machine wandb.school.kr login user password not-a-real-one\n")
    with pytest.raises(ParameterError, match="no login for api.wandb.ai"):
        tracking.check(plain)
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.school.kr\n")  # `wandb login --host`
    tracking.check(plain)
    bare.setenv("WANDB_BASE_URL", "http://10.0.0.7:8080")
    with pytest.raises(ParameterError, match="no login for 10.0.0.7:8080"):
        tracking.check(plain)
    (tmp_path / "other").write_text("machine 10.0.0.7:8080 login user password not-a-real-one\n")
    bare.setenv("NETRC", str(tmp_path / "other"))
    tracking.check(plain)


def test_a_mode_that_is_none_is_refused_at_once(bare):
    bare.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ParameterError, match="WANDB_MODE='ofline' is no mode of W&B"):
        tracking.check(studies.configure({"tracking": "wandb"}))


# ---- one training, one record ------------------------------------------------------------------------------------

class OneWeight(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, labels):
        return {"loss": ((self.weight * x - labels) ** 2).mean(), "logits": self.weight * x}


class Line(Training):
    """Six updates of one weight in a moment."""

    train_dataset = [{"x": float(i % 7), "labels": 2.0 * (i % 7)} for i in range(20)]

    def parts(self):
        return {"train_dataset": self.train_dataset, "eval_dataset": self.train_dataset,
                "compute_metrics": lambda _: {"rougeL": abs(self.model.weight.item())}}


class Stop(TrainerCallback):
    """Raises something when a step is logged."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_log(self, args, state, control, **_):
        if state.global_step == self.step:
            raise self.error


def line(folder, *calls, **given):
    """A training with checkpoints at 2, 4 and 6 and a loss logged at every step."""
    folder.mkdir(parents=True, exist_ok=True)
    config = studies.configure({"max_steps": 6, "eval_steps": 2, "batch_size": 4, "logging_steps": 1, "learning_rate": 0.3,
                                "warmup": 0, "device": "cpu", "precision": "fp32", "threads": 1} | given)
    return Line(config, OneWeight(), folder, callbacks=calls, dev=True, note=lambda text: None)


def stopped(folder, error, step=5, **given):
    """Train until something stops it."""
    with pytest.raises(type(error)):
        line(folder, Stop(step, error), **given).train()


def wandb_file(file) -> list:
    """The records of a W&B file: LevelDB's log format after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found, begun = file.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # a block's end too short for a header
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])  # whole, first, middle and last are 1 to 4
        begun, at = begun + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(begun))
            begun = b""
    return found


def wandb_records(folder) -> list[tuple]:
    """Id, group, exit codes and steps of logged losses of each W&B file below a folder, the oldest first."""
    found = []
    for file in sorted(folder.rglob("*.wandb")):
        records = wandb_file(file)
        run = next(record.run for record in records if record.HasField("run"))
        lines = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                 for record in records if record.HasField("history")]
        found.append((run.run_id, run.run_group, [one.exit.exit_code for one in records if one.HasField("exit")],
                      [line["train/global_step"] for line in lines if "train/loss" in line]))
    return found


def test_every_training_of_a_process_is_a_wandb_run_of_its_own(bare, tmp_path):
    wandb = pytest.importorskip("wandb")
    bare.setenv("WANDB_RUN_ID", "same")
    before, given = dict(os.environ), {"tracking": "wandb", "tracking_offline": True}
    stopped(tmp_path / "failed", ValueError("loss is nan"), **given)
    assert wandb.run is None, "the next one would go on in this record"
    stopped(tmp_path / "killed", KeyboardInterrupt(), **given)
    line(tmp_path / "killed", **given).train()
    trainer = line(tmp_path / "whole", **given)
    trainer.train()
    trainer.evaluate()  # opens no record, and adds to none
    records = {name: wandb_records(tmp_path / name) for name in ("failed", "killed", "whole")}
    ids = {name: {key for key, *_ in found} for name, found in records.items()}
    assert [len(one) for one in ids.values()] == [1, 1, 1] and len(set.union(*ids.values())) == 3
    assert [code for _, _, code, _ in records["failed"] + records["killed"] + records["whole"]] == [[1], [255], [0], [0]]
    assert [steps for *_, steps in records["killed"]] == [[1, 2, 3, 4, 5], [6]]
    changed = {name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}
    assert changed <= {"WANDB_SERVICE"}, "W&B's own, for processes that it starts"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty database of MLflow, made once."""
    mlflow = pytest.importorskip("mlflow")
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


def rows(file, query) -> list:
    return sqlite3.connect(file).execute(query).fetchall()


def test_mlflow_is_told_how_a_training_ended_and_nothing_twice(bare, tmp_path, database):
    server = shutil.copy(database, tmp_path / "server.db")
    bare.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{server}")
    bare.setenv("MLFLOW_EXPERIMENT_NAME", "theses")
    bare.setenv("MLFLOW_RUN_ID", "same")
    stopped(tmp_path / "failed", ValueError("loss is nan"), tracking="mlflow")
    stopped(tmp_path / "killed", KeyboardInterrupt(), tracking="mlflow")
    stopped(tmp_path / "pruned", tracking.Stopped("hopeless"), tracking="mlflow")
    states = dict(rows(server, "select substr(name, 11), status from runs"))
    assert states == {"failed": "FAILED", "killed": "KILLED", "pruned": "KILLED"}
    line(tmp_path / "killed", tracking="mlflow").train()
    assert rows(server, "select status from runs where name like '%killed'") == [("FINISHED",)]
    steps = rows(server, "select step from metrics natural join runs where name like '%killed' and key = 'loss' order by 1")
    assert [step for step, in steps] == [1, 2, 3, 4, 5, 6]
    assert {name for name, in rows(server, "select e.name from experiments e join runs r using (experiment_id)")} == {"theses"}


def test_after_an_offline_mlflow_run_the_process_is_as_before(bare, tmp_path, database):
    import mlflow

    before, uri, given = dict(os.environ), mlflow.get_tracking_uri(), {"tracking": "mlflow", "tracking_offline": True}
    (tmp_path / "run").mkdir()
    own = shutil.copy(database, tmp_path / "run" / "mlflow.db")
    trainer = line(tmp_path / "run", **given)
    trainer.train()
    trainer.evaluate()
    assert (dict(os.environ), mlflow.get_tracking_uri(), mlflow.active_run()) == (before, uri, None)
    assert rows(own, "select count(*), status from runs") == [(1, "FINISHED")]
    mlflow.set_tracking_uri("sqlite:////nowhere/of-the-user.db")  # a person's own choice, made in this process
    with tracking._mlflow_as_before():
        mlflow.set_tracking_uri("sqlite:////nowhere/else.db")
    assert mlflow.get_tracking_uri() == "sqlite:////nowhere/of-the-user.db"
    mlflow.set_tracking_uri(None)


def curves(folder) -> dict[str, list[int]]:
    """Name -> steps, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("step", [1, 5, 6])
def test_tensorboard_shows_every_step_once_after_a_kill(step, tmp_path):
    """Killed before the first checkpoint, between two, and after the last evaluation; then trained to the end, and once more."""
    stopped(tmp_path, KeyboardInterrupt(), step=step)
    line(tmp_path).train()
    line(tmp_path).train()
    shown = curves(tmp_path / "tensorboard")
    assert shown["train/loss"] == [1, 2, 3, 4, 5, 6] and shown["eval/loss"] == [2, 4, 6] and shown["train/train_runtime"] == [6]


def test_an_evaluation_alone_leaves_no_curves_of_its_own(tmp_path):
    trainer = line(tmp_path)
    trainer.evaluate()
    assert not list(tmp_path.rglob("*tfevents*"))
    trainer.train()
    trainer.evaluate()
    assert [file.parent.name for file in tmp_path.rglob("*tfevents*")] == ["tensorboard"]


def test_curves_may_be_collected_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "all"))
    for name in ("one", "two"):
        line(tmp_path / name).train()
    assert sorted(folder.name[10:] for folder in (tmp_path / "all").iterdir()) == ["one", "two"]


@pytest.mark.parametrize("service, advice", [("wandb", "WANDB_API_KEY"), ("mlflow", "MLFLOW_TRACKING_URI")])
def test_a_service_without_login_is_refused_at_once(service, advice, monkeypatch, tmp_path):
    for name in (*tracking.SECRETS, "MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ParameterError, match=advice):
        tracking.check(studies.configure({"tracking": service}))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ParameterError, match=r"wandb is not installed; pip install 'korlab\[tracking\]'"):
        tracking.check(studies.configure({"tracking": "wandb", "tracking_offline": True}))


def test_the_environment_wins_over_the_file(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("HF_TOKEN=from-file\n")
    monkeypatch.setenv("HF_TOKEN", "from-environment")
    tracking.load_secrets(tmp_path / ".env")
    assert os.environ["HF_TOKEN"] == "from-environment"


def test_git_ignores_the_file_of_secrets():
    assert subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=ROOT).returncode == 0


def test_a_service_that_does_not_answer_is_one_sentence(tmp_path, monkeypatch):
    """What it says itself is quoted; the way on without it is told."""
    @contextmanager
    def unreachable(words, folder):
        raise ConnectionError("Max retries exceeded\nwith url: /api")
        yield

    monkeypatch.setattr(tracking, "_mlflow_record", unreachable)
    config = studies.configure({"model": "kobart", "tracking": "mlflow", "tracking_offline": True})
    with pytest.raises(tracking.TrackingError, match=r"mlflow.*Max retries exceeded\): .*tracking_offline=true or tracking=none$"):
        with tracking.recorded(config, tmp_path):
            pass
