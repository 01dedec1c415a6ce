"""Search data, BM25, mining and sparsity: damaged files, independent formulas, brute force, a real collection."""

import json
import math
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from korlab.core import rows as reader
from korlab.core.accounts import DataError
from korlab.core.files import write_jsonl
from korlab.core.text import text_hash
from korlab.experiment.params import ParameterError
from korlab.experiment.studies import configure
from korlab.metrics.retrieval import compare, evaluate
from korlab.sparse import sparsity as S
from korlab.sparse.bm25 import BM25, content_morphemes, eojeols
from korlab.sparse.data import (
    Collection,
    Triple,
    bare,
    check_isolation,
    judged_splits,
    load_beir,
    load_triples,
    save_beir,
    save_triples,
)
from korlab.sparse.idf import documents as idf_documents
from korlab.sparse.mining import Rules, mine
from korlab.sparse.splits import cut, load_splits

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GOOD = '{"query": "몇 시에 닫나요?", "positive": "밤 열 시까지 연다."}'


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def balanced(report):
    left = {(p.file, p.row) for p in report.faults if p.row}
    assert report.rows_read == report.rows_kept + report.rows_left_out
    assert len(left) == report.rows_left_out
    assert all(file.rows_read == file.rows_kept + sum(file.left_out.values()) for file in report.files)


# ---- triples ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("line", "kind", "detail"), [
    ('{"query": "가요?"', "broken JSON", "Expecting"),
    ('["가요?", "네."]', "broken JSON", "a list where an object is expected"),
    ('{"query": "가요?", "query": "와요?", "positive": "네."}', "broken JSON", "a key occurs twice"),
    ('{"positive": "네."}', "empty query", ""),
    ('{"anchor": " ", "positive": "네."}', "empty query", ""),
    ('{"query": "가요?", "anchor": "와요?", "positive": "네."}', "ambiguous query", "query and anchor differ"),
    ('{"query": "가요?", "positive": null}', "empty positive", ""),
    ('{"query": "가요?", "positive": "nan"}', "NA-like positive", "'nan'"),
    ('{"query": "가요?", "positive": ["네."]}', "not text", "the positive is not text"),
    ('{"query": "가요?", "positive": "네.", "negatives": [{"text": "아니요."}]}', "not text", "a negative"),
    ('{"query": "가요?", "positive": "네.", "difficulty": ["hard"]}', "not text", "the difficulty is not text"),
    ('{"query": "가\\u0000요?", "positive": "네."}', "NUL byte", "in the query"),
    ('{"query": "\\ud83d", "positive": "네."}', "undecodable bytes", "a lone surrogate"),
    ('{"query": "가요?", "positive": "%s"}' % ("가" * 301), "too long", "the positive has 301 characters"),
    ('{"query": "가요?", "positive": "네.", "scores": [1, 2]}', "broken scores", "2 scores for 1 positive and 0"),
    ('{"query": "가요?", "positive": "네.", "scores": [NaN]}', "broken scores", "not a list of finite numbers"),
    ('{"query": "가요?", "positive": "네.", "scores": 3}', "broken scores", "not a list of finite numbers"),
])
def test_a_faulty_row_is_left_out_and_listed(tmp_path, line, kind, detail):
    path = put(tmp_path, "x.jsonl", f"{GOOD}\n\n{line}\n" + GOOD.replace("몇 시", "언제"))
    triples, report = load_triples(path, max_chars=300)
    assert [triple.query for triple in triples] == ["몇 시에 닫나요?", "언제에 닫나요?"]
    (problem,) = report.problems
    assert (problem.file, problem.row, problem.line, problem.kind) == (str(path), 2, 3, kind)
    assert detail in problem.detail
    balanced(report)
    with pytest.raises(DataError, match="policy='strict' lets none pass"):
        load_triples(path, max_chars=300, policy="strict")


@pytest.mark.parametrize(("name", "content", "message"), [
    ("x.jsonl", b"", "x.jsonl is empty (0 bytes): copy or download it again"),
    ("x.jsonl", "질문,정답\n".encode("cp949"), "x.jsonl has no row that can be used"),
    ("x.csv", b"said,meant\na,b\n", "x.csv has no column 'query' (it has said, meant): give that name"),
    ("x.csv", b"query,positive\n", "x.csv has a header but no rows"),
    ("x.csv", b"query,positive,Positive\na,b,c\n", "x.csv has columns 'positive' and 'Positive', which could be the same"),
])
def test_a_file_of_no_use_stops_in_one_sentence(tmp_path, name, content, message):
    with pytest.raises(DataError) as caught:
        load_triples(put(tmp_path, name, content))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [
    {"query": "가요?", "positive": "네.", "negative": "아니요."},
    {"anchor": "가요?", "positive": "네.", "negatives": ["아니요."]},
    {"query": "가요?", "anchor": "가요? ", "positive": "네.", "negative_1": "아니요.", "negative": None},
    {"query": "가요?", "positive": "네.", "negative": "아니요.", "negatives": ["네", "아니요"], "text": "무시", "id": 7},
])
def test_every_spelling_of_a_row_is_the_same_triple(tmp_path, row):
    expected = [Triple("가요?", "네.", ("아니요.",))]
    assert load_triples([row]).triples == expected
    assert load_triples(put(tmp_path, "x.jsonl", "\ufeff" + json.dumps(row) + "\r\n")).triples == expected
    loose = {key: unicodedata.normalize("NFD", text) if isinstance(text, str) else text for key, text in row.items()}
    triples, report = load_triples([loose])
    assert (triples[0].query, report.nfc_changed) == ("가요?", 1)


def test_tables_of_triples_are_read_as_lines_are(tmp_path):
    import pandas as pd
    row = {"anchor": "가요?", "positive": "네, 가요.", "negative_1": "아니요.", "negative_2": "글쎄.", "difficulty": "hard"}
    few = {"anchor": "와요?", "positive": "네.", "negative_1": "아니요.", "negative_2": None, "difficulty": None}
    expected = [Triple("가요?", "네, 가요.", ("아니요.", "글쎄."), (), "hard"), Triple("와요?", "네.", ("아니요.",))]
    frame = pd.DataFrame([row, few])
    frame.to_csv(tmp_path / "x.csv", index=False, encoding="cp949", sep=";")
    frame.rename(columns=str.upper).to_csv(tmp_path / "x.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "x.parquet")
    for name in ("x.csv", "x.tsv", "x.parquet"):
        triples, report = load_triples(tmp_path / name, policy="strict")
        assert (triples, report.problems) == (expected, [])
    listed = [Triple("가요?", "네.", ("아니요.", "글쎄."), (3.0, 2.0, 1.0))]
    rows = [{"query": "가요?", "positive": "네.", "negatives": ["아니요.", "글쎄."], "scores": [3, 2, 1], "note": "x"}]
    pd.DataFrame(rows).to_parquet(tmp_path / "y.parquet")
    triples, report = load_triples(tmp_path / "y.parquet", policy="strict")
    assert (triples, report.files[0].notes) == (listed, ["ignored columns: note"])


@pytest.mark.parametrize(("row", "kind"), [
    ("가요?,네.,\"['아니요.', '글쎄.']\",", "not text"), ("가요?,네.,아니요.,\"[3, 2]\"", "broken scores"),
    ("가요?,네.,아니요.", "ragged row"), ("가요?,nan,아니요.,", "NA-like positive"), ("가요?,,아니요.,", "empty positive")])
def test_a_table_is_never_read_for_what_it_is_not(tmp_path, row, kind):
    path = put(tmp_path, "x.csv", f"query,positive,negatives,scores\n와요?,네.,,\n{row}\n")
    triples, report = load_triples(path)
    assert triples == [Triple("와요?", "네.")]
    assert [(problem.row, problem.line, problem.kind) for problem in report.problems] == [(2, 3, kind)]


def test_without_ids_a_broken_quote_takes_the_rest_and_says_so(tmp_path):
    path = put(tmp_path, "x.csv", 'query,positive\n가요?,네.\n"와요?"요,네.\n자요?,네.\n')
    triples, report = load_triples(path)
    assert triples == [Triple("가요?", "네.")]
    assert [(p.row, p.line, p.kind) for p in report.problems] == [(2, 3, "broken quoting")]
    assert "left out as far as line 4" in report.problems[0].detail


letters = st.text(st.sampled_from("가나다 .a1"), min_size=1, max_size=6)
texts = letters.map(str.strip).filter(lambda text: re.search(r"\w", text))
nothing = st.just(())
kinds = st.sampled_from(["", "hard"])
rows = st.lists(st.builds(Triple, texts, texts, nothing, nothing, kinds), min_size=1, max_size=6)


@QUICK
@given(rows, st.integers(0, 400), st.integers(0, 30))
def test_nothing_is_lost_under_damage(tmp_path, triples, start, length):
    "Cut a stretch of bytes out of a file: rows are read or listed, and those before the cut are unharmed."
    raw = save_triples(triples, tmp_path / "x.jsonl").read_bytes()
    before = raw[:start].count(b"\n")
    path = put(tmp_path, "cut.jsonl", raw[:start] + raw[start + length:])
    try:
        found, report = load_triples(path)
    except DataError as error:
        found, report = [], error.report
    balanced(report)
    assert found[:before] == triples[:before]


@QUICK
@given(rows)
def test_what_is_saved_is_loaded(tmp_path, triples):
    full = [Triple(t.query, t.positive, ("다른 것 하나", "다른 것 둘"), (3.5, 1.0, -2.25), t.kind) for t in triples]
    for given_rows in (triples, full):
        assert load_triples(save_triples(given_rows, tmp_path / "x.jsonl")).triples == given_rows


def test_scores_follow_their_negatives():
    row = {"query": "가요?", "positive": "네.", "negatives": ["", "나중에.", "네", "나중에", "글쎄."], "scores": [9, 1, 2, 3, 4, 5]}
    triples, report = load_triples([row])
    assert triples == [Triple("가요?", "네.", ("나중에.", "글쎄."), (9.0, 2.0, 5.0))]
    assert (report.problems[0].kind, report.rows_left_out) == ("fewer negatives", 0)


# ---- collections ------------------------------------------------------------------------------------------------

CORPUS = '{"_id": "d1", "title": "김치", "text": "냉장고에 둔다."}\n{"_id": 2, "text": "삶는다."}\n'


def beir(folder, corpus=None, queries=None, qrels="query-id\tcorpus-id\tscore\nq1\td1\t1\n"):
    put(folder, "corpus.jsonl", corpus or CORPUS)
    put(folder, "queries.jsonl", queries or '{"_id": "q1", "text": "어디에 두나요?"}\n{"_id": "q2", "text": "누가 사나요?"}\n')
    put(folder, "qrels/test.tsv", qrels)
    return folder


def test_beir_layout_with_titles_numbers_and_unjudged_queries(tmp_path):
    found = load_beir(beir(tmp_path))
    assert found == Collection({"d1": "김치 냉장고에 둔다.", "2": "삶는다."}, {"q1": "어디에 두나요?"}, {"q1": {"d1": 1}})
    assert [file.rows_kept for file in found.report.files] == [2, 1, 1]
    assert found.report.left_out == {"not judged in test": 1}
    assert [file.rows_read for file in found.report.files] == [2, 2, 1]


def test_ids_are_parted_by_blanks_alone(tmp_path):
    corpus = json.dumps({"_id": "d\u30001\u2028", "text": "가"})
    assert load_beir(beir(tmp_path, corpus=corpus, qrels="q1 0 d\u30001\u2028 2\n")).qrels == {"q1": {"d\u30001\u2028": 2}}


@pytest.mark.parametrize("content", ['{"query": "가", "positive": "나", "negatives": ["다", "\\ud83d"]}',
                                     '{"query": "가", "positive": "나", "difficulty": "\\ud83d"}'])
def test_a_triple_with_half_a_character_is_left_out(tmp_path, content):
    triples, report = load_triples(put(tmp_path, "x.jsonl", GOOD + "\n" + content))
    assert len(triples) == 1 and [(p.row, p.kind) for p in report.problems] == [(2, "undecodable bytes")]


@pytest.mark.parametrize("qrels", [
    "query-id\tcorpus-id\tscore\r\nq1\td1\t2\r\nq1\t2\t0\r\n", "q1\td1\t2\nq1\t2\t0", "q1 0 d1 2\nq1 0 2 0\n",
    "\ufeffquery-id\tcorpus-id\tscore\nq1\td1\t2.0\n\nq1\t2\t0\n"])
def test_judgements_in_every_dress(tmp_path, qrels):
    assert load_beir(beir(tmp_path, qrels=qrels)).qrels == {"q1": {"d1": 2, "2": 0}}


@pytest.mark.parametrize(("part", "content", "kind"), [
    ("corpus", '{"_id": "d1", "text": "가"}\n{"_id": "d1", "text": "나"}\n', "duplicate id"),
    ("corpus", '{"_id": "d1", "text": "가"}\n{"text": "나"}\n', "blank id"),
    ("corpus", '{"_id": "d1", "text": "가"}\n{"_id": "d2", "text": ["나"]}\n', "not text"),
    ("corpus", '{"_id": "d1", "text": "가"}\n{"_id": "d2"', "broken JSON"),
    ("corpus", '{"_id": "d1", "text": "가"}\n{"_id": "d2", "text": "나 \\ud83d"}', "undecodable bytes"),
    ("corpus", '{"_id": "d1", "text": "가"}\n{"_id": "\\udc00", "text": "나"}', "undecodable bytes"),
    ("corpus", '{"_id": "d1", "text": "가"}\n{"_id": "d2", "title": "\\ud83d", "text": "나"}', "undecodable bytes"),
    ("queries", '{"_id": "q1", "text": "가"}\n{"_id": "q2", "text": "\\ud83d"}\n', "undecodable bytes"),
    ("corpus", b'{"_id": "d1", "text": "1"}\n' + '{"_id": "d2", "text": "나"}'.encode("cp949"), "undecodable bytes"),
    ("queries", '{"_id": "q1", "text": "가"}\n{"_id": "q2", "text": " "}\n', "empty query"),
    ("qrels", "q1\td1\t1\nq1\td9\t1\n", "unknown document"),
    ("qrels", "q1\td1\t1\nq9\td1\t1\n", "unknown query"),
    ("qrels", "q1\td1\t1\nq1\td1\t0\n", "duplicate judgement"),
    ("qrels", "q1\td1\t1\nq1\t2\tyes\n", "broken grade"),
    ("qrels", "q1\td1\t1\nq1\n", "ragged row"),
])
def test_a_benchmark_with_a_faulty_row_is_refused_unless_asked(tmp_path, part, content, kind):
    folder = beir(tmp_path, **{part: content})
    with pytest.raises(DataError, match=rf"row 2 \(line 2\): {kind}"):
        load_beir(folder)
    report = load_beir(folder, policy="report").report
    assert [(problem.row, problem.kind) for problem in report.problems] == [(2, kind)]
    assert report.files[("corpus", "queries", "qrels").index(part)].left_out[kind] == 1


def test_a_collection_that_is_not_there_says_what_is(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "hub_dataset", lambda *args, **kwargs: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    beir(tmp_path / "some" / "kitchen")
    with pytest.raises(DataError, match=r"qrels/dev.tsv does not exist: .*\(splits found: test\)"):
        load_beir("some/kitchen", split="dev")
    with pytest.raises(DataError, match="some/kitten/corpus.jsonl does not exist"):
        load_beir("some/kitten")
    with pytest.raises(DataError, match="judges nothing in split 'test'"):
        load_beir(beir(tmp_path / "blank", qrels="query-id\tcorpus-id\tscore\n"))


@pytest.mark.parametrize(("name", "qrels"), [("mteb/scifact", ("mteb/scifact", "default", "dev")),
                                             ("BeIR/scifact", ("BeIR/scifact-qrels", None, "dev"))])
def test_hub_layouts(monkeypatch, name, qrels):
    "The hub itself is not asked here: `load_dataset` is replaced, and what it is asked for is checked."
    import datasets
    tables = {(name, "corpus", "corpus"): [{"_id": "d1", "title": "김치", "text": "냉장고"}],
              (name, "queries", "queries"): [{"_id": "q1", "text": "어디?"}],
              qrels: [{"query-id": "q1", "corpus-id": "d1", "score": 1.0}]}
    made = {wanted: datasets.Dataset.from_list(rows) for wanted, rows in tables.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda *wanted, split, revision=None: made[*wanted, split])
    assert load_beir(name, split="dev") == Collection({"d1": "김치 냉장고"}, {"q1": "어디?"}, {"q1": {"d1": 1}})


def test_hub_triples_and_a_hub_that_says_no(monkeypatch):
    import datasets
    made = datasets.Dataset.from_list([{"anchor": "어디?", "positive": "냉장고", "negative": "냄비"}])
    both = datasets.DatasetDict(train=made, dev=made)
    monkeypatch.setattr(datasets, "load_dataset", lambda id, config, split, revision=None: made if split else both)
    assert load_triples("owner/name:train").triples == [Triple("어디?", "냉장고", ("냄비",))]
    with pytest.raises(DataError, match="has the splits train, dev: name one, as in owner/name:train"):
        load_triples("owner/name")


    def refuse(*args, **kwargs):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"the hub did not give it \(ConnectionError: no network\): check the name"):
        load_triples("owner/name:train")


ids = st.text("ab 0", min_size=1, max_size=3).filter(str.strip)


@QUICK
@given(st.dictionaries(ids, st.text("가나 .", min_size=1, max_size=5), min_size=1, max_size=5))
def test_a_saved_collection_is_loaded(tmp_path, corpus):
    corpus = {key: text.strip() for key, text in corpus.items()}
    first = next(iter(corpus))
    made = Collection(corpus, {"q 1": "가?"}, {"q 1": {first: 2}})
    assert load_beir(save_beir(made, tmp_path / "c", "dev"), "dev", policy="report") == made


def test_questions_asked_in_the_same_words_are_cut_together_and_near_the_sizes():
    """Fifteen of twenty questions are one: the share of each split counts questions, and none goes empty."""
    texts = {f"q{i}": "몇 시에  닫나요?" if i % 2 else "몇 시에 닫나요" for i in range(15)} | {f"a{i}": f"{i}번 방" for i in range(5)}
    whole = Collection({"d": "밤 열 시까지 연다."}, texts, {query: {"d": 1} for query in texts})
    parts = cut(whole, ["train", "dev", "test"])
    assert sum(len(part.queries) for part in parts.values()) == 20 and all(part.queries for part in parts.values())
    assert [name for name, part in parts.items() if set(part.queries) & {f"q{i}" for i in range(15)}] in (["train"], ["dev"], ["test"])
    alone = {f"q{i}": f"{i}번 질문" for i in range(41)}
    parts = cut(Collection(whole.corpus, alone, {query: {"d": 1} for query in alone}), ["train", "dev", "test"])
    order = sorted(alone, key=lambda query: text_hash(bare(alone[query])))
    assert [[*part.queries] for part in parts.values()] == [order[:25], order[25:29], order[29:]]


def test_a_test_query_asked_in_training_is_refused_however_it_is_written():
    found = Collection({"d1": "밤 열 시."}, {"q1": "몇 시에 닫나요?"}, {"q1": {"d1": 1}})
    for query in ("몇 시에 닫나요?", "몇시에 닫나요", unicodedata.normalize("NFD", "몇 시에 닫나요!")):
        with pytest.raises(DataError, match="training holds 1 of 1 test queries .*q1"):
            check_isolation([Triple("다른 질문", "답"), Triple(query, "답")], found)
    assert check_isolation([Triple("언제까지 하나요?", "밤 열 시")], found) == 1
    assert check_isolation([Triple("언제까지 하나요?", "새벽 두 시")], found) == 0


# ---- BM25 -------------------------------------------------------------------------------------------------------

words = st.lists(st.sampled_from("가나다라"), max_size=6).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdefg"), words, min_size=1), words,
       st.sampled_from([(0.9, 0.4), (1.2, 0.75), (0, 0), (2, 1)]), st.integers(1, 8))
def test_bm25_is_the_formula_and_its_order_is_trec_evals(texts, query, numbers, k):
    k1, b = numbers
    bags = {key: text.split() for key, text in texts.items()}
    mean = sum(map(len, bags.values())) / len(bags)
    expected = {}
    for key, bag in bags.items():
        for term in query.split():
            n, f = sum(term in other for other in bags.values()), bag.count(term)
            if f:
                part = math.log(1 + (len(bags) - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * len(bag) / mean))
                expected[key] = expected.get(key, 0) + part
    (hits,) = BM25(texts, str.split, k1, b).search([query], k)
    assert len(hits) == min(k, len(expected))
    for key, score in hits.items():
        assert math.isclose(score, expected[key], rel_tol=1e-5)
    assert list(hits) == sorted(hits, key=lambda key: (hits[key], key), reverse=True)
    missed = [score for key, score in expected.items() if key not in hits]
    assert not missed or max(missed) <= min(hits.values()) * (1 + 1e-5)


def test_more_queries_than_a_block_and_terms_nobody_has():
    texts = {f"d{i}": f"낱말{i} 공통" for i in range(600)}
    hits = BM25(texts, str.split).search([f"낱말{i} 없는말" for i in range(600)] + ["없는말"], k=3)
    assert [next(iter(found)) for found in hits[:600]] == list(texts) and hits[600] == {}


def test_content_morphemes_drop_what_nori_drops():
    assert content_morphemes("서울에서는 정말 빨리 먹었습니다만, 그 맛은 대단했어요!!") == ["서울", "먹", "맛", "대단하"]
    assert content_morphemes(unicodedata.normalize("NFD", "김치를")) == content_morphemes("김치를") == ["김치"]


# ---- mining -----------------------------------------------------------------------------------------------------

LIKE = {"a": "김치는 냉장고에 두면 오래간다고 한다.", "b": "김치는 냉장고에 두면 더 오래간다고 한다.",
        "c": "김치 냉장고를 판다.", "d": "김치찌개를 끓인다.", "e": "야구를 본다."}


def fixed(ranking):
    return lambda queries, k: [dict(list(ranking.items())[:k]) for _ in queries]


def test_rank_window_margin_and_near_duplicates():
    triples, ranking = [Triple("김치?", LIKE["a"])], {"c": 10.0, "a": 9.0, "b": 8.9, "d": 8.0, "e": 1.0}

    def ids(**rules):
        found = mine(triples, LIKE, fixed(ranking), Rules(**rules)).triples[0].negatives
        return "".join(key for key, text in LIKE.items() if text in found)

    assert ids() == "cde"
    assert ids(range_min=1) == "de"
    assert ids(range_max=4) == "cd"
    assert ids(relative_margin=0.05) == "de"
    assert ids(relative_margin=0.5) == "e"
    assert ids(range_max=1, relative_margin=0.05) == ""  # the answer was not found: nothing can be told apart
    assert ids(likeness=1.01) == "bcde"
    assert ids(num_negatives=1) == "c"


def test_every_hit_is_accounted_for_and_the_result_is_the_same_again():
    triples = [Triple("김치?", LIKE["a"], (LIKE["d"],)), Triple("야구?", LIKE["e"])]
    search = fixed({"c": 10.0, "a": 9.0, "b": 8.9, "d": 8.0, "e": 1.0})
    first, again = (mine(triples, LIKE, search, Rules(range_min=1)) for _ in range(2))
    assert first == again
    assert first.triples[0].negatives == (LIKE["d"], LIKE["e"])
    assert first.counts == {"queries": 2, "taken": 3, "is an answer": 2, "nearly an answer": 1, "ranked too high": 2,
                            "scored too high": 0, "is there already": 2, "queries with fewer than 5": 2,
                            "queries with none": 0}


# ---- sparsity ---------------------------------------------------------------------------------------------------

weight = st.sampled_from([0.0, 0.0, 0.005, 0.01, 0.5, 3.0])
row = {v: st.lists(weight, min_size=v, max_size=v) for v in range(2, 6)}
weights = st.integers(2, 5).flatmap(lambda v: st.lists(row[v], min_size=1, max_size=5))


@settings(max_examples=40, deadline=None)
@given(weights, st.sampled_from([0.0, 0.01]))
def test_sparsity_is_what_a_dense_matrix_says(rows, threshold):
    dense = np.array(rows, np.float32)
    stop = np.arange(dense.shape[1]) < 1
    on = dense > threshold
    assert S.active_dims(dense, threshold).tolist() == on.sum(1).tolist()
    assert S.dead_share(dense, threshold) == pytest.approx((~on.any(0)).mean())
    pairs = [(on[i] & on[j]).sum() for i in range(len(on)) for j in range(len(on))]
    assert S.expected_flops(dense, dense, threshold) == pytest.approx(np.mean(pairs))
    assert S.stop_mass(dense, stop) == (pytest.approx(dense[:, stop].sum() / dense.sum()) if dense.any() else None)
    assert S.measure_sparsity(dense, threshold=threshold)["zeros"] == pytest.approx((~on).mean())
    means = dense.astype(float).mean(0)
    expected = means[~stop].mean() / means[stop].mean() if means[stop].any() else None
    assert S.semantic_ratio(dense, stop) == (None if expected is None else pytest.approx(expected))
    json.dumps(S.measure_sparsity(dense, stop, threshold), allow_nan=False)


@settings(max_examples=100, deadline=None)
@given(st.floats(2**-20, 50, width=32), st.integers(1, 40), st.integers(2, 300), st.data())
def test_uniform_activations_have_a_ratio_of_exactly_one(value, texts, vocabulary, draw):
    stop = np.arange(vocabulary) < draw.draw(st.integers(1, vocabulary - 1))
    assert S.semantic_ratio(np.full((texts, vocabulary), value, np.float32), stop) == 1.0


def test_a_planted_stop_heavy_model_is_seen_and_the_published_form_hides_it():
    rng = np.random.default_rng(3)
    stop = np.arange(500) < 40
    raw = np.where(rng.random((60, 500)) < 0.2, rng.random((60, 500)), 0) * np.where(stop, 5, 1)
    assert 0.15 < S.semantic_ratio(raw, stop) < 0.25
    assert S.semantic_share(raw, stop).mean() < 0.5
    masked = raw * ~stop
    assert masked[:, ~stop].mean() / (masked[:, stop].mean() + 1e-8) > 1e6
    assert S.semantic_ratio(masked, stop) is None and S.stop_mass(masked, stop) == 0


# ---- a real collection ------------------------------------------------------------------------------------------

DATA = Path(os.environ.get("KORLAB_TEST_DATA", "")) / "retrieval" / "kobest_boolq"


@pytest.mark.skipif(not os.environ.get("KORLAB_TEST_DATA"), reason="KORLAB_TEST_DATA names no folder of real data")
def test_real_collection(tmp_path):
    found = load_beir(DATA)
    assert (len(found.corpus), len(found.queries), len(found.report.problems)) == (3660, 3665, 0)
    assert load_beir(save_beir(found, tmp_path)) == found
    run = dict(zip(found.queries, BM25(found.corpus, eojeols).search(list(found.queries.values()), 100)))
    assert evaluate(run, found.qrels, documents=3660).means["ndcg@10"] == pytest.approx(0.7546, abs=5e-4)
    few = dict(list(found.qrels.items())[:300])  # Kiwi reads 300 passages in a test, not all
    docs = {doc: found.corpus[doc] for grades in few.values() for doc in grades}
    asked = [found.queries[query] for query in few]
    kiwi, eojeol = (evaluate(dict(zip(few, BM25(docs, tokenise).search(asked))), few, documents=len(docs))
                    for tokenise in (content_morphemes, eojeols))
    assert compare(kiwi, eojeol)["ndcg@10"].difference.low > 0.03


# ---- what every reader owes -------------------------------------------------------------------------------------

def collection_folder(tmp_path, judged=""):
    put(tmp_path, "corpus.jsonl", "".join(f'{{"_id": "d{i}", "text": "{i}층에 있다."}}\n' for i in range(4)))
    put(tmp_path, "queries.jsonl", '{"_id": "q0", "text": "어디인가요?"}\n')
    put(tmp_path, "qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\td0\t1\n" + judged)
    return tmp_path


def test_a_collection_lists_a_few_of_four_thousand_problems_and_counts_all(tmp_path):
    from types import SimpleNamespace

    from korlab.report.pages import sources
    folder = collection_folder(tmp_path, "".join(f"q0\tx{i}\t1\n" for i in range(4000)) + "q0\td1\tgood\n")
    made = load_beir(folder, policy="report").report.to_dict()
    assert made["left_out"] == {"unknown document": 4000, "broken grade": 1} and made["unlisted"] == {"unknown document": 3950}
    assert len(json.dumps(made)) < 15_000
    page = str(list(sources(SimpleNamespace(study=SimpleNamespace(name="sparse"), read=lambda name: {"notes": [], "sources": [{"split": "test"} | made]})))[3])
    assert len(page.split("\n")) == 2 + 10 + 1 and "… and 3,991 more problems" in page
    assert "| 4,002 | 4,003 | broken grade |" in page
    with pytest.raises(DataError, match="has 4,001 problems.*and 3,996 more"):
        load_beir(folder)


def test_a_collection_in_another_encoding_is_read_when_somebody_says_so(tmp_path):
    folder = collection_folder(tmp_path)
    for name in ("corpus.jsonl", "queries.jsonl"):
        put(folder, name, (folder / name).read_text("utf-8").encode("cp949"))
    put(folder, "qrels/._test.tsv", b"\0\5\x16\7")
    with pytest.raises(DataError, match=r"it is text in CP949 and not in UTF-8.*encoding='cp949' \(-p encoding cp949\)"):
        load_beir(folder)
    found = load_beir(folder, encoding="cp949")
    assert found.corpus["d1"] == "1층에 있다." and found.queries == {"q0": "어디인가요?"}
    assert judged_splits(folder) == ["test"]


def test_judgements_in_utf16_are_told_as_such(tmp_path):
    folder = collection_folder(tmp_path)
    text = (folder / "qrels/test.tsv").read_text("utf-8")
    for codec in ("utf-16", "utf-16-be"):
        put(folder, "qrels/test.tsv", text.encode(codec))
        with pytest.raises(DataError, match="in UTF-16 [LB]E .*save it as UTF-8, or say encoding='utf-16-[lb]e'"):
            load_beir(folder)


def test_a_garbled_document_is_left_out(tmp_path):
    folder = collection_folder(tmp_path)
    with open(folder / "corpus.jsonl", "a", encoding="utf-8") as file:
        file.write('{"_id": "d9", "text": "' + "조금".encode().decode("cp949") + '", "source": "x"}\n')
    report = load_beir(folder, policy="report").report
    assert [(p.row, p.line, p.kind) for p in report.problems] == [(5, 5, "wrong encoding")]
    triples = put(tmp_path, "x.jsonl", f"{GOOD}\n" + GOOD.replace("몇 시에 닫나요?", "안녕하세요".encode("cp949").decode("latin-1")))
    assert load_triples(triples).report.left_out == {"wrong encoding": 1}
@pytest.mark.parametrize(("content", "told"), [
    (CORPUS.encode("cp949"), "corpus.jsonl has no row that can be used: it is text in CP949"),
    (b'[\n  {"_id": "d1",\n   "text": "a"}\n]', "it is one JSON array"),
    (b'{\n  "_id": "d1",\n  "text": "a"\n}\n', "it is made of objects over several lines"),
    ('{"_id": "d1", "title": "김치", "chunk": "글"}\n'.encode(), "none of its keys (_id, title, chunk) is one for a text"),
])
def test_a_corpus_of_no_use_is_named_and_the_judgements_are_not_blamed(tmp_path, content, told):
    put(tmp_path, "corpus.jsonl", content)
    put(tmp_path, "queries.jsonl", '{"_id": "q1", "text": "어디에 두나요?"}\n')
    (tmp_path / "qrels").mkdir()
    put(tmp_path, "qrels/test.tsv", "q1\td1\t1\n")
    for policy in ("report", "strict"):
        with pytest.raises(DataError) as caught:
            load_beir(tmp_path, policy=policy)
        assert told in str(caught.value) and "check qrels" not in str(caught.value), caught.value


def test_texts_under_other_names_are_texts_and_missing_ones_are_counted(tmp_path):
    rows = ['{"_id": "d1", "title": "김치", "contents": "냉장고"}', '{"id": "d2", "제목": "쌀", "본문": "실온"}',
            '{"_id": "d3", "title": "빵", "text": null}', '{"_id": "d4", "passage": "글"}']
    put(tmp_path, "corpus.jsonl", "\n".join(rows))
    put(tmp_path, "queries.jsonl", '{"_id": "q1", "질문": "어디에 두나요?"}\n')
    (tmp_path / "qrels").mkdir()
    put(tmp_path, "qrels/test.tsv", "q1\td1\t1\n")
    found = load_beir(tmp_path, policy="report")
    assert found.corpus == {"d1": "김치 냉장고", "d2": "쌀 실온", "d3": "빵", "d4": "글"}
    assert ("title only", 3) in [(problem.kind, problem.line) for problem in found.report.problems]
    with pytest.raises(DataError, match="title only"):
        load_beir(tmp_path)


def test_rows_without_a_question_say_which_keys_they_have(tmp_path):
    with pytest.raises(DataError, match="no key query or anchor; the row has said, meant"):
        load_triples(put(tmp_path, "x.jsonl", '{"said": "가요?", "meant": "네."}\n'))


def test_negatives_have_many_names_and_ignored_keys_are_noted_once(tmp_path):
    names = ("negatives", "negative", "negative_1", "neg", "hard_negatives", "hard_negative", "hard_neg_2")
    rows = [{"query": f"{i}?", "positive": "네.", name: [f"아니요 {i}."], "url": "x"} for i, name in enumerate(names)]
    write_jsonl(tmp_path / "x.jsonl", [*rows, {"query": "또?", "positive": "네!", "distractors": ["가."]}])
    triples, report = load_triples(tmp_path / "x.jsonl")
    assert [triple.negatives for triple in triples] == [*((f"아니요 {i}.",) for i in range(len(names))), ()]
    assert report.files[0].notes == ["ignored keys: url, distractors"]
    assert load_triples(rows).report.files[0].notes == ["ignored keys: url"]


def test_a_key_without_a_text_gives_way_to_one_that_has_it(tmp_path):
    rows = [{"_id": "d1", "text": None, "contents": "본문"}, {"_id": None, "id": "d2", "text": " ", "내용": "글"},
            {"_id": "d3", "id": "x", "text": "가", "body": "나"}, {"_id": "d4", "body": "", "passage": "다"},
            {"_id": "d5", "body": "라", "passage": "라"}, {"_id": "d6", "body": "마", "passage": "바"}]
    queries = [{"_id": "q1", "text": "", "question": "어디?"}]
    write_jsonl(tmp_path / "corpus.jsonl", rows)
    write_jsonl(tmp_path / "queries.jsonl", queries)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    found = load_beir(tmp_path, policy="report")
    assert found.corpus == {"d1": "본문", "d2": "글", "d3": "가", "d4": "다", "d5": "라"} and found.queries == {"q1": "어디?"}
    assert [(one.row, one.kind) for one in found.report.problems] == [(6, "ambiguous column")]
    assert [*idf_documents(tmp_path / "corpus.jsonl")][:2] == ["본문", "글"]


def test_splits_that_share_a_question_are_named_as_they_were_given(tmp_path):
    def judged(first, last):
        return Collection({f"d{i}": f"글 {i}" for i in range(60)}, {f"q{i}": f"질문 {i}?" for i in range(first, last)},
                          {f"q{i}": {f"d{i}": 1} for i in range(first, last)})
    save_beir(judged(0, 40), tmp_path, "train")
    save_beir(judged(39, 60), tmp_path, "test")
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": f"q{i}", "text": f"질문 {i}?"} for i in range(60)])
    with pytest.raises(ParameterError, match="train and test of .* share 1 question: remove them"):
        load_splits(configure({"model": "sparse-ko", "data": str(tmp_path)}))
