"""What the sparse study promises and no other test shows: the recipe inside a whole training, its files, its commands."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from sentence_transformers import SparseEncoder
from torch import nn
from transformers import TrainingArguments
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.core.files import read_json, read_jsonl
from korlab.core.yamls import read_yaml
from korlab.experiment.checkpoints import damage
from korlab.experiment.params import ParameterError
from korlab.experiment.runs import Run
from korlab.experiment.studies import configure
from korlab.experiment.training import MemoryFull
from korlab.sparse import idf, stopwords, study
from korlab.sparse import trainer as trainers
from korlab.sparse.data import Collection, Triple, save_beir
from korlab.sparse.head import fuse
from korlab.sparse.losses import RankingTerms, SparseLoss
from korlab.sparse.models import assemble, mini, train_tokenizer
from korlab.sparse.schedules import Collapsed, Hints
from korlab.sparse.trainer import SparseTrainer, encode

pytestmark = pytest.mark.usefixtures("one_thread")

PLACES = ["서울", "부산", "제주", "대구", "광주", "대전", "인천", "울산", "전주", "강릉"]
KINDS = {  # kind of row -> what is asked, where the answer looks, what it says
    "single": ("날씨", "하늘", "비가 오고 바람이 분다"), "multi": ("맛집", "식당", "국밥을 싸게 판다"),
    "original": ("숙소", "호텔", "방이 넓고 조용하다"), "hard": ("교통", "버스", "십 분마다 한 대가 온다"),
}
TRIPLES = [
    Triple(f"{place}의 {asked}은 어떤가요?", f"{place}에서는 {where}에 {said}.", (f"{PLACES[i - 1]}에서는 {where}에 {said}.",),
           (0.9, 0.2 + 0.01 * i), kind)
    for i, place in enumerate(PLACES) for kind, (asked, where, said) in KINDS.items()
]
TEXTS = [text for triple in TRIPLES for text in (triple.query, triple.positive)]
SHARES = [{"single": 16, "multi": 14, "original": 10}, {"single": 12, "multi": 14, "hard": 14}, {"single": 8, "multi": 12, "hard": 20}]
PHASES = [(0.08, 2.5, 2.5, 1.0), (0.05, 3.0, 1.5, 0.5), (0.04, 3.0, 0.8, 0.25)]  # tau, infonce, kd, lr as published
WANTED = {
    "model": "sparse-ko", "epochs": 3, "batch_size": 8, "max_length": 48, "warmup": 0, "learning_rate": 2e-3, "eval_steps": 5,
    "logging_steps": 1, "scheduler": "linear", "similarity": "cos", "temperature": 0.07, "document_weight": 0.01, "tracking": "none", "precision": "fp32",
}
TAUGHT = {"kd": 1.0, "distillation": "kl", "kd_temperature": 2.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """An untrained encoder with a tokenizer of 168 pieces."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(TEXTS, 300, "roberta")
    torch.manual_seed(0)
    mini(tokenizer, "roberta", 48).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trainer_of(base: Path, folder: Path, stop: np.ndarray | None = None, **given: object) -> SparseTrainer:
    """The study's trainer on all triples; `notes` is what it told."""
    model = assemble(base, 48)
    if given.get("stop_tokens") == "hard":
        fuse(model, stop=torch.from_numpy(stop))
    prices, notes = idf.count_df(TEXTS, model.tokenizer).penalties(), []
    made = SparseTrainer(configure(WANTED | given), model, TRIPLES, None, folder, prices, stop, notes.append)
    made.notes = notes
    return made


def infonce(model: SparseEncoder, tau: float = 0.08) -> float:
    """The contrastive loss over all triples at once, by numpy alone."""
    sides = [encode(model, texts, side).toarray().astype(float) for texts, side in (
        ([t.query for t in TRIPLES], "query"), ([t.positive for t in TRIPLES], "document"))]
    query, passage = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    scores = query @ passage.T / tau
    return float((np.log(np.exp(scores).sum(1)) - np.diag(scores)).mean())


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> SimpleNamespace:
    """Three epochs of five updates, a phase each: teacher, data weights, delayed λ, hard mask, bf16, TensorBoard."""
    folder = tmp_path_factory.mktemp("trained")
    stop = stopwords.stop_mask(assemble(base, 48).tokenizer)
    made = trainer_of(base, folder, stop, stop_tokens="hard", precision="bf16", tracking="tensorboard", curriculum="v25",
                      kd_warmup=1.0, regularizer_delay=0.2, regularizer_warmup=0.4, **TAUGHT)
    drawn, formats, whole = {}, set(), made.trainer.batches

    def recorded(size: int):
        sampler = whole(size)

        class Recorded(type(sampler)):
            def __iter__(self):
                for batch in super().__iter__():
                    drawn.setdefault(self.epoch, []).extend(TRIPLES[row].kind for row in batch)
                    yield batch

        sampler.__class__ = Recorded
        return sampler

    made.trainer.batches = recorded
    linear = next(module for name, module in made.model.named_modules() if name.endswith("attention.self.query"))
    linear.register_forward_hook(lambda module, given, out: formats.add((module.training, out.dtype)))
    before = infonce(made.model)
    made.train()
    history = [row for row in read_jsonl(folder / "history.jsonl") if "loss" in row]
    return SimpleNamespace(folder=folder, history=history, drawn=drawn, formats=formats, before=before, stop=stop)


# ---------------------------------------------------------------- one whole training


def test_every_phase_rules_the_epochs_of_the_study(trained):
    assert [row["step"] for row in trained.history] == list(range(1, 16))
    for row in trained.history:
        step = row["step"] - 1
        tau, weight, kd, factor = PHASES[step // 5]
        warm = min((step + 1) / 5, 1)
        assert (row["tau"], row["weight_infonce"], row["weight_kd"]) == (tau, weight, pytest.approx(kd * warm))
        assert row["learning_rate"] == pytest.approx(2e-3 * (1 - step / 15) * factor)
        assert row["kd"] > 0
        grown = min(max(step - 3, 0) / 6, 1) ** 2  # nothing for a fifth of the updates, full after another two
        assert row["weight_document"] == pytest.approx(0.01 * grown, rel=1e-4)
        assert row["weight_query"] == pytest.approx(0.003 * grown, rel=1e-4)
    for epoch, shares in enumerate(SHARES):
        assert {kind: trained.drawn[epoch].count(kind) for kind in set(trained.drawn[epoch])} == shares


def test_a_small_training_learns(trained):
    after = infonce(SparseEncoder(str(trained.folder / "model"), device="cpu"))
    assert after < 0.8 * trained.before


def test_checkpoints_log_and_tensorboard_are_on_disk(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kept = sorted((trained.folder / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["checkpoint-10", "checkpoint-15"]
    assert [damage(path) for path in (*kept, trained.folder / "model")] == [None] * 3
    assert not [file for file in trained.folder.rglob("*") if file.suffix in (".bin", ".pkl")]
    events = EventAccumulator(str(trained.folder / "tensorboard"))
    events.Reload()
    for name in ("loss", "infonce", "kd", "document_regularizer_loss", "tau", "weight_kd", "weight_document", "learning_rate"):
        shown = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert shown == [(row["step"], pytest.approx(row[name], rel=1e-5)) for row in trained.history], name


def test_bf16_computes_in_bf16_and_keeps_float32_weights(trained):
    assert read_json(trained.folder / "computing.json")["precision"] == "bf16"
    assert (True, torch.bfloat16) in trained.formats and (True, torch.float32) not in trained.formats
    model = SparseEncoder(str(trained.folder / "model"), device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert encode(model, TEXTS[:2], "query").dtype == np.float32


def test_a_hard_mask_holds_through_training_for_queries_and_passages(trained, base):
    """The published encoder masked its query in the loss only: passages and inference never."""
    start, model = assemble(base, 48), SparseEncoder(str(trained.folder / "model"), device="cpu")
    for side in ("query", "document"):
        assert encode(start, TEXTS, side)[:, trained.stop].sum() > 0.1 * encode(start, TEXTS, side).sum()
        after = encode(model, TEXTS, side)
        assert after[:, trained.stop].nnz == 0 and (np.diff(after.indptr) > 0).all()


def test_no_phase_brings_back_the_teacher_a_run_goes_without(base, tmp_path):
    made = trainer_of(base, tmp_path, curriculum="v25")
    assert [set(phase.weights) for phase in made.phases] == [{"infonce"}] * 3
    assert [phase.last_epoch for phase in made.phases] == [1, 2, 3]


def test_the_optimiser_is_the_published_one(base, tmp_path):
    given = read_yaml(ROOT / "params" / "sparse" / "v25.yaml")
    made = trainer_of(base, tmp_path, np.arange(168) < 9, **given | {"tracking": "none", "device": "cpu"}).trainer
    made.create_optimizer_and_scheduler(num_training_steps=100)
    assert type(made.optimizer).__name__ == "AdamW"
    names = {id(weight): name for name, weight in made.model.named_parameters()}
    for group in made.optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)
        spared = [name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name
                  for name in (names[id(weight)] for weight in group["params"])]
        assert group["weight_decay"] == 0.01 and not any(spared) or group["weight_decay"] == 0 and all(spared)
    assert made.args.max_grad_norm == 1.0
    rates = []
    for _ in range(100):
        rates.append(made.lr_scheduler.get_last_lr()[0])
        made.optimizer.step()
        made.lr_scheduler.step()
    wanted = [s / 10 if s < 10 else (1 + math.cos(math.pi * (s - 10) / 90)) / 2 for s in range(100)]
    assert rates == pytest.approx([3e-5 * share for share in wanted], abs=1e-12)


def test_a_collapse_stops_the_study(base, tmp_path):
    made = trainer_of(base, tmp_path, epochs=6, document_weight=1e4, regularizer_warmup=0.0, regularizer="flops")
    with pytest.raises(Collapsed, match="document vectors were empty over the last 20 updates; lower the document regulariser"):
        made.train()
    assert made.trainer.state.global_step < 30


# ---------------------------------------------------------------- terms, counts, hints


class Given(nn.Module):
    """Hands through the vectors that stand beside the tokens."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": features["vectors"]}


@pytest.mark.parametrize("form", ["published", "bounded"])
def test_self_and_positive_terms_look_at_the_right_text(form):
    """Independent sums: the query's vector against its own tokens, then its passage's; padding and specials count for nothing."""
    weights = np.random.default_rng(5).uniform(0, 2, (2, 7)).astype(np.float32)
    texts = [([[1, 4, 4, 2], [1, 3, 2, 6]], [[1, 1, 1, 1], [1, 1, 1, 0]], [{4}, {3}]),
             ([[1, 5, 6, 2], [1, 4, 2, 5]], [[1, 1, 1, 1], [1, 1, 1, 0]], [{5, 6}, {4}])]
    features = [{"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "vectors": torch.tensor(weights)}
                for ids, mask, _ in texts]
    own, other = (held for *_, held in texts)
    if form == "published":
        entries = [(w, i in own[row]) for row in range(2) for i, w in enumerate(weights[row].astype(float))]
        mirrored = np.mean([math.log1p(math.exp(-w)) if here else math.log1p(math.exp(w)) for w, here in entries])
        activated = -np.mean([np.mean([weights[row][i] for i in other[row]]) for row in range(2)])
    else:
        short = [[np.mean([max(0, 1 - weights[row][i]) for i in held[row]]) for row in range(2)] for held in (own, other)]
        extra = [np.mean([weights[row][i] for i in range(7) if i not in own[row]]) for row in range(2)]
        mirrored, activated = np.mean(short[0]) + np.mean(extra), np.mean(short[1])
    model = Given()
    terms = RankingTerms(model, {"self": 0.5, "positive": 2.0}, form=form, special_ids=(0, 1, 2))
    found = SparseLoss(model, terms, 0.0, 0.0)(features)
    assert found["self"].item() == pytest.approx(0.5 * mirrored, rel=1e-5)
    assert found["positive"].item() == pytest.approx(2 * activated, rel=1e-5)


def test_counting_reads_no_further_than_a_batch(base, monkeypatch):
    tokenizer, read, counted, real = assemble(base, 48).tokenizer, [], [], idf.batch_df

    def stream():
        for i in range(1000):
            read.append(i)
            yield TEXTS[i % len(TEXTS)]

    def batch_df(ids, size):
        counted.append(len(ids))
        assert len(read) == sum(counted)
        return real(ids, size)

    monkeypatch.setattr(idf, "batch_df", batch_df)
    assert idf.count_df(stream(), tokenizer, batch_size=64).n == 1000
    assert counted == [64] * 15 + [40]


@pytest.mark.net
def test_the_mask_of_xlm_roberta_is_the_published_one():
    """Not run in this repository's own checks: it needs the Hub. 163 is the source's claim."""
    from transformers import AutoTokenizer

    mask = stopwords.stop_mask(AutoTokenizer.from_pretrained("FacebookAI/xlm-roberta-base"), "published", 250_002)
    assert mask.shape == (250_002,) and mask.sum() == 163


def test_a_full_memory_says_what_to_change(base, tmp_path, monkeypatch):
    made = trainer_of(base, tmp_path)

    def full(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(made.trainer, "train", full)
    with pytest.raises(MemoryFull, match="memory is full: try batch_size=4 with accumulation=2 .*max_length below 48"):
        made.train()


def test_slow_updates_and_heavy_stop_tokens_are_told_once(tmp_path):
    said, means = [], torch.tensor([2.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    loss = SimpleNamespace(loss=SimpleNamespace(seen={"document_means": means}), report=lambda: {"weight_document": 0.002})
    args = TrainingArguments(str(tmp_path), use_cpu=True, bf16=False, dataloader_num_workers=0)
    watch = Hints(loss, np.arange(6) < 2, slow_seconds=0.0, note=said.append)
    for step in range(1, 50):  # half of the training
        watch.on_step_end(args, SimpleNamespace(global_step=step, max_steps=100), None)
    assert len(said) == 1 and all(word in said[0] for word in ("bf16", "workers", "an update takes"))
    for step in range(50, 101):
        watch.on_step_end(args, SimpleNamespace(global_step=step, max_steps=100), None)
    assert len(said) == 2 and said[1].startswith("semantic ratio 0.50: stop tokens weigh more than content; ")
    assert said[1].endswith("raise document_weight (now 0.002)")
    quiet = Hints(loss, np.arange(6) >= 2, note=pytest.fail)  # the heavy ones are content, and no update takes ten seconds
    for step in range(1, 101):
        quiet.on_step_end(args, SimpleNamespace(global_step=step, max_steps=100), None)


# ---------------------------------------------------------------- from the parameters to the loss


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Triples of eight places, judged questions of the ninth and tenth, and an overlay that names them."""
    folder = tmp_path_factory.mktemp("files")
    lines = [{"query": t.query, "positive": t.positive, "negatives": t.negatives, "pair_type": t.kind} for t in TRIPLES[:32]]
    (folder / "train.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    for name, rows in (("dev", TRIPLES[32:36]), ("test", TRIPLES[36:])):
        save_beir(Collection({f"d{i}": t.positive for i, t in enumerate(rows)}, {f"q{i}": t.query for i, t in enumerate(rows)},
                             {f"q{i}": {f"d{i}": 1} for i in range(4)}), folder / name)
    given = {"data": "train.jsonl", "dev_data": "dev", "test_data": "test"}
    small = {"size": "mini", "vocab_size": 300, "max_length": 48, "batch_size": 8, "tracking": "none"}
    lines = [f"{key}: {folder / value}\n" for key, value in given.items()] + [f"{key}: {value}\n" for key, value in small.items()]
    (folder / "overlay.yaml").write_text("".join(lines), "utf-8")
    return folder


def prices(texts: set[str], tokenizer, published: bool) -> np.ndarray:
    """exp(-2.5 n) of every token, counted and scaled by hand; unseen tokens cost 1, as published e^-2.5."""
    held = [{*tokenizer.encode(text, add_special_tokens=False)} - {*tokenizer.all_special_ids} for text in texts]
    df = np.array([sum(i in ids for ids in held) for i in range(len(tokenizer))])
    weights = np.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
    low, high = (edge(weights if published else weights[df > 0]) for edge in (np.min, np.max))
    found = np.exp(-2.5 * (weights - low) / (high - low))
    return found if published else np.where(df > 0, found, 1.0)


@pytest.mark.parametrize(("model", "given", "listed", "published", "factor"), [
    ("sparse-ko", {}, "safe", False, 5), ("sparse-ko", {"stop_tokens": "hard"}, "safe", False, 1),
    ("sparse-v25", {}, "published", True, 5), ("sparse-v24", {}, None, True, 1)])
def test_idf_and_stop_tokens_of_the_parameters_reach_the_training(model, given, listed, published, factor, files, tmp_path, monkeypatch):
    """The IDF weights of V24 were configured and never applied."""
    overlay = read_yaml(files / "overlay.yaml")
    run = Run(tmp_path, configure(overlay | {"model": model} | given))
    splits = study.data(run)
    loaded, handed = study.model(run, splits), []
    monkeypatch.setattr(trainers, "SparseTrainer", lambda *words: handed.extend(words) or SimpleNamespace(train=dict))
    study.train(run, loaded, splits)
    paid, stop, tokenizer = handed[5], handed[6], loaded.tokenizer
    if listed is None:
        assert paid is None and (stop == stopwords.stop_mask(tokenizer, "safe")).all()  # only to measure by
        return
    assert (stop == stopwords.stop_mask(tokenizer, listed)).all()
    texts = {text for t in TRIPLES[:32] for text in (t.query, t.positive, *t.negatives)}
    np.testing.assert_allclose(paid, prices(texts, tokenizer, published) * np.where(stop, factor, 1), rtol=1e-4)
    assert (encode(loaded.model, TEXTS, "document")[:, stop].nnz == 0) == (given.get("stop_tokens") == "hard")


# ---------------------------------------------------------------- commands


def korlab(*words: object, code: int = 0) -> str:
    """What `korlab sparse …` prints; of a refusal what it says on standard error as well."""
    done = CliRunner().invoke(command_line(), ["sparse", *map(str, words)])
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done.output if code else done.stdout  # without progress bars


def test_the_missing_table_names_a_command_that_makes_it(base, files, tmp_path):
    with pytest.raises(idf.PreparedError, match="IDF weights not found: .*run `korlab sparse idf` first"):
        idf.load_idf(tmp_path / "idf")
    told = korlab("idf", files / "train.jsonl", "--tokenizer", base, "--to", tmp_path / "idf", "--kind", "standard")
    assert "96 texts" in told
    tokenizer = assemble(base, 48).tokenizer
    table, facts = idf.load_idf(tmp_path / "idf", tokenizer), read_json(tmp_path / "idf" / "idf.json")
    texts = [text for t in TRIPLES[:32] for text in (t.query, t.positive, *t.negatives)]
    places = tokenizer.convert_tokens_to_ids("?")
    assert table.idf()[places] == pytest.approx(math.log(96 / (1 + sum("?" in text for text in texts))), abs=1e-4)
    assert (facts["vocab_size"], facts["num_docs"], facts["smoothing"]) == (len(tokenizer), 96, "standard")
    told = korlab("idf", files / "train.jsonl", "--tokenizer", base, "--to", tmp_path / "idf", "--sample", 10, "--recompute")
    assert "10 texts" in told and idf.load_idf(tmp_path / "idf").kind == "bm25"
    assert "is no JSONL file" in korlab("idf", tmp_path / "none", "--tokenizer", base, "--to", tmp_path / "idf", code=1)
    assert "could not be loaded" in korlab("idf", files, "--tokenizer", tmp_path / "none", "--to", tmp_path, code=1)


def test_the_stop_tokens_of_the_command_are_the_mask_of_the_library(base, tmp_path):
    tokenizer = assemble(base, 48).tokenizer
    for mode in ("safe", "published"):
        korlab("stopwords", "--tokenizer", base, "--to", tmp_path / mode, "--mode", mode)
        mask = stopwords.load_stop_mask(tmp_path / mode, tokenizer)
        assert mask.shape == (len(tokenizer),) and (mask == stopwords.stop_mask(tokenizer, mode)).all()
    assert "choose one of safe, published" in korlab("stopwords", "--tokenizer", base, "--to", tmp_path, "--mode", "soft", code=1)


def test_verify_prints_six_checks_and_trains_nothing(files, monkeypatch):
    monkeypatch.setattr(trainers.SparseLabTrainer, "train", lambda *_, **__: pytest.fail("verify has trained"))
    monkeypatch.setattr(torch.optim.Optimizer, "__init__", lambda *_, **__: pytest.fail("verify has made an optimiser"))
    words = ("verify", ROOT / "params" / "sparse" / "ko.yaml", "-f", files / "overlay.yaml")
    lines = [line.split() for line in korlab(*words).splitlines() if line.startswith(("ok", "failed"))]
    assert [line[:2] for line in lines] == [["ok", name] for name in ("data", "model", "IDF", "stop", "loss", "gradient")]
    monkeypatch.setattr(stopwords, "stop_mask", lambda tokenizer, mode, size: np.arange(size) > 4)
    assert "failed stop tokens" in korlab(*words, code=1)


def test_distillation_without_a_teacher_fails_before_training(files):
    (files / "kd.yaml").write_text("kd: 1.0\n", "utf-8")
    words = ("verify", ROOT / "params" / "sparse" / "ko.yaml", "-f", files / "overlay.yaml", "-f", files / "kd.yaml")
    told = korlab(*words, code=1)
    assert "the triples have no teacher scores; set teacher to an encoder that gives them, or kd=0" in told
    with pytest.raises(ParameterError, match="distillation='kl' would have no effect because kd=0"):
        configure(WANTED | TAUGHT | {"kd": 0.0})


def test_an_exported_model_gives_the_same_vectors_and_is_searched(trained, tmp_path):
    korlab("export", trained.folder / "model", "--to", tmp_path / "hf", "--license", "mit")
    models = [SparseEncoder(str(folder), device="cpu") for folder in (trained.folder / "model", tmp_path / "hf")]
    for side in ("query", "document"):
        ours, theirs = (encode(model, TEXTS, side).toarray() for model in models)
        np.testing.assert_allclose(theirs, ours, atol=1e-6)
    (tmp_path / "passages.txt").write_text("\n".join(t.positive for t in TRIPLES), "utf-8")
    assert "40 passages" in korlab("index", tmp_path / "passages.txt", "--run", tmp_path / "hf", "--to", tmp_path / "index")
    query, passages = encode(models[1], [TRIPLES[0].query], "query"), encode(models[1], [t.positive for t in TRIPLES], "document")
    scores = (query @ passages.T).toarray()[0]
    found = korlab("search", TRIPLES[0].query, "--run", tmp_path / "hf", "--documents", tmp_path / "passages.txt",
                   "--index", tmp_path / "index", "-k", 1)
    line = next(line.split() for line in found.splitlines() if line.split()[:1] == ["1"])
    assert (line[2], float(line[1])) == (str(scores.argmax() + 1), pytest.approx(scores.max(), abs=0.006))  # ids are lines


def test_another_list_leaves_the_published_query_mask_in_force(base):
    """Which tokens stop is one choice, whether queries hide them from the ranking terms another."""
    for given, masked in (({}, True), ({"stop_list": "safe"}, True), ({"form": "bounded"}, False)):
        config = configure({"model": "sparse-v25"} | given)
        encoder = assemble(base, 48)
        size = len(encoder.tokenizer)
        loss = trainers.make_loss(config, encoder, np.ones(size, np.float32), np.arange(size) < 9)
        assert (loss.loss.query_mask is not None) == masked


@pytest.mark.parametrize(("warmup", "best"), [(0.0, 5), (0.5, 10), (1.0, 15)])
def test_no_checkpoint_is_the_best_while_the_regularisers_grow(base, tmp_path, monkeypatch, warmup, best):
    """Dense vectors rank well early on; choosing them would undo what the rest of the training is for."""
    monkeypatch.setattr(trainers.DevSearch, "__call__", lambda self, model, *_, steps=-1, **__: {"ndcg10": 1 / steps})
    dev = Collection({"d": TRIPLES[0].positive}, {"q": TRIPLES[0].query}, {"q": {"d": 1}})
    config = configure(WANTED | {"regularizer_warmup": warmup, "keep_checkpoints": 3})
    model = assemble(base, 48)
    made = SparseTrainer(config, model, TRIPLES, dev, tmp_path, idf.count_df(TEXTS, model.tokenizer).penalties(), note=lambda text: None)
    assert made.train()["best_model_checkpoint"] == f"checkpoint-{best}"
