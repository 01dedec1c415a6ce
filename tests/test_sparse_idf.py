"""Document frequencies and stop tokens: independent counts, published rules, every kind of tokenizer, files and faults."""

import json
import math
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from korlab.core.accounts import DataError
from korlab.core.files import FileError
from korlab.experiment.params import ParameterError
from korlab.sparse import idf, stopwords
from korlab.sparse.data import Collection, Triple, load_beir
from korlab.sparse.idf import IdfTable, PreparedError, count_df, documents, load_idf, prepare_idf, save_idf
from korlab.sparse.stopwords import (
    PUNCTUATION,
    STOP_WORDS,
    entries,
    grammar_counts,
    load_stop_mask,
    mask_quality,
    prepare_stopwords,
    stop_mask,
    stop_tokens,
    with_corpus,
    word_mark,
)
from korlab.summarization.models import train_tokenizer

PLACES = ["서울", "부산", "제주", "나무", "만두", "온도", "도서관", "은행", "어제", "오이", "그림", "라디오", "고기", "이불"]
FRAMES = ["{}에서 {}까지 갔다.", "{}와 {}는 크다.", "{}의 {}을 봤다.", "그리고 {}도 {}만 있다.", "나는 {}보다 {}이 좋다.",
          "어디에 {}이 있고 {}가 없습니까?", "매우 큰 {}, 정말 작은 {}!"]
SAMPLE = [frame.format(*random.Random(seed).sample(PLACES, 2)) for seed, frame in enumerate(FRAMES * 12)]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def trained(kind, size=400):
    """A small tokenizer of each of the four kinds a Korean encoder may have."""
    if kind == "bpe":
        return train_tokenizer(SAMPLE, size)
    special = list(SPECIAL.values())
    if kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="[UNK]", show_progress=False)
    elif kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(SAMPLE, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


KINDS = ("bpe", "unigram", "wordpiece", "bytes")
TOKENIZERS = {kind: trained(kind) for kind in KINDS}
every_kind = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=KINDS)


def slowly(texts, tokenizer):
    """Document frequencies as one would count them by hand."""
    found, special = [0] * len(tokenizer), set(tokenizer.all_special_ids)
    for text in texts:
        for i in set(tokenizer.encode(text, add_special_tokens=False)) - special:
            found[i] += 1
    return found


# ---- counting ---------------------------------------------------------------------------------------------------

@every_kind
@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=30) | st.sampled_from(SAMPLE), min_size=1, max_size=30), st.integers(1, 8))
def test_counts_agree_with_sets_in_any_batches(tokenizer, texts, batch_size):
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    table = count_df(iter(texts), tokenizer, batch_size=batch_size)
    assert (table.df.tolist(), table.n) == (slowly(texts, tokenizer), len(texts))


def test_python_tokenizers_count_too():
    from transformers import ByT5Tokenizer
    tokenizer = ByT5Tokenizer()
    table = count_df(["가나", "가a"], tokenizer)
    assert table.df[tokenizer.convert_tokens_to_ids("a")] == 1 and table.df.max() == 2
    assert table.sha256 == idf.tokenizer_sha256(ByT5Tokenizer())
    with pytest.raises(ParameterError, match="tokenizer in Python"):
        grammar_counts(["가나"], tokenizer, len(tokenizer))


def test_stored_truncation_typed_specials_and_unknown_pieces_change_nothing():
    tokenizer = trained("wordpiece")
    plain = count_df(SAMPLE, tokenizer).df
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding()
    assert (count_df(SAMPLE, tokenizer).df == plain).all()
    assert not count_df(["[MASK] [UNK] 궯 [PAD]"], tokenizer).df.any()


def test_padded_output_layer_counts_as_unseen():
    tokenizer = TOKENIZERS["unigram"]
    size = len(tokenizer) + 56
    table = count_df(SAMPLE, tokenizer, vocab_size=size)
    assert len(table.df) == size and not table.df[-56:].any()
    assert (table.penalties()[-56:] == 1).all() and stop_mask(tokenizer, vocab_size=size)[-56:].all()
    with pytest.raises(ParameterError, match=f"vocab_size=9: the tokenizer has ids up to {len(tokenizer) - 1}"):
        count_df(SAMPLE, tokenizer, vocab_size=9)


# ---- weights ----------------------------------------------------------------------------------------------------

GOLDEN = [(0, 12.2061), (10, 9.1616), (1_000, 4.6047), (50_000, 0.6931), (100_000, 0.0)]


@pytest.mark.parametrize(("df", "weight"), GOLDEN)
def test_published_bm25_weights(df, weight):
    assert IdfTable(np.array([df]), 100_000, "", "").idf()[0] == pytest.approx(weight, abs=1e-4)


@pytest.mark.parametrize(("df", "price"), [(0, 0.0821), (10, 0.1531), (1_000, 0.3894), (100_000, 1.0)])
@pytest.mark.parametrize("factor", [1.0, 5.0, 15.0])
def test_published_penalties(df, price, factor):
    counts = np.array([d for d, _ in GOLDEN])
    table = IdfTable(counts, 100_000, "", "")
    found = table.penalties(stop=counts == df, stop_factor=factor, unseen="published")[counts == df]
    assert found.dtype == np.float32 and found[0] == pytest.approx(factor * price, abs=factor * 1e-4)


TABLES = st.integers(1, 10_000).flatmap(lambda n: st.tuples(
    st.just(n), st.lists(st.integers(0, n), min_size=1, max_size=30), st.sampled_from(idf.KINDS)))


@settings(max_examples=150, deadline=None)
@given(TABLES, st.floats(0.1, 5))
def test_what_holds_for_every_table(table, alpha):
    n, df, kind = table
    df = np.array(df)
    table = IdfTable(df, n, "", "", kind)
    by_hand = [math.log(1 + (n - d + .5) / (d + .5)) if kind == "bm25" else math.log(n / (d + 1)) for d in df.tolist()]
    assert table.idf().tolist() == pytest.approx(by_hand, abs=1e-5)
    price, query = table.penalties(alpha), table.query_weights()
    assert (price[df == 0] == 1).all() and (query[df == 0] == 0).all() and (query >= 0).all()
    assert price.max() <= 1 and price.min() >= math.exp(-alpha) - 1e-6
    seen = df > 0
    assert (np.diff(price[seen][np.argsort(df[seen])]) >= 0).all()
    if len(set(df[seen].tolist())) > 1:
        assert price[seen].min() == pytest.approx(math.exp(-alpha), abs=1e-5) and price[seen].max() == 1


def test_special_and_unseen_tokens_do_not_move_the_price_of_content():
    df = np.array([3, 40, 100])
    wider = IdfTable(np.array([*df, 0, 0, 0]), 100, "", "")
    assert (wider.penalties()[:3] == IdfTable(df, 100, "", "").penalties()).all()
    assert (wider.penalties(unseen="published")[:3] != IdfTable(df, 100, "", "").penalties()).any()


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda t: t.penalties(unseen="none"), ParameterError, "unseen='none': choose one of penalised, published"),
    (lambda t: t.penalties(stop=np.ones(2)), ValueError, r"stop is float64 \(2,\): a stop mask is bool \(3,\)"),
    (lambda t: t.query_weights(stop=np.ones(2, bool)), ValueError, r"stop is bool \(2,\)"),
    (lambda t: IdfTable(t.df, 9, "", "", "tfidf").idf(), ParameterError, "kind='tfidf': choose one of bm25, standard"),
    (lambda t: count_df([], TOKENIZERS["bpe"]), DataError, "there are no texts to count"),
    (lambda t: idf.sample_texts(["가"], 0), ParameterError, "sample=0: count at least one text")])
def test_what_cannot_be_weighed(call, error, message):
    with pytest.raises(error, match=message):
        call(IdfTable(np.array([1, 2, 3]), 9, "", ""))


# ---- texts ------------------------------------------------------------------------------------------------------

def test_every_text_of_every_source_is_one_document(tmp_path):
    triple = Triple("어디에 있나?", "부산에 있다.", ("서울에 있다.", "없다."), (1.0, .5, .2), "hard")
    collection = Collection({"d1": "부산", "d2": "서울"}, {"q1": "어디?"}, {"q1": {"d1": 1}})
    assert list(documents([triple, triple])) == ["어디에 있나?", "부산에 있다.", "서울에 있다.", "없다."] * 2
    assert sorted(documents(collection)) == ["부산", "서울", "어디?"]
    rows = [{"anchor": "가", "positive": "나", "negative": "다", "text": "라", "document": "마", "pair_type": "qa"}, {"query": "바"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8-sig")
    assert sorted(documents(tmp_path)) == list("가나다라마바")
    with pytest.raises(TypeError, match="7 is no text"):
        count_df([7], TOKENIZERS["bpe"])


@pytest.mark.parametrize(("content", "message"), [
    ('{"text": "가"}\n{"id": 3}\n', "x.jsonl, line 2 has no text: it needs one of the fields query, anchor"),
    ('{"text": "가"}\n\n{"text": \n', "x.jsonl, line 3 is no JSON"),
    ('["가"]\n', "x.jsonl, line 1 has no text"),
    ('{"query": "가", "negatives": ["나", 3]}\n', "x.jsonl, line 1 has 3 where a text belongs: correct it"),
    ('{"query": 5}\n', "x.jsonl, line 1 has 5 where a text belongs: correct it")])
def test_faulty_rows_are_named(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_text(content, "utf-8")
    with pytest.raises(FileError, match=message):
        list(documents(tmp_path / "x.jsonl"))


def test_a_line_that_is_not_utf8_is_named_and_a_blank_file_has_no_texts(tmp_path):
    (tmp_path / "x.jsonl").write_bytes('{"text": "가"}\n'.encode() + '{"text": "나"}'.encode("cp949"))
    with pytest.raises(FileError, match=r"x.jsonl, line 2 is no JSON \(byte 11 of the line is not UTF-8\): correct it"):
        list(documents(tmp_path / "x.jsonl"))
    for content in ("", " \n\n"):
        (tmp_path / "x.jsonl").write_text(content)
        assert list(documents(tmp_path)) == []


def test_a_path_without_texts_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(FileError, match="is no JSONL file, nor a folder with one"):
            list(documents(path))


# ---- cache ------------------------------------------------------------------------------------------------------

@pytest.fixture
def counted(monkeypatch):
    """How often anything was counted."""
    calls = []
    real = idf.count_df
    monkeypatch.setattr(idf, "count_df", lambda *args: calls.append(1) or real(*args))
    return calls


def test_counted_once_for_the_same_texts_and_again_for_others(tmp_path, counted):
    tokenizer, folder = TOKENIZERS["wordpiece"], tmp_path / "idf"
    first = prepare_idf(SAMPLE, tokenizer, folder)
    assert (prepare_idf(iter(SAMPLE), tokenizer, folder).df == first.df).all() and len(counted) == 1
    standard = prepare_idf(SAMPLE, tokenizer, folder, kind="standard")
    assert (len(counted), standard.kind, load_idf(folder).kind) == (1, "standard", "standard")
    assert prepare_idf(SAMPLE[1:], tokenizer, folder).n == len(SAMPLE) - 1 and len(counted) == 2
    sampled = prepare_idf(SAMPLE, tokenizer, folder, sample=30)
    assert sampled.n == 30 and prepare_idf(SAMPLE, tokenizer, folder, sample=30).texts_sha256 == sampled.texts_sha256
    assert len(counted) == 3
    assert prepare_idf(SAMPLE, tokenizer, folder, sample=30, seed=7).texts_sha256 != sampled.texts_sha256
    prepare_idf(SAMPLE, tokenizer, folder, sample=30, seed=7, recompute=True)
    prepare_idf(SAMPLE, tokenizer, folder, sample=30, seed=7, vocab_size=len(tokenizer) + 8)
    assert len(counted) == 6


def test_metadata_and_a_tokenizer_that_was_saved_and_loaded(tmp_path):
    tokenizer = TOKENIZERS["unigram"]
    table = prepare_idf(SAMPLE, tokenizer, tmp_path / "idf")
    told = json.loads((tmp_path / "idf/idf.json").read_text("utf-8"))
    assert {**told, "vocab_size": len(tokenizer), "num_docs": len(SAMPLE), "smoothing": "bm25",
            "tokenizer_sha256": table.sha256, "tokens_seen": int((table.df > 0).sum())} == told
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    again("가", padding="max_length", truncation=True, max_length=4)
    assert (load_idf(tmp_path / "idf", again).df == table.df).all()
    assert str(tmp_path) not in (prepare_idf(SAMPLE, again, tmp_path / "b") and (tmp_path / "b/idf.json").read_text())


def test_missing_foreign_and_damaged_tables_say_what_to_run(tmp_path):
    folder, tokenizer = tmp_path / "idf", TOKENIZERS["bpe"]
    with pytest.raises(PreparedError, match="IDF weights not found: .*idf.safetensors does not exist; run `korlab sparse idf`"):
        load_idf(folder)
    prepare_idf(SAMPLE, tokenizer, folder)
    other = TOKENIZERS["unigram"]
    for call in (lambda: load_idf(folder, other), lambda: prepare_idf(SAMPLE, other, folder)):
        with pytest.raises(PreparedError, match="was made for another tokenizer .* into a folder of its own"):
            call()
    path = folder / "idf.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(PreparedError, match="idf.safetensors is damaged .* delete it and run `korlab sparse idf` again"):
        load_idf(folder, tokenizer)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_table(tmp_path, monkeypatch, step):
    tokenizer = TOKENIZERS["bpe"]
    table = prepare_idf(SAMPLE, tokenizer, tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        save_idf(count_df(SAMPLE[:3], tokenizer), tmp_path)
    assert load_idf(tmp_path, tokenizer).n == table.n
    assert sorted(os.listdir(tmp_path)) == ["idf.json", "idf.safetensors"]


# ---- stop tokens ------------------------------------------------------------------------------------------------

def readable(token, tokenizer):
    """The text of a vocabulary entry, without its word mark, in NFC."""
    if word_mark(tokenizer) == "Ġ":
        token = tokenizer.convert_tokens_to_string([token])
    return unicodedata.normalize("NFC", token.removeprefix("##").lstrip("▁ "))


@every_kind
def test_safe_masks_only_what_is_a_stop_word_itself(tokenizer):
    listed = set().union(*STOP_WORDS.values(), PUNCTUATION)
    found = stop_tokens(tokenizer)
    for reason in found.reasons:
        if reason.source in STOP_WORDS or reason.source == "punctuation":
            assert readable(reason.token, tokenizer) == reason.word and reason.word in listed
        else:
            assert reason.source in ("special", "blank")
    assert found.mask().sum() == len({reason.id for reason in found.reasons}) < stop_mask(tokenizer, "published").sum()
    assert found.mask()[tokenizer.all_special_ids].all()
    vocab, mark = tokenizer.get_vocab(), word_mark(tokenizer)
    for word, place in (("에서", 1), ("는", 1), ("그리고", 0)):
        entry, elsewhere = entries(word, mark)[place], entries(word, mark)[1 - place]
        assert entry not in vocab or found.mask()[vocab[entry]]
        assert elsewhere not in vocab or not found.mask()[vocab[elsewhere]]


@every_kind
def test_published_masks_what_the_source_masks(tokenizer):
    vocab, wanted = tokenizer.get_vocab(), {*range(7), *tokenizer.all_special_ids}
    for word in set().union(*STOP_WORDS.values()):
        wanted.update(tokenizer.encode(word, add_special_tokens=False), tokenizer.encode(f" {word}", add_special_tokens=False))
        wanted.update(vocab[entry] for entry in (word, f"▁{word}") if entry in vocab)
    wanted.update(vocab[entry] for sign in PUNCTUATION for entry in (sign, f"▁{sign}") if entry in vocab)
    assert set(np.flatnonzero(stop_mask(tokenizer, "published"))) == wanted


def test_the_lists_are_those_of_v25():
    assert [len(STOP_WORDS[name]) for name in ("particles", "endings", "function words")] == [36, 48, 30]
    assert len(set().union(*STOP_WORDS.values())) == 107


def test_decomposed_vocabularies_are_recognised():
    pieces = [*SPECIAL.values(), "##" + unicodedata.normalize("NFKD", "에서"), unicodedata.normalize("NFKD", "그리고")]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)
    assert stop_mask(tokenizer)[[5, 6]].all()


@pytest.mark.parametrize(("text", "grammar"), [
    ("나는 나무를 봤다.", "나는를다"), ("😀 서울에서만 팔아요!", "에서만아요"), ("그 사람들은 어디에 있습니까?", "그들은어디에있습니까"),
    ("예산은 7만 원이다", "은이다"), ("", "")])
def test_kiwi_tells_grammar_from_content(text, grammar):
    told, content = stopwords.grammar_of(text)
    assert "".join(char for char, flag in zip(text, told) if flag) == grammar
    assert not (told & content).any()


@every_kind
def test_grammar_counts_agree_with_a_loop(tokenizer):
    texts = [*SAMPLE[:20], "", unicodedata.normalize("NFD", SAMPLE[3]), "😀 " + SAMPLE[4]]
    seen, grammar = np.zeros((2, len(tokenizer)), int)
    for text in map(stopwords.normalize, texts):
        told, content = stopwords.grammar_of(text)
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for i, (start, end) in zip(read["input_ids"], read["offset_mapping"]):
            if i not in tokenizer.all_special_ids and (told | content)[start:end].any():
                seen[i] += 1
                grammar[i] += not content[start:end].any()
    found = grammar_counts(iter(texts), tokenizer, len(tokenizer), batch_size=7)
    assert (found[0] == seen).all() and (found[1] == grammar).all() and grammar.any()


@every_kind
def test_a_corpus_catches_more_grammar_and_every_decision_is_told(tokenizer, tmp_path):
    stops = prepare_stopwords(tokenizer, tmp_path, source=SAMPLE, sample=60, min_count=4)
    seen, grammar = grammar_counts(SAMPLE, tokenizer, len(tokenizer))
    listed = mask_quality(stop_mask(tokenizer), seen, grammar)
    measured = mask_quality(stops.mask(), seen, grammar)
    assert measured[0] > listed[0] and measured[1] <= listed[1]
    assert all(r.share > .7 and r.count >= 4 for r in stops.reasons if r.source == "measured")
    assert all(r.share <= .7 and r.count >= 4 and len(r.word) == 1 for r in stops.spared)
    told = json.loads((tmp_path / "stopwords.json").read_text("utf-8"))
    mask = load_stop_mask(tmp_path, tokenizer)
    assert sorted({row["id"] for row in told["reasons"]}) == np.flatnonzero(mask).tolist()
    assert not mask[[row["id"] for row in told["spared"]]].any()
    assert all(row["source"] and row["rule"] for row in told["reasons"]) and told["measured"]["kiwi"]


def test_what_cannot_be_asked_of_a_corpus(tmp_path):
    tokenizer = TOKENIZERS["bpe"]
    stops = stop_tokens(tokenizer)
    for call, error, message in (
            (lambda: prepare_stopwords(tokenizer, tmp_path, "published", SAMPLE), ParameterError,
             "mode='published' takes the lists as they are"),
            (lambda: stop_mask(tokenizer, "hard"), ParameterError, "mode='hard': choose one of safe, published"),
            (lambda: with_corpus(stops, SAMPLE, tokenizer, share=1.0), ParameterError, "share=1.0: give a share between 0 and 1"),
            (lambda: with_corpus(stops, [], tokenizer), DataError, "there are no texts to measure")):
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(PreparedError, match="stop tokens not found: .* run `korlab sparse stopwords` first"):
        load_stop_mask(tmp_path)


def test_import_stays_light():
    heavy = "{'torch', 'transformers', 'tokenizers', 'scipy', 'kiwipiepy', 'safetensors'}"
    code = f"import sys, korlab.sparse.idf, korlab.sparse.stopwords; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"set()"


# ---- real vocabularies and texts --------------------------------------------------------------------------------

DATA = Path(os.environ.get("KORLAB_TEST_DATA", ""))


@pytest.mark.skipif(not os.environ.get("KORLAB_TEST_DATA"), reason="KORLAB_TEST_DATA names no folder of real tokenizers")
@pytest.mark.parametrize("name", ["koelectra", "kcbert"])
def test_real_vocabularies(name, tmp_path):
    from tokenizers import BertWordPieceTokenizer
    made = BertWordPieceTokenizer(str(DATA / "tokenizers" / name / "vocab.txt"), lowercase=False, strip_accents=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, **SPECIAL)
    folder = DATA / "retrieval" / "kobest_boolq"
    texts = list(documents(folder))
    table = prepare_idf(folder, tokenizer, tmp_path)
    assert table.n == len(texts) == 7325
    assert count_df(texts[:1500], tokenizer).df.tolist() == slowly(texts[:1500], tokenizer)
    assert sorted(documents(load_beir(folder))) == sorted(texts)
    cheapest = np.flatnonzero(table.penalties(unseen="published") <= np.exp(-2.5) + 1e-6)
    assert len(cheapest) > 3000 and (table.df[cheapest] == 0).all()  # every unseen entry, as published
    assert (table.df[table.penalties() < .09] > 0).all()
    seen, grammar = grammar_counts(texts[:200], tokenizer, len(tokenizer))
    stops = with_corpus(stop_tokens(tokenizer), texts[200:600], tokenizer)
    source, lists, corpus = (mask_quality(mask, seen, grammar) for mask in (
        stop_mask(tokenizer, "published"), stop_mask(tokenizer), stops.mask()))
    assert 2 * source[0] < lists[0] < corpus[0] and max(lists[1], corpus[1]) < source[1]
