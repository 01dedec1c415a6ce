"""korlab.core.text: what its notebook cannot say by example: all syllables, all numbers, forked processes."""

import multiprocessing
import subprocess
import sys
import time
import unicodedata
from collections import Counter

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from korlab.core import text as T
from korlab.core.errors import LabError
from korlab.metrics.rouge import pltrdy_baseline, rouge, tokenise
from korlab.sparse import bm25, search
from korlab.summarization import summarizer

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


# ---- cleaning -------------------------------------------------------------------------------------------------------

@given(st.text(alphabet="가나 \n\t\u3000\u00a0\u200b\rab.<>0", max_size=40))
def test_clean_keeps_letters_tidies_blanks_and_is_stable(raw):
    cleaned, removed = T.clean(raw, gone := []), [one.kind for one in gone]
    assert T.clean(cleaned) == cleaned
    assert "\n\n\n" not in cleaned and "  " not in cleaned and "\u200b" not in cleaned and cleaned == cleaned.strip()
    assert "".join(cleaned.split()) == "".join(raw.replace("\u200b", "").split())  # a bare tag that nothing closes is text
    assert removed == ["U+200B"] * raw.count("\u200b")


@given(st.lists(st.text(alphabet="가나 ab.0", max_size=9), min_size=3, max_size=3), st.sampled_from(["b", "I", "span"]))
def test_a_pair_of_tags_goes_and_its_text_stays(parts, tag):
    before, within, after = parts
    for opening in (f"<{tag}>", f"<{tag} class='x'>"):
        cleaned = T.clean(f"{before}{opening}{within}</{tag}>{after}", gone := [])
        assert cleaned == T.clean(before + within + after) and len(gone) == 2


@given(st.lists(st.sampled_from(["<", ">", "/", "b", "br", "a href=x", "\\", "n", "r", "\n", "\u2028", "\u200b", "가", " ", "!--", "--", "\u1100",
                                 "\u1161", "u", ":", "'"]), max_size=24).map("".join))
def test_cleaning_comes_to_an_end_at_once(raw):
    cleaned = T.tidy(raw)
    assert T.tidy(cleaned, gone := []) == cleaned and not gone
    assert T.clean(T.clean(T.clean(T.clean(raw)))) == cleaned


@pytest.mark.parametrize("text", [
    "어제 <EBS 다큐프라임>이랑 <그것이 알고 싶다> 봤어?", "git push <remote> <branch>", "<kim@example.com>으로 보내.", "<SBS 뉴스>",
    "a<b인 것 같아.\n#Person2#: 나는 c>d라고 봐.", "a<b and c>d", "x <a\nhref=1> y", "std::vector<int> v; Map<String, List<T>>",
    "<대화시작> 3 < 5 그리고 <3", "<title>을 <source>에서 <target>으로", "<https://example.com/a?b=c>", "<!-- 지우면\n안 된다 -->", "<b", "b>", "< b >",
    "&lt;b&gt;굵게&lt;/b&gt; &amp;lt;", r"C:\new\names\readme", r"docs\new: 새 폴더", r"$\nabla f = \nu$", r"줄바꿈은 \n으로 쓴다.", r"'\n' 하나",
    r"역슬래시 \\n 둘", "첫 줄\n" + r"둘째 줄에는 \n을 쓴다", "ㄱ\u200dㄴ", "👨\u200d👩\u200d👧",
])
def test_what_only_looks_like_markup_stays(text):
    assert T.tidy(text, gone := []) == text
    assert gone == []


@pytest.mark.parametrize(("raw", "clean", "kinds"), [
    ('<DIV class="x" id=y hidden><p>가요?</p>네<BR />그래<br></div>', "가요?네\n그래", {"<div>": 2, "<p>": 2, "<br>": 2}),
    ("<a href='https://x.kr/?a=1&b=2'>여기</a> <!-- 메모 -->끝", "여기 끝", {"<a>": 2, "<!-- -->": 1}),
    ("<<b></b>br>네 <i <b></b>class=x>끝</i>", "네 끝", {"<b>": 4, "<br>": 1, "<i>": 2}),
    ("<A>안과 <B>안 중에 골라, if a<b>c, <s>와 <Del> 키", "<A>안과 <B>안 중에 골라, if a<b>c, <s>와 <Del> 키", {}),
    (r"C:\data\n1팀\보고서, 개행(\n)은 \n입니다", r"C:\data\n1팀\보고서, 개행(\n)은 \n입니다", {}),
    (r"#Person1#: 가요?\n#Person2#: 네.\r\nTom: 또 봐.\nuser: 응", "#Person1#: 가요?\n#Person2#: 네.\nTom: 또 봐.\nuser: 응", {r"\n": 3}),
    ("\ufeff가요?\u2028네.\x0b응\x0c글쎄\x85또\u2029봐\u2060", "가요?\n네.\n응\n글쎄\n또\n봐",
     {"U+FEFF": 1, "U+2028": 1, "U+000B": 1, "U+000C": 1, "U+0085": 1, "U+2029": 1, "U+2060": 1}),
])
def test_whatever_goes_is_told(raw, clean, kinds):
    assert T.tidy(raw, gone := []) == clean
    assert Counter(one.kind for one in gone) == kinds
    assert all(one.near and len(one.near) <= 80 for one in gone)


@pytest.mark.parametrize("hard", [
    "<a" * 40_000, "<a" * 40_000 + ">" * 40_000, "<!--" * 20_000, "<!-- x -->" * 8_000, "<a href='" * 9_000, "<a " + "x" * 80_000 + ">", "<b>" * 27_000,
    "<a " + "x= " * 27_000 + ">", "<a" + " " * 80_000 + "x>", r"\n" * 40_000, "\\" * 80_000, "\n" * 80_000, " " * 80_000 + ".", "\u2028" * 80_000,
], ids=range(14))
def test_cleaning_takes_time_by_length_alone(hard):
    begun = time.process_time()
    T.tidy(hard)
    assert time.process_time() - begun < 5  # by the square of the length it would be minutes


HALF = "좋아요 \ud83d"


@pytest.mark.parametrize("use", [
    T.normalize, T.text_hash, T.tidy, T.morphemes, T.sentences, T.has_hangul, lambda text: T.morphemes_batch(["가", text], 2), bm25.content_morphemes,
    bm25.eojeols, lambda text: bm25.BM25({"d": text}), lambda text: bm25.BM25({"d": "가"}).search([text]), summarizer.ready, search.ready,
    lambda text: tokenise(text, "char"), lambda text: rouge(["가"], [[text]], "eojeol"), lambda text: rouge([text], ["가"]),
    lambda text: pltrdy_baseline([text], ["가"]),
])
def test_half_a_character_is_refused_in_one_sentence(use):
    if use is T.has_hangul:
        assert use(HALF)
        return
    with pytest.raises(LabError) as caught:
        use(HALF)
    told = str(caught.value)
    assert r"holds half a character (a lone surrogate) after 4 characters ('좋아요 \ud83d')" in told and "\n" not in told
    told.encode()


def test_a_typed_query_that_is_no_text_is_one_sentence():
    """A terminal in another encoding: Python makes lone surrogates of the bytes."""
    code = "import sys; from korlab.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "sparse", "search", "막차".encode("cp949")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1, done
    assert "the query holds half a character" in done.stderr and "Traceback" not in done.stderr


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
