"""Two sparse runs as they were recorded before every study wrote its results alike: read, shown, rendered, scored again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from korlab.core.files import read_json
from korlab.core.tables import escape
from korlab.experiment import results
from korlab.experiment.checkpoints import damage, write_manifest
from korlab.experiment.evaluations import open_evaluation
from korlab.experiment.runs import Run, find_run
from korlab.metrics.measures import Interval
from korlab.report.pages import displayed
from korlab.sparse.comparison import record
from korlab.sparse.study import STUDY

EARLIER = ROOT / "tests" / "earlier"
RUNS = ("before-42", "before-43")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def runs(tmp_path, monkeypatch) -> dict[str, Run]:
    """The records in a place of their own; the lab is where they were made."""
    shutil.copytree(EARLIER / "records", tmp_path / "runs")
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(ROOT)
    return {name: find_run(f"sparse/{name}") for name in RUNS}


def kept(name: str) -> dict:
    """What the old code wrote."""
    return read_json(EARLIER / "records" / "sparse" / name / "metrics.json")


@pytest.mark.parametrize("name", RUNS)
def test_every_number_is_the_old_one(runs, name):
    old, found = kept(name), results.read(runs[name])
    test = old["splits"]["test"]
    assert found.about == {key: value for key, value in old.items() if key != "splits"} and found.splits == ["test"]
    assert [one.system for one in found.scored] == ["sparse-ko", "BM25 morphemes", "BM25 eojeol"]
    for one, label in zip(found.scored, ("korlab", "BM25 morphemes", "BM25 eojeol")):
        table = {m: {k: v for k, v in kept.items() if k != "documents"} for m, kept in test["systems"][label].items()}
        assert {m: interval.to_dict() for m, interval in one.measures.items()} == table
        assert (one.n, one.mode, one.signature, one.baseline) == (test["n"], "90 documents", test["signature"], label != "korlab")
    facts = ("documents", "against", "sparsity", "flops", "pruning", "latency")
    assert found.facts == {"test": {key: test[key] for key in facts}}


@pytest.mark.parametrize("name", RUNS)
def test_the_score_of_every_query_is_the_old_one(runs, name):
    rows = [json.loads(line) for line in runs[name].path("rankings", "test.jsonl").read_text("utf-8").splitlines()]
    for measure in STUDY.measures:
        scores = results.item_scores(runs[name], "test", "90 documents", measure.name)
        assert scores == {row["query"]: row["scores"]["korlab"][measure.name] for row in rows}
        assert sum(scores.values()) / len(scores) == pytest.approx(kept(name)["splits"]["test"]["systems"]["korlab"][measure.name]["mean"])
    assert results.item_scores(runs[name], "test", "9 documents", "ndcg@10") == {}


def test_what_a_comparison_kept_is_what_it_keeps(runs):
    old = read_json(EARLIER / "sparse-comparison.json")
    for entry in old["runs"]:
        assert record(runs[entry["run"]], None)["splits"] == entry["splits"]
        own = results.read(runs[entry["run"]]).own("test", old["mode"])
        assert own.measures[old["measure"]] == Interval(**{k: v for k, v in entry["score"].items() if k != "documents"})
        shown = STUDY.comparison.describe(runs[entry["run"]], "test")
        assert shown == {"active dims": round(kept(entry["run"])["splits"]["test"]["sparsity"]["documents"]["active"]["mean"])}
        model = runs[entry["run"]].read("model")
        assert {key: entry["trained"][key] for key in STUDY.comparison.parts} == {key: model[key] for key in STUDY.comparison.parts}


def test_every_page_shows_an_earlier_run(runs):
    run = runs["before-42"]
    assert STUDY.headline(run).startswith("test n=9, 문서 90개에서 nDCG@10 32.1 [8.6, 61.1]. 형태소 BM25와의 차이 -59.7 ")
    shown = [str(item) for pages in STUDY.pages.values() for item in displayed(pages, "sparse", run)]
    text = "\n".join(shown)
    for part in ("| test | 9 | 90 | 29d7ce90 |", "judges test only: test was split by hash", "| 파라미터 | 494,223 |",
                 "| test | sparse-ko | 90 documents | 9 | 32.1 [8.6, 61.1] |", "| test | BM25 eojeol |", "| top 16 |", "### 졌다: "):
        assert part in text, part


def test_the_report_of_an_earlier_notebook_is_rendered(runs, tmp_path):
    from korlab.report.render import render_run

    run = runs["before-42"]
    render_run(run, tmp_path / "out")
    text = (tmp_path / "out" / "before-42.md").read_text("utf-8")
    lead = escape(STUDY.headline(run))
    assert "sparse-ko · mini" in text and lead in text and "| test | BM25 eojeol |" in text


def grow_weights(run: Run) -> Path:
    """Weights were left out of the record: random ones in their place, and a manifest that lists them."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    folder = run.path("model")
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    write_manifest(folder)
    assert damage(folder) is None
    return folder


def test_an_earlier_model_is_scored_again(runs):
    folder = grow_weights(runs["before-42"])
    run, checkpoint = open_evaluation({"run": "sparse/before-42", "name": "again"})
    found = STUDY.evaluate_on(run, checkpoint)
    run.close()
    old = kept("before-42")["splits"]["test"]
    assert checkpoint == folder and found.own("test", "90 documents").signature == old["signature"]
    for one in found.baselines("test", "90 documents"):
        assert {m: interval.to_dict() | {"documents": 90} for m, interval in one.measures.items()} == old["systems"][one.system]
    assert [*results.item_scores(run, "test", "90 documents", "ndcg@10")] == [*results.item_scores(runs["before-42"], "test", "90 documents", "ndcg@10")]
    assert run.read("data")["rows"] == {"dev": 3, "test": 9}
