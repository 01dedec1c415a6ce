"""Tracking services without a network, and secrets that nothing writes down."""

import json
import os
import sqlite3
import subprocess

import pytest
from conftest import ROOT, TINY, flags, papermill

from korlab.experiment import studies, tracking
from korlab.experiment.params import ParameterError

SECRET = "korlab-secret-5f1e0c"
FAST = TINY | {"max_steps": 2, "eval_steps": 2, "train_rows": 40, "eval_rows": 2}


def everything_in(folder) -> dict:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A copy of the lab whose .env holds a secret; processes started in it are told nothing else."""
    for name in ("nbs", "params", "korlab", "settings.ini"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".env").write_text(f"WANDB_API_KEY={SECRET}\nHF_TOKEN={SECRET}\n")
    return tmp_path


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_an_offline_record_is_kept_and_no_secret_in_it(lab, service, monkeypatch):
    pytest.importorskip(service)
    monkeypatch.setattr("conftest.ROOT", lab)
    runs = lab / "runs"
    outcome = papermill(lab / "out.ipynb", *flags(
        model="kobart", name="tracked", tracking=service, tracking_offline=True, tracking_tags="baseline,kobart",
        tracking_project="nlp-competition", **FAST), runs=runs)
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
    told = tracking.environment(config, tmp_path)
    assert told["WANDB_PROJECT"] == "nlp-competition" and told["WANDB_ENTITY"] == "lab"
    assert told["WANDB_TAGS"] == "baseline,kobart" and told["WANDB_MODE"] == "offline"
    assert told["WANDB_RUN_ID"] == tracking.run_name(tmp_path)


@pytest.mark.parametrize("service, advice", [("wandb", "WANDB_API_KEY"), ("mlflow", "MLFLOW_TRACKING_URI")])
def test_a_service_without_login_is_refused_at_once(service, advice, monkeypatch, tmp_path):
    for name in (*tracking.SECRETS, "MLFLOW_TRACKING_URI"):
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
