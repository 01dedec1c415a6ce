"""Files as people have them: exports, labelling tools, archives, chats; and what they are told where a file cannot be read."""

import csv
import gzip
import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT
from in_process import execute
from openpyxl import Workbook
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.core import charts
from korlab.core.accounts import DataError, DataReport
from korlab.core.files import read_json
from korlab.core.rows import load_rows
from korlab.core.schemas import Field, Schema, Verdict, as_text
from korlab.core.settings import parted
from korlab.coref.corpora import RECIPES, Source
from korlab.coref.corpora import documents as texts_of_coref
from korlab.experiment import results
from korlab.experiment.params import ParameterError, placed
from korlab.experiment.studies import configure
from korlab.ivr.corpora import read_texts
from korlab.report.render import lead_of
from korlab.sparse.data import load_triples
from korlab.summarization.data import Splits, load_splits
from korlab.summarization.dialogues import Dialogue, load_dialogues
from korlab.summarization.study import STUDY

TALKS = [(f"손님: {i}번 메뉴 아직 되나요?\n직원: 네, 지금 바로 준비할게요.", f"손님이 {i}번 메뉴를 주문했다.") for i in range(1, 7)]


def put(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(*head: str, sep: str = ",", rows=TALKS) -> str:
    """As a spreadsheet writes CSV."""
    out = io.StringIO()
    csv.writer(out, delimiter=sep, lineterminator="\r\n").writerows([*([head] if head else []), *rows])
    return out.getvalue()


def book(**sheets) -> bytes:
    made, out = Workbook(), io.BytesIO()
    made.remove(made.active)
    for name, rows in sheets.items():
        sheet = made.create_sheet(name)
        for row in rows:
            sheet.append(row)
    made.save(out)
    return out.getvalue()


def archive(**members: str | bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    return out.getvalue()


def text(value: object, **how) -> str:
    return json.dumps(value, ensure_ascii=False, **how)


OBJECTS = [{"대화": said, "요약": meant} for said, meant in TALKS]
HUB = {"numberOfItems": 6, "data": [
    {"header": {"dialogueInfo": {"dialogueID": f"u{i}", "topic": "식사", "numberOfTurns": 2}, "participantsInfo": [{"participantID": "P01"}]},
     "body": {"dialogue": [{"turnID": f"T{n}", "participantID": turn.split(": ")[0], "utterance": turn.split(": ")[1]}
                           for n, turn in enumerate(said.split("\n"))], "summary": meant}} for i, (said, meant) in enumerate(TALKS)]}
TREES = [{"id": f"n{i}", "input": {"conversation": [{"speaker": turn.split(": ")[0], "utterance": turn.split(": ")[1]}
                                                      for turn in said.split("\n")]}, "output": meant} for i, (said, meant) in enumerate(TALKS)]
LABELLED = {"info": {"tool": "v2"}, "documents": [{"id": i, "text": [[{"index": n, "sentence": turn} for n, turn in enumerate(said.split("\n"))]],
                                                    "abstractive": [meant]} for i, (said, meant) in enumerate(TALKS)]}

GOOD = {
    "Excel 내보내기.xlsx": book(Sheet1=[["번호", "대화 내용", "요약"], *([i, *row] for i, row in enumerate(TALKS))]),
    "제목이 위에.xlsx": book(Sheet1=[["2026년 상담 기록"], [], ["대화", None, "요약"], *([said, None, meant] for said, meant in TALKS)], Sheet2=[]),
    "cp949.csv": table("대화", "요약").encode("cp949"),
    "another case.csv": "\ufeff" + table(" Document ", "TARGET"),
    "본문.csv": "\ufeff" + table("본문", "요약문"),
    "article.tsv": table("article", "highlights", sep="\t"),
    "질문.csv": table("질문", "답변"),
    "semicolons.csv": "\ufeff" + table("대화내용", "요약", sep=";"),
    "sep.csv": "\ufeffsep=;\r\n" + table("대화", "요약", sep=";"),
    "Unicode text.tsv": table("대화", "요약", sep="\t").encode("utf-16"),
    "labels.json": text(OBJECTS, indent=2),
    "labels in cp949.json": text(OBJECTS, indent=2).encode("cp949"),
    "hub.json": text(HUB),
    "trees.json": text(TREES, indent=1),
    "trees.jsonl": "".join(text(one) + "\n" for one in TREES),
    "sentences.json": text(LABELLED),
    "by id.json": text({f"d{i}": one for i, one in enumerate(OBJECTS)}),
    "pandas.json": text({name: {str(i): one[name] for i, one in enumerate(OBJECTS)} for name in ("대화", "요약")}),
    "lists.json": text({name: [one[name] for one in OBJECTS] for name in ("대화", "요약")}),
    "lines.json": "".join(text(one) + "\n" for one in OBJECTS),
    "talks.csv.gz": gzip.compress(table("dialogue", "summary").encode()),
    "talks.jsonl.gz": gzip.compress("".join(text(one) + "\n" for one in OBJECTS).encode()),
    "talks.zip": archive(**{"__MACOSX/talks/._a.csv": b"\0", "talks/.DS_Store": b"\0", "talks/a.csv": table("dialogue", "summary")}),
    "book.zip": archive(**{"상담.xlsx": book(상담=[["대화", "요약"], *TALKS])}),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_people_have_is_read(tmp_path, name):
    rows, report = load_dialogues(put(tmp_path, name, GOOD[name]))
    assert [(row.dialogue, *row.summaries) for row in rows] == TALKS
    assert len({row.fname for row in rows}) == 6 and not report.problems
    assert report.files[0].sha256 and report.files[0].bytes


def test_ids_are_made_of_file_and_row_and_given_ones_stay(tmp_path):
    rows, report = load_dialogues(put(tmp_path, "상담 기록.csv", table("대화", "요약")))
    assert [row.fname for row in rows] == [f"상담-기록-{i}" for i in range(1, 7)]
    assert "no column 'fname': rows are called after their file and their number in it" in report.files[0].notes
    rows = load_dialogues(put(tmp_path, "ids.xlsx", GOOD["Excel 내보내기.xlsx"])).rows
    assert [row.fname for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert load_dialogues(put(tmp_path, "hub.json", GOOD["hub.json"])).rows[1].fname == "u1"


def test_rows_of_two_files_of_one_name_stay_apart(tmp_path):
    one, two = (put(tmp_path, f"{place}/talks.csv", table("대화", "요약", rows=rows)) for place, rows in (("a", TALKS[:3]), ("b", TALKS[3:])))
    rows, report = load_dialogues([one, two])
    assert len({row.fname for row in rows}) == 6 and not report.problems


def test_what_was_taken_is_said(tmp_path):
    notes = load_dialogues(put(tmp_path, "x.xlsx", GOOD["제목이 위에.xlsx"])).report.files[0].notes
    assert notes[:3] == ["sheet 'Sheet1'", "1 row above the header passed over", "column '대화' read as dialogue"]
    notes = load_dialogues(put(tmp_path, "x.zip", GOOD["talks.zip"])).report.files[0].notes
    assert notes[:2] == ["talks/a.csv in the archive", "not read in it: __MACOSX/talks/._a.csv, talks/.DS_Store"]
    assert "rows are those of 'data'" in load_dialogues(put(tmp_path, "x.json", GOOD["hub.json"])).report.files[0].notes


def test_a_sheet_that_explains_the_others_is_passed_over_and_said(tmp_path):
    told = book(안내=[["이 파일을 읽는 법"], ["첫 줄은 제목이다."]], 상담=[["대화", "요약"], *TALKS])
    rows, report = load_dialogues(put(tmp_path, "x.xlsx", told))
    assert len(rows) == 6 and report.files[0].notes[:2] == ["sheet '상담'", "sheets without the columns, not read: 안내"]


SHEETS = book(**{"1월": [["대화", "요약"], *TALKS[:2]], "2월": [["대화", "요약"], *TALKS[2:]]})
TABLES = text({"a": OBJECTS[:2], "b": OBJECTS[2:]})
FILES = archive(**{"a.csv": table("대화", "요약", rows=TALKS[:2]), "b.csv": table("대화", "요약", rows=TALKS[2:])})

BAD = {
    "two.csv": (table(), ["has no column 'dialogue'", "seems to have no header, put the line dialogue,summary above it", "-p columns dialogue=...,summary=..."]),
    "odd.csv": (table("상담", "결과"), ["has no column 'summary' (it has 상담, 결과)", "-p columns summary=..."]),
    "both.csv": (table("본문", "내용"), ["'본문' and '내용', which could all be 'dialogue'", "-p columns dialogue=본문"]),
    "sheets.xlsx": (SHEETS, ["several sheets with rows (1월, 2월): name one, as in FILE.xlsx#1월"]),
    "tables.json": (TABLES, ["several arrays of objects (a, b): name one, as in FILE.json#a"]),
    "files.zip": (FILES, ["2 data files in it (a.csv, b.csv): name one, as in files.zip#a.csv"]),
    "empty.xlsx": (book(Sheet1=[]), ["is a workbook without a row in it"]),
    "old.xlsx": (b"\xd0\xcf\x11\xe0" + b"\0" * 600, ["protected by a password, or in the format before 2007"]),
    "cut.json": (text(OBJECTS)[:-40], ["is not readable as JSON after"]),
    "web.json": ("<html></html>", ["neither an array nor an object begins here"]),
    "empty.json": ("[]", ["holds no row with named values"]),
    "cut.csv.gz": (GOOD["talks.csv.gz"][:-12], ["cannot be unpacked", "copy or download it again"]),
    "empty.zip": (archive(**{"notes.hwp": "x", "__MACOSX/a.csv": "x"}), ["has no data file in it (it has notes.hwp, __MACOSX/a.csv)"]),
    "away.zip": (archive(**{"../a.csv": table("대화", "요약")}), ["has no data file in it (it has ../a.csv)"]),
    "talk.txt": ("민수: 점심 먹었어?", ["plain text has no columns, so put the texts into a table, a row each"]),
    "old.xls": (b"\xd0\xcf\x11\xe0", ["is not a CSV", "save its table as CSV or .xlsx"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path, name):
    content, words = BAD[name]
    with pytest.raises(DataError) as caught:
        load_dialogues(put(tmp_path, name, content))
    message = str(caught.value).replace(str(tmp_path), "")
    assert all(word in message for word in words) and "\n" not in message and len(message) < 400, message


@pytest.mark.parametrize(("name", "content", "inside"), [
    ("sheets.xlsx", SHEETS, "2월"), ("tables.json", TABLES, "b"), ("files.zip", FILES, "b.csv")])
def test_what_is_named_in_a_file_is_read(tmp_path, monkeypatch, name, content, inside):
    path = put(tmp_path, name, content)
    rows, report = load_dialogues(f"{path}#{inside}")
    assert [row.dialogue for row in rows] == [said for said, _ in TALKS[2:]]
    assert report.files[0].name.endswith(f"{name}#{inside}")
    with pytest.raises(DataError, match="nothere"):
        load_dialogues(f"{path}#nothere")
    monkeypatch.chdir(tmp_path)
    assert [row.dialogue for row in load_dialogues(f"{name}#{inside}").rows] == [row.dialogue for row in rows]


def test_a_table_that_is_alone_takes_no_name(tmp_path):
    with pytest.raises(DataError, match="holds one table, so there is no 'a' in it: leave #a out"):
        load_dialogues(f"{put(tmp_path, 'x.csv', table('대화', '요약'))}#a")


@pytest.mark.parametrize(("columns", "kept"), [("dialogue=내용,summary=요지", "내용"), ("summary=요지, dialogue=본문", "본문")])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "xlsx"])
def test_a_person_says_which_column_is_which(tmp_path, kind, columns, kept):
    head, rows = ["내용", "본문", "요약", "요지"], [(f"내용 {i}", f"본문 {i}", "아니다", f"요지 {i}") for i in range(3)]
    made = [dict(zip(head, row)) for row in rows]
    content = {"csv": table(*head, rows=rows), "jsonl": "".join(map(lambda one: text(one) + "\n", made)), "json": text(made),
               "xlsx": book(Sheet1=[head, *rows])}[kind]
    found, report = load_dialogues(put(tmp_path, f"x.{kind}", content), columns=columns)
    assert [(row.dialogue, row.summaries) for row in found] == [(f"{kept} {i}", (f"요지 {i}",)) for i in range(3)]
    assert f"column '{kept}' read as dialogue" in report.files[0].notes


@pytest.mark.parametrize(("columns", "message"), [
    ("dialogue=말", "has no column '말', asked for as dialogue (it has 본문, 내용)"),
    ("talk=본문", "there is no field 'talk', only fname, dialogue, summary, topic"),
    ("dialogue=본문,summary=본문", "'본문' occurs twice"),
    ("dialogue=본문,dialogue=내용", "'dialogue' occurs twice"),
    ("본문", "'본문' is not of the form field=column")])
def test_columns_that_mean_nothing_or_two_things_are_refused(tmp_path, columns, message):
    with pytest.raises(DataError) as caught:
        load_dialogues(put(tmp_path, "x.csv", table("본문", "내용")), columns=columns)
    assert message in str(caught.value)


def test_every_study_takes_columns(tmp_path):
    triples = put(tmp_path, "t.csv", table("질문", "답", rows=[("몇 시에 열어요?", "아홉 시에 엽니다."), ("어디예요?", "역 앞입니다.")]))
    assert [one.query for one in load_triples(triples, columns="query=질문,positive=답").triples] == ["몇 시에 열어요?", "어디예요?"]
    lines = put(tmp_path, "t.jsonl", text({"질문": "어디예요?", "query": "아니다", "답": "역 앞입니다."}) + "\n")
    assert load_triples(lines, columns="query=질문,positive=답").triples[0].query == "어디예요?"
    notes = put(tmp_path, "n.csv", table("메모", "글", rows=[("첫 글", "아니다"), ("둘째 글", "아니다")]))
    assert read_texts(str(notes), columns="text=메모")[0] == ["첫 글", "둘째 글"]
    found = texts_of_coref(Source(str(notes), columns="text=메모"), RECIPES["plain"].quality, DataReport("x"), Counter())
    assert [one.text for one in found] == ["첫 글", "둘째 글"]
    config = configure({"model": "kobart", "data": str(notes), "columns": "dialogue=메모,summary=글"})
    assert config.rows.columns == "dialogue=메모,summary=글"


ASKED = [("몇 시에 열어요?", "아홉 시에 엽니다."), ("어디예요?", "역 앞입니다.")]


@pytest.mark.parametrize("head", [("질문", "답변"), ("question", "answer"), ("Query", "Passage"), ("anchor", "positive"), (" 문의 ", "정답")])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "xlsx"])
def test_pairs_of_questions_and_answers_are_found_by_name(tmp_path, kind, head):
    made = [dict(zip(head, row)) for row in ASKED]
    content = {"csv": table(*head, rows=ASKED), "jsonl": "".join(map(lambda one: text(one) + "\n", made)), "json": text(made),
               "xlsx": book(Sheet1=[head, *ASKED])}[kind]
    triples, report = load_triples(put(tmp_path, f"x.{kind}", content))
    assert [(one.query, one.positive) for one in triples] == ASKED and not report.problems
    aliases = [f"column '{name.strip()}' read as {field}" for name, field in zip(head, ("query", "positive"))
               if name.casefold() not in ("query", "anchor", "positive")]
    assert [note for note in report.files[0].notes if "read as" in note] == aliases


def test_a_passage_is_preferred_to_its_short_answer_and_two_passages_are_refused(tmp_path):
    rows = [("어디예요?", "가게는 역 앞에 있습니다.", "역 앞", "시장 안입니다.")]
    (triple,), report = load_triples(put(tmp_path, "q.csv", table("질문", "지문", "정답", "오답", rows=rows)))
    assert (triple.query, triple.positive, triple.negatives) == ("어디예요?", "가게는 역 앞에 있습니다.", ("시장 안입니다.",))
    assert "column '지문' read as positive" in report.files[0].notes
    twice = put(tmp_path, "two.csv", table("질문", "지문", "본문", "정답", rows=rows))
    with pytest.raises(DataError, match="지문 and 본문 differ: remove one, or say which, as in -p columns positive=지문"):
        load_triples(twice)
    assert load_triples(twice, columns="positive=본문").triples[0].positive == "역 앞"


def test_plain_text_is_a_dialogue_where_it_shall_only_be_summarised(tmp_path):
    chat = "2026년 3월 2일 월요일\n[민수] [오전 9:01] 점심 뭐 먹을까?\n[지영] [오전 9:02] 김밥 어때?"
    put(tmp_path, "chats/카톡.txt", (chat + "\r\n").replace("\n", "\r\n").encode("cp949"))
    put(tmp_path, "chats/memo.md", "\ufeff# 회의\n\n다음 주에 다시 모인다.\n")
    rows = load_dialogues(tmp_path / "chats", need_summary=False).rows
    assert rows == [Dialogue("memo-1", "# 회의\n\n다음 주에 다시 모인다."), Dialogue("카톡-1", chat)]
    put(tmp_path, "chats/a.csv", table("대화"  , rows=[(said,) for said, _ in TALKS]))
    rows, report = load_dialogues(tmp_path / "chats", need_summary=False)
    assert len(rows) == 6 and report.notes == ["not read in …/chats: memo.md, 카톡.txt"]


def test_a_folder_of_splits_in_any_format(tmp_path):
    for name, part in (("train.xlsx", TALKS[:4]), ("dev.xlsx", TALKS[4:5]), ("test.xlsx", TALKS[5:])):
        put(tmp_path, f"data/{name}", book(Sheet1=[["대화", "요약"], *part]))
    put(tmp_path, "data/._train.xlsx", b"\0")
    put(tmp_path, "data/.DS_Store", b"\0")
    splits = load_splits(configure({"model": "kobart", "data": str(tmp_path / "data")}))
    assert {name: len(rows) for name, rows in splits.rows.items()} == {"train": 4, "dev": 1, "test": 1}
    assert splits.notes[0] == "not read in …/data: .DS_Store, ._train.xlsx"


def test_packed_shards_are_one_table(tmp_path):
    for i in range(2):
        put(tmp_path, f"d/train-0000{i}-of-00002.jsonl.gz", gzip.compress("".join(text(one) + "\n" for one in OBJECTS[3 * i : 3 * i + 3]).encode()))
    assert [row.dialogue for row in load_dialogues(tmp_path / "d").rows] == [said for said, _ in TALKS]
    (tmp_path / "d/train-00001-of-00002.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"has 1 of 2 shards of train.jsonl.gz, and lacks number 1: copy it, too"):
        load_dialogues(tmp_path / "d")


def test_faults_in_a_workbook_and_in_json_are_located(tmp_path):
    rows = [["번호", "대화", "요약"], [1, "가요?", "간다."], [], [2, None, "온다."], [3, "와요?", "온다.", "남음"], [1, "자요?", "잔다."]]
    report = load_dialogues(put(tmp_path, "x.xlsx", book(Sheet1=rows))).report
    assert [(p.row, p.line, p.kind) for p in report.problems] == [(2, 4, "empty dialogue"), (3, 5, "ragged row"), (4, 6, "duplicate fname")]
    broken = text([{"대화": "가요?", "요약": "간다."}, 7, {"대화": "와요?", "요약": ""}])
    report = load_dialogues(put(tmp_path, "x.json", broken.replace("[{", '[{"대화": "갑니까?", "대화": "가니?", "요약": "간다."}, {', 1))).report
    assert [(p.row, p.kind) for p in report.problems] == [(1, "broken JSON"), (3, "not a row"), (4, "empty summary")]


def test_a_large_json_file_is_read_in_bounded_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "large.json"
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"data": [')
        for i in range(20_000):
            file.write(("," if i else "") + text({"id": i, "글": "가" * 200}, indent=1))
        file.write("]}")
    schema = Schema((Field("글"),), lambda row: Verdict(None if as_text(row.values["글"][0]) else ""))
    tracemalloc.start()
    load_rows(path, schema)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 12_000_000 > 1.5 * peak


def test_a_sheet_is_part_of_a_path_wherever_a_path_is_typed(tmp_path, monkeypatch):
    put(tmp_path, "c#/sheets.xlsx", SHEETS)
    assert parted(str(tmp_path / "c#/sheets.xlsx#2월")) == (str(tmp_path / "c#/sheets.xlsx"), "2월")
    monkeypatch.setenv("TALKS", str(tmp_path / "c#"))
    config = configure({"model": "kobart", "data": "$TALKS/sheets.xlsx#2월"})
    assert config.rows.data == str(tmp_path / "c#/sheets.xlsx#2월")
    moved = placed([type(config.rows)], {"data": "c#/sheets.xlsx#2월"}, tmp_path)
    assert moved["data"] == str(tmp_path / "c#/sheets.xlsx#2월")


# ---- the first ten minutes ------------------------------------------------------------------------------------------

def thirty(folder: Path, ids: bool) -> Path:
    """Thirty dialogues as Excel exports them."""
    rows = [(f"손님: {i}번 방 에어컨이 고장 났어요.\n직원: {i % 7 + 1}시까지 고쳐 드릴게요.", f"{i}번 방 에어컨을 {i % 7 + 1}시까지 고치기로 했다.") for i in range(1, 31)]
    head = ["번호", "대화 내용", "요약"] if ids else ["대화 내용", "요약"]
    return put(folder, "우리 상담.xlsx", book(상담=[head, *([100 + i, *row] if ids else list(row) for i, row in enumerate(rows))]))


FAST = {"model": "kobart", "vocab_size": 400, "max_steps": 4, "eval_steps": 2, "max_target_length": 12, "tracking": "none", "threads": 1,
        "warmup": 0}


def summaries(file: Path) -> dict[str, str]:
    with open(file, encoding="utf-8", newline="") as written:
        return {row["fname"]: row["summary"] for row in csv.DictReader(written)}


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    for figure in ("length_histogram", "score_distribution", "learning_curves"):
        monkeypatch.setattr(charts, figure, lambda *values, **more: None)
    return tmp_path / "runs"


def test_thirty_dialogues_in_an_excel_export(tmp_path, runs):
    data = thirty(tmp_path, ids=False)
    trained = execute("train", tmp_path / "train.ipynb", data=data, name="mine", **FAST)
    assert trained.error is None, trained.error
    assert "우리-상담-" in trained.page and "rows are called after their file and their number in it" in trained.page
    run = trained.names["run"]
    assert read_json(run.path("data.json"))["rows"] == {"train": 27, "dev": 1, "test": 2}
    first = lead_of(run)
    assert first.startswith("주의! ")
    assert "test: 채점한 것이 2개뿐이어서 점수가 우연에 좌우된다." in first
    assert "데이터가 30행뿐이다(train 27, dev 1, test 2)" in first and "`-p holdout none`" in first and "`-p folds 5`" in first
    scored = execute("evaluate", tmp_path / "evaluate.ipynb", run="mine", data=data, name="again")
    assert scored.error is None, scored.error
    (file,) = scored.names["run"].path("predictions").glob("*.csv")
    assert [*summaries(file)] == [f"우리-상담-{i}" for i in range(1, 31)]
    numbered = thirty(tmp_path / "numbered", ids=True)
    done = CliRunner().invoke(command_line(), ["summarize", "mine", str(numbered), "--to", str(tmp_path / "out.csv")])
    assert done.exit_code == 0 and "30 rows read, 0 left out, 30 summarised" in done.output, done.output
    assert [*summaries(tmp_path / "out.csv")] == [str(100 + i) for i in range(30)]


def test_all_rows_are_learnt_from_and_one_item_has_no_interval(tmp_path, runs):
    data = thirty(tmp_path, ids=True)
    trained = execute("train", tmp_path / "train.ipynb", data=data, name="all", holdout="none", **FAST)
    assert trained.error is None, trained.error
    run = trained.names["run"]
    assert read_json(run.path("data.json"))["rows"] == {"train": 30, "dev": 30}
    assert "점수가 없다: 채점할 몫으로 남겨 둔 행이 없다." in lead_of(run)
    alone = put(tmp_path, "one.csv", table("대화", "요약", rows=TALKS[:1]))
    scored = execute("evaluate", tmp_path / "evaluate.ipynb", run="all", data=alone, name="one")
    assert scored.error is None, scored.error
    own = [row for row in results.score_rows(results.read(scored.names["run"]), STUDY.measures)]
    assert own and all(row["n"] == 1 and "[" not in row["ROUGE-1"] and "(n=1)" in row["ROUGE-1"] for row in own)
    assert "채점한 것이 1개뿐이어서" in lead_of(scored.names["run"])
    refused = execute("train", tmp_path / "no.ipynb", "up-to-data", data=data, dev_data=alone, test_data=put(
        tmp_path, "two.csv", table("대화", "요약", rows=TALKS[1:2])), name="no", holdout="none", **FAST)
    assert "holdout=none would have no effect" in refused.error.evalue


def test_few_rows_are_scored_by_models_that_did_not_know_them(tmp_path, runs):
    given = {"data": thirty(tmp_path, ids=True), "name": "crossed", "folds": 3, "tidy": True, **FAST}
    trained = execute("train", tmp_path / "train.ipynb", **given)
    assert trained.error is None, trained.error
    run, ids = trained.names["run"], [str(100 + i) for i in range(30)]
    assert [*summaries(run.path("predictions", "test.csv"))] == ids
    parts = [summaries(run.path("folds", str(i), "predictions", "test.csv")) for i in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(ids)
    rows = {row.fname: row for row in load_dialogues(given["data"]).rows}
    for i, part in enumerate(parts, 1):
        learnt = read_json(run.path("folds", str(i), "data.json"))
        assert learnt["rows"] == {"train": 20, "dev": 20}
        others = Splits({"train": [row for name, row in rows.items() if name not in part]})
        assert learnt["sha256"]["train"] == others.to_dict()["sha256"]["train"]
        assert not run.path("folds", str(i), "model").exists()
    found = results.read(run)
    assert found.own("test").n == 30 and read_json(run.path("data.json"))["rows"] == {"train": 30, "dev": 30, "test": 30}
    assert "데이터가" not in lead_of(run) and "3겹으로 나누어" in trained.page
    before, kept = results.item_scores(run, "test", "morph", "rouge1"), run.path("folds", "1", "fold.json").stat().st_mtime_ns
    for gone in (run.path("metrics.json"), run.path("folds", "3", "fold.json")):
        gone.unlink()
    again = execute("train", tmp_path / "again.ipynb", **given)
    assert again.error is None and results.item_scores(again.names["run"], "test", "morph", "rouge1") == before
    assert run.path("folds", "1", "fold.json").stat().st_mtime_ns == kept, "what has ended is not done again"
    own = execute("evaluate", tmp_path / "own.ipynb", run="crossed")
    assert "has learnt from every row of its run" in own.error.evalue


@pytest.mark.parametrize(("given", "message"), [
    ({"folds": 31}, "folds=31: 30 dialogues cannot be cut into so many: ask for at most 30"),
    ({"folds": 3, "holdout": "none"}, "folds=3 would have no effect because holdout='none'"),
    ({"folds": 3, "test_data": "one.csv"}, "folds=3 would have no effect: rows for test are given")])
def test_folds_that_cannot_be_are_refused(tmp_path, runs, given, message):
    put(tmp_path, "one.csv", table("대화", "요약", rows=TALKS[:1]))
    given = {name: str(tmp_path / value) if name == "test_data" else value for name, value in given.items()}
    with pytest.raises(ParameterError, match=message):
        load_splits(configure({"model": "kobart", "data": str(thirty(tmp_path, ids=True)), **given}))
