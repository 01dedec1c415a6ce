"""Comparisons: the numbers against independent ones, refusals, runs that failed, and the whole report."""

import itertools
import json
import math
import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from in_process import korlab

from korlab.core.files import read_json, read_jsonl, write_json, write_jsonl
from korlab.experiment import params, results, studies
from korlab.experiment.params import ParameterError
from korlab.experiment.runs import RunError, find_run
from korlab.metrics import stats
from korlab.metrics.rouge import rouge
from korlab.summarization import comparison
from korlab.workbench import comparing, verdicts

REFERENCE = "#Person1#은 #Person2#에게 내일 오후에 우산을 빌려준다."
TEXTS = [REFERENCE, REFERENCE.replace("우산을 빌려준다", "책을 사 준다"), "#Person2#는 자리를 예약한다.", ""]
MEASURES = ("rouge1", "rouge2", "rougeL")


def leave_run(runs: Path, name: str, texts: list[str], sha: str = "aa", train: str = "tt", **given) -> Path:
    """A finished run as `train.ipynb` leaves it, with these summaries in place of a model's."""
    folder, references = runs / "summarization" / name, [[REFERENCE]] * len(texts)
    config = studies.configure({"model": "kobart", "name": name, **given})
    counted = {mode: rouge(texts, references, mode=mode) for mode in ("morph", "char")}
    table = {mode: r.summary() | {"signature": r.signature} for mode, r in counted.items()}
    errors = {"n": len(texts), "exact": 0, "speakers": 0, "other": len(texts), "other_with_swap": 0}
    result = {"n": len(texts), "rouge": table, "errors": errors, "baselines": {"lead-1": {"n": len(texts), "rouge": table}}}
    write_json(folder / "config.json", {"effective": config.flat(), "given": given})
    write_json(folder / "data.json", {"rows": {"train": 9, "test": len(texts)}, "sha256": {"train": train, "test": sha}})
    write_json(folder / "status.json", {"state": "done", "error": None, "stages": {"evaluate": {"state": "done"}}})
    write_json(folder / "model.json", {"parameters": 1000, "trainable": 100, "adapter": "lora", "adapter_reason": "asked for"})
    write_json(folder / "train.json", {"train_metrics": {"seconds": 2.5, "cpu_seconds": 2.0, "updates": 9, "peak_memory_mib": 321}})
    write_json(folder / "metrics.json", {"model": config.run.model, "splits": {"test": result}})
    write_jsonl(folder / "history.jsonl", [{"step": k, "epoch": k / 9, "loss": 9 - k, "eval_rouge1": k / 9} for k in range(1, 10)])
    write_jsonl(folder / "predictions" / "test.jsonl", [
        {"fname": f"test-{i}", "dialogue": "#Person1#: 우산 빌려줄까?", "references": references[i], "prediction": text}
        | {measure: round(float(counted["morph"].scores[measure][i]), 4) for measure in MEASURES}
        for i, text in enumerate(texts)])
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Four finished runs and a suite in which a fifth experiment failed before it had a folder."""
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    leave_run(tmp_path, "01_baseline_kobart_rtx3090-mini", TEXTS * 10)
    leave_run(tmp_path, "04_batch_optimization_rtx3090-mini", [TEXTS[min(i % 4, 1)] for i in range(40)], learning_rate=1e-3)
    leave_run(tmp_path, "twin", TEXTS * 10)
    leave_run(tmp_path, "elsewhere", TEXTS * 10, sha="zz", train="yy", seed=7)
    names = ["01_baseline_kobart_rtx3090-mini", "04_batch_optimization_rtx3090-mini", "twin", "elsewhere"]
    listed = [{"experiment": f"params/{name}.yaml", "run": f"summarization/{name}", "state": "done", "error": None} for name in names]
    broken = {"experiment": "params/broken.yaml", "run": "summarization/broken", "state": "failed", "error": "ValueError: no | rows"}
    write_json(tmp_path / "suites" / "night" / "summary.json", {"experiments": [*listed, broken]})
    return tmp_path


def versus(found: comparing.Comparison) -> dict[str, verdicts.Versus]:
    return {one.entry.name: one for one in verdicts.against_baseline(found)}


# ---- the tests of significance -----------------------------------------------------------------------------------

def test_differences_are_those_of_the_items(runs):
    found = comparing.open_comparison({"runs": "night"})
    better, base = (
        np.array([row["rouge1"] for row in read_jsonl(runs / "summarization" / name / "predictions" / "test.jsonl")])
        for name in ("04_batch_optimization_rtx3090-mini", "01_baseline_kobart_rtx3090-mini")
    )
    one = versus(found)["04_batch_optimization_rtx3090-mini"]
    assert one.pair.difference.mean == pytest.approx((better - base).mean())
    assert one.pair.difference == stats.paired_bootstrap(better, base)
    assert one.pair.p_value == stats.sign_flip_test(better, base)
    assert one.corrected == min(1, 2 * one.pair.p_value)  # two tests: the twin has p = 1
    assert verdicts.verdict(one, verdicts.setting_of(found).measure) == "높다"


def test_the_sign_flip_p_is_that_of_all_flips(runs):
    """Six differences have 64 sign patterns, few enough to count."""
    leave_run(runs, "a", [TEXTS[i] for i in (0, 0, 1, 0, 0, 2)])
    leave_run(runs, "b", [TEXTS[i] for i in (1, 2, 0, 1, 3, 2)])
    one = versus(comparing.open_comparison({"runs": "b,a"}))["a"]
    gaps = [one_a - one_b for one_a, one_b in zip(*(
        results.item_scores(find_run(n), "test", "morph", "rouge1").values() for n in "ab"))]
    flips = [abs(sum(s * g for s, g in zip(signs, gaps))) for signs in itertools.product((1, -1), repeat=6)]
    exact = sum(value >= abs(sum(gaps)) - 1e-9 for value in flips) / 64
    assert one.pair.p_value == pytest.approx(exact, abs=0.02)


def test_equal_runs_do_not_differ(runs):
    found = comparing.open_comparison({"runs": "night"})
    twin = versus(found)["twin"]
    gap = twin.pair.difference
    assert (gap.mean, gap.low, gap.high, twin.pair.p_value, twin.corrected) == (0, 0, 0, 1, 1)
    assert verdicts.verdict(twin, verdicts.setting_of(found).measure) == "가릴 수 없다"


def test_a_worse_run_is_said_to_be_worse(runs):
    found = comparing.open_comparison({"runs": "night", "baseline": "04_batch_optimization_rtx3090-mini"})
    assert {row["verdict"] for row in verdicts.significance(found) if row["n"]} == {"낮다"}


def test_another_way_of_counting_is_counted_again(runs):
    found = comparing.open_comparison({"runs": "night", "mode": "char", "measure": "rouge2"})
    one = versus(found)["04_batch_optimization_rtx3090-mini"]
    stored = read_json(one.entry.run.path("metrics.json"))["splits"]["test"]["rouge"]["char"]["rouge2"]["mean"]
    assert one.pair.a == pytest.approx(stored)
    row = next(row for row in verdicts.scores(found) if row["run"] == one.entry.label)
    assert row["ROUGE-2"].strip("*").startswith(f"{100 * stored:.1f} ")


def test_holm_against_hand_computed_values():
    # sorted .005 .010 .030 .040: times 4, 3, 2, 1 gives .020 .030 .060 .040, and the last may not fall below the third
    assert stats.holm([0.010, 0.040, 0.030, 0.005]) == pytest.approx([0.030, 0.060, 0.060, 0.020])
    assert stats.holm([0.6, 0.5]) == [1, 1]
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_plain_p_and_bonferroni_and_keeps_the_order(values):
    corrected = stats.holm(values)
    for p, q in zip(values, corrected):
        assert p <= q <= min(1, len(values) * p) or math.isclose(q, len(values) * p)
    for (p, q), (other, r) in itertools.combinations(zip(values, corrected), 2):
        assert (p > other) or q <= r
        assert (other > p) or r <= q


# ---- what is refused, and what is said ---------------------------------------------------------------------------

def test_other_data_is_refused_with_a_sentence(runs):
    found = comparing.open_comparison({"runs": "night"})
    one = versus(found)["elsewhere"]
    assert (one.pair, one.corrected) == (None, None)
    assert one.refused == "test 데이터가 기준 실행과 달라(sha256 zz ≠ aa) 짝지어 비교할 수 없다."
    assert "elsewhere" not in {answer["name"].split(" · ")[0] for card in comparison.examples(found) for answer in card["answers"]}


def test_another_count_is_refused(runs):
    file = runs / "summarization" / "twin" / "metrics.json"
    metrics = read_json(file)
    metrics["splits"]["test"]["rouge"]["morph"]["signature"] += "|kiwi:9"
    write_json(file, metrics)
    assert versus(comparing.open_comparison({"runs": "night"}))["twin"].refused.startswith("세는 방법이 다르다")
    del metrics["splits"]["test"]
    write_json(file, metrics)
    found = comparing.open_comparison({"runs": "night"})
    assert versus(found)["twin"].refused == "이 실행은 test 분할을 채점하지 않았다."
    assert "twin" not in [row["run"] for row in verdicts.scores(found)]


def test_a_failed_run_is_listed_with_its_error(runs):
    folder = leave_run(runs, "crashed", TEXTS * 10)
    (folder / "metrics.json").unlink()
    write_json(folder / "status.json", {"state": "failed", "stage": "train", "error": "MemoryError: out of memory",
                                        "stages": {"train": {"state": "failed"}}})
    found = comparing.open_comparison({"runs": "twin,crashed,01_baseline_kobart_rtx3090-mini"})
    assert [(row["run"], row["state"]) for row in verdicts.members(found)][1] == ("crashed", "failed")
    assert comparing.cautions(found)[0].endswith("MemoryError: out of memory")
    assert verdicts.numbers(found)["runs"][1] == {
        "run": "crashed", "title": "crashed", "state": "failed", "error": "MemoryError: out of memory"}
    with pytest.raises(ParameterError, match="has not finished"):
        comparing.open_comparison({"runs": "twin,crashed", "baseline": "crashed"})


def test_a_run_killed_in_its_middle_is_not_done(runs):
    folder = leave_run(runs, "killed", TEXTS * 10)
    (folder / "metrics.json").unlink()
    write_json(folder / "status.json", {"state": "running", "stage": "train", "error": None, "stages": {}})
    assert comparing.choose_entries("twin,killed")[1].error == "it has no scores yet; its last stage is 'train'"
    write_json(folder / "status.json", {"state": "done", "stage": "model", "error": None, "stages": {"model": {"state": "done"}}})  # between two
    assert comparing.choose_entries("twin,killed")[1].state == "interrupted"


def test_what_differs_besides_the_recipe_is_said(runs):
    found = comparing.open_comparison({"runs": "night"})
    said = comparing.cautions(found)
    assert [line.split(" ")[0] for line in said] == ["**broken**", "채점", "훈련", "씨앗값이"]
    assert "ValueError: no \\| rows" in said[0]
    values, same = comparing.differing(found)
    assert set(values) == {"seed", "learning_rate"}
    assert same + len(values) == len(found.baseline.run.config.flat()) - 1


@pytest.mark.parametrize("given, error, words", [
    ({"runs": "twin"}, ParameterError, r"at least two runs, or a suite \(night\)"),
    ({"runs": "twin,twin"}, ParameterError, "twin is named twice"),
    ({"runs": "twin,nobody"}, RunError, "no run 'nobody'"),
    ({"runs": "night", "baseline": "twni"}, ParameterError, "did you mean 'twin'"),
    ({"runs": "night", "baselin": "twin"}, ParameterError, "did you mean 'baseline'"),
    ({"runs": "night", "name": "../x"}, ParameterError, "a name is a folder's name"),
])
def test_a_mistake_is_one_sentence(runs, given, error, words):
    with pytest.raises(error, match=words):
        comparing.open_comparison(given)


@pytest.mark.parametrize("given, words", [
    ({"split": "hard"}, "split='hard': the baseline has test"),
    ({"mode": "word"}, "mode='word': the baseline has morph, char"),
    ({"measure": "bleu"}, "unknown measure 'bleu': .*rouge1, rouge2, rougeL"),
])
def test_a_score_that_is_not_there_is_one_sentence(runs, given, words):
    with pytest.raises(ParameterError, match=words):
        verdicts.setting_of(comparing.open_comparison({"runs": "night"} | given))


def test_latest_is_the_newest_suite(runs):
    write_json(runs / "suites" / "later" / "summary.json", {"experiments": [
        {"experiment": "a.yaml", "run": "twin", "state": "done"}, {"experiment": "b.yaml", "run": "elsewhere", "state": "done"}]})
    os.utime(runs / "suites" / "night" / "summary.json", (1, 1))
    found = comparing.open_comparison({})
    assert (found.folder.name, [entry.name for entry in found.entries]) == ("later", ["twin", "elsewhere"])


# ---- promises ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("score, size, data, state", [
    (17.99, "full", "dialogsum", "not met"), (18, "full", "dialogsum", "met"), (20, "full", "dialogsum", "met"),
    (22, "full", "dialogsum", "met"), (60, "full", "dialogsum", "met"), (0, "full", "dialogsum", "not met"),
    (20, "mini", "dialogsum", "not comparable"), (0, "mini", "embedded", "not comparable"),
    (20, "full", "embedded", "not comparable"),
])
def test_target_state(score, size, data, state):
    assert comparison.target_state(score, (18, 22), size, data) == state


# ---- the dialogues that are shown --------------------------------------------------------------------------------

@given(st.lists(st.lists(st.sampled_from([0, 0.25, 0.5, 1]), min_size=7, max_size=7), min_size=2, max_size=5), st.integers(1, 3))
def test_the_dialogues_shown_are_the_extremes(scores, n):
    chosen = verdicts.choose_items(scores, n)
    places, spreads = [i for i, _ in chosen], [max(c) - min(c) for c in zip(*scores)]
    assert len(set(places)) == len(places) and chosen == verdicts.choose_items(scores, n)
    apart = [i for i, why in chosen if "갈렸다" in why]
    assert sorted((spreads[i] for i in apart), reverse=True) == [s for s in sorted(spreads, reverse=True)[:n] if s]


# ---- the notebook and the command --------------------------------------------------------------------------------

def test_the_parameters_cell_says_what_the_dataclass_says():
    cells = nbformat.read(ROOT / "nbs" / "compare.ipynb", as_version=4).cells
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [params.cell_source({"": comparing.CompareParams})]


def test_the_command_writes_a_report_and_its_numbers(runs, tmp_path):
    done = korlab("compare", "night", "--to", tmp_path / "out", "--name", "minis", "--json", runs=runs)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["report"].endswith("minis.html") and {"report": said["report"]} | read_json(tmp_path / "out" / "minis.json") == said
    text, kept = (tmp_path / "out" / "minis.md").read_text("utf-8"), read_json(tmp_path / "out" / "minis.json")
    assert text.startswith("# minis: 실행 5개 비교 · mini · embedded · test\n")
    pair = kept["runs"][1]["against_baseline"]
    assert f"{100 * pair['difference']['mean']:+.1f} [{100 * pair['difference']['low']:+.1f}" in text
    assert f"| {pair['p_value']:.4f} | {pair['p_holm']:.4f} | 높다 |" in text
    assert kept["runs"][1]["target"].items() >= {"range": [21, 25], "state": "not comparable"}.items() and "| 비교 불가 |" in text
    assert kept["runs"][0]["cost"]["peak_memory_mib"] == 321 and "| 321 |" in text
    assert "ValueError: no \\| rows" in text and kept["runs"][4]["state"] == "failed"
    assert text.count("![") == 2 and str(ROOT) not in text and str(runs) not in text
