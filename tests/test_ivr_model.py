"""The model half of vocabulary replacement: rows, bits, packing and training, what one chapter cannot say alone."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, TrainerCallback

from korlab.core.files import read_jsonl
from korlab.experiment.config import config_from
from korlab.ivr.aligning import STRATEGIES, AlignError, align, plan, rows_hash
from korlab.ivr.bpe import parsed, tokenizer
from korlab.ivr.corpora import Wanted, english, korean, load_corpora, parted
from korlab.ivr.fresh import fresh
from korlab.ivr.models import load, mini, train_tokenizer
from korlab.ivr.packing import mixed, pack
from korlab.ivr.scoring import Reading, price, reading_of
from korlab.ivr.teaching import Teaching, distill, twice
from korlab.ivr.training import CausalTraining, Dev, NewRows, StartError
from korlab.metrics.bits import Bits, bits_interval, bits_per_byte, shares, spans


@dataclass(frozen=True)
class Nothing:
    "No parameters of a study's own."


VALUES = dict(
    epochs=None, max_steps=20, learning_rate=3e-3, scheduler="cosine", warmup=2, weight_decay=0.1, adam_beta2=0.98, max_grad_norm=1.0,
    batch_size=8, accumulation=1, batching="random", gradient_checkpointing=False, workers=0, eval_steps=10, eval_batch_size=16,
    keep_checkpoints=2, patience=0, threshold=0.0, seed=3, device="cpu", precision="fp32", threads=1, tracking="none")


def replaced(base, texts, number):
    "The last merges of a base go, the most frequent pairs of Korean pieces come: a replacement in a few lines, for tests."
    table = json.loads(base.json)
    vocab, merges = table["model"]["vocab"], table["model"]["merges"]
    gone = ["".join(merges.pop()) for _ in range(number)]
    free = sorted(vocab.pop(name) for name in gone)
    made = parsed_merges(base, texts, {*vocab}, number)
    merges += made
    vocab |= {left + right: i for (left, right), i in zip(made, free, strict=True)}
    return parsed(json.dumps(table))


def parsed_merges(base, texts, known, number):
    "Merges of a Korean vocabulary that fit the tokens that stay."
    wanted = json.loads(fresh(base, texts).json)["model"]["merges"]
    found = []
    for left, right in wanted:
        if left in known and right in known and left + right not in known and len(found) < number:
            known.add(left + right)
            found.append([left, right])
    assert len(found) == number
    return found


@pytest.fixture(scope="module")
def words():
    "A small English vocabulary, the same with a quarter replaced, and texts."
    small = train_tokenizer(english()[:300], 800)
    base = parsed(small.backend_tokenizer.to_str())
    texts = korean(300)
    return small, base, replaced(base, texts, 200), texts


def llama(size: int, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=128, tie_word_embeddings=tied))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_initialisation_leaves_kept_rows_and_padding_alone(words, strategy, tied):
    _, base, new, texts = words
    model, moves = llama(832, tied), plan(base, new)
    ins, outs = (layer.weight.detach().clone() for layer in (model.get_input_embeddings(), model.lm_head))
    found = align(model, moves, strategy, texts=texts[:60], base=base, new=new)
    kept = [*moves.copied[:, 0], *range(800, 832)]
    assert torch.equal(model.get_input_embeddings().weight[kept], ins[kept]) and torch.equal(model.lm_head.weight[kept], outs[kept])
    assert found.tied == tied == (model.lm_head.weight is model.get_input_embeddings().weight)
    assert found.rows == 200 and found.sha256 == rows_hash(model)
    made = model.lm_head.weight[list(moves.made)]
    assert torch.isfinite(made).all() and torch.equal(made, outs[list(moves.made)]) == (strategy == "retired")


def test_rows_follow_their_tokens_into_a_vocabulary_made_anew(words):
    _, base, _, texts = words
    new, model = fresh(base, texts), llama(800, True)
    before, moves = model.lm_head.weight.detach().clone(), plan(base, new)
    assert not moves.in_place
    align(model, moves)
    for i, piece in enumerate(new.pieces):
        if piece in base.ids:
            assert torch.equal(model.lm_head.weight[i], before[base.ids[piece]])
    with pytest.raises(AlignError, match="retires no single tokens"):
        align(model, moves, "retired")
    with pytest.raises(AlignError, match="have to keep their ids"):
        distill(model, moves, base, new, texts, 799)


def test_a_mean_of_pieces_is_the_mean_of_the_rows_that_spelled_the_token(words):
    _, base, new, _ = words
    moves = plan(base, new)
    for i, ids in zip(moves.made, moves.spelled, strict=True):
        assert b"".join(base.pieces[one] for one in ids) == new.pieces[i] != base.pieces[i]
    assert {*moves.made, *moves.copied[:, 0]} == {*range(800)}


def test_both_cuts_of_a_text_meet_wherever_both_end_a_token(words):
    _, base, new, texts = words
    for text in [*texts[:20], "Hello, 세상! 🙂 가나다"]:
        one = twice(text, base, new)
        assert len(one.new) <= len(one.old)
        for i, j in one.places:
            assert b"".join(new.pieces[k] for k in one.new[: i + 1]) == b"".join(base.pieces[k] for k in one.old[: j + 1])
        assert one.places[-1] == (len(one.new) - 1, len(one.old) - 1)


@pytest.mark.parametrize("tied", [True, False])
def test_distillation_brings_new_rows_nearer_to_the_old_spelling(words, tied):
    _, base, new, texts = words
    model, moves = llama(800, tied), plan(base, new)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ins, outs, losses = distill(model, moves, base, new, texts, 799, Teaching(times=3, length=80, updates=40, batch=640, layers=0.5))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert np.array_equal(ins, outs) == tied and ins.shape == (200, 32)
    half = losses if tied else losses[:40]
    assert np.mean(half[-5:]) < half[0]
    align(model, moves, "distill", (ins, outs))
    assert np.allclose(model.lm_head.weight[list(moves.made)].detach(), outs)


def test_bits_do_not_hang_on_batch_or_neighbours_and_a_stride_pays_each_token_once(words):
    small, _, _, texts = words
    model = mini(small, 64).eval()
    some = [*texts[:5], english()[3], ""]
    one_by_one = [price(model, small, [text], Reading(64, 32, 1))[0] for text in some]
    together = price(model, small, some, Reading(64, 32, 5))
    assert [one.tokens for one in together] == [one.tokens for one in one_by_one] and together[-1] == Bits(0.0, 0, 0)
    np.testing.assert_allclose([one.bits for one in together], [one.bits for one in one_by_one], rtol=1e-4)
    for tokens in (2, 63, 64, 65, 200):
        paid = [i for span in spans(tokens, 64, 32) for i in range(span.paid, span.end)]
        assert paid == [*range(1, tokens)]


def test_an_untrained_model_pays_the_same_for_a_byte_as_its_vocabulary_says(words):
    "A model that knows nothing pays log2 of its vocabulary for each token, so fewer tokens are fewer bits, exactly."
    small, _, _, texts = words
    model = mini(small, 64).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    paid = price(model, small, texts[:10], reading_of(model))
    for one in paid:
        assert one.bits == pytest.approx(one.tokens * np.log2(800), rel=1e-5)


def test_the_interval_of_a_rate_is_over_documents_and_pairs_are_linear():
    chance = np.random.default_rng(3)
    sizes = chance.integers(50, 900, 80)
    a, b = ([Bits(float(n * rate), int(n), int(n)) for n, rate in zip(sizes, chance.normal(mean, 0.2, 80))] for mean in (2.0, 1.9))
    assert np.mean(shares(a)) == pytest.approx(bits_per_byte(a))
    assert np.mean(np.subtract(shares(a), shares(b))) == pytest.approx(bits_per_byte(a) - bits_per_byte(b))
    found = bits_interval(a)
    drawn = chance.integers(0, 80, (3000, 80))
    rates = [sum(a[i].bits for i in row) / sum(a[i].bytes for i in row) for row in drawn]
    assert [found.low, found.high] == pytest.approx(list(np.quantile(rates, [0.025, 0.975])), abs=0.015)


def test_rows_hold_every_token_in_order_and_replay_has_its_share(words):
    small, _, _, texts = words
    packed = pack(texts, small, 50)
    stream = [i for row in packed.rows for i in row]
    whole = [i for text in texts for i in (small.convert_tokens_to_ids("<|endoftext|>"), *small(text)["input_ids"])]
    assert stream == whole[: len(stream)] and packed.left_over == len(whole) - len(stream) < 50
    other = pack(english()[:40], small, 50).rows
    for share in (0.0, 0.1, 0.5):
        rows = mixed(packed.rows, other, share)
        assert sum(row in set(other) for row in rows) == round(len(packed.rows) * share / (1 - share))


def _trained(words, folder, start=None, callbacks=(), **values):
    small, base, new, texts = words
    torch.manual_seed(0)
    model, moves = mini(small, 32), plan(base, new)
    sha = align(model, moves).sha256
    cutter = type(small)(tokenizer_object=tokenizer(new), eos_token="<|endoftext|>")
    parts = parted(texts[:60], dev=4)
    rows = mixed(pack(parts["train"], cutter, 32).rows, pack(english()[:60], cutter, 32).rows, 0.2)
    dev = Dev(parts["dev"], english()[:2], cutter, Reading(32, 16, 16))
    return CausalTraining(config_from(Nothing, VALUES | values), model, cutter, rows, dev, folder, NewRows(moves.made, 0.4, 1e-2), start or sha,
                          note=lambda text: None, callbacks=callbacks).train()


class Killed(Exception):
    "What a test calls a kill."


@pytest.mark.parametrize("when", [5, 15])  # while the new rows learn alone, and after
def test_a_killed_training_goes_on_where_it_was_in_either_stage(words, tmp_path, when):
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == when:
                raise Killed

    straight = load(_trained(words, tmp_path / "straight", eval_steps=4)["final_model_path"]).model
    with pytest.raises(Killed):
        _trained(words, tmp_path / "killed", callbacks=[Kill()], eval_steps=4)
    resumed = load(_trained(words, tmp_path / "killed", eval_steps=4)["final_model_path"]).model
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    steps = [row["step"] for row in read_jsonl(tmp_path / "killed" / "history.jsonl") if "eval_bpb" in row]
    assert steps == [0, 4, 8, 12, 16, 20]


def test_a_training_refuses_rows_that_nobody_made_for_it(words, tmp_path):
    with pytest.raises(StartError, match="are not those that were aligned"):
        _trained(words, tmp_path, start="0" * 64)


def test_embedded_korean_is_many_texts_and_passages_stay_apart():
    corpora = load_corpora(Wanted(number=600))
    assert not {*corpora.korean["train"]} & {*corpora.korean["dev"], *corpora.korean["test"], *corpora.korean["written"]}
    assert {name: len(part) for name, part in corpora.korean.items()} == {"train": 540, "dev": 30, "test": 30, "written": 16}
    assert all("{" not in text and "  " not in text for part in corpora.korean.values() for text in part)


def test_a_padded_gpt2_with_a_smaller_vocabulary_is_refused(words):
    _, base, new, _ = words
    model = GPT2LMHeadModel(GPT2Config(vocab_size=700, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(AlignError, match="has 700 rows and the vocabulary 800 tokens"):
        align(model, plan(base, new))
