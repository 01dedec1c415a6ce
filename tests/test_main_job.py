"""The main job as a newcomer meets it: train, read the report, score other rows with what was trained."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, TINY, flags, quoted_in
from in_process import korlab, papermill

from korlab.core import files
from korlab.experiment import results
from korlab.summarization.data import embedded
from korlab.summarization.dialogues import Dialogue, save_dialogues


def read(run: Path, name: str) -> dict:
    return files.read_json(run / f"{name}.json")


def scores(run: Path) -> results.Results:
    return results.parse(read(run, "metrics"))


def predictions(file: Path) -> list[dict]:
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# ---- training ----------------------------------------------------------------------------------------------------

def test_the_mini_model_learns(quickstart):
    found = scores(quickstart)
    ours, floors = found.own("test", "morph"), {one.system: one for one in found.baselines("test", "morph")}
    assert ours.n >= 200
    assert ours.measures["rouge1"].mean >= 0.80
    assert ours.measures["rouge1"].low > floors["other-summary"].measures["rouge1"].high


def test_the_notebook_shows_what_it_was_given(quickstart):
    cells = nbformat.read(quickstart / "train.ipynb", as_version=4).cells
    injected = [c.source for c in cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == 1 and 'name = "quickstart"' in injected[0]


def test_every_score_says_what_it_is(quickstart):
    metrics = read(quickstart, "metrics")
    assert (metrics["model"], metrics["size"], metrics["data"]) == ("kobart", "mini", "embedded")
    found = scores(quickstart)
    assert set(found.splits) == {"test", "hard", "natural"}
    for split in found.splits:
        for mode in ("morph", "char"):
            ours = found.own(split, mode)
            assert f"tok:{mode}" in ours.signature
            for measure in ("rouge1", "rouge2", "rougeL"):
                one = ours.measures[measure]
                assert 0 <= one.low <= one.mean <= one.high <= 1 and one.n == ours.n


def test_status_tells_that_it_is_done(quickstart):
    status = read(quickstart, "status")
    assert (status["state"], status["error"]) == ("done", None)
    assert {name: stage["state"] for name, stage in status["stages"].items()} == dict.fromkeys(
        ("data", "model", "train", "evaluate"), "done"
    )


def test_weights_are_safetensors_with_a_tokenizer_that_keeps_speakers(quickstart):
    from korlab.summarization.generation import summarize
    from korlab.summarization.models import PLACEHOLDERS, load_checkpoint

    loaded = load_checkpoint(str(quickstart / "model"))
    assert all(len(loaded.tokenizer.tokenize(p)) == 1 for p in PLACEHOLDERS)
    row = embedded().rows["test"][0]
    assert "#Person" in summarize(loaded.model, loaded.tokenizer, [row.dialogue])[0]


def test_nothing_is_said_that_nobody_has_to_do_anything_about(quickstart):
    cells = nbformat.read(quickstart / "train.ipynb", 4).cells
    said = "".join(output.text for cell in cells if cell.cell_type == "code" for output in cell.outputs if output.output_type == "stream" and
                   output.name == "stderr")
    lines = [line for line in re.split(r"[\r\n]|\x1b\[A", said) if line.strip() and not re.search(r"\d%\|.*\| \d+/\d+ \[", line)]
    assert not lines


# ---- the report --------------------------------------------------------------------------------------------------

def test_the_report_says_what_metrics_say(quickstart):
    done = korlab("report", str(quickstart), runs=quickstart.parent.parent)
    assert done.returncode == 0, done.stderr
    assert "report:" in done.stdout and "CPU seconds" in done.stdout
    text = (quickstart / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# kobart · mini · embedded\n")
    one = scores(quickstart).own("test", "morph").measures["rouge1"]
    assert f"{100 * one.mean:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]" in text
    heads = [text.index(f"\n{head}") for head in ("| split | n | ROUGE-1 | 훈련 없이 가장 나은 것 |", "## 점수", "## 직접 보기", "## 데이터", "## 모델", "## 훈련", "## 되풀이하기")]
    assert heads == sorted(heads) and "| natural | 98 |" in text[: heads[1]]  # the result first, the hardest split with it
    page = (quickstart / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page), "the page would load something from outside"
    assert str(ROOT) not in page + text and str(Path.home()) + "/" not in page + text


def test_a_report_can_be_passed_on_without_the_dialogues(quickstart, tmp_path):
    rows = [row for split in ("test", "natural") for row in embedded().rows[split]]
    texts = [text for row in rows for text in (row.dialogue, *row.summaries)]
    assert len(quoted_in(quickstart / "train.ipynb", texts, tmp_path)) > 50
    assert not quoted_in(quickstart / "train.ipynb", texts, tmp_path, "--no-quotes")
    assert (tmp_path / "train.md").read_text("utf-8").count("이 보고서에 옮기지 않았습니다") == 1


# ---- scoring other rows ------------------------------------------------------------------------------------------

def test_rows_without_summaries_get_predictions_and_no_score(quickstart, tmp_path):
    rows = [Dialogue(r.fname, r.dialogue) for r in embedded().rows["natural"][:5]]
    with open(tmp_path / "test.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerows([("fname", "dialogue"), *((r.fname, r.dialogue) for r in rows)])
    outcome = papermill(tmp_path / "out.ipynb", *flags(run=quickstart, data=tmp_path / "test.csv", name="bare"),
                        runs=quickstart.parent.parent, notebook="evaluate")
    assert outcome.code == 0, outcome.text[-2000:]
    folder = quickstart / "evaluations" / "bare"
    found = predictions(folder / "predictions" / "test.csv")
    assert [list(row) for row in found[:1]] == [["fname", "summary"]]
    assert [row["fname"] for row in found] == [r.fname for r in rows]
    assert all(row["summary"] for row in found)
    assert scores(folder).splits == []
    assert "5 of 5 rows of test have no summary" in json.dumps(read(folder, "status")["notes"])


def test_a_checkpoint_is_scored_with_another_search(quickstart, tmp_path):
    rows = embedded().rows["test"][:12]
    save_dialogues(rows, tmp_path / "twelve.csv")
    checkpoint = sorted((quickstart / "checkpoints").iterdir())[0]
    outcome = papermill(tmp_path / "out.ipynb", *flags(run=checkpoint, data=tmp_path / "twelve.csv", num_beams=2, name="beams"),
                        runs=quickstart.parent.parent, notebook="evaluate")
    assert outcome.code == 0, outcome.text[-2000:]
    folder = quickstart / "evaluations" / "beams"
    assert read(folder, "config")["effective"]["num_beams"] == 2
    assert scores(folder).own("twelve").n == 12


def test_evaluating_a_run_that_is_not_there(tmp_path):
    outcome = papermill(tmp_path / "out.ipynb", *flags(run="nothing"), runs=tmp_path, notebook="evaluate")
    assert outcome.code == 1 and "no run 'nothing'" in outcome.text


# ---- somebody's own files ----------------------------------------------------------------------------------------

def own_file(path: Path, n: int = 60, encoding: str = "utf-8") -> Path:
    save_dialogues(embedded().rows["train"][:n], path)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    return path


def test_a_cp949_file_trains(tmp_path):
    file = own_file(tmp_path / "mine.csv", encoding="cp949")
    outcome = papermill(tmp_path / "out.ipynb", *flags(data=file, name="mine", **TINY), runs=tmp_path)
    assert outcome.code == 0, outcome.text[-2000:]
    data = read(tmp_path / "summarization" / "mine", "data")
    assert data["rows"] == {"train": 54, "dev": 3, "test": 3}
    assert data["sources"][0]["files"][0]["encoding"].lower() == "cp949"
    assert len(data["notes"]) == 2


@pytest.mark.parametrize("content, sentence", [(b"fname,dialogue,summary\n", "header"), (b"", "0 bytes"),
                                               ("fname,summary\n1,가\n".encode(), "dialogue")], ids=["header only", "empty", "no column"])
def test_a_file_without_rows_stops_with_one_sentence(content, sentence, tmp_path):
    file = tmp_path / "bad.csv"
    file.write_bytes(content)
    outcome = papermill(tmp_path / "out.ipynb", *flags(data=file, name="bad", **TINY), runs=tmp_path)
    assert outcome.code == 1
    last = outcome.text.strip().splitlines()[-1]
    assert "bad.csv" in last and sentence in last
    assert read(tmp_path / "summarization" / "bad", "status")["state"] == "failed"


def test_problem_rows_are_listed_and_strict_stops(tmp_path):
    file = own_file(tmp_path / "mine.csv")
    file.write_text(file.read_text(encoding="utf-8") + 'x1,"#Person1#: 안녕\n#Person2#: 응",,talk\n', encoding="utf-8")
    outcome = papermill(tmp_path / "out.ipynb", *flags(data=file, name="mine", data_policy="strict", **TINY), runs=tmp_path)
    assert outcome.code == 1 and "empty summary" in outcome.text


def test_a_dialogue_in_two_splits_stops(tmp_path):
    file = own_file(tmp_path / "mine.csv")
    save_dialogues(embedded().rows["train"][:3], tmp_path / "dev.csv")
    outcome = papermill(tmp_path / "out.ipynb", *flags(data=file, dev_data=tmp_path / "dev.csv", name="mine", **TINY), runs=tmp_path)
    assert outcome.code == 1 and "train and dev share" in outcome.text


# ---- the command -------------------------------------------------------------------------------------------------

def test_korlab_is_light():
    """Neither `import korlab` nor `korlab --help` loads a heavy library."""
    check = "import sys, {}; heavy = {{'torch', 'transformers', 'datasets', 'peft', 'matplotlib'}} & set(sys.modules); assert not heavy, heavy"
    for module in ("korlab", "korlab.cli.main", "korlab.experiment.studies"):
        subprocess.run([sys.executable, "-c", check.format(module)], check=True, cwd=ROOT)
    done = subprocess.run([str(Path(sys.executable).with_name("korlab")), "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("run", "report", "models", "doctor"))


def test_doctor_says_what_is_there(tmp_path):
    done = korlab("doctor", runs=tmp_path)
    assert all(word in done.stdout for word in ("Python", "torch", "Hangul font", "disk", "Kiwi", "hub"))
    assert done.returncode == ("missing" in done.stdout)


def test_a_refused_rerun_leaves_the_earlier_run_as_it_was(quickstart, tmp_path):
    before = (quickstart / "train.ipynb").read_bytes()
    file = tmp_path / "quickstart.yaml"
    file.write_text("model: kobart\nepochs: 1\n")
    done = korlab("run", str(file), runs=quickstart.parent.parent)
    assert done.returncode == 1 and "was made with other parameters" in done.stderr and "Traceback" not in done.stderr
    assert (quickstart / "train.ipynb").read_bytes() == before


def test_two_experiments_may_not_share_a_folder(tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text("model: kobart\n")
    done = korlab("run", str(file), str(file), runs=tmp_path)
    assert done.returncode == 1 and "would share the run folder one" in done.stderr
