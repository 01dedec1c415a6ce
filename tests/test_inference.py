"""From what training left behind to summaries: the same ones its report was scored on, and a line for every row."""

import csv
import json
import shutil
from itertools import chain
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import TINY, flags
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import papermill
from rouge_score.rouge_scorer import RougeScorer
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.core.accounts import DataError
from korlab.core.files import FileError, read_json, read_jsonl
from korlab.experiment import evaluations, runs
from korlab.experiment.params import ParameterError
from korlab.metrics.rouge import tokenise
from korlab.summarization import inference, models, study, summarizer
from korlab.summarization.data import MARKERS, embedded, encoder
from korlab.summarization.dialogues import Dialogue, save_dialogues
from korlab.summarization.generation import decode

SMALL = {k: v for k, v in TINY.items() if k != "train_rows"} | {
    "device": "cpu", "tracking": "none", "batch_size": 4, "warmup": 0, "rouge_mode": "char", "max_steps": 4,
    "eval_steps": 4, "learning_rate": 1e-2, "max_target_length": 12, "min_target_length": 3, "no_repeat_ngram_size": 1,
}
SPECIAL = {
    "markers": "korean", "prefix": "요약: ", "max_source_length": 48,
    "adapter": "lora", "lora_rank": 4, "lora_alpha": 8, "learning_rate": 1e-3,
    "drop_repeats": True, "tidy": True, "max_words": 4,
}


# ---- minimum Bayes risk --------------------------------------------------------------------------------------------

WORDS = "둘은 내일 세 시에 극장 앞에서 만나 영화를 보기로 한다 #Person1#은".split()


class Cut:
    """The tokens of a mode, for rouge_score."""

    def __init__(self, mode: str):
        self.mode = mode

    def tokenize(self, text: str) -> list[str]:
        return tokenise(text, self.mode)


def by_the_book(candidates: list[list[str]], mode: str) -> list[int]:
    """Every candidate against every other as its reference, with rouge_score."""
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Cut(mode))
    best = []
    for texts in zip(*candidates):
        totals = []
        for i, text in enumerate(texts):
            scores = [scorer.score(other, text) for j, other in enumerate(texts) if j != i]
            totals.append(sum(measure.fmeasure for score in scores for measure in score.values()))
        best.append(next(i for i, total in enumerate(totals) if total > max(totals) - 1e-9))
    return best


texts = st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join)


@st.composite
def systems(draw):
    n = draw(st.integers(1, 4))
    return [draw(st.lists(texts, min_size=n, max_size=n)) for _ in range(draw(st.integers(2, 5)))]


@settings(max_examples=150, deadline=None)
@given(systems(), st.sampled_from(["eojeol", "char"]))
def test_the_choice_is_that_of_the_definition(candidates, mode):
    chosen, index = inference.mbr(candidates, mode)
    assert index == by_the_book(candidates, mode)
    assert chosen == [candidates[s][i] for i, s in enumerate(index)]


@settings(max_examples=60, deadline=None)
@given(systems())
def test_agreement_wins(candidates):
    same = [candidates[0]] * len(candidates)
    assert inference.mbr(same, "char") == (candidates[0], [0] * len(candidates[0]))
    outvoted = [*candidates, *[candidates[-1]] * len(candidates)]
    chosen, _ = inference.mbr(outvoted, "char")
    assert all(a == b for a, b in zip(chosen, candidates[-1]) if b)  # an empty text agrees with nothing


# ---- markers -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def train_rows() -> list[Dialogue]:
    return embedded().rows["train"][:90]


@pytest.mark.parametrize("markers", MARKERS)
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_markers_frame_the_dialogue_however_long_it_is(markers, family, train_rows):
    tokenizer = models.train_tokenizer((r.dialogue for r in train_rows), 300, family, markers)
    opening, closing = MARKERS[markers]
    for limit in (12, 30, 512):
        ids, length = encoder(tokenizer, "요약: ", limit, markers)(train_rows[0].dialogue)
        assert len(ids) == min(limit, length) and ids[-1] == tokenizer.eos_token_id
        body = tokenizer.convert_ids_to_tokens(ids)
        assert body.count(opening) == body.count(closing) == 1 and body[-2] == closing
        assert body.index(opening) < 10
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    whole = tokenizer(f"요약: {opening}{train_rows[0].dialogue}{closing}", add_special_tokens=False).input_ids
    assert ids == [*bos, *whole, tokenizer.eos_token_id]
    assert decode([whole], tokenizer) == [f"요약: {train_rows[0].dialogue}"]
    assert not set(tokenizer.all_special_tokens) & {opening, closing}


def test_markers_leave_the_ids_of_everything_else_alone(train_rows):
    said = [r.dialogue for r in train_rows]
    plain, marked = (models.train_tokenizer(said, 300, "bart", markers) for markers in (None, "xml"))
    assert [plain(text).input_ids for text in said] == [marked(text).input_ids for text in said]


# ---- a run, and everything that can be loaded from it ----------------------------------------------------------------

@pytest.fixture(scope="module")
def lab(tmp_path_factory, train_rows):
    """Two tiny runs on a file: `special` with markers, LoRA and post-processing, `plain` without."""
    base = tmp_path_factory.mktemp("lab")
    save_dialogues(train_rows, base / "rows.csv")
    patch = pytest.MonkeyPatch()
    patch.setenv("KORLAB_RUNS", str(base / "runs"))
    for name, extra in (("special", SPECIAL), ("plain", {"seed": 3})):
        run = runs.open_run(SMALL | {"data": str(base / "rows.csv"), "name": name} | extra)
        data = study.data(run)
        model = study.model(run, data)
        if name == "special":
            assert {"<대화시작>", "<대화종료>"} <= set(model.new_tokens)
            assert all(len(row["input_ids"]) <= 48 for row in data.encoded["train"].rows)
        study.train(run, model, data)
        study.evaluate(run, model, data)
        run.finish()
    yield base
    patch.undo()


def summaries(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_post_processing_is_kept_apart_and_counted(lab):
    folder = lab / "runs" / "summarization" / "special"
    raw, final = (summaries(folder / "predictions" / name) for name in ("test.raw.csv", "test.csv"))
    changed = sum(a["summary"] != b["summary"] for a, b in zip(raw, final, strict=True))
    entry, notes = read_json(folder / "metrics.json")["postprocessed"], json.dumps(read_json(folder / "status.json"))
    assert entry["options"] == ["tidy", "drop_repeats", "max_words"]
    assert entry["splits"] == {"test": {"n": len(raw), "changed": changed}}
    assert f"{changed} of {len(raw)} summaries of test were changed by tidy" in notes
    scored = read_jsonl(folder / "predictions" / "test.jsonl")
    assert [row["prediction"] for row in scored] == [row["summary"] for row in final]
    plain = lab / "runs" / "summarization" / "plain"
    assert "postprocessed" not in read_json(plain / "metrics.json")
    assert not list(plain.glob("predictions/*.raw.csv"))


def test_an_evaluation_scores_what_was_mended_and_keeps_the_rest(lab, monkeypatch):
    def generate(self, dialogues, *_, **__):
        return ["#Person 1#은 간다 간다 ." if i % 2 else "#Person1#은 간다." for i in range(len(dialogues))]

    monkeypatch.setattr(inference.Summarizer, "generate", generate)
    options = {"tidy": True, "drop_repeats": True, "repair_placeholders": True}
    run, checkpoint = evaluations.open_evaluation({"run": "plain"} | options)
    found = study.evaluate_on(run, checkpoint)
    run.finish()
    n = found.own("test").n
    assert found.about["postprocessed"]["splits"] == {"test": {"n": n, "changed": n // 2}} and n > 1
    raw, final = (summaries(run.path("predictions", name)) for name in ("test.raw.csv", "test.csv"))
    assert {row["summary"] for row in final} == {"#Person1#은 간다."}
    assert {row["summary"] for row in raw} == {"#Person1#은 간다.", "#Person 1#은 간다 간다 ."}


@pytest.mark.parametrize("part", ["", "model", "adapter", "checkpoints/checkpoint-4"])
def test_everything_a_run_leaves_gives_its_scored_summaries(part, lab):
    folder = lab / "runs" / "summarization" / "special"
    system = inference.load_summarizer(str(folder / part) if part else "special")
    assert system.config.own.markers == "korean" and system.config.own.max_words == 4
    rows = read_jsonl(folder / "predictions" / "test.jsonl")
    assert system([row["dialogue"] for row in rows]) == [row["prediction"] for row in rows]
    assert len({row["prediction"] for row in rows} - {""}) > 1


def test_an_adapter_of_a_published_checkpoint_brings_the_markers_along(lab, train_rows, tmp_path):
    """A full-size run keeps no base: its adapter names the checkpoint, which has never heard of the markers."""
    published = tmp_path / "published"
    tokenizer = models.train_tokenizer((r.dialogue for r in train_rows), 300)
    torch.manual_seed(1)
    models.mini_bart(tokenizer, width=32, layers=1).save_pretrained(published)
    tokenizer.save_pretrained(published)
    full = {k: v for k, v in SMALL.items() if k != "vocab_size"} | {"size": "full", "precision": "fp32", "workers": 0}
    lora = {"adapter": "lora", "lora_rank": 4, "lora_alpha": 8, "num_beams": 2, "markers": "xml"}
    run = runs.open_run(full | lora | {"checkpoint": str(published), "data": str(lab / "rows.csv"), "name": "full"})
    data = study.data(run)
    model = study.model(run, data)
    assert model.new_tokens == ["<dialogue>", "</dialogue>"] and run.read("model")["new_token_rows"] == 2
    study.train(run, model, data)
    run.close()
    assert not run.path("base").exists()
    talks = [row.dialogue for row in data.rows["test"]]
    merged, adapted = (inference.load_summarizer(str(run.path(part)))(talks) for part in ("model", "adapter"))
    assert merged == adapted and set(merged) != {""}


def test_a_checkpoint_without_a_run_must_be_told(lab, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(lab / "runs" / "summarization" / "special" / "model", bare)
    with pytest.raises(runs.RunError, match="say with `-p model`"):
        inference.load_summarizer(str(bare))
    told = dict(model="kobart", max_source_length=48, prefix="요약: ", device="cpu")
    with pytest.raises(ParameterError, match="set markers='korean'"):
        inference.load_summarizer(str(bare), **told)
    assert inference.load_summarizer(str(bare), markers="korean", **told).config.own.markers == "korean"
    with pytest.raises(ParameterError, match="max_source_length=2000: this bart has 1024 positions"):
        inference.load_summarizer("plain", max_source_length=2000)


def test_every_setting_reaches_generate(lab, monkeypatch):
    names = {"min_target_length": "min_new_tokens", "max_target_length": "max_new_tokens"}
    search = dict(num_beams=3, length_penalty=0.7, min_target_length=4, max_target_length=9, no_repeat_ngram_size=2,
                  repetition_penalty=1.3)
    system = inference.load_summarizer("special", **search)
    seen = []

    def spy(input_ids, attention_mask):
        chosen = system.model.generation_config
        seen.append({name: getattr(chosen, names.get(name, name)) for name in search})
        seen.append(system.tokenizer.decode(input_ids[0]))
        return torch.full((len(input_ids), 2), system.tokenizer.eos_token_id)

    monkeypatch.setattr(system.model, "generate", spy)
    assert system(["#Person1#: 안녕?"]) == [""]
    assert seen == [search, "<s>요약: <대화시작>#Person1#: 안녕?<대화종료></s>"]


# ---- files -----------------------------------------------------------------------------------------------------------

def competition_file(folder: Path) -> tuple[Path, list[str]]:
    """Eight rows of which three cannot be used, and the fnames of the others."""
    rows = [Dialogue(f"test_{i}", row.dialogue) for i, row in enumerate(embedded().rows["natural"][:5])]
    file = folder / "test.csv"
    save_dialogues(rows[::-1], file)
    with open(file, "a", encoding="utf-8", newline="") as stream:
        bad = [("test_9", ""), ("test_1", "#Person1#: 이름이 같다."), ("", "#Person1#: 이름이 없다.")]
        csv.writer(stream).writerows(bad)
    return file, [row.fname for row in rows[::-1]]


def test_a_line_for_every_row_that_can_be_used(lab, tmp_path):
    file, fnames = competition_file(tmp_path)
    outcome = inference.summarize_file(["special", "plain"], str(file), tmp_path / "out.csv")
    found = summaries(tmp_path / "out.csv")
    assert [row["fname"] for row in found] == fnames == list(dict.fromkeys(fnames))
    assert (outcome.report.rows_read, outcome.report.rows_left_out, outcome.rows) == (8, 3, 5)
    assert outcome.rows == sum(outcome.taken) and len(outcome.taken) == 2
    assert outcome.empty == [row["fname"] for row in found if not row["summary"]]
    with pytest.raises(DataError):
        inference.summarize_file(["plain"], str(file), tmp_path / "strict.csv", data_policy="strict")
    assert not (tmp_path / "strict.csv").exists()


def test_the_command_reports_what_it_did(lab, tmp_path, monkeypatch):
    file, fnames = competition_file(tmp_path)
    monkeypatch.setattr(inference, "each_summary", lambda *_, **__: [["#Person1#은 간다.", *[""] * 4]])
    out = str(tmp_path / "out.csv")
    done = CliRunner().invoke(command_line(), ["summarize", "plain", str(file), "--to", out, "-p", "num_beams=2"])
    assert done.exit_code == 0, done.output
    assert "8 rows read, 3 left out, 5 summarised, 4 of them empty" in done.stdout
    assert "4 summaries are empty" in done.stderr and fnames[1] in done.stderr
    assert "3 rows or files were left out" in done.stderr and "test_9" in done.stderr


@pytest.mark.parametrize("words, sentence", [
    (["nobody"], "no run 'nobody'"),
    (["plain", "-p", "num_beam=2"], "did you mean 'num_beams'?"),
    (["plain", "-p", "data=x"], "would have no effect"),
    (["plain", "-p", "rouge_mode=char"], "would have no effect"),
    (["plain", "-p", "num_beams=0"], "must be 1 or more"),
])
def test_the_command_refuses_in_one_sentence(words, sentence, lab, tmp_path):
    file, _ = competition_file(tmp_path)
    refused = CliRunner().invoke(command_line(), ["summarize", words[0], str(file), "--to", str(tmp_path / "no.csv"), *words[1:]])
    assert refused.exit_code == 1 and sentence in refused.stderr and "Traceback" not in refused.output
    assert not (tmp_path / "no.csv").exists()


def test_a_file_that_does_not_read_back_never_appears(tmp_path, monkeypatch):
    rows = [Dialogue("a", "…"), Dialogue("b", "…")]
    summarizer.write_predictions(tmp_path / "out.csv", rows, ["하나", "둘"])
    read = summarizer._read_pairs
    monkeypatch.setattr(summarizer, "_read_pairs", lambda path, sheet: read(path, sheet)[:1])
    with pytest.raises(FileError, match="1 of 2 rows were read back"):
        summarizer.write_predictions(tmp_path / "out.csv", rows, ["셋", "넷"])
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]
    assert [row["summary"] for row in summaries(tmp_path / "out.csv")] == ["하나", "둘"]


@pytest.mark.parametrize("ending", [".csv", ".xlsx"])
@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=6))
def test_any_text_comes_back(tmp_path_factory, ending, found):
    path = tmp_path_factory.getbasetemp() / f"any{ending}"
    summarizer.write_predictions(path, [Dialogue(str(i), "…") for i in range(len(found))], found)
    assert [text for _, text in summarizer._read_pairs(path, ending == ".xlsx")] == found


# ---- the notebook ----------------------------------------------------------------------------------------------------

def outputs(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    shown = chain.from_iterable(c.outputs for c in cells if c.cell_type == "code")
    return "\n".join(o.data.get("text/markdown", "") for o in shown if "data" in o)


def test_the_notebook_summarises_what_is_pasted(quickstart, tmp_path):
    checkpoint = sorted((quickstart / "checkpoints").iterdir())[0]
    talk = "#Person1#: 내일 저녁에 시간 있어요?\\n#Person2#: 네, 7시 이후에는 괜찮아요 ."
    given = flags(run=quickstart, others=checkpoint, dialogue=talk, tidy="true", num_beams=2)
    outcome = papermill(tmp_path / "out.ipynb", *given, runs=quickstart.parent.parent, notebook="summarize")
    assert outcome.code == 0, outcome.text[-2000:]
    text = outputs(tmp_path / "out.ipynb")
    assert "#Person1#: 내일 저녁에 시간 있어요?\n#Person2#" in text  # typed line breaks became real ones
    assert "| beams | 2 |" in text and "| model | kobart · mini |" in text
    assert text.count("✓") == 1 and str(checkpoint.name) in text
