"""A score that deserves no trust says so: useless outputs, floors, what is cut or unknown, rows a model knows, damaged records."""

import csv
import shutil
from pathlib import Path

import in_process
import pytest
from conftest import TINY

from korlab.core.files import FileError, read_json, read_jsonl, write_json, write_jsonl
from korlab.experiment import results, runs
from korlab.experiment.evaluations import open_evaluation
from korlab.experiment.runs import reopen
from korlab.report import pages
from korlab.report.render import lead_of, render_run
from korlab.sparse.data import Collection, save_beir
from korlab.sparse.scenarios import embedded as questions
from korlab.summarization import cli, inference, study, summarizer
from korlab.summarization.data import embedded, load_splits
from korlab.summarization.dialogues import Dialogue, save_dialogues
from korlab.workbench import comparing, verdicts

SMALL = {k: v for k, v in TINY.items() if k != "train_rows"} | {
    "device": "cpu", "tracking": "none", "batch_size": 4, "rouge_mode": "char", "max_steps": 2, "eval_steps": 2,
    "max_target_length": 12,
}
SPARSE = {"model": "sparse-ko", "max_steps": 4, "eval_steps": 2, "batch_size": 8, "vocab_size": 600, "max_length": 16,
          "negatives": 1, "tracking": "none", "on_collapse": "warn", "device": "cpu"}


def korlab(*words, runs: Path) -> str:
    done = in_process.korlab(*words, runs=runs)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def remarks(run: runs.Run) -> list[tuple[str, str]]:
    return [(one["kind"], one["split"]) for one in results.read(run).about["remarks"]]


def said(run: runs.Run) -> str:
    return "\n".join(note["text"] for note in run.status.get("notes", []))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A tiny summariser on sixty rows; its dev rows in a file of that name."""
    base = tmp_path_factory.mktemp("trust")
    save_dialogues(embedded().rows["train"][:60], base / "rows.csv")
    patch = pytest.MonkeyPatch()
    patch.setenv("KORLAB_RUNS", str(base / "runs"))
    run = runs.open_run(SMALL | {"data": str(base / "rows.csv"), "name": "plain"})
    splits = study.data(run)
    model = study.model(run, splits)
    study.train(run, model, splits)
    study.evaluate(run, model, splits)
    run.finish()
    for name in ("train", "dev", "test"):
        save_dialogues(splits.rows[name], base / "files" / f"{name}.csv")
    yield base
    patch.undo()


# ---- rows the model knows --------------------------------------------------------------------------------------------

def test_the_dev_file_is_scored_as_dev_and_says_so(lab):
    printed = korlab("evaluate", "plain", "--data", lab / "files" / "dev.csv", "--name", "dev", runs=lab / "runs")
    run = reopen(lab / "runs" / "summarization" / "plain" / "evaluations" / "dev")
    found = results.read(run)
    assert found.splits == ["dev"] and found.own("dev").n == 3 and remarks(run)[0] == ("dev", "dev")
    assert "dev: 3 of 3 dialogues are dev rows, which chose this checkpoint" in printed and "ROUGE-1" in printed
    text = run.path("report.md").read_text("utf-8")
    lead = text.splitlines()[2]
    assert lead.startswith("> 주의! dev: 3개 가운데 3개는 체크포인트를 고르는 데 쓴 dev의 것이다")
    assert "predictions/dev.csv" in text and "훈련을 시작하지 않는다" in text and "겹치면 오류다" not in text


def test_a_folder_is_scored_by_the_names_of_its_files(lab):
    run, checkpoint = open_evaluation({"run": "plain", "data": str(lab / "files"), "name": "all"})
    found = study.evaluate_on(run, checkpoint)
    run.close()
    assert {one.split: one.n for one in found.scored} == {"test": 3} and not run.path("predictions", "train.csv").exists()
    assert "Scored: test; left aside in the same folder: dev, train." in said(run) and "채점하지 않은 것: dev, train" in said_in_korean(run)
    shutil.copytree(lab / "files", lab / "known", ignore=shutil.ignore_patterns("test.csv"))
    run, checkpoint = open_evaluation({"run": "plain", "data": str(lab / "known"), "name": "known"})
    assert {one.split: one.n for one in study.evaluate_on(run, checkpoint).scored} == {"dev": 3, "train": 54}
    run.close()
    assert [pair for pair in remarks(run) if pair[0] in ("train", "dev")] == [("dev", "dev"), ("train", "train")]
    (lab / "only").mkdir(exist_ok=True)
    shutil.copy(lab / "files" / "dev.csv", lab / "only" / "dev.csv")
    run, checkpoint = open_evaluation({"run": "plain", "data": str(lab / "only"), "name": "only"})
    assert study.evaluate_on(run, checkpoint).splits == ["dev"]
    run.close()


def test_the_name_of_a_file_does_not_hide_its_rows(lab, tmp_path):
    shutil.copy(lab / "files" / "dev.csv", tmp_path / "mine.csv")
    run, checkpoint = open_evaluation({"run": "plain", "data": str(tmp_path / "mine.csv"), "name": "mine"})
    study.evaluate_on(run, checkpoint)
    run.close()
    home = reopen(lab / "runs" / "summarization" / "plain")
    assert remarks(run)[0] == ("dev", "mine") and run.read("data")["sha256"]["mine"] == home.read("data")["sha256"]["dev"]


def test_rows_without_summaries_are_said_to_be_unscored(lab, tmp_path):
    with open(tmp_path / "dev.csv", "w", encoding="utf-8", newline="") as file:
        rows = [(f"d{i}", row.dialogue) for i, row in enumerate(embedded().rows["natural"][:4])]
        csv.writer(file).writerows([("fname", "dialogue"), *rows])
    printed = korlab("evaluate", "plain", "--data", tmp_path / "dev.csv", "--name", "bare", runs=lab / "runs")
    run = reopen(lab / "runs" / "summarization" / "plain" / "evaluations" / "bare")
    assert "Nothing was scored" in printed and "predictions/dev.csv" in printed
    text = run.path("report.md").read_text("utf-8")
    assert "점수가 없다" in text.splitlines()[2] and "predictions/dev.csv" in text
    gallery = text.split("## 직접 보기")[1].split("\n## ")[0]
    assert gallery.count("| dev | ") == 4, "an empty example section"


def test_commands_tell_doubts_and_removals(lab, tmp_path, capsys):
    one, two = "#Person1#: <b>토요일</b>에 만날까?", "#Person1#: 세 시에 보자."
    lines = [f"d1,{one},만난다.", f"d2,{two},본다.", f"d3,{two},본다.", "d4,,없다."]
    (tmp_path / "mixed.csv").write_text("fname,dialogue,summary\n" + "\n".join(lines) + "\n", "utf-8")
    cli.summarize(["plain"], str(tmp_path / "mixed.csv"), tmp_path / "out.csv")
    told = " ".join(capsys.readouterr().err.split())
    assert "1 rows or files were left out" in told and "1 doubts about rows that are summarised" in told and "duplicate dialogue" in told
    assert "<b>: 2 times in 1 row, first in" in told
    printed = korlab("evaluate", "plain", "--data", tmp_path / "mixed.csv", "--name", "mixed", runs=lab / "runs")
    run = reopen(lab / "runs" / "summarization" / "plain" / "evaluations" / "mixed")
    assert "data: mixed: 3 of 4 rows kept; problems: " in printed and "duplicate dialogue 1" in printed and "<b> 2" in printed
    assert "1 problem row of mixed has no prediction" in said(run) and "문제가 있는 행 1개는" in said_in_korean(run)
    assert "problem row" not in run.path("report.md").read_text("utf-8")
    (answer,) = inference.ask({"run": "plain", "dialogue": one})
    assert "<b> ×2" in answer["removed"] and inference.ask({"run": "plain", "dialogue": two})[0]["removed"] == ""


# ---- useless models --------------------------------------------------------------------------------------------------

def test_a_model_that_only_repeats_itself_is_called_useless(lab, monkeypatch):
    def generate(self, dialogues, desc="", note=None, endless=None):
        for place in range(len(dialogues)):
            endless(place)
        return ["나는. 나는. 나는."] * len(dialogues)

    monkeypatch.setattr(summarizer.Summarizer, "generate", generate)
    rows = embedded().rows["test"][:40]
    save_dialogues(rows, lab / "useless.csv")
    run, checkpoint = open_evaluation({"run": "plain", "data": str(lab / "useless.csv"), "name": "useless"})
    found = study.evaluate_on(run, checkpoint)
    run.close()
    kinds = [kind for kind, split in remarks(run) if split == "useless"]
    assert kinds == ["at_limit", "repeating", "distinct", "floor"]
    assert found.facts["useless"]["outputs"] == [
        {"what": "summaries", "korean": "요약", "n": 40, "empty": 0, "distinct": 1, "at_limit": 40, "repeating": 40}]
    pair = found.facts["useless"]["against"]["other-summary"]
    theirs = {one.system: one for one in found.baselines("useless", "char")}["other-summary"].measures["rouge1"].mean
    assert pair["b"] == pytest.approx(theirs) and pair["difference"]["high"] < 0 and pair["difference"]["n"] == 40
    assert lead_of(run).startswith("주의! useless: 요약 40개 가운데 40개(100 %)가 길이 제한에") and f"other-summary의 {100 * theirs:.1f}(차이" in said_in_korean(run)
    for words in ("40 of 40 summaries (100 %) end at the length limit", "repeat themselves", "only 1 distinct summary among 40"):
        assert words in said(run)
    assert "| useless | 요약 | 40 | 1 | 0 | 40 | 40 |" in str(pages.outputs(run))
    told = []
    inference.summarize_file(["plain"], str(lab / "useless.csv"), lab / "out.csv", told.append)
    assert any("40 of 40 summaries (100 %) end at the length limit" in line for line in told)


def said_in_korean(run: runs.Run) -> str:
    return "\n".join(note.get("korean", "") for note in run.status["notes"])


def test_the_length_limit_is_counted_in_tokens(lab):
    """Whatever the text looks like: an untaught model that must write six tokens and may write no more always ends there."""
    given = {"run": "plain", "min_target_length": 6, "max_target_length": 6, "data": str(lab / "files" / "test.csv")}
    run, checkpoint = open_evaluation(given)
    assert study.evaluate_on(run, checkpoint).facts["test"]["outputs"][0]["at_limit"] == 3
    run.close()


def test_a_checkpoint_chosen_against_its_loss_is_remarked_on(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    run = results.stand_in("early", {"test": [0.5, 0.6]})
    write_jsonl(run.path("history.jsonl"), [{"step": 20, "eval_loss": 4.2, "eval_rouge_sum": 0.5},
                                            {"step": 80, "eval_loss": 2.0, "eval_rouge_sum": 0.4}])
    run.write("train", run.read("train") | {"best_model_checkpoint": "checkpoint-20"})
    results.write(run, results.read(run).scored, {}, {})
    assert remarks(run) == [("choice", "")]
    assert "ROUGE-1+2+L chose step 20, whose dev loss is 4.2; the lowest is 2, of step 80." in said(run)


def test_remarks_reach_the_comparison(tmp_path, monkeypatch):
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    for name, scores in (("good", [0.6, 0.7, 0.8]), ("bad", [0.1, 0.0, 0.1])):
        results.stand_in(name, {"test": scores})
    found = comparing.open_comparison({"runs": "good,bad"})
    assert [line for line in comparing.cautions(found) if line.startswith("**bad**: test: ROUGE-1 6.7")]


# ---- cut and unknown -------------------------------------------------------------------------------------------------

def test_what_is_cut_is_counted_for_every_split_and_side(lab):
    run = reopen(lab / "runs" / "summarization" / "plain")
    lengths = run.read("data")["lengths"]
    assert set(lengths) == {"train", "dev", "test"} and all(set(sides) == {"source", "target"} for sides in lengths.values())
    rows = load_splits(run.config).rows["test"]
    tokenizer = summarizer.load_model(run.path("model")).tokenizer
    tokens = [len(tokenizer(text, add_special_tokens=False).input_ids) + 1 for row in rows for text in row.summaries]
    target = lengths["test"]["target"]
    assert (target["n"], target["tokens"], target["cut"]) == (3, sum(tokens), sum(n > 12 for n in tokens))
    assert target["lost"] == sum(max(0, n - 12) for n in tokens) > 0
    assert results.read(run).facts["test"]["lengths"] == lengths["test"]
    assert f"test target: {target['cut']} of 3 texts (100%) are cut" in said(run)
    assert "| test | target | 3 | " in str(pages.readings(run))


def test_one_s_own_dialogues_are_counted_too(lab):
    save_dialogues([Dialogue(f"d{i}", "#Person1#: 안녕?\n" * 60) for i in range(3)], lab / "long.jsonl")
    told = []
    inference.summarize_file(["plain"], str(lab / "long.jsonl"), lab / "out.csv", told.append, max_source_length=32)
    assert any("dialogues: 3 of 3 texts (100%) are cut" in line for line in told)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """A tiny encoder of a collection that reads sixteen tokens of a text."""
    from korlab.sparse import stages
    from korlab.sparse.scoring import evaluate

    base, whole = tmp_path_factory.mktemp("sparse"), questions(train=10, dev=10, test=60, hard=10).test
    asked = dict(list(whole.queries.items())[:40])
    needed = {doc for query in asked for doc in whole.qrels[query]}
    corpus = {doc: text for doc, text in whole.corpus.items() if doc in needed}
    save_beir(Collection(corpus, asked, {query: whole.qrels[query] for query in asked}), base / "beir")
    patch = pytest.MonkeyPatch()
    patch.setenv("KORLAB_RUNS", str(base / "runs"))
    run = runs.open_run(SPARSE | {"name": "tiny", "data": str(base / "beir")})
    splits = stages.data(run)
    loaded = stages.model(run, splits)
    stages.train(run, loaded, splits)
    evaluate(run, loaded, splits)
    run.finish()
    yield run, splits, loaded
    patch.undo()


def test_a_sparse_run_counts_what_it_reads(sparse):
    run, splits, loaded = sparse
    lengths, test = run.read("data")["lengths"], splits.collections["test"]
    assert set(lengths) == {"train", "dev", "test"} and all(set(sides) == {"queries", "documents"} for sides in lengths.values())
    ids = [loaded.tokenizer(text).input_ids for text in test.corpus.values()]
    found, unknown = lengths["test"]["documents"], loaded.tokenizer.unk_token_id
    assert (found["n"], found["tokens"]) == (len(ids), sum(map(len, ids)))
    assert (found["cut"], found["lost"]) == (sum(len(i) > 16 for i in ids), sum(max(0, len(i) - 16) for i in ids))
    assert found["unknown"] == sum(i.count(unknown) for i in ids) and found["cut"] > 0.1 * found["n"]
    assert f"test documents: {found['cut']:,} of {found['n']:,} texts" in said(run)
    assert results.read(run).facts["test"]["lengths"] == lengths["test"]


def test_a_collection_that_judges_dev_is_scored_as_dev(sparse, tmp_path):
    run, splits, _ = sparse
    dev = splits.collections["dev"]
    save_beir(dev, tmp_path / "dev", "dev")
    printed = korlab("evaluate", "tiny", "--data", tmp_path / "dev", "--name", "dev", runs=run.folder.parents[1])
    again = reopen(run.folder / "evaluations" / "dev")
    found, n = results.read(again), len(dev.queries)
    assert found.splits == ["dev"] and ("dev", "dev") in remarks(again)
    assert f"dev: {n} of {n} questions are dev rows, which chose this checkpoint" in printed
    assert again.read("data")["lengths"]["dev"]["documents"]["cut"] > 0
    text = again.path("report.md").read_text("utf-8")
    assert text.splitlines()[2].startswith("> 주의! dev: ") and "겹치면 오류다" not in text


def test_a_collapsed_encoder_is_called_one(sparse, monkeypatch):
    import numpy as np
    from scipy.sparse import csr_matrix

    from korlab.sparse import models
    from korlab.sparse.scoring import evaluate_on

    run, _, loaded = sparse
    size = models.vocabulary(loaded.model)

    def same(model, texts, side, batch_size=32, progress=False):
        vectors = np.zeros((len(texts), size), np.float32)
        if side == "document":
            vectors[:, 7] = 1.0
        return csr_matrix(vectors)

    monkeypatch.setattr(models, "encode", same)
    again, checkpoint = open_evaluation({"run": "tiny", "name": "flat"})
    found = evaluate_on(again, checkpoint)
    again.close()
    n, documents = found.own("test").n, found.facts["test"]["documents"]
    assert {("floor", "test"), ("empty", "test"), ("distinct", "test")} <= set(remarks(again))
    assert f"test: {n} of {n} query vectors (100 %) are empty." in said(again)
    assert f"test: only 1 distinct document vector among {documents}." in said(again)
    assert "which need no training" in said(again) and remarks(again).count(("floor", "test")) == 1 and f"test: 질문 벡터 {n}개 가운데 {n}개(100 %)가 비어 있다." in lead_of(again)


# ---- one score has one value -----------------------------------------------------------------------------------------

def test_items_are_written_as_they_are_and_their_mean_is_the_score(lab):
    run = reopen(lab / "runs" / "summarization" / "plain")
    own = results.read(run).own("test")
    rows = read_jsonl(run.path("predictions", "test.jsonl"))
    assert sum(row["rouge1"] for row in rows) / len(rows) == pytest.approx(own.measures["rouge1"].mean, abs=1e-15)
    assert [row["rouge1"] for row in rows] == list(results.item_scores(run, "test", "char", "rouge1").values())


def test_a_score_has_one_value_in_a_comparison(tmp_path, monkeypatch):
    """Older records keep rounded items; the mean that was stored is the one that every table writes."""
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    third = 0.16656
    for name, value in (("first", third), ("second", third)):
        run = results.stand_in(name, {"test": [value] * 3})
        items = run.read("items/test")
        items["scores"]["morph"]["rouge1"] = [0.1644] * 3
        write_json(run.path("items", "test.json"), items)
    found = comparing.open_comparison({"runs": "first,second"})
    table, test = verdicts.scores(found)[0]["ROUGE-1"], verdicts.significance(found)[0]
    assert table.split()[0] == test["baseline"] == test["score"] == "16.7"
    kept = verdicts.numbers(found)["runs"][1]
    assert kept["against_baseline"]["a"] == kept["against_baseline"]["b"] == kept["score"]["mean"] == pytest.approx(third)
    shown = results.overview(results.read(run), run.study.measures)
    assert shown["rouge1"] == pytest.approx(100 * third, abs=1e-12) and shown["score"].startswith("ROUGE-1 16.7")


# ---- damaged records -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, content, words", [
    ("status", '{"state": "do', "status.json is damaged"), ("data", '{"rows": {', "data.json is damaged"),
    ("status", "[]", "it has no 'state'"), ("data", '{"rows": {}}', "it has no 'sha256'"), ("metrics", "{}", "it has no 'splits'"),
])
def test_a_report_is_not_rendered_from_a_damaged_record(lab, tmp_path, name, content, words):
    shutil.copytree(lab / "runs" / "summarization" / "plain", tmp_path / "plain")
    (tmp_path / "plain" / f"{name}.json").write_text(content, "utf-8")
    with pytest.raises((FileError, runs.RunError), match=words):
        render_run(reopen(tmp_path / "plain"))
    assert read_json(tmp_path / "plain" / "config.json")


def test_a_training_that_patience_ended_early_is_not_what_was_asked_for(tmp_path, monkeypatch):
    """Twenty updates were asked for, four were made: the warm-up had not ended, and nobody asked for that."""
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    for asked, said in ((20, True), (4, False)):
        run = results.stand_in(f"asked-{asked}", {"test": [0.5] * 30}, data="rows.csv", max_steps=asked, warmup=500)
        run.write("train", {"train_metrics": {"updates": 4, "seconds": 1.0, "cpu_seconds": 1.0}, "eval_metrics": {}})
        found = results._remarks(run, results.read(run).scored, {})
        assert any("only 4 updates, fewer than its warm-up of 500" in one.english for one in found) is said
