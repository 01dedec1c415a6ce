"""The study of recalled names through the entry notebooks: a checkpoint made longer and gone on from, every way of asking, and its recipes."""

import copy
import json
import random

import pytest
import torch
from conftest import ROOT
from in_process import execute
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from korlab.core.files import read_json, read_jsonl
from korlab.coref.collator import Collator
from korlab.coref.corpora import load_samples
from korlab.coref.frozen import freeze
from korlab.coref.models import mini, train_tokenizer
from korlab.coref.parameters import MODES
from korlab.coref.positions import extend, length_of
from korlab.coref.windows import windows
from korlab.experiment import results
from korlab.experiment.runs import reopen
from korlab.experiment.studies import configure
from korlab.workbench import plans

NAMES = "김민수 이서연 박지훈 최유진 정하늘 강도윤 조은비 윤재호 임가람 한소라".split()
SHORT = dict(lambada="none", questions=20, max_pieces=4, beam=2, workers=0, threads=1, precision="fp32", batch_size=8, accumulation=1)
OWN = dict(model="kf-deberta", size="full", learning_rate=1e-3, epochs=1, eval_steps=0.5, warmup=0, **SHORT)


def page(chance):
    a, b = chance.sample(NAMES, 2)
    return (f"{a}는 올해 {b}와 함께 부산에서 연구소를 열었다. 그 뒤로 여러 해가 지나는 동안 많은 사람이 연구소를 찾아와 배우고 돌아갔다. "
            f"지난달 {a}는 새로운 논문 {chance.randrange(2, 99)}편을 발표했고, 연구소를 맡은 {b}도 따로 {chance.randrange(2, 99)}편에 이름을 올렸다.")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with texts, and a checkpoint of 64 tokens whose configuration says no more of distances than a published one's."""
    folder, chance = tmp_path_factory.mktemp("home"), random.Random(1)
    texts = [*dict.fromkeys(page(chance) for _ in range(70))]
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), "utf-8")
    tokenizer = train_tokenizer(texts * 5)
    torch.manual_seed(0)
    parent = mini(tokenizer, "deberta-v2", 64)
    parent.config.max_relative_positions = -1
    for part in (parent, tokenizer):
        part.save_pretrained(folder / "parent")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KORLAB_RUNS", str(folder / "runs"))
        yield folder


@pytest.fixture(scope="module")
def combined(home):
    """The combined recipe on these texts, in windows longer than the checkpoint."""
    done = execute("train", home / "combined.ipynb", **OWN, name="combined", data=home / "texts.jsonl", checkpoint=home / "parent",
                   context_length=112, objective="combined", mask_min=0.118, mask_max=0.36, modes="")
    assert done.error is None, done.error
    return home / "runs" / "coref" / "combined"


@pytest.fixture(scope="module")
def entity(home, combined):
    """The entity fine-tune from there; nobody says how long the checkpoint reads."""
    done = execute("train", home / "entity.ipynb", **OWN, name="entity", data=home / "texts.jsonl", checkpoint=combined / "model")
    assert done.error is None, done.error
    return home / "runs" / "coref" / "entity"


# ---- training ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_extended_and_scored_every_half_epoch_and_loads_as_it_was(home, combined):
    told = read_json(combined / "model.json")
    assert (told["context_length"], told["positions"]) == (112, "max_position_embeddings=112, max_relative_positions=64")
    logged = [row for row in read_jsonl(combined / "history.jsonl") if "eval_real1" in row]
    assert [row["epoch"] for row in logged] == pytest.approx([0.5, 1.0], abs=0.05) and all(row["step"] for row in logged)
    tokenizer = AutoTokenizer.from_pretrained(combined / "model")
    assert tokenizer.model_max_length == 112
    dev, _ = windows(load_samples(combined / "samples" / "train").held["dev"], tokenizer, 112)
    batch, losses = Collator(tokenizer)(dev), {}
    for folder in (combined / "model", *combined.glob("checkpoints/checkpoint-*")):  # no code of ours is needed
        plain = AutoModelForMaskedLM.from_pretrained(folder).eval()
        assert (plain.config.max_position_embeddings, plain.config.max_relative_positions) == (112, 64)
        with torch.no_grad():
            found = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert found.shape == (*batch["input_ids"].shape, len(tokenizer))
        losses[folder.name.rpartition("-")[2]] = float(torch.nn.functional.cross_entropy(found.flatten(0, 1), batch["labels"].flatten()))
    kept = read_json(combined / "train.json")["eval_metrics"]["eval_loss"]
    assert losses.pop("model") == pytest.approx(kept, abs=1e-4)
    assert losses == {str(row["step"]): pytest.approx(row["eval_loss"], abs=1e-4) for row in logged}


def test_a_training_goes_on_from_a_checkpoint_whose_length_nobody_says(combined, entity):
    told = read_json(entity / "model.json")
    assert (told["context_length"], told["positions"]) == (112, "as the checkpoint has them")
    assert str(combined.name) in told["origin"] and not any("cannot be asked" in note["text"] for note in read_json(entity / "status.json")["notes"])
    kept = AutoModelForMaskedLM.from_pretrained(entity / "model").config
    assert (kept.max_position_embeddings, kept.max_relative_positions) == (112, 64)


def test_every_mode_has_the_same_questions_and_stands_beside_those_who_read_nothing(entity):
    found = results.read(reopen(entity))
    assert found.modes("test") == [*MODES] and {one.n for one in found.scored if one.split == "test"} == {found.own("test").n}
    systems = {one.system for one in found.baselines("test", "strict")}
    assert systems == {"constant", "most recent", "most frequent", "n-gram copy", "untrained"}
    for one in found.scored:
        assert [*one.measures] == ["real@1", "real@5", "mrr"]
        assert all(0 <= part.low <= part.mean <= part.high <= 1 and part.n == one.n for part in one.measures.values())
        assert one.measures["real@1"].mean <= one.measures["mrr"].mean <= 1
    for parts in found.facts["test"]["slices"].values():
        assert sum(part["n"] for part in parts.values()) == found.own("test").n
    strict, told = (found.own("test", mode).measures["real@1"].mean for mode in ("strict", "oracle_len"))
    assert strict <= told
    rows = read_jsonl(entity / "recalls" / "test.jsonl")
    for mode in MODES:
        assert found.own("test", mode).measures["real@1"].mean == pytest.approx(sum(row["rank"][mode] == 1 for row in rows) / len(rows))


# ---- other questions ---------------------------------------------------------------------------------------------


def test_gold_chains_and_frozen_items_are_asked_of_a_run(home, entity):
    text = "김민수는 부산에 산다. 그는 젊다. 많은 사람이 그를 안다. 오늘 오후에 김민수는 서울로 간다."
    later, said = text.rindex("김민수"), text.index("그는")
    (home / "gold.jsonl").write_text(json.dumps({"text": text, "clusters": [[[0, 3], [said, said + 1], [later, later + 3]]]}), "utf-8")
    done = execute("evaluate", home / "gold.ipynb", run="entity", name="gold", data=home / "gold.jsonl", modes="", lambada="none")
    assert done.error is None, done.error
    found = results.read(reopen(entity / "evaluations" / "gold"))
    assert found.own("test").n == 1 and found.facts["test"]["slices"]["distance"]["0–127"]["n"] == 1
    assert found.splits == ["test"] and "unseen에는 질문이 없어 채점하지 않는다" in done.page
    assert "1 gold chain with 3 mentions, 1 of them asked about; no question: first mention 1, pronoun 1" in done.page.replace("\\", "")
    freeze(home / "real.jsonl", str(home / "texts.jsonl"), limit=4)
    done = execute("evaluate", home / "frozen.ipynb", run="entity", name="frozen", data=home / "real.jsonl", modes="compat", lambada="none")
    assert done.error is None, done.error
    found = results.read(reopen(entity / "evaluations" / "frozen"))
    assert {one.n for one in found.scored} == {4} and found.modes("test") == ["strict", "compat"]
    digest = read_json(home / "real.frozen.json")["sha256"][:12]
    assert f"4 frozen items, sha256 {digest}" in done.page


def test_a_runs_own_questions_are_not_made_again_by_another_recipe(home, entity):
    done = execute("evaluate", home / "again.ipynb", run="entity", name="again", rule="source", lambada="none", modes="")
    assert "rule='source' would have no effect: the data hold questions already" in str(done.error)


# ---- other models ------------------------------------------------------------------------------------------------


def test_an_encoder_without_a_head_gets_one_and_more_positions_and_loads_anywhere(home):
    tokenizer = AutoTokenizer.from_pretrained(home / "parent")
    torch.manual_seed(0)
    mini(tokenizer, "roberta", 64).save_pretrained(home / "whole")
    AutoModel.from_pretrained(home / "whole").save_pretrained(home / "encoder")
    tokenizer.save_pretrained(home / "encoder")
    how = OWN | dict(model="klue-roberta", data=home / "texts.jsonl", checkpoint=home / "encoder", context_length=112, modes="", questions=5)
    refused = execute("train", home / "refused.ipynb", **how, name="refused")
    assert "has no masked language model head" in str(refused.error) and "or set head=train" in str(refused.error)
    done = execute("train", home / "headed.ipynb", **how, name="headed", head="train")
    assert done.error is None, done.error
    run = home / "runs" / "coref" / "headed"
    assert "48 new rows of position_embeddings" in read_json(run / "model.json")["positions"]
    assert "with a new head that this run trains" in read_json(run / "model.json")["origin"]
    plain, trained = AutoModelForMaskedLM.from_pretrained(run / "model").eval(), done.names["model"].model.eval()
    ids = torch.randint(5, 100, (1, 112), generator=torch.Generator().manual_seed(0))
    assert length_of(plain) == 112 and torch.equal(plain(ids).logits, trained(ids).logits)


@pytest.mark.parametrize("given, said", [
    (dict(model="modernbert", context_length=112), "modernbert was trained for 64 tokens and has no table to enlarge: choose a context_length of 64"),
    (dict(model="kf-deberta", positions="rebucket"), "positions='rebucket' would have no effect: the checkpoint reads 64 tokens already"),
])
def test_a_length_that_cannot_be_had_is_refused(home, given, said):
    folder = home / "parent"
    if given["model"] == "modernbert":
        folder, tokenizer = home / "modern", AutoTokenizer.from_pretrained(home / "parent")
        for part in (mini(tokenizer, "modernbert", 64), tokenizer):
            part.save_pretrained(folder)
    done = execute("train", home / "out.ipynb", **OWN | given, name=given["model"], data=home / "texts.jsonl", checkpoint=folder)
    assert said in str(done.error)


# ---- the same numbers --------------------------------------------------------------------------------------------


def test_a_training_step_in_tiles_is_a_training_step(home):
    from korlab.coref.attention import use_attention
    from korlab.coref.training import Together, _label_loss, rows, scores

    tokenizer = AutoTokenizer.from_pretrained(home / "parent")
    asked, _ = windows(load_samples(home / "runs" / "coref" / "combined" / "samples" / "train").train[:12], tokenizer, 112)
    start, found = mini(tokenizer, "deberta-v2", 64), {}
    extend(start, 112)
    for kind in ("stock", "tiled"):
        model = copy.deepcopy(start).train()
        use_attention(model, kind, above=0)
        batch = Together(Collator(tokenizer))(rows(asked))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        loss = _label_loss(scores(model, batch), batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found[kind] = float(loss.detach()), torch.cat([weights.detach().flatten() for weights in model.parameters()])
    assert found["tiled"][0] == pytest.approx(found["stock"][0], abs=1e-5)
    torch.testing.assert_close(found["tiled"][1], found["stock"][1], rtol=0, atol=1e-5)
    before = torch.cat([weights.detach().flatten() for weights in start.parameters()])
    assert (found["stock"][1] - before).abs().max() > 1e-3, "a step moves the weights"


# ---- recipes -----------------------------------------------------------------------------------------------------

COMBINED = {  # length -> learning rate, warm-up, weight decay, rates of masking, batch, accumulation
    1536: (8.0e-5, 0.16, 0.045, 0.118, 0.36, 8, 16), 2048: (2.3e-5, 0.195, 0.046, 0.136, 0.475, 4, 32),
}


@pytest.mark.parametrize("length", COMBINED)
def test_the_published_recipes_are_those_published(length):
    folder = ROOT / "params" / "coref"
    c = configure(plans.layers(folder / f"combined_{length}.yaml", given={"data": "texts"}))
    t, own = c.training, c.own
    assert (t.learning_rate, t.warmup, t.weight_decay, own.mask_min, own.mask_max, t.batch_size, t.accumulation) == COMBINED[length]
    assert (t.epochs, t.max_grad_norm, c.computing.precision, own.objective, own.context_length) == (5, 0.5, "bf16", "combined", length)
    assert t.eval_steps * t.epochs == 0.5, "every half epoch"
    c = configure(plans.layers(folder / f"entity_{length}.yaml", given={"data": "texts"}))
    t, own = c.training, c.own
    assert (t.learning_rate, t.warmup, t.weight_decay, t.batch_size, t.accumulation, t.max_grad_norm) == (2e-5, 0.1, 0.01, 16, 2, 1.0)
    assert (t.epochs, t.eval_steps, t.keep_checkpoints, own.objective, own.mask_max) == (3, 200, 3, "entity", 0.15)
    assert own.context_length == length and own.positions == "keep"


@pytest.mark.parametrize("name", ["combined_1536", "combined_2048", "entity_1536", "entity_2048"])
def test_a_published_recipe_fits_two_cores_and_keeps_what_makes_it_one(name):
    folder = ROOT / "params" / "coref"
    small = configure(plans.layers(folder / f"{name}.yaml", [folder / "overlays" / "mini.yaml"]))
    whole = configure(plans.layers(folder / f"{name}.yaml", given={"data": "texts"}))
    assert small.run.size == "mini" and small.rows.data == "embedded"
    for kept in ("context_length", "objective", "mask_min", "mask_max"):
        assert getattr(small.own, kept) == getattr(whole.own, kept)
    assert small.training.learning_rate == 3e-3
