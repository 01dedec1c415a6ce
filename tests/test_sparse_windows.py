"""Windows of long passages: nothing of a text is lost, and a document is as good as its best window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from korlab.sparse.data import Triple
from korlab.sparse.windows import shown, windows_of

WORDS = "도서관 연체료 반납 대출 열람실 지도 악보 요리책 여행 사진 the library closes at 9 (월요일)".split()


@pytest.fixture(scope="module")
def tokenizer():
    from korlab.sparse.models import train_tokenizer

    return train_tokenizer([" ".join(WORDS)] * 30, 120, "xlm-roberta")


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=120), size=st.integers(8, 40))
def test_every_word_stands_in_a_window_that_fits(tokenizer, words, size):
    cut = windows_of({"a": " ".join(words)}, tokenizer, size)
    assert set(words) <= {word for part in cut.texts.values() for word in part.split()} | {  # a word may be cut at a border, its pieces stay
        word for word in words if len(tokenizer(word, add_special_tokens=False)["input_ids"]) > 1}
    joined = "".join("".join(part.split()) for part in cut.texts.values())
    assert all(letter in joined for letter in {*"".join(words)})
    lengths = [len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in cut.texts.values()]
    assert max(lengths) <= size + 2  # a border inside a word may take one piece more on either side
    assert [*cut.of] == ["a"] and cut.of["a"] == [*cut.texts]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), documents=st.integers(2, 12))
def test_a_document_has_the_score_of_its_best_window(tokenizer, seed, documents):
    chance = np.random.default_rng(seed)
    corpus = {f"d{number}": " ".join(chance.choice(WORDS, chance.integers(1, 60))) for number in range(documents)}
    cut = windows_of(corpus, tokenizer, 12)
    vectors = csr_matrix(chance.integers(0, 3, (len(cut.texts), 9)).astype(np.float32))
    queries = csr_matrix(chance.integers(0, 2, (4, 9)).astype(np.float32))
    scores = (queries @ vectors.T).toarray()
    index = cut.index(vectors)
    for row, hits in enumerate(index.search(queries, documents)):
        best: dict[str, float] = {}
        for window, score in zip(cut.texts, scores[row]):
            best[cut.owners[window]] = max(best.get(cut.owners[window], 0.0), float(score))
        expected = sorted(((score, id) for id, score in best.items() if score > 0), reverse=True)
        assert [(hit.score, hit.id) for hit in hits] == expected


def test_short_documents_keep_their_ids_and_no_id_is_taken_twice(tokenizer):
    long, short = " ".join(WORDS * 3), "요리책"
    cut = windows_of({"a": long, "a#1": short, "b": short}, tokenizer, 12)
    assert cut.of["a#1"] == ["a#1"] and cut.of["b"] == ["b"] and cut.of["a"][0] == "a#1'"
    assert {*cut.owners.values()} == {"a", "a#1", "b"} and len(cut.texts) == len(cut.of["a"]) + 2
    whole = windows_of({"b": short, "c": "여행 사진"}, tokenizer, 12)  # nothing is cut
    vectors = csr_matrix(np.eye(2, dtype=np.float32))
    assert [[hit.id for hit in hits] for hits in whole.index(vectors).search(vectors)] == [["b"], ["c"]]


def test_a_row_learns_from_the_window_that_answers_it(tokenizer):
    page = " ".join(["도서관 대출 반납"] * 20 + ["악보 는 지도 옆"] + ["열람실 사진 여행"] * 20)
    rows = [Triple("악보 어디", page, (page, "요리책 은 없다")), Triple("도서관", page)]
    first, second = shown(rows, tokenizer, 16)
    assert "악보" in first.positive and first.negatives == (first.positive, "요리책 은 없다")
    assert second.positive.startswith("도서관 대출") and "악보" not in second.positive
