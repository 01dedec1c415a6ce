"""The first ten minutes of three people, each with files of their own: dialogues in a workbook, a folder of documents, a list of questions."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT
from in_process import execute, korlab
from openpyxl import Workbook
from test_sparse_documents import korean_pdf
from test_sparse_documents import korlab as korlab_here

from korlab.core import charts
from korlab.core.accounts import DataError
from korlab.core.files import read_json, read_jsonl
from korlab.experiment import results
from korlab.experiment.params import ParameterError
from korlab.experiment.runs import open_run
from korlab.experiment.studies import configure
from korlab.metrics.rouge import rouge
from korlab.report.render import lead_of
from korlab.sparse.beside import DENSE, HYBRID
from korlab.sparse.bm25 import content_morphemes
from korlab.sparse.splits import load_splits
from korlab.summarization.dialogues import load_dialogues


def book(path: Path, hidden: tuple[str, ...] = (), **sheets: list[list]) -> Path:
    """A workbook as people leave them."""
    made = Workbook()
    made.remove(made.active)
    for name, rows in sheets.items():
        sheet = made.create_sheet(name)
        sheet.sheet_state = "hidden" if name in hidden else "visible"
        for row in rows:
            sheet.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
    return path


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    for figure in ("length_histogram", "score_distribution", "learning_curves"):
        monkeypatch.setattr(charts, figure, lambda *values, **more: None)
    return tmp_path / "runs"


# ---- thirty dialogues ------------------------------------------------------------------------------------------------

THINGS = "환불 배송 교환 탈퇴 쿠폰 영수증 포인트 재입고 예약 수리".split()
CALLS = [(f"C-{26100 + 7 * i}", f"고객: {THINGS[i % 10]} 문의드려요. 주문번호는 {1000 + 3 * i}번이에요.\r\n상담원: 네, {i % 5 + 1}일 안에 처리됩니다.",
          f"고객이 {THINGS[i % 10]} 문제를 물었고 상담원이 {i % 5 + 1}일 안에 된다고 했다.") for i in range(30)]


def consultations(path: Path) -> Path:
    """A title above the header, a BOM in it, columns of no use, and a blank row."""
    rows = [[name, f"2026-10-{i + 1:02}", said, told, "김"] for i, (name, said, told) in enumerate(CALLS)]
    return book(path, 상담=[["고객상담 내역"], [], ["\ufeff상담번호", "접수일 ", "대화내용", "요약", "담당자"], *rows[:12], [], *rows[12:]])


def test_thirty_dialogues_become_thirty_summaries_under_their_own_numbers(tmp_path, runs):
    data, ids = consultations(tmp_path / "상담 내역.xlsx"), [name for name, _, _ in CALLS]
    given = {"model": "kobart", "data": data, "vocab_size": 400, "max_target_length": 24, "tracking": "none", "threads": 1, "eval_rows": 1}
    trained = execute("train", tmp_path / "train.ipynb", name="mine", max_steps=40, eval_steps=40, warmup=4, **given)
    assert trained.error is None, trained.error
    assert "1 row above the header passed over" in trained.page and "column '상담번호' read as fname" in trained.page
    assert "ignored columns: 접수일, 담당자" in trained.page and "\ufeff" not in trained.page
    assert read_json(trained.names["run"].path("data.json"))["rows"] == {"train": 27, "dev": 1, "test": 2}

    done = korlab("evaluate", "mine", "--data", data, "--name", "all", runs=runs)
    assert done.returncode == 0 and "ROUGE-1" in done.stdout and "30" in done.stdout, done.stderr
    done = korlab("summarization", "summarize", "mine", data, "--to", tmp_path / "out.csv", runs=runs)
    assert done.returncode == 0 and "30 rows read, 0 left out, 30 summarised" in done.stdout, done.stderr
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        written = [*csv.DictReader(file)]
    assert [row["fname"] for row in written] == ids
    found = read_json(runs / "summarization" / "mine" / "evaluations" / "all" / "metrics.json")["scores"][0]
    apart = rouge([told for _, _, told in CALLS], [row["summary"] for row in written])
    assert found["mode"] == "morph" and found["n"] == 30 and found["measures"]["rouge1"]["mean"] == pytest.approx(apart.means["rouge1"])
    assert apart.means["rouge1"] > 0.2

    newer = open_run({"model": "sparse-ko", "name": "newer"})
    newer.write("metrics", {"splits": {}})
    newer.close()
    done = korlab("summarization", "summarize", "latest", data, "--to", tmp_path / "again.csv", runs=runs)
    assert done.returncode == 0 and (tmp_path / "again.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()
    assert re.search(r"korlab: 'latest' is \S*summarization/mine\n", done.stderr), done.stderr


def test_a_recipe_of_few_epochs_over_few_rows_says_that_nothing_was_learnt(tmp_path, runs):
    data = consultations(tmp_path / "a.xlsx")
    trained = execute("train", tmp_path / "train.ipynb", name="short", model="kobart", data=data, vocab_size=400, max_target_length=8,
                      tracking="none", threads=1, eval_rows=1)
    assert trained.error is None, trained.error
    said = "업데이트가 5번뿐이어서(워밍업 50번도 끝나지 않았다) 거의 배우지 못했다: `-p epochs`를 늘리거나 `-p max_steps 300`을 준다."
    assert said in trained.page and "데이터가 30행뿐이다" in lead_of(trained.names["run"])


@pytest.mark.parametrize("name", ["상담번호", "상담 번호", "\ufeff접수번호", "일련번호"])
def test_numbers_of_consultations_are_names_of_rows(tmp_path, name):
    path = book(tmp_path / "a.xlsx", 상담=[[name, "대화", "요약"], ["가-1", "가요?", "간다."], ["가-2", "와요?", "온다."]])
    assert [row.fname for row in load_dialogues(path).rows] == ["가-1", "가-2"]
    both = book(tmp_path / "b.xlsx", 상담=[["번호", name, "대화", "요약"], [1, "가-1", "가요?", "간다."]])
    assert [row.fname for row in load_dialogues(both).rows] == ["1"]


# ---- a folder of documents -------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path, monkeypatch) -> Path:
    """What lies about in an office."""
    pytest.importorskip("pypdf")
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "my"
    (home / "old").mkdir(parents=True)
    notices = "번호,제목,내용\r\n7,주차,지하 2층에 세 시간까지 세울 수 있습니다.\r\n9,휴관일,매주 월요일에 쉽니다.\r\n"
    (home / "공지.csv").write_bytes(notices.encode("cp949"))
    (home / "가입.md").write_text("# 회원 가입\n\n## 준비물\n\n신분증을 가져오세요.\n\n## 회비\n\n학생은 반값입니다.\n", "utf-8")
    (home / "대출.txt").write_text("다섯 권까지 빌릴 수 있다.\n연체하면 하루에 백 원을 낸다.\n", "utf-8")
    (home / "old" / "음악회.html").write_text("<html><title>음악회</title><body><nav>회비</nav><p>옥상에서 사중주를 듣습니다.</p></body></html>", "utf-8")
    (home / "시설.pdf").write_bytes(korean_pdf("시설 안내", "수유실은 휠체어 보관소 옆에 있습니다"))
    book(home / "안내.xlsx", hidden=("숨김",), 질문=[["질문", "답변"], ["와이파이는 되나요?", "벽의 부호를 찍으면 됩니다."], ["복사는 얼마예요?", "한 장에 오십 원."]],
         직원=[["번호", "본문"], ["k-1", "누전이 되면 기계실에 알린다."]], 메모=[["오늘 한 일"], ["서가 정리"]], 숨김=[["제목", "본문"], ["비밀", "금고"]])
    for name in (".DS_Store", "~$안내.xlsx", "Thumbs.db"):
        (home / name).write_bytes(b"\0")
    return home


def test_from_a_folder_to_the_answer_in_three_commands(library):
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    made = subprocess.run([sys.executable, "-m", "korlab", "sparse", "index", "my/"], capture_output=True, text=True, env=env, check=True)
    assert made.stdout == "10 passages by BM25: runs/indexes/my\n"
    told = " ".join(made.stderr.split())
    assert "6 files read (" in told and "xlsx 1" in told and "): 9 documents (5 rows of tables); 3 hidden or temporary ones passed over" in told
    assert "안내.xlsx: hidden sheets not read: 숨김" in made.stderr and "a sheet is left out: 안내.xlsx#메모 has no row" in made.stderr
    places = {
        "주차는 어디에 하나요": "공지.csv, row 1", "학생은 회비가 얼마예요": "가입.md:7-9 (회원 가입 > 회비)", "연체하면 하루에 얼마": "대출.txt:1-2",
        "옥상에서 뭘 듣나요": "old/음악회.html (음악회)", "휠체어 보관소": "시설.pdf, pp. 1-2", "와이파이 되나요": "안내.xlsx#질문, row 1",
        "누전이면 누구에게": "안내.xlsx#직원, row 1",
    }
    for query, place in places.items():
        rows = json.loads(korlab_here("search", query, "--json")[0])
        assert rows[0]["where"] == place, rows
    assert "no passage shares a token" in korlab_here("search", "금고")[0]  # a hidden sheet

    answers = dict(zip(places, ["공지.csv:7", "가입", "대출.txt", "음악회.html", "시설", "안내.xlsx#질문:1", "k-1"]))
    Path("questions.csv").write_text("질문,문서\n" + "".join(f"{query},{name}\n" for query, name in answers.items()) + "서가,안내.xlsx\n", "utf-8-sig")
    said, told = korlab_here("measure", "questions.csv")
    assert "7 questions, 9 documents" in said and "│ 7 │ 100.0 [100.0, 100.0]" in said
    assert "'안내.xlsx' is a table of 3 rows: name the row as well, as in 안내.xlsx#직원:k-1" in told


def test_a_workbook_alone_is_read_sheet_by_sheet_and_one_sheet_by_its_name(library):
    assert korlab_here("index", "my/안내.xlsx")[0].startswith("3 passages by BM25")
    assert json.loads(korlab_here("search", "누전", "--json")[0])[0]["id"] == "안내.xlsx#직원:k-1"
    assert korlab_here("index", "my/안내.xlsx#직원")[0].startswith("1 passage by BM25")
    row, = json.loads(korlab_here("search", "누전", "--json")[0])
    assert (row["id"], row["where"]) == ("k-1", "안내.xlsx#직원, row 1")
    assert "has no sheet '없음' with rows in it (it has 질문, 직원, 메모)" in " ".join(korlab_here("index", "my/안내.xlsx#없음", code=1)[1].split())
    book(Path("none.xlsx"), 가=[["한 일"], ["청소"]], 나=[["할 일"], ["정리"]])
    assert "none.xlsx has no sheet of documents: none.xlsx#가 has no row that can be used" in " ".join(korlab_here("index", "none.xlsx", code=1)[1].split())


# ---- questions with answers ------------------------------------------------------------------------------------------

NOUNS = "환불 배송 교환 탈퇴 쿠폰 영수증 포인트 재입고 주차 휴관 분실물 회비 대출 연체 음악회 수유실 휠체어 열쇠 우산 사물함".split()
PLACES = "창구 누리집 전화 우편 로비".split()
ASKED = [(f"{noun} {word}", f"{noun} 업무는 {PLACES[(i + j) % 5]}에서 {(i * 3 + j + 1) * 7}번 {thing} 보면 알 수 있습니다.")
         for i, noun in enumerate(NOUNS) for j, (word, thing) in enumerate([("방법", "안내문을"), ("기한", "달력을"), ("요금", "가격표를")])]


def bm25(queries: list[str], answers: dict[str, str], corpus: list[str]) -> float:
    """nDCG@10 of BM25 as a book has it, passages that score alike by falling id."""
    counts = [Counter(content_morphemes(text)) for text in corpus]
    mean, n = sum(sum(one.values()) for one in counts) / len(counts), len(counts)
    found = Counter(term for one in counts for term in one)
    gains = []
    for query in queries:
        scores = {}
        for i, one in enumerate(counts, 1):
            norm = 0.9 * (1 - 0.4 + 0.4 * sum(one.values()) / mean)
            scores[f"d{i}"] = sum(math.log1p((n - found[term] + 0.5) / (found[term] + 0.5)) * one[term] / (one[term] + norm)
                                  for term in content_morphemes(query) if one[term])
        order = sorted(sorted((id for id in scores if scores[id]), reverse=True), key=lambda id: -round(scores[id], 5))[:10]
        right = f"d{corpus.index(answers[query]) + 1}"
        gains.append(1 / math.log2(order.index(right) + 2) if right in order else 0.0)
    return sum(gains) / len(gains)


def test_a_list_of_questions_becomes_a_table_of_four_systems(tmp_path, runs):
    data = book(tmp_path / "자주 묻는 질문.xlsx", FAQ=[["번호", "질문", "답변"], *([i, *row] for i, row in enumerate(ASKED, 1))])
    fast = {"max_steps": 6, "eval_steps": 6, "eval_rows": 4, "batch_size": 8, "max_length": 48, "tracking": "none", "on_collapse": "warn", "warmup": 0}
    trained = execute("train", tmp_path / "train.ipynb", name="faq", model="sparse-e5", size="mini", data=data, threads=1, **fast)
    assert trained.error is None, trained.error
    run, (split,) = trained.names["run"], {one.split for one in results.read(trained.names["run"]).scored}
    scored = {one.system: one for one in results.read(run).scored}
    assert [*scored] == ["sparse-e5", "BM25 morphemes", "BM25 eojeol", DENSE, HYBRID] and split == "test"
    assert "has no rows for dev and test: train was split by hash into train 36, dev 6, test 18" in trained.page
    assert all(one.n == 18 and one.mode == "60 documents" for one in scored.values())
    rows = read_jsonl(run.path("rankings", "test.jsonl"))
    assert {row["text"] for row in rows} < {query for query, _ in ASKED} and len(rows) == 18
    apart = bm25([row["text"] for row in rows], dict(ASKED), [answer for _, answer in ASKED])
    assert 0.3 < apart == pytest.approx(scored["BM25 morphemes"].measures["ndcg@10"].mean, abs=1e-4)
    assert not any("sparse + BM25" in remark["english"] for remark in results.read(run).about["remarks"])

    done = korlab("evaluate", "faq", "--data", os.path.relpath(data, ROOT), "--name", "again", runs=runs)
    assert done.returncode == 0, done.stderr
    again = read_json(run.path("evaluations", "again", "metrics.json"))["scores"]
    assert {one["system"]: one["measures"]["ndcg@10"]["mean"] for one in again} == {name: one.measures["ndcg@10"].mean for name, one in scored.items()}
    new = book(tmp_path / "new.xlsx", 질문=[["질문", "답변"], *([f"{i}호실은 어디인가요?", f"{i}호실은 {i + 1}층에 있습니다."] for i in range(4))])
    done = korlab("evaluate", "faq", "--data", new, "--name", "new", runs=runs)
    assert done.returncode == 0, done.stderr
    assert {one["n"] for one in read_json(run.path("evaluations", "new", "metrics.json"))["scores"]} == {4}
    assert "Training held none of these questions" in read_json(run.path("evaluations", "new", "data.json"))["notes"][0]
    known = korlab("evaluate", "faq", "--data", book(tmp_path / "known.xlsx", a=[["질문", "답변"], *map(list, ASKED)]), runs=runs)
    assert known.returncode == 1 and "training holds 36 of 60 test queries" in known.stderr


def test_questions_are_shared_out_whole_and_every_answer_is_searched(tmp_path):
    rows = [*ASKED, (f"{ASKED[0][0]}?", "다른 답입니다."), *((f"{query}!", answer) for query, answer in ASKED[1:3])]
    data = book(tmp_path / "a.xlsx", a=[["질문", "답변"], *map(list, rows)])
    splits = load_splits(configure({"model": "sparse-ko", "data": str(data)}))
    sides = [{text for t in splits.triples for text in (t.query,)}, *({*one.queries.values()} for one in splits.collections.values())]
    assert sum(map(len, sides)) >= 60 and len({text.rstrip("?!") for side in sides for text in side}) == sum(len({text.rstrip("?!") for text in side}) for side in sides)
    assert all(len(one.corpus) == 61 for one in splits.collections.values())
    for one in splits.collections.values():
        for id, text in one.queries.items():
            assert {one.corpus[doc] for doc in one.qrels[id]} == {answer for query, answer in rows if query.rstrip("?!") == text.rstrip("?!")}


def test_rows_may_be_given_for_dev_and_test_and_are_kept_apart(tmp_path):
    def file(name: str, rows: list) -> str:
        return str(book(tmp_path / f"{name}.xlsx", a=[["질문", "답변"], *map(list, rows)]))

    train, dev, test = file("train", ASKED[:40]), file("dev", ASKED[40:45]), file("test", ASKED[45:])
    splits = load_splits(configure({"model": "sparse-ko", "data": train, "dev_data": dev, "test_data": test}))
    assert len(splits.triples) == 40 and {name: (len(one.queries), len(one.corpus)) for name, one in splits.collections.items()} == {
        "dev": (5, 60), "test": (15, 60)}
    splits = load_splits(configure({"model": "sparse-ko", "data": train, "test_data": test}))
    assert {name: len(one.queries) for name, one in splits.collections.items()} == {"dev": 6, "test": 15} and len(splits.triples) == 34
    with pytest.raises((DataError, ParameterError), match="share 5 questions|share 5 of|holds 5 of"):
        load_splits(configure({"model": "sparse-ko", "data": train, "dev_data": dev, "test_data": file("mixed", ASKED[40:])}))
    with pytest.raises(ParameterError, match="2 judged questions are too few to be cut into train, dev, test"):
        load_splits(configure({"model": "sparse-ko", "data": file("two", ASKED[:2])}))
