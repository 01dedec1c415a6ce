"""Names searched, ranked and judged: against brute force, independent statistics, and models rigged to know the answer."""

import math
from collections import Counter
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import binomtest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from korlab.core.errors import LabError
from korlab.coref.articles import embedded
from korlab.coref.filling import (
    Reader,
    candidates_of,
    fill,
    fill_both,
    fill_compat,
    rank,
    text_of,
)
from korlab.coref.models import mini, train_tokenizer
from korlab.coref.parameters import MODES
from korlab.coref.recall import (
    DEV,
    MEASURES,
    Answered,
    Guess,
    answered,
    baselines,
    distance_bin,
    has_noun,
    rank_of,
    recall_intervals,
    recall_scores,
    right,
    slices,
    tells_ending,
)
from korlab.coref.samples import Sample
from korlab.coref.windows import Writer, questions, spelled, window, windows
from korlab.metrics.recall import composite, mcnemar, rate, reciprocal, within

TEXT = "어제 서울에 삼성전자가 왔다. 현대차도 왔다. 오늘도 삼성전자는 바쁘다."
SAMPLE = Sample("d", TEXT, "삼성전자", TEXT.index("삼성전자"), TEXT.rindex("삼성전자"), entities=("서울", "삼성전자", "현대차"))


def said(*texts: str, sample: Sample = SAMPLE) -> Answered:
    return Answered(sample, tuple(Guess(text, -float(i)) for i, text in enumerate(texts)))


# ---- judging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guesses, strict, compat", [
    (("삼성전자",), 1, 1),
    (("삼성",), 0, 1),  # a part of the name
    (("성",), 0, 1),
    (("삼",), 0, 0),  # a part, too, but the analyser takes it for a number, and the filter drops it
    (("삼성전자서비스",), 0, 1),  # the name is a part of it
    (("현대차", "삼성"), 0, 2),
    (("는", "에서", "삼성전자"), 3, 1),  # particles are no nouns: the filter ranks anew
    (("는", "현대차", "에서", "서울", "이", "수", "삼성전자"), 7, 3),
    (("현대차",), 0, 0),
    ((), 0, 0),
    ((" 삼성전자",), 0, 1),  # blanks are stripped where pieces become text, not here
])
def test_the_four_rules_judge_as_written(guesses, strict, compat):
    one = said(*guesses)
    assert [rank_of(mode, one) for mode in MODES] == [strict, strict, strict, compat]


def test_a_constant_syllable_is_right_by_the_published_rule_only():
    names = ("삼성전자", "장성", "부산", "한국은행", "성남시")
    several = [said("삼", "성", sample=replace(SAMPLE, target=name)) for name in names]
    assert (has_noun("삼"), has_noun("성")) == (False, True)
    assert [rank_of("compat", one) for one in several] == [1, 1, 0, 0, 1]
    assert [rank_of("strict", one) for one in several] == [0] * 5
    assert right("compat", "삼", "삼성전자") and not right("strict", "삼", "삼성전자")
    assert right("strict", "삼성", "삼성") and right("strict", "\u1109\u1161\u11b7", "삼") and not right("compat", "", "삼성")


def test_scores_are_exactly_nought_and_exactly_one():
    for ranks, value in (([0] * 30, 0.0), ([1] * 30, 1.0)):
        scores = recall_scores(ranks)
        assert list(scores) == [measure.name for measure in MEASURES] and set(DEV) < set(MEASURES)
        assert all(set(values) == {value} for values in scores.values())
        found = recall_intervals(scores)
        assert all((one.mean, one.n) == (value, 30) for one in found.values())
        assert found["real@1"].low < 1 and found["real@1"].high > 0  # thirty answers do not prove all or none
    assert [found["real@1"].low, found["real@1"].high] == pytest.approx([0.886, 1.0], abs=1e-3)
    scores = recall_scores([1, 2, 5, 6, 0])
    assert (sum(scores["real@1"]), sum(scores["real@5"])) == (1, 3)
    assert sum(scores["mrr"]) == pytest.approx(1 + 1 / 2 + 1 / 5 + 1 / 6)


def test_wilson_and_mcnemar_agree_with_other_implementations():
    for hits, n in ((0, 10), (7, 10), (10, 10), (1954, 2400), (1, 3000)):
        mine, other = rate([1] * hits + [0] * (n - hits)), binomtest(hits, n).proportion_ci(method="wilson")
        assert (mine.low, mine.high) == pytest.approx((other.low, other.high), abs=1e-12)
        assert mine.mean == hits / n
    for only_a, only_b, both in ((0, 1, 3), (5, 5, 0), (3, 12, 40), (60, 95, 1000), (0, 0, 7)):
        a = [1] * only_a + [0] * only_b + [1] * both
        b = [0] * only_a + [1] * only_b + [1] * both
        found = mcnemar(a, b)
        assert (found.only_a, found.only_b, found.n) == (only_a, only_b, len(a))
        if only_a + only_b:
            assert found.p_value == pytest.approx(binomtest(only_a, only_a + only_b).pvalue, abs=1e-12)
            here = math.comb(only_a + only_b, only_a) / 2 ** (only_a + only_b)
            assert found.mid_p == pytest.approx(found.p_value - (here / 2 if only_a == only_b else here), abs=1e-12)
        else:
            assert found.p_value == found.mid_p == 1
        swapped = mcnemar(b, a)
        assert (swapped.p_value, swapped.only_a) == (found.p_value, only_b)
    # R: exact2x2::mcnemar.exact(matrix(c(59, 6, 16, 80), 2)), and its mid-p from Fagerland et al. (2013), table 1
    found = mcnemar([1] * 59 + [1] * 6 + [0] * 16 + [0] * 80, [1] * 59 + [0] * 6 + [1] * 16 + [0] * 80)
    assert (found.p_value, found.mid_p) == pytest.approx((0.0525, 0.0347), abs=5e-5)


def test_the_composite_is_that_of_the_published_table():
    assert composite(0.6675, 0.8142, 0.37) == pytest.approx(0.62226, abs=1e-9)  # of the rounded rates
    assert f"{composite(1602 / 2400, 1954 / 2400, 222 / 600):.4f}" == "0.6222"  # of the answers behind them
    assert composite(0, 0, 0) == 0 and composite(1, 1, 1) == 1


@pytest.mark.parametrize("wrong", [lambda: within([-1], 1), lambda: rate([0.5]), lambda: rate([]), lambda: mcnemar([1], [])])
def test_what_is_no_answer_is_refused(wrong):
    with pytest.raises(ValueError, match="give|single answers"):
        wrong()
    assert reciprocal([0, 4]) == [0, 0.25]


def test_questions_that_cannot_be_asked_are_misses_with_a_reason():
    tokenizer = train_tokenizer([TEXT] * 5)
    strange = replace(SAMPLE, text=TEXT.replace("삼성전자", "뷁뷁전자"), target="뷁뷁전자")
    made = questions([SAMPLE, strange, SAMPLE], tokenizer, 64)
    several = answered([SAMPLE, strange, SAMPLE], made, [said("삼성전자").guesses, said("서울").guesses])
    ranks = [rank_of("strict", one) for one in several]
    assert ranks == [1, 0, 0]
    assert Counter(one.reason for one in several) == {"": 2, "name has unknown letters": 1}
    found = slices(several, ranks, {"삼성전자"})
    assert {title: sum(one.n for one in part.values()) for title, part in found.items()} == dict.fromkeys(found, 3)
    assert (found["distance"]["not asked"].mean, found["distance"]["0–127"].mean) == (0, 0.5)
    assert (found["name"]["seen"].n, found["name"]["unseen"].n) == (2, 1)
    assert [*found["pieces"]] == [distance_bin(None) if one == "not asked" else one for one in found["pieces"]]


def test_slices_are_in_order_and_particles_are_told_apart():
    far = [Answered(SAMPLE, tokens=n, pieces=p) for n, p in ((1500, 3), (5000, 1), (20, 9), (600, 2), (300, 1))]
    found = slices([*far, Answered(SAMPLE, reason="too far")], [1, 0, 1, 0, 1, 0], ())
    assert list(found["distance"]) == ["0–127", "128–511", "512–1,023", "1,024–2,047", "2,048–", "not asked"]
    assert {name: (one.mean, one.n) for name, one in found["pieces"].items()} == {
        "1": (0.5, 2), "2": (0, 1), "3+": (1, 2), "not asked": (0, 1)}
    for rest, telling in (("는 간다", True), ("에서", False), ("의", False), ("와 함께", True), ("으로", True), ("도", False), ("", False)):
        assert tells_ending(Sample("", "서울" + rest, "서울", 0, 0)) is telling


def test_guessers_read_only_what_stands_to_the_left():
    text = "갑은 대표다. 을은 비서다. 을은 젊다. 병은 늙었다. 회사의 대표는 갑이고 병은 아니다. 갑을 보라."
    at = text.index("대표는 갑") + 4
    one = Sample("x", text, "갑", 0, at, entities=("갑", "을", "병"))
    train = [replace(SAMPLE, target=name) for name in ("정", "정", "갑", "무")]
    found = {name: [guess.text for guess in several[0]] for name, several in baselines(train, [one]).items()}
    assert found["constant"] == ["정", "갑", "무"]
    left = [replace(one, text=text[:at] + rest, entities=one.entities) for rest in ("갑", "갑이 을을 을을 을을", "갑 병 병 병 병")]
    for other in left:
        again = baselines(train, [other])
        assert {name: [guess.text for guess in several[0]] for name, several in again.items()} == found
    assert set(found["most recent"]) == {"갑", "을", "병"}
    long = Sample("y", "삼성전자서비스와 삼성전자는 다르다. 다시 삼성전자", "삼성전자", 9, 23, entities=("삼성전자서비스", "삼성전자"))
    assert long.text[long.start:] == "삼성전자"
    assert [guess.text for guess in baselines([], [long])["most recent"][0]] == ["삼성전자", "삼성전자서비스"]
    assert "constant" not in baselines([], [long])  # nobody knows what was learnt


# ---- searching -----------------------------------------------------------------------------------------------------


class Rigged(torch.nn.Module):
    "Scores that depend on everything a row shows, and on nothing else."

    def __init__(self, vocabulary: int, seed: int, most: int = 10**9) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(2 * torch.randn(997, vocabulary, generator=chance))
        self.head, self.most, self.longest, self.rows = torch.nn.Identity(), most, 0, 0

    def forward(self, input_ids, attention_mask):
        if len(input_ids) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.longest, self.rows = max(self.longest, input_ids.shape[1]), self.rows + len(input_ids)
        places = torch.arange(input_ids.shape[1])
        keys = ((input_ids + 3) * attention_mask * (places * places + 7)).sum(1, keepdim=True)
        return SimpleNamespace(logits=self.head(self.table[(keys + 31 * places) % 997]))


def letters():
    "A tokenizer of six pieces beside the special ones, a question, and its window."
    tokenizer = train_tokenizer(["가나다"])
    one = window(Sample("", "가나 다 가나", "가나", 0, 5), tokenizer, 32)
    assert len(tokenizer) == 5 + 6 and tokenizer.convert_ids_to_tokens(one.target) == ["가", "##나"]
    return tokenizer, one


def log_probability(model, tokenizer, one, pieces):
    "Of pieces in the place of a name, each with those after it hidden, from whole forward passes."
    total, mask = 0.0, tokenizer.mask_token_id
    for i, piece in enumerate(pieces):
        ids = [*one.ids[:one.place], *pieces[:i], *[mask] * (len(pieces) - i), *one.ids[one.place + len(one.target):]]
        with torch.no_grad():
            row = torch.tensor([ids])
            logits = model.eval()(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, one.place + i]
        total += float(logits.double().log_softmax(-1)[piece])
    return total


def fill_known(*asked, **how):
    "What is found where the number of pieces is told."
    return fill_both(*asked, max_pieces=0, **how)[1]


def written(tokenizer, pieces):
    "Pieces as text, not the chapter's way."
    text = " ".join(tokenizer.convert_ids_to_tokens(pieces)).replace(" ##", "")
    return text[2:] if text.startswith("##") else text


def brute_force(model, tokenizer, one, sizes):
    "The best texts of all there are."
    best: dict[str, float] = {}
    ordinary = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    for pieces in (pieces for size in sizes for pieces in product(ordinary, repeat=size)):
        text = written(tokenizer, pieces)
        best[text] = max(best.get(text, -math.inf), log_probability(model, tokenizer, one, pieces) / len(pieces))
    return sorted(best.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("seed", range(3))
def test_a_search_that_keeps_all_finds_what_brute_force_finds(seed):
    tokenizer, one = letters()
    model = Rigged(len(tokenizer), seed)
    every = brute_force(model, tokenizer, one, range(1, 4))
    found = fill([one], model, tokenizer, max_pieces=3, beam=36, top=12)[0]
    assert [guess.text for guess in found] == [text for text, _ in every[:12]]
    assert [guess.score for guess in found] == pytest.approx([score for _, score in every[:12]], abs=1e-4)
    two = brute_force(model, tokenizer, one, [2])
    (known,) = fill_known([one], model, tokenizer, beam=6, top=6)
    assert [guess.text for guess in known] == [text for text, _ in two[:6]]


def test_ten_beginnings_find_the_best_of_four_masks_where_one_does_not():
    tokenizer, one = letters()
    four = replace(one, ids=[*one.ids[:one.place], *[tokenizer.mask_token_id] * 4, *one.ids[one.place + 2:]], target=one.target * 2)
    found: dict[int, list[bool]] = {1: [], 10: []}
    for seed in (104, 105, 106, 107):
        model = Rigged(len(tokenizer), seed)
        best, score = brute_force(model, tokenizer, four, [4])[0]
        for beam, right_ in found.items():
            guess = fill_known([four], model, tokenizer, beam=beam)[0][0]
            right_.append(guess.text == best)
            assert guess.score <= score + 1e-4
    assert found == {1: [False, False, False, True], 10: [True] * 4}
    every = brute_force(model, tokenizer, one, range(1, 5))
    (guesses,) = fill([one], model, tokenizer)
    assert guesses[0] == Guess(every[0][0], pytest.approx(every[0][1], abs=1e-4))
    assert len(guesses) == 10 == len({guess.text for guess in guesses})


def test_names_are_ranked_as_brute_force_ranks_them_and_what_is_shared_is_read_once():
    tokenizer, one = letters()
    model = Rigged(len(tokenizer), 7)
    names = ["가나", "가다", "가", "나다가", "다", "가나 다"]
    expected = {name: log_probability(model, tokenizer, one, spelled(one.sample, tokenizer, name)) for name in names}
    model.rows, left_out = 0, Counter()
    (found,) = rank([one], [[*names, "뷁", "가나"]], model, tokenizer, left_out=left_out)
    assert [guess.text for guess in found] == sorted(names, key=expected.get, reverse=True)
    assert {guess.text: guess.score for guess in found} == pytest.approx(expected, abs=1e-4)
    assert left_out == {"candidate cannot be written": 1}
    assert model.rows == (1 + 1) + 1 + (1 + 2 + 2)  # 가나 and 가다 share 가; 가 and 다; 나다가 and 가나 다 share the start


def test_short_memory_gives_the_same_answers_and_says_so():
    tokenizer = train_tokenizer([TEXT] * 5)
    made = [one for one in (window(SAMPLE, tokenizer, 64), window(replace(SAMPLE, text=TEXT + " 끝."), tokenizer, 64)) if one]
    heard, calm = [], Rigged(len(tokenizer), 1)
    short = Rigged(len(tokenizer), 1, most=5)
    for ask in (fill, fill_known, lambda *a, **k: rank(a[0], [SAMPLE.entities] * len(a[0]), *a[1:], **k)):
        heard.clear()
        full, small = (ask(made, model, tokenizer, batch_size=40, note=heard.append) for model in (calm, short))
        assert [[g.text for g in one] for one in full] == [[g.text for g in one] for one in small]
        assert [g.score for one in full for g in one] == pytest.approx([g.score for one in small for g in one], abs=1e-5)
        assert heard and all(text.startswith("Out of memory while asking: going on with") for text in heard)
    assert heard[-1] == "Out of memory while asking: going on with batches of 5."
    heard.clear()
    with pytest.raises(LabError, match="out of memory even with one row at once: lower context_length"):
        fill(made, Rigged(len(tokenizer), 1, most=0), tokenizer, batch_size=4, note=heard.append)
    assert len(heard) == 2  # 4, 2, 1
    with pytest.raises(IndexError):  # what is no lack of memory is no reason to go on
        fill(made, Rigged(3, 1), tokenizer, note=heard.append)
    assert len(heard) == 2 and calm.training


def test_a_gpu_without_room_for_one_row_gives_way_to_the_processor():
    class OnGpu(Rigged):
        there = True

        def parameters(self, recurse=True):
            yield SimpleNamespace(is_cuda=self.there, device="cpu")

        def to(self, device):
            self.there, self.most = device != "cpu", 10**9

    tokenizer, one = letters()
    heard, model = [], OnGpu(len(tokenizer), 1, most=0)
    found = fill([one], model, tokenizer, batch_size=2, note=heard.append)
    assert heard == ["Out of memory while asking: going on with batches of 1.",
                     "Out of memory while asking even one row: going on on the processor, with batches of 8."]
    assert not model.there and [g.text for g in found[0]] == [g.text for g in fill([one], Rigged(len(tokenizer), 1), tokenizer)[0]]


@pytest.mark.parametrize("context", ["left", "both"])
def test_no_row_is_longer_than_the_context_and_every_one_shows_the_antecedent(context):
    tokenizer = train_tokenizer([TEXT] * 5)
    needed = next(n for n in range(64) if window(SAMPLE, tokenizer, n, context))
    whole = len(window(SAMPLE, tokenizer, 64, context).ids)
    assert needed < whole
    for length in range(needed, whole + 3):
        one, model, left_out = window(SAMPLE, tokenizer, length, context), Rigged(len(tokenizer), 3), Counter()
        strict, known = fill_both([one], model, tokenizer, max_pieces=8, max_length=length, left_out=left_out)
        room = length - len(one.ids) + one.antecedent - 1 + len(one.target)  # masks that fit
        assert left_out == {f"{n} masks do not fit beside the antecedent": 1 for n in range(room + 1, 9)}
        assert model.longest <= length and known[0] and strict[0]
        rank([one], candidates_of([SAMPLE]), model, tokenizer, max_length=length)
        fill_compat([SAMPLE], model, tokenizer, length)
        assert model.longest <= length


def test_what_is_told_to_both_ways_is_read_once():
    tokenizer = train_tokenizer([TEXT] * 5)
    one, models_ = window(SAMPLE, tokenizer, 64), [Rigged(len(tokenizer), 5) for _ in range(2)]
    strict, known = fill_both([one], models_[0], tokenizer)
    assert strict == fill([one], models_[1], tokenizer) and models_[0].rows == models_[1].rows
    assert [guess.text for guess in known[0]] == [guess.text for guess in fill_known([one], models_[1], tokenizer)[0]]
    longer = replace(one, target=one.target + one.target, ids=one.ids[:one.place] + one.target + one.ids[one.place:])
    strict, known = fill_both([longer], models_[0], tokenizer)  # more pieces than are tried
    assert len(longer.target) > 4 and strict[0] and known[0]


# ---- tokenizers ----------------------------------------------------------------------------------------------------


def bpe(pre, decoder, alphabet=()):
    "A tokenizer of merged pieces."
    made = Tokenizer(models.BPE(unk_token=None if alphabet else "<unk>"))
    made.pre_tokenizer, made.decoder = pre, decoder
    special = ["<pad>", "<s>", "</s>", "<mask>"] + ([] if alphabet else ["<unk>"])
    made.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=[*alphabet],
                                                             show_progress=False))
    names = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>")
    return PreTrainedTokenizerFast(tokenizer_object=made, **names | ({} if alphabet else {"unk_token": "<unk>"}))


TOKENIZERS = {
    "wordpiece": lambda: train_tokenizer([TEXT] * 2),
    "sentencepiece": lambda: bpe(pre_tokenizers.Metaspace(), decoders.Metaspace()),
    "byte-level": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(),
                              pre_tokenizers.ByteLevel.alphabet()),
}


class Knowing(torch.nn.Module):
    "Knows one name, and that a wrong number of masks has no answer."

    def __init__(self, tokenizer, one):
        super().__init__()
        self.weight, self.head = torch.nn.Parameter(torch.zeros(1)), torch.nn.Identity()
        self.size, self.one, self.rest = len(tokenizer), one, len(one.ids) - len(one.target)

    def forward(self, input_ids, attention_mask):
        logits = torch.zeros(*input_ids.shape, self.size) + self.weight
        for row, length in enumerate(attention_mask.sum(1).tolist()):
            if length - self.rest == len(self.one.target):
                for i, piece in enumerate(self.one.target):
                    logits[row, self.one.place + i, piece] = 20.0
        return SimpleNamespace(logits=self.head(logits))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_names_come_back_as_text_from_every_kind_of_tokenizer(kind):
    tokenizer = TOKENIZERS[kind]()
    for start, name in ((SAMPLE.start, "삼성전자"), (TEXT.index("현대차"), "현대차"), (0, "어제"), (TEXT.index("전자"), "전자")):
        sample = Sample("", TEXT, name, 0, start)
        pieces = spelled(sample, tokenizer, name)
        assert text_of(tuple(pieces), tokenizer) == name
    one = window(SAMPLE, tokenizer, 128)
    size = max(4, len(one.target))
    (found,), (known,) = fill_both([one], Knowing(tokenizer, one), tokenizer, max_pieces=size)
    assert found[0].text == known[0].text == "삼성전자"
    assert rank_of("strict", Answered(SAMPLE, tuple(found))) == 1
    (ranked,) = rank([one], [["현대차", "서울", "삼성전자"]], Knowing(tokenizer, one), tokenizer)
    assert ranked[0].text == "삼성전자" and len(ranked) == 3


def test_half_a_letter_is_no_text_and_special_pieces_are_no_name():
    tokenizer = TOKENIZERS["byte-level"]()
    ids = tokenizer("뷁", add_special_tokens=False)["input_ids"]
    assert [text_of(tuple(ids[:n]), tokenizer) for n in (1, 2, 3)] == ["", "", "뷁"]
    one = window(SAMPLE, tokenizer, 128)
    (found,) = fill([one], Rigged(len(tokenizer), 4), tokenizer)
    assert found and not any("\ufffd" in guess.text or "<" in guess.text for guess in found)
    assert all(guess.text == guess.text.strip() != "" for guess in found)


def test_the_published_way_shows_characters_around_one_mask():
    tokenizer = train_tokenizer([TEXT] * 5)
    long = Sample("", " ".join([TEXT] * 40), "삼성전자", 7, TEXT.rindex("삼성전자") + 20 * (len(TEXT) + 1))
    assert long.text[long.start:long.end] == "삼성전자"

    class Seen(Rigged):
        def forward(self, input_ids, attention_mask):
            self.texts = [tokenizer.convert_ids_to_tokens(row) for row in input_ids]
            return super().forward(input_ids, attention_mask)

    for length, around in ((512, 200), (1023, 200), (1536, 600)):
        model = Seen(len(tokenizer), 2)
        (found,) = fill_compat([long], model, tokenizer, length)
        shown = "".join(token.removeprefix("##") for token in model.texts[0][1:-1])
        left, right_ = shown.split("[MASK]")
        assert left == long.text[long.start - around:long.start].replace(" ", "")
        assert right_ == long.text[long.end:long.end + around].replace(" ", "")
        assert 0 < len(found) <= 50 and found == sorted(found, key=lambda guess: -guess.score)
        assert not any("#" in guess.text for guess in found)


def test_candidates_are_the_names_of_the_document_and_the_same_others():
    splits = embedded(3, rows=60, eval_rows=60)
    asked = splits.held["test"]
    found = candidates_of(asked)
    for sample, names in zip(asked, found, strict=True):
        assert set(sample.entities) <= set(names) and len(set(names)) == len(names) == 20 + len(sample.entities)
    assert found[:10] == candidates_of(asked)[:10] and found != candidates_of(asked, seed=1)
    assert candidates_of([replace(SAMPLE, entities=())]) == [("삼성전자",)]  # a split without other names


def test_a_real_model_is_asked_as_its_own_forward_pass_answers():
    splits = embedded(2, rows=60, eval_rows=10)
    tokenizer = train_tokenizer({sample.text for sample in splits.train})
    asked, _ = windows(splits.held["test"][:5], tokenizer, 64)
    torch.manual_seed(0)
    for family in ("deberta-v2", "roberta", "modernbert"):
        model = mini(tokenizer, family, 64)
        ranked = rank(asked, candidates_of([one.sample for one in asked], 2), model, tokenizer, max_length=64)
        for one, guesses in zip(asked, ranked, strict=True):
            alone = [log_probability(model, tokenizer, one, spelled(one.sample, tokenizer, g.text)) for g in guesses]
            assert [guess.score for guess in guesses] == pytest.approx(alone, abs=1e-3)
        model.train()
        fill(asked[:1], model, tokenizer, 2, beam=2)
        assert model.training  # left as it was
    reader = Reader(model, tokenizer)
    assert isinstance(reader.writer, Writer) and reader.batch_size == 64
