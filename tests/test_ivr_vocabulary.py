"""In-place vocabulary replacement, the vocabulary's side: what must hold for any base, any corpus and any hand-edited rule."""

import csv
import json
import os
import random
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from korlab.core.errors import LabError
from korlab.core.files import read_json
from korlab.experiment import checkpoints
from korlab.ivr import counting
from korlab.ivr.bpe import (
    Bpe,
    BpeError,
    as_bytes,
    as_symbols,
    bpe_of,
    orphans,
    parsed,
    read_bpe,
    segmented,
    tokenizer,
    written,
)
from korlab.ivr.counting import Corpus, CountError, count_corpora, read_counts, texts_of
from korlab.ivr.distilling import distil, fidelity, first_scores, save_student, student
from korlab.ivr.fresh import fresh
from korlab.ivr.joining import Joiner, whole_characters
from korlab.ivr.remapping import (
    MANIFEST,
    MismatchError,
    VerifyError,
    english_change,
    manifest_of,
    random_texts,
    read_manifest,
    remapped,
    require_match,
    save,
    verify,
    write_manifest,
)
from korlab.ivr.rules import Rule, RuleError, Rules, read_rules, rules_of, write_rules
from korlab.ivr.selecting import (
    SelectError,
    Wishes,
    curve_figure,
    protected,
    retirement,
    select,
    under_trained,
    worth,
    write_log,
)

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
ENGLISH = [("t", "h"), ("th", "e"), (" ", "the"), ("i", "n"), ("e", "r"), ("a", "n"), ("o", "n"), (" ", "a"), ("r", "e"), (" the", "n"),
           ("in", "g"), ("on", "e"), ("the", "re"), ("an", "d"), (" ", "and"), ("th", "ing"), ("a", "t"), (" ", "th"), (" th", "at"),
           (" th", "ing"), ("s", "t"), ("er", "s"), ("H", "T"), ("HT", "M")]
KOREAN = ["안녕하세요, 오늘 날씨가 참 좋네요.", "오늘은 집에서 책을 읽었어요.", "날씨가 좋아서 산책을 했습니다.", "책을 읽는 것이 좋습니다.",
          "안녕히 가세요. 내일 또 만나요!", "내일은 비가 온다고 합니다.", "좋은 하루 되세요, 안녕!"] * 4
TEXTS = ["there is one thing and that is the thing", "then and there the others are reading on"]


def corpora(*korean: str, english: list[str] = TEXTS) -> list[Corpus]:
    rows = [{"text": text} for text in korean or KOREAN]
    return [Corpus("ko", rows), Corpus("en", [{"text": text} for text in english], target=False)]


@pytest.fixture(scope="module")
def base() -> Bpe:
    return bpe_of(ENGLISH)


@pytest.fixture(scope="module")
def counts(base, tmp_path_factory):
    return count_corpora(base, corpora(), tmp_path_factory.mktemp("counts") / "counts")


@pytest.fixture(scope="module")
def rules(base, counts) -> Rules:
    return rules_of(base, select(base, counts, Wishes(budget=12)))


def with_pre_tokenizer(bpe: Bpe, pre: dict) -> Bpe:
    return parsed(json.dumps(json.loads(bpe.json) | {"pre_tokenizer": pre}), bpe.config)


GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2]}
LLAMA3 = {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"},
     "behavior": "Isolated", "invert": False}, GPT2 | {"use_regex": False}]}

# ---- the table ---------------------------------------------------------------------------------------------------


@given(st.binary(max_size=40))
def test_bytes_and_their_letters_are_one_to_one(piece):
    assert as_bytes(as_symbols(piece)) == piece
    assert len(as_symbols(piece)) == len(piece)


def test_golden_letters():
    assert as_symbols(" 안녕\n".encode()) == "ĠìķĪëħķĊ"
    assert as_bytes("Ġspitting") == b" spitting"
    with pytest.raises(BpeError, match="stands for no byte"):
        as_bytes("▁the")


def test_the_same_table_from_every_form(base, tmp_path):
    save(base, tmp_path / "all")
    one = [read_bpe(tmp_path / "all" / name) for name in ("", "tokenizer.json", "vocab.json")]
    assert one == [base] * 3 and {each.sha256 for each in one} == {base.sha256}
    old = json.loads(base.json)
    old["model"]["merges"] = [" ".join(pair) for pair in old["model"]["merges"]]  # as files were written for years
    (tmp_path / "old.json").write_text(json.dumps(old), encoding="utf-8")
    assert read_bpe(tmp_path / "old.json") == base
    for name in ("tokenizer.json", "vocab.json"):
        (tmp_path / "all" / name).unlink()
    with pytest.raises(BpeError, match="neither a tokenizer.json nor vocab.json"):
        read_bpe(tmp_path / "all")


def test_a_table_that_does_not_fit_together_is_refused(base):
    whole = json.loads(base.json)
    for change, said in (
        (lambda m: m["merges"].append(["z", "q"]), "'zq' is not in the vocabulary"),
        (lambda m: m["vocab"].pop("ķ"), "belongs to no token"),
        (lambda m: m["vocab"].update({"Ġnew": 9999}), "belongs to no token"),
        (lambda m: m.update(type="WordPiece"), "not a byte-level BPE"),
        (lambda m: m.update(byte_fallback=True), "byte fallback"),
    ):
        found = json.loads(json.dumps(whole))
        change(found["model"])
        with pytest.raises(BpeError, match=said):
            parsed(json.dumps(found))


# ---- counting ----------------------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)
LIKELY = st.lists(st.sampled_from(["the", " ", "  ", "\n", " the", "안녕", "12", "3", "'s", ".", "\t", "\x1c", "\x85", "\u3000", "<|endoftext|>", "e\u0301"]),
                  min_size=1, max_size=12).map("".join)


def plainly(bpe: Bpe, texts: list[str]) -> tuple[list[int], Counter]:
    """Encode text by text and count."""
    made, tokens, pairs = tokenizer(bpe), np.zeros(bpe.size, np.int64), Counter()
    for text in texts:
        found = made.encode(text, add_special_tokens=False)
        np.add.at(tokens, found.ids, 1)
        words = found.word_ids
        pairs.update((a, b) for a, b, x, y in zip(found.ids, found.ids[1:], words, words[1:]) if x == y is not None)
    return tokens.tolist(), pairs


@pytest.mark.parametrize("pre", (GPT2, DIGITS, LLAMA3), ids=("gpt2", "digits", "llama3"))
@QUICK
@given(texts=st.lists(st.one_of(ANY_TEXT, LIKELY), min_size=1, max_size=8), bound=st.sampled_from([2, 7, 10_000]))
def test_counts_are_those_of_encoding_text_by_text(tmp_path, base, pre, texts, bound):
    bpe = with_pre_tokenizer(base, pre)
    corpus = Corpus("ko", [{"text": text} for text in texts])
    read = [*texts_of(corpus, counting._report(corpus))]
    assume(read)
    found = count_corpora(bpe, [corpus], tmp_path / "counts", bound=bound)
    tokens, pairs = plainly(bpe, read)
    assert found.tokens[0].tolist() == tokens
    keys, values = found.pairs()
    assert dict(zip(keys, values[0].tolist())) == pairs
    assert sum(int(n.sum()) for _, n in found.pretokens()) == found.corpora[0].pretokens
    assert (found.corpora[0].texts, found.corpora[0].bytes) == (len(read), sum(len(text.encode()) for text in read))


@pytest.mark.parametrize("pre", (GPT2, DIGITS, LLAMA3), ids=("gpt2", "digits", "llama3"))
def test_other_processes_count_the_same(tmp_path, base, pre):
    bpe = with_pre_tokenizer(base, pre)
    texts = [f"{text} the{i} ㅋㅋ~ <|endoftext|>안녕.. {i % 7}'s\n끝" for i, text in enumerate(KOREAN * 3)]
    found = [count_corpora(bpe, corpora(*texts), tmp_path / str(workers), bound=30, workers=workers, chunk_size=size)
             for workers, size in ((1, 1000), (2, 5), (0, 7))]
    for one in found[1:]:
        assert one.corpora == found[0].corpora and (one.tokens == found[0].tokens).all()
        assert one.pairs()[0] == found[0].pairs()[0] and (one.pairs()[1] == found[0].pairs()[1]).all()
        assert [names for names, _ in one.pretokens()] == [names for names, _ in found[0].pretokens()]


def test_texts_are_cut_by_other_processes(tmp_path, base, monkeypatch):
    """`workers` is no idle number: where it is more than one, nothing is cut here."""
    monkeypatch.setattr(counting._Spilling, "add", lambda *given: pytest.fail("cut in the first process"))
    assert count_corpora(base, corpora(), tmp_path / "two", workers=2).corpora[0].texts == len(KOREAN)


def dies(*given):
    os._exit(1)


def test_a_dead_process_is_one_sentence(tmp_path, base, monkeypatch):
    monkeypatch.setattr(counting, "_cut", dies)
    with pytest.raises(CountError, match="one of 2 processes that cut texts died.*lower workers or chunk_size"):
        count_corpora(base, corpora(), tmp_path / "dead", workers=2)
    assert not (tmp_path / "dead").exists()


@pytest.mark.parametrize("workers", (1, 2))
def test_ids_are_those_that_were_counted(tmp_path, base, workers):
    cut_short = parsed(json.dumps(json.loads(base.json) | {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}}))
    texts = ["안녕 <|endoftext|> the\nthing", "a", *KOREAN]
    found = count_corpora(cut_short, corpora(*texts), tmp_path / "ids", workers=workers, chunk_size=3, ids=True)
    lines = (found.folder / counting.IDS).read_text("ascii").split("\n")
    assert lines.pop() == "" and len(lines) == len(texts) + len(TEXTS), "one line a text"
    assert lines[0].split() == [str(i) for i in tokenizer(base).encode(texts[0]).ids], "nothing is cut short"
    seen = np.bincount([int(i) for line in lines for i in line.split()], minlength=base.size)
    assert (seen == found.tokens.sum(0)).all()
    assert not (count_corpora(base, corpora(), tmp_path / "none").folder / counting.IDS).exists(), "only on request"


def test_only_the_first_texts(tmp_path, base):
    found = count_corpora(base, corpora(), tmp_path / "few", most=3, chunk_size=2).corpora
    assert [one.texts for one in found] == [3, 2]
    assert [one.sources["notes"] for one in found] == [["of more texts, the first 3 were looked at"], []]
    assert found[0].characters == sum(map(len, KOREAN[:3]))


@pytest.mark.parametrize("wrong", ({"workers": -1}, {"chunk_size": 0}, {"most": -1}, {"bound": 0}))
def test_a_number_that_means_nothing_is_refused(tmp_path, base, wrong):
    name, number = next(iter(wrong.items()))
    with pytest.raises(CountError, match=f"{name}={number}: give a whole number"):
        count_corpora(base, corpora(), tmp_path / "wrong", **wrong)


def test_folders_in_a_list_are_read_with_theirs(tmp_path, base):
    for name in ("a/one.txt", "a/b/two.txt", "c/d/three.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("안녕\n", encoding="utf-8")
    (tmp_path / "a/b/picture.png").write_bytes(b"")
    found = count_corpora(base, [Corpus("ko", [tmp_path / "a", tmp_path / "c"])], tmp_path / "counts").corpora[0]
    assert found.texts == 3
    assert [note.split("/")[-1] for note in found.sources["notes"]] == ["b: picture.png"]


def test_every_file_form_gives_the_same_counts(base, tmp_path):
    lines = [*dict.fromkeys(KOREAN)]
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    forms = {"a/b.txt": "\n".join(lines).encode(), "c.txt": "\r\n".join(lines).encode("cp949"), "d.json": json.dumps(lines).encode(),
             "e.json": json.dumps([{"id": i, "본문": line} for i, line in enumerate(lines)], ensure_ascii=False, indent=1).encode(),
             "f.jsonl": "\n".join(json.dumps({"text": line}) for line in lines).encode()}
    for name, content in forms.items():
        (data / name).write_bytes(content)
    pq.write_table(pa.table({"sentence": lines}), data / "g.parquet")
    sources = [data / name for name in (*forms, "g.parquet")]
    found = count_corpora(base, [Corpus(f"c{i}", source) for i, source in enumerate(sources)], tmp_path / "counts")
    assert (found.tokens == found.tokens[0]).all() and found.tokens[0].sum() > 100
    whole = count_corpora(base, [Corpus("all", data)], tmp_path / "whole")
    assert (whole.tokens[0] == found.tokens.sum(0)).all(), "a folder is read with its folders"
    assert [one["sha256"] for one in found.corpora[0].sources["files"]]


def test_long_texts_are_not_cut_short(base, tmp_path):
    long = "안녕 " * 5000
    found = count_corpora(base, [Corpus("ko", [{"text": long}])], tmp_path / "counts")
    assert found.corpora[0].tokens == len(tokenizer(base).encode(long).ids)


def test_memory_does_not_grow_with_the_corpus(base, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "_SIDE_BY_SIDE", 3)
    monkeypatch.setattr(counting, "_AT_ONCE", 20)
    chance, peaks = random.Random(0), []
    for size in (300, 2_400):
        path = tmp_path / f"{size}.txt"
        words = ("".join(chr(chance.randint(0xAC00, 0xD7A3)) for _ in range(4)) for _ in range(size * 4))
        path.write_text("".join(f"{next(words)} {next(words)} {next(words)} {next(words)}\n" for _ in range(size)), encoding="utf-8")
        tracemalloc.start()
        table = counting._Spilling(counting._Reader(base, tokenizer(base)), tmp_path / f"runs-{size}", bound=200)
        for text in texts_of(Corpus("ko", path), counting._report(Corpus("ko", path))):
            table.add([text])
        total = sum(count for _, count in table.stream())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total == size * 4
    assert peaks[1] < 2 * peaks[0], f"eight times the corpus: {peaks}"


def test_a_killed_count_leaves_the_old_one_whole(base, counts, tmp_path, monkeypatch):
    folder = tmp_path / "counts"
    before = count_corpora(base, corpora("안녕"), folder).tokens
    monkeypatch.setattr(checkpoints, "write_manifest", lambda draft: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        count_corpora(base, corpora(), folder)
    monkeypatch.undo()
    assert (read_counts(folder, base).tokens == before).all()
    assert (count_corpora(base, corpora(), folder).tokens == counts.tokens).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts"]
    with pytest.raises(CountError, match="counts of another vocabulary"):
        read_counts(folder, bpe_of(ENGLISH[:3]))


# ---- joining and selecting ---------------------------------------------------------------------------------------


def textbook(base: Bpe, words: dict[str, int], number: int) -> list[tuple[bytes, float]]:
    """Byte-pair encoding that counts everything again after each merge."""
    rows, known, made = [[base.pieces[i] for i in ids] for ids in segmented(base, [w.encode() for w in words])], {*base.pieces}, []
    order = {piece: i for piece, i in base.ids.items()}
    for _ in range(number):
        pairs: Counter = Counter()
        for row, count in zip(rows, words.values()):
            for left, right in zip(row, row[1:]):
                if whole_characters(left + right) and left + right not in known:
                    pairs[left, right] += count
        if not pairs or max(pairs.values()) < 2:
            return made
        left, right = min(pairs, key=lambda pair: (-pairs[pair], order[pair[0]], order[pair[1]]))
        made.append((left + right, pairs[left, right]))
        known.add(left + right)
        order[left + right] = base.size + len(made) - 1
        for i, row in enumerate(rows):
            out: list[bytes] = []
            joined = False
            for one in row:
                if out and not joined and (out[-1], one) == (left, right):
                    out[-1], joined = left + right, True
                else:
                    out.append(one)
                    joined = False
            rows[i] = out
    return made


@QUICK
@given(st.dictionaries(st.text("안녕하세요이는", min_size=1, max_size=6), st.integers(1, 9), min_size=1, max_size=8))
def test_merging_is_that_of_the_textbook(words):
    plain = bpe_of([])
    spaced = {f" {word}": count for word, count in words.items() if not any(a == b for a, b in zip(word, word[1:]))}
    assume(spaced)
    joiner = Joiner(plain, (), [*spaced], np.array([*spaced.values()], float))
    found = []
    while one := joiner.step():
        found.append((one.piece, one.gain))
    assert found == textbook(plain, spaced, len(found) + 1)


def pieces(bpe: Bpe, ids) -> list[str]:
    return [written(bpe.pieces[i]) for i in ids]


@QUICK
@given(data=st.data())
def test_retirement_orphans_nothing(data, base):
    """Whatever the counts are and wherever one stops, what stays is closed and reads its own tokens."""
    n = base.size
    of = np.random.default_rng(data.draw(st.integers(0, 10_000))).integers(0, 50, (1, n))
    fake = type("Fake", (), {"corpora": [type("One", (), {"weight": 1.0, "target": False})], "tokens": of})()
    value, safe = worth(base, fake, Wishes(prior=data.draw(st.sampled_from([0.0, 1.0])))), protected(base)
    order = retirement(base, value, safe)
    k = data.draw(st.integers(0, len(order)))
    gone = {one.id for one in order[:k]}
    assert not gone & safe and len({one.id for one in order}) == len(order)
    for left, right, made in base.merges:
        assert made in gone or not {left, right} & gone
    total = value.all.sum()
    assert all(one.cost <= total + 1e-6 and one.reference <= one.cost + 1e-9 for one in order)


def test_golden_selection(base, counts):
    chosen = select(base, counts, Wishes(budget=12))
    assert chosen == select(base, counts, Wishes(budget=12)), "the same twice"
    assert len(chosen.made) == 12 and {one.id for one in chosen.made} == {one.id for one in chosen.retired}
    assert [one.id for one in chosen.made] == sorted(one.id for one in chosen.retired)
    assert pieces(base, [one.id for one in chosen.retired[:3]]) == [" thing", "HTM", "HT"]
    assert all(whole_characters(one.piece) for one in chosen.made)
    gains = [one.gain for one in chosen.made]
    assert gains[0] == max(gains) and chosen.curve[12].target < 0.76 and chosen.curve[12].reference > 1


def test_wishes_are_granted(base, counts):
    everything = len(retirement(base, worth(base, counts), protected(base)))
    kept = select(base, counts, Wishes(budget=3, keep=["there"], stay=[" that"]))
    gone = {one.id for one in kept.retired}
    assert not gone & {base.ids[b"there"], base.ids[b" that"], base.ids[b"the"], base.ids[b"at"]}
    with pytest.raises(SelectError, match=f"asks for {everything:,} tokens"):
        select(base, counts, Wishes(budget=everything, stay=[" that"]))
    assert not any("안녕" in written(one.piece) for one in select(base, counts, Wishes(budget=15, forbid=["안녕"])).made)
    loose = select(base, counts, Wishes(budget=15, inside=True))
    assert len(loose.made) == 15
    norms = [3 + 0.01 * (i % 7) for i in range(base.size)]
    norms[base.ids[b" that"]] = 0.05
    assert under_trained(norms) == {base.ids[b" that"]}
    first = [[base.pieces[one.id] for one in select(base, counts, Wishes(budget=4, norms=given)).retired] for given in (None, norms)]
    assert b" that" not in first[0] and b" that" in first[1]


def test_digits_punctuation_and_blanks_stay(tmp_path):
    bpe = bpe_of([("1", "9"), ("19", "8"), (" ", "198"), (".", "."), (" ", "("), (" ", " "), ("x", "y"), ("a", "1")])
    assert pieces(bpe, sorted(protected(bpe))[256:]) == ["19", "198", " 198", "..", " (", "  ", "<|endoftext|>"]


def test_a_budget_finds_itself(base, counts):
    auto = [len(select(base, counts, Wishes(budget="auto", most=0.05, margin=margin)).made) for margin in (0.0, 0.3, 100)]
    assert auto[0] >= auto[1] >= auto[2] >= 1 and auto[0] > auto[2]


def test_an_orphan_of_the_base_goes_first(tmp_path):
    whole = json.loads(bpe_of([("h", "e"), ("t", "h"), ("th", "e"), ("o", "n")]).json)
    bpe = parsed(json.dumps(whole))
    assert pieces(bpe, orphans(bpe)) == ["the"]
    found = count_corpora(bpe, corpora("안녕 안녕 안녕", english=["on the on th"]), tmp_path / "c")
    chosen = select(bpe, found, Wishes(budget=1))
    assert pieces(bpe, [chosen.retired[0].id]) == ["the"]
    new = remapped(bpe, rules_of(bpe, chosen))
    save(new, tmp_path / "new", manifest_of(bpe, new))
    assert verify(bpe, new, tmp_path / "new", number=50)


def test_the_log_can_be_read_again(base, counts, tmp_path):
    chosen = select(base, counts, Wishes(budget=12))
    write_log(base, chosen, tmp_path / "candidates.csv", tmp_path / "log.md")
    with open(tmp_path / "candidates.csv", encoding="utf-8-sig", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [bytes.fromhex(row["new_hex"]) for row in rows] == [one.piece for one in chosen.made]
    assert [base.pieces[int(row["id"])].hex() for row in rows] == [row["old_hex"] for row in rows]
    assert len(curve_figure(chosen).axes) == 2
    assert "| replaced | 12 |" in (tmp_path / "log.md").read_text(encoding="utf-8")


# ---- rules -------------------------------------------------------------------------------------------------------


def test_rules_survive_a_file_and_another_layout(base, rules, tmp_path):
    path = tmp_path / "rules.yaml"
    write_rules(path, rules)
    assert read_rules(path, base) == rules
    import yaml

    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")), allow_unicode=True), encoding="utf-8")
    assert read_rules(path, base) == rules


def edited(rules: Rules, number: int, **change) -> Rules:
    return replace(rules, rules=tuple(one._replace(**change) if i == number else one for i, one in enumerate(rules.rules, 1)))


MISTAKES = {
    "unknown id": (lambda b, r: edited(r, 3, id=99_999), r"rule 3 .*no such id"),
    "negative id": (lambda b, r: edited(r, 3, id=-1), r"rule 3 .*no such id"),
    "a byte": (lambda b, r: edited(r, 2, id=65, old=b"b"), r"rule 2 .*a single byte"),
    "an added token": (lambda b, r: edited(r, 2, id=b.size - 1), r"rule 2 .*an added token"),
    "another old token": (lambda b, r: edited(r, 4, old=b"xyz"), r"rule 4 .*'xyz' is no token of it"),
    "id twice": (lambda b, r: edited(r, 5, id=r.rules[0].id, old=r.rules[0].old), r"rule 5 .*rule 1 \(line 7\) has this id already"),
    "token twice": (lambda b, r: edited(r, 5, new=r.rules[0].new), r"rule 5 .*rule 1 \(line 7\) makes this token already"),
    "a token that is there": (lambda b, r: edited(r, 5, new=b"the"), r"rule 5 .*is there already"),
    "a swap": (lambda b, r: edited(edited(r, 5, new=r.rules[5].old), 6, new=r.rules[4].old), r"rule 5 .*a swap"),
    "a chain": (lambda b, r: edited(r, 5, new=r.rules[6].old), r"rule 5 .*a chain"),
    "a half that is no id": (lambda b, r: edited(r, 1, left=99_999), r"rule 1 \(line 7, .*left is 99,999.*: give one from 0 to"),
    "an added token as half": (lambda b, r: edited(r, 1, right=b.size - 1), r"rule 1 .*right is"),
    "halves that do not make it": (lambda b, r: edited(r, 1, left=65), r"rule 1 .*do not make it: correct new, left or right, bring back"),
    "halves exchanged": (lambda b, r: edited(r, 1, left=r.rules[0].right, right=r.rules[0].left), r"rule 1 .*: exchange left and right"),
    "order": (lambda b, r: replace(r, rules=r.rules[::-1]), r"rule \d+ .*move that rule above"),
    "a retired token that is needed": (lambda b, r: replace(r, rules=(*r.rules, Rule(b.ids[b"th"], b"th", "벼".encode(), *[b.ids[b"x"]] * 2))), r"rule 13"),
    "another base": (lambda b, r: replace(r, base="0" * 64), "for another vocabulary"),
    "nothing": (lambda b, r: replace(r, rules=()), "there are no rules.*korlab ivr select --force"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_of_a_hand_is_refused_with_its_row(base, rules, tmp_path, name):
    make, said = MISTAKES[name]
    path = tmp_path / "rules.yaml"
    write_rules(path, make(base, rules))
    with pytest.raises(RuleError, match=said) as caught:
        read_rules(path, base)
    assert "rules.yaml" in str(caught.value)


def without(row: dict, name: str) -> dict:
    return {key: value for key, value in row.items() if key not in (name, f"{name}_hex")}


FORMS = {  # what a hand may make of row 3 of the file
    "an id in quotes": (lambda row: row | {"id": "7"}, "rule 3: id is '7', which is no id"),
    "a yes for an id": (lambda row: row | {"id": True}, "rule 3: id is True, which is no id"),
    "half an id": (lambda row: row | {"left": 1.5}, "rule 3: left is 1.5, which is no id"),
    "no id": (lambda row: without(row, "id"), "rule 3: id is None, which is no id"),
    "no new token": (lambda row: without(row, "new"), "rule 3 has neither 'new' nor 'new_hex'"),
    "two new tokens": (lambda row: without(row, "new") | {"new": "가", "new_hex": "41"}, "rule 3 has both 'new' and 'new_hex'"),
    "a number for a token": (lambda row: without(row, "new") | {"new": 12}, "rule 3: new is 12, which is no text"),
    "half a character": (lambda row: without(row, "new") | {"new": "\ud800"}, "rule 3: new is .*, which is no text"),
    "an empty token": (lambda row: without(row, "old") | {"old": ""}, "rule 3: old is empty"),
    "no hexadecimal": (lambda row: without(row, "new") | {"new_hex": "zz"}, "rule 3: new_hex is 'zz', which is no hexadecimal: write two of 0-9 and a-f for each byte"),
    "another key": (lambda row: row | {"neu": 1}, "rule 3 has 'neu', which means nothing"),
    "a text": (lambda row: "가", "rule 3 is str, no object"),
    "nothing": (lambda row: None, "rule 3 is NoneType, no object"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_row_of_another_form_is_refused_with_its_number(base, rules, tmp_path, name):
    change, said = FORMS[name]
    path = tmp_path / "rules.yaml"
    write_rules(path, rules)
    lines = path.read_text("utf-8").split("\n")
    third = [i for i, line in enumerate(lines) if line.startswith("- ")][2]
    lines[third] = f"- {json.dumps(change(json.loads(lines[third][2:])))}"
    path.write_text("\n".join(lines), "utf-8")
    with pytest.raises(RuleError, match=f"rules.yaml: {said}".replace("rule 3", rf"rule 3 \(line {third + 1}\)")):
        read_rules(path, base)


def test_digits_punctuation_and_blanks_stay_in_edited_rules_as_well(tmp_path):
    bpe, path = bpe_of([("1", "9"), (".", "."), (" ", '"'), (" ", "|"), (" ", "3"), ("x", "y")]), tmp_path / "rules.yaml"
    a, b = bpe.ids[b"a"], bpe.ids[b"b"]
    for piece in (b"19", b"..", b' "', b" |", b" 3"):
        write_rules(path, Rules(bpe.sha256, (Rule(bpe.ids[piece], piece, b"ab", a, b),)))
        with pytest.raises(RuleError, match=r"rules.yaml: rule 1 \(line 7, id \d+, .*of digits, punctuation or blank space, which always stay: take the id of another"):
            read_rules(path, bpe)
    write_rules(path, Rules(bpe.sha256, (Rule(bpe.ids[b"xy"], b"xy", b"ab", a, b),)))
    assert len(read_rules(path, bpe).rules) == 1


def test_a_hand_may_retire_what_select_may_and_no_more(base, rules, tmp_path):
    """A token that somebody's list keeps is kept from a hand as well; without the list it may go."""
    write_rules(path := tmp_path / "rules.yaml", rules)
    kept = base.pieces[rules.rules[4].id].decode()
    assert read_rules(path, base) == rules
    with pytest.raises(RuleError, match=r"rule 5 \(line 11, .*kept by keep_tokens or keep_words: take it out of that file"):
        read_rules(path, base, Wishes(stay=[kept]))
    with pytest.raises(RuleError, match=r"a token of fewer characters than min_token_len, 99"):
        read_rules(path, base, Wishes(shortest=99))


def test_files_that_are_no_rules_at_all_say_what_they_lack(base, tmp_path):
    path = tmp_path / "rules.yaml"
    for text, said in (("", "the file is empty: have them proposed anew"), ("침뱉기: 침\n", "there is no `version` and no `base` and no `rules`"),
                       (f"version: 2\nbase: {base.sha256}\nrules:\n", "there are no rules, so nothing would change: bring some back")):
        path.write_text(text, "utf-8")
        with pytest.raises(RuleError) as caught:
            read_rules(path, base)
        assert f"rules.yaml: {said}" in str(caught.value) and "korlab ivr select --force" in str(caught.value) and "None" not in str(caught.value)


@pytest.mark.parametrize(("old", "new", "said"), [
    ("version: 2", "version: 1", "version is 1, and 2"), ("version: 2\n", "", "there is no `version`.*put back `version: 2`"), ("rules:", "regeln:", "there is no `rules`"),
    ("base: ", "#base: ", "there is no `base`.*put back `base: [0-9a-f]{64}`"), ('"left"', '"left', "line 7: this is not readable YAML"), ('{"id": ', '{"id": 1, "id": ', "the key 'id' appears twice"),
])
def test_a_file_of_another_form_is_refused(base, rules, tmp_path, old, new, said):
    path = tmp_path / "rules.yaml"
    write_rules(path, rules)
    path.write_text(path.read_text("utf-8").replace(old, new, 1), "utf-8")
    with pytest.raises(LabError, match=said) as caught:
        read_rules(path, base)
    assert "rules.yaml" in str(caught.value)


def test_a_token_that_nothing_is_cut_into_is_refused_with_its_row(base, rules):
    """`th` is joined before `hx` can be, so `thx` made of `t` and `hx` would never be seen."""
    gone = [rule for rule in rules.rules if not {rule.id} & {half for other in rules.rules for half in (other.left, other.right)}][-2:]
    t, h, x = (base.ids[one] for one in (b"t", b"h", b"x"))
    made = (Rule(gone[0].id, gone[0].old, b"hx", h, x), Rule(gone[1].id, gone[1].old, b"thx", t, gone[0].id))
    kept = tuple(rule for rule in rules.rules if rule not in gone)
    with pytest.raises(RuleError, match=rf"rule {len(kept) + 2} .*'thx' is always cut into 'th' \+ 'x'"):
        remapped(base, replace(rules, rules=(*kept, *made)))


@QUICK
@given(data=st.data())
def test_any_edit_is_refused_with_a_row_or_gives_a_sound_vocabulary(base, rules, data):
    rows = [*rules.rules]
    for _ in range(data.draw(st.integers(1, 3))):
        at, other = (data.draw(st.integers(0, len(rows) - 1)) for _ in range(2))
        what = data.draw(st.sampled_from(["drop", "move", "swap", "id", "left", "right", "new"]))
        if what == "drop" and len(rows) > 1:
            rows.pop(at)
        elif what == "move":
            rows.insert(other, rows.pop(at))
        elif what == "swap":
            rows[at], rows[other] = rows[at]._replace(id=rows[other].id, old=rows[other].old), rows[other]._replace(id=rows[at].id, old=rows[at].old)
        elif what == "id":
            i = data.draw(st.integers(-1, base.size))
            rows[at] = rows[at]._replace(id=i, old=base.pieces[i] if 0 <= i < base.size else b"?")
        elif what == "new":
            left, right = (data.draw(st.integers(0, base.size - 2)) for _ in range(2))
            rows[at] = rows[at]._replace(left=left, right=right, new=base.pieces[left] + base.pieces[right])
        else:
            rows[at] = rows[at]._replace(**{what: data.draw(st.integers(-1, base.size))})
    edited_rules = replace(rules, rules=tuple(rows))
    try:
        new = remapped(base, edited_rules)
    except RuleError as error:
        assert "rule " in str(error)
        return
    gone = {one.id: one.new for one in rows}
    assert list(new.pieces) == [gone.get(i, piece) for i, piece in enumerate(base.pieces)] and new.added == base.added
    assert set(orphans(new)) <= set(orphans(base))
    assert [one for one in new.merges if one.made not in gone] == [one for one in base.merges if one.made not in gone]
    made = tokenizer(new)
    for text in [*random_texts(10, 1), *KOREAN[:5], *TEXTS]:
        assert made.decode(made.encode(text).ids, skip_special_tokens=False) == text
    assert segmented(new, [new.pieces[i] for i in gone]) == [[i] for i in gone]


def test_closure_names_the_token_that_stays(base, rules):
    needed = next(one for one in base.merges if one.made not in {rule.id for rule in rules.rules} and base.pieces[one.left] == b"th")
    rule = Rule(needed.left, b"th", b"qx", base.ids[b"q"], base.ids[b"x"])
    with pytest.raises(RuleError, match=r"rule 1 .*which stays, is made of this token"):
        remapped(base, Rules(base.sha256, (rule,)))


def test_a_taken_out_row_is_refused_or_right(base, rules, tmp_path):
    """Whichever row a person deletes: what is read is a vocabulary, or the row in the way is named."""
    fine = 0
    for i in range(len(rules.rules)):
        path = tmp_path / "rules.yaml"
        write_rules(path, replace(rules, rules=rules.rules[:i] + rules.rules[i + 1 :]))
        try:
            new = remapped(base, read_rules(path, base))
        except RuleError as error:
            assert "rule " in str(error)
            continue
        fine += 1
        assert set(orphans(new)) <= set(orphans(base)) and new.pieces[rules.rules[i].id] == rules.rules[i].old
    assert fine


# ---- remapping ---------------------------------------------------------------------------------------------------


def test_the_new_vocabulary_is_proved(base, rules, tmp_path):
    new = remapped(base, rules)
    save(new, tmp_path / "new", manifest_of(base, new))
    proof = verify(base, new, tmp_path / "new", TEXTS, number=2_000)
    assert len(proof.checks) == 16 and not any(one.failed for one in proof.checks)
    looked = {one.name: one.looked for one in proof.checks}
    assert looked["kept ids unchanged"] == base.size - 12 and looked["texts come back from AutoTokenizer"] == 2_000
    held = "오늘 날씨가 좋습니다. 안녕하세요!"
    assert len(tokenizer(new).encode(held).ids) < 0.8 * len(tokenizer(base).encode(held).ids)
    assert tokenizer(new).encode("<|endoftext|>").ids == [base.size - 1]


MERGES = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), min_size=1, max_size=30)


@QUICK
@given(steps=MERGES, words=st.lists(st.text("안녕하세요the 12.", min_size=1, max_size=12), min_size=2, max_size=12), seed=st.integers(0, 99))
def test_any_base_and_any_corpus_give_a_sound_vocabulary(tmp_path, steps, words, seed):
    """Merges of anything with anything, bytes of half characters among them; words of a mixed corpus."""
    texts, merges = ["t", "h", "e", " ", "안", "녕", "1", "2", "."], []
    for left, right in steps:
        pair = texts[left % len(texts)], texts[right % len(texts)]
        if "".join(pair) not in texts and not any("".join(pair) == "".join(one) for one in merges):
            if all(len(text.encode()) == 1 or text in {"".join(one) for one in merges} for text in pair):
                merges.append(pair)
                texts.append("".join(pair))
    assume(merges)
    base = bpe_of(merges)
    assume(any(word.strip() for word in words))
    found = count_corpora(base, corpora(*[word for word in words if word.strip()] * 2), tmp_path / "counts")
    try:
        chosen = select(base, found, Wishes(budget=1 + seed % 7, least=1))
    except SelectError:
        return
    new = remapped(base, rules_of(base, chosen))
    assert new.size == base.size and new.added == base.added and new.alphabet == base.alphabet
    gone = {one.id for one in chosen.retired}
    assert [new.pieces[i] for i in range(new.size) if i not in gone] == [base.pieces[i] for i in range(base.size) if i not in gone]
    assert set(orphans(new)) <= set(orphans(base))
    for one in new.merges:  # closed: nothing is made of what is not there, and of nothing but what is made before
        assert new.pieces[one.left] + new.pieces[one.right] == new.pieces[one.made]
    kept = [one for one in base.merges if one.made not in gone]
    assert list(new.merges) == kept + [(one.left, one.right, one.id) for one in chosen.made], "every kept merge in its order, then the new ones"
    loaded = read_bpe(save(new, tmp_path / "new", manifest_of(base, new)))
    assert loaded == new
    made = tokenizer(loaded)
    for text in random_texts(40, seed):
        assert made.decode(made.encode(text).ids, skip_special_tokens=False) == text
    news = {one.piece for one in chosen.made}
    for text in words:  # what held no retired token and no new one is cut as before
        before, after = ([bpe.pieces[i] for i in tokenizer(bpe).encode(text).ids] for bpe in (base, new))
        assert before == after or {base.pieces[i] for i in gone} & {*before} or news & {*after}


def test_what_a_broken_file_does_is_seen(base, rules, tmp_path):
    new = remapped(base, rules)
    folder = save(new, tmp_path / "new", manifest_of(base, new))
    whole = read_json(folder / "tokenizer.json")
    vocab = whole["model"]["vocab"]
    first, second = (as_symbols(rule.new) for rule in rules.rules[:2])
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(VerifyError, match="AutoTokenizer reads the same"):
        verify(base, new, folder, number=300)
    with pytest.raises(VerifyError, match="size of the vocabulary"):
        verify(base, bpe_of([*ENGLISH, ("q", "q")]), folder, number=10)


def test_a_tokenizer_that_splits_digits_goes_on_doing_so(base, rules, tmp_path):
    from transformers import AutoTokenizer

    smol = replace(with_pre_tokenizer(base, DIGITS), config={"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"})
    new = remapped(smol, rules)
    folder = save(new, tmp_path / "new", manifest_of(smol, new))
    assert AutoTokenizer.from_pretrained(folder).tokenize(" 2026") == ["Ġ", "2", "0", "2", "6"]
    assert not any(one.failed for one in verify(smol, new, folder, number=500).checks)


def test_a_model_refuses_another_tokenizer(base, rules, tmp_path):
    new = remapped(base, rules)
    save(new, tmp_path / "new", manifest_of(base, new))
    assert read_manifest(tmp_path / "new").replaced == tuple(sorted(rule.id for rule in rules.rules))
    require_match(tmp_path / "new", read_bpe(tmp_path / "new"))
    with pytest.raises(MismatchError, match="from before the replacement"):
        require_match(tmp_path / "new", base)
    (tmp_path / "new" / MANIFEST).unlink()
    require_match(tmp_path / "new", base)
    (tmp_path / "model").mkdir()
    write_manifest(tmp_path / "model", manifest_of(base, new))  # it travels with the model
    with pytest.raises(MismatchError, match="12 ids would mean something else"):
        require_match(tmp_path / "model", bpe_of(ENGLISH[:4]))


# ---- the table as a Unigram --------------------------------------------------------------------------------------


def test_the_student_loses_nothing_and_learns(base, counts, tmp_path):
    texts = [*dict.fromkeys(KOREAN), *TEXTS]
    plain, learnt = (fidelity(base, one, texts) for one in (student(base, first_scores(counts)), distil(base, counts)))
    assert (learnt.round_trip, learnt.table, learnt.texts) == (1, 1, len(texts))
    assert learnt.exact >= plain.exact and learnt.f1 >= plain.f1 and learnt.exact > 0.5
    assert fidelity(base, distil(base, counts, rounds=0), random_texts(500)).round_trip == 1
    folder = save_student(base, distil(base, counts), tmp_path / "student", learnt)
    assert read_json(folder / "fidelity.json")["exact"] == learnt.exact


def test_a_base_that_lacks_bytes_loses_what_it_lost(base, tmp_path):
    """As SmolLM2's, which has no token for some controls: that text is lost as before, and all else comes back."""
    whole = json.loads(base.json)
    vocab = [name for name in sorted(whole["model"]["vocab"], key=whole["model"]["vocab"].get) if name != as_symbols(b"\x04")]
    whole["model"]["vocab"] = {name: i for i, name in enumerate(vocab)}
    whole["added_tokens"][0]["id"] = len(vocab) - 1
    poor = parsed(json.dumps(whole))
    assert len(poor.alphabet) == 255 and 4 not in poor.alphabet
    new = remapped(poor, rules_of(poor, select(poor, count_corpora(poor, corpora(), tmp_path / "counts"), Wishes(budget=12))))
    proof = verify(poor, new, save(new, tmp_path / "new", manifest_of(poor, new)), number=2_000)
    assert 0 < proof.lost < 500 and not any(one.failed for one in proof.checks)


def test_a_vocabulary_from_scratch_keeps_bytes_that_stand_elsewhere(base):
    """As SmolLM2's, whose added tokens come first: the id of a byte is not its number."""
    whole = json.loads(base.json)
    vocab = sorted(whole["model"]["vocab"], key=whole["model"]["vocab"].get)
    whole["model"]["vocab"] = {name: i for i, name in enumerate([vocab[-1], *vocab[:-1]])}
    whole["added_tokens"][0]["id"] = 0
    moved = parsed(json.dumps(whole))
    new = fresh(moved, KOREAN)
    assert new.size == moved.size and new.alphabet == moved.alphabet and new.added == moved.added
    assert "안녕".encode()[:2] in new.ids


# ---- the real thing ----------------------------------------------------------------------------------------------

REAL = Path(os.environ.get("KORLAB_TEST_DATA", "/nowhere"))


@pytest.mark.skipif(not (REAL / "tokenizers/gpt2").is_dir(), reason="KORLAB_TEST_DATA has no tokenizers/gpt2")
def test_real_vocabulary_on_held_out_text(tmp_path):
    bpe = read_bpe(REAL / "tokenizers/gpt2")
    assert (bpe.size, len(bpe.merges), bpe.added[0].id, orphans(bpe)) == (50_257, 50_000, 50_256, ())
    lines = [line for name in ("ko_chatbot", "ko_kobest_hellaswag", "ko_nsmc_reviews") for line in (REAL / f"text/{name}.txt").read_text("utf-8").split("\n") if line]
    random.Random(0).shuffle(lines)
    (tmp_path / "train.txt").write_text("\n".join(lines[3000:]), encoding="utf-8")
    found = count_corpora(bpe, [Corpus("ko", tmp_path / "train.txt")], tmp_path / "counts")
    new = remapped(bpe, rules_of(bpe, select(bpe, found)))
    english = (REAL / "text/en_moby_dick.txt").read_text("utf-8")
    assert english_change(bpe, new, lines[:3000])["tokens"] <= 0.27
    assert english_change(bpe, new, [english])["tokens"] <= 1.005  # a novel, with no English to go by but the order of merges
