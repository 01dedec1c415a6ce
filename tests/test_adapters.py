"""Adapters: attached where asked, resumable, merged without loss, and never replaced in silence."""

import csv
import importlib.machinery
import json
import sys
import types
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import TINY, Killed, dies_after_saving
from safetensors import safe_open
from transformers import set_seed

from korlab.experiment import runs, studies
from korlab.experiment.models import Loaded
from korlab.experiment.params import ParameterError
from korlab.summarization import adapters, models, study
from korlab.summarization.data import embedded, encode
from korlab.summarization.models import PLACEHOLDERS
from korlab.summarization.trainer import ModelTrainer

SMALL = {k: v for k, v in TINY.items() if k != "train_rows"} | {
    "device": "cpu", "tracking": "none", "batch_size": 4, "learning_rate": 1e-2, "warmup": 0,
    "lora_rank": 4, "lora_alpha": 8, "max_target_length": 10, "rouge_mode": "char", "max_steps": 2, "eval_steps": 2,
}
NAMES = {"bart": "kobart", "t5": "t5-korean", "mt5": "mt5-xlsum", "relu": "t5-korean"}
NEW = ["#Person1#", "#Person2#", "#Email#"]
BATCH = {"input_ids": torch.arange(5, 65).view(4, 15), "labels": torch.arange(80, 120).view(4, 10)}


@cache
def corpus() -> list:
    return embedded().rows["train"][:100]


@pytest.fixture(scope="module")
def tokenizers():
    texts = [text for row in corpus() for text in (row.dialogue, *row.summaries)]
    return {family: models.train_tokenizer(texts, 400, family) for family in ("bart", "t5")}


@pytest.fixture
def mini(tokenizers):
    def build(kind: str, new_tokens=NEW) -> Loaded:
        set_seed(7)
        tokenizer = tokenizers["bart" if kind == "bart" else "t5"]
        make = {"relu": lambda *size: models.mini_t5(*size, gated=False)}.get(kind) or models.BUILDERS[kind]
        return Loaded(make(tokenizer, 32, 1), tokenizer, f"a mini {kind}", list(new_tokens))

    return build


def configure(kind: str, **given):
    return studies.configure(SMALL | {"model": NAMES[kind]} | given)


def trainer(loaded: Loaded, config, folder: Path) -> ModelTrainer:
    rows = encode(corpus()[:12], loaded.tokenizer).rows
    return ModelTrainer(config, loaded.model, loaded.tokenizer, rows, rows[:3], folder, lambda text: None)


def loss(model) -> float:
    with torch.inference_mode():
        return model.eval()(**BATCH).loss.item()


LAYERS = {
    "bart": dict(q_proj=3, k_proj=3, v_proj=3, out_proj=3, fc1=2, fc2=2),
    "t5": dict(q=3, k=3, v=3, o=3, wi_0=2, wi_1=2, wo=2),
    "mt5": dict(q=3, k=3, v=3, o=3, wi_0=2, wi_1=2, wo=2),
    "relu": dict(q=3, k=3, v=3, o=3, wi=2, wo=2),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_target_is_attached_and_learns(kind, mini, tmp_path):
    loaded = adapters.make_trainable(mini(kind), configure(kind, adapter="lora"), tmp_path)
    loaded.model.train()(**BATCH).loss.backward()
    moved: dict[str, int] = {}
    for path, weight in loaded.model.named_parameters():
        assert weight.requires_grad == ("lora_" in path or "trainable_tokens_delta" in path), path
        if ".lora_B." in path:
            name = path.split(".lora_B.")[0].rpartition(".")[2]
            moved[name] = moved.get(name, 0) + bool(weight.grad.abs().sum() > 0)
    assert moved == LAYERS[kind]


WRONG = [
    ("mt5", "q,k,v,o,wi,wo", "'wi'"),  # what the published mT5 experiments named
    ("bart", "q,k,v,o", "'q'"),
    ("bart", "q_proj,lm_head", "'lm_head'"),  # shares its weights with the embedding
    ("relu", "lm_head", "'lm_head'"),
    ("t5", "q,embed_tokens", "'embed_tokens'"),
]


@pytest.mark.parametrize("kind, targets, name", WRONG)
def test_a_target_that_would_train_nothing_is_an_error(kind, targets, name, mini, tmp_path):
    with pytest.raises(ParameterError, match=f"lora_targets: {name} matches no linear layer of this .*; there are "):
        adapters.make_trainable(mini(kind), configure(kind, adapter="lora", lora_targets=targets), tmp_path)


@pytest.mark.parametrize("kind, adapter", [("bart", "qlora"), ("t5", "qlora"), ("mt5", "lora"), ("relu", "qlora")])
def test_training_saves_a_plain_model_with_the_adapter_in_it(kind, adapter, mini, tmp_path):
    """Loss with the adapter on the full-precision base = loss of the merged model read back from run/model."""
    from peft import PeftModel

    config = configure(kind, adapter=adapter, max_steps=4, eval_steps=4)
    plain = mini(kind)
    untouched = {name: weight.clone() for name, weight in plain.model.state_dict().items()}
    trained = adapters.make_trainable(plain, config, tmp_path)
    trainer(trained, config, tmp_path).train()

    base = models.load_checkpoint(str(tmp_path / "base")).model
    start = loss(base)
    before = loss(PeftModel.from_pretrained(base, str(tmp_path / "adapter")))
    saved = models.load_checkpoint(str(tmp_path / "model")).model
    assert loss(saved) == pytest.approx(before, abs=2e-6)
    assert loss(adapters.load_adapter(tmp_path / "adapter").model) == pytest.approx(before, abs=2e-6)
    assert abs(before - start) > 1e-3  # there is something to lose
    assert type(saved) is type(plain.model) and not adapters.is_adapted(saved)
    assert {weight.dtype for weight in saved.parameters()} == {torch.float32}

    tied = kind in ("bart", "relu")
    assert (saved.lm_head.weight is saved.get_input_embeddings().weight) == tied
    assert saved.get_encoder().embed_tokens.weight is saved.get_input_embeddings().weight
    new = plain.tokenizer.convert_tokens_to_ids(NEW)
    for table in {saved.get_input_embeddings(), saved.lm_head}:
        name = next(name for name, module in saved.named_modules() if module is table)
        changed = (table.weight != untouched[f"{name}.weight"]).any(1).nonzero().flatten().tolist()
        assert changed == sorted(new), name


def test_the_adapter_is_small_and_safetensors(mini, tmp_path):
    config = configure("t5", adapter="lora")
    trainer(adapters.make_trainable(mini("t5"), config, tmp_path), config, tmp_path).train()
    files = {p.name for p in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "manifest.json"}
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as tensors:
        kinds = {"lora_A", "lora_B", "token_adapter"}
        assert all(kinds & set(name.split(".")) for name in tensors.keys())
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == "../base"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_base_of_qlora_is_in_four_bits_and_frozen(precision, mini, tmp_path):
    from bitsandbytes.nn import Linear4bit

    config = configure("bart", adapter="qlora", precision=precision, gradient_checkpointing=True)
    loaded = adapters.make_trainable(mini("bart"), config, tmp_path)
    layers = {path: module for path, module in loaded.model.named_modules() if isinstance(module, Linear4bit)}
    assert len(layers) == sum(LAYERS["bart"].values())
    before = {path: module.weight.data.clone() for path, module in layers.items()}
    for module in layers.values():
        assert module.compute_dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        assert module.weight.quant_state.quant_type == "nf4" and module.weight.quant_state.nested
    table = adapters.trainable_table(loaded.model)
    assert {row["format"] for row in table if row["module"] in LAYERS["bart"]} == {"NF4"}
    assert loaded.facts["base_format"].endswith(precision)
    trainer(loaded, config, tmp_path).train()
    assert all(torch.equal(module.weight.data, before[path]) for path, module in layers.items())


def test_evaluating_does_not_change_what_is_learnt_next(mini, tmp_path):
    """bitsandbytes repacks 4-bit layers on some processors; a repacked layer passes no gradient back."""
    set_seed(7)
    wide = models.mini_bart(mini("bart").tokenizer, 128, 1)  # narrower layers cannot be repacked
    loaded = Loaded(wide, mini("bart").tokenizer, "a wider mini", NEW)
    config = configure("bart", adapter="qlora", precision="bf16", lora_dropout=0)
    model = adapters.make_trainable(loaded, config, tmp_path).model

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model.train()(**BATCH).loss.backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.requires_grad]

    before = gradients()
    loss(model)
    assert all(torch.equal(one, two) for one, two in zip(before, gradients(), strict=True))


def test_counting_sees_through_four_bits(mini, tmp_path):
    plain = mini("mt5")
    quantised = adapters.make_trainable(plain, configure("mt5", adapter="qlora"), tmp_path)
    before, after = adapters.trainable_table(plain.model)[-1], adapters.trainable_table(quantised.model)[-1]
    assert before["parameters"] == after["parameters"] == plain.model.num_parameters()
    assert after["trainable"] == sum(w.numel() for w in quantised.model.parameters() if w.requires_grad)


def test_a_killed_training_goes_on_exactly(mini, tmp_path):
    def start(folder: Path) -> ModelTrainer:
        config = configure("bart", adapter="qlora", lora_dropout=0.1, max_steps=4, eval_steps=2)
        return trainer(adapters.make_trainable(mini("bart"), config, folder), config, folder)

    start(tmp_path / "straight").train()
    broken = start(tmp_path / "broken")
    dies_after_saving(broken.trainer, 2)
    with pytest.raises(Killed):
        broken.train()
    start(tmp_path / "broken").train()
    one, two = (models.load_checkpoint(str(tmp_path / name / "model")).model for name in ("straight", "broken"))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name


def test_every_generation_setting_reaches_the_adapted_model(mini, tmp_path, monkeypatch):
    wanted = dict(num_beams=3, length_penalty=0.7, no_repeat_ngram_size=2, repetition_penalty=1.3)
    config = configure("t5", adapter="lora", **wanted, min_target_length=4, max_target_length=9)
    working = trainer(adapters.make_trainable(mini("t5"), config, tmp_path), config, tmp_path)
    kind, seen = type(mini("t5").model), []
    original = kind._beam_search

    def spy(*args, generation_config, **kwargs):
        seen.append(generation_config)
        return original(*args, generation_config=generation_config, **kwargs)

    monkeypatch.setattr(kind, "_beam_search", spy)
    working.evaluate()
    assert seen
    for used in seen:
        assert {name: getattr(used, name) for name in wanted} == wanted
        assert (used.min_new_tokens, used.max_new_tokens) == (4, 9)


def test_a_full_model_names_its_checkpoint_as_the_base(tokenizers, mini, tmp_path):
    """From a folder that stands for a published checkpoint, without placeholders, to an adapter that finds it again."""
    published = tmp_path / "published"
    bare = models.train_tokenizer(["안녕하세요? 만나서 반갑습니다."] * 9, 100, "t5")
    state = json.loads(bare.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["special"]]
    bare = models._wrapped(models.Tokenizer.from_str(json.dumps(state)), models.FRAMES["t5"])
    models.mini_mt5(bare, 32, 1).save_pretrained(published)
    bare.save_pretrained(published)
    config = configure("mt5", size="full", checkpoint=str(published), adapter="qlora", workers=0, vocab_size=None)
    loaded = models.build(studies.model("mt5-xlsum"), "full", [], checkpoint=str(published))
    assert loaded.new_tokens == list(PLACEHOLDERS)
    loaded = adapters.make_trainable(loaded, config, tmp_path / "run")
    trainer(loaded, config, tmp_path / "run").train()
    assert not (tmp_path / "run" / "base").exists()
    again = adapters.load_adapter(tmp_path / "run" / "adapter")
    saved = models.load_checkpoint(str(tmp_path / "run" / "model"))
    assert loss(again.model) == pytest.approx(loss(saved.model), abs=2e-6)
    assert again.tokenizer.get_vocab() == saved.tokenizer.get_vocab()


def test_the_study_trains_scores_and_records_an_adapter(tmp_path, monkeypatch):
    """As train.ipynb does, on a small file; what is scored is the merged model."""
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    rows = corpus()[:40]
    source = tmp_path / "train.csv"
    with open(source, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(("fname", "dialogue", "summary"))
        csv.writer(file).writerows((row.fname, row.dialogue, row.summaries[0]) for row in rows)
    run = runs.open_run(SMALL | {"model": "mt5-xlsum", "adapter": "qlora", "data": str(source), "name": "q"})
    data = study.data(run)
    loaded = study.model(run, data)
    assert adapters.is_adapted(loaded.model)
    study.train(run, loaded, data)
    assert not adapters.is_adapted(loaded.model)
    study.evaluate(run, loaded, data)
    run.finish()
    facts = run.read("model")
    assert (facts["adapter"], facts["adapter_reason"]) == ("qlora", "asked for")
    assert facts["new_token_rows"] == facts["vocabulary"]  # nobody has trained any row of a mini before
    assert facts["trainable"] == run.read("modules")[-1]["trainable"] < facts["parameters"]
    assert run.path("adapter", "adapter_model.safetensors").exists() and run.has("metrics")


@pytest.fixture
def on_gpu(monkeypatch):
    """A machine with CUDA, as far as the choice of a backend can tell."""
    place = {"device": "cuda", "precision": "bf16", "device_reason": "stub", "precision_reason": "stub"}
    monkeypatch.setattr(adapters, "computing", lambda *_: place)


def unsloth(monkeypatch, attach) -> list:
    """Put a stand-in for the package where `import unsloth` finds it; returns the calls it gets."""
    calls = []

    class FastModel:
        @staticmethod
        def from_pretrained(name, **options):
            calls.append(options)
            return models.load_checkpoint(name).model, None

        @staticmethod
        def get_peft_model(model, random_state, use_gradient_checkpointing, **options):
            calls.append(options | {"random_state": random_state, "checkpointing": use_gradient_checkpointing})
            return attach(model, options)

    stub = types.ModuleType("unsloth")
    stub.FastModel, stub.__spec__ = FastModel, importlib.machinery.ModuleSpec("unsloth", None)
    monkeypatch.setitem(sys.modules, "unsloth", stub)
    return calls


def attach_all(model, options):
    return adapters._with_lora(model, {k: v for k, v in options.items() if k not in ("task_type", "bias")})


def test_unsloth_is_used_where_it_can_work(on_gpu, mini, tmp_path, monkeypatch):
    calls = unsloth(monkeypatch, attach_all)
    lengths = dict(max_source_length=300, max_target_length=60)
    config = configure("bart", adapter="unsloth", gradient_checkpointing=True, **lengths)
    loaded = adapters.make_trainable(mini("bart"), config, tmp_path)
    assert calls[0]["max_seq_length"] == 360 and calls[0]["load_in_4bit"]
    assert (calls[1]["r"], calls[1]["lora_alpha"], calls[1]["checkpointing"]) == (4, 8, "unsloth")
    assert calls[1]["random_state"] == config.computing.seed and calls[1]["target_modules"] == list(LAYERS["bart"])
    assert (loaded.facts["adapter"], loaded.facts["adapter_reason"]) == ("unsloth", "asked for")


def test_a_backend_that_forgets_something_is_found_out(on_gpu, mini, tmp_path, monkeypatch):
    config = configure("bart", adapter="unsloth")
    unsloth(monkeypatch, lambda model, options: attach_all(model, options | {"trainable_token_indices": None}))
    with pytest.raises(ParameterError, match="rows of new tokens untrained"):
        adapters.make_trainable(mini("bart"), config, tmp_path)
    unsloth(monkeypatch, lambda model, options: attach_all(model, options | {"target_modules": ["fc1"]}))
    with pytest.raises(ParameterError, match="attached to 0 of the 3 layers named q_proj"):
        adapters.make_trainable(mini("bart"), config, tmp_path)


IMPOSSIBLE = [
    ("unsloth", "mt5", "cuda", {"unsloth"}, "Unsloth has no mt5"),
    ("unsloth", "bart", "cuda", set(), "unsloth is not installed"),
    ("unsloth", "bart", "cpu", {"unsloth"}, "there is no CUDA device"),
    ("qlora", "bart", "cpu", set(), "bitsandbytes is not installed"),
]


@pytest.mark.parametrize("adapter, family, device, installed, reason", IMPOSSIBLE)
def test_what_cannot_work_is_refused_with_the_reason(adapter, family, device, installed, reason, monkeypatch):
    monkeypatch.setattr(adapters, "_importable", installed.__contains__)
    with pytest.raises(ParameterError, match=f"adapter='{adapter}' cannot work here: .*{reason}"):
        adapters.choose_backend(adapter, family, device)


AUTO = [
    ("cuda", {"bitsandbytes"}, "qlora", "CUDA and bitsandbytes are here"),
    ("cuda", {"bitsandbytes", "unsloth"}, "qlora", "CUDA and bitsandbytes are here"),
    ("cuda", set(), "lora", "bitsandbytes is not installed"),
    ("cpu", {"bitsandbytes", "unsloth"}, "lora", "there is no CUDA device"),
]


@pytest.mark.parametrize("device, installed, backend, reason", AUTO)
def test_auto_says_why(device, installed, backend, reason, monkeypatch):
    monkeypatch.setattr(adapters, "_importable", installed.__contains__)
    chosen, why = adapters.choose_backend("auto", "bart", device)
    assert chosen == backend and why.startswith("auto: ") and reason in why


def test_lora_parameters_without_an_adapter_are_an_error():
    with pytest.raises(ParameterError, match="lora_rank=8 would have no effect because adapter='full'"):
        studies.configure({"model": "kobart", "lora_rank": 8})
    assert studies.configure({"model": "kobart", "adapter": "auto"}).own.lora_rank is not None
