"""Data of the study of recalled names, whole: messy files to sealed sets, gold chains, windows and batches."""

import csv
import io
import json
import os
import random
import unicodedata
import weakref
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import count, islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from korlab.core.accounts import DataError
from korlab.core.errors import LabError
from korlab.core.files import read_json
from korlab.core.text import normalize, text_hash
from korlab.coref import corpora
from korlab.coref.collator import Collator, collate, mask_probability
from korlab.coref.corpora import RECIPES, Source, Splits, build, check_overlap, load_samples, unseen
from korlab.coref.gold import load_gold
from korlab.coref.mentions import WorkerError, find_mentions, mentions_of, over_processes
from korlab.coref.samples import V1, Limits, Sample, samples_among
from korlab.coref.windows import TokenizerError, window, windows

NAMES = (
    "삼성전자 현대자동차 카카오뱅크 네이버 한국은행 국민은행 신한은행 포스코 대한항공 아시아나항공 셀트리온 넥슨 쿠팡 이마트 "
    "SK하이닉스 LG에너지솔루션 기아자동차 한국전력 서울대학교 고려대학교"
).split()
SHORT = replace(RECIPES["v1"], quality=replace(V1, shortest=30))


def article(a: str, b: str, number: int) -> str:
    return (
        f"{a}는 올해 새로운 공장을 {number}개 세운다고 밝혔다. 이 사업에는 {b}도 참여한다. 업계는 {a}의 계획이 "
        f"시장을 바꿀 것으로 본다. {b} 관계자는 앞으로 {a}와 함께 수출을 늘리겠다고 말했다."
    )


def articles(count: int, seed: int = 1) -> list[str]:
    chance = random.Random(seed)
    return [article(*chance.sample(NAMES, 2), number) for number in range(2, 2 + count)]


def lines(texts: list[str]) -> str:
    return "".join(json.dumps({"본문": text}, ensure_ascii=False) + "\n" for text in texts)


def put(folder: Path, name: str, content: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- mentions and samples ----------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["compound", "source"]))
def test_mentions_are_where_they_say_in_any_text(text, rule):
    mentions = find_mentions(text + " 삼성전자와 " + text[::-1], rule)
    whole = text + " 삼성전자와 " + text[::-1]
    assert all(whole[one.start : one.end] == one.text for one in mentions)
    assert all(a.end <= b.start for a, b in zip(mentions, mentions[1:]))
    samples = samples_among(whole, mentions, limits=Limits(nearest=1))
    assert all(one.text[one.start : one.end] == one.target == one.text[one.antecedent :][: len(one.target)] for one in samples)
    assert all(one.antecedent + len(one.target) <= one.start for one in samples)


def die(chunk: list[str]) -> list[str]:
    os._exit(9)


def test_a_process_that_is_ended_is_one_clear_error():
    with pytest.raises(WorkerError, match="one of 2 processes that read texts was ended by the system"):
        list(over_processes(iter("abc"), die, workers=2))


def lengths(chunk: list[str]) -> list[int]:
    return list(map(len, chunk))


def test_ten_million_texts_pass_without_being_held():
    class Text:
        "One in a hundred thousand can be watched."

    watched, read, ahead = [], 0, 0

    def texts():
        nonlocal read
        for read in range(1, 10_000_001):
            one = Text() if read % 100_000 == 1 else read
            if isinstance(one, Text):
                watched.append(weakref.ref(one))
            yield one

    for number, _ in enumerate(over_processes(texts(), lambda chunk: chunk, title=""), 1):
        if not number % 1000:
            ahead = max(ahead, read - number)
        if number == 9_950_000:
            assert len(watched) == 100 and sum(one() is not None for one in watched) == 0
    assert number == 10_000_000 and ahead <= 64


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_without_end_is_read_no_farther_than_a_few_chunks_ahead(workers):
    read = count()
    stream = over_processes((f"{number}" for number in read), lengths, workers, title="")
    for wanted, (text, size) in enumerate(islice(stream, 20_000)):
        assert (text, size) == (f"{wanted}", len(text))
    drawn = next(read) - 20_000
    stream.close()
    assert 0 <= drawn <= (2 * workers + 1) * 64, f"{drawn} texts are held"


# ---- corpora -----------------------------------------------------------------------------------------------------


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """A folder as people have them: every format and encoding, broken rows, long, doubled and decomposed texts."""
    folder, texts = tmp_path / "news", articles(60)
    table = io.StringIO()
    csv.writer(table).writerows([["기사", "날짜"], *([text, "2024"] for text in texts[:15])])
    put(folder, "a.csv", table.getvalue().encode("cp949"))
    broken = '{"본문": "끊긴\n' + '{"본문": 7.5}\n' + '{"본문": ""}\n' + '{"본문": "반쪽 \\ud83d"}\n\n'
    put(folder, "b.jsonl", (lines(texts[15:30]) + broken).encode() + b'{"\xeb\xb3\xb8\xeb\xac\xb8": "\xff\xfe"}\n')
    put(folder, "c.jsonl", lines([unicodedata.normalize("NFD", text) for text in texts[30:40]] + texts[:3]))
    put(folder, "d.txt", "\n\n".join(texts[40:50]))
    put(folder, "e.jsonl", lines(["가나다 라마바. " * 22_000, texts[50] * 1500, *texts[50:]]))
    return folder


def test_every_row_of_a_messy_folder_ends_somewhere(messy, tmp_path):
    made = build(tmp_path / "set", SHORT, Source(messy, blank_lines=True))
    facts, splits = read_json(made / "metadata.json"), load_samples(made)
    (report,), (removed,) = facts["reports"], facts["removed"].values()
    assert report["rows"] == {"read": 70, "kept": 65, "left_out": 5}
    assert report["left_out"] == {"broken JSON": 1, "not text": 1, "empty text": 1, "undecodable bytes": 2}
    assert report["nfc_changed"] == 10
    assert {file["encoding"] for file in report["files"]} == {"CP949", "UTF-8"}
    assert removed["read"] == report["rows"]["kept"] == removed["given"] + sum(removed["documents"].values())
    assert removed["documents"] == {"too long": 2, "same text again": 3} and removed["given"] == 60
    assert removed["samples"] == facts["num_samples"] + sum(facts["removed_samples"].values())
    everything = [*splits.train, *splits.held["dev"], *splits.held["test"]]
    assert len(everything) == facts["num_samples"]
    assert all(one.text == normalize(one.text) and one.document == text_hash(one.text) for one in everything)
    assert all(one.text[one.start : one.end] == one.target == one.text[one.antecedent :][: len(one.target)] for one in everything)
    assert all(10 <= one.distance <= 2000 for one in everything)


def test_long_documents_are_read_where_the_recipe_allows_them(tmp_path):
    """200,000 characters, one name at both ends and every later mention beyond the third counted."""
    text = ("삼성전자는 공장을 세웠다. " + "오늘은 날씨가 맑고 바람이 분다 " * 11_000 + ". 삼성전자는 컸다." * 5)
    long = replace(SHORT, quality=replace(V1, shortest=30, longest=200_000), limits=Limits(farthest=300_000), kept_back=0.0)
    made = build(tmp_path / "set", long, put(tmp_path, "a.jsonl", lines([text, *articles(20)])))
    removed = next(iter(read_json(made / "metadata.json")["removed"].values()))
    found = [one for name in ("train", "dev", "test") for one in corpora._read_split(made / f"{name}.parquet", {})]
    assert len(text) > 190_000 and not removed["documents"]
    assert max(one.distance for one in found) > 180_000 and removed["mentions"]["name has enough mentions"] >= 2


def test_a_set_does_not_depend_on_processes(tmp_path):
    source = put(tmp_path, "a.jsonl", lines(articles(90)))
    one, two = (build(tmp_path / f"set{workers}", SHORT, source, workers=workers) for workers in (1, 2))
    for name in ("train", "dev", "test", "unseen"):
        assert (one / f"{name}.parquet").read_bytes() == (two / f"{name}.parquet").read_bytes()


def test_splits_share_no_document_and_unseen_no_name(tmp_path):
    texts = articles(200)
    made = build(tmp_path / "set", SHORT, put(tmp_path, "a.jsonl", lines(texts)))
    splits, facts = load_samples(made), read_json(made / "metadata.json")
    documents = {name: {one.document for one in part} for name, part in (splits.held | {"train": splits.train}).items()}
    assert not documents["train"] & documents["test"] and not documents["dev"] & (documents["train"] | documents["test"])
    assert {name: len(part) for name, part in documents.items()} == {
        name: part["documents"] for name, part in facts["splits"].items()
    }
    asked = {one.target for one in splits.train}
    assert splits.held["unseen"] and not asked & {one.target for one in splits.held["unseen"]}
    assert splits.held["unseen"] == unseen(splits.train, splits.held["test"])
    assert facts["removed_samples"]["name kept back for unseen"] > 0
    with pytest.raises(DataError, match="train and test share 1 document, one of which begins"):
        check_overlap(Splits([*splits.train, splits.held["test"][0]], splits.held))


def test_paragraphs_of_a_document_stay_together(tmp_path):
    texts = articles(90)
    pages = ["\n\n".join(texts[i : i + 3]) for i in range(0, 90, 3)]
    recipe = replace(SHORT, quality=replace(V1, shortest=30, longest=3000))
    made = build(tmp_path / "set", recipe, [Source(put(tmp_path, "a.jsonl", lines(pages)), paragraphs=60)])
    splits, facts = load_samples(made), read_json(made / "metadata.json")
    parts = [splits.train, splits.held["dev"], splits.held["test"]]
    assert len({one.document for part in parts for one in part}) == 20  # sixty paragraphs of twenty pages
    assert facts["reports"][0]["notes"][-1].endswith("reading ended with paragraph 60")
    assert all(one.document != text_hash(one.text) and one.text in texts for part in parts for one in part)


def test_sources_take_turns_and_a_name_has_its_cap(tmp_path):
    large, small = put(tmp_path, "large.jsonl", lines(articles(150, 1))), put(tmp_path, "small.jsonl", lines(articles(40, 2)))
    recipe = replace(SHORT, target_samples=120, max_entity_freq=10, kept_back=0.0)
    facts = read_json(build(tmp_path / "set", recipe, [Source(large), Source(small)]) / "metadata.json")
    sources = sum((Counter(facts["splits"][name]["sources"]) for name in ("train", "dev", "test")), Counter())
    assert facts["num_samples"] == 120 and min(sources.values()) > 40
    assert facts["top_entities"][0][1] <= 10 and facts["removed_samples"]["name is frequent"] > 0
    assert facts["removed_samples"]["beyond target_samples"] > 0


def test_metadata_say_what_the_published_ones_say(tmp_path):
    facts = read_json(build(tmp_path / "set", SHORT, put(tmp_path, "a.jsonl", lines(articles(40)))) / "metadata.json")
    published = (
        "dataset_type version num_samples seq_len created_at source_datasets num_unique_entities top_entities "
        "entity_length_stats distance_stats max_entity_freq"
    )
    assert set(published.split()) <= set(facts)
    assert set(facts["entity_length_stats"]) == set(facts["distance_stats"]) == {"mean", "median", "min", "max"}
    assert sum(facts["distance_buckets"].values()) == facts["num_samples"] and len(facts["top_entities"]) <= 20
    assert facts["limits"] == {"nearest": 10, "farthest": 2000, "per_name": 3} and facts["analyser"].startswith("0.")


def test_other_libraries_read_a_set(tmp_path):
    from datasets import load_dataset

    made = build(tmp_path / "set", SHORT, put(tmp_path, "a.jsonl", lines(articles(40))))
    files = {name: str(made / f"{name}.parquet") for name in ("train", "test")}
    data = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert data["train"].column_names == [
        "text", "target", "antecedent_pos", "coref_pos", "distance", "document", "source", "entities",
    ]
    row = data["test"][0]
    assert row["text"][row["coref_pos"] :].startswith(row["target"])


def test_a_set_is_whole_or_not_there(tmp_path, monkeypatch):
    source, place = put(tmp_path, "a.jsonl", lines(articles(40))), tmp_path / "set"
    monkeypatch.setattr(corpora, "_metadata", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(place, SHORT, source)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    monkeypatch.undo()
    build(place, SHORT, source)
    build(place, SHORT, source)  # again, in its place
    (place / "train.parquet").write_bytes((place / "dev.parquet").read_bytes())
    with pytest.raises(DataError, match="damaged .train.parquet is not the file that was saved"):
        load_samples(place)
    with pytest.raises(DataError, match="is there already and is no set of samples"):
        build(tmp_path, SHORT, source)
    with pytest.raises(DataError, match="holds no set of samples"):
        load_samples(tmp_path)


@pytest.mark.parametrize("content, message", [
    (lines(["짧다."] * 3), r"gave no sample \(3 documents read; too short 3\)"),
    ("", "is empty"),
    ('{"id": 3}\n', "has no column 'text'"),
    (lines([article("삼성전자", "한국은행", 3)]), "1 document with samples cannot be parted"),
])  # fmt: skip
def test_what_cannot_be_built_says_why(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        build(tmp_path / "set", SHORT, put(tmp_path, "a.jsonl", content))
    assert not (tmp_path / "set").exists()


def test_strict_lets_no_broken_row_pass(messy, tmp_path):
    with pytest.raises(DataError, match="policy='strict' lets none pass"):
        build(tmp_path / "set", SHORT, messy, policy="strict")


HUB = {  # dataset -> the column, split and configuration in which its texts are
    "wikimedia/wikipedia": ("text", "train", "20231101.ko"), "klue/klue": ("context", "train", "mrc"),
    "daekeun-ml/naver-news-summarization-ko": ("document", "train", None),
    "dev7halo/naver-news-summarization-ko-with-gen": ("document", "train", None),
    "HPLT/HPLT2.0_cleaned": ("text", "train", "kor_Hang"), "AIR-Bench/qa_news_ko": ("text", "corpus_default", None),
    "nmixx-fin/twice_kr_finance_news_summ": ("text", "train", None), "nmixx-fin/twice_kr_news_bqa_cls": ("text", "train", None),
}  # fmt: skip


@pytest.mark.parametrize("name", ["v1", "v2", "pronouns"])
def test_the_named_sets_ask_the_hub_for_the_right_columns(tmp_path, monkeypatch, name):
    from datasets import Dataset

    from korlab.core import rows

    def stored(source, split=None, config=None, revision=None):
        column, *where = HUB[source]
        assert [split, config] == where
        texts = articles(12, seed=sum(map(ord, source)))
        return Dataset.from_list([{column: text, "title": "제목", "summary": "요약"} for text in texts + texts[:2]])

    monkeypatch.setattr(rows, "hub_dataset", stored)
    recipe = RECIPES[name]
    quality = replace(recipe.quality, shortest=30, names=(0, 1))
    pronouns = replace(recipe.pronouns, pronouns=0, kinds=0, names=1, density=(0, 1), to_names=(0, 1)) if recipe.pronouns else None
    sources = [replace(one, pronouns=None) for one in recipe.sources]
    facts = read_json(build(tmp_path / "set", replace(recipe, quality=quality, pronouns=pronouns), sources) / "metadata.json")
    assert facts["source_datasets"] == [one.name for one in recipe.sources]
    assert all(one["documents"]["same text again"] == 2 for one in facts["removed"].values())
    assert (facts["recipe"], facts["version"]) == (name, recipe.version)


def test_without_the_hub_the_error_names_it(tmp_path, monkeypatch):
    import datasets

    def offline(*_args, **_options):
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="wikimedia/wikipedia is no file or folder in .*, and the hub did not give it"):
        build(tmp_path / "set", RECIPES["v1"])
    assert not list(tmp_path.iterdir())


def test_reading_does_not_hold_the_texts(tmp_path):
    import tracemalloc

    path = tmp_path / "many.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(4_000):
            file.write(json.dumps({"text": f"{number} " + "가" * 1000}, ensure_ascii=False) + "\n")
        file.writelines(lines(articles(20)).replace("본문", "text"))
    tracemalloc.start()
    made = build(tmp_path / "set", replace(SHORT, quality=replace(V1, shortest=30, longest=400)), path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert next(iter(read_json(made / "metadata.json")["removed"].values()))["documents"]["too long"] == 4_000
    assert peak < path.stat().st_size / 2, f"{peak:,} bytes for {path.stat().st_size:,}"


# ---- gold chains -------------------------------------------------------------------------------------------------

CONLL = """#begin document (bc/1); part 000
bc/1 0 0 삼성전자 NNP * (7)
bc/1 0 1 는 JX * -
bc/1 0 2 컸다 VA * -

bc/1 0 0 그 NP * (7)
bc/1 0 1 삼성전자 NNP * (7)
bc/1 0 2 의 JKG * -
bc/1 0 3 회사 NNG * (7)

#end document
"""


def test_columns_and_json_lines_say_the_same(tmp_path):
    words = [["삼성전자", "는", "컸다"], ["그", "삼성전자", "의", "회사"]]
    chain = [[0, 0], [3, 3], [4, 4], [6, 6]]
    text = "삼성전자 는 컸다\n그 삼성전자 의 회사"
    places = [[0, 4], [10, 11], [12, 16], [19, 21]]
    universal = "# newdoc id = 1\n" + "\n".join(
        "\n".join(
            f"{i}\t{word}\t_\t_\t_\t_\t_\t_\t_\t" + ("Entity=(e7-org)" if word not in "는컸다의" else "_")
            for i, word in enumerate(sentence, 1)
        ) + "\n" for sentence in words
    )
    simple = "\n".join(f"{word} {'(7)' if word not in '는컸다의' else '-'}" if word else "" for word in [*words[0], "", *words[1]])
    forms = {
        "a.v4_gold_conll": CONLL, "b.conllu": universal, "c.conll": simple,
        "d.jsonl": json.dumps({"doc_key": "x", "sentences": words, "clusters": [chain]}),
        "e.jsonl": json.dumps({"text": text, "clusters": [places]}),
        "f.jsonl": json.dumps({"text": unicodedata.normalize("NFD", text), "clusters": [
            [[len(unicodedata.normalize("NFD", text[:i])) for i in place] for place in places]]}),
    }  # fmt: skip
    for name, content in forms.items():
        gold = load_gold(put(tmp_path, name, content))
        (one,) = gold.samples
        assert (one.text, one.target, one.antecedent, one.start) == (text, "삼성전자", 0, 12), name
        assert gold.left_out == {"first mention": 1, "pronoun": 1, "other words": 1}
        assert (gold.chains, gold.chains_asked, gold.mentions) == (1, 1, 4) and one.entities == ("삼성전자", "회사")


@pytest.mark.parametrize("name, content, kind, said", [
    ("a.conll", CONLL.replace("(7)\nbc/1 0 1 는", "(7\nbc/1 0 1 는"), "broken brackets", "a mention of chain 7 is never closed"),
    ("a.conll", CONLL.replace("* (7)\nbc/1 0 2", "* 7)\nbc/1 0 2"), "broken brackets", "line 7: chain 7 is closed"),
    ("a.conll", CONLL.replace("bc/1 0 2 컸다 VA * -", "컸다"), "broken line", "line 4: "),
    ("a.jsonl", '{"text": "가나", "clusters": [[[0, 3]]]}\n', "broken mention", "[0, 3] in cluster 1 is no place among 2"),
    ("a.jsonl", '{"tokens": ["가"], "text": "가", "clusters": []}\n', "unclear form", "text and tokens"),
])  # fmt: skip
def test_broken_annotations_are_told_with_their_place(tmp_path, name, content, kind, said):
    put(tmp_path, "good.jsonl", json.dumps({"text": "서울은 서울이다.", "clusters": [[[0, 2], [4, 6]]]}) + "\n")
    put(tmp_path, name, content)
    gold = load_gold(tmp_path)
    (problem,) = gold.report.problems
    assert problem.kind == kind and said in problem.detail and len(gold.samples) == 1


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_gold_places_survive_any_unicode(before, between):
    from korlab.core.rows import Row
    from korlab.coref import gold

    text = unicodedata.normalize("NFD", before) + "삼성전자" + unicodedata.normalize("NFD", between) + "삼성전자 끝"
    last = len(text) - 6
    first = text.index("삼성전자")
    found = gold._judged(Row("x", 1, 1, {"text": text, "clusters": [[[first, first + 4], [last, last + 4]]]}))
    if found.item is None:
        assert found.problems[0].kind == "broken mention"
        return
    for one in gold.chain_samples(found.item[1], found.item[1].chains[0], Counter()):
        assert one.text == normalize(text) and one.text[one.start : one.end] == "삼성전자" == one.text[one.antecedent :][:4]


# ---- windows -----------------------------------------------------------------------------------------------------

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
KINDS = ("wordpiece", "bytes", "unigram")


@cache
def tokenizer(kind: str):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    model, before, trainer, decoder = {
        "wordpiece": (models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(),
                      trainers.WordPieceTrainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False), decoders.WordPiece()),
        "bytes": (models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), trainers.BpeTrainer(
            vocab_size=600, special_tokens=SPECIAL, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()), decoders.ByteLevel()),
        "unigram": (models.Unigram(), pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
                    trainers.UnigramTrainer(vocab_size=500, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False),
                    decoders.Metaspace()),
    }[kind]  # fmt: skip
    made = Tokenizer(model)
    made.normalizer, made.pre_tokenizer, made.decoder = normalizers.NFC(), before, decoder
    made.train_from_iterator(articles(300), trainer)
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


@cache
def corpus() -> tuple[Sample, ...]:
    texts = articles(80, 3)
    return tuple(one for text, found in zip(texts, mentions_of(texts), strict=True) for one in samples_among(text, found))


def decoded(kind: str, ids: list[int]) -> str:
    return tokenizer(kind).decode(ids).strip().removeprefix("##")


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_has_its_masks_and_its_antecedent(kind):
    made = tokenizer(kind)
    found, left_out = windows(corpus(), made, 256)
    assert len(found) == len(corpus()) > 200 and not left_out
    for one in found:
        n = len(one.target)
        assert one.ids[one.place : one.place + n] == [made.mask_token_id] * n and decoded(kind, one.target) == one.sample.target
        assert (one.ids[0], one.ids[-1]) == (made.cls_token_id, made.sep_token_id)
        seen = made.decode(one.ids[one.antecedent : one.place]).strip().removeprefix("##")
        assert seen.startswith(one.sample.target)
        shown = made.decode(one.ids[one.place + n : -1])
        assert one.sample.target not in shown and "\n" not in shown and shown.count(".") <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_stand_apart_anyway_give_the_ordinary_tokens(kind):
    made, apart = tokenizer(kind), 0
    for one in windows(corpus(), made, 1024, "both")[0]:
        sample, plain = one.sample, made(one.sample.text, return_offsets_mapping=True)
        edge = sample.start - (sample.text[sample.start - 1] == " ")
        over = [i for i, (start, end) in enumerate(plain["offset_mapping"]) if end > edge and start < sample.end]
        begin, end = plain["offset_mapping"][over[0]][0], plain["offset_mapping"][over[-1]][1]
        if begin >= edge and end <= sample.end:
            apart += 1
            ids = plain["input_ids"]
            assert one.target == [ids[i] for i in over]
            assert one.ids == [made.mask_token_id if i in over else token for i, token in enumerate(ids)]
    assert apart > 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_cut_on_the_left_until_the_antecedent_would_go(kind):
    made, sample = tokenizer(kind), max(corpus(), key=lambda one: one.antecedent)
    sample = replace(sample, text=(pre := "네이버도 있다. " * 50) + sample.text, antecedent=sample.antecedent + len(pre),
                     start=sample.start + len(pre))
    whole = window(sample, made, 4096)
    needed = whole.place + len(whole.target) - whole.antecedent
    for length in (needed + 2, needed + 10, needed + 60):
        one = window(sample, made, length)
        assert len(one.ids) <= length and decoded(kind, one.ids[one.antecedent : one.place]).startswith(sample.target)
    tight = window(sample, made, needed + 2)
    assert tight.antecedent == 1 and tight.ids[-2] == made.mask_token_id
    assert window(sample, made, needed + 1) is None
    _, left_out = windows([sample], made, needed + 1)
    assert left_out == {"antecedent and name do not fit into the window": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_show_what_comes_after(kind):
    sample = min(corpus(), key=lambda one: one.start)
    left, both = (window(sample, tokenizer(kind), 512, context) for context in ("left", "both"))
    assert left.ids[: left.place] == both.ids[: both.place] and len(both.ids) > len(left.ids)
    assert decoded(kind, both.ids[both.place + len(both.target) : -1]).endswith(sample.text.split()[-1])


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.sampled_from([*NAMES[:3], "서울", "SK하이닉스", "BTS"]),
       st.sampled_from(KINDS), st.sampled_from(["left", "both"]))
def test_windows_of_any_text(before, between, after, name, kind, context):
    text = before + name + between + name + after
    if normalize(text) != text:
        return
    made, sample = tokenizer(kind), Sample("", text, name, len(before), len(before + name + between))
    (found, left_out), masks = windows([sample], made, 96, context), made.mask_token_id
    if not found:
        assert sum(left_out.values()) == 1
        return
    one, n = found[0], len(found[0].target)
    assert len(one.ids) <= 96 and 0 < one.antecedent < one.place
    assert one.ids[one.place : one.place + n] == [masks] * n and masks not in one.target
    assert decoded(kind, one.target) == name
    assert masks not in one.ids[: one.place]
    if context == "left":
        assert name not in made.decode(one.ids[one.place + n : -1])


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30), st.sampled_from(KINDS))
def test_nothing_beside_the_masks_tells_the_name(before, after, kind):
    from korlab.coref import windows as chapter

    writer, seen = chapter.Writer(tokenizer(kind)), []
    for name in ("삼성전자", "서울", "BTS"):
        text = before + name + after
        hidden = Sample("", text, name, 0, len(before))
        seen.append((chapter._part(writer, text, 0, chapter._edge(text, len(before))).ids, chapter._right(writer, hidden, "both")))
    assert seen[0] == seen[1] == seen[2]


def test_a_text_that_spells_a_mask_gives_no_false_masks():
    text = "삼성전자는 [MASK] 그리고 [SEP] 뒤에 다시 삼성전자를 부른다."
    sample = Sample("", text, "삼성전자", 0, text.rindex("삼성전자"))
    for kind in KINDS:
        found, left_out = windows([sample], tokenizer(kind), 128)
        assert left_out == {"text spells out a special token": 1} or found[0].ids.count(4) == len(found[0].target)


def test_tokenizers_that_cannot_hide_are_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    with pytest.raises(TokenizerError, match="has no mask token"):
        window(corpus()[0], PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())), 64)


# ---- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_all_labels_of_a_name_and_no_others_weigh_one(kind, rate):
    import torch

    made = tokenizer(kind)
    found, _ = windows(corpus(), made, 256)
    maker = Collator(made, mask_min=rate, mask_max=rate, mlm_weight=0.5, max_length=256)
    covered = total = 0
    for begin in range(0, len(found), 16):
        batch, rows = maker(found[begin : begin + 16]), found[begin : begin + 16]
        for row, one in enumerate(rows):
            span = slice(one.place, one.place + len(one.target))
            covered += batch["labels"][row, span].tolist() == one.target
            covered += batch["input_ids"][row, span].tolist() == [made.mask_token_id] * len(one.target)
            total += 2
            elsewhere = torch.ones(batch["labels"].shape[1], dtype=torch.bool)
            elsewhere[span] = False
            assert ((batch["labels"][row] != -100) & elsewhere).sum() == 0 or rate
        special = torch.isin(batch["labels"], torch.tensor(made.all_special_ids))
        assert not special.any() and not (batch["labels"][batch["attention_mask"] == 0] != -100).any()
        if rate:
            assert set(batch["weights"].unique().tolist()) <= {0.0, 0.5, 1.0}
            assert int((batch["weights"] == 1).sum()) == sum(len(one.target) for one in rows)
    assert covered == total  # 100 %


def test_the_dynamic_rate_follows_real_lengths():
    import torch

    made = tokenizer("wordpiece")
    found, _ = windows(corpus(), made, 256)
    short, long = sorted(found, key=lambda one: len(one.ids))[:32], [max(found, key=lambda one: len(one.ids))]
    for rows in (short, short[:8] + long):  # padding of a long row must not move the rate of the others
        maker = Collator(made, "combined", max_length=256, mask_min=0.1, mask_max=0.9)
        length = sum(len(one.ids) for one in rows) / len(rows)
        wanted, chosen, free = 0.1 + 0.8 * length / 256, 0, 0
        assert abs(mask_probability([len(one.ids) for one in rows], 256, 0.1, 0.9) - wanted) < 1e-9
        for step in range(60):
            batch = collate(maker, rows, step)
            chosen += int((batch["labels"] != -100).sum())
            plain = torch.tensor([i for one in rows for i in (*one.ids[: one.place], *one.target, *one.ids[one.place + len(one.target) :])])
            free += int((~torch.isin(plain, torch.tensor(made.all_special_ids))).sum())
        assert abs(chosen / free - wanted) < 0.02, (chosen / free, wanted)


def test_steps_and_seeds_decide_what_is_masked():
    import torch

    made = tokenizer("bytes")
    found, _ = windows(corpus()[:16], made, 256)

    def made_by(seed: int, step: int) -> torch.Tensor:
        return collate(Collator(made, mask_min=0.2, mask_max=0.2, seed=seed), found, step)["input_ids"]

    assert torch.equal(made_by(1, 5), made_by(1, 5))
    assert not torch.equal(made_by(1, 5), made_by(1, 6)) and not torch.equal(made_by(1, 5), made_by(2, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_batches_never_label_the_name(kind):
    made = tokenizer(kind)
    found, _ = windows(corpus(), made, 256)
    maker = Collator(made, "published", mask_min=0.15, mask_max=0.15)
    labelled = elsewhere = 0
    for _ in range(10):
        batch = maker(found)
        places = [[one.place] for one in found]
        assert batch["input_ids"].gather(1, batch["labels"].new_tensor(places)).eq(made.mask_token_id).all()
        labelled += int((batch["labels"].gather(1, batch["labels"].new_tensor(places)) != -100).sum())
        elsewhere += int((batch["labels"] != -100).sum())
    assert labelled == 0 and elsewhere > 10 * len(found)


def test_rates_and_padding_are_checked():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    with pytest.raises(LabError, match="mask_min=0.5 and mask_max=0.2"):
        Collator(tokenizer("bytes"), mask_min=0.5, mask_max=0.2)
    with pytest.raises(LabError, match="no padding token"):
        Collator(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), mask_token="[MASK]"))


def test_a_set_of_samples_with_somebodys_file_in_it_is_not_replaced(tmp_path):
    from korlab.experiment.checkpoints import draft_of, publish

    draft_of(tmp_path / "set").mkdir()
    (draft_of(tmp_path / "set") / "metadata.json").write_text("{}")
    corpora._check_place(publish(draft_of(tmp_path / "set"), tmp_path / "set"))
    (tmp_path / "set" / "notes.md").write_text("mine")
    with pytest.raises(LabError, match="notes.md; move that elsewhere, or choose another folder"):
        corpora._check_place(tmp_path / "set")
