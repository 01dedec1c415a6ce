"""Every kind of messy file, through papermill and the cells of the entry notebooks: what arrives, or the sentence that refuses it."""

import csv
import gzip
import io
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import ROOT, flags, papermill
from in_process import Done, execute, shown

from korlab.core import charts
from korlab.core.files import read_json
from korlab.experiment import results

Files = Mapping[str, bytes | str]  # name -> content; the first one is what `data` names, or its folder is

# ---- what a row says ------------------------------------------------------------------------------------------------

ROWS = {
    "d1": ("#Person1#: 점심은 드셨어요?\n#Person2#: 네, 김밥을 먹었어요.", "#Person2#는 점심에 김밥을 먹었다."),
    "d2": ("#Person1#: 비가 많이 오네요.\n#Person2#: 우산을 빌려줄게요.", "#Person2#가 우산을 빌려준다."),
    "d3": ("#Person1#: 회의가 몇 시죠?\n#Person2#: 세 시에 시작해요.", "회의는 세 시에 시작한다."),
}

DEV = ("v1", "#Person1#: 어디 가세요?\n#Person2#: 시장에 가요.", "#Person2#는 시장에 간다.")
TEST = ("t1", "#Person1#: 불 좀 꺼 주세요.\n#Person2#: 네, 알겠어요.", "#Person2#가 불을 끈다.")
SMALL = {"vocab_size": 300, "max_steps": 1, "max_target_length": 4, "num_beams": 1, "tracking": "none"}
GREEDY = {"max_target_length": 8, "num_beams": 1}
SPARSE = {"model": "sparse-ko", "vocab_size": 300, "max_steps": 1, "max_length": 16, "batch_size": 2, "eval_steps": 1, "eval_rows": 2, "warmup": 0,
          "negatives": 0, "tracking": "none", "on_collapse": "warn"}


@dataclass(frozen=True)
class Right:
    """The rows that arrive, whole, and every problem by row, line and kind."""

    kept: str  # ids, in order
    problems: Sequence[tuple[int, int, str]] = ()  # row, line, kind
    says: Sequence[str] = ()  # words of the notes on the file, or its encoding
    said: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # dialogue and summary, where they are not those of ROWS
    nfc: int | None = None  # rows that the normal form changed
    cleaned: int | None = None  # rows that cleaning changed

    def check(self, done: Done) -> None:
        assert done.error is None, done.error
        (report,) = [one for one in read_json(done.names["run"].path("data.json"))["sources"] if one["split"] == "train"]
        found = done.names["data"].rows["train"]
        assert [row.fname for row in found] == self.kept.split()
        assert [(p["row"], p["line"], p["kind"]) for p in report["problems"]] == list(self.problems)
        for row in found:
            assert (row.dialogue, *row.summaries) == {**ROWS, **self.said}[row.fname]
        notes = json.dumps([report["notes"], *([file["encoding"], file["notes"]] for file in report["files"])], ensure_ascii=False)
        assert all(word in notes for word in self.says), notes
        assert self.nfc in (None, report["nfc_changed"]) and self.cleaned in (None, report["cleaned"])
        assert all(problem["kind"] in done.page for problem in report["problems"])


class Refused:
    """One sentence with these words, and no traceback."""

    def __init__(self, *words: str, never: Sequence[str] = ()):
        self.words, self.never = words, never

    def check(self, done: Done) -> None:
        assert done.error is not None, "nothing was refused"
        message = done.error.evalue
        assert done.error.traceback == [f"{done.error.ename}: {message}"]
        assert "\n" not in message and len(re.sub(r"/\S*/", "", message)) < 400, message
        assert all(word in message for word in self.words) and not any(word in message for word in self.never), message


def row(name: str, files: Files, expected: Right | Refused, /, **values: object):
    """A row of the table: its name, the files, what is to come of them, parameters besides `data`."""
    return pytest.param(files, expected, values, id=name.replace(" ", "-"))


# ---- makers ---------------------------------------------------------------------------------------------------------

def table(*rows: Sequence[str], head: Sequence[str] = ("fname", "dialogue", "summary"), sep: str = ",", **changed: tuple[str, str]) -> str:
    """Rows as CSV, those of ROWS unless others are given."""
    out = io.StringIO()
    lines = rows or [(name, *changed.get(name, texts)) for name, texts in ROWS.items()]
    csv.writer(out, delimiter=sep, lineterminator="\n").writerows([head, *lines] if head else lines)
    return out.getvalue()


def lines(*rows: Mapping[str, object], **changed: tuple[str, str]) -> str:
    """Rows as JSON lines."""
    own = [dict(zip(("fname", "dialogue", "summary"), (name, *changed.get(name, texts)))) for name, texts in ROWS.items()]
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows or own)


def parquet(names: str = "d1 d2 d3") -> bytes:
    """Rows as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw, kept = pa.BufferOutputStream(), names.split()
    pq.write_table(pa.table({"fname": kept, **{k: [ROWS[n][i] for n in kept] for i, k in enumerate(("dialogue", "summary"))}}), raw)
    return raw.getvalue().to_pybytes()


def one_line(name: str, dialogue: str | None = None, summary: str | None = None) -> str:
    """A row by hand, without quotes of the writer's."""
    return f"{name},{dialogue or ROWS[name][0].splitlines()[0]},{summary or ROWS[name][1]}\n"


HEAD = "fname,dialogue,summary\n"
FIRST = {name: (texts[0].splitlines()[0], texts[1]) for name, texts in ROWS.items()}  # what `one_line` says


def put(folder: Path, files: Files) -> Path:
    """Write the files; a folder is what holds several."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder if len(files) > 1 else folder / next(iter(files))


class Place:
    """Where a row's files and runs are."""

    def __init__(self, folder: Path):
        self.folder, self.runs = folder, folder / "runs"
        self.dev, self.test = folder / "dev" / "clean.csv", folder / "test" / "clean.csv"
        put(folder, {"dev/clean.csv": table(DEV), "test/clean.csv": table(TEST)})


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    """A folder of its own, and the lab's root as the working folder."""
    found = Place(tmp_path)
    for figure in ("length_histogram", "score_distribution"):
        monkeypatch.setattr(charts, figure, lambda *values, **more: None)  # each costs more than everything else of a row
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KORLAB_RUNS", str(found.runs))
    return found


# ---- files of dialogues, as training rows ---------------------------------------------------------------------------

def a_turn_a_line(mark: str) -> dict[str, tuple[str, str]]:
    """d2 with its turns parted by something else than a line feed."""
    return {"d2": (ROWS["d2"][0].replace("\n", mark), ROWS["d2"][1])}


LONG = {"d2": ("#Person1#: " + "비가 많이 오네요. " * 20_000 + "끝.", ROWS["d2"][1])}  # 200,013 characters
SWALLOWING = HEAD + 'd1,"#Person1#: 점심은 드셨어요?,점심 이야기.\nd2,#Person1#: 비가 많이 오네요.",비 이야기.\n' + one_line("d3")
SWALLOWED = {"d1": ("#Person1#: 점심은 드셨어요?,점심 이야기.\nd2,#Person1#: 비가 많이 오네요.", "비 이야기.")}
MIXED = [table(("d1", *ROWS["d1"])), *(table((name, *ROWS[name]), head=()) for name in ("d2", "d3"))]
SOUP = table(("d2", "#Person1#: 많이 봐요.\n#Person2#: 감사.", "많이 빌려 간다."), head=())  # its UTF-8 is valid CP949, and hanja
ODD = {"d2": ("#Person1#: 나ㅋㅋㅋ ㅠㅠ 👨‍👩‍👧‍👦 왔어.\n#Person2#: ㅇㅇ", "👩🏽‍🚀ㅎㅎ")}
HIDDEN = {"d2": (ROWS["d2"][0].replace("우산", "우\u200b산\ufeff"), ROWS["d2"][1])}

DIALOGUES = [
    # encodings
    row("UTF-8 with a mark", {"mine.csv": table().encode("utf-8-sig")}, Right("d1 d2 d3", says=["UTF-8 with BOM"])),
    row("CP949", {"mine.csv": table().encode("cp949")}, Right("d1 d2 d3", says=["CP949"])),
    row("EUC-KR", {"mine.csv": table().encode("euc-kr")}, Right("d1 d2 d3", says=["CP949"])),
    row("CP949 of JSON lines", {"mine.jsonl": lines().encode("cp949")}, Right("d1 d2 d3", says=["CP949"])),
    row("UTF-16 with a mark", {"mine.csv": table().encode("utf-16")}, Right("d1 d2 d3", says=["UTF-16 LE"])),
    row("big-endian UTF-16, tabs", {"mine.tsv": ("\ufeff" + table(sep="\t")).encode("utf-16-be")}, Right("d1 d2 d3", says=["UTF-16 BE"])),
    row("UTF-16 without a mark", {"mine.csv": table().encode("utf-16-le")}, Refused("mine.csv", "UTF-16", "save it as UTF-8")),
    row("one CP949 row in UTF-8", {"mine.csv": MIXED[0].encode() + MIXED[1].encode("cp949") + MIXED[2].encode()},
        Right("d1 d3", [(2, 4, "undecodable bytes")])),
    row("one UTF-8 row in CP949", {"mine.csv": MIXED[0].encode("cp949") + MIXED[1].encode() + MIXED[2].encode("cp949")},
        Right("d1 d3", [(2, 4, "undecodable bytes")])),
    row("one UTF-8 row that CP949 can read", {"mine.csv": MIXED[0].encode("cp949") + SOUP.encode() + MIXED[2].encode("cp949")},
        Right("d1 d3", [(2, 4, "wrong encoding")])),
    row("told the encoding", {f"{name}.csv": text.encode("utf-16-le") for name, text in zip(("train", "dev", "test"), (table(), table(DEV), table(TEST)))},
        Right("d1 d2 d3"), encoding="utf-16-le", dev_data=None, test_data=None),
    # quotes
    row("a quote never closed", {"mine.csv": HEAD + one_line("d1") + 'd2,"#Person1#: 비가 오네요.,비 이야기.\n' + one_line("d3")},
        Right("d1 d3", [(2, 3, "broken quoting")], said=FIRST)),
    row("a quote never closed at the end", {"mine.csv": HEAD + one_line("d1") + one_line("d2") + 'd3,"#Person1#: 몇 시죠?,회의.\n'},
        Right("d1 d2", [(3, 4, "broken quoting")], said=FIRST)),
    row("a quote that swallows the next record", {"mine.csv": SWALLOWING}, Right("d1 d3", [(1, 2, "swallowed row")], said=FIRST | SWALLOWED)),
    row("the same under strict", {"mine.csv": SWALLOWING}, Refused("mine.csv", "row 1", "line 3"), data_policy="strict"),
    row("doubled quotes", {"mine.csv": table(d2=('#Person1#: "비"가 ""온다""?', '"비" 이야기.'))},
        Right("d1 d2 d3", said={"d2": ('#Person1#: "비"가 ""온다""?', '"비" 이야기.')}, cleaned=0)),
    row("backslashes before quotes", {"mine.csv": HEAD + one_line("d1") + one_line("d2", '"#Person1#: \\"비\\"가 와."') + one_line("d3")},
        Right("d1 d3", [(2, 3, "broken quoting")], said=FIRST)),
    # empties
    row("an empty file", {"mine.csv": ""}, Refused("mine.csv is empty (0 bytes)", "copy or download it again")),
    row("blank lines only", {"mine.csv": "\n\n \n"}, Refused("mine.csv", "nothing but blank lines")),
    row("a header only", {"mine.csv": HEAD}, Refused("mine.csv", "a header but no rows", "add rows")),
    row("empty cells", {"mine.csv": table(("d1", "", "요약"), ("d2", "#Person1#: 응", ""), ("", "#Person1#: 응", "요약"), ("d3", *ROWS["d3"]))},
        Right("d3", [(1, 2, "empty dialogue"), (2, 3, "empty summary"), (3, 4, "blank fname")])),
    row("no cell filled", {"mine.csv": HEAD + ",,\n,,\n"}, Refused("mine.csv", "no row that can be used", "row 1 (line 2)", "empty dialogue")),
    row("what stands for nothing", {"mine.csv": table(d2=(ROWS["d2"][0], "N/A"))}, Right("d1 d3", [(2, 4, "NA-like summary")])),
    row("blank lines between rows", {"mine.csv": "\n" + MIXED[0] + "\n\n" + MIXED[1] + MIXED[2]}, Right("d1 d2 d3", says=["2 blank lines skipped"])),
    # duplicates
    row("a row twice", {"mine.csv": table() + MIXED[1]}, Right("d1 d2 d3", [(4, 8, "duplicate fname")])),
    row("an id twice", {"mine.csv": table() + table(("d2", *ROWS["d3"]), head=())}, Right("d1 d2 d3", [(4, 8, "duplicate fname")])),
    row("a dialogue twice", {"mine.csv": table() + table(("d4", *ROWS["d2"]), head=())},
        Right("d1 d2 d3 d4", [(4, 8, "duplicate dialogue")], said={"d4": ROWS["d2"]})),
    row("two columns of one name", {"mine.csv": table(("d1", *ROWS["d1"], "또"), head=("fname", "dialogue", "summary", "Summary"))},
        Refused("mine.csv", "'summary' and 'Summary'", "rename or remove one")),
    row("the header again", {"mine.csv": MIXED[0] + HEAD + MIXED[1] + MIXED[2]}, Right("d1 d2 d3", [(2, 4, "repeated header")])),
    row("a dialogue of dev", {"mine.csv": table() + table(("d4", DEV[1], "다른 요약."), head=())},
        Refused("train and dev share 1 dialogue", "d4 = v1", "remove")),
    # lengths
    row("200,000 characters", {"mine.csv": table(**LONG)}, Right("d1 d3", [(2, 4, "too long")])),
    row("200,000 characters allowed", {"mine.csv": table(**LONG)}, Right("d1 d2 d3", said=LONG), max_chars=300_000),
    row("a summary of one character", {"mine.csv": table(d2=(ROWS["d2"][0], "비"))}, Right("d1 d2 d3", said={"d2": (ROWS["d2"][0], "비")})),
    row("a summary longer than its dialogue", {"mine.csv": table(d2=("#Person1#: 응", "응. " * 50 + "끝."))},
        Right("d1 d2 d3", said={"d2": ("#Person1#: 응", "응. " * 50 + "끝.")})),
    # Unicode
    row("loose letters", {"mine.csv": unicodedata.normalize("NFD", table())}, Right("d1 d2 d3", nfc=3, cleaned=0)),
    row("jamo and joined emoji", {"mine.csv": table(**ODD)}, Right("d1 d2 d3", said=ODD, nfc=0, cleaned=0)),
    row("characters without width", {"mine.csv": table(**HIDDEN)}, Right("d1 d2 d3", cleaned=1)),
    row("half a character", {"mine.jsonl": lines().replace("우산을", r"우산\ud800을", 1)}, Right("d1 d3", [(2, 2, "undecodable bytes")])),
    *(row(f"{name} between turns of {kind}", {f"mine.{kind}": make(**a_turn_a_line(mark))}, Right("d1 d2 d3", cleaned=1))
      for name, mark in (("U+2028", "\u2028"), ("U+0085", "\x85"), ("a form feed", "\f")) for kind, make in (("csv", table), ("jsonl", lines))),
    row("what is no markup", {"mine.csv": table(d2=("#Person1#: <EBS 다큐> 봤어?\n#Person2#: git push <remote> <branch>", "<SBS 뉴스>"))},
        Right("d1 d2 d3", said={"d2": ("#Person1#: <EBS 다큐> 봤어?\n#Person2#: git push <remote> <branch>", "<SBS 뉴스>")}, cleaned=0)),
    # headers
    row("no header", {"mine.csv": table(head=())}, Refused("mine.csv", "header", never=["네, 김밥"])),
    row("another case, blanks", {"mine.csv": table(head=(" FName ", "DIALOGUE", "Summary "))}, Right("d1 d2 d3")),
    row("Korean names", {"mine.csv": table(head=("id", "대화", "요약"))},
        Right("d1 d2 d3", says=["column '대화' read as dialogue", "column '요약' read as summary"])),
    row("wrong names", {"mine.csv": table(head=("number", "talk", "gist"))},
        Refused("mine.csv has no column 'dialogue'", "it has number, talk, gist", "give that name", "-p columns dialogue=")),
    row("more columns", {"mine.csv": table(*[(n, *t, "2024") for n, t in ROWS.items()], head=("fname", "dialogue", "summary", "year"))},
        Right("d1 d2 d3", says=["ignored columns: year"])),
    # delimiters
    *(row(name, {"mine.csv": table(sep=sep)}, Right("d1 d2 d3")) for name, sep in (("tabs", "\t"), ("semicolons", ";"), ("pipes", "|"))),
    row("commas in a .tsv", {"mine.tsv": table()}, Right("d1 d2 d3")),
    # cut off
    row("cut in a quoted dialogue", {"mine.csv": table()[:-30]}, Right("d1 d2", [(3, 6, "broken quoting")])),
    row("cut in a syllable", {"mine.csv": table().encode()[:-3]}, Right("d1 d2", [(3, 6, "undecodable bytes")])),
    row("cut JSON lines", {"mine.jsonl": lines().encode()[:-30]}, Right("d1 d2", [(3, 3, "undecodable bytes")])),
    row("cut gzip", {"mine.csv.gz": gzip.compress(table().encode())[:-20]}, Refused("mine.csv.gz", "cannot be unpacked", "copy or download it again", never=["rename"])),
    row("cut Parquet", {"mine.parquet": parquet()[:-40]}, Refused("mine.parquet", "is not readable as Parquet", "copy it again")),
    # fields
    row("too few and too many fields", {"mine.csv": HEAD + one_line("d1") + "d2,#Person1#: 응\n" + one_line("d3", "#Person1#: 아, 네") + one_line("d3")},
        Right("d1 d3", [(2, 3, "ragged row"), (3, 4, "ragged row")], said=FIRST)),
    row("NUL in a cell", {"mine.csv": table().replace("우산을", "우산\0을", 1)}, Right("d1 d3", [(2, 4, "NUL byte")])),
    row("NUL in the header", {"mine.csv": table().replace("dialogue", "dia\0logue", 1)}, Refused("mine.csv", "NUL bytes in its header")),
    # JSON and Parquet
    row("JSON lines", {"mine.jsonl": lines()}, Right("d1 d2 d3")),
    row("Parquet", {"mine.parquet": parquet()}, Right("d1 d2 d3")),
    row("a JSON array", {"mine.jsonl": json.dumps([{"fname": "d1"}], ensure_ascii=False)}, Refused("mine.jsonl", "one JSON object per line")),
    row("a pretty JSON array", {"mine.jsonl": json.dumps([{"fname": "d1"}], indent=2)}, Refused("mine.jsonl", "one JSON object per line")),
    row("pretty-printed objects", {"mine.jsonl": json.dumps({"fname": "d1"}, indent=2)}, Refused("mine.jsonl", "one JSON object per line")),
    row("a .json file", {"mine.json": json.dumps([{"fname": "d1"}])}, Refused("mine.json has no column 'dialogue' (it has fname)", never=[".jsonl"])),
    # folders
    row("a Mac's companion beside", {"train.csv": table(), "._train.csv": b"\0\5\x16\7\0\2\0\0Mac OS X"}, Right("d1 d2 d3")),
    row("shards", {"train-00000-of-00002.parquet": parquet("d1 d2"), "train-00001-of-00002.parquet": parquet("d3")}, Right("d1 d2 d3")),
    row("a folder of nothing", {"notes.txt": "없음", "more.txt": ""}, Refused("train", "notes.txt")),
]


@pytest.mark.parametrize(("files", "expected", "values"), DIALOGUES)
def test_dialogues(files, expected, values, place):
    given = {"dev_data": place.dev, "test_data": place.test, "name": "mine"} | SMALL | values
    expected.check(execute("train", place.folder / "out.ipynb", "up-to-data", data=put(place.folder / "data", files), **given))


def test_rows_of_one_dialogue_stay_on_one_side(place):
    """The lab's own split: each dialogue three times under three names."""
    rows = [(f"r{i}", f"#Person1#: {i // 3}번 이야기예요.\n#Person2#: 네, 그래요.", f"{i}번째 요약.") for i in range(42)]
    done = execute("train", place.folder / "out.ipynb", "up-to-data", data=put(place.folder / "data", {"mine.csv": table(*rows)}), name="mine", **SMALL)
    assert done.error is None, done.error
    splits = {name: {row.fname: row.dialogue for row in found} for name, found in done.names["data"].rows.items()}
    assert sorted(name for one in splits.values() for name in one) == sorted(row[0] for row in rows)
    assert all(splits.values()) and sum(len(set(one.values())) for one in splits.values()) == 14


# ---- files of dialogues, summarised and scored ----------------------------------------------------------------------

@dataclass(frozen=True)
class Scored:
    """A summary for each id in order, and the exact score of those with a reference."""

    kept: str
    score: float | None  # of every kind of ROUGE, counted in every way; None where nothing is scored
    n: int = 0  # rows scored, if not all
    problems: Sequence[tuple[int, int, str]] = ()  # row, line, kind
    says: Sequence[str] = ()  # words of the run's notes

    def check(self, done: Done) -> None:
        assert done.error is None, done.error
        run = done.names["run"]
        (report,) = read_json(run.path("data.json"))["sources"]
        (file,) = run.path("predictions").glob("*.csv")
        with open(file, encoding="utf-8", newline="") as written:
            assert [row["fname"] for row in csv.DictReader(written)] == self.kept.split()
        assert [(p["row"], p["line"], p["kind"]) for p in report["problems"]] == list(self.problems)
        found = results.read(run).scored
        own = [one for one in found if not one.baseline]
        assert {(one.n, measure.mean) for one in own for measure in one.measures.values()} == (
            set() if self.score is None else {(self.n or len(self.kept.split()), self.score)})
        notes = " ".join(note["text"] for note in run.status.get("notes", []))
        assert all(word in notes for word in self.says), notes


def bare(*names: str) -> str:
    """Rows without summaries."""
    return table(*[(name, ROWS[name][0]) for name in names], head=("fname", "dialogue"))


def strangers(said: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """References without a word or a letter of any summary."""
    return {name: (dialogue, "xyz") for name, (dialogue, _) in said.items()}


EVALUATED = [  # `said`: the dialogues with what the model says of them, so that a right file scores 1
    *(row(f"a file named {name}", lambda said, name=name: {f"{name}.csv": table(**said)}, Scored("d1 d2 d3", 1.0)) for name in ("dev", "train", "val-2024")),
    row("no summaries", lambda said: {"test.csv": bare("d1", "d2", "d3")}, Scored("d1 d2 d3", None, says=["3 of 3 rows of test have no summary"])),
    row("some summaries", lambda said: {"my.csv": table(**said | {"d2": (ROWS["d2"][0], "")})},
        Scored("d1 d2 d3", 1.0, n=2, says=["1 of 3 rows of my have no summary"])),
    row("no word in common", lambda said: {"my.csv": table(**strangers(said))}, Scored("d1 d2 d3", 0.0)),
    row("CP949", lambda said: {"test.csv": table(**said).encode("cp949")}, Scored("d1 d2 d3", 1.0)),
    row("ids in another order", lambda said: {"my.csv": table(*[(name, *said[name]) for name in ("d3", "d1", "d2")])}, Scored("d3 d1 d2", 1.0)),
    row("an id twice", lambda said: {"my.csv": table(**said) + table(("d2", "#Person1#: 응", "응."), head=())},
        Scored("d1 d2 d3", 1.0, problems=[(4, 8, "duplicate fname")], says=["1 problem row"])),
    row("an id missing", lambda said: {"my.csv": table(**said) + table(("", "#Person1#: 응", "응."), head=())},
        Scored("d1 d2 d3", 1.0, problems=[(4, 8, "blank fname")], says=["1 problem row"])),
    row("shards of a test set", lambda said: {"test-0.csv": bare("d1", "d2"), "test-1.csv": bare("d3"), "._test-0.csv": b"\0\5"}, Scored("d1 d2 d3", None)),
    row("a submission", lambda said: {"submission.csv": table(("d1", "요약"), head=("fname", "summary"))},
        Refused("submission.csv has no column 'dialogue'", "it has fname, summary")),
    row("an id missing under strict", lambda said: {"my.csv": table(**said) + table(("", "#Person1#: 응", "응."), head=())},
        Refused("my.csv", "row 4 (line 8)", "blank fname", "policy='report'"), data_policy="strict"),
]


@pytest.fixture(scope="module")
def said(quickstart, tmp_path_factory) -> dict[str, tuple[str, str]]:
    """The dialogues of ROWS, each with the summary of the trained model."""
    folder = tmp_path_factory.mktemp("said")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        done = execute("evaluate", folder / "out.ipynb", run=quickstart, data=put(folder, {"my.csv": bare(*ROWS)}), name="messy-said", **GREEDY)
    assert done.error is None, done.error
    with open(quickstart / "evaluations" / "messy-said" / "predictions" / "my.csv", encoding="utf-8", newline="") as file:
        return {row["fname"]: (ROWS[row["fname"]][0], row["summary"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize(("files", "expected", "values"), EVALUATED)
def test_evaluated(files, expected, values, place, quickstart, said, request):
    given = {"run": quickstart, "data": put(place.folder / "data", files(said)), "name": f"messy-{request.node.callspec.id}"}
    expected.check(execute("evaluate", place.folder / "out.ipynb", **given, **GREEDY, **values))


# ---- collections ----------------------------------------------------------------------------------------------------

CORPUS = {"p1": "김치찌개는 돼지고기와 김치를 넣고 끓인다.", "p2": "김치찌개에 두부를 넣고 끓이면 맛있다."}
QUERIES = {"q1": "김치찌개 끓이는 방법", "q2": "김치찌개에 두부"}
GRADES = "".join(f"{query}\t{doc}\t1\n" for query in QUERIES for doc in CORPUS)  # both answer both: whoever finds them scores 1
QRELS = "query-id\tcorpus-id\tscore\n" + GRADES


def entries(texts: Mapping[str, str], key: str = "text", name: str = "_id", indent: int | None = None) -> str:
    """Documents or queries, one object a line."""
    return "".join(json.dumps({name: i, key: text}, ensure_ascii=False, indent=indent) + "\n" for i, text in texts.items())


def beir(corpus: bytes | str = entries(CORPUS), queries: bytes | str = entries(QUERIES), qrels: bytes | str = QRELS, split: str = "test") -> Files:
    """A collection in BEIR's layout."""
    return {"corpus.jsonl": corpus, "queries.jsonl": queries, f"qrels/{split}.tsv": qrels}


@dataclass(frozen=True)
class Found:
    """What was searched and judged, every problem by file, row, line and kind, and the exact nDCG@10 of each system."""

    score: float
    documents: int = 2
    queries: int = 2
    problems: Sequence[tuple[str, int, int, str]] = ()
    systems: Sequence[str] = ("sparse-ko", "BM25 morphemes")  # that score so
    passages: Mapping[str, str] = field(default_factory=dict)  # texts that arrive
    split: str = "test"  # the name it is scored under

    def check(self, done: Done) -> None:
        assert done.error is None, done.error
        run = done.names["run"]
        data = read_json(run.path("data.json"))
        assert (data["documents"], data["rows"]) == ({self.split: self.documents}, {self.split: self.queries})
        (report,) = data["sources"]
        assert [(Path(p["file"]).name, p["row"], p["line"], p["kind"]) for p in report["problems"]] == list(self.problems)
        found = {one.system: one for one in results.read(run).scored}
        assert {name: (found[name].n, found[name].measures["ndcg@10"].mean) for name in self.systems} == (
            dict.fromkeys(self.systems, (self.queries, self.score)))
        assert self.passages.items() <= read_json(run.path("rankings", f"{self.split}.passages.json")).items()


APART = {"p1": "김치찌개는 돼지고기와\u2028김치를 넣고\x85끓인다.\u2029끝.", "p2": CORPUS["p2"]}
TITLED = entries(CORPUS) + json.dumps({"_id": "p3", "title": "제목만 있는 글", "text": None}, ensure_ascii=False) + "\n"
FAR = CORPUS | {"p3": "서울역에서 부산까지 기차로 간다.", "p4": "고양이는 생선을 먹는다."}
KIN = {"a": "김치찌개 끓이는 방법", "b": "김치찌개 끓이는 시간"}

COLLECTIONS = [
    row("a collection", beir(), Found(1.0)),
    *(row(f"texts under {key}", beir(entries(CORPUS, key)), Found(1.0, passages=CORPUS)) for key in ("contents", "passage")),
    row("ids under id", beir(entries(CORPUS, name="id"), entries(QUERIES, name="id")), Found(1.0, passages=CORPUS)),
    row("no text beside a title", beir(TITLED), Found(1.0, 3, problems=[("corpus.jsonl", 3, 3, "title only")], systems=["BM25 morphemes"])),
    row("documents without text", beir(entries(CORPUS, "chunk")), Refused("corpus.jsonl", "text", "chunk", never=["check qrels"])),
    row("a pretty-printed corpus", beir(entries(CORPUS, indent=2)), Refused("corpus.jsonl", "one JSON object per line", never=["check qrels"])),
    row("a JSON array", beir(json.dumps([{"_id": "p1", "text": "가"}])), Refused("corpus.jsonl", "one JSON object per line", never=["check qrels"])),
    row("a CP949 corpus", beir(entries(CORPUS).encode("cp949")), Refused("corpus.jsonl", "UTF-8", never=["check qrels"])),
    row("an empty corpus", beir(""), Refused("corpus.jsonl", "0 bytes", never=["check qrels"])),
    row("marks before all files", {name: b"\xef\xbb\xbf" + text.encode() for name, text in beir().items()}, Found(1.0)),
    row("a document twice", beir(entries(CORPUS) + entries({"p2": "두 번째 글"})), Found(1.0, problems=[("corpus.jsonl", 3, 3, "duplicate id")])),
    row("half a character", beir(entries(CORPUS) + '{"_id": "p3", "text": "김치\\ud800"}\n'),
        Found(1.0, problems=[("corpus.jsonl", 3, 3, "undecodable bytes")])),
    row("other line breaks in passages", beir(entries(APART)), Found(1.0, passages={"p2": CORPUS["p2"], "p1": APART["p1"]})),
    row("judgements without a header", beir(qrels=GRADES), Found(1.0)),
    row("judgements of TREC", beir(qrels=GRADES.replace("\t", " 0 ", 1).replace("\tp", " 0 p").replace("\t", " ")), Found(1.0)),
    row("judgements with blanks", beir(qrels=GRADES.replace("\t", "  ").replace("\n", "\r\n")), Found(1.0)),
    row("judgements of dev only", beir(split="validation"), Found(1.0, split="dev")),
    row("ids nobody knows", beir(qrels=QRELS + "q9\tp1\t1\nq1\tp9\t1\n"),
        Found(1.0, problems=[("test.tsv", 5, 6, "unknown query"), ("test.tsv", 6, 7, "unknown document")])),
    row("ids nobody knows under strict", beir(qrels=QRELS + "q9\tp1\t1\n"), Refused("test.tsv", "row 5 (line 6)", "unknown query", "q9"), data_policy="strict"),
    row("only ids nobody knows", beir(qrels="x\ty\t1\n"), Refused("test.tsv", "unknown query")),
    row("a grade in words", beir(qrels=QRELS + "q1\tp1\thigh\n"), Found(1.0, problems=[("test.tsv", 5, 6, "broken grade")])),
    row("grades of nought and below", beir(entries(FAR), qrels=QRELS + "q1\tp3\t0\nq2\tp4\t-1\n"), Found(1.0, 4, systems=["BM25 morphemes"])),
    row("nothing relevant", beir(qrels=QRELS.replace("\t1\n", "\t0\n")), Found(0.0)),
    row("a query with the id of a document", beir(entries(KIN), entries(KIN), "a\tb\t1\nb\ta\t1\n"), Found(1.0)),
    row("no judgements", {"corpus.jsonl": entries(CORPUS), "queries.jsonl": entries(QUERIES)}, Refused("judges no split 'test'")),
    row("no collection", {"mine.csv": table()}, Refused("mine.csv", "no column 'query'", "-p columns query=")),
]


@pytest.fixture(scope="module")
def searcher(tmp_path_factory) -> Path:
    """A retriever after one update, on questions and passages of its own."""
    folder = tmp_path_factory.mktemp("searcher")
    asked = {f"t{i}": f"{word} 어디에 있어요?" for i, word in enumerate(("학교는", "병원은", "시장은", "공원은"))}
    judged = {"train": ("t0", "t1"), "dev": ("t2",), "test": ("t3",)}
    files = beir(entries({name: text.replace("어디에 있어요?", "저기에 있어요.") for name, text in asked.items()}), entries(asked), split="train") | {
        f"qrels/{split}.tsv": "".join(f"{name}\t{name}\t1\n" for name in names) for split, names in judged.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("KORLAB_RUNS", str(folder / "runs"))
        done = execute("train", folder / "out.ipynb", data=put(folder / "data", files), name="mine", **SPARSE)
    assert done.error is None, done.error
    return folder / "runs" / "sparse" / "mine"


@pytest.mark.parametrize(("files", "expected", "values"), COLLECTIONS)
def test_collections(files, expected, values, place, searcher, request):
    given = {"run": searcher, "data": put(place.folder / "data", files), "name": request.node.callspec.id}
    expected.check(execute("evaluate", place.folder / "out.ipynb", **given, **values))


# ---- triples --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Learnt:
    """The triples that arrive, and every problem by row, line and kind."""

    triples: Sequence[tuple[str, str, tuple[str, ...]]]  # query, positive, negatives
    problems: Sequence[tuple[int, int, str]] = ()

    def check(self, done: Done) -> None:
        assert done.error is None, done.error
        assert [(t.query, t.positive, t.negatives) for t in done.names["data"].triples] == list(self.triples)
        report = read_json(done.names["run"].path("data.json"))["sources"][0]
        assert [(p["row"], p["line"], p["kind"]) for p in report["problems"]] == list(self.problems)
        assert all(problem["kind"] in done.page for problem in report["problems"])


FIRST_TRIPLE = ("우체국이 어디예요?", "우체국은 시청 옆에 있다.", ("은행은 역 앞에 있다.",))
SECOND_TRIPLE = ("은행은 몇 시에 열어요?", "은행은 아홉 시에 연다.", ("우체국은 열 시에 연다.",))


def asked(*rows: object) -> str:
    """Triples as JSON lines: a tuple is a whole one, everything else is written as it is."""
    whole = [dict(zip(("query", "positive", "negatives"), one)) if isinstance(one, tuple) else one for one in rows]
    return "".join((one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)) + "\n" for one in whole)


def columns(*rows: tuple, sep: str = ",") -> str:
    """Triples as CSV."""
    return table(*[(query, positive, *negatives) for query, positive, negatives in rows], head=("query", "positive", "negative_1"), sep=sep)


BOTH = (FIRST_TRIPLE, SECOND_TRIPLE)
TRIPLES = [
    row("JSON lines", {"mine.jsonl": asked(*BOTH)}, Learnt(BOTH)),
    row("CP949, semicolons", {"mine.csv": columns(*BOTH, sep=";").encode("cp949")}, Learnt(BOTH)),
    row("keys nobody knows", {"mine.jsonl": asked({"said": "가?", "meant": "나."})}, Refused("mine.jsonl", "said", "meant", "positive")),
    row("keys of people", {"mine.jsonl": asked({"질문": BOTH[0][0], "답변": BOTH[0][1]}, BOTH[1])}, Learnt(((*BOTH[0][:2], ()), BOTH[1]))),
    row("an empty answer and half a character", {"mine.jsonl": asked(*BOTH, ("가?", "", ("나.",)), r'{"query": "가\ud800?", "positive": "나."}')},
        Learnt(BOTH, [(3, 3, "empty positive"), (4, 4, "undecodable bytes")])),
    row("the answer among the negatives", {"mine.jsonl": asked(*BOTH, ("가?", "나다라.", ("나다라.", "마바사.")))},
        Learnt((*BOTH, ("가?", "나다라.", ("마바사.",))), [(3, 3, "fewer negatives")])),
    row("a pair twice", {"mine.jsonl": asked(*BOTH, FIRST_TRIPLE)}, Learnt((*BOTH, FIRST_TRIPLE), [(3, 3, "duplicate pair")])),
    row("a pretty JSON array", {"mine.jsonl": json.dumps([{"query": "가", "positive": "나"}], indent=1)}, Refused("mine.jsonl", "one JSON object per line")),
    row("negatives that nobody finds", {"mine.jsonl": asked({"query": "가?", "positive": CORPUS["p1"]}, {"query": "나?", "positive": CORPUS["p2"]})},
        Refused("negatives=1 leaves nothing to learn from", "negatives=0"), negatives=1),
]


@pytest.mark.parametrize(("files", "expected", "values"), TRIPLES)
def test_triples(files, expected, values, place):
    judged = {f"{name}_data": put(place.folder / name, beir(queries=entries({"q1": f"{name} 김치찌개", "q2": f"{name} 두부"}), split=name)) for name in ("dev", "test")}
    given = judged | {"name": "mine", "data": put(place.folder / "data", files)} | SPARSE | values
    expected.check(execute("train", place.folder / "out.ipynb", "up-to-data", **given))


# ---- the engine tells the truth -------------------------------------------------------------------------------------

TOLD = {"right": {"mine.csv": MIXED[0].encode() + MIXED[1].encode("cp949") + MIXED[2].encode()}, "refused": {"mine.csv": HEAD}}


def left(runs: Path, notebook: Path) -> list[object]:
    """What a training left behind, without what it cost."""
    run = runs / "summarization" / "mine"
    status = read_json(run / "status.json")
    told = re.sub(r"훈련 [\d,]+ CPU초", "훈련", shown(notebook))
    said = [line for line in told.splitlines() if not re.match(r"\| (CPU초|초|최대 메모리)", line)]
    kept = [read_json(run / f"{name}.json") for name in ("data", "metrics") if (run / f"{name}.json").exists()]
    return [status["error"], {name: stage["state"] for name, stage in status["stages"].items()}, said, [one.get("scores", one) for one in kept]]


@pytest.mark.parametrize("name", TOLD)
def test_a_kernel_of_its_own_says_the_same(name, place):
    """One process a notebook, as a person meets it."""
    given = {"data": put(place.folder / "data", TOLD[name]), "dev_data": place.dev, "test_data": place.test, "name": "mine"} | SMALL
    here = execute("train", place.folder / "here.ipynb", **given)
    there = papermill(place.folder / "there.ipynb", *flags(**given), runs=place.folder / "other" / "runs")
    assert (here.error is None, there.code) == ((True, 0) if name == "right" else (False, 1)), there.text[-2000:]
    assert name == "right" or there.text.strip().endswith(here.error.evalue)
    assert left(place.runs, place.folder / "here.ipynb") == left(place.folder / "other" / "runs", place.folder / "there.ipynb")
