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
from korlab.core.files import FileError, read_jsonl, write_jsonl
from korlab.core.rows import judged_rows, load_rows, read_rows
from korlab.core.schemas import Field, Row, Schema, Verdict, as_text, text_fault
from korlab.core.sources import Part

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
    assert problem.detail == f"the byte at offset {at - 2} does not fit the file's encoding"


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


@pytest.mark.parametrize(("kind", "how"), [("csv", "columns"), ("tsv", "each"), ("jsonl", "columns"), ("jsonl", "each"),
                                           ("parquet", "each")])
def test_a_file_larger_than_the_memory_allowed_is_read(tmp_path, kind, how):
    """30 MB of rows; measured with 120 MB, the growth is the same: 4 MiB, of Parquet 32."""
    text = "네, 그럼요.\n" * 80
    rows = [(f"d_{i}", f"{i}번\n{text}") for i in range(22_000)]
    path = tmp_path / f"x.{kind}"
    path.write_bytes(table(rows, kind))
    assert kind == "parquet" or path.stat().st_size > 27e6
    found, problems, growth = grown(path, kind, how)
    assert (found, problems) == (22_000, 0)
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


def test_import_stays_light():
    heavy = "{'torch', 'datasets', 'pyarrow', 'pandas', 'numpy', 'kiwipiepy'}"
    code = f"import sys, korlab.core.rows; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"set()"
