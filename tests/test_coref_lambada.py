"""Frozen items, last nouns, rescoring and runs side by side: whole ways through files, the hub's refusals, and what a kill leaves."""

import csv
import json
import random
import re
import unicodedata
from collections import Counter
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from conftest import ROOT, Killed
from huggingface_hub.errors import GatedRepoError
from scipy.stats import binomtest

from korlab.core.accounts import DataError
from korlab.core.files import read_json, read_jsonl, write_json, write_jsonl
from korlab.core.text import kiwi, normalize
from korlab.coref.comparison import COMPARISON, change_rows, gallery
from korlab.coref.corpora import Source
from korlab.coref.frozen import PUBLISHED, freeze, load_frozen
from korlab.coref.lambada import HUB, load_lambada, mentioned, passages, placed
from korlab.coref.models import train_tokenizer
from korlab.coref.rescoring import RescoringError, rescore
from korlab.coref.windows import windows
from korlab.metrics.measures import Measure

# ---- frozen items ------------------------------------------------------------------------------------------------

CITIES = "서울 부산 대구 인천 광주 대전 울산 수원 청주 전주 포항 창원 제주 강릉 춘천 원주 목포 여수 순천 안동".split()
ARTICLE = (
    "{a}에서 새 도서관이 문을 열었다. 도서관은 오래된 공장을 고쳐 지었고, {a} 시민이라면 모두 쓸 수 있다. 첫날부터 어린이와 노인이 "
    "길게 줄을 섰으며, {b}에서 온 손님도 있었다. 관장은 밤에도 불을 켜 두겠다고 말했다. {b}의 도서관은 아직 낮에만 연다. "
    "번호는 {n}이다."
)


def articles(number, seed=0, prefix=""):
    chance = random.Random(seed)
    return [prefix + ARTICLE.format(a=a, b=b, n=i) for i in range(number) for a, b in [chance.sample(CITIES, 2)]]


@pytest.fixture
def texts(tmp_path):
    """Two sources: JSON lines with a broken one, a pronoun, a short text and a text twice; and CSV in decomposed Hangul."""
    rows = [json.dumps({"본문": text}, ensure_ascii=False) for text in articles(30)]
    rows += [rows[0], '{"본문": ', json.dumps({"본문": "짧은 서울 소식은 서울 소식이다."}, ensure_ascii=False)]
    rows += [json.dumps({"본문": articles(1, 9)[0] + " 그는 웃었다."}, ensure_ascii=False)]
    (tmp_path / "news.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    loose = [unicodedata.normalize("NFD", text) for text in articles(20, 5, "늦은 소식. ")]
    (tmp_path / "wiki.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in loose), encoding="utf-8")
    return tmp_path / "news.jsonl", tmp_path / "wiki.csv"


def test_frozen_items_follow_the_published_rule(texts, tmp_path):
    samples, _ = load_frozen(freeze(tmp_path / "real.jsonl", list(texts), limit=1000))
    assert max(Counter(one.text for one in samples).values()) == 3
    assert len({(one.text, one.target) for one in samples}) == len(samples)
    for one in samples:
        tokens = kiwi().tokenize(one.text)
        at = [t.start for t in tokens if t.tag in ("NNG", "NNP") and one.text[t.start : t.start + t.len] == one.target]
        assert len(one.text) >= 100 and len(one.target) >= 2 and "NP" not in {t.tag for t in tokens}
        assert (one.antecedent, one.start) == tuple(at[:2]) and one.text == normalize(one.text)
        assert one.target in one.entities


def test_every_text_that_gives_no_item_is_counted(texts, tmp_path):
    freeze(tmp_path / "real.jsonl", texts[0], limit=1000)
    about = read_json(tmp_path / "real.frozen.json")
    source = about["sources"][0]
    assert source["left_out"] == {"same text again": 1, "too short": 1, "has a pronoun": 1}
    assert source["read"] == 33 and about["reports"][0]["left_out"] == {"broken JSON": 1}
    assert about["n"] == source["n"] == len(read_jsonl(tmp_path / "real.jsonl")) == 90


@pytest.mark.parametrize("limit", [7, 10, 60])
def test_limit_is_what_it_says_and_shared_evenly(texts, tmp_path, limit):
    samples, _ = load_frozen(freeze(tmp_path / "real.jsonl", list(texts), limit=limit))
    about = read_json(tmp_path / "real.frozen.json")
    assert len(samples) == about["n"] == limit
    assert [one["n"] for one in about["sources"]] == [limit - limit // 2, limit // 2]
    assert Counter(one.source for one in samples).most_common()[0][1] == limit - limit // 2


def test_a_seed_draws_the_same_bytes_and_another_seed_others(texts, tmp_path):
    made = [freeze(tmp_path / f"{i}.jsonl", list(texts), limit=20, seed=seed) for i, seed in enumerate((999, 999, 1))]
    assert made[0].read_bytes() == made[1].read_bytes() != made[2].read_bytes()
    record = read_json(tmp_path / "0.frozen.json")
    assert record["sha256"] == sha256(made[0].read_bytes()).hexdigest() == load_frozen(made[0])[1]
    assert record["seed"] == 999 and "second occurrence" in record["rule"]


@pytest.mark.parametrize("edit", [
    lambda text: text.replace("도서관", "박물관", 1), lambda text: text.split("\n", 1)[1], lambda text: text + "\n", lambda text: "",
])
def test_an_edited_file_is_refused(texts, tmp_path, edit):
    made = freeze(tmp_path / "real.jsonl", texts[0], limit=9)
    made.write_text(edit(made.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(DataError, match=r"real\.jsonl is not what was frozen \(sha256 \w+, real\.frozen\.json says"):
        load_frozen(made)


def test_a_frozen_file_is_never_written_again_and_stands_only_with_its_record(texts, tmp_path):
    made = freeze(tmp_path / "real.jsonl", texts[0], limit=9)
    before = made.read_bytes()
    with pytest.raises(DataError, match="stays as it is"):
        freeze(made, texts[1])
    assert made.read_bytes() == before
    (tmp_path / "real.frozen.json").unlink()
    with pytest.raises(DataError, match=r"real\.frozen\.json does not exist"):
        load_frozen(made)


def test_a_kill_between_record_and_items_leaves_no_set(texts, tmp_path, monkeypatch):
    def killed(self, target):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Path, "rename", killed)
        freeze(tmp_path / "real.jsonl", texts[0], limit=9)
    with pytest.raises(DataError, match=r"real\.jsonl does not exist"):
        load_frozen(tmp_path / "real.jsonl")
    assert len(load_frozen(freeze(tmp_path / "real.jsonl", texts[0], limit=9))[0]) == 9
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_published_sources_are_asked_as_published_and_titles_give_nothing(tmp_path, monkeypatch):
    asked = []

    def hub(name, config, split=None, revision=None):
        asked.append((name, config, split))
        rows = [{"title": f"{i}번째 소식"} for i in range(5)] if name == "klue/klue" else [{"text": one, "id": 1} for one in articles(3)]
        return datasets.Dataset.from_list(rows, split=split)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(DataError, match=r"klue/klue gives no item \(5 texts read; too short 5\)"):
        freeze(tmp_path / "real.jsonl", PUBLISHED, limit=4)
    assert asked == [("wikimedia/wikipedia", "20231101.ko", "train"), ("klue/klue", "ynat", "validation")]
    assert not list(tmp_path.iterdir())
    assert len(load_frozen(freeze(tmp_path / "real.jsonl", PUBLISHED[:1], limit=4))[0]) == 4


def test_a_source_given_twice_gives_its_items_once(texts, tmp_path):
    with pytest.raises(DataError, match="gives no item"):
        freeze(tmp_path / "real.jsonl", [Source(texts[1]), Source(texts[1])], limit=1000)


def test_frozen_items_can_be_asked_of_any_model(texts, tmp_path):
    samples, _ = load_frozen(freeze(tmp_path / "real.jsonl", list(texts), limit=40))
    asked, left_out = windows(samples, train_tokenizer({one.text for one in samples}), 256)
    assert len(asked) == 40 and not left_out


# ---- last nouns --------------------------------------------------------------------------------------------------

SENTENCE = "풋사과는 시다. 그래서 사과를 두고 왔다. 사과나무 아래에서 아이가 찾은 것은 사과였다"


@pytest.mark.parametrize("placement, text, target, start, how", [
    ("strict", SENTENCE + ".", "사과", SENTENCE.rindex("사과"), "last word"),
    ("published", SENTENCE + ".", "사과", 1, "first occurrence"),
    ("strict", "사과를 땄다. 바구니에 담은 것은 사과", "사과", 19, "at the end"),
    ("published", "사과를 땄다. 바구니에 담은 것은 사과", "사과", 19, "at the end"),
    ("published", "사과를 땄다. 바구니에 담은 것은 풋사과", "사과", 20, "at the end"),
    ("strict", "사과를 땄다. 바구니에 담은 것은 풋사과", "사과", 0, "last word"),
    ("strict", "사과나무 아래에서 풋사과를 베어 문", "사과", 20, "appended"),
    ("published", "사과나무 아래에서 풋사과를 베어 문", "사과", 0, "first occurrence"),
    ("strict", "바구니에 담은 것은", "사과", 11, "appended"),
    ("published", "바구니에 담은 것은 ", "사과", 11, "appended"),
])
def test_where_the_noun_is_hidden(placement, text, target, start, how):
    found = placed(text, target, placement)
    assert (found.start, found.how) == (start, how)
    assert found.text[start : start + len(target)] == target
    assert found.text.startswith(text.rstrip())


def refusal(outer: bool) -> Exception:
    inner = GatedRepoError.__new__(GatedRepoError)
    Exception.__init__(inner, "403 Client Error. Access is restricted.")
    if not outer:
        return inner
    made = datasets.exceptions.DatasetNotFoundError(f"Dataset {HUB!r} is a gated dataset on the Hub. You must be authenticated.")
    made.__cause__ = inner
    return made


@pytest.mark.parametrize("outer", [False, True])
def test_a_gated_set_says_what_to_do(monkeypatch, outer):
    asked = []

    def hub(name, config, split=None, revision=None):
        asked.append(split)
        raise refusal(outer)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(DataError, match=f"accept the terms on https://huggingface.co/datasets/{HUB}, and set HF_TOKEN in the environment"):
        load_lambada(HUB)
    assert asked == ["validation"], "what is gated is gated in every split"


def test_a_hub_that_cannot_be_reached_is_not_called_gated(monkeypatch):
    asked = []

    def hub(name, config, split=None, revision=None):
        asked.append(split)
        raise ConnectionError("Couldn't reach the Hugging Face Hub")

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(DataError, match="the hub did not give it") as caught:
        load_lambada(HUB)
    assert "terms" not in str(caught.value) and asked == ["validation"]


@pytest.mark.parametrize("name, there, asked", [
    (HUB, "validation", ["validation"]), (HUB, "dev", ["validation", "dev"]), (HUB, "test", ["validation", "dev", "test"]),
    (f"{HUB}:test", "test", ["test"]),
])
def test_the_first_split_there_is_is_taken(monkeypatch, name, there, asked):
    tried = []

    def hub(name, config, split=None, revision=None):
        tried.append(split)
        if split != there:
            raise ValueError(f'Unknown split "{split}". Should be one of [{there!r}].')
        rows = [{"context": one.text, "answer": one.target, "n": i} for i, one in enumerate(passages())]
        return datasets.Dataset.from_list(rows, split=split)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    found = load_lambada(name, limit=30)
    assert tried == asked and found.report.files[0].notes[0] == f"split {there}"
    expected = datasets.Dataset.from_list([{"text": one.text} for one in passages()]).shuffle(seed=42)["text"][:30]
    assert [one.text for one in found.samples] == list(expected)


def test_no_usual_split_is_an_error_that_says_how_to_name_one(monkeypatch):
    def hub(name, config, split=None, revision=None):
        raise ValueError("Bad split")

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(DataError, match="has none of the splits validation, dev, test: name one, as in"):
        load_lambada(HUB)


def test_the_same_passage_twice_is_one_question():
    rows = [{"text": one.text, "target": one.target} for one in passages()[:3]]
    found = load_lambada([*rows, rows[0], rows[0] | {"target": "날"}])
    assert len(found.samples) == 4 == len({(one.document, one.start) for one in found.samples})
    assert found.report.notes == ["1 passage with the same noun was there before and is left out"]


def test_a_file_of_ones_own_is_read_with_every_loss_counted(tmp_path):
    file = tmp_path / "own.csv"
    rows = [("비가 왔다. 나는 우산을 폈다.", "우산"), ("비가 왔다.", ""), (unicodedata.normalize("NFD", "눈이 왔다. 나는 장갑을 꼈다."), "장갑"), ("", "눈")]
    with open(file, "w", encoding="cp949", errors="strict") as out:
        table = csv.writer(out)
        table.writerows([("본문", "정답"), *[(normalize(text), target) for text, target in rows]])
    found = load_lambada(file)
    assert {(one.target, one.start) for one in found.samples} == {("우산", 10), ("장갑", 10)}
    assert found.report.left_out == {"empty target": 1, "empty text": 1} and found.places == {"last word": 2}
    with pytest.raises(DataError, match="policy='strict'"):
        load_lambada(file, policy="strict")


def test_the_embedded_passages_are_whole():
    every = read_jsonl(ROOT / "korlab/coref/data/lambada.jsonl")
    assert len(every) == 80 == len({row["target"] for row in every}) and sum(row["mentioned"] for row in every) == 40
    for row in every:
        parts = re.findall(r"[^.?!]+[.?!]", row["text"])
        assert 2 <= len(parts) <= 4 and "".join(parts) == row["text"] == normalize(row["text"])
        assert row["target"] in parts[-1]
        assert (row["target"] in "".join(parts[:-1])) == row["mentioned"]
    pieces = Counter(text[i : i + 25] for text in {row["text"] for row in every} for i in range(len(text) - 24))
    assert max(pieces.values()) == 1, "no two passages share a sentence"


def test_last_nouns_are_asked_as_names_are():
    found = load_lambada()
    asked, left_out = windows(found.samples, tokenizer := train_tokenizer({one.text for one in found.samples}), 256)
    assert len(asked) == 80 and not left_out
    said = {one.text: one.mentioned for one in passages()}
    for one in asked:
        sample = one.sample
        assert mentioned(sample) == said[sample.text] and (mentioned(sample) or sample.antecedent == 0)
        assert sample.target in sample.entities and sample.source == "embedded"
        assert one.ids[one.place : one.place + len(one.target)] == [tokenizer.mask_token_id] * len(one.target)
        assert "".join(tokenizer.decode(one.target).split()) == sample.target


# ---- rescoring ---------------------------------------------------------------------------------------------------

RATES = {396: (0.6292, 0.7917, 0.3583), 1230: (0.6512, 0.8137, 0.35), 1980: (0.6675, 0.8142, 0.37), 2050: (0.6578, 0.82, 0.3683)}


def leave(folder, step, state=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    write_json(path / "config.json", {"model_type": "deberta-v2"})
    (path / "model.safetensors").write_bytes(str(step).encode())
    if state:
        write_json(path / "trainer_state.json", {"global_step": step, "epoch": step / 396})
    return path


@pytest.fixture
def archive(tmp_path):
    for step in RATES:
        leave(tmp_path / "runs" / "combined", step, state=step != 1230)
    (tmp_path / "runs" / "combined" / "checkpoint-9").mkdir()
    return tmp_path / "runs"


class Scorer:
    """The published rates; `stops` is what happens to a checkpoint instead."""

    def __init__(self, **stops):
        self.stops, self.asked = stops, []

    def __call__(self, checkpoint):
        self.asked.append(checkpoint.name)
        if checkpoint.name.replace("-", "_") in self.stops:
            raise self.stops[checkpoint.name.replace("-", "_")]
        real1, real5, lambada = RATES[int(checkpoint.name.split("-")[1])]
        return {"real1": real1, "real5": real5, "mrr": 0.7, "lambada1": lambada, "n": 1600, "seq_len": 1536, "real_time": 3.5}


def test_every_checkpoint_is_scored_and_the_best_by_each_measure_told(archive, tmp_path):
    rescore(archive, tmp_path / "all.json", Scorer(), "sha")
    found, rows = read_json(tmp_path / "all.json"), list(csv.DictReader(open(tmp_path / "all.csv", encoding="utf-8")))
    assert list(rows[0]) == ["checkpoint", "seq_len", "lambada_top1", "real1", "real5", "score", "epoch"]
    assert [row["checkpoint"] for row in rows] == [f"checkpoint-{step}" for step in sorted(RATES)]
    best = {key: found[f"best_by_{key}"].rpartition("-")[2] for key in ("score", "real1", "real5")}
    assert best == {"score": "1980", "real1": "1980", "real5": "2050"}
    first, second = found["results"][:2]
    assert (first["global_step"], first["epoch"]) == (396, 1.0)
    assert (second["global_step"], second["epoch"]) == (1230, None), "without the Trainer's state the name tells the update"
    for row in found["results"]:
        assert row["score"] == pytest.approx(0.4 * row["real1"] + 0.3 * row["real5"] + 0.3 * row["lambada_top1"])
        assert row["coref_samples"] == 1600 and row["more"] == {"real_time": 3.5} and row["evaluated_at"]
    assert str(tmp_path) not in (tmp_path / "all.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("kill", [KeyboardInterrupt(), SystemExit(1)])
def test_a_kill_in_the_middle_costs_one_checkpoint(archive, tmp_path, kill):
    first, second = Scorer(checkpoint_1980=kill), Scorer()
    with pytest.raises(type(kill)):
        rescore(archive, tmp_path / "all.json", first, "sha", {"beam": 10})
    assert [one["checkpoint"] for one in read_json(tmp_path / "all.json")["results"]] == ["checkpoint-396", "checkpoint-1230"]
    rescore(archive, tmp_path / "all.json", second, "sha", {"beam": 10})
    assert second.asked == ["checkpoint-1980", "checkpoint-2050"]
    whole = Scorer()
    rescore(archive, tmp_path / "fresh.json", whole, "sha", {"beam": 10})
    timed = ("evaluated_at", "total_time")
    kept = [[{k: v for k, v in one.items() if k not in timed} for one in read_json(tmp_path / name)["results"]] for name in ("all.json", "fresh.json")]
    assert kept[0] == kept[1] and len(kept[0]) == 4


def test_one_that_fails_is_named_and_the_rest_go_on(archive, tmp_path):
    broken = Scorer(checkpoint_396=RuntimeError("size mismatch for rel_embeddings:\ncopying a param"), checkpoint_1980=DataError("no mask token"))
    with pytest.raises(RescoringError, match=r"2 of 4 checkpoints could not be scored: \S+checkpoint-396 \(RuntimeError: size mismatch"):
        rescore(archive, tmp_path / "all.json", broken, "sha")
    found = read_json(tmp_path / "all.json")
    assert broken.asked == [f"checkpoint-{step}" for step in sorted(RATES)]
    assert {path.rpartition("/")[2]: why for path, why in found["failed"].items()} == {
        "checkpoint-396": "RuntimeError: size mismatch for rel_embeddings: copying a param", "checkpoint-1980": "no mask token"}
    again = Scorer()
    rescore(archive, tmp_path / "all.json", again, "sha")
    assert again.asked == ["checkpoint-396", "checkpoint-1980"] and not read_json(tmp_path / "all.json")["failed"]


def test_other_items_settings_or_weights_are_scored_anew_and_never_ranked_together(archive, tmp_path):
    out, one = tmp_path / "all.json", archive / "combined" / "checkpoint-1980"
    rescore(archive, out, Scorer(), "sha")
    for items, settings in (("other", {}), ("sha", {"beam": 5})):
        scorer = Scorer()
        found = rescore(one, out, scorer, items, settings)
        assert scorer.asked == ["checkpoint-1980"] and len(found.alike()) == 1
        assert len(list(csv.DictReader(open(tmp_path / "all.csv", encoding="utf-8")))) == 1
    (one / "model.safetensors").write_bytes(b"trained on")
    scorer = Scorer()
    found = rescore(archive, out, scorer, "sha")
    assert scorer.asked == ["checkpoint-1980"] and len(found.alike()) == 4 and len(found.results) == 6


def test_two_trainings_with_the_same_steps_are_two(archive, tmp_path):
    leave(archive / "other", 396)
    found = rescore(archive, tmp_path / "all.json", Scorer(), "sha")
    assert len(found.alike()) == 5 and sum(one.checkpoint == "checkpoint-396" for one in found.alike()) == 2


def test_a_file_that_is_none_of_results_stays_as_it_is(archive, tmp_path):
    for text, why in (("{", "is damaged"), ('{"results": [{"checkpoint": "x"}]}', "is no file of results")):
        (tmp_path / "all.json").write_text(text)
        with pytest.raises(Exception, match=why):
            rescore(archive, tmp_path / "all.json", Scorer(), "sha")
        assert (tmp_path / "all.json").read_text() == text


# ---- side by side ------------------------------------------------------------------------------------------------

MEASURES = (Measure("real@1", "Real@1"), Measure("real@5", "Real@5"), Measure("mrr", "MRR"))


class Folder(SimpleNamespace):
    """What a comparison reads of a run."""

    def path(self, *parts):
        return self.folder.joinpath(*parts)

    def has(self, name):
        return self.path(f"{name}.json").exists()

    def read(self, name):
        return read_json(self.path(f"{name}.json"))


def entry(folder, name, ranks, data="a", order=1):
    run, ids = Folder(folder=folder / name), [f"q{i}" for i in range(len(ranks))][::order]
    ranks = ranks[::order]
    values = {"real@1": [float(r == 1) for r in ranks], "real@5": [float(0 < r <= 5) for r in ranks], "mrr": [1 / r if r else 0.0 for r in ranks]}
    interval = {key: {"mean": sum(v) / len(v), "low": 0.0, "high": 1.0, "n": len(v), "level": 0.95} for key, v in values.items()}
    scored = {"system": "m", "split": "test", "mode": "strict", "n": len(ranks), "measures": interval, "signature": "s", "baseline": False}
    write_json(run.path("metrics.json"), {"scores": [scored], "splits": {"test": {}}})
    write_json(run.path("data.json"), {"sha256": {"test": data}})
    write_json(run.path("items", "test.json"), {"ids": ids, "scores": {"strict": values}})
    return SimpleNamespace(run=run, label=name, name=name)


def comparison(*done):
    study = SimpleNamespace(measures=MEASURES, measure=lambda name: next(m for m in MEASURES if name in (None, m.name)))
    return SimpleNamespace(done=done, baseline=done[0], study=study, asked=SimpleNamespace(split="test", mode=None, measure=None))


def test_questions_are_paired_by_id_and_tested_as_coins(tmp_path):
    chance = random.Random(3)
    ours, theirs = ([chance.choice([0, 1, 1, 3]) for _ in range(200)] for _ in range(2))
    found = comparison(entry(tmp_path, "base", theirs), entry(tmp_path, "late", ours, order=-1))
    row = next(row for row in change_rows(found) if row["measure"] == "Real@1")
    only_base = sum(b == 1 != a for a, b in zip(ours, theirs))
    only_late = sum(a == 1 != b for a, b in zip(ours, theirs))
    assert (row["only baseline"], row["only this"]) == (only_base, only_late)
    assert row["both"] + row["neither"] + only_base + only_late == row["n"] == 200
    assert float(row["p"]) == pytest.approx(binomtest(only_base, only_base + only_late).pvalue, abs=1e-4)
    assert [r["measure"] for r in change_rows(found)] == ["Real@1", "Real@5"], "the reciprocal rank is no right or wrong"


def test_reciprocal_ranks_are_no_rate_even_where_all_are_whole_and_nobody_did_well(tmp_path):
    found = comparison(entry(tmp_path, "base", [0, 0, 0]), entry(tmp_path, "late", [0, 0, 0]))
    assert [row["measure"] for row in change_rows(found)] == ["Real@1", "Real@5"]
    assert {row["p"] for row in change_rows(found)} == {"1.0000"}
    for one in found.done:
        write_jsonl(one.run.path("recalls", "test.jsonl"), [
            {"id": f"q{i}", "text": "[MASK]", "target": "서울", "distance": 9, "tokens": None, "pieces": None, "seen": False,
             "guesses": {}, "rank": {}, "reason": "name has unknown letters"} for i in range(3)])
    assert str(gallery(found)).count("아무도 맞히지 못했다. 답: 서울, 처음 나온 곳은 9자 앞") == 2
    assert "name has unknown letters" in str(gallery(found)) and "잘했다" not in str(gallery(found))


def test_a_run_on_other_questions_stays_out_and_a_run_without_details_does_not_break_the_page(tmp_path):
    found = comparison(entry(tmp_path, "base", [1, 0, 1]), entry(tmp_path, "other", [1, 1, 1], data="b"))
    assert change_rows(found) == [] and "다른 실행이 없다" in str(gallery(found))
    bare = comparison(entry(tmp_path, "bare", [1, 0, 1]), entry(tmp_path, "late", [1, 1, 1]))
    assert [len(list(page.show(bare))) for page in COMPARISON.pages] == [1, 1, 1]


def test_the_prose_has_a_section_for_every_page():
    text = (ROOT / "nbs/coref/about.ko.md").read_text(encoding="utf-8")
    titles = re.findall(r"^# (compare\.\w+):", text, re.MULTILINE)
    shared = ["compare.scores", "compare.costs", "compare.parameters", "compare.others"]
    assert titles == shared + [page.name for page in COMPARISON.pages]
