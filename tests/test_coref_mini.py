"""Generated articles, the minis that learn from them, and their training: what one chapter cannot say alone."""

from dataclasses import dataclass

import pytest
import torch
from conftest import Killed, all_at_once
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, TrainerCallback

from korlab.core.files import read_jsonl
from korlab.core.text import particle
from korlab.coref.articles import articles, embedded
from korlab.coref.collator import Collator
from korlab.coref.corpora import check_overlap
from korlab.coref.models import load, mini, train_tokenizer
from korlab.coref.training import RecallTraining, Together, rows
from korlab.coref.windows import windows
from korlab.experiment import results
from korlab.experiment.config import config_from
from korlab.experiment.models import CheckpointError
from korlab.experiment.runs import reopen


@dataclass(frozen=True)
class Nothing:
    "No parameters of a study's own."


VALUES = dict(
    epochs=None, max_steps=160, learning_rate=3e-3, scheduler="linear", warmup=30, weight_decay=0.01, adam_beta2=0.98, max_grad_norm=1.0,
    batch_size=32, accumulation=1, batching="random", gradient_checkpointing=False, workers=0, eval_steps=80, eval_batch_size=100,
    keep_checkpoints=2, patience=0, threshold=0.0, seed=3, device="cpu", precision="fp32", threads=1, tracking="none")


@pytest.fixture(scope="module")
def one():
    "Articles of one name as windows."
    splits = embedded(1, rows=2000, eval_rows=100)
    check_overlap(splits)
    tokenizer = train_tokenizer({sample.text for sample in splits.train})
    asked = {name: windows(part, tokenizer, 64) for name, part in (splits.held | {"train": splits.train}).items()}
    assert not any(left_out for _, left_out in asked.values())
    return tokenizer, {name: part for name, (part, _) in asked.items()}


def _train(one, folder, objective="entity", seed=0, callbacks=(), **values):
    tokenizer, asked = one
    torch.manual_seed(seed)
    model = mini(tokenizer, max_length=64)
    collator = Collator(tokenizer, objective, max_length=64, **values.pop("rates", {}))
    training = RecallTraining(config_from(Nothing, VALUES | values), model, collator, asked["train"], asked["dev"], folder,
                              note=lambda text: None, callbacks=callbacks)
    return training.train()


def test_a_mini_recalls_names_it_never_saw_within_a_minute_without_being_told_how_long_they_are(recalls):
    run = reopen(recalls / "coref" / "recalls")
    found = results.read(run).own("unseen", "strict")
    assert found.n >= 40 and found.measures["real@1"].mean >= 0.95
    assert run.read("train")["train_metrics"]["cpu_seconds"] < 60


def test_the_checkpoint_that_recalls_most_of_dev_is_kept_and_recalls_as_much_when_it_is_loaded(recalls):
    run = reopen(recalls / "coref" / "recalls")
    best = max(row["eval_real1"] for row in read_jsonl(run.path("history.jsonl")) if "eval_real1" in row)
    assert run.read("train")["eval_metrics"]["eval_real1"] == best > 0.9
    plain, tokenizer = AutoModelForMaskedLM.from_pretrained(run.path("model")), AutoTokenizer.from_pretrained(run.path("model"))
    dev, _ = windows(embedded(1, 4000, shorter=0.0).held["dev"][:200], tokenizer, 64)
    assert all_at_once(plain, tokenizer, dev) == pytest.approx(best)


def test_the_published_labels_teach_it_nothing(one, tmp_path):
    tokenizer, asked = one
    published = _train(one, tmp_path, "published", rates={"mask_min": 0.15, "mask_max": 0.15})
    assert published["eval_metrics"]["eval_real1"] < 0.05
    assert all_at_once(load(published["final_model_path"]).model, tokenizer, asked["unseen"]) < 0.05


def test_a_killed_training_goes_on_with_the_batches_it_would_have_had(one, tmp_path):
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 15:
                raise Killed

    how = dict(max_steps=20, warmup=5, eval_steps=10, rates={"mask_min": 0.1, "mask_max": 0.2})
    straight = load(_train(one, tmp_path / "straight", **how | {"rates": dict(how["rates"])})["final_model_path"]).model
    with pytest.raises(Killed):
        _train(one, tmp_path / "killed", callbacks=[Kill()], **how | {"rates": dict(how["rates"])})
    resumed = load(_train(one, tmp_path / "killed", seed=1, **how)["final_model_path"]).model
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    steps = [entry["step"] for entry in read_jsonl(tmp_path / "killed" / "history.jsonl") if "eval_real1" in entry]
    assert steps == [10, 20]


def test_an_article_lets_nothing_but_reading_tell_who_is_meant():
    for several in (articles(150, 3), articles(150, 3, trained=False)):
        for one in several:
            names = {mention.text for mention in one.mentions}
            assert len(names) == 3 and len({len(name) for name in names}) == 1
            for sample in one.samples:
                after = one.text[sample.end:]
                for other in names:  # in its place, any name of the article would read as well
                    for pair in ("은/는", "이/가", "을/를", "과/와", "으로/로"):
                        assert particle(other, pair) == particle(sample.target, pair)
                assert after[0] in "은는이가을를과와으로의에"
    trained = {mention.text for one in articles(500, 2) for mention in one.mentions}
    assert not trained & {mention.text for one in articles(500, 2, trained=False) for mention in one.mentions}


def test_rows_of_a_document_hide_all_its_later_mentions(one):
    splits = embedded(3, rows=100, eval_rows=20)
    tokenizer = train_tokenizer({sample.text for sample in splits.train})
    asked, left_out = windows(splits.train, tokenizer, 128)
    laid = rows(asked)
    assert not left_out and len(laid) == len({sample.document for sample in splits.train})
    batch = Together(Collator(tokenizer))(laid)
    assert ((batch["labels"] != -100) == (batch["input_ids"] == tokenizer.mask_token_id)).all()
    assert int((batch["labels"] != -100).sum()) == sum(len(one.target) for one in asked)
    # a text that was cut shows another part to each window, and each asks for itself
    short, _ = windows([sample for sample in splits.train if len(sample.text) > 60], tokenizer, 40)
    assert sum(map(len, rows(short))) == len(short)
    batch = Together(Collator(tokenizer))(rows(short))
    assert ((batch["labels"] != -100) <= (batch["input_ids"] == tokenizer.mask_token_id)).all()


def test_an_encoder_without_a_head_is_refused_with_the_remedy(one, tmp_path):
    tokenizer, _ = one
    for family in ("deberta-v2", "roberta", "modernbert"):
        whole = mini(tokenizer, family)
        whole.save_pretrained(tmp_path / family)
        tokenizer.save_pretrained(tmp_path / family)
        for a, b in zip(whole.parameters(), load(str(tmp_path / family)).model.parameters(), strict=True):
            assert torch.equal(a, b)
        AutoModel.from_pretrained(tmp_path / family).save_pretrained(tmp_path / f"{family}-headless")
        tokenizer.save_pretrained(tmp_path / f"{family}-headless")
        with pytest.raises(CheckpointError, match="has no masked language model head: .* or set head=train"):
            load(str(tmp_path / f"{family}-headless"))
        assert "a new head that this run trains" in load(str(tmp_path / f"{family}-headless"), "train").origin
