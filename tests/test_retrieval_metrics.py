"""korlab.metrics.retrieval: agreement with trec_eval, every order of ties, the measured corpus of the research."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from korlab.metrics.retrieval import MEASURES, compare, evaluate, without_own

QUICK = settings(max_examples=150, deadline=None)
DOCS = [f"d{i}" for i in range(12)] + ["문서", "ㄱ", "é", "😀"]
numbers = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1 + 1e-9, 2.0, 1e6])  # 1 + 1e-9 is 1 in the 32 bits of trec_eval
ranked = st.dictionaries(st.sampled_from(DOCS), numbers, max_size=16)
runs = st.dictionaries(st.sampled_from(["q1", "q2", "q3"]), ranked, min_size=1)
judgements = st.dictionaries(st.sampled_from(["q1", "q2", "q3", "q4"]),
                             st.dictionaries(st.sampled_from(DOCS), st.integers(0, 3), min_size=1), min_size=1)


def trec(run, qrels, k):
    "Per query values of trec_eval; MRR is cut by cutting the run, since recip_rank has no cut of its own."
    peer = pytest.importorskip("pytrec_eval")
    names = {"ndcg": f"ndcg_cut_{k}", "recall": f"recall_{k}", "hit": f"success_{k}", "precision": f"P_{k}"}
    found = peer.RelevanceEvaluator(qrels, set(names.values())).evaluate(run)
    # float32 is what trec_eval compares, so its first k are cut with the same numbers
    first = {q: dict(sorted(docs.items(), key=lambda d: (float(np.float32(d[1])), d[0].encode()), reverse=True)[:k])
             for q, docs in run.items()}
    ranks = peer.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(first)
    return {m: [ranks.get(q, {}).get("recip_rank", 0.0) if m == "mrr" else found.get(q, {}).get(names[m], 0.0)
                for q in qrels] for m in MEASURES}


def agree(run, qrels, ks):
    ours = evaluate(run, qrels, ks)
    for k in ks:
        for measure, expected in trec(run, qrels, k).items():
            assert np.abs(ours.scores[f"{measure}@{k}"] - expected).max() <= 1e-12, (measure, k)


@QUICK
@given(runs, judgements, st.sampled_from([1, 3, 10, 100]))
def test_equals_trec_eval_with_ties_grades_and_missing_queries(run, qrels, k):
    if set(run) & set(qrels):
        agree(run, qrels, (k,))


def test_equals_trec_eval_at_the_size_of_the_research():
    "200 queries, 300 documents, scores rounded to .5 as in the measured comparison of libraries."
    rng = np.random.default_rng(7)
    for step in (1e-9, 0.5):
        run = {f"q{i}": {f"d{j}": float(round(s / step) * step) for j, s in enumerate(rng.normal(0, 1, 300))}
               for i in range(200)}
        qrels = {f"q{i}": {f"d{j}": int(rng.integers(0, 3)) for j in rng.choice(300, 12, replace=False)}
                 for i in range(200)}
        agree(run, qrels, (1, 10, 100))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1.0, 2.0]), st.integers(0, 2)), min_size=1, max_size=6),
       st.sampled_from([1, 2, 4]), st.integers(0, 2))
def test_average_is_the_mean_over_all_orders_and_pessimistic_the_least(docs, k, unfound):
    "Brute force: every order of the tied documents, by ids that sort that way."
    run = {f"d{i}": score for i, (score, _) in enumerate(docs)}
    grades = {f"d{i}": grade for i, (_, grade) in enumerate(docs)} | {f"x{i}": 1 for i in range(unfound)}
    every = []
    for order in itertools.permutations(range(len(docs))):
        names = {f"d{i}": f"{place}" for place, i in enumerate(order)}
        renamed = {names.get(doc, doc): grade for doc, grade in grades.items()}
        every.append(evaluate({"q": {names[doc]: score for doc, score in run.items()}}, {"q": renamed}, (k,)).means)
    average = evaluate({"q": run}, {"q": grades}, (k,), ties="average").means
    worst = evaluate({"q": run}, {"q": grades}, (k,), ties="pessimistic").means
    for measure in average:
        values = [means[measure] for means in every]
        assert math.isclose(average[measure], math.fsum(values) / len(values), abs_tol=1e-12)
        assert math.isclose(worst[measure], min(values), abs_tol=1e-12)


def test_golden_ranking():
    "One query worked out by hand: relevant (grades 3 and 1) at ranks 2 and 4, one relevant never found."
    run, qrels = {"q": {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}}, {"q": {"b": 3, "d": 1, "z": 2, "c": -1}}
    means = evaluate(run, qrels, ks=(3, 10)).means
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert means["ndcg@10"] == pytest.approx((3 / math.log2(3) + 1 / math.log2(5)) / ideal, abs=1e-12)
    assert means["ndcg@3"] == pytest.approx((3 / math.log2(3)) / ideal, abs=1e-12)
    assert (means["mrr@10"], means["hit@3"], means["precision@3"]) == (0.5, 1.0, 1 / 3)
    assert (means["recall@3"], means["recall@10"]) == (1 / 3, 2 / 3)


def test_a_query_missing_from_the_run_counts_as_zero():
    found = evaluate({"q1": {"a": 1.0}}, {"q1": {"a": 1}, "q2": {"a": 1}})
    assert (found.means["ndcg@10"], found.missing, found.n) == (0.5, 1, 2)
    assert "queries that found nothing and score 0: 1\n" in str(found)
    assert evaluate({}, {"q1": {"a": 1}}).means["hit@10"] == 0


def test_a_tie_across_the_cut_is_told_and_its_range_is_bounded():
    run, qrels = {"q": dict.fromkeys("abcdefghijkl", 1.0)}, {"q": {"a": 1}}
    by = {ties: evaluate(run, qrels, ties=ties) for ties in ("trec", "average", "pessimistic")}
    assert [found.tied for found in by.values()] == [1, 1, 1]
    assert by["trec"].means["recall@10"] == 0  # "a" is last when ids run backwards
    assert by["average"].means["recall@10"] == pytest.approx(10 / 12)
    assert by["pessimistic"].means["recall@10"] == 0
    assert evaluate({"q": {"a": 2.0, **dict.fromkeys("bcd", 1.0)}}, qrels).tied == 0  # the tie decides nothing


def test_scores_made_under_different_rules_are_not_compared():
    run, qrels = {"q": {"a": 1.0}}, {"q": {"a": 1}}
    one = evaluate(run, qrels, documents=10)
    for other in (evaluate(run, qrels, documents=11), evaluate(run, qrels, ties="average", documents=10)):
        with pytest.raises(ValueError, match="made differently"):
            compare(one, other)
    assert one.summary()["ndcg@10"] == {"mean": 1, "low": 1, "high": 1, "n": 1, "level": 0.95, "documents": 10}


@QUICK
@given(st.dictionaries(st.sampled_from(DOCS[:4]), ranked, min_size=1),
       st.dictionaries(st.sampled_from(DOCS[:4]), st.dictionaries(st.sampled_from(DOCS), st.integers(0, 3), min_size=1), min_size=1))
def test_a_query_that_is_a_document_does_not_count_as_what_it_finds(run, qrels):
    """BEIR's `ignore_identical_ids` before trec_eval, except for what is judged; whoever cuts has asked for one more."""
    if not set(run) & set(qrels):
        return
    less = {q: {doc: score for doc, score in found.items() if doc != q or doc in qrels.get(q, {})} for q, found in run.items()}
    ours = evaluate(run, qrels, ks=(1, 10), documents=DOCS)
    for k in (1, 10):
        for measure, expected in trec(less, qrels, k).items():
            assert np.abs(ours.scores[f"{measure}@{k}"] - expected).max() <= 1e-12, (measure, k)
    own = sum(query not in grades for query, grades in qrels.items())
    assert (f"own:{own} left out" in ours.signature) == bool(own)
    assert {q: found for q, found in without_own(run, qrels).items() if q in qrels} == {q: less[q] for q in less if q in qrels}
