"""Every registered model on a checkpoint of its own architecture: loaded, trained for two updates, killed between them, gone on with, loaded again."""

import pytest
from conftest import Killed, collection_of
from in_process import execute
from transformers import LlamaConfig, LlamaForCausalLM

from korlab.core.files import read_json, write_jsonl
from korlab.coref import models as coref_models
from korlab.experiment import results, studies, training
from korlab.experiment.runs import reopen
from korlab.ivr import models as ivr_models
from korlab.ivr.corpora import english, korean
from korlab.sparse import models as sparse_models
from korlab.sparse.data import save_beir
from korlab.sparse.starting import mini_encoder
from korlab.summarization import models as summarization_models
from korlab.summarization.data import embedded as dialogues
from korlab.summarization.dialogues import save_dialogues

SHORT = dict(size="full", max_steps=2, eval_steps=1, eval_rows=4, batch_size=4, eval_batch_size=4, accumulation=1, precision="fp32", device="cpu", workers=0,
             tracking="none", threads=1, warmup=0)
OF_STUDY = {
    "summarization": dict(train_rows=24, max_source_length=64, max_target_length=8, num_beams=1, min_target_length=0),
    "sparse": dict(max_length=48, negatives=1, on_collapse="warn", kd=0.0, curriculum="none", teacher=None),
    "coref": dict(lambada="none", questions=8, max_pieces=3, beam=2, context_length=64, modes=""),
    "ivr": dict(block_size=32, train_rows=40),
}
NAMES = "김민수 이서연 박지훈 최유진 정하늘 강도윤".split()


def written(folder, model, tokenizer):
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


def llama(tokenizer):
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=None))


def checkpoint_of(entry, folder):
    """A small model of an entry's architecture and a tokenizer of its kind, saved as published ones are."""
    study = entry.study
    if study == "summarization":
        tokenizer = summarization_models.train_tokenizer([row.dialogue for row in dialogues().rows["train"][:60]], 600, entry.family)
        return written(folder, summarization_models.BUILDERS[entry.family](tokenizer, 32, 1), tokenizer)
    if entry.name == "sparse-e5":  # the one that brings no head
        return mini_encoder(collection_of(40).corpus.values(), folder, 600, 48)
    if study == "sparse":
        tokenizer = sparse_models.train_tokenizer(collection_of(40).corpus.values(), 600, entry.family)
        return written(folder, sparse_models.mini(tokenizer, entry.family, 48), tokenizer)
    if study == "coref":
        tokenizer = coref_models.train_tokenizer(texts())
        return written(folder, coref_models.mini(tokenizer, entry.family, 64), tokenizer)
    tokenizer = ivr_models.train_tokenizer(english()[:40], 600)
    return written(folder, llama(tokenizer) if entry.family == "llama" else ivr_models.mini(tokenizer, 64), tokenizer)


def texts():
    return [f"{a}는 {b}와 함께 연구소를 열었다. 여러 해가 지나 {a}는 논문 {number}편을 냈고, {b}도 이름을 올렸다."
            for number in range(4) for a in NAMES for b in NAMES if a != b]


def data_of(study, folder):
    """A few rows of what a study learns from."""
    file = folder / {"summarization": "rows.csv", "sparse": "collection"}.get(study, f"{study}.jsonl")
    if study == "summarization":
        save_dialogues(dialogues().rows["train"][:40], file)
    elif study == "sparse":
        save_beir(collection_of(40), file)
    else:
        write_jsonl(file, [{"text": text} for text in (texts() if study == "coref" else korean(80, seed=7))])
    return file


def scores(run):
    """What the model itself got, split by split and mode by mode."""
    return {(one.split, one.mode): one.measures for one in results.read(reopen(run)).scored if not one.baseline}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KORLAB_RUNS", str(folder / "runs"))
        yield folder


ALWAYS = {"kobart", "modernbert", "sparse-e5", "smollm2-ivr"}  # one of each study; the others on request
NAMED = [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow) for name in studies.models() if name != "sparse-v24"]  # V25 in other numbers


@pytest.mark.parametrize("name", NAMED)
def test_two_updates_on_a_checkpoint_killed_between_them_and_loaded_again(name, place, monkeypatch):
    entry, study = studies.model(name), studies.model(name).study
    given = SHORT | OF_STUDY[study] | dict(model=name, name=name, data=data_of(study, place), checkpoint=checkpoint_of(entry, place / name))
    given |= {"frozen_layers": 1} if name == "sparse-e5" else {}  # of two
    given = {key: value for key, value in given.items() if value is not None}
    if study == "ivr":
        write_jsonl(place / "english.jsonl", [{"text": text} for text in english()[:60]])
        given["english"] = place / "english.jsonl"
    seal = training.seal_and_rotate

    def killed(folder, *rest):
        seal(folder, *rest)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training, "seal_and_rotate", killed)
        assert "Killed" in str(execute("train", place / f"{name}.ipynb", **given).error)
    run = place / "runs" / study / name
    assert [one.name for one in (run / "checkpoints").glob("checkpoint-*")] == ["checkpoint-1"] and not (run / "train.json").exists()
    done = execute("train", place / f"{name}.ipynb", **given)
    assert done.error is None, done.error
    assert read_json(run / "train.json")["train_metrics"]["updates"] == 2
    assert reopen(run).config.run.size == "full"
    again = execute("evaluate", place / f"{name}-again.ipynb", run=name, name="again")
    assert again.error is None, again.error
    first, second = (scores(where) for where in (run, run / "evaluations" / "again"))
    assert second and second.items() <= first.items()
