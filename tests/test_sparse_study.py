"""The sparse study through the entry notebooks: a collection in BEIR's layout, the recipes, and its checks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, collection_of, flags, quoted_in
from in_process import korlab, papermill
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.core.files import read_json, read_jsonl, write_jsonl
from korlab.core.yamls import read_yaml
from korlab.experiment import params, results, studies
from korlab.experiment.runs import find_run, reopen
from korlab.sparse.checks import quick_checks, verify
from korlab.sparse.data import Collection, load_beir, save_beir
from korlab.sparse.idf import PreparedError
from korlab.sparse.mining import complete_negatives
from korlab.sparse.models import assemble, encode, load, mini, train_tokenizer
from korlab.sparse.splits import load_splits

FAST = {"size": "mini", "max_steps": 8, "eval_steps": 4, "eval_rows": 4, "batch_size": 8, "vocab_size": 900, "max_length": 48,
        "negatives": 1, "tracking": "none", "on_collapse": "warn", "warmup": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty questions and their passages, judged as `test` only, as KoBEST is."""
    place = tmp_path_factory.mktemp("beir")
    save_beir(collection_of(60), place)
    return place


@pytest.mark.parametrize("model", ["sparse-ko", *(pytest.param(one, marks=pytest.mark.slow) for one in ("sparse-v25", "sparse-ko-doc"))])
def test_a_collection_alone_runs_through_the_main_notebook(model, folder, tmp_path):
    outcome = papermill(tmp_path / "out.ipynb", *flags(model=model, name="mine", data=folder, **FAST), runs=tmp_path)
    assert outcome.code == 0, outcome.text[-3000:]
    run = tmp_path / "sparse" / "mine"
    data, found = read_json(run / "data.json"), results.read(reopen(run))
    assert (data["rows"]["dev"], data["rows"]["test"]) == (6, 18) and data["rows"]["train"] >= 36
    assert "split by hash" in data["notes"][0]
    test, systems = found.facts["test"], [model, "BM25 morphemes", "BM25 eojeol"]
    assert [one.system for one in found.scored] == systems and set(test["against"]) == set(systems) - {model}
    assert [one.system for one in found.scored if one.baseline] == systems[1:]
    for one in found.scored:
        for measure in ("ndcg@10", "mrr@10", "recall@10", "hit@10"):
            table = one.measures[measure]
            assert 0 <= table.low <= table.mean <= table.high <= 1
            assert (table.n, one.n, one.mode) == (18, 18, f"{test['documents']:,} documents")
    rows = read_jsonl(run / "rankings" / "test.jsonl")
    mean = float(np.mean([row["scores"]["korlab"]["ndcg@10"] for row in rows]))
    assert mean == pytest.approx(found.own("test").measures["ndcg@10"].mean)
    assert results.item_scores(reopen(run), "test", found.own("test").mode, "ndcg@10") == {
        row["query"]: row["scores"]["korlab"]["ndcg@10"] for row in rows}
    shares = [sum(share for _, share in row["decisive"]["first"]) for row in rows if row["first"]["korlab"]]
    assert shares and all(0 < share <= 1.01 for share in shares)
    assert [row["rule"] for row in test["pruning"]][:2] == ["top 64", "top 32"]
    assert all(-1 <= row["difference"] <= 1 and 0 < row["kept"] <= 1 for row in test["pruning"])
    assert set(test["latency"]) == {"korlab", *systems[1:]} and all(0 < time["p50"] for time in test["latency"].values())
    assert (run / "model" / "modules.json").exists() and not list(run.rglob("*.bin"))
    static = test["sparsity"]["queries"]["active"]["mean"]
    assert static < 40 if model == "sparse-ko-doc" else static > 0
    if model == "sparse-ko-doc":  # its weights lie deeper in the folder than those of a plain encoder
        done = in_its_own_process("sparse", "eval", "mine", "--name", "again", runs=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        assert results.read(reopen(run / "evaluations" / "again")).scored == found.scored


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run on the collection, to be scored again and to teach."""
    runs = tmp_path_factory.mktemp("runs")
    outcome = papermill(runs / "out.ipynb", *flags(model="sparse-ko", name="first", data=folder, **FAST), runs=runs)
    assert outcome.code == 0, outcome.text[-3000:]
    return runs / "sparse" / "first"


def test_a_report_can_be_passed_on_without_the_collection(folder, trained, tmp_path):
    collection = load_beir(folder)
    texts = [*collection.queries.values(), *collection.corpus.values()]
    assert len(quoted_in(trained.parents[1] / "out.ipynb", texts, tmp_path)) > 10
    assert not quoted_in(trained.parents[1] / "out.ipynb", texts, tmp_path, "--no-quotes")


def test_scored_again_a_run_is_not_scored_on_what_it_learnt(folder, trained, tmp_path):
    outcome = papermill(tmp_path / "again.ipynb", *flags(run=trained, name="again"), runs=trained.parents[1], notebook="evaluate")
    assert outcome.code == 0, outcome.text[-3000:]
    first, again = (results.read(reopen(place)) for place in (trained, trained / "evaluations" / "again"))
    assert (first.own("test").n, again.own("test").n) == (18, 18)
    assert first.scored == again.scored
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    outcome = papermill(tmp_path / "b.ipynb", *flags(run=trained, data=elsewhere, name="b"), runs=trained.parents[1], notebook="evaluate")
    assert outcome.code == 1 and "training holds 36 of 60 test queries" in outcome.text


def test_no_text_is_read_beyond_the_positions(folder, trained, tmp_path):
    """Before a long training, when scored again, in search, index and export: one sentence with the number that fits."""
    outcome = papermill(tmp_path / "out.ipynb", *flags(run=trained, max_length=64, name="long"), runs=trained.parents[1], notebook="evaluate")
    assert outcome.code == 1 and "max_length=64: this roberta has 48 positions; set max_length to 48 or less" in outcome.text
    wanted = {name: value for name, value in FAST.items() if name != "vocab_size"} | {"size": "full", "checkpoint": trained / "base"}
    outcome = papermill(tmp_path / "b.ipynb", *flags(**wanted | {"model": "sparse-ko", "data": folder, "max_length": 96}), runs=tmp_path)
    assert outcome.code == 1 and "max_length=96: this roberta has 48 positions" in outcome.text
    shutil.copytree(trained / "model", tmp_path / "model")
    kept = read_json(tmp_path / "model" / "sentence_bert_config.json")
    (tmp_path / "model" / "sentence_bert_config.json").write_text(json.dumps(kept | {"max_seq_length": 512}))
    (tmp_path / "model" / "manifest.json").unlink()  # somebody else's folder: what the lab sealed says first that it was changed
    for words in (["search", "무엇?", "--run", tmp_path / "model"], ["index", "embedded", "--run", tmp_path / "model", "--to", tmp_path / "i"],
                  ["export", tmp_path / "model", "--to", tmp_path / "e", "--license", "mit"]):
        done = CliRunner().invoke(command_line(), ["sparse", *map(str, words)])
        assert done.exit_code == 1 and "set to read 512 tokens of a text, and its model has 48 positions" in " ".join(done.output.split())


def test_another_studys_experiments_and_runs_are_refused_everywhere(tmp_path, monkeypatch):
    """One sentence with the study, from every command that takes an experiment or a run."""
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    folder = tmp_path / "summarization" / "dialogues"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text(json.dumps({"effective": studies.configure({"model": "kobart"}).flat(), "given": {}}))
    file = ROOT / "params" / "summarization" / "quickstart.yaml"
    for words in (["train", file, "--dry-run"], ["verify", file], ["quick", file], ["eval", "dialogues"], ["compare", "dialogues"],
                  ["search", "무엇?", "--run", "dialogues"], ["index", "embedded", "--run", "dialogues", "--to", tmp_path / "i"]):
        done = CliRunner().invoke(command_line(), ["sparse", *map(str, words)])
        said = " ".join(done.output.split())
        assert done.exit_code == 1 and "belongs to the study 'summarization': name one of sparse" in said, (words, said)


def test_duplicate_questions_do_not_find_themselves(trained, tmp_path):
    """A collection of questions: each is a document, its answer is the other way to ask it, and BM25 finds every one."""
    asked = [f"{what} 어디에서 {how}나요?" for what in ("자전거", "우산", "비행기표", "도자기", "망원경") for how in ("사", "빌리")]
    questions = {f"q{i}": text for i, text in enumerate(asked)}
    save_beir(Collection(questions, questions, {f"q{i}": {f"q{i ^ 1}": 1} for i in range(10)}), tmp_path / "twins")
    outcome = papermill(tmp_path / "out.ipynb", *flags(run=trained, data=tmp_path / "twins", name="twins"), runs=trained.parents[1],
                        notebook="evaluate")
    assert outcome.code == 0, outcome.text[-3000:]
    run = trained / "evaluations" / "twins"
    found, rows = results.read(reopen(run)), read_jsonl(run / "rankings" / "test.jsonl")
    words = next(one for one in found.scored if one.system == "BM25 eojeol")
    assert words.measures["mrr@10"].mean == words.measures["ndcg@10"].mean == 1.0 and "own:10 left out" in words.signature
    assert found.facts["test"]["own"] == 10 and not [row for row in rows if row["query"] in row["first"].values()]
    assert "질문 10개는 문서 모음에도" in (tmp_path / "out.ipynb").read_text("utf-8")


def test_a_trained_run_teaches_another_and_finds_its_negatives(folder, trained, tmp_path):
    """Two teachers are an ensemble; their scores are kept, and the curve of the distillation term is above 0."""
    given = FAST | dict(model="sparse-ko", data=folder, miner=trained, kd=1.0, distillation="kl", teacher=f"{trained / 'model'}, {trained / 'model'}")
    outcome = papermill(tmp_path / "out.ipynb", *flags(name="taught", **given), runs=trained.parents[1])
    assert outcome.code == 0, outcome.text[-3000:]
    run = trained.with_name("taught")
    assert all(row["kd"] > 0 for row in read_jsonl(run / "history.jsonl") if "kd" in row)
    assert any("kd" in row for row in read_jsonl(run / "history.jsonl"))
    assert "first found them" in " ".join(read_json(run / "data.json")["notes"])
    done = korlab("sparse", "compare", "first", "taught", "--to", tmp_path / "out", "--name", "both", runs=trained.parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    text, kept = (tmp_path / "out" / "both.md").read_text("utf-8"), read_json(tmp_path / "out" / "both.json")
    assert "| first | " in text and "| BM25 morphemes | " in text and "documents), n=18" in text
    pair, runs = kept["runs"][1]["against_baseline"], [results.read(reopen(place)) for place in (trained, run)]
    means = [found.own("test").measures["ndcg@10"].mean for found in runs]
    assert pair["difference"]["mean"] == pytest.approx(means[1] - means[0]) and pair["difference"]["n"] == 18
    assert text.count("### ") >= 6 and "가른 낱말" in text  # sparsity, and the questions that part them


def in_its_own_process(*words, runs):
    """The command, as a person types it."""
    command = [str(Path(sys.executable).with_name("korlab")), *map(str, words)]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=os.environ | {"KORLAB_RUNS": str(runs)})


@pytest.mark.slow
def test_a_quick_look_trains_the_real_model(folder, tmp_path):
    """Loss, vectors, ratio and memory of 500 rows and two epochs."""
    small = {"data": str(folder), "vocab_size": 600, "max_length": 48, "batch_size": 8, "negatives": 1, "on_collapse": "warn"}
    (tmp_path / "small.yaml").write_text(json.dumps(small), "utf-8")
    done = in_its_own_process("sparse", "quick", "params/sparse/v25.yaml", "--mini", "-f", tmp_path / "small.yaml", runs=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert [line.split()[1] for line in done.stdout.splitlines()[-4:]] == ["loss", "vectors", "semantic", "memory"]
    effective = read_json(tmp_path / "sparse" / "v25-mini-quick-small" / "config.json")["effective"]
    assert (effective["epochs"], effective["train_rows"], effective["kd"], effective["stop_list"]) == (2, 500, 0, "published")


def test_a_loss_that_does_not_fall_is_a_failed_check(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "first")
    run = find_run(str(tmp_path / "first"))
    for losses, state in (([4.0, 3.0, 2.0, 1.0], "ok"), ([1.0, 2.0, 3.0, 4.0], "failed"), ([1.0, 1.0, 1.0, 1.0], "failed")):
        write_jsonl(run.path("history.jsonl"), [{"step": i, "epoch": (i + 1) / 2, "loss": loss} for i, loss in enumerate(losses)])
        assert quick_checks(run)[0]["state"] == state


def test_prepared_tables_are_the_ones_that_are_used(folder, trained, tmp_path):
    """What `korlab sparse idf` and `stopwords` wrote reaches the prices; another tokenizer's is refused by name."""
    shell, given = CliRunner(), {"model": "sparse-ko", "data": str(folder)} | FAST
    splits = load_splits(studies.configure(given))
    complete_negatives(splits, 1)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in splits.texts), "utf-8")
    for command in (["idf", str(tmp_path / "texts.jsonl")], ["stopwords"]):
        done = shell.invoke(command_line(), ["sparse", *command, "--tokenizer", str(trained / "base"), "--to", str(tmp_path / command[0])])
        assert done.exit_code == 0, done.output
    prepared = given | {"idf_table": str(tmp_path / "idf"), "stop_table": str(tmp_path / "stopwords")}
    plain, table = (verify(studies.configure(values)) for values in (given, prepared))
    assert [row["found"] for row in plain] == [row["found"] for row in table]
    with pytest.raises(PreparedError, match="was made for another tokenizer"):
        verify(studies.configure(prepared | {"vocab_size": 700}))
    with pytest.raises(PreparedError, match="IDF weights not found: .*run `korlab sparse idf` first"):
        verify(studies.configure(given | {"idf_table": str(tmp_path / "nowhere")}))


@pytest.mark.parametrize("model", ["sparse-ko", "sparse-ko-doc"])
def test_a_padded_checkpoint_is_cut_to_its_tokenizer(model, folder, tmp_path):
    """Published checkpoints pad their output layer; the rows beyond the tokenizer belong to no token."""
    texts = load_splits(studies.configure({"model": "sparse-ko", "data": str(folder)})).texts
    tokenizer = train_tokenizer(texts, 600)
    padded = mini(tokenizer, max_length=48)
    padded.resize_token_embeddings(len(tokenizer) + 24)
    padded.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    given = {"model": model, "size": "full", "checkpoint": str(tmp_path), "data": str(folder), "precision": "fp32", "device": "cpu"}
    rows = verify(studies.configure(given | {name: FAST[name] for name in ("batch_size", "max_length", "negatives", "tracking")}))
    assert {row["state"] for row in rows} == {"ok"}, rows
    assert f"without 24 rows of its output layer that belong to no token, {len(tokenizer):,} dimensions" in rows[1]["found"]
    weights = np.ones(len(tokenizer), np.float32) if model == "sparse-ko-doc" else None
    built = assemble(tmp_path, 48, weights)
    built.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    for side in ("query", "document"):
        kept = [encode(one, texts[:8], side).toarray() for one in (built, load(tmp_path / "saved").model)]
        assert kept[0].shape == (8, len(tokenizer)) and (kept[0] == kept[1]).all()


def test_the_published_price_list_is_checked_as_it_is(folder):
    rows = verify(studies.configure({"model": "sparse-v25", "data": str(folder)} | FAST))
    assert {row["state"] for row in rows} == {"ok"} and "unseen=published" in rows[2]["found"]


def test_an_untrained_direction_is_not_mistaken_for_skill(folder, tmp_path):
    """The encoder is judged on queries training never saw."""
    splits = load_splits(studies.configure({"model": "sparse-ko", "data": str(folder)}))
    asked = {triple.query for triple in splits.triples}
    assert not asked & {text for name in splits.scored for text in splits.collections[name].queries.values()}


def test_the_published_recipe_is_in_its_file():
    values = read_yaml(ROOT / "params" / "sparse" / "v25.yaml")
    effective = studies.configure(values)
    assert all(effective.flat()[name] == value for name, value in values.items())
    published = dict(
        max_length=192, batch_size=48, accumulation=2, epochs=25, learning_rate=3e-5, scheduler="cosine", warmup=0.1, weight_decay=0.01,
        max_grad_norm=1.0, precision="bf16", infonce=3.0, self_reconstruction=0.5, positive_activation=2.0, triplet=0.0, query_weight=0.002,
        minimum_activation=1.0, kd=2.0, temperature=0.07, kd_temperature=3.0, idf_alpha=2.5, idf_kind="bm25", idf_beta=0.3, stop_factor=5.0,
        keep_checkpoints=3, logging_steps=50, seed=42, teacher="BAAI/bge-m3", curriculum="v25", stop_list="published",
    )
    assert {name: values[name] for name in published} == published
    v26 = read_yaml(ROOT / "params" / "sparse" / "v26.yaml")
    assert v26 == values | dict(query_weight=0.010, stop_factor=15.0, idf_alpha=4.0)
    assert studies.configure(v26).own.stop_factor == 15.0
    v24 = studies.configure(read_yaml(ROOT / "params" / "sparse" / "v24.yaml")).own
    assert (v24.regularizer, v24.stop_tokens, v24.idf_alpha) == ("flops", "none", None)


def test_a_parameter_of_another_study_is_refused():
    with pytest.raises(params.ParameterError, match="num_beams=4 belongs to the study 'summarization'"):
        studies.configure({"model": "sparse-ko", "num_beams": 4})
    assert studies.configure({"model": "sparse-ko", "tidy": False}).run.model == "sparse-ko"  # another study's default


def test_distillation_without_scores_or_teacher_stops(folder, tmp_path):
    outcome = papermill(tmp_path / "out.ipynb", *flags(model="sparse-ko", name="mine", data=folder, kd=1.0, **FAST), runs=tmp_path)
    assert outcome.code == 1 and "the triples have no teacher scores" in outcome.text


def test_six_checks_before_a_long_training(folder):
    rows = verify(studies.configure({"model": "sparse-ko", "data": str(folder)} | FAST))
    assert [row["check"] for row in rows] == ["data", "model", "IDF", "stop tokens", "loss", "gradient"]
    assert {row["state"] for row in rows} == {"ok"}


@pytest.mark.slow
def test_a_mini_starts_alike_in_every_process(capsys):
    """The trainers of `tokenizers` do not: their hash maps are seeded anew in every process."""
    code = ("import hashlib; from korlab.sparse.models import train_tokenizer\n"
            "texts = [f'{i % 24}시에 {i}번 버스가 {town}에서 {other}까지 갑니다.' for i in range(40) for town in ('서울', '부산', '대전') for other in ('광주', '춘천')]\n"
            "for family in ('roberta', 'xlm-roberta'):\n"
            "    print(hashlib.sha256(train_tokenizer(texts, 200, family).backend_tokenizer.to_str().encode()).hexdigest())")
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    exec(code, {})
    assert capsys.readouterr().out == there and len(there.split()) == 2
