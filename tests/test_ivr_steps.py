"""The steps of vocabulary replacement as whole processes: killed, damaged, edited by hand, and asked for again with another value."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from korlab.core.errors import LabError
from korlab.core.files import sha256
from korlab.ivr.bpe import read_bpe
from korlab.ivr.cli import app
from korlab.ivr.corpora import korean
from korlab.ivr.preparing import settle, texts_in
from korlab.ivr.rules import RuleError, read_rules
from korlab.ivr.steps import Work, prepare
from korlab.workbench.terminal import papermill_style

ROOT = Path(__file__).parent.parent
TINY = dict(model="gpt2-ivr", pretraining=4, vocab_size=600, block_size=64, max_steps=4, eval_rows=4, distilled=False)
LEFT = ("remap_rules.yaml", "tokenizers/remapped/tokenizer.json", "initialized_model/model.safetensors", "aligned.json")


def said(work: Path, *words: object) -> tuple[int, str]:
    """The exit code of a command, and all it says."""
    done = CliRunner().invoke(app, [*map(str, words), "--work", str(work)])
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder whose six steps are done, on Korean of one's own; nobody changes it."""
    folder = tmp_path_factory.mktemp("steps")
    (folder / "ko.txt").write_text("\n".join(korean(200)), "utf-8")
    values = [word for name, value in (TINY | {"data": folder / "ko.txt"}).items() for word in ("-p", f"{name}={value}")]
    code, told = said(folder / "work", "init", *values)
    assert code == 0, told
    with settle(Work(folder / "work"), {}) as (work, config):
        prepare(work, config, texts_in(work, config))
    return work.folder


@pytest.fixture
def work(prepared, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(prepared, tmp_path / "work"))


def again(folder: Path, **values: object) -> list[str]:
    """The steps that are done when everything is asked for."""
    told: list[str] = []
    with settle(Work(folder, note=told.append), values) as (work, config):
        prepare(work, config, texts_in(work, config))
    return [line.split(":")[0] for line in told if not line.endswith("nothing changed")]


KILLS = {
    "init, its tokenizer not in place": ("korlab.ivr.steps.publish", ["init", "analyze", "select", "remap", "align"]),
    "analyze, its tables not in place": ("korlab.ivr.counting.publish", ["analyze", "select", "remap", "align"]),
    "select, its log written and its rules not": ("korlab.ivr.rules.write_rules", ["select", "remap", "align"]),
    "remap, its tokenizer saved and not proved": ("korlab.ivr.remapping.verify", ["remap", "align"]),
    "align, its model not in place": ("korlab.ivr.steps._write_aligned", ["align"]),
    "align, its record not written": ("korlab.ivr.aligning.align", ["align"]),
}
KILLED = """
import importlib, os, signal, sys
from pathlib import Path
where, folder = sys.argv[1], Path(sys.argv[2])
from korlab.ivr import steps
from korlab.ivr.preparing import settle, texts_in
module, name = where.rsplit(".", 1)
setattr(importlib.import_module(module), name, lambda *given, **named: os.kill(os.getpid(), signal.SIGKILL))
with settle(steps.Work(folder), {}) as (work, config):
    steps.prepare(work, config, texts_in(work, config))
"""


@pytest.mark.parametrize("case", KILLS)
def test_a_killed_step_is_done_again_and_no_earlier_one(work, prepared, case):
    where, expected = KILLS[case]
    for step in expected:
        (work / "steps" / f"{step}.json").unlink()
    done = subprocess.run([sys.executable, "-c", KILLED, where, str(work)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert again(work) == expected
    assert {name: sha256(work / name) for name in LEFT} == {name: sha256(prepared / name) for name in LEFT}
    assert not [*work.rglob(".*.[0-9]*")]  # no draft is left lying


REDONE = {
    "nothing": ({}, []),
    "the budget": ({"budget": "0.1"}, ["select", "remap", "align"]),
    "where rows come from": ({"initialization": "mean"}, ["align"]),
    "the seed": ({"seed": 7}, ["init", "analyze", "select", "remap", "align"]),
}


@pytest.mark.parametrize("case", REDONE)
def test_a_value_redoes_what_depends_on_it(work, case):
    values, expected = REDONE[case]
    assert again(work, **values) == expected


DAMAGE = {
    "a record is gone": (lambda work: (work / "steps" / "analyze.json").unlink(), "select", "analyze"),
    "a table is cut short": (lambda work: (work / "analysis" / "tokens.parquet").write_bytes(b"PAR1"), "select", "analyze"),
    "a seal is gone": (lambda work: (work / "tokenizers" / "original" / "manifest.json").unlink(), "remap", "init"),
    "a folder is gone": (lambda work: shutil.rmtree(work / "tokenizers" / "remapped"), "align", "remap"),
    "weights are others": (lambda work: (work / "initialized_model" / "model.safetensors").write_bytes(b""), "train", "align"),
    "texts are gone": (lambda work: (work / "corpora" / "korean" / "dev.jsonl").unlink(), "analyze", "init"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_a_step_stands_on_is_named_with_the_command(work, case):
    spoil, step, earlier = DAMAGE[case]
    spoil(work)
    code, told = said(work, step)
    assert code == 1 and f"run `korlab ivr {earlier} --work" in told, told


def test_what_is_damaged_or_missing_is_called_so(work):
    """Neither other values nor other rules would help, so nobody is sent to look for them."""
    table = work / "analysis" / "tokens.parquet"
    table.write_bytes(bytes([table.read_bytes()[0] ^ 1]) + table.read_bytes()[1:])
    code, told = said(work, "select")
    assert code == 1 and "analysis is damaged (tokens.parquet is not the file that was saved)" in told and "give the values" not in told, told
    assert said(work, "analyze")[0] == 0
    (work / "remap_rules.yaml").unlink()
    code, told = said(work, "remap")
    assert code == 1 and re.search("remap_rules.yaml is missing: run `korlab ivr select --work .*`, which writes it", told), told
    assert said(work, "select")[0] == 0 and said(work, "remap")[0] == 0


def test_a_budget_that_is_too_large_is_told_the_largest(work):
    code, told = said(work, "select", "--budget", "99999")
    most = re.search(r"asks for 99,999 tokens, and (\d+) can go: give a budget of at most (\d+), or ask less of min_token_len=2", told)
    assert code == 1 and most and most[1] == most[2], told
    assert said(work, "select", "--budget", most[1])[0] == 0


def test_what_was_left_out_is_named_by_file_and_line(work, tmp_path):
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in korean(60)]
    (tmp_path / "own.jsonl").write_text("\n".join([*lines[:30], '{"text": ', '{"id": 7}', *lines[30:]]), "utf-8")
    code, told = said(work, "init", "--data", tmp_path / "own.jsonl")
    assert code == 0 and "60 of 62 rows kept; problems: broken JSON 1, no text 1" in told, told
    assert "own.jsonl, line 31: broken JSON: " in told and "own.jsonl, line 32: no text" in told, told
    assert "texts: reading the texts again, since korean changed" in told and "korlab ivr texts" not in told


def rules_in(work: Path) -> dict:
    return yaml.safe_load((work / "remap_rules.yaml").read_text("utf-8"))


MISTAKES = {
    "an id twice": (lambda rules: rules["rules"][1].update(id=rules["rules"][0]["id"]), "rule 2 .*correct one of them"),
    "a token twice": (lambda rules: rules["rules"].append(dict(rules["rules"][0], id=rules["rules"][-1]["id"] + 1)), "rule "),
    "an id that is none": (lambda rules: rules["rules"][0].update(id=999_999), "rule 1 "),
    "another old token": (lambda rules: rules["rules"][2].update(old="nobody"), "rule 3 "),
    "halves that do not make it": (lambda rules: rules["rules"][-1].update(left=40), "do not make it"),
    "another base": (lambda rules: rules.update(base="0" * 64), "0000"),
    "another version": (lambda rules: rules.update(version=1), "version"),
    "no rules": (lambda rules: rules.pop("rules"), "rules"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_edited_rules_is_refused_and_nothing_is_lost(work, case):
    change, message = MISTAKES[case]
    before, rules = {name: sha256(work / name) for name in LEFT[1:]}, rules_in(work)
    change(rules)
    (work / "remap_rules.yaml").write_text(yaml.safe_dump(rules, allow_unicode=True), "utf-8")
    code, told = said(work, "remap")
    assert code == 1 and re.search(message, told), told
    assert {name: sha256(work / name) for name in LEFT[1:]} == before


def test_a_rule_that_nobody_needs_may_go(work):
    bpe, file, whole = read_bpe(work / "tokenizers" / "original"), work / "remap_rules.yaml", rules_in(work)
    for last in reversed(whole["rules"]):
        rules = whole | {"rules": [one for one in whole["rules"] if one is not last]}
        file.write_text(yaml.safe_dump(rules, allow_unicode=True), "utf-8")
        with suppress(RuleError):
            read_rules(file, bpe)
            break
    code, told = said(work, "remap")
    assert code == 0, told
    replaced = json.loads((work / "tokenizers" / "remapped" / "korlab_ivr.json").read_text())["replaced"]
    assert last["id"] not in replaced and len(replaced) == len(rules["rules"])
    code, told = said(work, "select", "--budget", "0.1")
    assert code == 1 and "was edited by hand" in told


def test_the_last_step_is_a_run_that_starts_from_these_rows(work, tmp_path, monkeypatch):
    from korlab.experiment.runs import open_run
    from korlab.ivr import stages

    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    values = json.loads((work / "params.json").read_text())
    run = open_run(values | {"name": "last", "prepared": str(work), "data": str(work / "corpora" / "korean"), "tracking": "none"})
    texts = stages.data(run)
    assert not run.read("data")["sources"][0]["problems"]
    loaded = stages.model(run, texts)
    assert run.read("aligned")["sha256"] == json.loads((work / "aligned.json").read_text())["sha256"]
    assert stages.train(run, loaded, texts)["train_metrics"]["updates"] == 4
    assert (run.path("model") / "korlab_ivr.json").is_file()
    (work / "initialized_model" / "model.safetensors").write_bytes(b"")
    run.close()
    other = open_run(values | {"name": "other", "prepared": str(work), "data": str(work / "corpora" / "korean"), "tracking": "none"})
    with pytest.raises(LabError, match="align would have to be done again .*run `korlab ivr align"):
        stages.model(other, texts)
    other.close()


SEVEN = """
init --model gpt2-ivr --size full --checkpoint base --data ko.jsonl --text-key 내용 -p block_size 64 -p eval_rows 4
analyze --corpus +more=more.txt@0.5 --encoding cp949 --max-texts 150 --sequences --workers 2 --chunk-size 16
distill-tokenizer --rounds 1
select --budget 0.1 --keep-words words.txt --undertrained-first
remap
align --initialization mean --embeddings-dir matrices --model-name base --original-tokenizer-dir artifacts/tokenizers/original
train --config-path quick.yaml --tokenizer-path artifacts/tokenizers/remapped --output-dir trained
"""
STEPS = ("init", "analyze", "distill-tokenizer", "select", "remap", "align")


@pytest.fixture
def desk(prepared, tmp_path, monkeypatch) -> Path:
    """A working folder with a base, texts and a word list, all named by relative paths."""
    shutil.copytree(prepared / "base" / "model", tmp_path / "base")
    lines = korean(240)
    (tmp_path / "ko.jsonl").write_text("".join(json.dumps({"번호": i, "내용": line}) + "\n" for i, line in enumerate(lines[:180])), "utf-8")
    (tmp_path / "more.txt").write_text("\n".join(lines[180:]), "cp949")
    (tmp_path / "words.txt").write_text("return the value\n", "utf-8")
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "base.yaml").write_text("seed: 7\nmin_token_len: 3\n")
    monkeypatch.setenv("KORLAB_PARAMS", str(tmp_path / "params"))  # what lies under every run lies under the steps, too
    (tmp_path / "quick.yaml").write_text("{name: walked, max_steps: 2, batch_size: 4, precision: fp32, threads: 1, workers: 0}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    return tmp_path


def typed(line: str) -> str:
    """What a command prints that is typed as people do, and does not fail."""
    done = CliRunner().invoke(app, papermill_style(shlex.split(line)))
    assert done.exit_code == 0, f"{line}: {done.output} {done.exception}"
    return done.output


@pytest.mark.slow
def test_seven_commands_need_no_value_twice(desk, monkeypatch):
    *lines, last = SEVEN.strip().splitlines()
    for line in lines:
        assert re.search(rf"^{line.split()[0]}: .*, not done yet$", typed(line), re.MULTILINE)
    analysis = json.loads((desk / "artifacts" / "analysis" / "counts.json").read_text())["corpora"]
    assert [(one["name"], one["texts"], one["weight"]) for one in analysis] == [("korean", 150, 1.0), ("english", 150, 1.0), ("more", 60, 0.5)]
    assert len((desk / "artifacts" / "analysis" / "bpe_token_id_sequences.txt").read_text().splitlines()) == 360
    made = {name: sha256(desk / "artifacts" / name) for name in LEFT}
    (elsewhere := desk / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    for step in STEPS:  # nothing is lost, wherever the next command is given
        assert f"{step}: nothing changed" in typed(f"{step} --work ../artifacts")
    told = typed(last.replace("quick", "../quick").replace("artifacts", "../artifacts") + " --work ../artifacts")
    assert "done" in told and "Bits/byte" in told
    run = desk / "runs" / "ivr" / "walked"
    effective = json.loads((run / "config.json").read_text())["effective"]
    expected = {"budget": "0.1", "seed": 7, "min_token_len": 3, "undertrained_first": True, "initialization": "mean", "keep_words": str(desk / "words.txt"), "block_size": 64}
    assert {name: effective[name] for name in expected} == expected
    assert json.loads((run / "aligned.json").read_text()) == json.loads((desk / "artifacts" / "aligned.json").read_text())
    assert sha256(elsewhere / "trained" / "model.safetensors") == sha256(run / "model" / "model.safetensors")
    told = typed("all --config-path ../quick.yaml --work ../artifacts")
    assert all(f"{step}: nothing changed" in told for step in STEPS if step != "distill-tokenizer"), told
    assert {name: sha256(desk / "artifacts" / name) for name in LEFT} == made


def test_what_a_step_refused_is_forgotten(work):
    remembered = (work / "params.json").read_text()
    with open(work / "remap_rules.yaml", "a", encoding="utf-8") as file:
        file.write("# read by me\n")
    for refused in (["select", "--budget", "0.1"], ["init", "-p", "data=nowhere.txt"], ["align", "-p", "initialization=nothing"]):
        assert said(work, *refused)[0] == 1
        assert (work / "params.json").read_text() == remembered
    for step in ("select", "remap", "align"):  # the message says to go on, and so one can
        assert (told := said(work, step))[0] == 0, told
    assert again(work) == []


LATE = {
    "a seed": (["select", "-p", "seed=7"], "init would have to be done again .seed changed.*run `korlab ivr init"),
    "a budget": (["align", "-p", "budget=0.1"], "select would have to be done again .budget changed.*run `korlab ivr select"),
    "texts": (["align", "-p", "data=embedded"], "init would have to be done again .korean changed"),
    "other texts": (["select", "-p", "english=FILE"], "the texts were read otherwise .english changed.*run `korlab ivr init"),
}


@pytest.mark.parametrize("case", LATE)
def test_a_value_of_an_earlier_step_is_refused_at_once(work, tmp_path, case):
    words, message = LATE[case]
    (tmp_path / "en.txt").write_text("\n".join(f"text {i}" for i in range(40)))
    code, told = said(work, *(word.replace("FILE", str(tmp_path / "en.txt")) for word in words))
    assert code == 1 and re.search(message, told), told
    assert again(work) == []


def test_counts_of_other_texts_are_not_selected_from(work, tmp_path):
    (tmp_path / "new.txt").write_text("\n".join(korean(90, seed=1)), "utf-8")
    shutil.copytree(work / "base" / "model", tmp_path / "base")
    whole = tmp_path / "whole"
    code, told = said(whole, "init", "--size", "full", "--checkpoint", tmp_path / "base", "-p", "block_size=64")
    assert code == 0 and said(whole, "analyze")[0] == said(whole, "select")[0] == 0, told
    assert said(whole, "init", "--data", tmp_path / "new.txt")[0] == 0  # the base is the same, its texts are not
    code, told = said(whole, "select")
    assert code == 1 and "analyze would have to be done again (korean changed)" in told, told
