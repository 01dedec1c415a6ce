"""Post-processing on any text: it ends, it changes nothing twice, it invents nothing."""

import difflib
import re
import time
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from korlab.core.text import PLACEHOLDER
from korlab.experiment.params import ParameterError
from korlab.experiment.studies import configure
from korlab.summarization import postprocess as pp
from korlab.summarization.models import PLACEHOLDERS

ALL = {"repair_placeholders": True, "tidy": True, "drop_repeats": True, "drop_similar": 0.85, "max_words": 8}
SHRINKING = {name: value for name, value in ALL.items() if name != "repair_placeholders"}
TALK = "#Person1#: 주소가 #Address# 맞죠?\n#Person2#: 네, #Email#로 보내 주세요."

WORDS = [
    "#Person1#", "#Person2#는", "#Person 1#은", "Person2#", "# Address #", "#email#", "#Person9#", "#", "내일", "내일",
    "간다", "간다.", "간다.", "회의를", "3", "3.5", ".5", ".", ",", "!", "!!!", "...", "..", "?", "\n", "  ", "🙂",
    "ㅋㅋㅋ", "ㄱ", unicodedata.normalize("NFD", "회의를 한다."), "\u200b", "ᄀ", "e\u0301",
]
summaries = st.lists(st.sampled_from(WORDS), max_size=24).flatmap(
    lambda words: st.sampled_from(["", " "]).map(lambda blank: blank.join(words))
) | st.text(max_size=60) | st.text(alphabet="#Person12 은.!", max_size=40)
plain_sentences = st.text("가나다라 ", min_size=2, max_size=12).map(str.strip).filter(lambda text: len(text) > 1)
options = st.sets(st.sampled_from(sorted(ALL))).map(lambda names: {name: ALL[name] for name in names})


def names(text: str) -> list[str]:
    return PLACEHOLDER.findall(text)


@settings(max_examples=400, deadline=None)
@given(summaries, options)
@example("가 나. 나. 가 나.", ALL)
@example("가\n나. 나. !", ALL)
@example("#Person1#Person2# #Person 2 #Person1#", ALL)
@example("", ALL)
def test_a_second_time_changes_nothing(text, given_options):
    own = configure(given_options).own
    once = pp.postprocess(text, TALK, own)
    assert pp.postprocess(once, TALK, own) == once
    assert once == text or given_options


@settings(max_examples=300, deadline=None)
@given(summaries)
def test_nothing_is_added_but_the_signs_of_a_placeholder(text):
    shorter = pp.postprocess(text, TALK, configure(SHRINKING).own)
    assert len(shorter.split()) <= len(text.split()) and len(shorter) <= len(text)
    mended = pp.repair_placeholders(text, TALK)
    assert re.sub(r"[#\s]", "", mended).lower() == re.sub(r"[#\s]", "", text).lower()


@settings(max_examples=300, deadline=None)
@given(summaries)
def test_no_name_is_lost_or_made_up(text):
    keeping = configure({name: value for name, value in SHRINKING.items() if name != "max_words"}).own
    assert set(names(pp.postprocess(text, TALK, keeping))) == set(names(text))
    assert set(names(pp.limit_words(text, 5))) <= set(names(text))
    known = set(names(TALK))
    assert set(names(pp.repair_placeholders(text, TALK))) - known <= set(names(text)) - known


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*PLACEHOLDERS, "는", " ", " 내일 ", ". "]), max_size=12).map("".join))
def test_whole_placeholders_stay_as_they_are(text):
    assert pp.repair_placeholders(text, " ".join(PLACEHOLDERS)) == text


@pytest.mark.parametrize("name", [*PLACEHOLDERS])
def test_every_placeholder_is_mended(name):
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z\d])", " ", name.strip("#"))
    for damaged in (f"#{spaced}#", f"# {spaced} #", f"{spaced}#", f"#{spaced}", name.lower(), name.upper(), name):
        assert pp.repair_placeholders(f"{damaged}로 보낸다.", name) == f"{name}로 보낸다.", damaged
        assert pp.repair_placeholders(f"{damaged}로 보낸다.", "#Person99#: 응") == f"{damaged}로 보낸다."


@settings(max_examples=200, deadline=None)
@given(st.lists(plain_sentences, min_size=1, max_size=5), st.sampled_from([0.5, 0.7, 0.85, 1.0]))
def test_near_copies_are_those_difflib_finds(sentences, threshold):
    sentences = [f"{sentence}." for sentence in sentences]
    kept = []
    for sentence in sentences:
        if not any(difflib.SequenceMatcher(None, old, sentence, False).ratio() >= threshold for old in kept):
            kept.append(sentence)
    assert pp.drop_similar(" ".join(sentences), threshold) == " ".join(kept)


def test_the_threshold_is_the_ratio_itself():
    a, b = "가" * 17 + "나나.", "가" * 17 + "다다."  # 18 equal characters of 20 in each: ratio 0.9
    assert pp.drop_similar(f"{a} {b}", 0.9) == a
    assert pp.drop_similar(f"{a} {b}", 0.91) == f"{a} {b}"


def test_one_form_of_hangul_is_a_copy_of_the_other():
    text = "둘은 회의를 금요일로 옮긴다."
    assert pp.drop_similar(f"{text} {unicodedata.normalize('NFD', text)}", 1.0) == text


def test_a_long_stutter_takes_no_time():
    start = time.process_time()
    for text in ("가" * 20_000, "가 " * 4_000, "가 나 다 라 마 " * 500, "a" * 5_000 + "#" * 5_000, "Person 1" * 1_000):
        pp.postprocess(text, TALK, configure(ALL).own)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("given_options", [{"drop_similar": 0}, {"drop_similar": 1.2}, {"max_words": 0}, {"tidy": 1}])
def test_options_out_of_range_are_refused(given_options):
    with pytest.raises(ParameterError):
        configure(given_options)


@pytest.mark.parametrize("text", [" " * 80_000 + "가", "가" + " " * 80_000 + "나.", "\n" * 80_000 + "나", ". " * 40_000, "!" * 80_000, "가 나 " * 10_000])
def test_a_long_summary_takes_time_by_its_length(text):
    begun = time.perf_counter()
    pp.tidy(text), pp.limit_words(text, 10**9), pp.drop_repeats(text)
    assert time.perf_counter() - begun < 2
