"""The command line as a process: what is refused is one sentence, what is a bug is a traceback."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from conftest import ROOT, TINY
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
    assert "summary.json is damaged" in said and "delete it" in said and str(record) in said
    if content != "[]":
        return
    record.unlink()
    assert "no suite in" in one_sentence(korlab(command, runs=tmp_path)), "deleting it was the advice"


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
    for words in (["statu"], ["run"], ["run", "a.yaml", "-j", "0"], ["run", "a.yaml", "-j", "1000000"], ["sparse", "serch"],
                  ["coref", "mentions", "a.txt", "--workers", "1000000"], ["ivr", "analyze", "--workers", "1000000"]):
        done = korlab(*words, runs=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr, words


@pytest.mark.parametrize("words, sentence", [
    (["sparse", "index", "embedded", "--to", "x", "--opensearch", "y"], "--to FOLDER or --opensearch ALIAS"),
    (["sparse", "index", "embedded", "--to", "x", "--layout", "dense"], "would have no effect without --opensearch"),
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


def test_commands_print_through_the_one_place_that_shows_controls():
    """A passage, a file name or an answer of a server may hold what a terminal obeys."""
    import ast

    for path in [ROOT / "korlab" / "cli" / "main.py", ROOT / "korlab" / "workbench" / "commands.py", *(ROOT / "korlab").glob("*/cli.py")]:
        used = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)}
        assert not used & {"print", "typer.echo", "typer.secho", "sys.stdout.write"}, path


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


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Iterator[Path]:
    """A home folder that holds a copy of the lab and rows, with a working folder beside them."""
    (lab := tmp_path / "lab").mkdir()
    for name in ("nbs", "params", "korlab", "settings.ini"):
        (lab / name).symlink_to(ROOT / name)
    (tmp_path / "work").mkdir()
    before = dict(os.environ)
    os.environ |= {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path
    os.environ.clear()
    os.environ |= before


EVERYWHERE = [["report", "nobody"], ["evaluate", "nobody"], ["compare", "nobody", "none"], ["summarize", "nobody", "in.csv", "--to", "x.csv"],
              ["sparse", "export", "nobody", "--to", "x", "--license", "mit"]]


@pytest.mark.parametrize("words", EVERYWHERE, ids=[words[0] + words[1] for words in EVERYWHERE])
def test_every_command_reads_env_and_says_one_sentence_of_a_bad_one(words, elsewhere, monkeypatch):
    """What .env says counts; one that cannot be read, and a settings.ini with a mistake, is a sentence."""
    os.environ.pop("KORLAB_RUNS", None)
    monkeypatch.chdir(elsewhere / "lab")
    (elsewhere / "lab" / ".env").write_text("KORLAB_RUNS=~/marked\nHF_TOKEN=green\n", encoding="utf-8-sig")
    said = CliRunner().invoke(command_line(), words)
    assert said.exit_code == 1 and said.stderr.startswith("korlab: "), said.output
    assert (os.environ["HF_TOKEN"], os.environ["KORLAB_RUNS"]) == ("green", os.path.expanduser("~/marked"))
    (elsewhere / "lab" / ".env").write_bytes(b"\xff\xfe\x00")
    (elsewhere / "lab" / "settings.ini").unlink()
    (elsewhere / "lab" / "settings.ini").write_text("[paths]\nruns = ~nobody_here/x\ncache = x\n")
    for sentence in (".env: this is no text", "settings.ini: the key 'params' is missing"):
        said = CliRunner().invoke(command_line(), words)
        assert said.exit_code == 1 and sentence in said.stderr and said.stderr.count("\n") == 1, said.stderr
        (elsewhere / "lab" / ".env").unlink(missing_ok=True)


@pytest.mark.parametrize("notebook", ["train", "evaluate", "compare", "tune", "summarize", "search"])
def test_every_entry_notebook_reads_env(notebook, elsewhere, monkeypatch):
    import nbformat

    monkeypatch.chdir(elsewhere / "lab")
    (elsewhere / "lab" / ".env").write_text("HF_TOKEN=green\n")
    first, = [c.source for c in nbformat.read(ROOT / "nbs" / f"{notebook}.ipynb", 4).cells if "params.arrived(" in c.source]
    exec(first, {})
    assert os.environ["HF_TOKEN"] == "green"


TOO_LONG = "a" * 300


@pytest.mark.parametrize("words, sentence", [
    (["run", "~/none.yaml"], "none.yaml: there is no such file"),
    (["run", "none.yaml"], "it was looked for in {work}"),
    (["tune", "none.yaml", "--space", "s.yaml"], "it was looked for in {work}"),
    (["report", "none.ipynb"], "it was looked for in {work}"),
    (["sparse", "search", "q", "--documents", "none.jsonl"], "it was looked for in {work}"),
    (["sparse", "search", "q", "--documents", "$NOWHERE/x.jsonl"], "the environment has no variable NOWHERE"),
    (["report", TOO_LONG], "File name too long"), (["evaluate", TOO_LONG], "File name too long"),
    (["compare", TOO_LONG, "b"], "File name too long"), (["run", TOO_LONG], "File name too long"),
    (["sparse", "search", "q", "--documents", "/proc/1/mem"], "ermission denied"),
])
def test_a_path_that_leads_nowhere_says_where_it_was_looked_for(words, sentence, elsewhere):
    said = CliRunner().invoke(command_line(), words)
    assert said.exit_code == 1 and sentence.format(work=elsewhere / "work") in said.stderr and "Traceback" not in said.stderr, said.output
    assert said.stderr.startswith("korlab: ") and said.stderr.count("\n") == 1


def test_paths_of_commands_are_expanded_where_no_shell_did_it(elsewhere):
    """`--to=~/x` reaches a program as it was typed."""
    seen = {}
    app = command_line()
    command = next(one for one in app.registered_commands if one.callback.__name__ == "report")
    inner = command.callback.__wrapped__
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    module = sys.modules[inner.__module__]
    import korlab.report.render as render

    before, render.render = render.render, lambda *args, **how: seen.update(args=args) or render.Rendered(Path("x"), Path("x"), ())
    try:
        said = CliRunner().invoke(app, ["report", "~/out.ipynb", "--to=~/reports"])
    finally:
        render.render = before
    assert module.__name__.endswith("commands") and said.exit_code == 0, said.output
    assert seen["args"][1] == elsewhere / "reports"


def rows(folder: Path, **splits: int) -> None:
    """Files of embedded dialogues."""
    from korlab.core.files import write
    from korlab.summarization.data import embedded

    items = iter(embedded().rows["train"])
    for name, count in splits.items():
        lines = [{"fname": one.fname, "dialogue": one.dialogue, "summary": one.summaries[0]} for one, _ in zip(items, range(count))]
        write(folder / f"{name}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def test_a_home_folder_is_a_folder_of_splits(elsewhere):
    """Not one source of training rows, from which dev and test would be taken again."""
    from korlab.summarization.data import load_splits

    rows(elsewhere / "my", train=40, dev=10, test=10)
    for data in ("~/my", "$HOME/my", "../my", str(elsewhere / "my")):
        splits = load_splits(studies.configure({"model": "kobart", "data": data}))
        assert {name: len(found) for name, found in splits.rows.items()} == {"train": 40, "dev": 10, "test": 10}, data


def test_one_rule_for_paths_and_advice_that_is_true(elsewhere):
    """Paths of every spelling in a YAML file; a refused and a damaged run, and what the messages told to do about them."""
    from korlab.experiment.runs import open_run

    def go(*words: object) -> Result:
        return CliRunner().invoke(command_line(), [*map(str, words)])

    rows(elsewhere / "my", train=40, dev=10, test=10)
    (elsewhere / "work" / "near").mkdir()
    (elsewhere / "my" / "train.jsonl").rename(elsewhere / "work" / "near" / "train.jsonl")
    plain = {**TINY, "max_steps": 2, "eval_steps": 2, "train_rows": 30, "model": "kobart", "tracking": "none", "rouge_mode": "char", "data": "near/train.jsonl",
             "dev_data": "~/my/dev.jsonl", "test_data": "$HOME/my/test.jsonl"}
    file, run = elsewhere / "work" / "mine.yaml", elsewhere / "kept" / "summarization" / "mine"

    def written(**more: object) -> None:
        file.write_text("".join(f"{name}: {value}\n" for name, value in (plain | more).items()))

    def record(name: str) -> dict:
        return json.loads((run / f"{name}.json").read_text())

    os.environ["KORLAB_RUNS"] = "~/kept"
    failed = open_run(plain | {"name": "mine", "data": "nowhere.jsonl"})
    with pytest.raises(LabError, match=f"nowhere.jsonl does not exist: check the path .*looked for in {elsewhere / 'work'}"):
        failed.study.data(failed)
    failed.close()

    written()
    done = go("run", "mine.yaml")
    assert done.exit_code == 0, done.output
    assert record("data")["rows"] == {"train": 30, "dev": 10, "test": 10}
    effective = record("config")["effective"]
    assert [effective[name] for name in ("data", "dev_data", "test_data")] == [
        "near/train.jsonl", str(elsewhere / "my" / "dev.jsonl"), str(elsewhere / "my" / "test.jsonl")]
    assert record("config")["folder"] == str(elsewhere / "work")
    assert "in the stage 'data', before any training" in record("status")["notes"][0]["text"]
    assert len(list(run.parent.glob("mine.until-*"))) == 1

    written(seed=8)
    refused = go("run", "mine.yaml")
    assert refused.exit_code == 1 and "seed: 42 → 8" in refused.stderr
    assert "seed: 42 → 8" in go("logs").stdout.splitlines()[-1]
    written()
    (run / "metrics.json").write_text("{")
    done = go("run", "mine.yaml")
    assert done.exit_code == 0 and "metrics.json is damaged or was changed; it is kept as torn-metrics.json. Done again: evaluate" in done.stdout
    alone = go("compare", "mine").stderr
    assert "the suite mine holds a single run: name another beside it, or a suite (there is none yet)" in alone
