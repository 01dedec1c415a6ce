"""A sentence encoder without a head made sparse: through the entry notebook, saved, resumed, exported, searched."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Killed, collection_of, dies_after_saving, flags
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from in_process import papermill
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SparseEncoder
from transformers import AutoTokenizer

from korlab.core.files import read_json, read_jsonl
from korlab.experiment import results, studies
from korlab.experiment.evaluations import open_evaluation
from korlab.experiment.models import CheckpointError
from korlab.experiment.params import ParameterError
from korlab.experiment.runs import open_run, reopen
from korlab.sparse import stages
from korlab.sparse.beside import DENSE, HYBRID
from korlab.sparse.data import save_beir
from korlab.sparse.encoders import load_encoder
from korlab.sparse.export import Card, export
from korlab.sparse.models import encode, train_tokenizer
from korlab.sparse.scoring import evaluate_on
from korlab.sparse.starting import Start, head_of, mini_encoder, write_start
from korlab.sparse.trainer import SparseTrainer
from korlab.sparse.trimming import Trim, always_kept, trim
from korlab.sparse.windows import window_size, windows_of

FAST = {"model": "sparse-e5", "size": "mini", "max_steps": 8, "eval_steps": 4, "eval_rows": 4, "batch_size": 8, "vocab_size": 900, "max_length": 32,
        "long_texts": "windows", "frozen_layers": 1, "frozen_pieces": True, "max_active_dims": 24, "negatives": 1, "tracking": "none", "on_collapse": "warn", "warmup": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("beir")
    save_beir(collection_of(60), place)
    return place


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory):
    """Where a run of the mini is, trained through train.ipynb once."""
    home = tmp_path_factory.mktemp("runs")
    outcome = papermill(home / "out.ipynb", *flags(name="mine", data=folder, **FAST), runs=home)
    assert outcome.code == 0, outcome.text[-3000:]
    return home


@pytest.fixture()
def run(runs, monkeypatch):
    monkeypatch.setenv("KORLAB_RUNS", str(runs))
    return reopen(runs / "sparse" / "mine")


def test_it_runs_through_the_main_notebook_beside_its_own_dense_vectors_and_the_hybrid(run):
    found = results.read(run)
    systems = ["sparse-e5", "BM25 morphemes", "BM25 eojeol", DENSE, HYBRID]
    assert [one.system for one in found.scored] == systems and set(found.facts["test"]["against"]) == set(systems[1:])
    assert all(0 <= one.measures["ndcg@10"].mean <= 1 and one.n == 18 for one in found.scored)
    chosen = read_json(run.path("hybrid.json"))
    assert found.facts["test"]["hybrid"] == {"kind": "sum", "weight": chosen["weight"]} and chosen["n"] == 6
    said = run.read("model")
    assert said["pieces"].endswith(f"of {len(AutoTokenizer.from_pretrained(run.path('encoder')))}") and "least squares" in said["origin"]
    assert said["parameters_before"] > 0 and said["head"].startswith("solved from")
    logged = [row for row in read_jsonl(run.path("history.jsonl")) if "loss" in row]
    assert logged and all(row["kd"] > 0 for row in logged)


def test_what_pruning_costs_is_told_of_the_same_search_as_the_score(run):
    found = results.read(run)
    whole = {round(row["nDCG@10"] - row["difference"], 9) for row in found.facts["test"]["pruning"]}
    assert whole == {round(found.scored[0].measures["ndcg@10"].mean, 9)}


def test_no_vector_has_more_than_the_strongest_tokens_wherever_it_is_made(run):
    assert read_json(run.path("model", "config_sentence_transformers.json"))["max_active_dims"] == FAST["max_active_dims"]
    texts = [*stages.load_splits(run.config).collections["test"].corpus.values()]
    few = np.diff(load_encoder(str(run.folder)).documents(texts).indptr)
    whole = SparseEncoder(str(run.path("model")), device="cpu", max_active_dims=9999)
    every = np.diff(encode(whole, texts, "document").indptr)
    assert few.max() == FAST["max_active_dims"] < every.max() and (few == np.minimum(every, FAST["max_active_dims"])).all()


def test_the_dense_row_is_what_sentence_transformers_finds(run):
    splits = stages.load_splits(run.config)
    test = splits.collections["test"]
    plain = SentenceTransformer(str(run.path("encoder")), device="cpu")
    plain.max_seq_length = FAST["max_length"]
    saved = SparseEncoder(str(run.path("model")), device="cpu")
    windows = windows_of(test.corpus, saved.tokenizer, window_size(saved))
    queries, passages = (plain.encode([prefix + text for text in texts.values()], normalize_embeddings=True)
                         for prefix, texts in (("query: ", test.queries), ("passage: ", windows.texts)))
    first = [[*windows.owners.values()][place] for place in (queries @ passages.T).argmax(1)]
    rows = read_jsonl(run.path("rankings", "test.jsonl"))
    assert [row["first"][DENSE] for row in rows] == first


def test_prefixes_reach_training_batches_the_saved_model_and_every_search(run):
    saved = SparseEncoder(str(run.path("model")), device="cpu")
    assert saved.prompts == {"query": "query: ", "document": "passage: "}
    text = "도서관은 몇 시까지 여나요"
    assert np.allclose(encode(saved, [text], "query").toarray(), saved.encode(["query: " + text], prompt="", convert_to_sparse_tensor=False).numpy(), atol=1e-5)
    assert (encode(saved, [text], "query") != encode(saved, [text], "document")).nnz
    found = load_encoder("mine")
    assert found.max_length == FAST["max_length"] - len(saved.tokenizer("passage: ", add_special_tokens=False)["input_ids"])
    assert np.allclose(found.queries([text]).toarray(), encode(saved, [text], "query").toarray(), atol=1e-5)
    again = open_run(FAST | {"name": "batches", "data": run.config.rows.data})
    splits = stages.data(again)
    loaded = stages.model(again, splits)
    trainer = SparseTrainer(again.config, loaded.model, splits.triples, None, again.folder, lesson=stages.lesson_for(again, splits.triples)).trainer
    batch = next(iter(trainer.get_train_dataloader()))
    read = {side: loaded.tokenizer.decode(batch[f"{side}_input_ids"][0]) for side in ("query", "positive", "negative_1")}
    assert "query:" in read["query"] and all("passage:" in read[side] for side in ("positive", "negative_1"))
    assert all(batch[f"{side}_input_ids"].shape[1] <= 32 for side in read)
    again.close()


def test_the_head_learns_at_its_own_rate(run):
    config = studies.configure(FAST | {"data": run.config.rows.data, "head_rate": 10})
    again = open_run(FAST | {"name": "rates", "data": run.config.rows.data, "head_rate": 10})
    splits = stages.data(again)
    loaded = stages.model(again, splits)
    trainer = SparseTrainer(config, loaded.model, splits.triples, None, again.folder, lesson=stages.lesson_for(again, splits.triples)).trainer
    trainer.create_optimizer()
    rates = {id(weight): group["lr"] for group in trainer.optimizer.param_groups for weight in group["params"]}
    for name, weight in ((name, weight) for name, weight in loaded.model.named_parameters() if weight.requires_grad):
        assert rates[id(weight)] == pytest.approx((10 if ".cls." in name else 1) * config.training.learning_rate), name
    again.close()


def test_pieces_that_are_frozen_keep_their_directions_and_the_rest_of_the_head_learns(run):
    before, after = (load_file(run.path(place, "model.safetensors")) for place in ("base", "model"))
    same = {name: torch.equal(before[name], after[name]) for name in before if name.startswith("cls.predictions.")}
    same.pop("cls.predictions.bias")  # nothing reads it: the decoder has a bias of its own
    assert [name for name, kept in same.items() if kept] == ["cls.predictions.decoder.weight"]


def test_what_is_saved_is_read_as_any_other_model_and_keeps_the_way_back(run):
    way = Trim.read(run.path("model"))
    before, after = AutoTokenizer.from_pretrained(run.path("encoder")), AutoTokenizer.from_pretrained(run.path("model"))
    assert before.convert_ids_to_tokens(list(way.old)) == after.convert_ids_to_tokens(list(range(len(after))))
    assert way == Trim.read(run.path("base")) and not list(run.folder.rglob("*.bin"))
    plain, fused = SparseEncoder(str(run.path("model")), device="cpu"), stages.model(run, stages.load_splits(run.config))
    texts = ["환불은 언제까지 되나요?", "도서관 운영 시간"]
    assert np.allclose(encode(plain, texts, "document").toarray(), encode(fused.model, texts, "document").toarray(), atol=1e-5)
    assert encode(plain, texts, "document").shape[1] == len(after) == run.read("model")["vocabulary"]


def test_scored_again_it_gets_the_same_with_the_weight_that_dev_chose(run):
    again, checkpoint = open_evaluation({"run": "mine"})
    assert evaluate_on(again, checkpoint).scored == results.read(run).scored
    again.close()


def test_another_collection_is_searched_by_fused_ranks(run, tmp_path):
    """A weight that dev chose among its own questions says nothing of others."""
    given = collection_of(24)
    save_beir(replace(given, queries={key: f"혹시 {text}" for key, text in given.queries.items()}), tmp_path)
    again, checkpoint = open_evaluation({"run": "mine", "data": str(tmp_path)})
    assert evaluate_on(again, checkpoint).facts["test"]["hybrid"] == {"kind": "rrf", "weight": None}


def trained(name, run, step=None):
    """The weights after a training; killed after an update, and gone on with."""
    again = open_run(FAST | {"name": name, "data": run.config.rows.data})
    splits = stages.data(again)

    def trainer():
        loaded, lesson = stages.model(again, splits), stages.lesson_for(again, splits.triples)
        return SparseTrainer(again.config, loaded.model, splits.triples, splits.collections["dev"], again.folder, lesson=lesson, note=again.note)

    if step:
        killed = trainer()
        dies_after_saving(killed.trainer, step)
        with pytest.raises(Killed):
            killed.train()
        before = (again.path("base") / "model.safetensors").stat().st_mtime_ns
    ended = trainer()
    ended.train()
    assert not step or (again.path("base") / "model.safetensors").stat().st_mtime_ns == before  # the start was written once
    again.close()
    return {name: weight.detach().clone() for name, weight in ended.model.named_parameters()}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_killed_and_resumed_it_ends_as_if_nothing_had_been(run):
    straight, resumed = trained("straight", run), trained("resumed", run, 4)
    for name, weight in straight.items():
        assert torch.allclose(weight, resumed[name], atol=1e-6), name


def test_an_exported_model_gives_the_same_vectors_where_prefixes_are_written_out(run, tmp_path):
    done = export(run.path("model"), tmp_path / "shipped", Card("mine", "", "mit"))
    shipped, own = SparseEncoder(str(done.folder), device="cpu"), SparseEncoder(str(run.path("model")), device="cpu")
    texts = ["환불은 언제까지 되나요?", "도서관 운영 시간"]
    for side in ("query", "document"):
        assert np.allclose(encode(shipped, texts, side).toarray(), encode(own, texts, side).toarray(), atol=1e-5)


def test_what_a_run_cannot_have_is_refused_in_a_sentence(run, monkeypatch):
    with pytest.raises(ParameterError, match="teacher='own' needs start to be 'solved'"):
        stages.data(open_run(FAST | {"model": "sparse-ko", "name": "ownless", "data": run.config.rows.data, "kd": 1.0, "teacher": "own"}))
    with pytest.raises(CheckpointError, match="is a gpt2, and heads can be solved for bert, roberta, xlm-roberta"):
        from transformers import GPT2Config

        GPT2Config().save_pretrained(run.path("other"))
        write_start(Start(str(run.path("other")), "", {"query": ["가"], "document": ["나"]}, {}, 16, 0), run.path("other-base"))


def test_the_written_head_is_the_map(run):
    """LayerNorm(W h + b) before the decoder, to a thousandth."""
    from transformers import AutoModelForMaskedLM

    model, tokenizer = AutoModelForMaskedLM.from_pretrained(run.path("base")), AutoTokenizer.from_pretrained(run.path("base"))
    dense, norm, decoder = head_of(model)
    ids = torch.tensor([tokenizer("passage: 도서관은 아홉 시에 연다")["input_ids"]])
    with torch.no_grad():
        hidden = model.bert(input_ids=ids).last_hidden_state
        linear = decoder(torch.nn.functional.layer_norm(dense(hidden) - dense.bias.mean(), norm.normalized_shape))
        assert (model(input_ids=ids).logits - linear).abs().max() < 1e-3
    assert not model.config.tie_word_embeddings and dense(hidden).min() > 4


def test_negatives_may_be_mined_by_the_base_itself(run):
    again = open_run(FAST | {"name": "mined", "data": run.config.rows.data, "miner": "own"})
    splits = stages.data(again)
    assert all(len(t.negatives) == 1 for t in splits.triples) and any("own found them" in note for note in splits.notes)
    again.close()


# ---- a vocabulary that was cut ------------------------------------------------------------------------------------

ALPHABET = "가나다라마서울부산기차날씨 abcXYZ019.,?!:()'\"-…·ㅋㅠ\n"


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A tokenizer, what is left of it, saved and read again, and the way back."""
    texts = ["서울의 오늘 날씨는 맑다.", "부산 가는 기차는 빠르다.", "the weather (is) fine: 019!", "abcXYZ ?'-", "다라마 ㅋㅋ ㅠㅠ… · \""] * 3
    whole = train_tokenizer([*texts, " ".join(ALPHABET), " ".join("東京é")], 400, "xlm-roberta")
    small, way = trim(whole, texts, 4)
    small.save_pretrained(place := tmp_path_factory.mktemp("cut"))
    return whole, AutoTokenizer.from_pretrained(place), way


@examples(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from(ALPHABET), max_size=40))
def test_korean_and_english_gives_what_it_gave(cut, text):
    whole, small, way = cut
    before, after = whole(text)["input_ids"], small(text)["input_ids"]
    assert small.is_fast and whole.decode(before) == small.decode(after)
    assert before.count(whole.unk_token_id) == after.count(small.unk_token_id)
    if set(before) <= set(way.old):
        assert [way.old[i] for i in after] == before


@examples(max_examples=100, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_gives_pieces_it_had_or_unknown_ones(cut, text):
    whole, small, way = cut
    before, after = (one(text, add_special_tokens=False)["input_ids"] for one in (whole, small))
    if set(before) <= set(way.old):
        assert [way.old[i] for i in after] == before
    assert all(0 <= i < len(small) for i in after) and (whole.unk_token_id not in before or small.unk_token_id in after)


def test_what_is_hangul_or_a_letter_stays_and_the_rest_goes_by_use(cut):
    whole, small, way = cut
    gone = set(whole.get_vocab()) - set(small.get_vocab())
    assert gone and not any(map(always_kept, gone)) and set(small.all_special_tokens) == set(whole.all_special_tokens)
    assert small("가")["input_ids"][0] == small.bos_token_id and small("가")["input_ids"][-1] == small.eos_token_id


def test_a_vocabulary_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="keep_df=2: the vocabulary of .* is a WordPiece"):
        trim(train_tokenizer(["서울 날씨"] * 3, 100, "roberta"), ["서울"], 2)
    texts = ["서울의 오늘 날씨는 맑다.", "부산 가는 기차는 빠르다."]
    base = mini_encoder(texts, tmp_path / "encoder", 100, 16)
    kept = write_start(Start(str(base), "", {"query": texts, "document": texts}, {}, 16, 0), tmp_path / "base")
    assert read_json(kept / "start.json")["cut_as_before"].startswith("100.00 %")
