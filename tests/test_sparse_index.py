"""Sparse search against independent implementations, under damage, and as a whole notebook."""

import json
import re
import sys

import nbformat
import numpy as np
import pytest
from conftest import ROOT, flags
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import papermill
from scipy.sparse import csr_matrix
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.core.accounts import DataError
from korlab.experiment import params
from korlab.metrics.retrieval import evaluate
from korlab.sparse import encoders, search
from korlab.sparse import index as ix

QUARTERS = st.integers(0, 12).map(lambda n: n / 4)  # products and sums of these are exact in float32
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)


@st.composite
def collections(draw, vocabulary=5):
    """Documents, their ids and queries, with many zeros and many equal scores."""
    ids = draw(st.lists(NAMES, max_size=8, unique=True))
    row = st.lists(st.one_of(st.just(0.0), QUARTERS), min_size=vocabulary, max_size=vocabulary)
    documents = draw(st.lists(row, min_size=len(ids), max_size=len(ids)))
    queries = draw(st.lists(row, min_size=1, max_size=3))
    return np.reshape(documents, (len(ids), vocabulary)), ids, np.array(queries)


def ranking(documents, ids, query, k):
    """What a search must return, the slow way: score every document, sort by score and then by id, both falling."""
    scores = {id: sum(q * d for q, d in zip(query, row)) for id, row in zip(ids, documents)}
    best = sorted(((score, id) for id, score in scores.items() if score > 0), reverse=True)[:k]
    return [(id, score) for score, id in best]


# ---- exactness -------------------------------------------------------------------------------------------------------

@settings(max_examples=120, deadline=None)
@given(collections(), st.integers(1, 9))
def test_search_is_exact_and_breaks_ties_by_falling_id(collection, k):
    documents, ids, queries = collection
    found = ix.build_index(csr_matrix(documents), ids).search(csr_matrix(queries), k)
    for query, hits in zip(queries, found, strict=True):
        assert [(hit.id, hit.score) for hit in hits] == ranking(documents, ids, query, k)


def test_the_order_of_hits_is_the_order_trec_eval_scores():
    """Judging one document at a time, trec_eval's reciprocal rank tells the place it gives the document."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    ids = ["d1", "d10", "d2", "가", "나", "Z", "z", "d-1"]
    index = ix.build_index(csr_matrix(np.full((8, 1), 0.1)), ids)
    hits = index.search(csr_matrix([[1.0]]), k=8)[0]
    run = {f"q{i}": ix.as_run(["q"], [hits])["q"] for i in range(8)}
    qrels = {f"q{i}": {hit.id: 1} for i, hit in enumerate(hits)}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(run)
    assert [round(1 / theirs[f"q{i}"]["recip_rank"]) for i in range(8)] == list(range(1, 9))
    assert evaluate(run, qrels).scores["mrr@10"].tolist() == [1 / rank for rank in range(1, 9)]


@settings(max_examples=100, deadline=None)
@given(collections())
def test_contributions_add_up_to_the_score(collection):
    documents, ids, queries = collection
    index = ix.build_index(csr_matrix(documents), ids)
    for query, hits in zip(csr_matrix(queries), index.search(csr_matrix(queries), 9)):
        for hit in hits:
            parts = ix.contributions(index, query, hit.id)
            assert sum(part.query * part.document for part in parts) == hit.score
            assert sum(part.share for part in parts) == pytest.approx(1)
            assert [part.share for part in parts] == sorted((part.share for part in parts), reverse=True)


def test_a_wrong_vector_or_number_is_named():
    index = ix.build_index(csr_matrix(np.eye(3)), ["a", "b", "c"])
    for call, sentence in [
        (lambda: index.search(csr_matrix([[1, -1, 0]])), "row 0, token 1 has the weight -1.0"),
        (lambda: index.search(csr_matrix([[1, np.inf, 0]])), "row 0, token 1 has the weight inf"),
        (lambda: index.search(csr_matrix((1, 3)), k=0), "k is 0: ask for at least 1 document"),
        (lambda: ix.build_index(csr_matrix(np.eye(3)), ["a", "b"]), "3 vectors but 2 ids"),
        (lambda: ix.build_index(csr_matrix(np.eye(2)), ["a", "b"], ["x"]), "2 ids but 1 texts"),
        (lambda: index.text("a"), "this index holds no texts"),
        (lambda: ix.prune(csr_matrix((1, 3)), top=0), "top is 0: keep at least 1 token"),
        (lambda: ix.prune(csr_matrix((1, 3)), mass=1.5), "mass is 1.5: give a share above 0 and up to 1"),
    ]:
        with pytest.raises((ValueError, ix.SparseIndexError), match=re.escape(sentence)):
            call()


# ---- pruning ---------------------------------------------------------------------------------------------------------

def pruned_row(row, top, ratio, mass):
    """One row pruned the slow way, in exact fractions of quarters."""
    strongest = sorted((i for i, w in enumerate(row) if w > 0), key=lambda i: (-row[i], i))
    total, kept, held = sum(row), [], 0.0
    for i in strongest:
        if (top is not None and len(kept) == top or ratio is not None and row[i] < ratio * row[strongest[0]]
                or mass is not None and held >= mass * total):
            break
        kept.append(i)
        held += row[i]
    return [w if i in kept else 0.0 for i, w in enumerate(row)]


SHARES = st.none() | st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0])


@settings(max_examples=150, deadline=None)
@given(collections(), st.none() | st.integers(1, 5), SHARES, SHARES)
def test_pruning_keeps_exactly_what_the_rules_say(collection, top, ratio, mass):
    documents = collection[0]
    less = ix.prune(csr_matrix(documents), top, ratio, mass)
    assert less.toarray().tolist() == [pruned_row(row.tolist(), top, ratio, mass) for row in documents]
    assert less.has_canonical_format and (less.data > 0).all()


def test_pruning_queries_leaves_the_documents_whole():
    documents = csr_matrix([[1, 0, 2.0], [0, 3, 0]])
    queries = csr_matrix([[2, 1, 0.0]])
    row, = ix.pruning_cost(documents, ["a", "b"], queries, [{"top": 1}], of="queries")
    assert (row["tokens"], row["kept"], row["overlap@10"]) == (1, 0.5, 0.5)  # only `a` has the token that is left


# ---- on disk ---------------------------------------------------------------------------------------------------------

@settings(max_examples=40, deadline=None)
@given(collections(), st.booleans())
def test_an_index_comes_back_from_disk(tmp_path_factory, collection, with_texts):
    documents, ids, queries = collection
    folder = tmp_path_factory.getbasetemp() / "any-index"  # one folder for all examples: each replaces the last
    texts = [f"글 {id}\n" for id in ids] if with_texts else None
    index = ix.build_index(csr_matrix(documents), ids, texts, facts={"n": len(ids)})
    ix.save_index(index, folder)
    mapped = ix.load_index(folder)
    assert mapped.search(csr_matrix(queries), 9) == index.search(csr_matrix(queries), 9)
    assert list(mapped.ids) == sorted(ids, reverse=True) and mapped.facts == {"n": len(ids)}
    assert [mapped.text(id) for id in ids] == texts if with_texts else mapped.texts is None
    assert len(list(folder.iterdir())) == (8 if with_texts else 6)


@pytest.fixture
def saved(tmp_path):
    """A small index on disk."""
    index = ix.build_index(csr_matrix(np.eye(3) * 2), ["a", "b", "c"], ["가", "나", "다"], tokenizer="1" * 64)
    return ix.save_index(index, tmp_path / "index")


@pytest.mark.parametrize("name", ["starts", "rows", "weights", "ids", "id_ends", "texts", "text_ends"])
def test_a_damaged_file_is_refused_by_name(saved, name):
    path = next(saved.glob(f"{name}-*.npy"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ix.SparseIndexError, match=f"{name}-.* is damaged, its sha256 is not the one"):
        ix.load_index(saved)
    path.write_bytes(whole[:-2])
    with pytest.raises(ix.SparseIndexError, match=f"is damaged, {len(whole) - 2:,} bytes in place of {len(whole):,}"):
        ix.load_index(saved, verify=False)
    path.unlink()
    with pytest.raises(ix.SparseIndexError, match=f"{name}-.* is missing: build the index again"):
        ix.load_index(saved, verify=False)


@pytest.mark.parametrize("content, sentence", [
    ("{", "is damaged"),
    ("[]", "is not the manifest of a korlab sparse index"),
    ('{"format": "something else"}', "is not the manifest of a korlab sparse index"),
    ('{"format": "korlab sparse index", "version": 99}', "was written in version 99 of the format"),
])
def test_a_foreign_manifest_is_refused_and_never_overwritten(saved, content, sentence):
    (saved / "manifest.json").write_text(content)
    with pytest.raises(ix.SparseIndexError, match=sentence):
        ix.load_index(saved)
    with pytest.raises(ix.SparseIndexError, match=sentence):
        ix.save_index(ix.build_index(csr_matrix(np.eye(2)), ["x", "y"]), saved)
    assert (saved / "manifest.json").read_text() == content


def test_an_index_goes_into_no_folder_of_something_else(tmp_path):
    index = ix.build_index(csr_matrix(np.eye(2)), ["x", "y"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text("{}")
    (tmp_path / "file").write_text("")
    with pytest.raises(ix.SparseIndexError, match="is no index and not empty .it holds export.json"):
        ix.save_index(index, tmp_path / "out")
    with pytest.raises(ix.SparseIndexError, match="is a file"):
        ix.save_index(index, tmp_path / "file")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["export.json"]
    (tmp_path / "dead").mkdir()  # where a first save was killed
    for name in ("starts-0123abcd.npy", ".rows-0123abcd.npy.77.tmp"):
        (tmp_path / "dead" / name).write_text("half")
    assert len(ix.load_index(ix.save_index(index, tmp_path / "dead"))) == 2


def test_another_tokenizer_is_refused(saved):
    with pytest.raises(ix.SparseIndexError, match="was built with another tokenizer .sha256 111111111111…, yours 222"):
        ix.load_index(saved, tokenizer="2" * 64)


@pytest.mark.parametrize("writes", range(5))
def test_a_save_that_dies_leaves_the_old_index(saved, monkeypatch, writes):
    before, save, done = ix.load_index(saved).search(csr_matrix(np.ones((1, 3)))), np.save, []

    def dying(file, array, **how):
        if len(done) == writes:
            raise OSError("no space left")
        done.append(save(file, array, **how))

    monkeypatch.setattr(np, "save", dying)
    with pytest.raises(OSError, match="no space left"):
        ix.save_index(ix.build_index(csr_matrix(np.eye(2)), ["x", "y"]), saved)
    assert ix.load_index(saved).search(csr_matrix(np.ones((1, 3)))) == before
    monkeypatch.undo()
    ix.save_index(ix.build_index(csr_matrix(np.eye(2)), ["x", "y"]), saved)
    assert len(list(saved.iterdir())) == 6  # what the dead save left is gone


# ---- seismic ---------------------------------------------------------------------------------------------------------

def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "seismic", None)
    with pytest.raises(ix.SparseIndexError, match="run `pip install pyseismic-lsr`, or use build_index"):
        ix.build_seismic(csr_matrix(np.eye(2)), ["a", "b"])


def test_seismic_has_the_same_interface_and_finds_nearly_everything(tmp_path):
    pytest.importorskip("seismic")
    rng = np.random.default_rng(0)
    documents = csr_matrix(rng.gamma(2, 1, (400, 300)) * (rng.random((400, 300)) < 0.1))
    queries = csr_matrix(rng.gamma(2, 1, (20, 300)) * (rng.random((20, 300)) < 0.03))
    ids = [f"문서 {i}" for i in range(400)]
    fast = ix.build_seismic(documents, ids, tokenizer="1" * 64, query_cut=20, heap_factor=0.5, num_threads=1)
    exact = ix.build_index(documents, ids).search(queries)
    found = fast.search(queries)
    assert np.nanmean(ix.overlap(found, exact)) >= 0.98
    scores = {(i, hit.id): hit.score for i, hits in enumerate(exact) for hit in hits}
    close = [(hit.score, scores[i, hit.id]) for i, hits in enumerate(found) for hit in hits if (i, hit.id) in scores]
    assert np.allclose(*zip(*close), rtol=2e-3)  # Seismic keeps weights in 16 bits
    assert ix.load_seismic(ix.save_seismic(fast, tmp_path / "fast"), tokenizer="1" * 64).search(queries) == found
    assert fast.search(csr_matrix((1, 300))) == [[]]
    file = next((tmp_path / "fast").glob("*.seismic"))
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8 + b"!")
    with pytest.raises(ix.SparseIndexError, match="is damaged"):
        ix.load_seismic(tmp_path / "fast")
    with pytest.raises(ix.SparseIndexError, match="use the other of load_index and load_seismic"):
        ix.load_index(tmp_path / "fast")


def test_seismic_counts_more_tokens_than_16_bits_in_its_large_form(tmp_path, monkeypatch):
    """With 70,000 tokens this took 90 seconds and the same path; the border is lowered instead."""
    pytest.importorskip("seismic")
    monkeypatch.setattr(ix, "MOST_TOKENS", 3)
    fast = ix.build_seismic(csr_matrix(np.eye(4)), list("abcd"), num_threads=1)
    assert type(fast.index).__name__ == "SeismicIndexLV"
    again = ix.load_seismic(ix.save_seismic(fast, tmp_path / "large"))
    assert again.search(csr_matrix([[0, 0, 0, 2.0]])) == [[ix.Hit("d", 2.0)]]


# ---- reasons in the text ---------------------------------------------------------------------------------------------

TEXTS = ["서울 지하철 노선과 막차 시간", "부산 지하철 노선 <b>안내</b> & 요금", "휴대용 우산은 가볍다"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A tiny untrained SparseEncoder as a finished run leaves it, and the passages in a file."""
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    home = tmp_path_factory.mktemp("runs")
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = BertForMaskedLM(BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    ))
    torch.nn.init.normal_(model.bert.embeddings.word_embeddings.weight)
    model.save_pretrained(home / "part")
    tokenizer.save_pretrained(home / "part")
    parts = [Transformer(str(home / "part"), transformer_task="fill-mask", max_seq_length=8), SpladePooling()]
    folder = home / "sparse" / "tiny" / "model"
    SparseEncoder(modules=parts, device="cpu").save(str(folder))
    (home / "passages.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return folder


def test_an_index_is_used_again_only_with_its_own_model(encoder_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KORLAB_RUNS", str(encoder_folder.parents[2]))
    encoder = encoders.load_encoder("latest", device="cpu")
    passages = search.read_passages(str(encoder_folder.parents[2] / "passages.txt")).texts()
    built = encoders.open_index(encoder, passages, tmp_path / "index")
    vectors = encoder.documents(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (3, built.vocabulary) and encoder.max_length == 8
    refuse = encoders.Encoder("none", encoder.tokenizer, encoder.queries, None, None, encoder.sha256)
    assert encoders.open_index(refuse, passages, tmp_path / "index").search(vectors) == built.search(vectors)
    other = encoders.Encoder("other", encoder.tokenizer, encoder.queries, None, None, "another")
    with pytest.raises(ix.SparseIndexError, match="was built from other weights"):
        encoders.open_index(other, passages, tmp_path / "index")
    with pytest.raises(encoders.RunError, match="neither a sparse run nor the folder of a SparseEncoder.*: tiny"):
        encoders.find_encoder("missing")


def test_marks_end_where_the_model_stopped_reading(encoder_folder):
    encoder = encoders.load_encoder(str(encoder_folder), device="cpu")
    long = " ".join(["지하철"] * 20)
    assert len(search.token_places(long, encoder.tokenizer, encoder.max_length)) == 8
    assert len(search.token_places(long, encoder.tokenizer)) == 20


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.data())
def test_cutting_a_text_loses_nothing(text, data):
    place = st.tuples(st.integers(0, 3), st.integers(0, len(text)), st.integers(0, len(text)))
    places = data.draw(st.lists(place, max_size=5))
    pieces = search.cut_at(text, places, {0, 1})
    assert "".join(piece for piece, _ in pieces) == text
    marked = {i for token, start, end in places if token < 2 for i in range(start, end)}
    at, found = 0, set()
    for piece, tokens in pieces:
        found |= set(range(at, at + len(piece))) if tokens else set()
        at += len(piece)
    assert found == marked


def test_a_passage_cannot_break_the_page(encoder_folder):
    encoder = encoders.load_encoder(str(encoder_folder), device="cpu")
    index = encoders.open_index(encoder, {"<i>": TEXTS[1]})
    shown = search.Searcher(encoder, index)("지하철")
    page, text = shown._repr_html_(), shown._repr_markdown_()
    assert "&lt;b&gt;" in re.sub(r"</?mark[^>]*>", "", page) and "<i>" not in page + text
    assert re.sub(r"</?b>", "", text).count("&lt;b&gt;") == 1


# ---- what is searched, and the commands -------------------------------------------------------------------------------


def test_a_file_of_documents_is_read_as_documents(tmp_path):
    rows = ['{"_id": "a", "title": "서울", "text": "지하철"}', '{"_id": "b", "text": "', '{"_id": "a", "text": "다시"}',
            '{"_id": "c", "text": "우산"}']
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "mine.JSONL").write_text("\n".join(rows), encoding="utf-8")
    for place in (tmp_path, tmp_path / "corpus.jsonl", tmp_path / "mine.JSONL"):  # no queries, no qrels
        told = []
        assert search.read_passages(str(place), told.append).texts() == {"a": "서울 지하철", "c": "우산"}
        assert len(told) == 1 and "2 of 4 documents are used" in told[0] and "duplicate id 1" in told[0]
        assert str(tmp_path) not in told[0]


def korlab(*words: object) -> tuple[int, str]:
    """Exit code, and what `korlab sparse …` prints; of a refusal what it says on standard error as well."""
    done = CliRunner().invoke(command_line(), ["sparse", *map(str, words)], env={"COLUMNS": "60"})
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.output if done.exit_code else done.stdout  # without progress bars


def test_the_commands_take_a_run_by_its_folder_and_explain_hits(encoder_folder, tmp_path, monkeypatch):
    """A run's modules.json is a table of parameters, not sentence-transformers' list of modules."""
    run, passages = encoder_folder.parent, encoder_folder.parents[2] / "passages.txt"
    (run / "modules.json").write_text('[{"module": "encoder", "parameters": 1, "trainable": 1}]')
    assert encoders.find_encoder(str(run)) == encoder_folder
    code, said = korlab("index", passages, "--run", run, "--to", tmp_path / "index")
    assert code == 0 and "3 passages" in said
    code, said = korlab("search", "지하철", "--run", run, "--documents", passages, "--index", tmp_path / "index", "-k", 2)
    assert code == 0, said
    encoder = encoders.load_encoder(str(run), "cpu")
    found = search.Searcher(encoder, ix.load_index(tmp_path / "index"))("지하철", 2).hits
    lines = [line for line in said.splitlines() if line.strip()]
    assert lines.pop(0).startswith("rank  score  id") and len(lines) == 6
    for rank, hit in enumerate(found):
        assert lines[3 * rank].split() == [str(rank + 1), f"{hit.score:.2f}", hit.id]
        assert lines[3 * rank + 1].strip().rstrip("…") in hit.text
        token, share, inside = hit.tokens[0]
        assert lines[3 * rank + 2].strip().split(", ")[0] == f"{'' if inside else '+'}{token} {share:.0%}"


def test_what_cannot_be_searched_is_one_sentence(encoder_folder, tmp_path):
    good, docs = encoder_folder.parents[2] / "passages.txt", tmp_path / "docs"
    for name, text in (("docs/corpus.jsonl", '{"_id": "a"'), ("empty.jsonl", ""), ("none/x.png", "x"), ("full/x.txt", "x")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    to, search_in = ("--to", tmp_path / "index"), ("search", "우산", "--run", encoder_folder, "--documents")
    for words, sentence in [
        (("index", docs, "--run", encoder_folder, *to), "docs/corpus.jsonl has no row that can be used"),
        (("index", tmp_path / "empty.jsonl", "--run", encoder_folder, *to), "empty.jsonl is empty"),
        (("index", tmp_path / "none", "--run", encoder_folder, *to), "there is no document in that folder that can be read (x.png is no document"),
        (("index", tmp_path / "latin.txt", "--run", encoder_folder, *to), "is not text in UTF-8"),
        (("index", good, "--run", encoder_folder, "--to", tmp_path / "full"), "is no index and not empty"),
        (("index", good, *to, "--opensearch", "faq"), "--to FOLDER or --opensearch ALIAS"),
        (("index", good, *to, "--layout", "rank_features"), "--layout would have no effect without"),
        (("index", good, "--run", tmp_path / "nobody", *to), "neither a sparse run nor the folder"),
        ((*search_in, docs), "has no row that can be used"),
        ((*search_in, good, "--engine", "two_phase"), "--engine 'two_phase': choose one of bm25, sparse, hybrid"),
        (("search", "  ", "--run", encoder_folder, "--documents", good), "the query is empty"),
    ]:
        code, said = korlab(*words)
        lines = [line for line in said.splitlines() if line.startswith("korlab: ")]
        assert code == 1 and len(lines) == 1 and sentence.split("/")[-1] in lines[0], said
        assert str(tmp_path) not in said and str(encoder_folder.parents[2]) not in said


# ---- the notebook ----------------------------------------------------------------------------------------------------

def test_the_parameters_cell_says_what_the_dataclass_says():
    cells = nbformat.read(ROOT / "nbs" / "search.ipynb", as_version=4).cells
    source, = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert source == params.cell_source({"": search.SearchParams}), "paste the output of korlab.experiment.params.cell_source"


def test_the_notebook_searches_a_file(encoder_folder, tmp_path):
    home = encoder_folder.parents[2]
    given = flags(run="tiny", documents=home / "passages.txt", index=tmp_path / "index", query="막차 시간", k=2)
    outcome = papermill(tmp_path / "out.ipynb", *given, runs=home, notebook="search")
    assert outcome.code == 0, outcome.text[-2000:]
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    shown = [o.data for c in cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    text = "\n".join(data.get("text/markdown", "") for data in shown)
    assert "글 3개" in text and "질의 **막차 시간**" in text
    expected = search.Searcher(encoders.load_encoder(str(encoder_folder), "cpu"), ix.load_index(tmp_path / "index"))
    assert any(data.get("text/html", "") == expected("막차 시간", 2)._repr_html_() for data in shown)
    assert json.loads((tmp_path / "index" / "manifest.json").read_text(encoding="utf-8"))["documents"] == 3


def test_a_collapsed_encoder_can_still_be_measured():
    """V24 and V25 only warn when all vectors are empty; what comes after must say so rather than divide by nothing."""
    nothing = csr_matrix((3, 8), dtype=np.float32)
    row, = ix.pruning_cost(nothing, ["a", "b", "c"], nothing, [{"top": 4}], qrels={"q": {"a": 1}, "r": {"b": 1}, "s": {"c": 1}},
                           query_ids=["q", "r", "s"])
    assert (row["tokens"], row["kept"], row["overlap@10"], row["nDCG@10"], row["difference"]) == (0, 0, None, 0, 0)


def test_json_documents_are_read_as_json_lines_are(tmp_path):
    """A doubled key costs its row, an empty array holds nothing, rows of a table may do without ids."""
    (tmp_path / "x.json").write_text('[{"_id": "a", "text": "가", "text": "나"}, {"_id": "b", "text": "다"}]', "utf-8")
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "x.csv").write_text("text,제목\n지하철,서울\n우산,\n", "utf-8")
    told: list[str] = []
    assert search.read_passages(str(tmp_path / "x.json"), told.append).texts() == {"b": "다"} and "broken JSON 1" in told[0]
    with pytest.raises(DataError, match="none.json holds no rows: add rows"):
        search.read_passages(str(tmp_path / "none.json"))
    assert search.read_passages(str(tmp_path / "x.csv"), told.append).texts() == {"1": "서울 지하철", "2": "우산"}
    assert "2 of 2 documents are used; there were: no id 2" in told[1] and "so it is called 1" in told[1]


def test_a_missing_index_is_an_error_and_a_search_says_what_it_searches(encoder_folder, tmp_path, monkeypatch):
    passages, place = encoder_folder.parents[2] / "passages.txt", tmp_path / "idx"
    monkeypatch.chdir(tmp_path)
    code, said = korlab("search", "지하철", "--run", encoder_folder, "--index", "nowhere")
    said = " ".join(said.split())
    assert code == 1 and "'nowhere' does not exist" in said and "looked for in" in said and not (tmp_path / "nowhere").exists()
    done = CliRunner().invoke(command_line(), [
        "sparse", "search", "지하철", "--run", str(encoder_folder), "--documents", str(passages), "--index", str(place)])
    assert done.exit_code == 0 and "searching 3 documents: " in done.stderr and "passages.txt" in done.stderr
    done = CliRunner().invoke(command_line(), ["sparse", "search", "지하철", "--run", str(encoder_folder), "--index", str(place)])
    assert done.exit_code == 0 and "searching 3 documents: " in done.stderr and "idx" in done.stderr
