"""ModelTrainer: construction, arguments, metrics, the short form, and what the source system got wrong."""

import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, Killed, dies_after_saving
from transformers import EvalPrediction

from korlab.core import files
from korlab.experiment import studies
from korlab.experiment.batches import total_updates
from korlab.experiment.training import MemoryFull
from korlab.summarization.data import embedded, encode
from korlab.summarization.generation import summarize
from korlab.summarization.models import mini_bart, train_tokenizer
from korlab.summarization.trainer import ModelTrainer, Seq2SeqLabTrainer, create_trainer


@pytest.fixture(scope="module")
def tokenizer():
    rows = embedded().rows["train"][:100]
    return train_tokenizer((text for row in rows for text in (row.dialogue, *row.summaries)), 400)


@pytest.fixture(scope="module")
def rows(tokenizer):
    return encode(embedded().rows["train"][:24], tokenizer).rows


@pytest.fixture
def make(tokenizer, rows, tmp_path):
    def build(eval_rows=True, **given) -> ModelTrainer:
        config = studies.configure({k: v for k, v in (TINY | given).items() if k != "train_rows"})
        torch.manual_seed(0)
        model = mini_bart(tokenizer, width=32, layers=1)
        return ModelTrainer(config, model, tokenizer, rows, rows[:4] if eval_rows else None, tmp_path, lambda text: None)

    return build


def test_creation(make):
    trainer = make()
    assert trainer.trainer.model is trainer.model
    assert [len(row["input_ids"]) for row in trainer.eval_dataset] == sorted(
        (len(row["input_ids"]) for row in trainer.eval_dataset), reverse=True
    )


def test_arguments(make):
    args = make(learning_rate=3e-4, scheduler="cosine_with_restarts", warmup=0.1, accumulation=3, keep_checkpoints=4,
                max_grad_norm=0.5, weight_decay=0.02, batch_size=5, eval_batch_size=7, seed=11, adam_beta2=0.95).trainer.args
    assert (args.learning_rate, str(args.lr_scheduler_type.value), args.warmup_steps) == (3e-4, "cosine_with_restarts", 0.1)
    assert (args.gradient_accumulation_steps, args.save_total_limit, args.max_grad_norm) == (3, 4, 0.5)
    assert (args.weight_decay, args.adam_beta2, args.seed) == (0.02, 0.95, 11)
    assert (args.per_device_train_batch_size, args.per_device_eval_batch_size) == (5, 7)
    assert args.metric_for_best_model == "eval_rouge_sum" and args.greater_is_better
    assert args.predict_with_generate and args.load_best_model_at_end
    assert args.restore_callback_states_from_checkpoint  # patience survives a resume
    assert args.save_steps == args.eval_steps == 3


def test_every_generation_setting_reaches_generate(make, monkeypatch):
    wanted = dict(num_beams=3, length_penalty=0.7, no_repeat_ngram_size=2, repetition_penalty=1.3)
    trainer = make(**wanted, min_target_length=4, max_target_length=9)
    seen = []
    original = type(trainer.model)._beam_search

    def spy(*args, generation_config, **kwargs):
        seen.append(generation_config)
        return original(*args, generation_config=generation_config, **kwargs)

    monkeypatch.setattr(type(trainer.model), "_beam_search", spy)
    trainer.evaluate()
    assert seen, "evaluation did not use beam search"
    for used in seen:
        assert {name: getattr(used, name) for name in wanted} == wanted
        assert (used.min_new_tokens, used.max_new_tokens, used.do_sample) == (4, 9, False)


def test_compute_metrics(make, tokenizer):
    trainer = make()
    text = "#Person1#은 #Person2#에게 책을 빌려준다."
    ids = tokenizer(text, add_special_tokens=False).input_ids
    same = np.array([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, -100, -100]])
    labels = np.array([[*ids, tokenizer.eos_token_id, -100, -100, -100]])
    scores = trainer.compute_metrics(EvalPrediction(predictions=same, label_ids=labels))
    assert scores["rouge1"] == scores["rouge2"] == scores["rougeL"] == 1.0
    assert scores["rouge_sum"] == pytest.approx(3.0)
    assert scores["gen_len"] == len(ids) + 2


def test_create_trainer(tokenizer, rows, tmp_path):
    config = studies.configure(TINY)
    trainer = create_trainer(config, mini_bart(tokenizer, 32, 1), tokenizer, rows, rows[:4], folder=tmp_path)
    result = trainer.train()
    assert set(result) == {"train_metrics", "eval_metrics", "best_model_checkpoint", "final_model_path"}
    assert result["train_metrics"]["updates"] == 6
    assert {"eval_loss", "eval_rouge1", "eval_rouge2", "eval_rougeL", "eval_rouge_sum"} <= set(result["eval_metrics"])


def test_evaluating_without_dev_rows_warns(make):
    trainer = make(eval_rows=False)
    with pytest.warns(UserWarning, match="no dev rows"):
        assert trainer.evaluate() == {}


def test_training_without_dev_rows(make):
    assert make(eval_rows=False).train()["train_metrics"]["updates"] == 6


def test_labels_are_not_padded_into_the_loss(make, rows):
    batch = make().trainer.data_collator([dict(rows[0]), dict(rows[0] | {"labels": rows[0]["labels"][:3]})])
    assert (batch["labels"][1, 3:] == -100).all()


def test_no_pickled_weights_anywhere(make, tmp_path):
    make().train()
    trainer_state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"}  # the Trainer's own, for resuming
    pickled = {p.name for p in tmp_path.rglob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl")}
    assert pickled <= trainer_state
    assert not [p for p in (tmp_path / "model").iterdir() if p.suffix not in (".json", ".safetensors")]


def test_old_checkpoints_go_and_the_best_stays(make, tmp_path):
    trainer = make(max_steps=12, eval_steps=2, keep_checkpoints=2)
    result = trainer.train()
    left = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert len(left) == 2 and {result["best_model_checkpoint"], "checkpoint-12"} <= left


def test_early_stopping_counts_on_after_a_resume(make, tmp_path):
    """Two evaluations without improvement stop the run, one before and one after a break."""
    def never_better(trainer):
        trainer.trainer.compute_metrics = lambda prediction: {"rouge_sum": 0.5}
        return trainer

    first = never_better(make(max_steps=40, eval_steps=2, patience=2, learning_rate=1e-6))
    dies_after_saving(first.trainer, 4)
    with pytest.raises(Killed):
        first.train()
    second = never_better(make(max_steps=40, eval_steps=2, patience=2, learning_rate=1e-6))
    assert second.train()["train_metrics"]["updates"] == 6


@pytest.mark.parametrize("epochs, batches, accumulation, updates", [(1, 10, 1, 10), (2.4, 10, 1, 24), (1, 10, 4, 3), (0.01, 10, 1, 1)])
def test_total_updates(epochs, batches, accumulation, updates):
    config = studies.configure({"epochs": epochs, "accumulation": accumulation})
    assert total_updates(config, batches) == updates


# ---- batches that add up, and memory that runs out ----------------------------------------------------------------

def weights(trainer) -> dict:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def test_accumulated_batches_equal_one_large_batch(make):
    """transformers adds the means of accumulated batches up for BART and T5; the lab's loss divides once."""
    plain = dict(batching="random", max_grad_norm=0.0, max_steps=4)
    large, small = make(False, batch_size=8, **plain), make(False, batch_size=2, accumulation=4, **plain)
    before = weights(large)
    losses = [trainer.train(resume=False)["train_metrics"]["loss"] for trainer in (large, small)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, weight in weights(small).items():
        torch.testing.assert_close(weight, weights(large)[name], rtol=1e-3, atol=1e-5)
    assert any(not torch.equal(weight, before[name]) for name, weight in weights(large).items())


def full_memory(trainer: ModelTrainer, monkeypatch, above: int, at_step: int = 0) -> None:
    """Let a forward pass of more than `above` rows run out of memory, from an update on."""
    step = Seq2SeqLabTrainer.training_step

    def crowded(self, model, inputs, *args):
        if len(inputs["input_ids"]) > above and self.state.global_step >= at_step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(self, model, inputs, *args)

    monkeypatch.setattr(Seq2SeqLabTrainer, "training_step", crowded)


def test_out_of_memory_halves_the_batch_and_keeps_the_update(make, tmp_path, monkeypatch):
    trainer = make(batching="random", batch_size=4, accumulation=2, eval_batch_size=4)
    notes = []
    trainer.note = notes.append
    full_memory(trainer, monkeypatch, above=2, at_step=1)  # after an update, before any checkpoint
    result = trainer.train()
    facts = result["train_metrics"]
    assert (facts["batch_size"], facts["accumulation"], facts["updates"]) == (2, 4, 6)
    assert files.read_json(tmp_path / "batch.json") == {"batch_size": 2, "accumulation": 4, "eval_batch_size": 2}
    assert [note for note in notes if "batch 4 × 2 becomes 2 × 4" in note]
    assert not (tmp_path / "start.safetensors").exists()


def test_after_a_full_memory_training_is_as_if_started_small(make, tmp_path, monkeypatch):
    small = make(batching="random", batch_size=2, accumulation=4, eval_batch_size=2)
    small.train(resume=False)
    for file in ("checkpoints", "model"):
        shutil.rmtree(tmp_path / file)
    crowded = make(batching="random", batch_size=4, accumulation=2, eval_batch_size=4)
    full_memory(crowded, monkeypatch, above=2, at_step=2)
    crowded.train()
    for name, weight in weights(crowded).items():
        assert torch.equal(weight, weights(small)[name]), name


def test_the_smaller_batch_survives_a_kill(make, tmp_path):
    files.write_json(tmp_path / "batch.json", {"batch_size": 1, "accumulation": 6, "eval_batch_size": 2})
    args = make(batch_size=3, accumulation=2).trainer.args
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (1, 6)


def test_one_row_that_does_not_fit_is_an_error_with_advice(make, monkeypatch):
    trainer = make(batching="random", batch_size=2, eval_batch_size=2)
    full_memory(trainer, monkeypatch, above=0)
    with pytest.raises(MemoryFull, match="even with batches of one row.*gradient_checkpointing"):
        trainer.train()


def test_other_errors_are_not_taken_for_a_full_memory(make, monkeypatch):
    trainer = make()
    monkeypatch.setattr(Seq2SeqLabTrainer, "training_step", lambda *a: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        trainer.train()


def test_generation_goes_on_in_smaller_batches(make, monkeypatch):
    trainer = make()
    dialogues = [row.dialogue for row in embedded().rows["test"][:5]]
    whole = summarize(trainer.model, trainer.tokenizer, dialogues, batch_size=4)
    generate, notes = type(trainer.model).generate, []

    def crowded(self, input_ids, **rest):
        if len(input_ids) > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return generate(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(type(trainer.model), "generate", crowded)
    assert summarize(trainer.model, trainer.tokenizer, dialogues, batch_size=4, note=notes.append) == whole
    assert [note for note in notes if "1 dialogues at once" in note]
