"""Exact tiled attention and longer contexts: the same numbers as transformers, and checkpoints that load anywhere."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2Model,
)

from korlab.coref import attention
from korlab.coref.attention import TILED, AttentionError, disagreement, use_attention
from korlab.coref.positions import PositionsError, extend, length_of

KF = dict(relative_attention=True, position_buckets=256, max_relative_positions=-1, max_position_embeddings=512, share_att_key=True,
          pos_att_type=["c2p", "p2c"], norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0)
SIZE = dict(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=0.1)
STILL = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def model(kind=DebertaV2Model, **more):
    torch.manual_seed(0)
    return kind(DebertaV2Config(**SIZE | KF | STILL | more))


def batch(length, texts=2):
    ids = torch.randint(1, 90, (texts, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[-1, length * 2 // 3 :] = 0
    return ids, mask


# ---- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [
    {}, dict(share_att_key=False), dict(pos_att_type=["c2p"]), dict(pos_att_type=["p2c"]), dict(position_buckets=-1, max_relative_positions=64),
    dict(conv_kernel_size=3, conv_act="gelu"), dict(max_relative_positions=1300),
], ids=str)
def test_agrees_with_transformers_over_a_long_text(more):
    ids, mask = batch(1200)
    one = model(num_hidden_layers=1, **more)
    apart = disagreement(one, ids, mask), disagreement(one.double(), ids, mask)
    assert max(apart[0]) < 1e-5 and max(apart[1]) < 1e-6


def test_tiles_only_above_the_length_and_says_so(monkeypatch):
    calls = []
    attend = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda *a: calls.append(a[1].shape[1]) or attend(*a))
    one = model()
    choice = use_attention(one, above=100)
    assert (choice.kind, choice.above) == ("tiled", 100) and "100" in choice.why
    for length in (100, 101):
        one(batch(length)[0])
    assert calls == [101, 101]
    use_attention(one, "stock")
    one(batch(101)[0])
    assert calls == [101, 101]


def test_what_it_cannot_do_goes_the_old_way():
    one, (ids, mask) = model(), batch(80)
    stock = one(ids, attention_mask=mask, output_attentions=True)
    use_attention(one, "tiled", above=0)
    ours = one(ids, attention_mask=mask, output_attentions=True)
    for a, b in zip(stock.attentions, ours.attentions, strict=True):
        assert torch.equal(a, b)
    pairs = (mask[:, None] * mask[:, :, None]).tril()  # a mask of pairs is no padding
    hidden = torch.randn(2, 80, 32)
    tiled = one.encoder(hidden, pairs).last_hidden_state
    use_attention(one, "stock")
    assert torch.equal(tiled, one.encoder(hidden, pairs).last_hidden_state)


def test_queries_from_elsewhere_go_the_old_way():
    one, mask = model(), batch(80)[1]
    hidden, queries = torch.randn(2, 2, 80, 32)
    stock = one.encoder(hidden, mask, query_states=queries).last_hidden_state
    use_attention(one, "tiled", above=0)
    assert torch.equal(one.encoder(hidden, mask, query_states=queries).last_hidden_state, stock)


def test_gradient_checkpointing():
    ids, mask = batch(80)
    one = model().train()
    one.gradient_checkpointing_enable()
    assert max(disagreement(one, ids, mask, above=0)) < 1e-5


def test_dropout_has_the_right_mean_and_is_drawn_from_the_seed():
    ids, mask = batch(64, texts=1)
    mask[:] = 1
    one = model(num_hidden_layers=1, attention_probs_dropout_prob=0.3)
    use_attention(one, "tiled", above=0)
    layer, hidden = one.encoder.layer[0].attention.self, torch.randn(1, 64, 32)
    run = lambda: attention._attend(layer, hidden, mask.bool(), one.encoder.get_rel_embedding(), 0.0).detach()
    exact = (layer.eval(), run())[1]
    layer.train()
    torch.manual_seed(3)
    first = run()
    many = torch.stack([run() for _ in range(600)])
    torch.manual_seed(3)
    assert torch.equal(first, run()) and not torch.equal(first, many[0])
    assert (many.mean(0) - exact).abs().max() < 6 * (many.std(0) / 600**0.5).max()
    stock = torch.stack([layer(hidden, torch.ones(1, 1, 64, 64), rel_embeddings=one.encoder.get_rel_embedding())[0] for _ in range(600)])
    assert torch.allclose(many.std(0), stock.std(0).detach(), rtol=0.25)


def test_training_after_inference_mode():
    one, (ids, _) = model(), batch(77)
    use_attention(one, "tiled", above=0)
    with torch.inference_mode():
        one(ids)
    one(ids).last_hidden_state.sum().backward()


def test_a_second_derivative_is_refused_in_a_sentence():
    one = model()
    use_attention(one, "tiled", above=0)
    out = one(batch(20)[0]).last_hidden_state
    with pytest.raises(AttentionError, match="no second derivative"):
        torch.autograd.grad(out.sum(), one.encoder.layer[0].attention.self.query_proj.weight, create_graph=True)


def test_memory_grows_with_the_length_and_not_with_its_square():
    code = f"""if True:
        import torch
        from transformers import DebertaV2Config, DebertaV2Model
        from korlab.coref.attention import use_attention
        from korlab.workbench.bench import measure
        torch.set_num_threads(1)
        one, ids = DebertaV2Model(DebertaV2Config(**{SIZE | KF | STILL | dict(num_hidden_layers=1)})), torch.randint(1, 90, (1, 2000))
        for kind in ("tiled", "stock"):
            use_attention(one, kind, keep=0.0)
            print(measure(lambda: one(ids).last_hidden_state.sum().backward(), 1).peak_mib)
    """
    used = list(map(float, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()))
    assert used[0] < 0.3 * used[1], used


# ---- choosing --------------------------------------------------------------------------------------------------------


def test_the_name_is_known_to_transformers_and_to_no_checkpoint(tmp_path):
    one = model(DebertaV2ForMaskedLM, attn_implementation=TILED)
    assert one.config._attn_implementation == TILED
    one.set_attn_implementation("eager")
    one.set_attn_implementation(TILED)
    assert one.config._attn_implementation == TILED
    one.save_pretrained(tmp_path)
    assert "tiled" not in (tmp_path / "config.json").read_text()
    code = f"from transformers import AutoModelForMaskedLM as A, utils; A.from_pretrained({str(tmp_path)!r}); print('plain')"
    assert "plain" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path).stdout
    assert AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation=TILED).config._attn_implementation == TILED


def test_other_models_are_left_alone_or_told():
    bert = BertModel(BertConfig(**SIZE))
    before = bert.config._attn_implementation
    assert use_attention(bert).kind == "stock" and bert.config._attn_implementation == before
    bert.set_attn_implementation(TILED)
    with pytest.raises(AttentionError, match="for DeBERTa-v2, not for BertSelfAttention"):
        bert(torch.ones(1, 4).long())


@pytest.mark.parametrize("kind, said", [("flash", "none of auto"), ("flashdeberta", "wants a CUDA device"),
                                        ("disentangled-flash", "wants a CUDA device")])
def test_what_cannot_be_had_is_refused(kind, said):
    with pytest.raises(AttentionError, match=said):
        use_attention(model(), kind)


def test_on_cuda_an_installed_kernel_is_taken(monkeypatch):
    one = model().to("meta")
    monkeypatch.setattr(type(one), "device", torch.device("cuda"))
    assert use_attention(one).why == "on cuda without disentangled-flash and flashdeberta"
    monkeypatch.setattr(attention, "find_spec", lambda name: name == "flashdeberta" or None)
    taken = []
    monkeypatch.setattr(attention, "_fuse", lambda model, kind: taken.append(kind))
    assert use_attention(one).kind == "flashdeberta" and taken == ["flashdeberta"]
    with pytest.raises(AttentionError, match="pip install disentangled-flash"):
        use_attention(one, "disentangled-flash")


# ---- longer contexts -------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_512_is_read_as_before_and_loads_anywhere(tmp_path):
    parent = model(DebertaV2ForMaskedLM).eval()
    parent.save_pretrained(tmp_path / "parent")
    longer = AutoModelForMaskedLM.from_pretrained(tmp_path / "parent").eval()
    assert extend(longer, 2048).changed == "max_position_embeddings=2048, max_relative_positions=512"
    for length in (1, 100, 512):
        ids = batch(length, texts=1)[0]
        assert torch.equal(longer(ids).logits, parent(ids).logits)
    longer.save_pretrained(tmp_path / "longer")
    told = json.loads((tmp_path / "longer" / "config.json").read_text())
    assert (told["max_position_embeddings"], told["max_relative_positions"]) == (2048, 512)
    again, ids = AutoModelForMaskedLM.from_pretrained(tmp_path / "longer").eval(), batch(1500, texts=1)[0]
    assert torch.equal(again(ids).logits, longer(ids).logits) and length_of(again) == 2048
    assert again.deberta.encoder.rel_embeddings.weight.shape == (512, 32)


def test_stretched_buckets_and_tiles_go_together():
    ids, mask = batch(1100)
    one = model()
    extend(one, 2048, "rebucket")
    assert max(disagreement(one, ids, mask)) < 1e-5
    assert one.encoder.layer[1].attention.self.max_relative_positions == 2048


def test_extending_twice_keeps_the_first_buckets(tmp_path):
    one = model()
    extend(one, 1024)
    extend(one, 2048)
    assert one.config.max_relative_positions == 512


def test_new_rows_differ_and_old_ones_stay(tmp_path):
    torch.manual_seed(0)
    parent = BertModel(BertConfig(**SIZE, max_position_embeddings=64)).eval()
    old = parent.embeddings.position_embeddings.weight.detach().clone()
    for fill in ("interpolate", "tile"):
        parent.save_pretrained(tmp_path)
        longer = AutoModel.from_pretrained(tmp_path)
        assert extend(longer, 160, fill=fill).changed == f"96 new rows of position_embeddings ({fill})"
        rows = longer.embeddings.position_embeddings.weight
        assert torch.equal(rows[:64], old) and (rows[64:].diff(dim=0).abs().sum(1) > 0).all()
        assert longer(torch.ones(1, 160).long()).last_hidden_state.shape == (1, 160, 32)


def test_the_tokenizer_learns_the_length():
    class Tokenizer:
        model_max_length = 512

    extend(model(), 2048, tokenizer=Tokenizer)
    assert Tokenizer.model_max_length == 2048


@pytest.mark.parametrize("length, mode, said", [(100, "keep", "reads 512 tokens, 100 are fewer"), (2048, "far", "neither keep nor rebucket")])
def test_a_length_that_cannot_be_had(length, mode, said):
    with pytest.raises(PositionsError, match=said):
        extend(model(), length, mode)
