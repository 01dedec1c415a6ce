"""One mask of any text: the answer, the words it looks at, the page, and the commands of the study, on a run that was trained for seconds."""

import json
import math
import shutil

import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from in_process import execute
from transformers import AutoModelForMaskedLM, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.core import rows
from korlab.core.files import read_json, read_jsonl
from korlab.coref import fill
from korlab.coref.articles import articles, embedded
from korlab.coref.attention import TILED, use_attention
from korlab.coref.models import load, mini
from korlab.coref.quality import quality
from korlab.coref.recall import Guess
from korlab.coref.windows import gap
from korlab.experiment import params
from korlab.experiment.models import CheckpointError
from korlab.experiment.params import ParameterError
from korlab.experiment.runs import RunError
from korlab.report.render import render

TEXT = "알려진 대로 서안도는 소금을 낸다. 소금을 내는 [MASK]의 이야기가 신문에 실렸다."


@pytest.fixture(scope="module")
def home(recalls):
    """Where runs are, with one that recalls the name of an article."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KORLAB_RUNS", str(recalls))
        yield recalls


@pytest.fixture(scope="module")
def model(home):
    return home / "coref" / "recalls" / "model"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A file as people have them: pages of eight articles each, one of them twice, one too short, and a broken line."""
    folder = tmp_path_factory.mktemp("pages")
    texts = [" ".join(one.text for one in articles(8, 3, seed=seed)) for seed in range(40)]
    lines = [json.dumps({"본문": text}, ensure_ascii=False) for text in (*texts, texts[0], "짧다.")]
    (folder / "pages.jsonl").write_text("\n".join([*lines, "{broken"]), "utf-8")
    return folder / "pages.jsonl"


def korlab(*words, code=0):
    """What a command prints, and what it remarks."""
    done = CliRunner().invoke(command_line(), ["coref", *map(str, words)], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


# ---- answers and where they are from -----------------------------------------------------------------------------


def test_a_name_that_was_never_trained_is_recalled_and_its_earlier_mention_is_what_the_mask_looks_at(home):
    filler, right = fill.start({"run": "recalls", "text": TEXT}), 0
    assert filler.max_length == 64
    asked = embedded(1, rows=10, eval_rows=20).held["unseen"]
    for sample in asked:
        found = filler(f"{sample.text[:sample.start]}[MASK]{sample.text[sample.end:]}")
        look = found.look
        assert sum(word.share for word in look.words) + look.rest == pytest.approx(1, abs=1e-5)
        if found.guesses[0].text == sample.target:
            right += 1
            assert look.mentions[0] == (sample.antecedent, sample.antecedent + len(sample.target))
            assert look.strongest(1)[0][2] == "mention" and look.recalled > 0.3
            assert f'<span class="kl-mention">{sample.target}</span>' in look._repr_html_()
            assert found.rows()[0]["earlier"] == len(look.mentions)
    assert right >= 17, f"{right} of {len(asked)}"


@pytest.mark.parametrize("family, word", [("deberta-v2", "[MASK]"), ("roberta", "<mask>"), ("modernbert", "[MASK]")])
def test_the_attention_of_a_word_is_that_of_its_pieces(model, family, word):
    tokenizer = load(str(model)).tokenizer
    if word != "[MASK]":
        tokenizer.add_special_tokens({"mask_token": word})
    torch.manual_seed(1)
    net = mini(tokenizer, family, 64).eval()
    text, start, end = fill.hole(TEXT.replace("[MASK]", word), tokenizer)
    read = gap(text, start, end, tokenizer, 64, masks=3)
    rows = fill.looked_at(net, read.ids, read.places)
    net.set_attn_implementation("eager")
    with torch.no_grad():
        own = net(input_ids=torch.tensor([read.ids]), output_attentions=True).attentions
    for layer, weights in enumerate(own):
        for head, row in enumerate(weights[0, :, read.places].mean(1).numpy()):
            words, rest = fill.word_sums(text, read.spans, rows[layer, head])
            assert sum(one.share for one in words) + rest == pytest.approx(1, abs=1e-5)
            at = text.index("소금을")
            golden = sum(share for span, share in zip(read.spans, row) if span and at <= span[0] and span[1] <= at + 3)
            assert next(one.share for one in words if one.start == at) == pytest.approx(golden, abs=1e-6)
            assert rest == pytest.approx(row[0] + row[-1], abs=1e-6)  # [CLS] and [SEP]


def test_a_model_that_attends_in_tiles_is_read_with_stock_weights_and_tiles_again(model):
    tiled, stock = load(str(model)), load(str(model)).model.eval()
    read = gap(TEXT, TEXT.index("["), TEXT.index("]") + 1, tiled.tokenizer, 64, masks=3)
    use_attention(tiled.model, "tiled", above=4)
    before = tiled.model.eval()(input_ids=torch.tensor([read.ids])).logits
    np.testing.assert_allclose(fill.looked_at(tiled.model, read.ids, read.places), fill.looked_at(stock, read.ids, read.places), atol=1e-6)
    assert tiled.model.config._attn_implementation == TILED and tiled.model.deberta.encoder.tiled_above == 4
    assert torch.equal(tiled.model(input_ids=torch.tensor([read.ids])).logits, before)
    with pytest.raises(IndexError):
        fill.looked_at(tiled.model, [10**6], slice(0, 1))  # no such piece: it goes back all the same
    assert tiled.model.config._attn_implementation == TILED
    assert not any(module._forward_hooks for module in tiled.model.modules())


def test_a_kernel_without_weights_is_an_error(model):
    class Fused(torch.nn.Module):
        config = load(str(model)).model.config
        device = torch.device("cpu")
        set_attn_implementation = modules = lambda self, *_: []
        forward = __call__ = lambda self, input_ids=None, **_: None

    with pytest.raises(fill.FillError, match="gives no weights: load it without a fused kernel"):
        fill.looked_at(Fused(), [1, 2], slice(1, 2))


# ---- what cannot be filled, or not whole -------------------------------------------------------------------------


def test_a_text_that_is_too_long_is_cut_around_the_mask_and_that_is_said(home):
    filler = fill.start({"run": "recalls", "text": TEXT})
    front = "먼 산에 눈이 온다. " * 40
    found = filler(front + TEXT)
    assert "서안도" in [guess.text for guess in found.guesses[:3]]
    read = {found.look.text[word.start:word.end]: word.share for word in found.look.words}
    assert read["서안도는"] and read["[MASK]의"] and read["실렸다."] and not found.look.words[0].share
    cut = next(note for note in found.notes if note.kind == "cut")
    assert "The model reads 64 tokens: " in cut.english and cut.english.endswith("0 at its end were cut off.")
    assert "글의 앞에서" in cut.korean and "⋯ " in found.look._repr_html_()
    assert len(found.look.rows(99)) < 40 and sum(word.share is None for word in found.look.words) > 100
    both = next(note.english for note in filler(front + TEXT + front).notes)
    assert " 0 at" not in both
    assert not filler(TEXT).notes


def test_what_cannot_be_filled_is_one_sentence(home, model, tmp_path):
    start = lambda **given: fill.start({"run": "recalls", "text": TEXT} | given)
    for given, sentence in [
        ({"text": "소금을 낸다."}, r"the text has no \[MASK\]: write one where a name is missing"),
        ({"text": "[MASK]은 [MASK]다"}, r"has 2 masks, at the characters 1, 9: leave one, .* write names in place of the others"),
        ({"text": "  "}, "the text is empty"),
        ({"run": "recall"}, "no run 'recall'"),
        ({"head": 1}, None),
        ({"layer": 9}, None),
    ]:
        if sentence:
            with pytest.raises((ParameterError, RunError), match=sentence):
                start(**given)
    with pytest.raises(ParameterError, match="head=1 of which layer"):
        start(head=1)()
    with pytest.raises(ParameterError, match="layer=9: this model has 2 layers; choose one from 1 to 2"):
        start(layer=9)()
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)).save_pretrained(tmp_path)
    load(str(model)).tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a GPT2LMHeadModel, which fills no masks"):
        start(run=str(tmp_path))


def test_names_are_found_as_names_and_letters_that_no_font_has_are_drawn_as_numbers():
    text = "대한민국의 한국은행 총재가 한국은행에서 말했다. [MASK]"
    assert [text[a:b + 1] for a, b in fill.earlier(text, "한국은행", text.index("["))] == ["한국은행 ", "한국은행에"]
    look = fill.Look(text, (27, 33), "가", (), (), 1.0, fill.Choice(1, None, 4, "지정한 대로"), 9)
    filled = fill.Filled((Guess("$🎉", math.log(0.5)),), look, (), ())
    (label,) = filled.bars().axes[0].get_yticklabels()
    assert label.get_text() == "1. \\$U+1F389"


# ---- the page ----------------------------------------------------------------------------------------------------


def test_the_parameters_cell_says_what_the_dataclass_says():
    cells = nbformat.read(ROOT / "nbs" / "fill.ipynb", as_version=4).cells
    source, = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert source == params.cell_source({"": fill.FillParams}), "paste the output of korlab.experiment.params.cell_source"


def test_the_page_shows_bars_and_looks_in_both_reports(home, tmp_path):
    done = execute("fill", tmp_path / "out.ipynb", text=TEXT, top=5)  # of the latest run
    assert done.error is None, done.error
    made = render(tmp_path / "out.ipynb", tmp_path / "report")
    text, page = (tmp_path / "report" / "out.md").read_text("utf-8"), made.html.read_text("utf-8")
    assert "<ins>서안도</ins>는" in text and "<kbd>서안도</kbd>의" in text and "| 1 | 서안도 |" in text
    assert 'class="kl-mention">서안도<' in page and ".kl-look .kl-word" in page and "앞선 언급을 가장 많이 보는 층" in page
    assert "빈칸에 들어갈 말" in page and len([*(tmp_path / "report").rglob("*.png")]) == 1
    assert text.startswith("# 빈칸 채우기 · recalls · 64토큰\n")


# ---- commands ----------------------------------------------------------------------------------------------------


def test_a_set_is_built_and_what_was_removed_is_told(pages, tmp_path):
    said, remarks = korlab("build", pages, "--out", tmp_path / "set", "--recipe", "v1", "--max-entity-freq", 3)
    facts = read_json(tmp_path / "set" / "metadata.json")
    assert said.startswith("v1 1.0, rule compound: ") and "too short" in said and "same text again" in said and "[MASK]" in said
    assert "broken JSON 1" in remarks
    found = quality(tmp_path / "set")
    removed = {(row["what"], row["because"]): row["removed"] for row in found.removed}
    (source,) = facts["removed"].values()
    assert removed[("documents", "too short")] == source["documents"]["too short"] == 1
    assert removed[("samples", "name is frequent")] == facts["removed_samples"]["name is frequent"] > 0
    lost = sum(facts["removed_samples"].values())
    assert source["samples"] - lost == facts["num_samples"] == sum(len(found.characters[name]) for name in ("train", "dev", "test"))
    assert sum(row["samples"] for row in found.distances) == facts["num_samples"]
    assert max(row["samples"] for row in found.names) == 3
    again, _ = korlab("quality", tmp_path / "set")
    assert again.splitlines() == said.splitlines()[:-1]
    (tmp_path / "set" / "test.parquet").write_bytes(b"PAR1")
    assert "is damaged (test.parquet is not the file that was saved)" in korlab("quality", tmp_path / "set", code=1)[1]
    assert "'v3': choose one of plain, v1, v2, pronouns" in korlab("build", pages, "--out", tmp_path / "x", "--recipe", "v3", code=1)[1]


def test_names_stream_the_same_from_one_process_and_from_two(pages):
    one, told = korlab("mentions", pages)
    assert korlab("mentions", pages, "--workers", 2)[0] == one
    rows, texts = [json.loads(line) for line in one.splitlines()], [json.loads(line)["본문"] for line in pages.read_text("utf-8").splitlines()[:-1]]
    assert [row["number"] for row in rows] == [*range(1, 43)]
    for row, text in zip(rows, texts, strict=True):
        assert all(text[one["start"]:one["end"]] == one["text"] for one in row["mentions"])
    assert f"42 texts, {sum(map(len, texts)):,} characters, " in told and "a second, with 1 at work" in told
    assert "broken JSON 1" in told and "broken JSON" in korlab("mentions", pages, "--policy", "strict", code=1)[1]


@pytest.mark.parametrize("mode", ["keep", "rebucket"])
def test_an_extended_checkpoint_is_what_anybody_loads(model, tmp_path, mode):
    said, _ = korlab("extend", model, 128, "--mode", mode, "--out", tmp_path / "long")
    assert "64 to 128 tokens: " in said and "128 tokens: largest difference of a logit 0.0e+00" in said
    assert ("it came from, 64 tokens: 0.0e+00" in said) == (mode == "keep")
    loaded, ids = load(str(tmp_path / "long")), torch.arange(10, 60)[None]
    assert loaded.tokenizer.model_max_length == 128
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path / "long").eval()
    same = torch.equal(plain(input_ids=ids).logits, load(str(model)).model.eval()(input_ids=ids).logits)
    assert same == (mode == "keep")
    assert "is there already: name a new folder" in korlab("extend", model, 128, "--out", tmp_path / "long", code=1)[1]
    assert "64 tokens, 32 are fewer" in korlab("extend", model, 32, "--out", tmp_path / "less", code=1)[1]
    assert not (tmp_path / "less").exists()


def test_a_text_is_filled_in_a_terminal(home, model):
    said, _ = korlab("fill", TEXT, "--run", "recalls", "--top", 3)
    lines = said.splitlines()
    assert len(lines) == 6 and "a piece" in lines[0] and "서안도  1 earlier mention" in lines[1]
    assert "looks at: 서안도는 " in lines[4] and "%*, " in lines[4]
    assert "(which looks at the earlier mentions most), the mean over 4 heads" in lines[5]
    said, remarks = korlab("fill", "먼 산에 눈이 온다. " * 40 + TEXT, "--run", model, "--layer", 1, "--head", 2)
    assert "in layer 1 (as asked), head 2" in said and "korlab: The model reads 64 tokens: " in remarks
    assert "korlab: the text has no [MASK]" in korlab("fill", "소금", "--run", "recalls", code=1)[1]


def test_without_texts_the_published_source_is_frozen(pages, tmp_path, monkeypatch):
    asked = []

    def stored(source, split=None, config=None, revision=None):
        asked.append((source, split, config))
        return Dataset.from_list([{"title": "제목", "text": json.loads(line)["본문"]} for line in pages.read_text("utf-8").splitlines()[:3]])

    monkeypatch.setattr(rows, "hub_dataset", stored)
    said, _ = korlab("freeze", "--out", tmp_path / "real.jsonl", "--limit", 2)
    assert asked == [("wikimedia/wikipedia", "train", "20231101.ko")] and said.startswith("2 items, sha256 ")


def test_every_checkpoint_answers_the_same_frozen_items(home, model, pages, tmp_path):
    said, _ = korlab("freeze", pages, "--out", tmp_path / "real.jsonl", "--limit", 6)
    items = read_jsonl(tmp_path / "real.jsonl")
    assert said.startswith("6 items, sha256 ") and len(items) == 6
    shutil.copytree(model, tmp_path / "run" / "checkpoint-2")
    torch.manual_seed(0)
    loaded = load(str(model))
    mini(loaded.tokenizer, "roberta", 64).save_pretrained(tmp_path / "run" / "checkpoint-1")
    loaded.tokenizer.save_pretrained(tmp_path / "run" / "checkpoint-1")
    words = ("rescore", tmp_path / "run", "--items", tmp_path / "real.jsonl", "--out", tmp_path / "scores.json", "--lambada", "none",
             "--mode", "compat")
    said, _ = korlab(*words)
    found = read_json(tmp_path / "scores.json")
    assert [(one["checkpoint"], one["seq_len"], one["coref_samples"]) for one in found["results"]] == [("checkpoint-1", 64, 6), ("checkpoint-2", 64, 6)]
    assert found["settings"]["mode"] == "compat" and "compat, 6 items" in said and "best by real5: " in said
    assert (tmp_path / "scores.csv").read_text("utf-8").count("\n") == 3
    when = [one["evaluated_at"] for one in found["results"]]
    korlab(*words)
    assert [one["evaluated_at"] for one in read_json(tmp_path / "scores.json")["results"]] == when
    shutil.rmtree(tmp_path / "run" / "checkpoint-1")
    (tmp_path / "run" / "checkpoint-3").mkdir()
    (tmp_path / "run" / "checkpoint-3" / "config.json").write_text("{}")
    assert "1 of 2 checkpoints could not be scored" in korlab(*words, code=1)[1]
