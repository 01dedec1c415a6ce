"""Losses, schedules and teachers of the sparse study: against independent sums, and inside a real Trainer."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sentence_transformers import CrossEncoder, SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.losses import CachedSpladeLoss, SpladeLoss
from sentence_transformers.sparse_encoder.modules import SpladePooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from korlab.experiment.models import CheckpointError
from korlab.experiment.params import ParameterError
from korlab.sparse.answers import Rivals, answers_of, rivals_of
from korlab.sparse.data import Triple, bare
from korlab.sparse.losses import (
    TERMS,
    IdfFlops,
    RankingTerms,
    SparseLoss,
    positive_activation,
    self_reconstruction,
    v25_loss,
)
from korlab.sparse.schedules import (
    V25_PHASES,
    ActiveDims,
    Collapsed,
    CollapseWatch,
    Curriculum,
    Phase,
    PhaseSampler,
    RegularizerWarmup,
    distinct_batches,
)
from korlab.sparse.teacher import Teacher, encoder_teacher, load_teacher, score_pairs, score_triples

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = [a + b for a in "가나다라마바사아자차" for b in "강단물불산섬숲집책길별꽃눈비들"]  # 150 words of two syllables
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
V = len(SPECIALS) + len(WORDS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random masked LM of two layers with a tokenizer of 155 words."""
    folder = tmp_path_factory.mktemp("tiny")
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIALS + WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS))
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=32, **named).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                        max_position_embeddings=40, initializer_range=0.3)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def encoder(checkpoint: Path) -> SparseEncoder:
    """The library's own stack: fill-mask transformer and SpladePooling."""
    return SparseEncoder(modules=[Transformer(str(checkpoint), transformer_task="fill-mask"), SpladePooling("max")])


def rows(n: int, scores: bool = False) -> Dataset:
    """Queries, passages that share a word, one negative each."""
    at = [WORDS[(7 * i) % len(WORDS)] for i in range(n)]
    data = {"query": at, "positive": [f"{w} {WORDS[i % 150]}" for i, w in enumerate(at)],
            "negative": [f"{WORDS[(i + 40) % 150]} {WORDS[(i + 80) % 150]}" for i in range(n)]}
    return Dataset.from_dict(data | ({"label": [[0.9, 0.1 + 0.01 * i] for i in range(n)]} if scores else {}))


class Trainer(SparseEncoderTrainer):
    """The library's trainer with a place for a sampler."""

    sampler = None

    def get_batch_sampler(self, dataset, batch_size, **rest):
        return self.sampler or super().get_batch_sampler(dataset, batch_size=batch_size, **rest)


def trainer(folder: Path, model, loss, data, callbacks=(), **extra) -> Trainer:
    wanted = {"per_device_train_batch_size": 8, "num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no",
              "report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False,
              "learning_rate": 1e-3, "seed": 3} | extra
    args = SparseEncoderTrainingArguments(str(folder), **wanted)
    return Trainer(model, args, data, loss=loss, callbacks=list(callbacks))


def steps_of(run: Trainer) -> list[dict]:
    return [entry for entry in run.state.log_history if "loss" in entry]


# ---------------------------------------------------------------- single terms

vectors = arrays(np.float32, (3, 6), elements=st.sampled_from([0.0, 0.25, 1.0, 2.5]))


@settings(max_examples=40, deadline=None)
@given(vectors, arrays(np.float32, 6, elements=st.sampled_from([0.0, 0.1, 1.0, 5.0])))
def test_idf_flops_is_the_same_sum_and_gradient_in_every_layout(weights, prices):
    mean = weights.astype(np.float64).mean(0)
    expected = (prices * mean).sum() + 0.3 * (prices * mean**2).sum()
    gradients = []
    for layout in (lambda x: x, torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr):
        leaf = torch.tensor(weights, requires_grad=True)
        found = IdfFlops(prices).compute_loss_from_embeddings(layout(leaf))
        assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        found.backward()
        gradients.append(torch.where(leaf != 0, leaf.grad, 0))
    assert torch.allclose(gradients[0], gradients[1]) and torch.allclose(gradients[0], gradients[2])


def test_idf_flops_refuses_prices_that_are_none():
    with pytest.raises(ParameterError, match="one finite price"):
        IdfFlops(np.array([1.0, np.inf]))
    with pytest.raises(ParameterError, match="one finite price"):
        IdfFlops(np.array([1.0, -1.0]))


@settings(max_examples=40, deadline=None)
@given(vectors, arrays(np.bool_, (3, 6)))
def test_corrected_forms_have_the_floor_zero_and_published_ones_do_not(weights, chosen):
    w, present = torch.tensor(weights), torch.tensor(chosen)
    assert self_reconstruction(w, present) >= 0 and positive_activation(w, present) >= 0
    assert self_reconstruction(present.float(), present) == 0 == positive_activation(present.float(), present)
    absent = torch.zeros_like(present)
    assert self_reconstruction(w, absent, form="published") >= math.log(2) - 1e-6
    if chosen.any(axis=1).all():
        assert positive_activation(present * 1e6, present, form="published") == pytest.approx(-1e6)


def test_ranking_terms_equal_independent_sums():
    chance = np.random.default_rng(0)
    q, p, n = (chance.random((4, 6)).astype(np.float32) for _ in range(3))
    labels = chance.random((4, 2)).astype(np.float32)
    batch = [torch.tensor(x) for x in (q, p, n)]

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def term(name, **how):
        terms = RankingTerms(torch.nn.Identity(), {name: 2.0}, **how)
        return terms.compute_loss_from_embeddings(batch, torch.tensor(labels))[name].item() / 2.0

    similar = unit(q) @ unit(np.concatenate([p, n])).T / 0.07
    expected = (np.log(np.exp(similar).sum(1)) - np.diag(similar)).mean()
    assert term("infonce") == pytest.approx(expected, rel=1e-5)
    raw = q @ np.concatenate([p, n]).T / 2
    assert term("infonce", similarity="dot", tau=2.0) == pytest.approx(
        (np.log(np.exp(raw).sum(1)) - np.diag(raw)).mean(), rel=1e-5)

    dots = np.stack([(q * p).sum(1), (q * n).sum(1)], axis=1)
    margins = (dots[:, 0] - dots[:, 1]) - (labels[:, 0] - labels[:, 1])
    assert term("kd", similarity="dot") == pytest.approx((margins**2).mean(), rel=1e-5)

    cosines = np.stack([(unit(q) * unit(p)).sum(1), (unit(q) * unit(n)).sum(1)], axis=1).astype(np.float64)

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)

    def z(x):
        return (x - x.mean()) / x.std()

    teacher, student = softmax(labels / 3), softmax(cosines / 3)
    kl = 9 * (teacher * np.log(teacher / student)).sum(1).mean()
    assert term("kd", distillation="kl") == pytest.approx(kl, rel=1e-3)
    mix = 0.7 * kl + 0.3 * ((z(cosines) - z(labels)) ** 2).mean()
    assert term("kd", distillation="published") == pytest.approx(mix, rel=1e-3)
    assert term("margin") == pytest.approx(np.maximum(0.3 - cosines[:, 0] + cosines[:, 1], 0).mean(), rel=1e-5)
    assert term("min_act", floor=2.0) == pytest.approx((2 - np.sort(q, axis=1)[:, -5:].mean(1)).mean(), rel=1e-5)


def test_terms_are_not_rounded_where_the_encoder_computes_in_bf16():
    batch = [torch.rand(4, 50, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    terms = RankingTerms(torch.nn.Identity(), {"infonce": 1.0, "margin": 1.0}, tau=0.02)
    prices = IdfFlops(np.linspace(0, 1, 50))

    def values():
        found = terms.compute_loss_from_embeddings(batch) | {"flops": prices.compute_loss_from_embeddings(batch[0])}
        return {name: value.item() for name, value in found.items()}

    exact = values()
    with torch.autocast("cpu", torch.bfloat16):
        assert values() == exact


def test_equal_student_scores_leave_finite_gradients():
    same = torch.ones(2, 3, requires_grad=True)
    terms = RankingTerms(torch.nn.Identity(), {"kd": 1.0}, distillation="published")
    terms.compute_loss_from_embeddings([same, same, same], torch.tensor([[1.0, 0.0], [0.5, 0.0]]))["kd"].backward()
    assert same.grad.isfinite().all()


def test_query_mask_hides_stop_tokens_from_some_terms_only():
    mask = np.array([0, 1, 1])
    query, passage = torch.tensor([[5.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    terms = RankingTerms(torch.nn.Identity(), {"margin": 1.0, "kd": 1.0}, query_mask=mask, similarity="cos")
    batch = [query, passage, torch.tensor([[0.0, 0.0, 1.0]])]
    found = terms.compute_loss_from_embeddings(batch, torch.tensor([[1.0, 0.0]]))
    assert found["kd"] == pytest.approx(0.0, abs=1e-6)  # masked, the query is the passage
    assert found["margin"] == pytest.approx(0.3 - 1 / math.sqrt(26), abs=1e-6)  # the raw one is not


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 7))
def test_batches_hold_every_row_once_and_equal_keys_meet_only_when_they_must(keys, size):
    alone = [[key] for key in keys]
    batches = list(distinct_batches(range(len(keys)), Rivals(alone, alone), size))
    assert sorted(row for batch in batches for row in batch) == list(range(len(keys)))
    assert all(len(batch) == size for batch in batches[:-1])
    left = list(range(len(keys)))
    for batch in batches:
        met = [keys[row] for row in batch]
        if len(set(met)) < len(met):  # then no other key was left to take instead
            assert {keys[row] for row in left} == set(met)
        left = [row for row in left if row not in batch]


def test_passages_that_answer_a_question_never_count_against_it():
    """Batches of the sampler hold no such passage while there is room; where there is none, the loss does not see it."""
    spread = [Triple(f"질문 {i % 300}?", f"답 {i}", (f"오답 {i}",)) for i in range(600)]
    rivals, answers = rivals_of(spread, 1), answers_of(spread)
    sampler = PhaseSampler([""] * 600, [Phase(9, 1.0)], 32, seed=3, rivals=rivals)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert batches == list(sampler) and sorted(sum(batches, [])) == list(range(600))
        met = 0
        for number, batch in enumerate(batches):
            right = [[bare(spread[b].positive) in answers[bare(spread[a].query)] for b in batch] for a in batch]
            apart = np.array(right) & ~np.eye(len(batch), dtype=bool)
            assert not apart.any() or number >= len(batches) - 2  # only what is left at the end
            assert (np.array(rivals.barred(batch))[:, : len(batch)] == apart).all()
            met += int(apart.any(axis=1).sum())
        assert met < 12  # of 600 rows, 60 where rows are only drawn
    one = [Triple("질문?", f"답 {i}", ("답 0" if i == 9 else f"오답 {i}",)) for i in range(4)]
    barred = np.array(rivals_of(one, 1).barred(range(4)))
    assert barred[:, :4].tolist() == (~np.eye(4, dtype=bool)).tolist() and not barred[:, 4:].any()


def test_a_barred_passage_leaves_the_loss_and_its_gradient_alone():
    """InfoNCE over three rows, of which the first two ask the same, is that of each over what is left."""
    torch.manual_seed(2)
    query, positive, negative = (torch.rand(3, 6, requires_grad=True) for _ in range(3))
    terms = RankingTerms(torch.nn.Identity(), {"infonce": 1.0}, tau=0.5, similarity="dot")
    terms.ranking.barred = torch.tensor(Rivals([["a", "x"], ["b", "y"], ["c", "z"]], ["ab", "ab", "c"]).barred([0, 1, 2]))
    found = terms.compute_loss_from_embeddings([query, positive, negative])["infonce"]
    scores = query @ torch.cat([positive, negative]).T / 0.5
    left = [[0, 2, 3, 4, 5], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    expected = -sum(scores[i, i] - scores[i, columns].logsumexp(0) for i, columns in enumerate(left)) / 3
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    assert query.grad.isfinite().all() and positive.grad.isfinite().all()


# ---------------------------------------------------------------- inside the Trainer


def test_every_term_reaches_the_log_and_they_add_up(tmp_path, checkpoint):
    model = encoder(checkpoint)
    loss = v25_loss(model, np.ones(V), stop=np.arange(V) == 9, special_ids=range(5))
    run = trainer(tmp_path, model, loss, rows(16, scores=True), [RegularizerWarmup(loss, warmup_ratio=0)])
    run.train()
    assert isinstance(run.callback_handler.callbacks[1], RegularizerWarmup)  # before TensorBoard's
    entry = steps_of(run)[1]
    parts = [*TERMS, "document_regularizer_loss", "query_regularizer_loss"]
    assert sum(entry[part] for part in parts) == pytest.approx(entry["loss"], abs=2e-3)
    assert entry["kd"] > 0 and entry["self"] > 0 and entry["positive"] < 0
    assert entry["weight_kd"] == 2.0 and entry["weight_query"] == 0.002 and entry["tau"] == 0.07
    assert entry["query_regularizer_loss"] > 0 == entry["document_regularizer_loss"]


def test_a_teacher_that_is_missing_stops_the_first_step(tmp_path, checkpoint):
    model = encoder(checkpoint)
    loss = SparseLoss(model, RankingTerms(model, {"infonce": 1.0, "kd": 1.0}), 0.1, 0.1)
    run = trainer(tmp_path, model, loss, rows(8), [RegularizerWarmup(loss)])
    with pytest.raises(ParameterError, match="no teacher scores"):
        run.train()
    assert run.state.global_step == 0


def test_the_parts_serve_the_librarys_own_losses(checkpoint):
    model, data = encoder(checkpoint), rows(6, scores=True)
    batch = [model.preprocess(data[name]) for name in ("query", "positive", "negative")]
    model.eval()  # no dropout, so that both compute the same
    found = []
    for kind in (SpladeLoss, CachedSpladeLoss):
        terms = RankingTerms(model, {"infonce": 1.0, "kd": 1.0})
        prices = IdfFlops(np.ones(V))
        loss = kind(model, terms, 0.1, 0.1, document_regularizer=prices, query_regularizer=prices)
        found.append(sum(loss(batch, torch.tensor(data["label"])).values()).item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_published_phases_apply_at_epochs_1_9_and_18(tmp_path, checkpoint):
    model = encoder(checkpoint)
    kinds = [("single", "multi", "original", "hard")[i % 4] for i in range(40)]
    drawn: dict[int, list[str]] = {}

    class Seen(PhaseSampler):
        def __iter__(self):
            for batch in super().__iter__():
                drawn.setdefault(self.epoch + 1, []).extend(kinds[row] for row in batch)
                yield batch

    loss = SparseLoss(model, RankingTerms(model, {"infonce": 1.0, "kd": 1.0}), 1e-4, 1e-4)
    callbacks = [RegularizerWarmup(loss), Curriculum(loss, V25_PHASES, kd_warmup=1)]
    run = trainer(tmp_path, model, loss, rows(40, scores=True), callbacks, num_train_epochs=25,
                  per_device_train_batch_size=20, lr_scheduler_type="cosine")
    run.sampler = Seen(kinds, V25_PHASES, batch_size=20, seed=3)
    run.train()
    log = steps_of(run)
    assert len(log) == 50
    first, second, third = (0.08, 2.5, 2.5, 1), (0.05, 3, 1.5, 0.5), (0.04, 3, 0.8, 0.25)
    expected = {1: first, 8: first, 9: second, 17: second, 18: third, 25: third}
    for epoch, (tau, infonce, kd, factor) in expected.items():
        step = 2 * epoch  # the second update of the epoch
        entry = log[step - 1]
        assert (entry["tau"], entry["weight_infonce"], entry["weight_kd"]) == (tau, infonce, kd)
        cosine = 1e-3 * (1 + math.cos(math.pi * (step - 1) / 50)) / 2
        assert entry["learning_rate"] == pytest.approx(cosine * factor, rel=1e-6)
    assert log[0]["weight_kd"] == 1.25  # half of the warm-up
    for epoch, shares in {1: {"single": 16, "multi": 14, "original": 10}, 9: {"single": 12, "multi": 14, "hard": 14},
                          18: {"single": 8, "multi": 12, "hard": 20}}.items():
        assert {kind: drawn[epoch].count(kind) for kind in set(drawn[epoch])} == shares


@pytest.mark.parametrize(("stop", "restore"), [(2, True), (3, False)])
def test_four_steps_equal_a_resume_in_the_right_phase(tmp_path, checkpoint, stop, restore):
    """Two epochs of two updates, a phase each; killed after `stop` updates: same weights, factor and log."""
    phases = (Phase(1, 0.08, {"infonce": 2.0}, 1.0, {"a": 0.75, "b": 0.25}),
              Phase(2, 0.04, {"infonce": 3.0}, 0.25, {"b": 1}))

    def made(folder: Path) -> tuple[Trainer, SparseLoss]:
        torch.manual_seed(1)
        model = encoder(checkpoint)
        prices = IdfFlops(np.ones(V))
        loss = SparseLoss(model, RankingTerms(model, {"infonce": 1.0}), 0.5, 0.1, prices, prices)
        callbacks = [RegularizerWarmup(loss, "linear", 0.5), Curriculum(loss, phases),
                     ActiveDims.watching(loss, 20, gain=0.5, start_ratio=0.0)]
        run = trainer(folder, model, loss, rows(16), callbacks, num_train_epochs=2, save_strategy="steps",
                      save_steps=stop, lr_scheduler_type="linear", restore_callback_states_from_checkpoint=restore)
        run.sampler = PhaseSampler(["a", "b"] * 8, phases, batch_size=8, seed=3)
        return run, loss

    whole, loss = made(tmp_path / "whole")
    whole.train()
    torn, torn_loss = made(tmp_path / "torn")
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{stop}", tmp_path / "torn" / f"checkpoint-{stop}")
    torn.train(resume_from_checkpoint=str(tmp_path / "torn" / f"checkpoint-{stop}"))
    assert loss.document_factor != 1.0
    assert torn_loss.document_factor == loss.document_factor
    for (name, one), other in zip(whole.model.state_dict().items(), torn.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert steps_of(torn)[stop:] == steps_of(whole)[stop:]
    assert steps_of(torn)[3]["tau"] == 0.04 and steps_of(torn)[3]["weight_infonce"] == 3.0
    kept = json.loads((tmp_path / "whole" / f"checkpoint-{stop}" / "trainer_state.json").read_text())
    assert kept["stateful_callbacks"]["ActiveDims"]["args"]["factor"] not in (1.0, loss.document_factor)


def test_the_controller_brings_passages_to_the_target(tmp_path, checkpoint):
    """At this weight the encoder goes on to half of the target; the controller has to let go in time."""
    torch.manual_seed(1)
    model = encoder(checkpoint)
    prices = IdfFlops(np.ones(V))
    loss = SparseLoss(model, RankingTerms(model, {"infonce": 1.0}, tau=0.1), 1e-2, 1e-3, prices, prices)
    callbacks = [RegularizerWarmup(loss), ActiveDims.watching(loss, 40)]
    run = trainer(tmp_path, model, loss, rows(64), callbacks, max_steps=220, learning_rate=3e-3,
                  lr_scheduler_type="constant")
    run.train()
    dims = [entry["document_active_dims"] for entry in steps_of(run)]
    assert dims[0] > 100
    assert np.mean(dims[-40:]) == pytest.approx(40, abs=8)
    assert loss.document_factor < 0.5


@pytest.mark.parametrize(("weight", "message"), [(1e3, "document vectors were empty over the last 5 updates; lower"),
                                                 (1e-9, "document vectors kept .* of 155 dimensions .* raise")])
def test_collapse_ends_training_with_one_sentence(tmp_path, checkpoint, weight, message):
    model = encoder(checkpoint)
    loss = SparseLoss(model, RankingTerms(model, {"infonce": 1e-3}), weight, 1e-9)
    callbacks = [RegularizerWarmup(loss, warmup_ratio=0), CollapseWatch(loss, window=5, dense=0.4)]
    run = trainer(tmp_path, model, loss, rows(16), callbacks, max_steps=60, learning_rate=1e-2 if weight > 1 else 1e-6)
    with pytest.raises(Collapsed, match=message):
        run.train()
    assert run.state.global_step < 60


# ---------------------------------------------------------------- teachers


def test_an_encoder_teaches_from_a_folder_and_only_once(tmp_path, checkpoint):
    folder = tmp_path / "teacher"
    model = encoder(checkpoint)
    model.save_pretrained(str(folder))
    triples = [Triple(WORDS[i], WORDS[i] + " " + WORDS[i + 1], (WORDS[i + 30], WORDS[i + 1])) for i in range(6)]
    teacher = load_teacher(str(folder), kind="sparse", max_length=16)
    scored = score_triples(triples, [teacher], tmp_path / "scores.sqlite", chunk=4)
    for before, after in zip(triples, scored, strict=True):
        texts = [after.positive, *after.negatives]
        expected = model.encode_document(texts, convert_to_sparse_tensor=False) @ model.encode_query(
            after.query, convert_to_sparse_tensor=False)
        assert after.scores == pytest.approx(expected.tolist(), rel=1e-4)
        assert replace(after, scores=()) == before
    again = replace(teacher, score=lambda pairs: pytest.fail("the cache had all of them"))
    assert score_triples(triples, [again], tmp_path / "scores.sqlite") == scored
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    assert encoder_teacher(model).identity.split()[-1] != teacher.identity.split()[-1]


def test_a_killed_scoring_goes_on_after_its_last_chunk(tmp_path):
    pairs = [(f"q{i}", f"p{i}") for i in range(10)]
    asked = []

    def failing(some):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(some)
        return np.arange(len(some))

    with pytest.raises(KeyboardInterrupt):
        score_pairs(pairs, Teacher("t", failing), tmp_path / "s.sqlite", chunk=3)
    rest = []
    working = Teacher("t", lambda some: rest.extend(some) or np.zeros(len(some)))
    assert score_pairs(pairs, working, tmp_path / "s.sqlite", chunk=3).tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 0, 0]
    assert rest == pairs[6:]


def test_a_cross_encoder_teaches(tmp_path, checkpoint):
    config = BertConfig.from_pretrained(checkpoint, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "cross")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "cross")
    teacher = load_teacher(str(tmp_path / "cross"), kind="cross", max_length=16)
    pairs = [(WORDS[0], WORDS[1]), (WORDS[2], WORDS[3])]
    expected = CrossEncoder(str(tmp_path / "cross")).predict(pairs)
    assert score_pairs(pairs, teacher, tmp_path / "s.sqlite") == pytest.approx(expected, rel=1e-5)


def test_an_untrained_or_different_model_is_no_teacher(tmp_path, checkpoint):
    for kind in ("dense", "sparse", "cross"):
        with pytest.raises(CheckpointError, match="and this is none.*hf download"):
            load_teacher(str(checkpoint), kind=kind)
    encoder(checkpoint).save_pretrained(str(tmp_path / "sparse"))
    with pytest.raises(CheckpointError, match="a teacher is a trained SentenceTransformer, and this is SparseEncoder"):
        load_teacher(str(tmp_path / "sparse"), kind="dense")
