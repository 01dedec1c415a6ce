"""Export: other architectures, a process without korlab, failures that leave nothing, the Hub without a network."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.core.files import read_json
from korlab.experiment import results
from korlab.experiment.results import Scored
from korlab.experiment.runs import Run
from korlab.experiment.studies import configure
from korlab.metrics.measures import Interval
from korlab.sparse import export as ex
from korlab.sparse.head import fuse
from korlab.sparse.idf import count_df

torch.set_num_threads(1)
PIECES = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "<mask>",
    "▁서울",
    "서울",
    "▁날씨",
    "▁환불",
    "▁기차",
    "▁",
    "은",
    "는",
    ".",
    "▁3.5",
    "요",
    "까",
]
STOP = np.array([piece in ("<s>", "</s>", "은", "는", ".") for piece in PIECES])
TEXTS = ["서울 날씨", "환불 은 기차 요", "서울 는 날씨"]
CARD = ex.Card("test model", base="klue/roberta-base", license="cc-by-sa-4.0")


def tokenizer() -> PreTrainedTokenizerFast:
    unigram = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(PIECES)], unk_id=3))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=unigram, model_max_length=24, **names)


WIDE = {"initializer_range": 0.6, "vocab_size": len(PIECES), "pad_token_id": 1}
SHAPE = WIDE | {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
SHAPE |= {"max_position_embeddings": 40}
ENDS = {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
ARCHITECTURES = {
    "xlm-roberta": lambda: XLMRobertaForMaskedLM(XLMRobertaConfig(**SHAPE)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SHAPE)),
    "distilbert": lambda: DistilBertForMaskedLM(DistilBertConfig(**WIDE, dim=16, n_layers=1, n_heads=2, hidden_dim=24)),
    "modernbert without a bias": lambda: ModernBertForMaskedLM(ModernBertConfig(**SHAPE, **ENDS, decoder_bias=False)),
}


def encoder(folder: Path, name: str = "xlm-roberta", activation: str = "relu") -> SparseEncoder:
    torch.manual_seed(1)
    ARCHITECTURES[name]().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    modules = [
        Transformer(str(folder), transformer_task="fill-mask"),
        SpladePooling("max", activation_function=activation),
    ]
    return SparseEncoder(modules=modules, device="cpu")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_every_architecture_comes_back_with_its_vectors_and_its_mask(name, activation, tmp_path):
    model = encoder(tmp_path / "base", name, activation)
    wanted = ex.encoded(model, TEXTS)
    assert (wanted[:, STOP] > 0).any(), "nothing to silence: the test would prove nothing"
    wanted[:, STOP] = 0
    embeddings = model[0].auto_model.get_input_embeddings().weight.detach().clone()
    done = ex.export(model, tmp_path / "out", CARD, STOP)
    assert done.difference <= 1e-6 and done.masked == STOP.sum()
    again = SparseEncoder(str(done.folder), device="cpu")
    np.testing.assert_allclose(ex.encoded(again, TEXTS), wanted, atol=1e-6)
    np.testing.assert_allclose(ex.by_hand(done.folder, TEXTS, activation == "log1p_relu"), wanted, atol=1e-6)
    assert torch.equal(again[0].auto_model.get_input_embeddings().weight, embeddings), (
        "what the encoder reads has changed"
    )
    assert (ex.encoded(model, TEXTS)[:, STOP] > 0).any(), "the model in memory was changed"


def test_a_fused_model_is_exported_as_a_plain_one(tmp_path):
    model = fuse(encoder(tmp_path / "base"))
    wanted = ex.encoded(model, TEXTS) * ~STOP
    done = ex.export(model, tmp_path / "out", CARD, STOP)
    np.testing.assert_allclose(ex.encoded(SparseEncoder(str(done.folder), device="cpu"), TEXTS), wanted, atol=1e-6)
    assert {Path(name).suffix for name in done.files} <= {".json", ".safetensors", ".md"}


def code_of(folder: Path) -> str:
    return (folder / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]


def test_the_code_of_the_card_runs_where_korlab_is_not(tmp_path):
    """As printed, but for the name: of the folder, and of a repository that the Hub's cache holds."""
    model = encoder(tmp_path / "base")
    table = count_df(["서울 날씨", "서울 기차", "환불 는"], model.tokenizer)
    program = "import sys; sys.modules['korlab'] = None\nfound = []\n"
    for name, idf in (("encoded", None), ("looked-up", table)):
        done, cache = ex.export(model, tmp_path / name, CARD, STOP, idf), tmp_path / "hub" / f"models--lab--{name}"
        shutil.copytree(done.folder, cache / "snapshots" / ("0" * 40))
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("0" * 40)
        for place in (str(done.folder), f"lab/{name}"):
            program += code_of(done.folder).replace("<this repository>", place)
            program += "\nfound.append([queries.to_dense()[0].tolist(), documents.to_dense()[0].tolist()])\n"
    said = subprocess.run(
        [sys.executable, "-c", program + "print(found)"], check=False, capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-2000:]
    found = np.array(json.loads(said.stdout.splitlines()[-1]))
    words = ["서울 날씨 어때?", "서울의 날씨는 맑습니다."]
    query, document = ex.encoded(model, words) * ~STOP
    ids = model.tokenizer(words[0], add_special_tokens=False).input_ids
    static = np.where(np.isin(np.arange(len(PIECES)), ids), table.query_weights(STOP), 0)
    assert static.any()
    np.testing.assert_allclose(found, [[query, document]] * 2 + [[static, document]] * 2, atol=1e-6)


def test_inference_free_queries_from_document_frequencies(tmp_path):
    model = encoder(tmp_path / "base")
    table = count_df(["서울 날씨", "서울 기차", "환불 는"], model.tokenizer)
    done = ex.export(model, tmp_path / "out", CARD, STOP, idf=table)
    said = json.loads((done.folder / "idf.json").read_text("utf-8"))
    assert list(said) == PIECES and said["▁3.5"] == said["까"] == 0.0, "unseen tokens weigh nothing"
    assert said["는"] == 0.0 < said["▁서울"] < said["▁기차"], (
        "a stop token weighs nothing, a rare one more than a common one"
    )
    static = SparseStaticEmbedding.from_json(str(done.folder / "idf.json"), tokenizer=model.tokenizer)
    assert np.array_equal(static.weight.detach().numpy(), table.query_weights(STOP))
    both = SparseEncoder(str(done.folder), device="cpu")
    query = both.encode_query(["서울 는 기차"], convert_to_sparse_tensor=False)[0].numpy()
    assert {PIECES[i] for i in query.nonzero()[0]} == {"▁", "▁서울", "▁기차"}, "the stop token is not among them"
    wanted = ex.encoded(model, TEXTS) * ~STOP
    np.testing.assert_allclose(ex.encoded(both, TEXTS), wanted, atol=1e-6)
    np.testing.assert_allclose(ex.by_hand(done.folder, TEXTS), wanted, atol=1e-6)  # the encoder lies at the root
    np.testing.assert_allclose(ex.encoded(fuse(both), TEXTS), wanted, atol=1e-6)
    again = ex.export(done.folder, tmp_path / "again", CARD)
    assert (again.folder / "idf.json").read_bytes() == (done.folder / "idf.json").read_bytes()


def test_a_trained_router_ships_its_own_table(tmp_path):
    model = encoder(tmp_path / "base")
    weights = torch.arange(len(PIECES), dtype=torch.float32)
    table = SparseStaticEmbedding(tokenizer=model.tokenizer, weight=weights, frozen=True)
    routed = SparseEncoder(modules=[Router.for_query_document([table], list(model.children()))], device="cpu")
    routed.save_pretrained(str(tmp_path / "trained"))
    done = ex.export(tmp_path / "trained", tmp_path / "out", CARD, STOP)
    said = json.loads((done.folder / "idf.json").read_text("utf-8"))
    assert said == {piece: 0.0 if STOP[i] else float(i) for i, piece in enumerate(PIECES)}
    assert "inference-free" in (done.folder / "README.md").read_text("utf-8")


def test_a_mask_that_does_not_hold_is_noticed_and_nothing_is_left(tmp_path, monkeypatch):
    model = encoder(tmp_path / "base")
    monkeypatch.setattr(ex, "fold_mask", lambda mlm, stop: None)
    with pytest.raises(ex.ExportError, match="loaded again by SparseEncoder, weights differ"):
        ex.export(model, tmp_path / "out", CARD, STOP)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base"]


def test_a_failed_export_leaves_the_earlier_one(tmp_path):
    model = encoder(tmp_path / "base")
    ex.export(model, tmp_path / "out", CARD)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
    bad = ex.Card("x", "", "mit", metrics={"mrr@10": {"mean": 1.0, "n": 100}})
    with pytest.raises(ex.ExportError, match="needs n and documents"):
        ex.export(model, tmp_path / "out", bad, STOP)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()} == before
    ex.export(model, tmp_path / "out", CARD, STOP)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["silenced tokens"] == STOP.sum()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "out"]


def test_the_card_says_what_the_hub_and_a_reader_need(tmp_path):
    score = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 200, "level": 0.95, "documents": 3660}
    metrics = {"splits": {"test": {"ndcg@10": score, "active dimensions": {"mean": 41.0, "n": 3660}}}}
    card = ex.Card("sparse-ko", "klue/roberta-base", "cc-by-sa-4.0", metrics, {"training texts": "1,200"})
    done = ex.export(encoder(tmp_path / "base"), tmp_path / "out", card, STOP)
    _, front, text = (done.folder / "README.md").read_text("utf-8").split("---\n", 2)
    said = yaml.safe_load(front)
    assert (said["license"], said["base_model"], said["language"]) == ("cc-by-sa-4.0", "klue/roberta-base", ["ko"])
    assert {"sparse-encoder", "sentence-transformers"} <= set(said["tags"]) and "inference-free" not in said["tags"]
    row = next(line for line in text.splitlines() if "ndcg@10" in line)
    assert all(part in row for part in ("0.5000", "0.4000", "0.6000", "200", "3,660 documents"))
    assert str(tmp_path) not in text and "encode_document" in text
    keys = example(done.folder)
    model = SparseEncoder(str(done.folder), device="cpu")
    vector = model.encode_query("서울 날씨 어때?", convert_to_sparse_tensor=False).numpy()
    heaviest = [int(i) for i in np.argsort(-vector)[:3]]
    assert keys == {PIECES[i].replace(".", "%002E"): pytest.approx(vector[i], abs=0.005) for i in heaviest}
    assert not any("가" <= letter <= "힣" for line in text.splitlines() if line.startswith("| ") for letter in line)


def example(folder: Path) -> dict[str, float]:
    text = (folder / "README.md").read_text("utf-8").split("```json\n")[1].split("```")[0]
    return json.loads(text)["query"]["neural_sparse"]["sparse"]["query_tokens"]


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run's folder, as far as an export reads it."""
    config = configure({"model": "sparse-ko", "size": "mini"})
    home = Run(tmp_path / "ko", config)
    encoder(tmp_path / "base").save_pretrained(str(home.path("model")), create_model_card=False)
    score = {"ndcg@10": Interval(0.5, 0.4, 0.6, 200)}
    scored = [Scored(name, "test", "3,660 documents", 200, score, "exact", name != "sparse-ko") for name in ("sparse-ko", "BM25 eojeol")]
    results.write(home, scored, {}, {"test": {"documents": 3660}})
    home.write("config", {"effective": config.flat(), "given": {}})
    home.write("modules", [{"module": "encoder", "parameters": 1, "trainable": 1}])
    home.write("model", {"origin": "mini roberta built from its config"})
    home.write("train", {"train_metrics": {"epochs": 3.0, "updates": 120, "loss": 0.1}})
    return home.folder


def exported(*words: object) -> str:
    done = CliRunner().invoke(command_line(), ["sparse", "export", *map(str, words)])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return (Path(words[2]) / "README.md").read_text("utf-8")


def test_the_card_of_a_run_names_data_training_and_licence(run, tmp_path):
    text = exported(run, "--to", tmp_path / "out", "--license", "cc-by-sa-4.0")
    assert "Measured on embedded (generated)." in text and "| test · ndcg@10 | 0.5000 |" in text
    for fact in ("sparse-ko, mini", "mini roberta built from its config", "| epochs | 3.00 |", "| updates | 120 |", "| seed | 42 |"):
        assert fact in text
    assert "license: cc-by-sa-4.0" in text and "base_model" not in text
    done = CliRunner().invoke(command_line(), ["sparse", "export", str(run), "--to", str(tmp_path / "other")])
    assert done.exit_code == 2 and "--license" in done.output and not (tmp_path / "other").exists()


def test_scores_of_other_vectors_stay_out_of_the_card(run, tmp_path):
    text = exported(run, "--to", tmp_path / "out", "--license", "mit", "--silence")
    assert "ndcg" not in text and "measured before stop tokens were silenced at export" in text
    assert read_json(tmp_path / "out" / "export.json")["silenced tokens"] > 0


def test_only_what_the_export_wrote_is_uploaded(tmp_path):
    done = ex.export(encoder(tmp_path / "base"), tmp_path / "out", CARD)
    (done.folder / "weights-0000.npy").write_text("somebody's")
    plan = ex.upload(done.folder, "somebody/sparse-ko", dry_run=True)
    assert [name for name, _ in plan.files] == list(done.files) == read_json(done.folder / "export.json")["files"]
    assert "weights-0000.npy" not in done.files and "export.json" in done.files
    (done.folder / "model.safetensors").unlink()
    with pytest.raises(ex.ExportError, match="model.safetensors of it is missing: export again"):
        ex.upload(done.folder, "somebody/sparse-ko", dry_run=True)


def test_a_dry_run_opens_no_connection(tmp_path, monkeypatch):
    done = ex.export(encoder(tmp_path / "base"), tmp_path / "out", CARD)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi", refuse)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    plan = ex.upload(done.folder, "somebody/sparse-ko", dry_run=True)
    assert not plan.sent and plan.private and plan.repo == "somebody/sparse-ko"
    assert dict(plan.files) == {name: (done.folder / name).stat().st_size for name in done.files}
    assert "hf_secret" not in repr(plan) + plan._repr_markdown_() and "nothing was sent" in plan._repr_markdown_()


class Hub:
    """A FAKE of HfApi that writes down what it is asked."""

    calls: ClassVar[list] = []
    public = False

    def __init__(self, token: str):
        self.calls.append(("token", token))

    def create_repo(self, repo: str, **how: object) -> None:
        self.calls.append(("create", repo, how))

    def repo_info(self, repo: str):
        return type("Info", (), {"private": not self.public})

    def upload_folder(self, **what: object):
        self.calls.append(("upload", what))
        return type("Commit", (), {"commit_url": "https://hub.example/commit/1"})


def test_an_upload_is_private_and_never_lands_in_a_public_repository_by_mistake(tmp_path, monkeypatch):
    done = ex.export(encoder(tmp_path / "base"), tmp_path / "out", CARD)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr("korlab.experiment.tracking.load_secrets", list)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ex.ExportError, match="HF_TOKEN is not set"):
        ex.upload(done.folder, "somebody/sparse-ko")
    assert not Hub.calls
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    sent = ex.upload(done.folder, "somebody/sparse-ko")
    assert sent.sent and sent.url and "hf_secret" not in repr(sent)
    assert Hub.calls[:2] == [
        ("token", "hf_secret"),
        ("create", "somebody/sparse-ko", {"private": True, "exist_ok": True}),
    ]
    assert set(Hub.calls[2][1]["allow_patterns"]) == set(done.files)
    monkeypatch.setattr(Hub, "public", True)
    monkeypatch.setattr(Hub, "calls", [])
    with pytest.raises(ex.ExportError, match="exists and is public"):
        ex.upload(done.folder, "somebody/sparse-ko")
    assert "upload" not in [call[0] for call in Hub.calls]
