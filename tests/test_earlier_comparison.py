"""Runs of before are compared as they were compared then: records of the old code, and what the old code said of them."""

import json
import shutil

import pytest
from conftest import ROOT

from korlab.workbench import comparing, verdicts

EARLIER = ROOT / "tests" / "earlier"


@pytest.fixture(params=["summarization", "sparse"])
def compared(request, tmp_path, monkeypatch) -> tuple[comparing.Comparison, dict]:
    shutil.copytree(EARLIER / "records", tmp_path / "runs")
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    home = request.param
    found = comparing.open_comparison({"runs": f"{home}/before-42,{home}/before-43", "name": home})
    return found, json.loads((EARLIER / f"{home}-comparison.json").read_text(encoding="utf-8"))


def test_scores_tests_and_cost_are_the_same(compared):
    found, before = compared
    now = json.loads(json.dumps(verdicts.numbers(found)))
    for key in ("study", "split", "mode", "measure", "label", "baseline", "correction"):
        assert now[key] == before[key]
    for one, other in zip(now["runs"], before["runs"], strict=True):
        for key in ("run", "state", "model", "size", "seed", "cost", "trained"):
            assert one[key] == other[key]
        assert {k: one["score"][k] for k in ("mean", "low", "high", "n")} == {k: other["score"][k] for k in ("mean", "low", "high", "n")}
        assert one.get("against_baseline") == other.get("against_baseline")
    for name, floor in before["floors"].items():
        for measure, interval in floor.items():
            if isinstance(interval, dict):
                assert now["floors"][name][measure]["mean"] == interval["mean"]


def test_every_page_of_the_comparison_can_be_shown(compared):
    found, _ = compared
    assert all(list(page.show(found)) for page in found.study.comparison.pages)
    for show in (verdicts.members, verdicts.scores, verdicts.significance, verdicts.costs, verdicts.parameters):
        assert show(found)
    assert verdicts.headline(found).startswith("test")
