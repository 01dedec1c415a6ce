"""What the chapters of the reader cannot say themselves: any damage, any cut of the bytes into pieces, files larger than memory."""

import ast
import csv
import hashlib
import io
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from korlab.core import delimited, encodings
from korlab.core.accounts import DataError, DataReport, SourceFile, check_outcome
from korlab.core.encodings import Line, find_encoding, text_lines
from korlab.core.files import FileError, read_json, read_jsonl, write_json, write_jsonl
from korlab.core.rows import judged_rows, load_rows, read_rows
from korlab.core.schemas import Field, Row, Schema, Verdict, as_text, text_fault
from korlab.core.sources import Part
from korlab.experiment.evaluations import _of_other_files
from korlab.experiment.params import ParameterError
from korlab.sparse.data import load_triples
from korlab.summarization.data import _find_split_files
from korlab.summarization.dialogues import load_dialogues

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def judge(row: Row) -> Verdict:
    key, said = (as_text(row.values[name][0]) for name in ("id", "said"))
    faults = [text_fault("id", key or "", missing="blank"), text_fault("said", said or "")]
    return Verdict((key, said), [fault for fault in faults if fault])


SCHEMA = Schema((Field("id"), Field("said", ("말",))), judge, key="id")
LOOSE = Schema(SCHEMA.fields, lambda row: Verdict(row.values), each_row=True, utf8=True)
FORMATS = ("csv", "tsv", "jsonl", "parquet")


def put(folder: Path, name: str, content: bytes) -> Part:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return Part(str(path), path.suffix[1:], path)


def table(rows: list[tuple[str, str]], kind: str) -> bytes:
    """The same rows in any format."""
    out = io.StringIO()
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        raw = pa.BufferOutputStream()
        pq.write_table(pa.table({"id": [key for key, _ in rows], "said": [said for _, said in rows]}), raw, row_group_size=500)
        return raw.getvalue().to_pybytes()
    if kind == "jsonl":
        out.writelines(json.dumps({"id": key, "said": said}, ensure_ascii=False) + "\n" for key, said in rows)
    else:
        writer = csv.writer(out, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
        writer.writerows([("id", "said"), *rows])
    return out.getvalue().encode()


# ---- encodings ------------------------------------------------------------------------------------------------------

@QUICK
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.sampled_from(["utf-8", "cp949", "utf-16", "utf-8-sig"]),
       st.binary(max_size=3), st.integers(0, 200), st.integers(1, 5))
def test_pieces_make_no_difference(tmp_path, text, codec, noise, at, size):
    raw = text.encode(codec, "ignore")
    path = put(tmp_path, "x.txt", raw[:at] + noise + raw[at:]).where
    with pytest.MonkeyPatch.context() as patch:
        whole = find_encoding(path)
        patch.setattr(encodings, "PIECE", size)
        assert find_encoding(path) == whole
    assert (whole.bytes, whole.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    if whole.name:
        lines = list(text_lines(path, whole))
        decoded = path.read_bytes()[whole.start:].decode(whole.codec, "korlab-mark")
        assert "".join(line.text for line in lines) == re.sub("\r\n?", "\n", decoded)
        assert any(line.broken is not None for line in lines) == whole.damaged


def test_the_offset_of_a_broken_byte_is_that_of_the_file(tmp_path):
    raw = "id,said\nd_0,가나다\nd_1,라마\n".encode()
    at = raw.index("라".encode()) + 2
    part = put(tmp_path, "x.csv", raw[:at] + raw[at + 1:])
    (problem,) = load_rows(part.where, SCHEMA)[1].problems
    assert problem.detail == f"the byte at offset {at - 2} does not fit the encoding it is read in"


# ---- the same rows whatever the format ------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("schema", [SCHEMA, LOOSE], ids=["columns", "each row"])
def test_every_format_gives_the_same_located_rows(tmp_path, kind, schema):
    rows = [(f"d_{i}", f"{i}번이요?\n네, \"맞아요\"") for i in range(3)]
    part = put(tmp_path, f"x.{kind}", table(rows, kind))
    file = SourceFile(part.name, kind)
    found = list(read_rows(part, file, schema))
    expected = [{"id": [key], "said": [said]} if schema is SCHEMA else {"id": key, "said": said} for key, said in rows]
    assert [row.values for row in found] == expected
    assert [(row.file, row.row, row.fault) for row in found] == [(part.name, i, None) for i in (1, 2, 3)]
    lines = {"jsonl": [1, 2, 3], "parquet": [0, 0, 0]}
    assert [row.line for row in found] == lines.get(kind, [2, 4, 6])
    assert (file.bytes, file.sha256) == (part.where.stat().st_size, hashlib.sha256(part.where.read_bytes()).hexdigest())


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_come_before_the_file_is_at_its_end(tmp_path, kind):
    """A stream: the first row is there although the file breaks off later."""
    raw = table([(f"d_{i}", "가" * 200 + str(random.Random(i).random())) for i in range(5000)], kind)
    if kind == "parquet":
        start = len(raw) // 2
        raw = raw[:start] + bytes(1000) + raw[start + 1000:]
    else:
        raw += b'"' if kind != "jsonl" else b"{"
    part = put(tmp_path, f"x.{kind}", raw)
    assert next(read_rows(part, SourceFile(part.name), SCHEMA)).row == 1
    report = DataReport(part.name)
    kept = sum(1 for _ in judged_rows(part, SCHEMA, report))
    assert kept == report.rows_kept == report.rows_read - report.rows_left_out
    (problem,) = report.problems
    if kind == "parquet":
        assert 0 < kept < 5000 and problem.kind == "broken Parquet"
        assert f"is not readable as Parquet after row {kept:,} of 5,000" in problem.detail
        with pytest.raises(DataError, match="policy='strict' lets none pass"):
            check_outcome(DataReport(part.name, "strict", files=report.files, problems=report.problems))
    else:
        assert (kept, problem.row) == (5000, 5001)


def test_a_file_that_cannot_be_opened_is_a_problem_of_the_file(tmp_path):
    part = put(tmp_path, "x.csv", b"id,said\n")
    part.where.unlink()
    report = DataReport(part.name)
    assert list(judged_rows(part, SCHEMA, report)) == []
    assert [(p.row, p.kind, p.detail) for p in report.problems] == [
        (0, "unreadable file", "cannot be read (No such file or directory)")]


# ---- memory ---------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from korlab.core.accounts import DataReport
from korlab.core.rows import judged_rows
from korlab.core.schemas import Field, Schema, Verdict
from korlab.core.sources import Part
from korlab.experiment.evaluations import _of_other_files
from korlab.experiment.params import ParameterError
from korlab.sparse.data import load_triples
from korlab.summarization.data import _find_split_files
from korlab.summarization.dialogues import load_dialogues
import csv, json, re, hashlib, codecs
kind, path, each = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "each"
if kind == "parquet":
    import pyarrow.parquet
fields = (Field("id"), Field("said"))
schema = Schema(fields, lambda row: Verdict(1), key="" if each else "id", each_row=each, utf8=each)
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
report = DataReport("x")
before = peak()
rows = sum(judged_rows(Part(str(path), kind, path), schema, report))
print(rows, len(report.problems), peak() - before)
"""


def grown(path: Path, kind: str, how: str) -> tuple[int, int, float]:
    """Rows, problems, and by how many MiB a process grows that reads them all."""
    done = subprocess.run([sys.executable, "-c", MEASURE, kind, str(path), how], capture_output=True, text=True, check=True, cwd=ROOT)
    rows, problems, kib = map(int, done.stdout.split())
    return rows, problems, kib / 1024


@pytest.mark.parametrize(("kind", "how"), [pytest.param("csv", "columns", marks=pytest.mark.slow), ("tsv", "each"), ("jsonl", "columns"), ("jsonl", "each"),
                                           ("parquet", "each")])
def test_a_file_larger_than_the_memory_allowed_is_read(tmp_path, kind, how):
    """15 MB of rows; measured with 120 MB, the growth is the same: 4 MiB, of Parquet 32."""
    text = "네, 그럼요.\n" * 80
    rows = [(f"d_{i}", f"{i}번\n{text}") for i in range(11_000)]
    path = tmp_path / f"x.{kind}"
    path.write_bytes(table(rows, kind))
    assert kind == "parquet" or path.stat().st_size > 13e6
    found, problems, growth = grown(path, kind, how)
    assert (found, problems) == (11_000, 0)
    assert growth < (40 if kind == "parquet" else 12)


def test_a_quote_that_is_never_closed_is_bounded_too(tmp_path):
    """Half a million lines after it are looked through for the next row and forgotten."""
    raw = 'id,said\nd_0,네\nd_1,"가요?\n' + "네 그럼요 가요\n" * 500_000 + "d_2,네\n"
    path = put(tmp_path, "x.csv", raw.encode()).where
    items, report = load_rows(path, SCHEMA)
    assert [key for key, _ in items] == ["d_0", "d_2"]
    assert [(p.row, p.line, p.kind) for p in report.problems] == [(2, 3, "broken quoting")]


@QUICK
@given(st.lists(st.sampled_from(['d_1,"가\n', '나",다\n', "d_2,라\n", '"\n', "\n", 'd_3,"마"\n', ",\n"]), max_size=12))
def test_the_window_forgets_nothing_that_is_still_needed(lines):
    """Reading through a window is reading with all lines in memory."""
    class All(delimited.Window):
        def forget(self, before):
            pass

    shape = delimited.Shape(",", 2, 0)
    whole, passing = (list(delimited.split_records(kind(map(Line, lines)), 0, shape)) for kind in (All, delimited.Window))
    assert whole == passing
    assert [line for record in whole for line in range(record.begin, record.end)] == list(range(len(lines)))


# ---- one reader -----------------------------------------------------------------------------------------------------

@QUICK
@given(st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=9) | st.integers() | st.none(), max_size=3), max_size=6))
def test_what_is_logged_comes_back(tmp_path, rows):
    rows = json.loads(json.dumps(rows))
    write_jsonl(tmp_path / "x.jsonl", json.loads(json.dumps(rows).encode("utf-8", "replace")))
    assert read_jsonl(tmp_path / "x.jsonl") == rows


@pytest.mark.parametrize(("content", "message"), [
    (b'{"a": 1}\n{"a"', r"x.jsonl, line 2 is damaged \(broken JSON: Expecting ':' delimiter"),
    (b'{"a": 1}\n\n[1]\n', r"x.jsonl, line 3 is damaged \(broken JSON: a list where an object is expected\)"),
    (b'{"a": "\xb0\xa1"}\n', r"x.jsonl, line 1 is damaged \(undecodable bytes: byte 8 of the line is not UTF-8\)")])
def test_a_damaged_log_is_named_with_its_line(tmp_path, content, message):
    path = put(tmp_path, "x.jsonl", content).where
    with pytest.raises(FileError, match=message + ".*delete the file and run again what wrote it"):
        read_jsonl(path)


def test_there_is_one_reader_of_json_lines():
    """No module but `core.files` parses JSON in a loop over the lines of a file."""
    found = set()
    for path in (ROOT / "korlab").rglob("*.py"):
        loops = [node for node in ast.walk(ast.parse(path.read_text("utf-8")))
                 if isinstance(node, (ast.For, ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp))]
        if any("json.loads(" in ast.unparse(loop) and "line" in ast.unparse(loop) for loop in loops):
            found.add(path.name)
    assert found == set()
    users = [path.name for path in (ROOT / "korlab").rglob("*.py") if re.search(r"\b_json_object\(", path.read_text("utf-8"))]
    assert users == ["files.py"]
    assert sum("csv.reader(" in path.read_text("utf-8") for path in (ROOT / "korlab").rglob("*.py")) == 1


# ---- lines ----------------------------------------------------------------------------------------------------------

NO_LINE_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"  # where `str.splitlines` ends a line, and no file does


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("schema", [SCHEMA, LOOSE], ids=["columns", "each row"])
def test_lines_end_at_line_ends_alone(tmp_path, kind, schema):
    rows = [(f"d_{i}", f"가{odd}나") for i, odd in enumerate(NO_LINE_ENDS)]
    items, report = load_rows(put(tmp_path, f"x.{kind}", table(rows, kind)).where, schema)
    found = items if schema is SCHEMA else [(item["id"], item["said"]) for item in items]
    assert (found, report.problems) == (rows, [])


def test_what_is_written_as_json_lines_is_read(tmp_path):
    rows = [{f"열{odd}": f"가{odd}나", "n": i} for i, odd in enumerate(NO_LINE_ENDS + "\r\n")]
    write_jsonl(tmp_path / "x.jsonl", rows)
    assert read_jsonl(tmp_path / "x.jsonl") == rows


def test_a_passage_is_a_whole_line(tmp_path):
    from korlab.sparse.search import read_passages

    path = put(tmp_path, "x.txt", "".join(f"가{odd}나\r\n" for odd in NO_LINE_ENDS).encode()).where
    assert read_passages(str(path)).texts() == {str(i): f"가{odd}나" for i, odd in enumerate(NO_LINE_ENDS, 1)}


@pytest.mark.parametrize("schema", [SCHEMA, LOOSE], ids=["columns", "each row"])
@pytest.mark.parametrize("value", ["좋아요 \ud83d", "\udcff", ["네", "\udc00"], {"a": ["\ud83d"]}, "\ude00\ud83d"])
def test_half_a_character_is_a_located_problem_row(tmp_path, schema, value):
    """No judge sees it, whether JSON wrote it as an escape or a row in memory holds it."""
    rows = [{"id": f"d_{i}", "said": value if i == 1 else "\U0001f600"} for i in range(3)]
    path = put(tmp_path, "x.jsonl", "\n\n".join(map(json.dumps, rows)).encode()).where
    for source, line in ((path, 3), (rows, 0)):
        items, report = load_rows(source, schema)
        assert [item[0] if schema is SCHEMA else item["id"] for item in items] == ["d_0", "d_2"]
        assert [(p.row, p.line, p.kind, p.detail) for p in report.problems] == [
            (2, line, "undecodable bytes", "half a character (a lone surrogate) in the said")]
        assert (report.rows_read, report.left_out) == (3, {"undecodable bytes": 1})


@QUICK
@given(st.recursive(st.none() | st.text(st.characters(codec=None), max_size=4), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(st.characters(codec=None), max_size=3), inner, max_size=3), max_leaves=6))
def test_records_hold_whatever_a_string_can(tmp_path, value):
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    write_jsonl(tmp_path / "x.jsonl", [{"value": value}])
    assert read_jsonl(tmp_path / "x.jsonl") == [{"value": value}]


def test_no_text_is_cut_where_python_sees_a_line():
    """`str.splitlines` cuts a passage at a form feed and a turn at U+2028; `bytes.splitlines` does not, and reads files."""
    users = [path.name for path in (ROOT / "korlab").rglob("*.py") if re.search(r"\bsplitlines\(", path.read_text("utf-8"))]
    assert users == ["files.py"]


def test_import_stays_light():
    heavy = "{'torch', 'datasets', 'pyarrow', 'pandas', 'numpy', 'kiwipiepy'}"
    code = f"import sys, korlab.core.rows; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"set()"


# ---- text in the wrong encoding -------------------------------------------------------------------------------------

HEAD = "id,said\n"
SAID = ["점심 먹었어요?", "아직요, 같이 갈까요?", "똑같은 걸로 할게요.", "조금 늦을 것 같아요.", "뷁, 됬다고 했잖아요!"]


def lines_of(count: int) -> list[str]:
    return [f'd_{i},"{SAID[i % len(SAID)]}"\n' for i in range(count)]


@pytest.mark.parametrize(("file", "row"), [("cp949", "utf-8"), ("utf-8", "cp949")])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_one_row_in_another_encoding_is_left_out_and_located(tmp_path, file, row, kind):
    """`조금` in UTF-8 decodes as CP949 without an error, and `킁킁` in CP949 as UTF-8."""
    lines = lines_of(9) if kind == "csv" else [json.dumps({"id": f"d_{i}", "said": SAID[i % 5]}, ensure_ascii=False) + "\n" for i in range(9)]
    other = "조금" if row == "utf-8" else "킁킁"
    odd = f"d_9,{other}\n" if kind == "csv" else f'{{"id": "d_9", "said": "{other}"}}\n'
    odd.encode(row).decode(file)  # decodes
    head = HEAD.encode() if kind == "csv" else b""
    part = put(tmp_path, f"x.{kind}", head + "".join(lines[:4]).encode(file) + odd.encode(row) + "".join(lines[4:]).encode(file))
    items, report = load_rows(part.where, SCHEMA)
    assert [key for key, _ in items] == [f"d_{i}" for i in range(9)] and [said for _, said in items] == [SAID[i % 5] for i in range(9)]
    assert report.files[0].encoding == {"cp949": "CP949", "utf-8": "UTF-8"}[file]
    (problem,) = report.problems
    assert (problem.row, problem.line, problem.kind) == (5, 6 if kind == "csv" else 5, "wrong encoding")
    assert problem.detail.startswith(f"the said is {row.upper()} read as {file.upper()}, and says '{other}'")


def test_every_row_in_another_encoding_is_found(tmp_path):
    """Of all of a file's rows in turn: the one that differs is left out, whether it decodes or not, and no other."""
    lines = lines_of(len(SAID))
    for file, row in (("cp949", "utf-8"), ("utf-8", "cp949")):
        for at in range(len(lines)):
            raw = HEAD.encode() + b"".join(line.encode(row if i == at else file) for i, line in enumerate(lines))
            items, report = load_rows(put(tmp_path, "x.csv", raw).where, SCHEMA)
            assert [key for key, _ in items] == [f"d_{i}" for i in range(len(lines)) if i != at], (file, at)
            assert [p.row for p in report.problems] == [at + 1]


@pytest.mark.parametrize(("raw", "name"), [
    ("킁킁".encode("cp949"), "CP949"), ("네".encode("cp949"), "CP949"), ("네".encode(), "UTF-8"), ("가요 킁킁".encode("euc_kr"), "CP949"),
    ("café, crème, créée".encode(), "UTF-8"), ("25° · ±1".encode(), "UTF-8"), ("Привет".encode(), "UTF-8"), ("漢字".encode("cp949"), "CP949"),
    ("가요".encode("utf-16"), "UTF-16 LE"), ("가요".encode("utf-8-sig"), "UTF-8 with BOM"), (b"ok", "UTF-8")])
def test_short_files(tmp_path, raw, name):
    assert find_encoding(put(tmp_path, "x.txt", raw).where).name == name


def test_what_somebody_misread_long_ago_is_found_in_any_format(tmp_path):
    """A Parquet file has no encoding to go wrong; what it was made of had one."""
    said = ["가요?", "안녕하세요".encode("cp949").decode("latin-1"), "안녕하세요".encode().decode("latin-1"), "漢字도 café도 좋아요"]
    part = put(tmp_path, "x.parquet", table([(f"d_{i}", text) for i, text in enumerate(said)], "parquet"))
    items, report = load_rows(part.where, SCHEMA)
    assert [key for key, _ in items] == ["d_0", "d_3"]
    assert [(p.row, p.kind) for p in report.problems] == [(2, "wrong encoding"), (3, "wrong encoding")]
    assert all("says '안녕하세요'" in p.detail for p in report.problems)


def test_an_encoding_that_is_asked_for_decides(tmp_path):
    raw = (HEAD + "".join(lines_of(3))).encode("utf-16-le")
    part = put(tmp_path, "x.csv", raw)
    with pytest.raises(DataError, match="is in UTF-16 LE without a byte-order mark"):
        check_outcome(load_rows(part.where, SCHEMA)[1])
    items, report = load_rows(part.where, SCHEMA, encoding="utf-16-le")
    assert len(items) == 3 and report.files[0].notes == ["encoding=utf-16-le was asked for"]
    mixed = put(tmp_path, "y.csv", HEAD.encode() + b"".join(line.encode("cp949" if i else "utf-8") for i, line in enumerate(lines_of(4))))
    for codec, kept in (("utf-8", ["d_0"]), ("cp949", ["d_1", "d_2", "d_3"])):
        items, report = load_rows(mixed.where, SCHEMA, encoding=codec)
        assert [key for key, _ in items] == kept and report.rows_left_out == 4 - len(kept)
        assert all(p.line == p.row + 1 for p in report.problems)
    marked = put(tmp_path, "z.csv", "\ufeff".encode() + HEAD.encode())
    with pytest.raises(DataError, match="begins with the byte-order mark of UTF-8, so it is not in CP949: leave encoding='cp949' out"):
        check_outcome(load_rows(marked.where, SCHEMA, encoding="cp949")[1])
    lines = put(tmp_path, "x.jsonl", '{"id": "d_0", "said": "가요?"}\n'.encode("cp949"))  # JSON of this schema is UTF-8 ...
    assert "save it as UTF-8, or say encoding='cp949' (-p encoding cp949)" in load_rows(lines.where, LOOSE)[1].problems[0].detail
    assert load_rows(lines.where, LOOSE, encoding="cp949")[0] == [{"id": "d_0", "said": "가요?"}]  # ... unless somebody says so


# ---- a quote that closes too late -----------------------------------------------------------------------------------

@pytest.mark.parametrize("ids", [("d1", "d2"), ("7", "8"), ("train_0012", "train_0013")])
def test_a_row_within_a_row_is_told(tmp_path, ids):
    one, two = ids
    raw = f'id,said,meant\n{one},"가요, 네?,하나\n{two},와요?",둘\nx_9,자요?,셋\n'
    schema = Schema((Field("id"), Field("said"), Field("meant")), lambda row: Verdict(row.values["id"][0]), key="id")
    items, report = load_rows(put(tmp_path, "x.csv", raw.encode()).where, schema)
    assert items == [one, "x_9"]
    (problem,) = report.problems
    assert (problem.row, problem.line, problem.kind, problem.warning) == (1, 2, "swallowed row", True)
    assert problem.detail.startswith("line 3 looks like a row of its own, taken in by a quote that closes too late")
    items, report = load_rows(tmp_path / "x.csv", schema, policy="strict")
    assert items == ["x_9"] and report.left_out == {"swallowed row": 1}
    with pytest.raises(DataError, match=r"policy='strict' lets none pass \(.*x.csv, row 1 \(line 2\): swallowed row: line 3"):
        check_outcome(report)


def test_lines_of_a_conversation_are_no_rows(tmp_path):
    """Turns with commas, prices, numbered lists, and ids that are plain numbers."""
    turns = ["네, 3,000원이요, 그럼 가요.", "1,234,567원이에요,정말,네", "30,40,50", "민수: 네,네,네", "#Person2#: 3,4,5", "아니,그게,아니라", '""네,네,""']
    text = "".join(f'{key},"얼마예요,네?\n' + "\n".join(turns) + '",요약이다.\n' for key in ("7", "100", "d_1", "대화3"))
    schema = Schema((Field("id"), Field("said"), Field("meant")), lambda row: Verdict(row.values["id"][0]), key="id")
    items, report = load_rows(put(tmp_path, "x.csv", ("id,said,meant\n" + text).encode()).where, schema)
    assert (items, report.problems) == (["7", "100", "d_1", "대화3"], [])


def test_a_row_within_a_row_without_ids(tmp_path):
    part = put(tmp_path, "x.csv", 'id,said\n"가요,간다\n와요",온다\n자요,"잔다.\n네, 3,000원이요."\n'.encode())
    assert [(p.row, p.line, p.kind) for p in load_rows(part.where, LOOSE)[1].problems] == [(1, 2, "swallowed row")]


THREE = Schema((Field("id"), Field("said"), Field("meant")), lambda row: Verdict(row.values["id"][0]), key="id")
FIRST, LAST = "id,said,meant\n", "said,meant,id\n"


@pytest.mark.parametrize("text", [
    FIRST + '912,"가요?,간다.\n903,와요?",온다.\n77,자요?,잔다.\n',
    FIRST + '512,"가요?,간다.\n37,와요?",온다.\n',
    FIRST + '100,"가요?,간다.\n250,와요?,온다.\n9,자요?",잔다.\n7,네?,네.\n',
    FIRST + '3fa85f64,"가요?,간다.\n9b1deb4d,와요?",온다.\n',
    FIRST + '3fa85f64-5717-4562-b3fc-2c963f66afa6,"가요?,간다.\n9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d,와요?",온다.\n',
    FIRST + 'd_1,"가요?,간다.\nd_2, 와요?", 온다.\n',
    FIRST + '41,"가요?,간다.\n17, 와요?", 온다.\n',
    LAST + '"가요?,간다.,41\n와요?",온다.,17\n',
    LAST + '"가요?,간다.,d_1\n와요?",온다.,d_2\n자요?,잔다.,d_3\n',
    FIRST + 'd_1,"#Person1#: 가요?\n#Person2#: 네,간다.\nd_7,와요?",온다.\n',
], ids=lambda text: text.split("\n")[1][:20])
def test_a_row_within_a_row_is_told_by_any_id(tmp_path, text):
    items, report = load_rows(put(tmp_path, "x.csv", text.encode()).where, THREE, policy="strict")
    assert [(p.row, p.kind) for p in report.problems] == [(1, "swallowed row")]
    with pytest.raises(DataError, match="taken in by a quote that closes too late"):
        check_outcome(report)


@pytest.mark.parametrize("text", [
    FIRST + '1,"#Person1#: 네,그래\n2,3,5 골라\n#Person2#: 응",고른다.\n2,네,네\n',
    FIRST + '41,"#Person1#: 네,그래\n2,3,5 골라\n4,5,6",고른다.\n',
    FIRST + 'g1,"좌석은,어디?\nb2,c3,d4\n네,좋아,요",고른다.\n',
    FIRST + '1,"#Person1#: 네,그래\n7,아니",고른다.\n2,네,네\n',
    FIRST + '41,"#Person1#: 네,그래,요\n7, 아니 8개요",고른다.\n',
    FIRST + 'd_1,"네,그래\n네,가,요",d_2 다음이다.\n',
    LAST + '"네,그래\n가,요",간다.,41\n"네,그래\n나,요",온다.,d_1\n',
], ids=lambda text: text.split("\n")[1][:20])
def test_lists_of_numbers_and_seats_are_no_rows(tmp_path, text):
    items, report = load_rows(put(tmp_path, "x.csv", text.encode()).where, THREE, policy="strict")
    assert report.problems == [] and len(items) == report.rows_read


def test_passages_of_two_lines_are_no_rows(tmp_path):
    text = 'id,said\n가을은?,"가을에는 단풍이 든다.\n겨울에는 눈이 오고,춥다."\n'
    assert load_rows(put(tmp_path, "x.csv", text.encode()).where, LOOSE, policy="strict")[1].problems == []


# ---- other encodings ------------------------------------------------------------------------------------------------

ROWS = HEAD + "".join(f"d_{i},오늘은 비가 와요.\n" for i in range(5))


@pytest.mark.parametrize("codec, name", [("utf-16-le", "UTF-16 LE"), ("utf-16-be", "UTF-16 BE"), ("utf-32-le", "UTF-32"), ("utf-32", "UTF-32")])
def test_wide_encodings_without_a_mark_are_named(tmp_path, codec, name):
    for file, text in (("x.csv", ROWS), ("x.jsonl", '{"id": "d_0", "said": "가요?"}\n' * 3)):
        path = put(tmp_path, file, text.encode(codec)).where
        with pytest.raises(DataError, match=f"is in {name}.*: save it as UTF-8") as found:
            check_outcome(load_rows(path, SCHEMA)[1])
        assert (f"-p encoding {codec}" in str(found.value)) == ("UTF-16" in name)
    if "UTF-16" in name:
        assert len(load_rows(tmp_path / "x.csv", SCHEMA, encoding=codec)[0]) == 5
        wrong = {"utf-16-le": "utf-16-be", "utf-16-be": "utf-16-le"}[codec]
        assert f"say encoding='{codec}'" in load_rows(tmp_path / "x.csv", SCHEMA, encoding=wrong)[1].problems[0].detail


def test_an_unfit_encoding_is_said_to_be_asked_for(tmp_path):
    path = put(tmp_path, "x.csv", ROWS.encode()).where
    problems = load_rows(path, SCHEMA, encoding="cp949")[1].problems
    assert len(problems) == 5 and all("encoding='cp949' was asked for: leave it out" in problem.detail for problem in problems)
    with pytest.raises(ValueError, match="encoding='euc-kr': choose one of .*EUC-KR is read as 'cp949'"):
        load_rows(path, SCHEMA, encoding="euc-kr")


@pytest.mark.parametrize("codec, text", [("gbk", "今天天气很好，我们去公园散步吧。你吃饭了吗？明天上午十点在会议室见面，讨论新的项目计划。"),
                                         ("shift_jis", "今日はとてもいい天気ですね。公園に散歩に行きましょう。ご飯を食べましたか？")])
def test_other_languages_are_no_cp949(tmp_path, codec, text):
    path = put(tmp_path, "x.csv", (HEAD + f"d_0,{text}\n" * 20).encode(codec)).where
    with pytest.raises(DataError, match="is not text in UTF-8, UTF-16 or CP949 .*as Chinese in GBK or Japanese in Shift-JIS"):
        check_outcome(load_rows(path, SCHEMA)[1])


def test_lost_and_western_text_is_told(tmp_path):
    western = "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in "안녕하세요".encode())
    raw = f"{HEAD}d_0,{western}\nd_1,\ufffd\ufffd요?\nd_2,네\ufffd\n"
    items, report = load_rows(put(tmp_path, "x.csv", raw.encode()).where, SCHEMA)
    assert [key for key, _ in items] == ["d_2"] and [p.kind for p in report.problems] == ["wrong encoding"] * 2
    assert "UTF-8 read as Windows-1252, and says '안녕하세요'" in report.problems[0].detail


def test_shards_from_one_and_with_a_hash_are_complete(tmp_path):
    for i in (1, 2):
        put(tmp_path, f"train-{i}-of-2.csv", f"{HEAD}d_{i},가요?\n".encode())
    assert [key for key, _ in load_rows(tmp_path, SCHEMA)[0]] == ["d_1", "d_2"]
    (tmp_path / "train-1-of-2.csv").unlink()
    with pytest.raises(DataError, match="has 1 of 2 shards of train.csv, and lacks number 1"):
        load_rows(tmp_path, SCHEMA)
    put(tmp_path, "hashed/train-00000-of-00001-8e3b3a6b.csv", f"{HEAD}d_1,가요?\n".encode())
    put(tmp_path, "hashed/train.csv", f"{HEAD}d_2,가요?\n".encode())
    with pytest.raises(ParameterError, match=r"both train-\*-of-00001.csv and train.csv look like the train split"):
        _find_split_files(tmp_path / "hashed")
    put(tmp_path, "train/part-0.csv", b"x"), put(tmp_path, "train/part-1.csv", b"x")
    assert [Path(file).name for file in _find_split_files(tmp_path / "train")["train"]] == ["part-0.csv", "part-1.csv"]


def test_the_encoding_of_a_run_is_that_of_its_own_files():
    recorded = {"data": "mine", "test_data": "t.csv", "encoding": "cp949", "max_chars": 9}
    for asked in ({}, {"data": "mine"}, {"data": "mine/test.csv"}, {"data": "t.csv"}):
        assert _of_other_files(recorded, asked) == recorded
    assert _of_other_files(recorded, {"data": "other.csv"}) == {k: v for k, v in recorded.items() if k != "encoding"}


# ---- speed ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rows", [10, 500])
def test_rows_of_an_absolute_path_do_not_ask_for_its_label(tmp_path, monkeypatch, rows):
    asked = []
    monkeypatch.setattr("korlab.core.accounts.shown", lambda path: asked.append(path) or "x.csv")
    path = put(tmp_path, "x.csv", ("fname,dialogue,summary\n" + "".join(f"d{i},말{i}이에요.,요약\n" for i in range(rows))).encode()).where
    assert path.is_absolute() and len(load_dialogues(path).rows) == rows and len(asked) == 1  # once for the source
    path = put(tmp_path, "t.csv", ("query,positive\n" + "".join(f"질문 {i},답 {i}\n" for i in range(rows))).encode()).where
    assert len(load_triples(path).triples) == rows and len(asked) == 2


# ---- folders --------------------------------------------------------------------------------------------------------

def test_hidden_and_temporary_files_are_passed_over_and_told(tmp_path):
    for name in ("._a.csv", ".DS_Store", "~$b.csv", "a.csv~"):
        put(tmp_path, name, b"\0\5\x16\7")
    (tmp_path / "c.csv").mkdir()
    put(tmp_path, "a.csv", (HEAD + "".join(lines_of(2))).encode())
    items, report = load_rows(tmp_path, SCHEMA, policy="strict")
    assert (len(items), len(report.files), report.problems) == (2, 1, [])
    assert report.notes == [f"not read in …/{tmp_path.name}: .DS_Store, ._a.csv, a.csv~, c.csv, ~$b.csv"]


def test_shards_are_one_table_and_must_be_complete(tmp_path):
    for i in range(3):
        put(tmp_path, f"train-0000{i}-of-00003.parquet", table([(f"d_{i}", SAID[i])], "parquet"))
    assert [key for key, _ in load_rows(tmp_path, SCHEMA)[0]] == ["d_0", "d_1", "d_2"]
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match="has 2 of 3 shards of train.parquet, and lacks number 1: copy it, too"):
        load_rows(tmp_path, SCHEMA)


# ---- many problems --------------------------------------------------------------------------------------------------

def test_fifty_thousand_bad_rows_are_counted_and_a_few_are_shown(tmp_path):
    raw = HEAD + "d_0,네\n" + "".join(f"d_{i},\n" for i in range(1, 50_001)) + ",네\n"
    report = load_rows(put(tmp_path, "x.csv", raw.encode()).where, SCHEMA)[1]
    assert (report.rows_read, report.rows_kept, report.left_out) == (50_002, 1, {"empty said": 50_000, "blank id": 1})
    made = report.to_dict()
    assert (len(made["problems"]), made["unlisted"], made["left_out"]["empty said"]) == (51, {"empty said": 49_950}, 50_000)
    assert len(json.dumps(made)) < 10_000
    page = report._repr_markdown_()
    assert len(page) < 2_000 and "… and 49,991 more problems" in page
    assert "| …/x.csv | 50,002 | 50,003 | blank id |  |" in page
    report.policy = "strict"
    with pytest.raises(DataError, match="has 50,001 problems.*and 49,996 more") as caught:
        check_outcome(report)
    assert len(str(caught.value)) < 1_500 and "blank id" in str(caught.value)


def test_messages_quote_little_of_a_cell(tmp_path):
    long = "네 그럼요 가요 " * 500
    for raw, said in ((f'd_0,"{long}"\n'.encode(), "seems to have no header, put the line id,said above it"), (f"id,{long}\nd_0,네\n".encode(), "has no column .said. .it has id")):
        with pytest.raises(DataError, match=said) as caught:
            check_outcome(load_rows(put(tmp_path, "x.csv", raw).where, SCHEMA)[1])
        assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    wide = put(tmp_path, "w.csv", ("id,x," + ",".join(f"c{i}" for i in range(4000)) + "\n").encode())
    with pytest.raises(DataError, match="and 3,990 more") as caught:
        check_outcome(load_rows(wide.where, SCHEMA)[1])
    assert len(str(caught.value)) < 500
