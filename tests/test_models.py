"""Models and tokenizers of every family: published formats load as published, and new tokens harm nothing."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as kinds
from transformers import AutoTokenizer, T5Config, set_seed

from korlab.experiment import studies
from korlab.experiment.checkpoints import CheckpointDamaged, write_manifest
from korlab.experiment.models import CheckpointError
from korlab.experiment.params import ParameterError
from korlab.summarization import models
from korlab.summarization.adapters import make_trainable
from korlab.summarization.beam import fastest_search
from korlab.summarization.data import embedded, encode
from korlab.summarization.generation import decode, generation_config, summarize
from korlab.summarization.models import PLACEHOLDERS
from korlab.summarization.summarizer import load_model
from korlab.summarization.trainer import ModelTrainer

SENTENCES = [f"{name}은 {name}에게 7시에 전화한다." for name in PLACEHOLDERS]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text for row in embedded().rows["train"][:300] for text in (row.dialogue, *row.summaries)]


@pytest.fixture(scope="module")
def sentencepiece_folder(texts, tmp_path_factory) -> Path:
    """A checkpoint's tokenizer as mT5 publishes it: a SentencePiece model with byte pieces and no tokenizer.json."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("mt5")
    lines = iter([line for text in texts for line in text.replace("#", "").splitlines()])
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(folder / "spiece"), vocab_size=900, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, byte_fallback=True, num_threads=1, minloglevel=2,
    )
    frame = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(frame | {"tokenizer_class": "T5Tokenizer"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "mt5"}))
    return folder


@pytest.fixture(scope="module")
def bytes_folder(texts, tmp_path_factory) -> Path:
    """A checkpoint's tokenizer as the Korean T5 publishes it: byte-level BPE under the name of T5Tokenizer."""
    folder = tmp_path_factory.mktemp("t5")
    bpe = Tokenizer(kinds.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    frame = ["<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=600, special_tokens=frame, initial_alphabet=alphabet, show_progress=False))
    bpe.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "tokenizer_class": "T5TokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def published(folder: Path, tokenizer, spare: int = 0, kind: str = "mt5") -> Path:
    """Put a random model of matching size beside a tokenizer; `spare` rows more than it has pieces."""
    set_seed(3)
    model = models.BUILDERS[kind](tokenizer, width=32, layers=1)
    if spare:
        model.resize_token_embeddings(len(tokenizer) + spare, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def test_sentencepiece_is_read_as_sentencepiece_reads(sentencepiece_folder, texts):
    spm = pytest.importorskip("sentencepiece")
    spm = spm.SentencePieceProcessor(model_file=str(sentencepiece_folder / "spiece.model"))
    tokenizer = models.load_tokenizer(str(sentencepiece_folder))
    models.add_tokens(models.mini_mt5(tokenizer, 32, 1), tokenizer)
    for text in [t for t in texts if "#" not in t] + ["뷁과 쀍은 드물다 🙂", "  두   칸 \n 줄"]:
        found = tokenizer(text.strip(), add_special_tokens=False).input_ids
        assert found == spm.encode(text.strip()), text


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes", "bart", "t5"])
def test_every_placeholder_survives(kind, request, texts, tmp_path):
    """Encoded, framed as a label, decoded; also after saving, and read by whoever uses AutoTokenizer."""
    if kind in models.FRAMES:
        tokenizer = models.train_tokenizer(texts, 500, kind)
    else:
        tokenizer = models.load_tokenizer(str(request.getfixturevalue(f"{kind}_folder")))
        models.add_tokens(models.mini_t5(tokenizer, 32, 1), tokenizer)
    tokenizer.save_pretrained(tmp_path)
    T5Config().save_pretrained(tmp_path)
    for reader in (tokenizer, models.load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        ids = [reader(text, add_special_tokens=False).input_ids + [reader.eos_token_id, -100] for text in SENTENCES]
        assert decode(ids, reader) == SENTENCES
        assert all(name in reader.tokenize(text) for name, text in zip(PLACEHOLDERS, SENTENCES))


@pytest.mark.parametrize("spare", [0, 7, 40])
def test_new_rows_start_from_their_pieces_and_the_table_never_shrinks(sentencepiece_folder, spare):
    tokenizer = models.load_tokenizer(str(sentencepiece_folder))
    published(sentencepiece_folder, tokenizer, spare)
    former = {name: tokenizer(name, add_special_tokens=False).input_ids for name in PLACEHOLDERS}
    before = models.load_checkpoint(str(sentencepiece_folder)).model
    entry = studies.model("mt5-xlsum")
    loaded = models.build(entry, "full", [], checkpoint=str(sentencepiece_folder), max_source_length=4096)
    assert loaded.new_tokens == list(PLACEHOLDERS)
    old, rows = len(tokenizer), max(len(tokenizer) + spare, len(tokenizer) + 15)
    for name in ("shared", "lm_head"):
        table, was = getattr(loaded.model, name).weight, getattr(before, name).weight
        assert table.shape[0] == rows
        assert torch.equal(table[:old], was[:old])
        for token, ids in former.items():
            torch.testing.assert_close(table[loaded.tokenizer.convert_tokens_to_ids(token)], was[ids].mean(0))
    assert not torch.equal(loaded.model.lm_head.weight[:old], loaded.model.shared.weight[:old])


@pytest.mark.parametrize("kind", ["bart", "t5", "mt5"])
def test_a_saved_model_computes_the_same_after_loading(kind, texts, tmp_path):
    tokenizer = models.train_tokenizer(texts, 400, kind)
    set_seed(5)
    model = models.BUILDERS[kind](tokenizer, width=32, layers=1).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = models.load_checkpoint(str(tmp_path)).model.eval()
    batch = {"input_ids": torch.arange(5, 25).view(2, 10), "labels": torch.arange(30, 40).view(2, 5)}
    with torch.inference_mode():
        assert torch.equal(model(**batch).logits, again(**batch).logits)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == (kind == "bart")


@pytest.mark.parametrize("name", ["mt5-xlsum", "t5-korean"])
def test_t5_never_computes_in_fp16(name, texts, tmp_path):
    with pytest.raises(ParameterError, match="precision='fp16' does not work with .*use bf16, fp32 or auto"):
        studies.configure({"model": name, "precision": "fp16"})
    for size, recipe in studies.model(name).recipes.items():
        assert recipe["precision"] != "fp16", size
    tokenizer = models.train_tokenizer(texts, 400, "t5")
    config = studies.configure({k: v for k, v in TINY.items() if k != "train_rows"} | {"precision": "fp16"})
    rows = encode(embedded().rows["train"][:4], tokenizer).rows
    (tmp_path / "computing.json").write_text(json.dumps(
        {"device": "cpu", "device_reason": "", "precision": "fp16", "precision_reason": ""}))
    with pytest.raises(ParameterError, match="t5 overflows in fp16"):
        ModelTrainer(config, models.mini_t5(tokenizer, 32, 1), tokenizer, rows, None, tmp_path, lambda text: None)


# ---- with which tokens a checkpoint begins and ends --------------------------------------------------------------

def speaks_korean(texts, folder: Path, kind: str, where: str) -> int:
    """Write a checkpoint whose every output begins with the special token of a language, and never holds another one."""
    tokenizer = models.train_tokenizer(texts, 400, kind)
    tokenizer.add_special_tokens({"additional_special_tokens": ["ko_KR", "en_XX"]})
    set_seed(3)
    models.BUILDERS[kind](tokenizer, width=32, layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    korean, english = tokenizer.convert_tokens_to_ids(["ko_KR", "en_XX"])
    file = folder / where
    file.write_text(json.dumps(json.loads(file.read_text()) | {"forced_bos_token_id": korean, "suppress_tokens": [english]}))
    if where == "config.json":
        (folder / "generation_config.json").unlink()
    return korean


@pytest.mark.parametrize("kind, where", [("bart", "generation_config.json"), ("bart", "config.json"), ("mt5", "generation_config.json")])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_what_a_checkpoint_forces_to_the_front_is_kept_and_is_no_text(kind, where, adapter, texts, tmp_path):
    """Greedy and with beams that share their dialogue; in training, in the saved model, and where an adapter is merged."""
    if adapter == "lora" and where == "config.json":
        pytest.skip("as without an adapter")
    korean = speaks_korean(texts, tmp_path / "published", kind, where)
    name = {"bart": "kobart", "mt5": "mt5-xlsum"}[kind]
    given = {"model": name, "size": "full", "checkpoint": str(tmp_path / "published"), "max_steps": 2, "eval_steps": 2, "batch_size": 2,
             "accumulation": 1, "max_source_length": 64, "max_target_length": 8, "num_beams": 3, "precision": "fp32", "device": "cpu",
             "min_target_length": 0, "workers": 0, "tracking": "none", "adapter": adapter}
    config = studies.configure(given)
    loaded = models.build(studies.model(name), "full", [], checkpoint=given["checkpoint"], max_source_length=64)
    loaded = make_trainable(loaded, config, tmp_path)
    rows = encode(embedded().rows["train"][:4], loaded.tokenizer, "", 64, 8).rows
    trainer = ModelTrainer(config, loaded.model, loaded.tokenizer, rows, rows[:2], tmp_path, lambda text: None)
    predicted = []
    scores = trainer.trainer.compute_metrics
    trainer.trainer.compute_metrics = lambda prediction: predicted.extend(prediction.predictions) or scores(prediction)
    trainer.train()
    assert predicted and all(row[1] == korean for row in predicted)
    saved = load_model(tmp_path / "model").model.eval()
    for beams in (1, 3):
        saved.generation_config = generation_config(config.but(num_beams=beams), saved)
        assert saved.generation_config.suppress_tokens == [korean + 1]
        source = torch.tensor([rows[0]["input_ids"]])
        with torch.inference_mode(), fastest_search(saved, (said := []).append):
            made = saved.generate(source)[0].tolist()
        assert made[1] == korean and korean + 1 not in made
        assert not said
    assert "ko_KR" not in summarize(saved, loaded.tokenizer, [embedded().rows["train"][0].dialogue])[0]


def test_a_start_token_that_only_the_generation_settings_hold_is_found(texts, tmp_path):
    """A T5 whose config.json does not name it trains and generates; where nobody names it, the error says what to add."""
    tokenizer = models.train_tokenizer(texts, 400, "t5")
    models.mini_t5(tokenizer, 32, 1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config, settings = tmp_path / "config.json", tmp_path / "generation_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "decoder_start_token_id"}))
    assert json.loads(settings.read_text())["decoder_start_token_id"] == tokenizer.pad_token_id
    loaded = models.load_checkpoint(str(tmp_path))
    rows = encode(embedded().rows["train"][:4], tokenizer).rows
    run = studies.configure({k: v for k, v in TINY.items() if k != "train_rows"} | {"max_steps": 1, "eval_steps": 1, "tracking": "none"})
    trained = ModelTrainer(run, loaded.model, loaded.tokenizer, rows, rows[:2], tmp_path / "run", lambda text: None).train()
    assert trained["train_metrics"]["updates"] == 1
    settings.write_text("{}")
    with pytest.raises(CheckpointError, match="neither config.json nor generation_config.json .*add decoder_start_token_id"):
        models.load_checkpoint(str(tmp_path))


def test_a_model_folder_that_changed_since_it_was_saved_is_refused(texts, tmp_path):
    """Its seal is looked at wherever a model is loaded."""
    tokenizer = models.train_tokenizer(texts, 400)
    for part in (models.mini_bart(tokenizer, 32, 1), tokenizer):
        part.save_pretrained(tmp_path)
    load_model(tmp_path)  # without a seal, as from the hub
    write_manifest(tmp_path)
    load_model(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes((body := file.read_bytes())[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(CheckpointDamaged, match="cannot be used because model.safetensors is not the file that was saved"):
        load_model(tmp_path)
