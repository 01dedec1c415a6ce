"""The published recipes on a checkpoint of KoBART's own shape with random weights: the `full` path without a network."""

import pytest
from conftest import ROOT, papermill

from korlab.core.files import read_json
from korlab.core.yamls import read_yaml
from korlab.summarization.data import embedded
from korlab.summarization.models import train_tokenizer

STEPS = 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """6 + 6 layers of width 768, 30,000 pieces, 1,026 positions: 124 million random weights."""
    from transformers import BartConfig, BartForConditionalGeneration, set_seed

    set_seed(0)
    folder = tmp_path_factory.mktemp("kobart")
    texts = [text for row in embedded().rows["train"][:500] for text in (row.dialogue, *row.summaries)]
    tokenizer = train_tokenizer(texts, 1000, "bart")
    config = BartConfig(
        vocab_size=30_000, d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=16,
        decoder_attention_heads=16, encoder_ffn_dim=3072, decoder_ffn_dim=3072, max_position_embeddings=1026,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.bos_token_id, forced_eos_token_id=tokenizer.eos_token_id,
    )
    BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["baseline_kobart", "01_baseline_kobart_rtx3090"])
def test_five_updates_of_kobart_s_shape(recipe, checkpoint, tmp_path):
    values = read_yaml(ROOT / "params" / "summarization" / f"{recipe}.yaml") | {
        "checkpoint": str(checkpoint), "name": recipe, "max_steps": STEPS, "train_rows": 60, "eval_rows": 2, "eval_steps": STEPS,
        "precision": "fp32", "workers": 0, "num_beams": 2, "max_target_length": 8, "min_target_length": 0, "batch_size": 4,
        "warmup": 1, "data": str(small_data(tmp_path)),
    }
    del values["epochs"]
    values = {k: v for k, v in values.items() if v != ""}
    words = [word for name, value in values.items() for word in ("-p", name, str(value))]
    outcome = papermill(tmp_path / "out.ipynb", *words, runs=tmp_path)
    assert outcome.code == 0, outcome.text[-3000:]
    run = tmp_path / "summarization" / recipe
    facts, model = read_json(run / "train.json")["train_metrics"], read_json(run / "model.json")
    assert facts["updates"] == STEPS and facts["loss"] == pytest.approx(facts["loss"])  # NaN is not equal to itself
    assert 120e6 < model["parameters"] < 130e6
    assert (model["trainable"] == model["parameters"]) == (recipe == "baseline_kobart")
    assert (run / "model" / "model.safetensors").stat().st_size > 400e6


def small_data(folder):
    from korlab.summarization.dialogues import save_dialogues

    save_dialogues(embedded().rows["train"][:60], folder / "rows.csv")
    return folder / "rows.csv"


@pytest.mark.slow
def test_inputs_beyond_its_positions_are_refused(checkpoint, tmp_path):
    words = ["-p", "size", "full", "-p", "checkpoint", str(checkpoint), "-p", "max_source_length", "1280"]
    outcome = papermill(tmp_path / "out.ipynb", "-p", "model", "kobart", *words, runs=tmp_path)
    assert outcome.code == 1 and "has 1026 positions" in outcome.text
