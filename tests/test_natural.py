"""The hand-written dialogues: form, placeholders, particles and spelling that a notebook cannot show one by one."""

import re
import unicodedata

import pytest

from korlab.core.text import PLACEHOLDER, attach, coda
from korlab.summarization.natural import natural, themes

DIALOGUES = natural()
PRIVATE = {"Address", "CarNumber", "CardNumber", "DateOfBirth", "Email", "PassportNumber", "PhoneNumber", "SSN"}
TURN = re.compile(r"#Person[1-4]#: \S.*")
PAIRS = ("은/는", "이/가", "을/를", "과/와", "으로/로")
FORMS = {form: pair for pair in PAIRS for form in pair.split("/")}
# Longest first; what follows a particle is a blank, a mark, another particle (도, 만, 는) or the end.
PARTICLE = re.compile(r"(#[A-Za-z]+\d*#)(으로|은|는|이|가|을|를|과|와|로)(?=[\s,.!?]|$|[도만는])")
COPULA = re.compile(r"(#[A-Za-z]+\d*#)(이에요|예요|이야|야)")
NUMBER = re.compile(r"\d[\d,.]*\d|\d")
INFERRED = {"natural-031": {"35"}}  # minutes from 8:20 to 8:55, which a reader has to work out

each = pytest.mark.parametrize("dialogue", DIALOGUES, ids=lambda dialogue: dialogue.fname)


def people(text: str) -> set[str]:
    return set(re.findall(r"#Person\d+#", text))


def texts(dialogue) -> tuple[str, ...]:
    return (dialogue.dialogue, *dialogue.summaries)


def test_size_and_uniqueness():
    assert len(DIALOGUES) >= 60
    assert len({d.fname for d in DIALOGUES}) == len({d.dialogue for d in DIALOGUES}) == len(DIALOGUES)
    summaries = [summary for d in DIALOGUES for summary in d.summaries]
    assert len(set(summaries)) == len(summaries) == 2 * len(DIALOGUES)
    assert [d.fname for d in DIALOGUES] == sorted(d.fname for d in DIALOGUES)
    assert {d.topic for d in DIALOGUES} == set(themes())


def test_variety():
    turns = sorted(len(d.dialogue.splitlines()) for d in DIALOGUES)
    assert turns[0] >= 5 and sum(n >= 25 for n in turns) >= 3 and sum(n <= 8 for n in turns) >= 5
    assert {len(people(d.dialogue)) for d in DIALOGUES} == {2, 3, 4}
    everything = " ".join(d.dialogue for d in DIALOGUES)
    assert "ㅋㅋ" in everything and "ㅠㅠ" in everything and re.search("[\U0001f300-\U0001faff]", everything)


def test_each_kind_of_private_data_occurs_and_no_other():
    found = {name.strip("#") for d in DIALOGUES for text in texts(d) for name in PLACEHOLDER.findall(text)}
    assert {name for name in found if not name.startswith("Person")} == PRIVATE
    assert {name for name in found if name.startswith("Person")} <= {f"Person{n}" for n in range(1, 5)}


def test_no_private_data_in_the_clear():
    everything = "\n".join(text for d in DIALOGUES for text in texts(d))
    assert not re.search(r"\d{2,4}-\d{3,4}-\d{4}|\d{6}-\d{7}|[\w.]+@\w+\.\w+|\d{2,3}[가-힣] ?\d{4}", everything)


@each
def test_turns(dialogue):
    lines = dialogue.dialogue.split("\n")
    assert all(TURN.fullmatch(line) for line in lines)
    speakers = {line.split(":")[0] for line in lines}
    assert speakers == {f"#Person{n}#" for n in range(1, len(speakers) + 1)}, "speakers are numbered without a gap"
    assert lines[0].startswith("#Person1#")


@each
def test_whitespace_normal_form_and_stray_marks(dialogue):
    for text in texts(dialogue):
        assert unicodedata.is_normalized("NFC", text)
        assert text == text.strip() and not re.search(r"[^\S \n]|  | \n|\n\n| [,!?]| \.(?!\.\.)", text)
        assert text.count("#") == 2 * len(PLACEHOLDER.findall(text)), "every # belongs to a placeholder"
        assert text.count('"') % 2 == 0


@each
def test_summaries(dialogue):
    first, second = dialogue.summaries
    assert first != second
    for summary in dialogue.summaries:
        assert "\n" not in summary and summary.endswith("다.") and len(summary) >= 40
        assert len(summary) < 0.65 * len(dialogue.dialogue)
        assert all(sentence.endswith("다") for sentence in summary.rstrip(".").split(". ")), "plain style throughout"
        assert people(summary) and people(summary) <= people(dialogue.dialogue)
        assert set(PLACEHOLDER.findall(summary)) <= set(PLACEHOLDER.findall(dialogue.dialogue))
        assert not re.search("[ㄱ-ㅎㅏ-ㅣ]", summary), "chat spelling stays in the chat"


@each
def test_numbers_of_a_summary_are_said_in_the_dialogue(dialogue):
    told = set(NUMBER.findall(PLACEHOLDER.sub("", " ".join(dialogue.summaries))))
    said = set(NUMBER.findall(PLACEHOLDER.sub("", dialogue.dialogue)))
    assert told - said == INFERRED.get(dialogue.fname, set())


@each
def test_particles_after_placeholders(dialogue):
    for text in texts(dialogue):
        for name, form in PARTICLE.findall(text):
            assert attach(name, FORMS[form]) == name + form, f"{name}{form}"
        for name, form in COPULA.findall(text):
            assert form.startswith("이") == bool(coda(name)), f"{name}{form}"
        assert not re.search(r"#Person[13]#(?:는|가|를|와)(?![가-힣])|#Person[24]#(?:은|을|과)(?![가-힣])", text)


@pytest.mark.parametrize(
    "wrong", ["#Person1#는 간다", "#Person2#은 간다", "#Person3#가 간다", "#Person4#과 간다", "#Person1#으로"]
)
def test_the_particle_check_sees_mistakes(wrong):
    ((name, form),) = PARTICLE.findall(wrong)
    assert attach(name, FORMS[form]) != name + form


def test_no_template():
    seen = [{turn.split(": ", 1)[1] for turn in d.dialogue.splitlines()} for d in DIALOGUES]
    long_turns = [turn for turns in seen for turn in turns if len(turn) > 10]
    assert len(long_turns) == len(set(long_turns)), "no turn of more than ten characters occurs in two dialogues"
