"""user:password in an address reaches no record, no log, no page and no error."""

import json
from pathlib import Path

import in_process
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from korlab.core.errors import without_logins
from korlab.core.settings import root
from korlab.experiment import runs
from korlab.experiment.models import CheckpointError, loading
from korlab.experiment.params import ParameterError
from korlab.experiment.results import stand_in
from korlab.report import render

ADDRESS, SECRET = "https://mina:s3cr3t@files.example/x.csv", "s3cr3t"


def recorded(folder: Path) -> str:
    return "".join(file.read_text("utf-8", errors="replace") for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("name", ["data", "dev_data", "test_data", "checkpoint", "prefix", "tracking_project"])
def test_a_parameter_with_a_password_is_refused_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    given = {"model": "kobart", name: ADDRESS} | ({"size": "full"} if name == "checkpoint" else {}) | ({"tracking": "mlflow"} if name[0:2] == "tr" else {})
    with pytest.raises(ParameterError, match=rf"^{name}='https://\*\*\*@files.example/x.csv': every record of a run would show this password"):
        runs.open_run(given)
    assert SECRET not in recorded(tmp_path) and not [*tmp_path.rglob("config.json")]


@pytest.mark.parametrize("words", [
    ("run", "params/summarization/quickstart.yaml", "-p", "data", ADDRESS), ("run", "params/coref/one.yaml", "-p", "data", f"https://files.example/x?token={SECRET}"),
    ("run", ADDRESS), ("evaluate", "none", "--data", ADDRESS), ("summarize", "none", ADDRESS, "--to", "out.csv"), ("evaluate", ADDRESS),
    ("coref", "build", ADDRESS, "--out", "set"), ("sparse", "index", ADDRESS), ("ivr", "init", "--data", ADDRESS),
])
def test_no_command_prints_or_keeps_a_password(tmp_path, words):
    done = in_process.korlab(*words, runs=tmp_path)
    assert done.returncode == 1 and SECRET not in done.stdout + done.stderr + recorded(tmp_path), done.stdout + done.stderr
    assert "***" in done.stderr or "no run" in done.stderr, done.stderr  # it came as far as the address, or to what is asked before


def test_a_failed_stage_and_a_library_s_own_words_keep_none(tmp_path, monkeypatch):
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    run = stand_in("one", {"test": [0.5]})
    with pytest.raises(ConnectionError), run.stage("train"):
        raise ConnectionError(f"no answer from {ADDRESS}")
    assert run.status["error"] == "ConnectionError: no answer from https://***@files.example/x.csv"
    with pytest.raises(CheckpointError) as caught, loading("owner/name"):
        raise OSError(f"GET {ADDRESS} failed")
    assert SECRET not in f"{caught.value}" + "".join(caught.value._render_traceback_()) + recorded(tmp_path)


def test_no_page_of_an_executed_notebook_shows_one(tmp_path):
    cells = [new_markdown_cell(f"# {ADDRESS}"), new_code_cell(f"data = '{ADDRESS}'", execution_count=1, outputs=[
        new_output("stream", text=ADDRESS), new_output("display_data", {"text/html": f"<b>{ADDRESS}</b>", "text/markdown": ADDRESS}),
        new_output("error", ename="OSError", evalue=ADDRESS, traceback=[ADDRESS])])]
    (tmp_path / "run.ipynb").write_text(json.dumps(new_notebook(cells=cells, metadata={"papermill": {"parameters": {"data": ADDRESS}}})), "utf-8")
    made = render.render(tmp_path / "run.ipynb", tmp_path / "out", root=root(), code=True)
    for text in (made.html.read_text("utf-8"), made.markdown.read_text("utf-8")):
        assert SECRET not in text and text.count("***@files.example") >= 4


def test_what_is_no_login_stays():
    for text in ("https://medium.com/@mina/x", "me@x.kr: see https://x.kr", "C:/a@b.csv", "https://x.kr?to=a@b.kr", "owner/name@main", "sqlite:////tmp/a@b.db"):
        assert without_logins(text) == text
