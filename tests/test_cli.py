"""The command line as a process: what is refused is one sentence, what is a bug is a traceback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.core.errors import LabError
from korlab.experiment import studies
from korlab.workbench import driving, watching

KORLAB = [str(Path(sys.executable).with_name("korlab"))]
MAIN = "from korlab.cli.main import main; main()"


def korlab(*words: object, runs: Path, before: str = "") -> subprocess.CompletedProcess:
    """The command in a process of its own; `before` is Python that runs in it first."""
    start = [sys.executable, "-c", f"{before}\n{MAIN}"] if before else KORLAB
    return subprocess.run(
        [*start, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | {"KORLAB_RUNS": str(runs)},
    )


def one_sentence(done: subprocess.CompletedProcess) -> str:
    """What a refusal says; everything else about it is checked."""
    assert done.returncode == 1 and done.stdout == "", done.stdout + done.stderr
    said, = done.stderr.splitlines()
    assert said.startswith("korlab: "), said
    return said


@pytest.mark.parametrize("content", ['{"half', "[]", '{"name": "night"}'], ids=["cut", "a list", "keys missing"])
@pytest.mark.parametrize("command", ["status", "logs", "monitor", "stop"])
def test_a_damaged_summary_is_one_sentence(command, content, tmp_path):
    record = tmp_path / "suites" / "night" / "summary.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    said = one_sentence(korlab(command, runs=tmp_path))
    assert "summary.json is damaged" in said and "delete it" in said and str(tmp_path) not in said


@pytest.mark.parametrize("error", ["ZeroDivisionError", "ValueError", "OSError", "KeyError"])
def test_a_bug_shows_its_traceback(error, tmp_path):
    planted = f"import korlab.workbench.suite as s\ndef find_suite(name): raise {error}('planted')\ns.find_suite = find_suite"
    done = korlab("status", runs=tmp_path, before=planted)
    assert done.returncode == 1 and "Traceback (most recent call last)" in done.stderr
    assert "in find_suite" in done.stderr and re.search(rf"^{error}: '?planted'?$", done.stderr, re.MULTILINE)
    assert "korlab: " not in done.stderr


def test_a_refusal_from_anywhere_is_one_red_line(tmp_path):
    planted = ("import korlab.workbench.suite as s\nfrom korlab.core.errors import LabError\n"
               "class Odd(LabError): pass\ndef find_suite(name): raise Odd('no such thing: name another')\ns.find_suite = find_suite")
    assert one_sentence(korlab("status", runs=tmp_path, before=planted)) == "korlab: no such thing: name another"


def test_a_mistyped_command_stays_a_usage_error(tmp_path):
    for words in (["statu"], ["run"], ["run", "a.yaml", "-j", "0"], ["sparse", "serch"]):
        done = korlab(*words, runs=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr, words


@pytest.mark.parametrize("words, sentence", [
    (["sparse", "index", "RUN", "embedded"], "--to FOLDER or --opensearch ALIAS"),
    (["sparse", "index", "RUN", "embedded", "--to", "x", "--layout", "dense"], "would have no effect without --opensearch"),
    (["sparse", "search", " "], "the query is empty"),
    (["report", "nobody"], "no run 'nobody'"),
    (["report", "none.ipynb"], "there is no notebook none.ipynb"),
    (["evaluate", "nobody", "-p", "seed"], "write it as NAME VALUE"),
    (["run", "none.yaml"], "there is no such file"),
    (["run", "params"], "there is no such file"),
    (["tune", "params/summarization/quickstart.yaml", "--space", "params"], "there is no such file"),
    (["summarization", "summarize", "nobody", "in.csv", "--to", "out.csv"], "no run 'nobody'"),
    (["summarize", "nobody", "in.csv", "--to", "out.csv"], "no run 'nobody'"),
])
def test_what_a_person_mistypes_is_one_sentence(words, sentence, tmp_path):
    assert sentence in one_sentence(korlab(*words, runs=tmp_path))


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    yaml = tmp_path / "one.yaml"
    yaml.write_text(f"model: {next(iter(studies.models()))}\n")
    said = one_sentence(korlab("run", yaml, runs=tmp_path / "file" / "runs"))
    assert said.endswith(": Not a directory") and str(tmp_path) not in said


def test_a_bug_in_a_notebook_keeps_its_traceback(tmp_path, monkeypatch):
    """A refusal in an entry notebook is a sentence; anything else comes out with its frames."""
    import nbformat
    import papermill

    (tmp_path / "nbs").mkdir()
    monkeypatch.setattr(driving, "root", lambda: tmp_path)
    for source, wanted in (("1 / 0", papermill.PapermillExecutionError),
                           ("from korlab.core.errors import LabError; raise LabError('too few rows')", LabError)):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
        nbformat.write(book, tmp_path / "nbs" / "broken.ipynb")
        with pytest.raises(wanted) as caught:
            driving.execute_notebook("broken", tmp_path / "out.ipynb", {})
        assert ("1 / 0" in str(caught.value)) == (wanted is not LabError)
    assert str(caught.value) == "LabError: too few rows"


def test_the_short_name_is_the_studys_own_command():
    runner, app = CliRunner(), command_line()
    both = [runner.invoke(app, [*words, "--help"]).output for words in (["summarize"], ["summarization", "summarize"])]
    assert all("a run's name or folder, a checkpoint or an" in said for said in both)


def test_no_command_line_catches_errors():
    """No tuple of exceptions and no bare catch where commands are written; one class, in one place."""
    import ast

    for path in [ROOT / "korlab" / "cli" / "main.py", ROOT / "korlab" / "workbench" / "commands.py",
                 ROOT / "korlab" / "workbench" / "terminal.py", *(ROOT / "korlab").glob("*/cli.py")]:
        handlers = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ExceptHandler)]
        caught = [ast.unparse(node.type) if node.type else "everything" for node in handlers]
        assert set(caught) <= {"LabError", "KeyboardInterrupt", "RunError"} and not any("(" in name for name in caught)
        assert ("LabError" in caught) == (path.name == "main.py"), f"{path}: {caught}"


def test_the_background_is_the_same_command_once_more(tmp_path):
    """However it was started: as a script, or with `python -c`."""
    (file := tmp_path / "typo.yaml").write_text("model: nobody\n")
    for before in ("", "pass"):
        done = korlab("run", file, "--background", runs=tmp_path / "runs", before=before)
        assert "model" in one_sentence(done)
    folder = tmp_path / "runs" / "suites" / "night"
    record = {"name": "night", "state": "running", "pid": 0, "experiments": []}
    told = f"import json; from pathlib import Path; p = Path({str(folder)!r}); import os\n"
    told += f"(p / 'summary.json').write_text(json.dumps({json.dumps(record)} | {{'pid': os.getpid()}}))"
    number = watching.start_in_background(folder, [sys.executable, "-c", told])
    assert json.loads((folder / "summary.json").read_text())["pid"] == number
