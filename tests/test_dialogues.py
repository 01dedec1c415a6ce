"""What the chapter of dialogues cannot say itself: every kind of bad file, nothing lost under damage, atomic saving."""

import csv
import io
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from korlab.core import rows as reader
from korlab.core import splitting
from korlab.core.accounts import DataError, label
from korlab.core.encodings import misread
from korlab.core.errors import LabError
from korlab.core.files import FileError, read_json, write_json
from korlab.core.schemas import text_fault
from korlab.core.text import PLACEHOLDER, normalize, text_hash, tidy
from korlab.experiment import runs
from korlab.experiment.params import ParameterError
from korlab.experiment.studies import configure
from korlab.report import pages
from korlab.summarization import study
from korlab.summarization.data import load_splits
from korlab.summarization.dialogues import Dialogue, check_overlap, load_dialogues, save_dialogues
from korlab.summarization.evaluation import longest_turn

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HEAD = "fname,dialogue,summary\n"
ROWS = [
    Dialogue("d_0", "#Person1#: 점심 먹었어요?\n#Person2#: 아직요, 같이 갈까요?", ("두 사람은 점심을 먹으려 한다.",)),
    Dialogue("d_1", '#Person1#: 뭐라고 했어요?\n#Person2#: "괜찮다"고 했어요.', ("#Person2#는 괜찮다고 했다.",)),
    Dialogue("d_2", "#Person1#: 세 시에 만나요; 늦지 마세요.", ("#Person1#은 세 시에 만나자고 한다.",)),
]


def as_csv(rows, delimiter=",", newline="\n"):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["fname", "dialogue", "summary"])
    writer.writerows([row.fname, row.dialogue, *row.summaries] for row in rows)
    return out.getvalue().replace("\n", newline)


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


# ---- formats ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("suffix", "delimiter"), [
    ("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t"), ("TSV", ",")])
@pytest.mark.parametrize(("codec", "bom", "name"), [
    ("utf-8", b"", "UTF-8"), ("utf-8-sig", b"", "UTF-8 with BOM"), ("cp949", b"", "CP949"), ("euc_kr", b"", "CP949"),
    ("utf-16-le", b"\xff\xfe", "UTF-16 LE"), ("utf-16-be", b"\xfe\xff", "UTF-16 BE")])
def test_same_rows_in_every_dress(tmp_path, codec, bom, name, suffix, delimiter, newline):
    path = put(tmp_path, f"x.{suffix}", bom + as_csv(ROWS, delimiter, newline).encode(codec))
    rows, report = load_dialogues(path)
    assert rows == ROWS
    assert (report.files[0].encoding, report.files[0].delimiter, report.problems) == (name, delimiter, [])


def test_columns_in_any_order_case_and_company(tmp_path):
    head = "Unnamed: 0,SUMMARY2, Dialogue ,Topic,FName,summary 1,index\n"
    path = put(tmp_path, "x.csv", head + "0,둘째.,가요?,일상,d_0,첫째.,9\n")
    rows, report = load_dialogues(path)
    assert rows == [Dialogue("d_0", "가요?", ("첫째.", "둘째."), "일상")]
    assert report.files[0].notes == ["ignored columns: Unnamed: 0, index"]


def test_alias_is_told_and_the_real_name_wins(tmp_path):
    path = put(tmp_path, "x.csv", "id,text,summary\n7,가요?,간다.\n")
    rows, report = load_dialogues(path)
    assert rows[0].fname == "7"
    assert report.files[0].notes == ["column 'id' read as fname", "column 'text' read as dialogue"]
    path = put(tmp_path, "y.csv", "id,fname,dialogue,summary\n7,d_0,가요?,간다.\n")
    assert load_dialogues(path).rows[0].fname == "d_0"


def test_references_keep_numerical_order(tmp_path):
    names = [f"summary{i}" for i in (10, 2, 1)]
    rows = load_dialogues(put(tmp_path, "x.csv", f"fname,dialogue,{','.join(names)}\nd_0,가요?,열.,둘.,하나.\n")).rows
    assert rows[0].summaries == ("하나.", "둘.", "열.")


def test_parquet_jsonl_and_memory_agree(tmp_path):
    import pandas as pd
    table = pd.DataFrame([{"dialogue": r.dialogue, "summary": r.summaries[0], "fname": r.fname, "n": 3} for r in ROWS])
    table.set_index("n").to_parquet(tmp_path / "x.parquet")
    table.to_json(tmp_path / "x.jsonl", orient="records", lines=True, force_ascii=False)
    for source in (tmp_path / "x.parquet", tmp_path / "x.jsonl", table.to_dict("records"), ROWS):
        rows, report = load_dialogues(source)
        assert rows == ROWS
        balanced(report)


def test_pandas_reads_the_same_fields(tmp_path):
    import pandas as pd
    path = put(tmp_path, "x.csv", as_csv(ROWS))
    peer = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert [[r.fname, r.dialogue, r.summaries[0]] for r in load_dialogues(path).rows] == peer.values.tolist()


def test_folder_and_list_read_files_by_name(tmp_path):
    put(tmp_path, "d/b.jsonl", json.dumps({"fname": "d_9", "dialogue": "와요?", "summary": "온다."}))
    put(tmp_path, "d/a.csv", as_csv(ROWS))
    put(tmp_path, "d/.hidden.csv", "nothing")
    put(tmp_path, "d/README.md", "nothing")
    rows, report = load_dialogues(tmp_path / "d")
    assert [row.fname for row in rows] == ["d_0", "d_1", "d_2", "d_9"]
    assert [Path(file.name).name for file in report.files] == ["a.csv", "b.jsonl"]
    assert report.notes == ["not read in …/d: .hidden.csv, README.md"]
    rows, report = load_dialogues([tmp_path / "d/a.csv", str(tmp_path / "d/a.csv")])
    assert (len(rows), report.left_out) == (3, {"duplicate fname": 3})


def test_need_summary_false_loads_a_test_set(tmp_path):
    path = put(tmp_path, "x.csv", "fname,dialogue\nd_0,가요?\n")
    assert load_dialogues(path, need_summary=False).rows == [Dialogue("d_0", "가요?")]
    path = put(tmp_path, "y.csv", "fname,dialogue,summary\nd_0,가요?,\nd_1,와요?,온다.\n")
    assert [row.summaries for row in load_dialogues(path, need_summary=False).rows] == [(), ("온다.",)]


# ---- faults of whole files --------------------------------------------------------------------------------------

@pytest.mark.parametrize("policy", ["report", "strict"])
@pytest.mark.parametrize(("name", "content", "kind", "message"), [
    ("x.csv", b"", "0 bytes", "x.csv is empty (0 bytes): copy or download it again"),
    ("x.parquet", b"", "0 bytes", "x.parquet is empty (0 bytes): copy or download it again"),
    ("x.csv", b"\n \r\n", "0 bytes", "x.csv holds nothing but blank lines: copy or download it again"),
    ("x.jsonl", b"\n\n", "0 bytes", "x.jsonl holds nothing but blank lines: copy or download it again"),
    ("x.csv", HEAD.encode(), "header only", "x.csv has a header but no rows: add rows or name another file"),
    ("x.csv", HEAD.strip().encode("utf-16"), "header only", "x.csv has a header but no rows: add rows or name another"),
    ("x.csv", b"fname,summary\na,b\n", "missing column", "x.csv has no column 'dialogue' (it has fname, summary)"),
    ("x.csv", b"fname,dialogue\na,b\n", "missing column",
     "give that name to the column that holds it, or load it with need_summary=False"),
    ("x.jsonl", b'{"fname": "a", "summary": "b"}', "missing column",
     "x.jsonl has no column 'dialogue' (it has fname, summary)"),
    ("x.csv", b"fname,text,document,summary\na,b,c,d\n", "ambiguous column",
     "x.csv has columns 'text' and 'document', which could all be 'dialogue': rename or remove one"),
    ("x.csv", b"fname,dialogue,Dialogue,summary\na,b,c,d\n", "ambiguous column",
     "has columns 'dialogue' and 'Dialogue'"),
    ("x.csv", "fname,dialogue,summary\na,café,crème\n".encode("latin-1"), "undecodable bytes",
     "x.csv is not text in UTF-8, UTF-16 or CP949 (not UTF-8: byte 28 does not fit; not CP949: byte 28 does not fit)"),
    ("x.csv", HEAD.encode("utf-16-le"), "wrong encoding", "x.csv is in UTF-16 LE without a byte-order mark: save it as UTF-8, or say"),
    ("x.csv", b'"fname,dialogue,summary\na,b,c\n', "broken quoting",
     "x.csv has a quote in its header that is never closed"),
    ("x.parquet", b"PAR1 but not really", "broken Parquet", "x.parquet is not readable as Parquet ("),
    ("x.jsonl", b'[{"fname": "a"}]', "no objects",
     "x.jsonl holds no row with named values: write one JSON object per line"),
])
def test_a_file_of_no_use_stops_in_one_sentence(tmp_path, name, content, kind, message, policy):
    path = put(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        load_dialogues(path, policy=policy)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert [(p.row, p.kind) for p in caught.value.report.problems] == [(0, kind)]


@pytest.mark.parametrize(("source", "message"), [
    ("data/x.csv", "data/x.csv does not exist: check the path (a dataset on the hub is written owner/name)"),
    ("./nowhere", "./nowhere does not exist: check the path"),
    ("here/there/x", "here/there/x does not exist: check the path"),
    ("folder/x", "folder/x does not exist: check the path"),
    ("folder", "folder is a folder without a CSV, TSV, JSONL, JSON, XLSX or Parquet file in it"),
    ("folder/x.hwp", "folder/x.hwp is not a CSV, TSV, JSONL, JSON, XLSX or Parquet file by its name, nor one packed as .gz or .zip: save"),
])
def test_a_path_that_does_not_exist_is_never_sought_on_the_hub(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reader, "hub_dataset", lambda *args, **kwargs: pytest.fail("asked the hub"))
    put(tmp_path, "folder/x.hwp", b"PK")
    with pytest.raises(DataError) as caught:
        load_dialogues(source)
    assert message in str(caught.value)


def test_one_useless_file_among_good_ones_is_reported(tmp_path):
    good, empty = put(tmp_path, "a.csv", as_csv(ROWS)), put(tmp_path, "b.csv", HEAD)
    rows, report = load_dialogues([good, empty])
    assert rows == ROWS
    assert [(p.file, p.row, p.kind) for p in report.problems] == [(str(empty), 0, "header only")]
    with pytest.raises(DataError, match=r"1 problem, and policy='strict' lets none pass \(.*b.csv has a header but no"):
        load_dialogues([good, empty], policy="strict")


@pytest.mark.parametrize("source", [[], {"fname": "a"}, None, 7, ["x.csv", {"fname": "a"}]])
def test_what_is_no_source(source):
    with pytest.raises(TypeError, match="is no source: give a path, a hub id"):
        load_dialogues(source)


def test_policy_is_checked_before_any_work():
    with pytest.raises(ValueError, match="policy='lenient': choose 'report' or 'strict'"):
        load_dialogues("data/x.csv", policy="lenient")


# ---- faults of rows ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("line", "kind", "detail"), [
    ("b,,요약.", "empty dialogue", "fname b"),
    ("b, <br> ,요약.", "empty dialogue", "fname b"),
    ("b,대화,", "empty summary", "fname b"),
    ("b,NaN,요약.", "NA-like dialogue", "fname b: 'NaN'"),
    ("b,대화,-", "NA-like summary", "fname b: '-'"),
    ("b,대화,None", "NA-like summary", "fname b: 'None'"),
    (" ,대화,요약.", "blank fname", ""),
    ("NA,대화,요약.", "NA-like fname", "'NA'"),
    ("a,다른 대화,요약.", "duplicate fname", "fname a is already the name of row 1 of"),
    ("#Person2#: 네,대화,요약.", "broken fname", "'#Person2#: 네' is not an id"),
    ("b,대화", "ragged row", "2 fields where the header has 3"),
    ("b,대화,요약.,남음", "ragged row", "4 fields where the header has 3"),
    ("b,대\0화,요약.", "NUL byte", "in field 2"),
    (f"b,{'가' * 301},요약.", "too long", "fname b: the dialogue has 301 characters, more than 300"),
    (f"b,대화,{'가' * 301}", "too long", "fname b: the summary has 301 characters, more than 300"),
    ('b,"대화"다,요약.', "broken quoting", "',' expected after '\"'; left out as far as line 5"),
])
def test_a_problem_row_is_left_out_and_listed(tmp_path, line, kind, detail):
    path = put(tmp_path, "x.csv", f'{HEAD}a,"#Person1#: 가요?\n#Person2#: 네.",간다.\n\n{line}\nc,와요?,온다.\n')
    rows, report = load_dialogues(path, max_chars=300)
    assert [row.fname for row in rows] == ["a", "c"]
    (problem,) = report.problems
    assert (problem.file, problem.row, problem.line, problem.kind) == (str(path), 2, 5, kind)
    assert detail in problem.detail
    assert report.left_out == {kind: 1}
    balanced(report)
    with pytest.raises(DataError) as caught:
        load_dialogues(path, max_chars=300, policy="strict")
    assert f"{path}, row 2 (line 5): {kind}" in str(caught.value)


@pytest.mark.parametrize(("line", "kind", "detail"), [
    ('{"fname": "b", "dialogue": "대화"', "broken JSON", "Expecting ',' delimiter"),
    ('["b", "대화", "요약."]', "broken JSON", "a list where an object is expected"),
    ('{"fname": "b", "fname": "c", "dialogue": "대화", "summary": "요약."}', "broken JSON", "a key occurs twice"),
    ('{"fname": "b", "dialogue": "대화"}', "empty summary", "fname b"),
    ('{"fname": "b", "dialogue": null, "summary": "요약."}', "empty dialogue", "fname b"),
    ('{"fname": "b", "dialogue": NaN, "summary": "요약."}', "empty dialogue", "fname b"),
    ('{"fname": "b", "dialogue": ["대화"], "summary": "요약."}', "not text", "the dialogue is not text"),
    ('{"fname": "b", "dialogue": "\\ud83d", "summary": "요약."}', "undecodable bytes", "a lone surrogate"),
    ('{"fname": "b", "dialogue": "\\u0000", "summary": "요약."}', "NUL byte", "in the dialogue"),
    ("[" * 100_000, "broken JSON", ""),
])
def test_a_broken_json_line_is_one_problem_row(tmp_path, line, kind, detail):
    good = '{"fname": "%s", "dialogue": "%s", "summary": "간다."}'
    path = put(tmp_path, "x.jsonl", "\n".join([good % ("a", "가요?"), "", line, good % ("c", "와요?")]))
    rows, report = load_dialogues(path)
    assert [row.fname for row in rows] == ["a", "c"]
    assert [(p.row, p.line, p.kind) for p in report.problems] == [(2, 3, kind)]
    assert detail in report.problems[0].detail


def test_all_faults_of_a_row_are_listed_and_it_counts_once(tmp_path):
    report = load_dialogues(put(tmp_path, "x.csv", HEAD + "a,가요?,간다.\n,nan,\n")).report
    assert [p.kind for p in report.problems] == ["blank fname", "NA-like dialogue", "empty summary"]
    assert report.left_out == {"blank fname": 1}


def test_no_usable_row_stops_whatever_the_policy(tmp_path):
    path = put(tmp_path, "x.csv", HEAD + "a,,\nb,대화\n")
    told = r"x.csv has no row that can be used \(.*row 1 \(line 2\): empty dialogue: fname a; .*: ragged row: 2 fields"
    with pytest.raises(DataError, match=told):
        load_dialogues(path)


def test_strict_names_the_first_problems_and_the_number_of_all(tmp_path):
    path = put(tmp_path, "x.csv", HEAD + "a,가요?,간다.\n" + "".join(f"b_{i},대화,\n" for i in range(12)))
    with pytest.raises(DataError) as caught:
        load_dialogues(path, policy="strict")
    text = str(caught.value)
    assert "has 12 problems, and policy='strict' lets none pass" in text
    assert text.count("empty summary") == 5 and "; and 7 more)" in text
    assert len(caught.value.report.problems) == 12


def test_duplicate_dialogue_and_missing_reference_are_warnings(tmp_path):
    path = put(tmp_path, "x.csv", "fname,dialogue,summary1,summary2\na,가요?,간다.,감.\nb,가요? ,간다.,\n")
    rows, report = load_dialogues(path, policy="strict")
    assert [row.summaries for row in rows] == [("간다.", "감."), ("간다.",)]
    assert [(p.kind, p.detail) for p in report.warnings] == [
        ("fewer references", "fname b: 1 of 2 are missing"),
        ("duplicate dialogue", "fname b has the same dialogue as a")]
    assert report.rows_left_out == 0


def test_normal_form_and_cleaning_are_counted(tmp_path):
    decomposed = unicodedata.normalize("NFD", "가요?")
    path = put(tmp_path, "x.csv", f"{HEAD}a,{decomposed},간다.\nb,와요?<br>네\\n네,온다.\nc,자요?,잔다.\n")
    rows, report = load_dialogues(path)
    assert [row.dialogue for row in rows] == ["가요?", "와요?\n네\n네", "자요?"]
    assert (report.nfc_changed, report.cleaned) == (1, 1)


def test_a_long_quoted_field_is_no_syntax_error(tmp_path):
    path = put(tmp_path, "x.csv", f'{HEAD}a,"{"가" * 200_000}",간다.\nb,와요?,온다.\n')
    assert load_dialogues(path).report.left_out == {"too long": 1}
    assert len(load_dialogues(path, max_chars=None).rows[0].dialogue) == 200_000
    assert csv.field_size_limit() == 131_072


def test_an_open_quote_takes_only_its_own_row(tmp_path):
    text = as_csv([Dialogue(f"d_{i}", f"#Person1#: 가요, {i}?\n#Person2#: 네, 네, 네.", ("간다.",)) for i in range(9)])
    text = text.replace('네."', "네.", 1).replace('"#Person1#: 가요, 5', '""#Person1#: 가요, 5')
    path = put(tmp_path, "x.csv", text)
    rows, report = load_dialogues(path)
    assert [row.fname for row in rows] == [f"d_{i}" for i in (1, 2, 3, 4, 6, 7, 8)]
    assert {p.kind for p in report.problems} == {"broken quoting"}
    balanced(report)


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("speaker", ["#Person2#: 네", "민수: 네"])
def test_a_turn_is_never_taken_for_a_row(tmp_path, speaker, at):
    rows = [Dialogue(f"d_{i}", f"#Person1#: 가요, {i}?\n{speaker}, 그럼,가요.", ("간다.",)) for i in range(4)]
    text = as_csv(rows).split("d_")
    text[at + 1] = text[at + 1].replace('가요.",간다.', "가요.")  # the turn is now three fields wide, like a row
    found, report = load_dialogues(put(tmp_path, "x.csv", "d_".join(text)))
    assert found == rows[:at] + rows[at + 1:]
    assert [(p.row, p.line, p.kind) for p in report.problems] == [(at + 1, 2 * at + 2, "broken quoting")]
    balanced(report)


def test_every_broken_row_counts_when_many_follow_each_other(tmp_path):
    lines = [f'd_{i},"가요?"요,간다.\n' for i in range(1, 51)]
    path = put(tmp_path, "x.csv", HEAD + "d_0,가요?,간다.\n" + "".join(lines))
    assert load_dialogues(path).report.left_out == {"broken quoting": 50}


# ---- damage: nothing is lost silently and nothing is made up ----------------------------------------------------

@pytest.mark.parametrize(("suffix", "codec", "bom"), [
    ("csv", "utf-8", b""), ("csv", "cp949", b""), ("csv", "utf-16-le", b"\xff\xfe"), ("jsonl", "utf-8", b"")])
def test_a_file_cut_at_any_byte_gives_true_rows_only(tmp_path, suffix, codec, bom):
    text = as_csv(ROWS) if suffix == "csv" else save_dialogues(ROWS, tmp_path / "whole.jsonl").read_text("utf-8")
    raw = bom + text.encode(codec)
    for size in range(len(raw)):
        try:
            rows, report = load_dialogues(put(tmp_path, f"x.{suffix}", raw[:size]))
        except DataError as error:
            rows, report = [], error.report
        balanced(report)
        whole = len(rows) - (bool(rows) and rows[-1] != ROWS[len(rows) - 1])
        assert rows[:whole] == ROWS[:whole]
        for row in rows[whole:]:  # the last summary may end early: without quotes nobody can tell
            assert (row.fname, row.dialogue) == (ROWS[whole].fname, ROWS[whole].dialogue)
            assert ROWS[whole].summaries[0].startswith(row.summaries[0])


def test_the_place_of_a_cut_syllable_is_named(tmp_path):
    raw = as_csv(ROWS).rstrip().rstrip(".").encode()
    path = put(tmp_path, "x.csv", raw[:-1])
    rows, report = load_dialogues(path)
    assert rows == ROWS[:2]
    (problem,) = report.problems
    assert (problem.row, problem.line, problem.kind) == (3, 6, "undecodable bytes")
    assert f"the byte at offset {len(raw) - 3} does not fit" in problem.detail
    assert report.files[0].encoding == "UTF-8"


@QUICK
@given(st.data())
def test_any_damage_is_accounted_for(tmp_path, data):
    rows = [Dialogue(f"d_{i}", f"#Person1#: {i}번이요?\n#Person2#: 네, 맞아요.", (f"{i}번이다.",)) for i in range(6)]
    codec = data.draw(st.sampled_from(["utf-8", "cp949", "utf-16"]))
    raw = bytearray(as_csv(rows).encode(codec))
    start = len(HEAD.encode(codec))
    at = data.draw(st.integers(start, len(raw) - 1))
    new = st.binary(max_size=3) | st.sampled_from([b'"', b"\n", b",", b"\0"])
    raw[at:at + data.draw(st.integers(0, 3))] = data.draw(new)
    before = sum(len(as_csv(rows[:i + 1]).encode(codec)) <= at for i in range(len(rows)))
    try:
        found, report = load_dialogues(put(tmp_path, "x.csv", bytes(raw)))
    except DataError as error:
        found, report = [], error.report
    balanced(report)
    assert found[:before] == rows[:before]
    if codec != "utf-16":  # there, one byte more or less makes nonsense of all that follows
        assert sum(row in found for row in rows) >= 4 and sum(row not in rows for row in found) <= 2


CELL = st.sampled_from(["", "nan", "None", "-", "\0", "가요?", "a\nb", 'say "hi"', "<b></b>", "x" * 40])
CELL |= st.text(max_size=12)
VALUE = CELL | st.none() | st.integers() | st.floats() | st.lists(st.text(max_size=3), max_size=2)
TABLE = st.lists(st.lists(CELL, min_size=1, max_size=5), min_size=1, max_size=12)


@QUICK
@given(TABLE)
def test_every_record_is_kept_or_listed(tmp_path, cells):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([["fname", "dialogue", "summary"], *cells])
    raw = out.getvalue().encode("utf-8", "surrogatepass")
    blank = sum(len(row) == 1 and not row[0].strip() for row in cells)
    try:
        report = load_dialogues(put(tmp_path, "x.csv", raw), max_chars=30).report
    except DataError as error:
        report = error.report
    balanced(report)
    if all(p.row for p in report.problems):
        assert report.rows_read == len(cells) - blank


@QUICK
@given(st.lists(st.dictionaries(st.sampled_from(["fname", "dialogue", "summary", "summary2", "x"]), VALUE)
                | st.integers(), min_size=1, max_size=8))
def test_every_row_in_memory_is_kept_or_listed(items):
    try:
        report = load_dialogues(items).report
    except DataError as error:
        report = error.report
    balanced(report)
    if all(p.row for p in report.problems):
        assert report.rows_read == len(items)
    json.dumps(report.to_dict())
    report._repr_markdown_().encode("utf-8", "surrogatepass")


# ---- text that must stay, and text that is none ---------------------------------------------------------------------

def test_angle_brackets_and_backslashes_are_text(tmp_path):
    texts = ["#Person1#: 어제 <EBS 다큐프라임>이랑 <그것이 알고 싶다> 봤어?\n#Person2#: git push <remote> <branch>라고 쳐.",
             "#Person1#: <kim@example.com>으로 보내.\n#Person2#: C:\\new에 있어.", "#Person1#: a<b인 것 같아.\n#Person2#: 나는 c>d라고 봐.",
             "#Person1#: \\n을 쓰면 줄이 바뀌어."]
    rows = [Dialogue(f"d_{i}", text, ("<SBS 뉴스>",)) for i, text in enumerate(texts)]
    loaded, report = load_dialogues(put(tmp_path, "x.csv", as_csv(rows)), policy="strict")
    assert (loaded, report.removed, report.cleaned) == (rows, {}, 0)
    assert report.lengths["turns"]["max"] == 2


def test_whatever_cleaning_removes_is_counted_and_shown(tmp_path):
    path = put(tmp_path, "x.csv", HEAD + "a,<b>가요?</b><br>네.\\n또 봐요.,간다.\nb,<p>와요?</p>,<b></b>\nc,<B class=x>자요?</B>,잔다.\n")
    rows, report = load_dialogues(path)
    assert [row.dialogue for row in rows] == ["가요?\n네.\n또 봐요.", "자요?"]
    assert report.left_out == {"empty summary": 1}  # and what made it empty is told all the same
    assert {kind: (one.times, one.rows) for kind, one in report.removed.items()} == {"<b>": (6, 3), "<br>": (1, 1), r"\n": (1, 1), "<p>": (2, 1)}
    assert report.removed["<b>"].first == f"row 1 of {label(path)}" and "<b>가요?" in report.removed["<b>"].near
    assert json.loads(json.dumps(report.to_dict()))["removed"]["<p>"]["rows"] == 1
    assert "| &lt;b&gt; | 6 | 3 |" in report._repr_markdown_()


@pytest.mark.parametrize("odd", "\u2028\u2029\x85\x0b\x0c")
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_unicode_line_breaks_part_turns(tmp_path, odd, suffix):
    talk = f"#Person1#: 가요?{odd}#Person2#: 네."
    path = save_dialogues([Dialogue("a", talk, ("간다.",)), Dialogue("b", "#Person1#: 자요.", ("잔다.",))], tmp_path / f"x.{suffix}")
    rows, report = load_dialogues(path)
    assert [row.dialogue for row in rows] == ["#Person1#: 가요?\n#Person2#: 네.", "#Person1#: 자요."]
    assert report.lengths["turns"]["max"] == 2 and report.removed[f"U+{ord(odd):04X}"].rows == 1


def test_file_separators_part_nothing(tmp_path):
    (row,), _ = load_dialogues(put(tmp_path, "x.csv", HEAD + "a,#Person1#: 가\x1c나\x1d다\x1e라,간다.\n"))
    assert longest_turn(row.dialogue) == "가 나 다 라"


@pytest.mark.parametrize("name", ["fname", "dialogue", "summary", "topic"])
def test_half_a_character_anywhere_is_one_problem_row(tmp_path, name):
    rows = [{"fname": key, "dialogue": f"{key} 가요?", "summary": "간다.", "topic": "일상"} for key in "abc"]
    rows[1][name] += "\ud83d"
    for source in (rows, put(tmp_path, "x.jsonl", "\n".join(map(json.dumps, rows)))):
        kept, report = load_dialogues(source)
        assert [row.fname for row in kept] == ["a", "c"]
        assert [(p.row, p.kind, p.detail) for p in report.problems] == [
            (2, "undecodable bytes", f"half a character (a lone surrogate) in the {name}")]
        with pytest.raises(DataError, match="row 2.*a lone surrogate"):
            load_dialogues(source, policy="strict")


def test_names_that_are_no_text_can_be_told(tmp_path):
    """A column in JSON, and a file that another system named in CP949."""
    folder = tmp_path / "talks"
    row = json.dumps({"fname": "a", "dialogue": "가요?", "summary": "간다.", "\ud83d": 1})
    put(folder, "a.jsonl", row)
    (folder / os.fsdecode("나.jsonl".encode("cp949"))).write_text(row.replace('"a"', '"b"').replace("가요", "와요"))
    (folder / os.fsdecode("메모.txt".encode("cp949"))).write_text("")
    rows, report = load_dialogues(folder)
    assert [row.fname for row in rows] == ["a", "b"] and report.rows_left_out == 0
    assert r"ignored columns: \ud83d" in report.files[0].notes
    report._repr_markdown_().encode()
    write_json(tmp_path / "data.json", report.to_dict())
    assert read_json(tmp_path / "data.json")["notes"] == report.notes
    (folder / "a.jsonl").write_text("{}")
    with pytest.raises(DataError) as caught:
        load_dialogues(folder, policy="strict")
    str(caught.value).encode()


def test_a_table_cannot_be_saved_with_half_a_character(tmp_path):
    with pytest.raises(FileError, match="x.csv cannot hold half a character"):
        save_dialogues([Dialogue("a", "가요? \ud83d", ("간다.",))], tmp_path / "x.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_run_shows_what_cleaning_removed(tmp_path, monkeypatch):
    """Parameters, loading, data.json and the report's page, without a training."""
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    talks = "".join(f"d_{i},#Person1#: {i}번 <b>가요</b>?\u2028#Person2#: 네.,<SBS 뉴스> {i}번이 간다.\n" for i in range(30))
    given = {"model": "kobart", "data": str(put(tmp_path, "talks.csv", HEAD + talks)), "name": "markup"}
    run = runs.open_run(given)
    study.data(run)
    shown = "\n".join(map(str, pages.sources(run)))
    run.close()
    assert "| train | &lt;b&gt; | 60 | 30 | row 1 of" in shown and "| train | U+2028 | 30 | 30 | row 1 of" in shown
    assert read_json(run.path("data.json"))["sources"][0]["removed"]["U+2028"]["times"] == 30


# ---- saving -----------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30).map(
    lambda text: tidy(normalize(text))).filter(lambda text: text_fault("summary", text) is None and not misread(text))
FNAME = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).map(
    lambda text: normalize(text).strip()).filter(lambda text: text_fault("fname", text) is None and not misread(text))
ROW = st.builds(Dialogue, FNAME.filter(lambda name: not PLACEHOLDER.search(name)), TEXT,
                st.lists(TEXT, min_size=1, max_size=3).map(tuple), st.just("") | TEXT)


@QUICK
@given(st.lists(ROW, min_size=1, max_size=6, unique_by=lambda row: row.fname), st.sampled_from(["csv", "tsv", "jsonl"]))
def test_saved_rows_come_back_equal(tmp_path, rows, suffix):
    loaded, report = load_dialogues(save_dialogues(rows, tmp_path / f"x.{suffix}"), policy="strict")
    assert loaded == rows
    assert (report.nfc_changed, report.cleaned) == (0, 0)


def test_saving_without_summaries_comes_back(tmp_path):
    rows = [Dialogue("a", "가요?"), Dialogue("b", "와요?", (), "일상")]
    for suffix in ("csv", "jsonl"):
        path = save_dialogues(rows, tmp_path / "new" / f"x.{suffix}")
        assert load_dialogues(path, need_summary=False).rows == rows


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch, step):
    path = save_dialogues(ROWS, tmp_path / "x.csv")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        save_dialogues(ROWS[:1], path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.csv"]


@pytest.mark.parametrize(("rows", "name", "message"), [
    ([], "x.csv", "there are no rows to save"), (ROWS, "x.parquet", r"name a \.csv, \.tsv or \.jsonl file")])
def test_what_cannot_be_saved(tmp_path, rows, name, message):
    with pytest.raises(ValueError, match=message):
        save_dialogues(rows, tmp_path / name)


# ---- overlap and hashes -----------------------------------------------------------------------------------------

def test_hash_is_sha256_of_the_plain_form():
    digest = "0413052653777efddd8b3b7697a3e43002c46d76ae31e2e2edb242580b8acd0c"  # printf '같이 갈까요?' | sha256sum
    assert text_hash(unicodedata.normalize("NFD", " 같이\t갈까요?\n")) == digest


def test_overlap_names_splits_number_and_examples():
    moved = [Dialogue(f"t_{row.fname}", row.dialogue.replace("\n", "  \n "), ("다른 요약.",)) for row in ROWS]
    with pytest.raises(DataError) as caught:
        check_overlap({"train": ROWS, "dev": [Dialogue("x", "새 대화")], "test": [*moved, *moved]})
    assert str(caught.value) == (
        "train and test share 3 dialogues (for example d_0 = t_d_0, d_1 = t_d_1, d_2 = t_d_2): "
        "remove them from one of the splits")
    check_overlap({"train": [*ROWS, *ROWS], "dev": [Dialogue("d_0", "새 대화")]})


# ---- the lab's own split ----------------------------------------------------------------------------------------

def retold(dialogue, way):
    """The same dialogue in another of its written forms."""
    return [dialogue, unicodedata.normalize("NFD", dialogue), dialogue.replace("\n", " \n "), dialogue.replace("\n", " ")][way % 4]


def corpus(alone, groups):
    """So many dialogues with one summary each, and groups of rows that summarise one dialogue."""
    rows = [Dialogue(f"a{i}", f"#Person1#: {i}번 손님 오세요.\n#Person2#: 네.", (f"{i}번 손님이 온다.",)) for i in range(alone)]
    for number, size in enumerate(groups):
        talk = f"#Person1#: {number}번 방이 어디예요?\n#Person2#: 위층이에요."
        rows += [Dialogue(f"g{number}_{i}", retold(talk, i), (f"방을 {i}번째로 묻는다.",)) for i in range(size)]
    return rows


SHARING = {  # alone, rows of each group -> rows of train, dev, test that were asked for
    "several summaries of every dialogue": (0, [3] * 30, (81, 5, 4)), "one dialogue fills a tenth": (40, [6], (41, 3, 2)),
    "pairs among many": (60, [2] * 20, (90, 5, 5)), "half is one dialogue": (12, [12], (22, 1, 1)),
}


@pytest.mark.parametrize(("alone", "groups", "asked"), SHARING.values(), ids=SHARING)
def test_rows_of_one_dialogue_stay_on_one_side(alone, groups, asked, tmp_path):
    rows = corpus(alone, groups)
    file = put(tmp_path, "mine.csv", as_csv(rows))
    splits = load_splits(configure({"data": str(file)}))  # its own check of overlap does not fire
    check_overlap(splits.rows)
    names = {name: {row.fname for row in part} for name, part in splits.rows.items()}
    assert sum(map(len, names.values())) == len(rows) and set.union(*names.values()) == {row.fname for row in rows}
    sides = [{name for name, ids in names.items() if any(key.startswith(f"g{number}_") for key in ids)}
             for number in range(len(groups))]
    assert [len(side) for side in sides] == [1] * len(groups)
    near = max(groups)
    assert all(abs(len(names[name]) - n) <= near for name, n in zip(("train", "dev", "test"), asked)) and all(names.values())
    assert splits.notes[-1] == f"{sum(groups)} rows share their dialogue with another and stayed on its side."
    turned = put(tmp_path, "turned.csv", as_csv(rows[::-1]))
    again = load_splits(configure({"data": str(turned)}))
    assert {name: {row.fname for row in part} for name, part in again.rows.items()} == names, "the order of the file is nothing"


def test_test_is_taken_out_of_dev_by_dialogue(tmp_path):
    train, dev = corpus(10, []), [row for row in corpus(0, [2, 2, 2])]
    given = {"data": str(put(tmp_path, "a.csv", as_csv(train))), "dev_data": str(put(tmp_path, "b.csv", as_csv(dev)))}
    splits = load_splits(configure(given))
    assert sorted(len(rows) for rows in splits.rows.values()) == [2, 4, 10] and len(splits.rows["train"]) == 10
    assert splits.notes[-1] == "6 rows share their dialogue with another and stayed on its side."


@pytest.mark.parametrize(("groups", "message"), [
    ([15, 15], "30 rows of 2 dialogues are too few to take dev and test from: give dev_data and test_data, or learn from every row "
               "(-p folds 2 to score by cross-validation, -p holdout none to score nothing)"),
    ([30], "30 rows of 1 dialogue are too few to take dev and test from: give dev_data and test_data, or learn from every row "
           "(-p holdout none to score nothing)")])
def test_too_few_dialogues_to_cut_are_said(groups, message, tmp_path):
    with pytest.raises(ParameterError) as caught:
        load_splits(configure({"data": str(put(tmp_path, "a.csv", as_csv(corpus(0, groups))))}))
    assert str(caught.value) == message


def test_where_nothing_is_shared_the_split_is_the_one_it_was(tmp_path):
    """Ids by the rule of before: a tenth of the rows by the hash of their dialogue, half of these for test."""
    rows = corpus(57, [])
    splits = load_splits(configure({"data": str(put(tmp_path, "a.csv", as_csv(rows)))}))
    order = sorted(rows, key=lambda row: text_hash(row.dialogue))
    assert {row.fname for row in splits.rows["test"]} == {row.fname for row in order[:3]}
    assert {row.fname for row in splits.rows["dev"]} == {row.fname for row in order[3:6]}
    assert splits.notes == ["No dev rows were given: 6 were taken out of train by hash.",
                            "No scored test rows were given: 3 were taken out of dev by hash."]


@QUICK
@given(st.lists(st.integers(1, 9), min_size=3, max_size=40), st.lists(st.integers(1, 30), min_size=2, max_size=3))
def test_a_cut_loses_nothing_and_shares_nothing(sizes, wanted):
    rows = [(number, i) for number, size in enumerate(sizes) for i in range(size)]
    parts = splitting.cut(rows, lambda row: f"{row[0]}번", [*wanted[:-1], max(0, len(rows) - sum(wanted[:-1]))])
    assert sorted(row for part in parts for row in part) == rows and all(parts)
    said = [{number for number, _ in part} for part in parts]
    assert sum(map(len, said)) == len(sizes)


# ---- report -----------------------------------------------------------------------------------------------------

def test_the_report_is_json_and_names_no_folder_of_this_machine(tmp_path):
    path = put(tmp_path, "x.csv", as_csv(ROWS) + "d_0,다시,요약.\n" + "".join(f"e_{i},,요약.\n" for i in range(30)))
    report = load_dialogues(path).report
    made = report.to_dict()
    text = json.dumps(made, ensure_ascii=False) + report._repr_markdown_() + repr(report)
    assert str(tmp_path) not in text and "…/x.csv" in text
    assert made["rows"] == {"read": 34, "kept": 3, "left_out": 31} and len(made["problems"]) == 31
    assert made["files"][0]["sha256"] == __import__("hashlib").sha256(path.read_bytes()).hexdigest()
    assert made["lengths"]["turns"] == {"mean": 1.7, "p50": 2, "p95": 2, "max": 2}
    assert "… and 21 more problems" in text


def test_the_report_is_a_table_in_html_whatever_the_data_say(tmp_path):
    from nbconvert.filters import markdown2html
    path = put(tmp_path, "x.csv", as_csv(ROWS) + 'a|b <script>$x$ [l](u) `c`,,요약.\n"e|<br>*x*","",나.\n')
    html = markdown2html(load_dialogues(path).report._repr_markdown_())
    assert html.count("<table>") == 4 and "<script>" not in html and "<em>" not in html and "<a " not in html
    assert "fname a|b &lt;script&gt;" in html
    widths = {part.split("</tr>")[0].count("<td") for part in html.split("<tr>")[1:]}
    assert widths == {0, 8, 2, 5}


# ---- the splits of a run, and their page --------------------------------------------------------------------------

def splits_of(**given):
    from korlab.experiment.studies import configure
    from korlab.summarization.data import load_splits
    return load_splits(configure({"model": "kobart", **{name: str(value) for name, value in given.items()}}))


def many(count, start=0):
    return [Dialogue(f"d_{i}", f"#Person1#: {i}번이요?\n#Person2#: 네, {i * 7}번 맞아요.", (f"{i}번이다.",)) for i in range(start, start + count)]


def test_too_few_rows_are_told_with_those_left_out(tmp_path):
    raw = as_csv(many(5)).encode() + b"".join(f"e_{i},".encode() + b"\xff\xfe," + "요약.\n".encode() for i in range(5))
    told = (r"5 rows are too few to take dev and test from \(train has 10 rows, of which 5 were left out: undecodable bytes 5\): "
            "correct those rows, or give dev_data and test_data")
    with pytest.raises(LabError, match=told):
        splits_of(data=put(tmp_path, "train.csv", raw))
    with pytest.raises(LabError, match="^5 rows are too few to take dev and test from: give dev_data and test_data, or learn from"):
        splits_of(data=put(tmp_path, "train.csv", as_csv(many(5))))


def test_a_folder_of_splits_with_shards_and_what_a_mac_leaves(tmp_path):
    import pandas as pd
    for i in range(2):
        part = [{"fname": r.fname, "dialogue": r.dialogue, "summary": r.summaries[0]} for r in many(20, 20 * i)]
        pd.DataFrame(part).to_parquet(tmp_path / f"train-0000{i}-of-00002.parquet")
    put(tmp_path, "validation/0000.csv", as_csv(many(4, 100)))
    put(tmp_path, "test.csv", as_csv(many(3, 200)))
    for name in ("._train.csv", "._test.csv", ".DS_Store", "~$test.csv", "notes.txt"):
        put(tmp_path, name, b"\0\5\x16\7")
    splits = splits_of(data=tmp_path)
    assert {name: len(rows) for name, rows in splits.rows.items()} == {"train": 40, "dev": 4, "test": 3}
    assert splits.notes == [f"not read in …/{tmp_path.name}: .DS_Store, ._test.csv, ._train.csv, notes.txt, ~$test.csv"]
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="has 1 of 2 shards of train.parquet, and lacks number 0: copy it, too"):
        splits_of(data=tmp_path)


def test_the_encoding_of_a_run_decides(tmp_path):
    raw = as_csv(many(40)).encode("utf-16-le")
    path = put(tmp_path, "train.csv", raw)
    with pytest.raises(DataError, match="is in UTF-16 LE without a byte-order mark"):
        splits_of(data=path)
    assert sum(map(len, splits_of(data=path, encoding="utf-16-le").rows.values())) == 40
    with pytest.raises(LabError, match="encoding='utf-8' would have no effect because data='embedded'"):
        splits_of(encoding="utf-8")


def test_a_file_without_a_header_quotes_little_of_a_conversation(tmp_path):
    text = "\n".join(f"#Person{i % 2 + 1}#: 네, 그래서 {i}번은 어떻게 됐어요?" for i in range(200))
    with pytest.raises(DataError) as caught:
        load_dialogues(put(tmp_path, "x.csv", f'd_0,"{text}",물었다.\nd_1,네,답했다.\n'))
    said = str(caught.value)
    assert "it seems to have no header, put the line dialogue,summary above it" in said and len(said) < 400 and "\n" not in said


def test_a_page_lists_a_few_problems_of_each_kind_with_their_lines(tmp_path):
    from types import SimpleNamespace

    from korlab.report.pages import sources
    from korlab.summarization.study import STUDY
    path = put(tmp_path, "x.csv", as_csv(ROWS) + "\n" + "".join(f"e_{i},,요약.\n" for i in range(4000)) + "e_0,가요,나요,다요\n")
    made = load_dialogues(path).report.to_dict()
    run = SimpleNamespace(study=STUDY, read=lambda name: {"notes": [], "sources": [{"split": "train"} | json.loads(json.dumps(made))]})
    _, notes, _, problems = (str(item) for item in sources(run))
    assert notes == "- train: …/x.csv: 1 blank line skipped"
    lines = problems.split("\n")
    assert lines[0] == "| split | 파일 | 행 | 줄 | 문제 | 자세히 |" and len(lines) == 2 + 10 + 1
    assert lines[2] == r"| train | …/x.csv | 4 | 8 | empty dialogue | fname e\_0 |"
    assert any("| 4,004 | 4,008 | ragged row | 4 fields where the header has 3 |" in line for line in lines)
    assert lines[-1] == "| train |  |  |  | empty dialogue | … and 3,991 more problems |"
    assert made["left_out"] == {"empty dialogue": 4000, "ragged row": 1} and len(json.dumps(made)) < 15_000


# ---- hub (the library's own objects, no network) ----------------------------------------------------------------

@pytest.fixture
def hub(monkeypatch):
    import datasets
    asked = []

    def serve(answer):
        def load_dataset(name, config=None, split=None, revision=None):
            asked.append((name, config, split, revision))
            if isinstance(answer, Exception):
                raise answer
            return answer[split] if split else answer
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked
    return serve


def hub_data(*splits):
    from datasets import Dataset, DatasetDict

    def rows(split):
        return [{"id": f"{split}_{i}", "dialogue": row.dialogue, "summary": row.summaries[0], "n": [1]}
                for i, row in enumerate(ROWS)]
    return DatasetDict({split: Dataset.from_list(rows(split)) for split in splits})


def test_hub_splits(hub):
    asked = hub(hub_data("train", "test"))
    rows, report = load_dialogues("owner/name:test", hub_revision="v1", hub_config="ko")
    assert [row.fname for row in rows] == ["test_0", "test_1", "test_2"]
    assert [row.dialogue for row in rows] == [row.dialogue for row in ROWS]
    assert asked == [("owner/name", "ko", "test", "v1")]
    assert report.files[0].format == "hub" and "column 'id' read as fname" in report.files[0].notes
    assert load_dialogues("owner/name", hub_split="train").rows[0].fname == "train_0"
    with pytest.raises(DataError, match="owner/name has the splits train, test: name one, as in owner/name:train"):
        load_dialogues("owner/name")


def test_hub_with_one_split_needs_no_name(hub):
    hub(hub_data("train"))
    assert len(load_dialogues("owner/name").rows) == 3


def test_hub_options_must_have_an_effect(hub, tmp_path):
    hub(hub_data("train", "test"))
    with pytest.raises(DataError, match="owner/name:test names a split already: leave out hub_split='train'"):
        load_dialogues("owner/name:test", hub_split="train")
    with pytest.raises(ValueError, match=r"are for hub datasets only, and .*x.csv is none"):
        load_dialogues(put(tmp_path, "x.csv", as_csv(ROWS)), hub_split="train")


def test_hub_failure_is_one_sentence(hub):
    hub(ConnectionError("Couldn't reach 'owner/name' on the Hub\nlong trace"))
    with pytest.raises(DataError) as caught:
        load_dialogues("owner/name")
    assert str(caught.value) == (
        f"owner/name is no file or folder in {Path.cwd()}, and the hub did not give it (ConnectionError: Couldn't reach "
        "'owner/name' on the Hub): check the name, the network, and HF_TOKEN if it is private or gated")


# ---- whole module -----------------------------------------------------------------------------------------------

def test_import_stays_light():
    heavy = "{'torch', 'datasets', 'pyarrow', 'pandas', 'numpy', 'kiwipiepy'}"
    code = f"import sys, korlab.summarization.dialogues; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"set()"


DATA = Path(os.environ.get("KORLAB_TEST_DATA", "")) / "dialogues"


@pytest.mark.skipif(not os.environ.get("KORLAB_TEST_DATA"), reason="KORLAB_TEST_DATA names no folder of real dialogues")
def test_real_dialogues(tmp_path):
    import pandas as pd
    splits = {name: load_dialogues(DATA / f"xpersona_{name}.csv", policy="strict").rows for name in ("train", "dev")}
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 499, "dev": 100}
    check_overlap(splits)
    peer = pd.read_csv(DATA / "xpersona_dev.csv", dtype=str, keep_default_na=False)
    assert [row.fname for row in splits["dev"]] == peer["fname"].tolist()
    assert [" ".join(row.dialogue.split()) for row in splits["dev"]] == [" ".join(x.split()) for x in peer["dialogue"]]
    for codec in ("utf-16", "cp949"):
        text = (DATA / "xpersona_train.csv").read_text("utf-8").encode(codec, "ignore")
        assert len(load_dialogues(put(tmp_path, "x.csv", text), policy="strict").rows) == 499


def test_splits_that_share_a_dialogue_are_named_as_they_were_given(tmp_path):
    """Whether the dev taken out of train gets the dialogue or not, the person has train and test."""
    rows = [Dialogue(f"d_{i}", f"#Person1#: {i}번 대화입니다.", ("요약.",)) for i in range(30)]
    save_dialogues(rows, tmp_path / "train.csv")
    for i in range(30):
        save_dialogues([Dialogue("t", rows[i].dialogue, ("요약.",)), Dialogue("u", "새 대화", ("요약.",))], tmp_path / "test.csv")
        with pytest.raises(DataError, match="^train and test share 1 dialogue "):
            load_splits(configure({"data": str(tmp_path)}))
