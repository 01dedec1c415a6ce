"""What a hostile or a damaged file may cost: time by its length, bounded memory, and never more than one sentence."""

import csv
import datetime
import io
import json
import random
import re
import time
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from korlab.core import delimited, encodings, files, rows, sheets, sources
from korlab.core import text as T
from korlab.core.accounts import DataError, DataReport, Problem, SourceFile
from korlab.core.delimited import Shape, Window, split_records
from korlab.core.encodings import Line
from korlab.core.errors import LabError
from korlab.core.files import FileError, utf8_lines
from korlab.core.yamls import read_yaml
from korlab.experiment import studies
from korlab.experiment.params import ParameterError, check_bounds, coerce
from korlab.ivr.steps import _budget
from korlab.report import clean, markdown
from korlab.sparse import documents
from korlab.sparse.data import load_beir
from korlab.summarization.dialogues import load_dialogues
from korlab.workbench.spaces import TuneParams, load_space

# ---- time by the length ---------------------------------------------------------------------------------------------


def records(text: str) -> None:
    list(split_records(Window([Line(line) for line in text.splitlines(True)]), 0, Shape(",", 3, 0)))


def report(kinds: str) -> None:
    found = DataReport("a.csv", files=[SourceFile("a.csv")])
    for number, _ in enumerate(kinds, 1):
        found.add(Problem("a.csv", number, number, "empty text", "여기"))
    found._repr_markdown_()


HARD: dict[str, tuple[Callable[[str], object], Callable[[int], str], int]] = {  # what is done, a text of a size, the size
    "accents": (T.normalize, lambda n: "e" + "\u0327\u0301" * n, 10_000),
    "digits": (lambda text: pytest.raises(ValueError, T.coda, text), lambda n: "1" * n + "漢", 8_000),
    "asides": (T.coda, lambda n: "가" + "()" * n + "x", 8_000),
    "tags": (T.tidy, lambda n: "<a" * n + ">" * n, 3_000),
    "comments": (T.tidy, lambda n: "<!--" * n, 3_000),
    "a cell of lines": (records, lambda n: 'd_1,"' + "네, 가요.\n" * n + '",그래요.\nd_2,나,다\n', 1_500),
    "a cell of rows": (records, lambda n: 'd_1,"' + "d_1,나,다\n" * n + '",그래요.\nd_2,나,다\n', 700),
    "bars": (clean._plain, lambda n: "1%|" * n, 20_000),
    "links": (lambda text: markdown._relink(text, Path(), Path()), lambda n: "[" * n + "](" * n, 10_000),
    "problems": (report, lambda n: "x" * n, 4_000),
    "tags in tags": (lambda text: documents._from_html(text, "a.html"), lambda n: "<div>" * n + "가", 2_000),
    "hidden in hidden": (lambda text: documents._from_html(text, "a.html"), lambda n: "<main hidden>" * n + "가", 2_000),
}


@pytest.mark.parametrize("what", HARD)
def test_twice_the_text_takes_twice_the_time(what):
    """By the square of the length it would be four times; what is measured is the processor's time, the best of three."""
    work, made, size = HARD[what]

    def seconds(text: str) -> float:
        begun = time.process_time()
        work(text)
        return time.process_time() - begun

    once, twice = (min(seconds(made(n)) for _ in range(3)) for n in (size, 2 * size))
    assert twice < 3 * once + 0.01


MARKS = st.text(st.sampled_from("가é…—한ㅋᄒ\u0301\u0327\u0315\u035c\u0344\u0f71\u0f72\u0f73\u0f81\u3099\u1161\U0001d165\U0001d16d"), min_size=30, max_size=90)


@settings(max_examples=60, deadline=None)
@given(MARKS)
def test_the_normal_form_is_unicodes_own(text):
    assert T.normalize(text) == unicodedata.normalize("NFC", text)


SLOW = re.compile(r"([가-힣ㄱ-ㅣ]|[0-9](?:[0-9,]*[0-9])?(?:\.[0-9]+)?|[A-Za-z]+)[\W_]*$")  # the same rule, looked for from each place on


@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from([*"가나학ㄱ0190,.()() \n-_abLM漢é①", "(수도)", "1,000", "3.14"]), max_size=9).map("".join))
def test_the_end_of_a_word_is_what_the_rule_says(word):
    end = SLOW.search(re.sub(r"(?<=\S)\s*\([^()]*\)\W*$", "", unicodedata.normalize("NFC", word)))
    if end is None:
        with pytest.raises(ValueError, match="no Korean reading"):
            T.coda(word)
    else:
        assert T.coda(word) == T.coda(end[1])


def test_a_quote_that_is_never_closed_again_and_again_ends(monkeypatch):
    """Each line opens a quote, and no line closes it for good: every record would be read to the end of the file, 80,000 lines in all."""
    asked = []

    class Counted(Window):
        def line(self, at: int) -> Line | None:
            asked.append(at)
            return super().line(at)

    monkeypatch.setattr(delimited, "_TRIED", 10)
    found = list(split_records(Counted([Line('d_1","b\n')] * 400), 0, Shape(",", 3, 0)))
    assert found[-1].end == 400 and len(asked) < 20_000


# ---- numbers and YAML -----------------------------------------------------------------------------------------------

BAD = {
    "hexadecimal": "seed: 0x" + "f" * 5000, "octal": "seed: 0o" + "7" * 9000, "a key's tag": "!!int x: 1", "a key of floats": "!!float x: 1",
    "the whole file's tag": "!!int x", "a far escape": 'prefix: "\\UFFFFFFFF"', "an escape too far": 'prefix: "\\U00110000"',
    "no date": "learning_rate: !!timestamp x", "a set of lists": "a: !!set {[1]: }", "braces": "a: " + "{a: " * 3000, "steps": "- " * 3000 + "a",
    "a key of itself": "&a ? *a : b", "a bomb": "a: &a [1, 2]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi")),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_yaml_that_means_nothing_is_one_sentence(content, tmp_path):
    (file := tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    for read in (lambda: studies.configure(read_yaml(file)), lambda: load_space(file, {"model": "kobart"})):
        with pytest.raises(LabError) as caught:
            read()
        assert str(file) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(file))


def test_a_number_that_nobody_can_mean_is_one_sentence():
    for name in ("seed", "max_steps", "epochs", "scheduler"):
        with pytest.raises(ParameterError, match=f"^{name} has more than 100 digits"):
            studies.configure({name: 10**5000})
    with pytest.raises(ParameterError, match="^max_steps=18446744073709551616: must be 9223372036854775807 or less"):
        studies.configure({"max_steps": 2**64})
    with pytest.raises(ParameterError) as caught:
        coerce("seed", "9" * 5000, int)
    assert len(str(caught.value)) < 200
    (high,) = [one.metadata["high"] for one in TuneParams.__dataclass_fields__.values() if one.name == "seed"]
    with pytest.raises(ParameterError, match="seed=4294967296: must be 4294967295 or less"):
        check_bounds("seed", 2**32, high=high)
    assert [_budget(text) for text in ("auto", "1.2.3", "²", "0.1", "20", "9" * 5000)] == ["auto", "1.2.3", "²", 0.1, 20, "9" * 5000]


def test_a_grade_of_400_digits_is_a_problem_of_its_row(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "가"}\n', encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "가?"}\n', encoding="utf-8")
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t" + "9" * 400 + "\nq\ta\t1\n", encoding="utf-8")
    found = load_beir(tmp_path, policy="report")
    assert found.qrels == {"q": {"a": 1}}
    assert [(one.row, one.kind) for one in found.report.problems] == [(1, "broken grade")]


def test_shards_of_a_number_that_nobody_has_are_refused_at_once(tmp_path):
    (tmp_path / "train-00000-of-99999999999.csv").write_text("fname,dialogue,summary\nd1,가,나\n", encoding="utf-8")
    with pytest.raises(DataError, match="has 1 of 99999999999 shards of train.csv, and lacks number 1, 2, 3, 4, 5, and 99,999,999,993 more"):
        sources.find_parts(tmp_path)


# ---- what unpacks ---------------------------------------------------------------------------------------------------

DIALOGUES = [("d1", "#Person1#: 가요?\n#Person2#: 네.", "간다."), ("d2", "비가 와요.", "비가 온다."), ("d3", "회의는 세 시야.", "회의가 있다.")]
HEAD = ("fname", "dialogue", "summary")


def table(sep: str = ",") -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=sep, lineterminator="\n").writerows([HEAD, *DIALOGUES])
    return out.getvalue().encode()


def parquet(**more: object) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [row[i] for row in DIALOGUES] for i, name in enumerate(HEAD)}
    pq.write_table(pa.table(columns | more), raw := pa.BufferOutputStream())
    return raw.getvalue().to_pybytes()


def workbook() -> bytes:
    from openpyxl import Workbook

    book = Workbook()
    for cells in (("when", *HEAD), *((datetime.date(2026, 1, 1), *one) for one in DIALOGUES)):
        book.active.append(cells)
    book.save(raw := io.BytesIO())
    return raw.getvalue()


def loaded(folder: Path, name: str, content: bytes) -> tuple[list[str], list[tuple[int, str]]]:
    """Ids that arrive, and the row and kind of each problem."""
    (folder / name).write_bytes(content)
    found = load_dialogues(folder / name)
    return [row.fname for row in found.rows], [(one.row, one.kind) for one in found.report.problems]


def test_a_date_that_python_has_not_is_a_problem_only_where_it_is_asked_for(tmp_path):
    import pyarrow as pa

    far = pa.array([1, 10**15, 2], pa.timestamp("s"))
    assert loaded(tmp_path, "a.parquet", parquet(when=far)) == (["d1", "d2", "d3"], [])
    with pytest.raises(DataError, match="row 2: unreadable value: the topic cannot be read"):  # a date is no topic, so no row is left
        loaded(tmp_path, "b.parquet", parquet(topic=far))


def test_parquet_that_says_one_text_many_times_comes_in_small_batches(tmp_path, monkeypatch):
    """Of 1,024 rows at a time, each of 3 MB in a file of 300 KB, a batch would be 3.4 GB."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["가" * 10_000] * 500}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 60_000
    monkeypatch.setattr(rows, "UNPACKED", 300_000)
    sizes = [len(found) for _, found in rows._batches(tmp_path / "a.parquet")]
    assert sum(sizes) == 500 and 0 < max(sizes) <= 10


def test_what_unpacks_too_large_is_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "a.xlsx").write_bytes(workbook())
    monkeypatch.setattr(sheets, "UNPACKED", 1000)
    with pytest.raises(DataError, match=r"a.xlsx unpacks to [\d,]+ bytes, more than 1,000: save it as CSV"):
        load_dialogues(tmp_path / "a.xlsx")
    for module in (encodings, files):
        monkeypatch.setattr(module, "LARGEST", 100)
    (tmp_path / "a.csv").write_bytes(b"fname,dialogue,summary\nd1," + b"x" * 100 + b",y\n")
    with pytest.raises(DataError, match="a.csv has a line of more than 100 characters: put each row on a line of its own"):
        load_dialogues(tmp_path / "a.csv")
    with pytest.raises(FileError, match="has a line of more than 100 bytes"):
        list(utf8_lines(tmp_path / "a.csv"))


def test_a_header_without_a_name_says_which_would_do(tmp_path):
    from korlab.sparse.documents import read_folder

    (tmp_path / "a.csv").write_text('.,"가, 나",!\n1,2,3\n', encoding="utf-8")
    assert re.match(r"has no column '\w+' or '\w+'", read_folder(tmp_path).left_out["a.csv"])


# ---- mutations ------------------------------------------------------------------------------------------------------

OBJECTS = [dict(zip(HEAD, one)) for one in DIALOGUES]
PIECES = [b"", b"\0", b"\n", b"\r", b",", b'"', b"{", b"}", b"[", b"]", b":", b"- ", b"&a ", b"*a", b"!!int ", b"!!timestamp ", b"!!set ", b"<<: ", b"? ", b"| ",
          b"%", b"9" * 400, b"1e999", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\\ud800", b"\\U00110000", b"null", b"NaN", b"[" * 1500, b'{"a":' * 1500, b"\xb0\xa1",
          b"2026-13-45", b"sep=;\n", b"0x" + b"f" * 500]


def packed(content: bytes, name: str = "a.csv") -> bytes:
    with zipfile.ZipFile(raw := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return raw.getvalue()


def mutated(content: bytes, random_: random.Random) -> bytes:
    """A few bytes replaced, flipped, cut out, repeated or put in."""
    made = bytearray(content)
    for _ in range(random_.choice((1, 1, 1, 2, 5))):
        at = random_.randrange(len(made) + 1)
        end = at + random_.choice((0, 1, 2, 30))
        made[at:end] = random_.choice((random_.choice(PIECES), random_.randbytes(3), b"", bytes(made[at:end]) * 2))
    return bytes(made)


def inside(content: bytes, random_: random.Random) -> bytes:
    """A workbook or an archive with one member mutated."""
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(raw := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as new:
        victim = random_.choice(old.namelist())
        for name in old.namelist():
            new.writestr(name, mutated(old.read(name), random_) if name == victim else old.read(name))
    return raw.getvalue()


SEEDS: dict[str, Callable[[], bytes]] = {
    "a.csv": table, "a.tsv": lambda: table("\t"), "a.parquet": parquet, "a.xlsx": workbook, "a.zip": lambda: packed(table()),
    "a.jsonl": lambda: "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in OBJECTS).encode(),
    "a.json": lambda: json.dumps(OBJECTS, ensure_ascii=False).encode(),
    "columns.json": lambda: json.dumps({name: [one[name] for one in OBJECTS] for name in HEAD}, ensure_ascii=False).encode(),
    "experiment.yaml": lambda: b"model: kobart\nsize: mini\nseed: 3\nlearning_rate: 1e-3\nepochs: 2.5\ntidy: true\ndata: ~\n",
    "space.yaml": lambda: b"learning_rate: {low: 1e-6, high: 1e-4, log: true}\nnum_beams: [2, 4]\n",
}


def read(path: Path) -> object:
    if path.name == "experiment.yaml":
        return studies.configure(read_yaml(path))
    return load_space(path, {"model": "kobart"}) if path.suffix == ".yaml" else load_dialogues(path)


@pytest.mark.parametrize("times", [12, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SEEDS)
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_sentence(name, times, tmp_path):
    content, random_ = SEEDS[name](), random.Random(times)
    for _ in range(times):
        packs = name in ("a.xlsx", "a.zip") and random_.random() < 0.6
        (tmp_path / name).write_bytes(inside(content, random_) if packs else mutated(content, random_))
        try:
            read(tmp_path / name)
        except LabError as error:
            assert "\n" not in str(error)
