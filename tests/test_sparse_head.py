"""The fused head against sentence-transformers' own modules: values, gradients, training, files, architectures."""

import copy
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedTokenizerFast

from korlab.sparse.head import EncoderError, HandThrough, PoolTokens, check_mlm_head, fuse, splade_pool, unfuse

torch.set_num_threads(1)
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"낱말{i}" for i in range(295))]
SMALL = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 40, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "initializer_range": 0.2,
}
TEXTS = [" ".join(WORDS[5 + (7 * i + j * j) % 295] for j in range(3 + 4 * i)) for i in range(6)]


def stock_pool(hidden, weight, bias, mask, double_log=False):
    """What sentence-transformers computes: every logit, then SpladePooling."""
    pooling = SpladePooling(activation_function="log1p_relu" if double_log else "relu").train()
    return pooling({"token_embeddings": F.linear(hidden, weight, bias), "attention_mask": mask})["sentence_embedding"]


def inputs(texts, tokens, width, entries, seed=0, bias=True, dtype=torch.float32):
    """Leaves that want gradients, and a mask with padding anywhere."""
    source = torch.Generator().manual_seed(seed)
    shapes = [(texts, tokens, width), (entries, width), *([(entries,)] if bias else [])]
    leaves = [torch.randn(*shape, generator=source).to(dtype).requires_grad_() for shape in shapes]
    return *leaves, *([] if bias else [None]), torch.randint(0, 2, (texts, tokens), generator=source)


def gradients(vectors, leaves):
    total = (vectors.float() * torch.linspace(-1, 1, vectors.shape[1])).sum()
    return torch.autograd.grad(total, [leaf for leaf in leaves if leaf is not None])


@settings(max_examples=60, deadline=None)
@given(
    texts=st.integers(1, 4), tokens=st.integers(0, 9), width=st.integers(1, 12), entries=st.integers(1, 50),
    seed=st.integers(0, 99), chunk=st.integers(1, 60), bias=st.booleans(), double_log=st.booleans(),
)
def test_values_and_gradients_are_the_stock_ones(texts, tokens, width, entries, seed, chunk, bias, double_log):
    hidden, weight, b, mask = inputs(texts, tokens, width, entries, seed, bias)
    ours = splade_pool(hidden, weight, b, mask, chunk, double_log)
    if tokens == 0:
        assert ours.shape == (texts, entries) and not ours.any()
        assert not any(g.any() for g in gradients(ours, (hidden, weight, b)))
        return
    stock = stock_pool(hidden, weight, b, mask, double_log)
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-6)
    for found, wanted in zip(gradients(ours, (hidden, weight, b)), gradients(stock, (hidden, weight, b))):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_text_of_padding_only_has_zeros_whatever_the_bias():
    hidden, weight, bias, _ = inputs(3, 4, 8, 20)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    vectors = splade_pool(hidden, weight, bias + 5, mask)
    assert not vectors[1].any() and vectors[0].any() and vectors[2].any()
    assert not torch.autograd.grad(vectors.sum(), hidden)[0][1].any()


def test_a_tie_goes_to_the_first_token_as_in_torch_max():
    hidden = torch.tensor([[[1.0], [2.0], [2.0], [2.0]]], requires_grad=True)
    splade_pool(hidden, torch.ones(3, 1), None, torch.ones(1, 4)).sum().backward()
    assert hidden.grad.flatten().ne(0).tolist() == [False, True, False, False]


def test_twice_the_same_is_the_same_to_the_last_bit():
    *leaves, mask = inputs(3, 20, 16, 500)
    first, again = (gradients(splade_pool(*leaves, mask, chunk=64), leaves) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_the_chunk_only_changes_rounding():
    *leaves, mask = inputs(3, 20, 16, 500)
    whole, parts = (splade_pool(*leaves, mask, chunk=chunk) for chunk in (500, 7))
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-6)


def test_hidden_states_and_decoder_of_different_formats_get_gradients_of_their_own():
    hidden, weight, bias, mask = inputs(2, 6, 8, 30)
    half = hidden.detach().bfloat16().requires_grad_()
    found = gradients(splade_pool(half, weight, bias, mask), (half, weight, bias))
    assert [g.dtype for g in found] == [torch.bfloat16, torch.float32, torch.float32]
    whole = half.detach().float().requires_grad_()
    wanted = gradients(splade_pool(whole, weight, bias, mask), (whole, weight, bias))
    torch.testing.assert_close(found[1], wanted[1])
    torch.testing.assert_close(found[0].float(), wanted[0], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_as_near_to_exact_as_the_stock_modules(autocast):
    *leaves, mask = inputs(4, 12, 32, 200)
    exact = splade_pool(*leaves, mask)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            ours, stock = splade_pool(*leaves, mask), stock_pool(*leaves, mask)
    else:
        leaves = [x.detach().bfloat16().requires_grad_() for x in leaves]
        ours, stock = splade_pool(*leaves, mask), stock_pool(*leaves, mask)
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().mean() <= 1.05 * (stock - exact).abs().mean()
    kinds = [g.dtype for g in gradients(ours, leaves)]
    assert kinds == [x.dtype for x in leaves]


def test_no_place_is_looked_up_when_nothing_is_trained(monkeypatch):
    from korlab.sparse import head

    *leaves, mask = inputs(2, 5, 8, 30)
    seen = []
    real = head._highest
    monkeypatch.setattr(head, "_highest", lambda *a, where, **k: seen.append(where) or real(*a, where=where, **k))
    with torch.no_grad():
        splade_pool(*leaves, mask)
    splade_pool(*(x.detach() for x in leaves), mask)
    splade_pool(*leaves, mask)
    assert seen == [False, False, True]


def test_frozen_inputs_get_no_gradient_and_the_others_the_same():
    hidden, weight, bias, mask = inputs(2, 6, 8, 30)
    wanted = gradients(splade_pool(hidden, weight, bias, mask), (hidden, weight, bias))
    only_bias = gradients(splade_pool(hidden.detach(), weight.detach(), bias, mask), (bias,))
    torch.testing.assert_close(only_bias[0], wanted[2])
    only_weight = gradients(splade_pool(hidden.detach(), weight, bias.detach(), mask), (weight,))
    torch.testing.assert_close(only_weight[0], wanted[1])


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_gradient_checkpointing(reentrant):
    *leaves, mask = inputs(2, 6, 8, 30)
    plain = splade_pool(*leaves, mask)
    again = checkpoint(splade_pool, *leaves, mask, use_reentrant=reentrant)
    weights = torch.linspace(-1, 1, 30)
    (again * weights).sum().backward()
    for leaf, wanted in zip(leaves, gradients(plain, leaves)):
        torch.testing.assert_close(leaf.grad, wanted)


def test_shapes_that_do_not_fit_are_named():
    hidden, weight, bias, mask = inputs(2, 6, 8, 30)
    with pytest.raises(ValueError, match=r"hidden \(2, 6, 8\), weight \(30, 8\), mask \(2, 5\)"):
        splade_pool(hidden, weight, bias, mask[:, 1:])


def test_a_second_derivative_is_refused():
    *leaves, mask = inputs(1, 3, 4, 9)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(splade_pool(*leaves, mask).sum(), leaves[0], create_graph=True)


def save_base(folder: Path, kind: str = "xlm-roberta", headless: bool = False, **changes) -> str:
    """A small random checkpoint of some architecture, with a tokenizer of words."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SMALL | changes))
    (AutoModel if headless else AutoModelForMaskedLM).from_config(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {f"{name}_token": word for name, word in zip(("bos", "pad", "eos", "unk", "mask"), WORDS)}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **special).save_pretrained(folder)
    return str(folder)


def stock_model(folder: str, activation: str = "relu") -> SparseEncoder:
    parts = [Transformer(folder, transformer_task="fill-mask"), SpladePooling(activation_function=activation)]
    return SparseEncoder(modules=parts, device="cpu", similarity_fn_name="dot")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return save_base(tmp_path_factory.mktemp("xlmr"))


KINDS = ["xlm-roberta", "roberta", "bert", "deberta-v2", "modernbert", "electra", "distilbert", "albert"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_gives_the_vectors_of_the_stock_modules(kind, tmp_path):
    model = stock_model(save_base(tmp_path, kind))
    wanted = model.encode(TEXTS).to_dense()
    assert wanted.any()
    torch.testing.assert_close(fuse(model).encode(TEXTS).to_dense(), wanted, rtol=0, atol=1e-6)


def test_an_architecture_that_ends_differently_is_named_and_left_alone(tmp_path):
    model = stock_model(save_base(tmp_path, "deberta-v2", legacy=False))
    wanted = model.encode(TEXTS).to_dense()
    with pytest.raises(EncoderError, match="DebertaV2ForMaskedLM does not end with its decoder"):
        fuse(model)
    torch.testing.assert_close(model.encode(TEXTS).to_dense(), wanted)


def test_a_model_without_a_decoder_is_named(base):
    model = SparseEncoder(modules=[Transformer(base), SpladePooling()], device="cpu")
    with pytest.raises(EncoderError, match="The decoder of XLMRobertaModel is NoneType"):
        fuse(model)
    with pytest.raises(EncoderError, match="this one has Transformer"):
        fuse(SparseEncoder(modules=[Transformer(base)], device="cpu"))


@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_standard_in_both_directions(activation, tied, tmp_path):
    model = stock_model(save_base(tmp_path / "base", tie_word_embeddings=tied), activation)
    wanted = model.encode(TEXTS).to_dense()
    fuse(model).save_pretrained(str(tmp_path / "fused"))
    plain = SparseEncoder(str(tmp_path / "fused"), device="cpu")
    assert [type(module) for module in plain] == [Transformer, SpladePooling]
    assert "korlab" not in "".join(p.read_text(encoding="utf-8") for p in (tmp_path / "fused").rglob("*.json"))
    torch.testing.assert_close(plain.encode(TEXTS).to_dense(), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(fuse(plain).encode(TEXTS).to_dense(), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(unfuse(plain).encode(TEXTS).to_dense(), wanted, rtol=0, atol=1e-6)
    batch = plain.tokenizer(TEXTS, padding=True, return_tensors="pt")
    logits = AutoModelForMaskedLM.from_pretrained(tmp_path / "fused").eval()(**batch).logits
    vectors = (logits * batch["attention_mask"][..., None]).relu().log1p().amax(1)
    vectors = vectors.log1p() if activation == "log1p_relu" else vectors
    torch.testing.assert_close(vectors.detach(), wanted, rtol=0, atol=1e-6)


def test_fusing_twice_or_a_copy_changes_nothing(base):
    model = stock_model(base)
    wanted = model.encode(TEXTS).to_dense()
    twin = copy.deepcopy(fuse(fuse(model), chunk=17))
    assert len(model[0]._forward_hooks) == 1
    unfuse(unfuse(model))
    assert not model[0]._forward_hooks and not isinstance(model[0].model.lm_head.decoder, HandThrough)
    for each in (model, twin, unfuse(twin)):
        torch.testing.assert_close(each.encode(TEXTS).to_dense(), wanted, rtol=0, atol=1e-6)


def test_top_k_and_batches_are_those_of_the_stock_modules(base):
    model = stock_model(base)
    wanted = model.encode(TEXTS, max_active_dims=9, batch_size=2).to_dense()
    found = fuse(model).encode(TEXTS, max_active_dims=9, batch_size=2).to_dense()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert found.count_nonzero(1).max() == 9


def test_a_route_is_fused_and_saved_standard(base, tmp_path):
    stock = stock_model(base)
    table = SparseStaticEmbedding(stock.tokenizer, weight=torch.rand(len(WORDS)), frozen=True)
    model = SparseEncoder(modules=[Router.for_query_document([table], [stock[0], stock[1]])], device="cpu")
    queries, documents = model.encode_query(TEXTS).to_dense(), model.encode_document(TEXTS).to_dense()
    fuse(model)
    assert isinstance(stock[0].model.lm_head.decoder, HandThrough)
    torch.testing.assert_close(model.encode_document(TEXTS).to_dense(), documents, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.encode_query(TEXTS).to_dense(), queries)
    model.save_pretrained(str(tmp_path))
    plain = SparseEncoder(str(tmp_path), device="cpu").encode_document(TEXTS).to_dense()
    torch.testing.assert_close(plain, documents, rtol=0, atol=1e-6)


def test_texts_laid_one_after_another_are_pooled_each_by_itself(base):
    """The layout of flash attention, which this machine cannot run: the hook is given it by hand."""
    model = fuse(stock_model(base))
    decoder, hidden = model[0].model.lm_head.decoder, torch.randn(1, 9, 32)
    found = PoolTokens()(model[0], None, {"token_embeddings": hidden, "cu_seq_lens_q": torch.tensor([0, 4, 9])})
    logits = F.linear(hidden, decoder.weight, decoder.bias)
    stock = SpladePooling()({"token_embeddings": logits, "cu_seq_lens_q": torch.tensor([0, 4, 9])})
    ours = SpladePooling()(found)["sentence_embedding"]
    torch.testing.assert_close(ours, stock["sentence_embedding"], rtol=0, atol=1e-6)


def test_silenced_entries_are_exactly_zero_and_the_others_as_before(base, tmp_path):
    model = stock_model(base)
    wanted = model.encode(TEXTS).to_dense()
    stop = torch.arange(len(WORDS)) % 3 == 0
    fuse(model, stop=stop).train()
    features = model.preprocess(TEXTS)
    model(features)["sentence_embedding"].sum().backward()
    assert not model[0].model.lm_head.decoder.bias.grad[stop].any()
    model.save_pretrained(str(tmp_path))
    for each in (model, SparseEncoder(str(tmp_path), device="cpu")):
        found = each.encode(TEXTS).to_dense()
        assert not found[:, stop].any()
        torch.testing.assert_close(found[:, ~stop], wanted[:, ~stop], rtol=0, atol=1e-6)


def test_a_decoder_without_bias_cannot_be_silenced(tmp_path):
    model = stock_model(save_base(tmp_path, "modernbert", decoder_bias=False))
    with pytest.raises(EncoderError, match="ModernBertForMaskedLM has no bias"):
        fuse(model, stop=torch.zeros(len(WORDS), dtype=torch.bool))
    assert fuse(model).encode(TEXTS).to_dense().any()


def train(model: SparseEncoder, out: Path, **extra) -> dict[str, torch.Tensor]:
    """Three steps with InfoNCE and FLOPS; the weights after them."""
    data = Dataset.from_dict({"anchor": TEXTS * 2, "positive": TEXTS[1:] + TEXTS[:1] + TEXTS[2:] + TEXTS[:2]})
    ranking = SparseMultipleNegativesRankingLoss(model)
    loss = SpladeLoss(model, ranking, document_regularizer_weight=0.1, query_regularizer_weight=0.1)
    args = SparseEncoderTrainingArguments(
        str(out), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-3, seed=3, use_cpu=True,
        report_to="none", save_steps=3, logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False, **extra,
    )
    trainer = SparseEncoderTrainer(model=model, args=args, train_dataset=data, loss=loss)
    trainer.train()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("extra", [{}, {"gradient_checkpointing": True}], ids=["plain", "gradient checkpointing"])
def test_three_training_steps_are_those_of_the_stock_modules(extra, base, tmp_path):
    start = stock_model(base)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    stock = train(start, tmp_path / "stock", **extra)
    fused = train(fuse(stock_model(base)), tmp_path / "fused", **extra)
    assert stock.keys() == fused.keys()
    for name, value in stock.items():
        if name.endswith("attention.self.key.bias"):
            continue  # softmax ignores it: its gradient is rounding alone, whose sign Adam turns into whole steps
        assert (fused[name] - value).abs().max() <= 1e-5, name
    moved = [name for name in fused if not torch.equal(fused[name], before[name])]
    for part in ("lm_head.bias", "lm_head.dense", "lm_head.layer_norm", "word_embeddings", "layer.0.attention"):
        assert any(part in name for name in moved), f"no gradient reached {part}"
    checkpoint = tmp_path / "fused" / "checkpoint-3"
    types = [row["type"] for row in json.loads((checkpoint / "modules.json").read_text(encoding="utf-8"))]
    assert all(name.startswith("sentence_transformers.") for name in types)


def test_a_checkpoint_without_a_head_is_named_with_what_is_missing(base, tmp_path):
    check_mlm_head(base)
    save_base(tmp_path / "headless", headless=True)
    with pytest.raises(EncoderError, match=r"headless/model.safetensors|…/model.safetensors") as caught:
        check_mlm_head(tmp_path / "headless")
    assert "lm_head.dense.weight" in str(caught.value)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and value.layout == torch.strided:
                self.entries = max(self.entries, value.untyped_storage().nbytes() // value.element_size())
        return result


def test_the_logits_never_exist():
    *leaves, mask = inputs(16, 32, 8, 2000)
    with Largest() as stock:
        stock_pool(*leaves, mask).sum().backward()
    with Largest() as ours:
        splade_pool(*leaves, mask, chunk=64).sum().backward()
    assert stock.entries == 16 * 32 * 2000
    assert ours.entries <= 3 * 16 * 2000  # text, entry and token of each active entry
