"""A checkpoint of somebody else: its code never runs, and a pickle is never opened."""

import builtins
import json
import pickle
import shutil

import pytest
from transformers import BertConfig

from korlab.core.files import FileError
from korlab.coref import models as coref
from korlab.experiment.models import CheckpointError
from korlab.ivr import models as ivr
from korlab.sparse import cli, dense, head, starting, teacher
from korlab.sparse import models as sparse
from korlab.summarization import adapters
from korlab.summarization import models as summarization

LOADERS = {
    "summarization": summarization.load_checkpoint, "its tokenizer": summarization.load_tokenizer, "coref": coref.load, "ivr": ivr.load,
    "sparse": sparse._published, "its encoder": head.open_encoder, "its parts": lambda folder: sparse.assemble(folder, 16),
    "its tokenizer alone": cli._tokenizer, "its dense encoder": lambda folder: dense.dense_model(folder, {}, 16), "its body": starting._body,
    "its teacher": teacher.load_teacher,
}
CLASSES = ("AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSequenceClassification")
CODE = "from pathlib import Path\nPath({!r}).touch()\nclass Evil: pass\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose configuration and tokenizer name code of their own, beside somebody who says yes to everything."""
    (place := tmp_path / "evil").mkdir()
    (place / "evil.py").write_text(CODE.format(str(tmp_path / "ran")))
    (place / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {name: "evil.Evil" for name in CLASSES}}))
    (place / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}))
    (place / "model.safetensors").write_bytes(b"")
    (tmp_path / "modules").mkdir()
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    return place


@pytest.mark.parametrize("name", LOADERS)
def test_the_code_of_a_checkpoint_never_runs(folder, name):
    with pytest.raises(Exception) as caught:
        LOADERS[name](str(folder))
    assert not (folder.parent / "ran").exists(), "somebody was asked, said yes, and the code ran"
    if name not in ("its tokenizer", "its parts"):  # these stand inside what speaks for them
        assert isinstance(caught.value, FileError) and "\n" not in str(caught.value) and "evil" in str(caught.value)
        assert "brings code of its own" in str(caught.value) or "custom code" in str(caught.value) or "modules.json" in str(caught.value), caught.value


def test_the_tokenizer_of_a_known_model_brings_no_code_either(folder):
    BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8).save_pretrained(folder)
    for name in ("summarization", "its tokenizer", "its tokenizer alone"):
        with pytest.raises(Exception):  # noqa: B017
            LOADERS[name](str(folder))
    assert not (folder.parent / "ran").exists()


class Evil:
    def __reduce__(self):
        return print, ("a pickle ran",)


@pytest.mark.parametrize("name", [name for name in LOADERS if "tokenizer" not in name and name != "its parts"])
def test_a_folder_of_pickles_is_refused_in_one_sentence(tmp_path, name, capsys):
    BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
               architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"holds its weights as a pickle \(pytorch_model.bin\).*makes safetensors, and give that folder$"):
        LOADERS[name](str(tmp_path))
    assert "a pickle ran" not in capsys.readouterr().out


def test_an_adapter_of_pickles_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"the adapter .* holds its weights as a pickle \(adapter_model.bin\)"):
        adapters.merge("nobody/base", tmp_path)
    shutil.rmtree(tmp_path)
