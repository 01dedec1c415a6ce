"""korlab.core.text: what its notebook cannot say by example: all syllables, all numbers, forked processes."""

import multiprocessing
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from korlab.core import text as T

SYLLABLES = [chr(code) for code in range(0xAC00, 0xD7A4)]
WORDS = ["학교", "물", "먹었다", "좋아", "갔다.", "'서울'", "(주)", "ㅋㅋ", "AI", "3.5%", "😀"]
WORDS += ["#Person1#", "#Person2#", "#Email#"]
PARTICLES = ["은", "는", "이", "가", "에게", "으로", "이랑", ""]
phrases = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(PARTICLES)), max_size=8).map(
    lambda pairs: " ".join(word + particle for word, particle in pairs)
)


def loose_final(syllable):
    "Final consonant by Unicode decomposition: an independent way to the same answer."
    letters = unicodedata.normalize("NFD", syllable)
    return letters[2] if len(letters) == 3 else ""


def test_every_syllable_gets_the_right_particles():
    for syllable in SYLLABLES:
        final = loose_final(syllable)
        assert T.attach(syllable, "은/는") == syllable + ("은" if final else "는")
        assert T.attach(syllable, "을/를") == syllable + ("을" if final else "를")
        assert T.attach(syllable, "으로/로") == syllable + ("으로" if final and final != "ᆯ" else "로")
        assert T.attach(syllable, "이라/라") == syllable + ("이라" if final else "라")  # no exception after ㄹ here


def read_aloud(number):
    "A whole number in Sino-Korean words, written out: 1024 is 일천이십사."
    digits, small, big = "영일이삼사오육칠팔구", ["", "십", "백", "천"], ["", "만", "억", "조", "경"]
    if number == 0:
        return "영"
    groups = []
    for power in range(len(big)):
        group = number // 10000**power % 10000
        words = "".join(digits[group // 10**k % 10] + small[k] for k in (3, 2, 1, 0) if group // 10**k % 10)
        groups.append(words + big[power] if group else "")
    return "".join(reversed(groups))


@given(st.one_of(st.integers(0, 10**20 - 1), st.integers(0, 19).map(lambda k: 10**k)))
def test_numbers_are_read_as_sino_korean(number):
    expected = loose_final(read_aloud(number)[-1])
    for written in (str(number), f"{number:,}", f"#Person{number}#"):
        assert bool(T.coda(written)) == bool(expected)
        assert (T.coda(written) == "ㄹ") == (expected == "ᆯ")


@pytest.mark.parametrize(
    "word, fitting",
    [
        ("#Person10#", "은"),
        ("010-1234-5670", "은"),
        ("0.10", "은"),
        ("2.0", "은"),
        ("25℃", "는"),
        ("“사과”", "는"),
        ("서울(Seoul)", "은"),
        ("apple", "은"),
        ("PC", "는"),
        ("#PhoneNumber#", "는"),
        ("#SSN#", "은"),
        (unicodedata.normalize("NFD", "수박"), "은"),
    ],
)
def test_particles_of_awkward_words(word, fitting):
    assert T.attach(word, "은/는") == word + fitting


@pytest.mark.parametrize("word", ["", " ", "😀", "漢", "カ", "()", "１"])
def test_words_without_a_reading_are_errors(word):
    with pytest.raises(ValueError, match="no Korean reading"):
        T.particle(word, "은/는")


@given(st.text(alphabet="가나 \n\t\u3000\u00a0\u200b\rab.<>0", max_size=40))
def test_clean_keeps_letters_tidies_blanks_and_is_stable(raw):
    kept = "".join(c for c in T._TAG.sub("", raw) if not c.isspace() and c != "\u200b")
    cleaned = T.clean(raw.replace("<", "").replace(">", ""))
    assert T.clean(cleaned) == cleaned
    assert "\n\n\n" not in cleaned and "  " not in cleaned and "\u200b" not in cleaned and cleaned == cleaned.strip()
    plain = T.clean(raw)
    assert all(plain.count(c) <= raw.count(c) for c in "가나ab.0")
    if "\u200b" not in raw:
        assert "".join(plain.split()) == kept


@settings(max_examples=60, deadline=None)
@given(phrases)
def test_placeholders_survive_and_the_normal_form_does_not_matter(phrase):
    forms = T.morphemes(phrase)
    assert [form for form in forms if T.PLACEHOLDER.fullmatch(form)] == T.PLACEHOLDER.findall(phrase)
    assert T.morphemes(unicodedata.normalize("NFD", phrase)) == forms
    assert not T.has_hangul(phrase) or any(T.has_hangul(form) for form in forms)


@settings(max_examples=40, deadline=None)
@given(st.lists(phrases, max_size=4))
def test_sentences_lose_nothing_but_blanks(lines):
    text = "\n".join(lines)
    found = T.sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all("\n" not in sentence and sentence == sentence.strip() for sentence in found)
    assert [p for s in found for p in T.PLACEHOLDER.findall(s)] == T.PLACEHOLDER.findall(text)


def test_every_korean_letter_yields_a_morpheme():
    letters = [chr(code) for code in range(0x1100, 0x10000, 7) if T.has_hangul(chr(code))]
    assert len(letters) > 1500
    assert all(T.has_hangul("".join(forms)) for forms in T.morphemes_batch(letters))


def test_workers_do_not_change_the_result():
    texts = [f"#Person{i}#은 {i}번 창구에서\n표를 {i + 1}장 샀다." for i in range(50)] + ["", "\n"]
    alone = T.morphemes_batch(texts)
    assert T.morphemes_batch(texts, workers=2) == alone == [T.morphemes(text) for text in texts]


def _child(queue):
    queue.put([T.morphemes_batch(["밥을 먹자.", "그래."], workers) for workers in (1, 2)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer Pythons warn of forking with threads, the point here
def test_a_forked_child_does_not_hang():
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    expected = T.morphemes_batch(["밥을 먹자.", "그래."], workers=2)  # starts a pool in the parent
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=60) == [expected, expected]
    finally:
        child.kill()
        child.join()


def test_import_is_light():
    heavy = {"kiwipiepy", "rapidfuzz", "torch", "pandas"}
    code = f"import sys, korlab.core.text, korlab.metrics.rouge; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
