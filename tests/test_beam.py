"""Beam search with shared dialogues: the ids of transformers' own search, in every setting; nothing left behind."""

from pathlib import Path

import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from korlab.experiment.studies import configure
from korlab.summarization.beam import fastest_search, shared_cross_attention, supported
from korlab.summarization.data import embedded, encode, encoder
from korlab.summarization.generation import summarize
from korlab.summarization.models import load_checkpoint, mini_bart, train_tokenizer
from korlab.summarization.trainer import ModelTrainer

WORDS = 90
FAMILIES = ("bart", "t5", "mt5")
LORA = {"bart": ["q_proj", "k_proj", "v_proj", "out_proj"], "t5": ["q", "k", "v", "o"]}
SETTINGS = {
    "plain": dict(num_beams=4),
    "eight beams, all returned": dict(num_beams=8, num_return_sequences=8, length_penalty=2.0),
    "ngrams and early stopping": dict(num_beams=3, no_repeat_ngram_size=2, early_stopping=True, min_new_tokens=6),
    "never stop early": dict(num_beams=5, num_return_sequences=2, early_stopping="never", length_penalty=0.6),
    "penalised": dict(num_beams=2, repetition_penalty=1.3, length_penalty=-1.0),
    "no cache": dict(num_beams=4, use_cache=False),
    "static cache": dict(num_beams=4, cache_implementation="static"),
    "sampled beams": dict(num_beams=3, do_sample=True),
    "samples": dict(num_return_sequences=3, do_sample=True),
}


def build(family: str, attention: str = "sdpa", seed: int = 0) -> torch.nn.Module:
    """A small random model whose choices are neither uniform nor all alike."""
    torch.manual_seed(seed)
    if family == "bart":
        config = BartConfig(
            vocab_size=WORDS, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=0.3, scale_embedding=True,
            attn_implementation=attention, forced_eos_token_id=None, max_position_embeddings=64,
        )
        return BartForConditionalGeneration(config).eval()
    kinds = {"t5": (T5Config, T5ForConditionalGeneration), "mt5": (MT5Config, MT5ForConditionalGeneration)}
    kind, model = kinds[family]
    config = kind(
        vocab_size=WORDS, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, attn_implementation=attention,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=family == "t5",
    )
    return model(config).eval()


def inputs(lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Dialogues of these lengths, padded at their ends."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, WORDS, (len(lengths), max(lengths)), generator=made)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def both(model, batch, **options):
    """What transformers' own search and the shared one give, with the same random numbers."""
    options = dict(max_new_tokens=12, return_dict_in_generate=True, output_scores=True) | options
    torch.manual_seed(1)
    stock = model.generate(**batch, **options)
    torch.manual_seed(1)
    with shared_cross_attention(model):
        return stock, model.generate(**batch, **options)


def attributes(model) -> dict[int, set[str]]:
    """The names every module has of its own."""
    return {id(module): set(vars(module)) - {"_output_capturing_hooks_installed"} for module in model.modules()}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(FAMILIES), attention=st.sampled_from(("sdpa", "eager")), seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), beams=st.integers(2, 8), returned=st.integers(1, 8),
    options=st.fixed_dictionaries({
        "no_repeat_ngram_size": st.integers(0, 3), "length_penalty": st.sampled_from((-1.0, 0.0, 0.8, 2.0)),
        "early_stopping": st.sampled_from((True, False, "never")), "min_new_tokens": st.integers(0, 5),
        "repetition_penalty": st.sampled_from((1.0, 1.3)), "forced_bos_token_id": st.sampled_from((None, 7)),
        "forced_eos_token_id": st.sampled_from((None, 2)), "suppress_tokens": st.sampled_from((None, [5, 9])),
    }),
)
def test_in_double_precision_the_ids_are_the_same(family, attention, seed, lengths, beams, returned, options):
    model, returned = build(family, attention, seed).double(), min(beams, returned)
    stock, shared = both(model, inputs(lengths, seed), num_beams=beams, num_return_sequences=returned, **options)
    assert shared.sequences.tolist() == stock.sequences.tolist()
    torch.testing.assert_close(shared.sequences_scores, stock.sequences_scores, rtol=1e-9, atol=1e-9)
    if options["forced_bos_token_id"]:
        assert (shared.sequences[:, 1] == 7).all()
    if options["suppress_tokens"]:
        assert not torch.isin(shared.sequences[:, 1:], torch.tensor([5, 9])).any()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_single_precision_the_ids_are_the_same(family, attention, name):
    stock, shared = both(build(family, attention), inputs([17, 9, 1]), **SETTINGS[name])
    assert shared.sequences.tolist() == stock.sequences.tolist()
    assert len({tuple(row) for row in stock.sequences.tolist()}) > 1  # the rows differ, so an exchange would show


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_half_precision_the_first_scores_agree_to_its_digits(family, dtype, close):
    stock, shared = both(build(family).to(dtype), inputs([17, 9]), num_beams=4, output_logits=True)
    spread = stock.logits[0].float().std()
    assert (shared.logits[0].float() - stock.logits[0].float()).abs().max() < close * spread


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_else_generate_returns_is_the_same(family):
    stock, shared = both(
        build(family, "eager").double(), inputs([17, 9]), num_beams=4, output_attentions=True, output_hidden_states=True
    )
    for name in ("cross_attentions", "decoder_attentions", "decoder_hidden_states", "scores"):
        for a, b in zip(getattr(stock, name), getattr(shared, name), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    assert stock.past_key_values.cross_attention_cache.layers[1].keys.shape[0] == 8
    assert shared.past_key_values.cross_attention_cache.layers[1].keys.shape[0] == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_given_start_and_given_encoder_outputs(family):
    model, batch = build(family).double(), inputs([17, 9])
    ids, seen = torch.tensor([[2, 7, 8], [2, 9, 6]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    stock, shared = both(model, batch, num_beams=4, decoder_input_ids=ids, decoder_attention_mask=seen)
    assert shared.sequences.tolist() == stock.sequences.tolist()
    given = dict(encoder_outputs=model.get_encoder()(**batch), attention_mask=batch["attention_mask"])
    with shared_cross_attention(model):  # twice: transformers' own search changes what it was given
        twice = [model.generate(**given, num_beams=4) for _ in range(2)]
    stock = model.generate(**batch, num_beams=4)
    assert [ids.tolist() for ids in twice] == [stock.tolist()] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_one_row_a_dialogue_is_left_as_it_is(family):
    model, batch = build(family), inputs([17, 9])
    stock, shared = both(model, batch, num_beams=1, output_logits=True)
    assert all(torch.equal(a, b) for a, b in zip(stock.logits, shared.logits, strict=True))
    labels = torch.randint(5, WORDS, (2, 6))
    plain = model(**batch, labels=labels).loss
    with shared_cross_attention(model):
        assert torch.equal(model(**batch, labels=labels).loss, plain)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_adapter_around_the_model(family):
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=LORA[family], init_lora_weights=False)
    model = get_peft_model(build(family), config).eval()
    stock, shared = both(model, inputs([17, 9]), num_beams=4)
    assert shared.sequences.tolist() == stock.sequences.tolist()
    with model.disable_adapter():
        assert model.generate(**inputs([17, 9]), num_beams=4).tolist() != stock.sequences.tolist()
    assert shared.past_key_values.cross_attention_cache.layers[0].keys.shape[0] == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_stays_behind(family):
    model, classes = build(family), {}
    for module in model.modules():
        classes[type(module)] = dict(vars(type(module)))
    first = next(m for n, m in model.named_modules() if n.endswith(("encoder_attn", "EncDecAttention")))
    mine = first.forward
    first.forward = mine  # as accelerate's hooks do
    before = attributes(model)
    with pytest.raises(KeyError), shared_cross_attention(model), shared_cross_attention(model):
        assert first.forward is not mine
        raise KeyError
    assert attributes(model) == before and first.forward is mine
    assert all(dict(vars(kind)) == content for kind, content in classes.items())


def test_leaving_the_inner_of_two_contexts_keeps_the_outer():
    model, batch = build("bart"), inputs([17, 9])
    with shared_cross_attention(model):
        with shared_cross_attention(model):
            pass
        found = model.generate(**batch, num_beams=4, return_dict_in_generate=True)
    assert found.past_key_values.cross_attention_cache.layers[0].keys.shape[0] == 2


class Custom(BartForConditionalGeneration):
    """A model whose code may do anything with its rows."""


def refused() -> dict[str, torch.nn.Module]:
    """Models that must not be touched, by the reason given for it."""
    sizes = dict(vocab_size=WORDS, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                 decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32)
    flex = build("bart")
    flex.config._attn_implementation = "flex_attention"
    return {
        "PegasusForConditionalGeneration is none of": PegasusForConditionalGeneration(PegasusConfig(**sizes)).eval(),
        "Custom is none of": Custom(BartConfig(**sizes)).eval(),
        "its attention is 'flex_attention'": flex,
        "PREFIX_TUNING adapter puts a prompt": get_peft_model(
            build("bart"), PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2)
        ).eval(),
    }


def test_where_it_does_not_hold_it_refuses_and_says_why():
    for why, model in refused().items():
        assert why in supported(model)
        with pytest.raises(ValueError, match=why), shared_cross_attention(model):
            pass
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"), shared_cross_attention(build("t5").train()):
        pass


def test_where_it_does_not_hold_the_stock_search_runs_and_is_named():
    model, said = refused()["Custom is none of"], []
    model.generation_config.num_beams = 3
    expected = model.generate(**inputs([9]), max_new_tokens=5)
    with fastest_search(model, said.append):
        assert "_reorder_cache" not in vars(model)
        assert torch.equal(model.generate(**inputs([9]), max_new_tokens=5), expected)
    assert said[0].startswith("Beam search with 3 beams, transformers' own, since Custom is none of Bart")
    model.generation_config.num_beams = 1
    fastest_search(model, said.append)
    assert len(said) == 1


@pytest.fixture
def cross_rows(monkeypatch):
    """The rows of the cross-attention cache after every `generate` of a BART, and the rows it was given."""
    seen, generate = [], BartForConditionalGeneration.generate

    def spy(self, *args, **options):
        found = generate(self, *args, **options, return_dict_in_generate=True)
        seen.append((found.past_key_values.cross_attention_cache.layers[0].keys.shape[0], len(options["input_ids"])))
        return found.sequences

    monkeypatch.setattr(BartForConditionalGeneration, "generate", spy)
    return seen


def test_evaluation_during_training_and_inference_use_it(tmp_path: Path, cross_rows):
    corpus, said = embedded().rows["train"][:40], []
    tokenizer = train_tokenizer((text for row in corpus for text in (row.dialogue, *row.summaries)), 400)
    rows = encode(corpus, tokenizer).rows
    config = configure({k: v for k, v in TINY.items() if k != "train_rows"} | {"num_beams": 3})
    model = mini_bart(tokenizer, width=32, layers=1)
    trainer = ModelTrainer(config, model, tokenizer, rows, rows[:6], tmp_path, said.append)
    trainer.evaluate()
    assert not said  # the beams share their dialogue, and nobody has to know
    summarize(model, tokenizer, [row.dialogue for row in corpus[:5]], batch_size=2)
    assert cross_rows == [(6, 6), (2, 2), (2, 2), (1, 1)]
    model.train()
    assert trainer.evaluate()["eval_loss"] > 0  # evaluation itself turns dropout off and shares again
    assert cross_rows[-1] == (6, 6)


def test_a_trained_model_writes_the_same_summaries(quickstart: Path):
    loaded = load_checkpoint(str(quickstart / "model"))
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    model.generation_config.max_length = None
    encode_one = encoder(tokenizer, "", 512)
    dialogues = [encode_one(row.dialogue)[0] for split in ("test", "natural") for row in embedded().rows[split][:8]]
    batch = tokenizer.pad({"input_ids": dialogues}, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for options in (dict(num_beams=4), dict(num_beams=8, no_repeat_ngram_size=3, length_penalty=0.8)):
        stock, shared = both(model, batch, max_new_tokens=40, **options)
        assert shared.sequences.tolist() == stock.sequences.tolist()
