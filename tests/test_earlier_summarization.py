"""Runs of this study from before results had one shape: still read, shown, rendered and evaluated, with the numbers they had."""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from korlab.core.files import read_json, read_jsonl
from korlab.core.tables import escape
from korlab.experiment import results
from korlab.experiment.checkpoints import write_manifest
from korlab.experiment.evaluations import open_evaluation
from korlab.experiment.runs import find_run
from korlab.report import pages
from korlab.report.render import render_run

EARLIER = ROOT / "tests" / "earlier"
RUNS = ("before-42", "before-43")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch) -> Path:
    shutil.copytree(EARLIER / "records" / "summarization", tmp_path / "runs" / "summarization")
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(ROOT)
    return tmp_path / "runs" / "summarization"


def stored(runs: Path, name: str) -> dict:
    return read_json(runs / name / "metrics.json")


def cells(one: results.Scored) -> dict:
    return {measure: interval.to_dict() for measure, interval in one.measures.items()}


def as_it_was(values: dict) -> dict:
    return {measure: ends for measure, ends in values.items() if isinstance(ends, dict)}


@pytest.mark.parametrize("name", RUNS)
def test_every_stored_number_is_read(runs, name):
    found, record = results.read(find_run(name)), stored(runs, name)
    assert found.splits == list(record["splits"]) == ["test"]
    assert found.about == {key: value for key, value in record.items() if key != "splits"}
    result = record["splits"]["test"]
    systems = {"kobart": result} | result["baselines"]
    assert {(one.system, one.mode) for one in found.scored} == {(s, m) for s in systems for m in ("morph", "char")}
    for one in found.scored:
        values = systems[one.system]["rouge"][one.mode]
        assert cells(one) == as_it_was(values) and one.signature == values["signature"]
        assert (one.n, one.baseline) == (systems[one.system]["n"], one.system != "kobart")
    facts = found.facts["test"]
    assert facts["errors"] == {system: one["errors"] for system, one in systems.items()}
    assert facts["rouge_sum"] == {mode: values["rouge_sum"] for mode, values in result["rouge"].items()}


@pytest.mark.parametrize("name", RUNS)
def test_single_scores_are_read_or_counted_again(runs, name):
    run = find_run(name)
    rows = read_jsonl(run.path("predictions", "test.jsonl"))
    for measure in ("rouge1", "rouge2", "rougeL"):
        assert results.item_scores(run, "test", "morph", measure) == {row["fname"]: row[measure] for row in rows}
        again = results.item_scores(run, "test", "char", measure)
        stated = stored(runs, name)["splits"]["test"]["rouge"]["char"][measure]["mean"]
        assert sum(again.values()) / len(again) == pytest.approx(stated)


@pytest.mark.parametrize("name", RUNS)
def test_its_pages_and_its_headline_say_what_they_said(runs, name):
    run = find_run(name)
    shown = {stage: list(pages.displayed(run.study.pages[stage], run.study.name, run)) for stage in run.study.pages}
    text = "\n".join(str(item) for items in shown.values() for item in items)
    result = stored(runs, name)["splits"]["test"]
    ends = result["rouge"]["morph"]["rouge1"]
    words = f"{100 * ends['mean']:.1f} [{100 * ends['low']:.1f}, {100 * ends['high']:.1f}]"
    assert f"| test | kobart | morph | 2 | {words} |" in text
    assert "| test | other-summary | morph | 2 | 41.3 [41.3, 41.3] |" in text or name != "before-42"
    assert f"| test | 2 | {result['errors']['exact']} | {result['errors']['speakers']} |" in text
    assert "## 데이터" in text and "## 직접 보기" in text
    floor = result["baselines"]["other-summary"]["rouge"]["morph"]["rouge1"]["mean"]
    seconds = read_json(runs / name / "train.json")["train_metrics"]["cpu_seconds"]
    assert run.study.headline(run) == (
        f"test n=2에서 ROUGE-1(morph) {words}. 다른 대화의 요약을 그대로 내면 {100 * floor:.1f}이다. "
        f"훈련에 {seconds:.0f} CPU초가 걸렸다."
    )


def test_its_stored_notebook_is_rendered_again(runs):
    run = find_run("before-42")
    rendered = render_run(run)
    text = (runs / "before-42" / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# kobart · mini · tests/earlier/dialogues.csv\n")
    assert escape(run.study.headline(run)) in text
    assert "49.8 [47.6, 52.0]" in text, "a score of lead-1 as it was"
    assert rendered is not None


@pytest.mark.parametrize("asked, split, n", [({}, "test", 2), ({"data": "tests/earlier/dialogues.csv"}, "dialogues", 52)])
def test_its_model_is_evaluated_again(runs, asked, split, n):
    """The weights are left out of the fixture; a model of the same configuration takes their place."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    folder = runs / "before-42" / "model"
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    write_manifest(folder)
    run, checkpoint = open_evaluation({"run": "before-42", "device": "cpu", "eval_batch_size": 26} | asked)
    found = run.study.evaluate_on(run, checkpoint)
    assert (found.splits, found.own(split).n, found.modes(split)) == ([split], n, ["morph", "char"])
    assert len(results.item_scores(run, split, "char", "rouge1")) == n
    if split == "test":
        old = results.read(find_run("before-42"))
        baselines = {one.system: cells(one) for one in old.baselines("test", "morph") if one.system != "untrained"}
        assert {one.system: cells(one) for one in found.baselines("test", "morph")} == baselines
    shown = [*pages.displayed(run.study.pages["evaluate"], run.study.name, run),
             *pages.displayed(run.study.pages["data"], run.study.name, run)]
    assert len(shown) >= 8
    run.close()
