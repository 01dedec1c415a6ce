"""What a report shows of single items: every item at most once, and none missing while there is room."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from korlab.sparse import pages as sparse
from korlab.sparse.evaluation import LEXICAL, MEASURES, OURS
from korlab.summarization import pages as summarization
from korlab.workbench.verdicts import choose_items

KINDS = ("other", "speakers", "exact")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 10)), max_size=30), st.integers(0, 15))
def test_summaries_are_shown_once_and_as_many_as_asked(found, n):
    rows = [{"fname": i, "kind": kind, "rouge1": score / 10} for i, (kind, score) in enumerate(found)]
    chosen = summarization._spread_out(rows, n)
    names = [row["fname"] for row in chosen]
    assert len(names) == len(set(names)) == min(n, len(rows))
    assert [KINDS.index(row["kind"]) for row in chosen] == sorted(KINDS.index(row["kind"]) for row in chosen)
    for kind in KINDS:  # no kind is short while another has more than its share
        there, shown = (sum(row["kind"] == kind for row in some) for some in (rows, chosen))
        assert shown == there or all(sum(row["kind"] == other for row in chosen) <= shown + 1 for other in KINDS)


@pytest.mark.parametrize(("sizes", "n", "shown"), [((5, 0, 0), 10, 5), ((9, 1, 0), 10, 10), ((20, 0, 1), 10, 10), ((2, 2, 2), 5, 5), ((1, 8, 1), 10, 10)])
def test_few_of_a_kind_leave_room_to_the_others(sizes, n, shown):
    rows = [{"fname": f"{kind}{i}", "kind": kind, "rouge1": i / 20} for kind, size in zip(KINDS, sizes, strict=True) for i in range(size)]
    assert len({row["fname"] for row in summarization._spread_out(rows, n)}) == shown


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3).flatmap(lambda k: st.lists(st.lists(st.integers(0, 4), min_size=k, max_size=k), min_size=1, max_size=12)))
def test_a_comparison_shows_no_item_twice(columns):
    chosen = [i for i, _ in choose_items(list(zip(*columns, strict=True)), 3)]
    apart = sum(min(column) < max(column) for column in columns)
    assert len(chosen) == len(set(chosen)) == min(len(columns), min(3, apart) + 2)


@pytest.mark.parametrize(("lost", "won", "even"), [(1, 4, 2), (0, 3, 0), (2, 0, 1), (9, 9, 0)])
def test_every_question_won_or_lost_is_shown_once(monkeypatch, lost, won, even):
    first = MEASURES[0].name
    leads = [-0.1 * i for i in range(1, lost + 1)] + [0.1 * i for i in range(1, won + 1)] + [0.0] * even
    rows = [{"text": f"질문 {i}?", "relevant": ["d"], "decisive": {"relevant": [], "first": []}, "first": {OURS: "d", LEXICAL: "d"},
             "scores": {OURS: {measure.name: 0.0 for measure in MEASURES} | {first: lead}, LEXICAL: {measure.name: 0.0 for measure in MEASURES}}}
            for i, lead in enumerate(leads)]
    monkeypatch.setattr(sparse.results, "read", lambda run: SimpleNamespace(splits=["test"]))
    monkeypatch.setattr(sparse, "read_jsonl", lambda path: rows)
    monkeypatch.setattr(sparse, "read_json", lambda path: {"d": "문서"})
    run = SimpleNamespace(path=lambda *parts: parts, config=SimpleNamespace(run=SimpleNamespace(model="ko")))
    shown = str(sparse.gallery(run))
    headings = [line for line in shown.split("\n") if line.startswith("### ")]
    assert len(headings) == len(set(headings)) == min(4, lost) + min(4, won)
    assert sum(line.startswith("### 졌다") for line in headings) == min(4, lost)
