"""The seven published experiments, value for value: a transcript of the table the recipes were published with."""

import pytest
from conftest import ROOT

from korlab.core.yamls import read_yaml
from korlab.experiment import studies
from korlab.experiment.params import ParameterError
from korlab.summarization import models
from korlab.summarization.adapters import resolve_targets
from korlab.summarization.data import embedded
from korlab.summarization.recipes import CORRECTIONS, RECIPES, experiment_file
from korlab.summarization.trainer import ModelTrainer

COLUMNS = (
    "model", "prefix", "max_source_length", "max_target_length", "batch_size", "accumulation", "eval_batch_size",
    "learning_rate", "scheduler", "warmup", "weight_decay", "epochs", "precision", "gradient_checkpointing",
    "eval_steps", "keep_checkpoints", "patience", "num_beams", "min_target_length", "length_penalty",
    "no_repeat_ngram_size", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "logging_steps", "workers", "adapter",
)
COMMON = {"size": "full", "seed": 42, "batching": "length", "threshold": 0.001}
# None: nothing was published, so the file says nothing either.
TABLE = {
    "01_mt5_xlsum_optimized_v2": (
        "mt5-xlsum", "요약: ", 512, 128, 6, 3, 12, 6e-5, "cosine_with_restarts", 0.03, 0.005, 4, "fp16", False,
        200, 5, 5, 6, 10, None, None, 48, 96, 0.05, "q,k,v,o,wi,wo", 50, 6, "qlora"),
    "01_mt5_xlsum_korean_adapted": (
        "mt5-xlsum", "한국어 대화를 요약하세요: ", 768, 150, 5, 4, 10, 9e-5, "polynomial", 0.05, 0.001, 6, "bf16", False,
        150, 8, 8, 8, 15, 0.8, 3, 64, 128, 0.03, "q,k,v,o,wi,wo,lm_head", 25, 8, "qlora"),
    "01_mt5_xlsum_ultimate": (
        "mt5-xlsum", "dialogue summarization in korean: ", 1024, 200, 4, 4, 8, 1.2e-4, "cosine_with_restarts", 0.02, 1e-4,
        8, "bf16", False, 100, 12, 12, 10, 20, 0.6, 4, 96, 192, 0.01, "q,k,v,o,wi,wo,lm_head,embed_tokens", 10, 12, "qlora"),
    "02_eenzeenee_t5_rtx3090": (
        "t5-korean", "summarize: ", 768, 150, 12, 2, 24, 5e-5, "cosine_with_restarts", 0.05, 0.01, 4, "fp16", False,
        200, 5, 5, 6, 20, 0.8, 3, 64, 128, 0.1, "q,k,v,o", 50, 8, "lora"),
    "01_baseline_kobart_rtx3090": (
        "kobart", "", 768, 150, 8, 3, 16, 3e-5, "linear", 0.1, 0.01, 4, "fp16", True,
        200, 5, 5, 8, 20, 1.0, 3, 64, 128, 0.1, "q_proj,k_proj,v_proj,out_proj", 50, 8, "qlora"),
    "03_high_learning_rate_rtx3090": (
        "kobart", "", 1024, 200, 6, 4, 12, 8e-5, "cosine_with_restarts", 0.02, 0.005, 5, "bf16", True,
        150, 8, 8, 10, 25, 0.6, 4, 96, 192, 0.05, "q_proj,k_proj,v_proj,out_proj,fc1,fc2", 25, 12, "qlora"),
    "04_batch_optimization_rtx3090": (
        "kobart", "", 1024, 256, 4, 8, 8, 4e-5, "polynomial", 0.06, 0.01, 6, "bf16", True,
        100, 10, 10, 12, 30, 0.8, 4, 128, 256, 0.02, "q_proj,k_proj,v_proj,out_proj,fc1,fc2,lm_head", 10, 16, "qlora"),
}
MARKERS = {"01_mt5_xlsum_korean_adapted": "korean", "01_mt5_xlsum_ultimate": "xml"}
MINI = ROOT / "params" / "summarization" / "overlays" / "mini.yaml"


def layers(name: str, *overlays) -> dict:
    return {key: value for file in (experiment_file(name), *overlays) for key, value in read_yaml(file).items()}


def effective(name: str, *overlays) -> dict:
    return studies.configure(layers(name, *overlays)).flat()


def test_there_are_seven_and_one_baseline():
    files = {file.stem for file in (ROOT / "params" / "summarization").glob("*.yaml")}
    assert files == set(TABLE) | {"baseline_kobart", "quickstart"} and set(RECIPES) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_file_says_what_was_published(name):
    found = read_yaml(experiment_file(name))
    published = {k: v for k, v in zip(COLUMNS, TABLE[name], strict=True) if v is not None} | COMMON
    corrected = {c.name: c.published for c in CORRECTIONS if c.recipe == name}
    differs = {k: v for k, v in published.items() if found.get(k) != v}
    assert differs == corrected
    assert set(found) == set(published) | ({"markers"} if name in MARKERS else set())
    assert found.get("markers") == MARKERS.get(name)


@pytest.mark.parametrize("name", TABLE)
def test_what_is_in_the_file_is_in_force(name):
    values = effective(name)
    for key, value in read_yaml(experiment_file(name)).items():
        assert values[key] == value, key
    assert values["lora_alpha"] == 2 * values["lora_rank"]
    if values["model"] != "kobart":
        assert values["precision"] == "bf16"


@pytest.mark.parametrize("name", TABLE)
def test_a_mini_keeps_what_makes_a_recipe(name):
    full, mini, overlay = effective(name), effective(name, MINI), read_yaml(MINI)
    assert {k for k in full if full[k] != mini[k]} - set(overlay) <= {"max_chars", "threads", "vocab_size", "adam_beta2"}
    assert mini["batch_size"] * mini["accumulation"] == full["batch_size"] * full["accumulation"]


@pytest.mark.parametrize("name", TABLE)
def test_every_target_is_there_and_the_trainer_gets_the_recipe(name, tmp_path):
    config = studies.configure(layers(name, MINI) | {"tracking": "none"})
    rows = embedded().rows["train"][:40]
    texts = [text for row in rows for text in (row.dialogue, *row.summaries)]
    loaded = models.build(studies.model(config.run.model), "mini", texts, 400, None, config.own.max_source_length)
    assert min(resolve_targets(loaded.model, config.own.lora_targets).values()) >= 1
    if name in {c.recipe for c in CORRECTIONS if c.name == "lora_targets"}:
        published = next(c.published for c in CORRECTIONS if c.recipe == name and c.name == "lora_targets")
        with pytest.raises(ParameterError, match="matches no linear layer"):
            resolve_targets(loaded.model, published)
    rows = [{"input_ids": [5] * 9, "labels": [6] * 5}] * 60
    args = ModelTrainer(config, loaded.model, loaded.tokenizer, rows, rows[:2], tmp_path, lambda text: None).trainer.args
    assert args.lr_scheduler_type == config.training.scheduler and args.warmup_steps == config.training.warmup
    assert args.train_sampling_strategy == "group_by_length" and args.gradient_accumulation_steps == config.training.accumulation
    assert args.logging_steps == config.training.logging_steps and args.load_best_model_at_end
    generation = loaded.model.generation_config
    assert (generation.num_beams, generation.max_new_tokens) == (config.own.num_beams, config.own.max_target_length)
    assert generation.length_penalty == (config.own.length_penalty or 1.0)
    assert generation.no_repeat_ngram_size == config.own.no_repeat_ngram_size


def test_the_baseline_is_model_trainers_defaults():
    values = effective("baseline_kobart")
    expected = dict(
        model="kobart", size="full", epochs=20, batch_size=50, eval_batch_size=50, accumulation=1, learning_rate=1e-5,
        weight_decay=0.01, warmup=500, scheduler="linear", keep_checkpoints=3, logging_steps=100, max_target_length=100,
        num_beams=4, workers=4, max_source_length=512, patience=3, adapter="full", prefix="", batching="random",
    )
    assert {k: values[k] for k in expected} == expected
    assert values["eval_steps"] * values["epochs"] == 1  # once an epoch
