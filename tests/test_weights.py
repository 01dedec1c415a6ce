"""A checkpoint that lacks weights, or whose files are cut, is refused in one sentence by whoever loads it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from korlab.core.errors import LabError
from korlab.experiment.models import CheckpointError

TEXTS = ["서울의 날씨는 오늘 맑습니다.", "부산으로 가는 기차는 몇 시에 있나요?", "환불은 언제까지 되나요?", "The list of names."] * 4


def seq2seq(folder: Path, t5: bool = False) -> None:
    from korlab.summarization.models import BUILDERS, train_tokenizer

    tokenizer = train_tokenizer(TEXTS, 300, *(["mt5"] if t5 else []))
    for part in (BUILDERS["mt5" if t5 else "bart"](tokenizer), tokenizer):
        part.save_pretrained(folder)


def mt5(folder: Path) -> None:
    seq2seq(folder, t5=True)


def masked(folder: Path) -> None:
    from korlab.coref.models import mini, train_tokenizer

    tokenizer = train_tokenizer(TEXTS, 300)
    for part in (mini(tokenizer, "roberta", 32), tokenizer):
        part.save_pretrained(folder)


def causal(folder: Path) -> None:
    from korlab.ivr.models import mini, train_tokenizer

    tokenizer = train_tokenizer(TEXTS, 300)
    for part in (mini(tokenizer, 32), tokenizer):
        part.save_pretrained(folder)


def sparse(folder: Path, routed: bool = False) -> None:
    import numpy as np

    from korlab.sparse.models import assemble, mini, train_tokenizer

    tokenizer = train_tokenizer(TEXTS, 300)
    for part in (mini(tokenizer, max_length=16), tokenizer):
        part.save_pretrained(folder / "base")
    assemble(folder / "base", 16, np.ones(len(tokenizer), np.float32) if routed else None).save_pretrained(str(folder))


def routed(folder: Path) -> None:
    sparse(folder, routed=True)


def _summarization(folder: Path):
    from korlab.summarization.models import load_checkpoint

    return load_checkpoint(str(folder)).model


def _coref(folder: Path, head="keep"):
    from korlab.coref.models import load

    return load(str(folder), head).model


def _any_head(folder: Path):
    return _coref(folder, "train")


def _ivr(folder: Path):
    from korlab.ivr.models import load

    return load(str(folder)).model


def _sparse(folder: Path):
    from korlab.sparse.models import load

    return load(folder).model


def _base(folder: Path):
    from korlab.sparse.models import _published

    _published(str(folder / "base"))
    return torch.nn.Linear(1, 1)


def _body(folder: Path):
    from korlab.sparse.starting import _body

    return _body(str(folder / "base"))


def _teacher(folder: Path):
    from korlab.sparse.teacher import load_teacher

    return load_teacher(str(folder)) and torch.nn.Linear(1, 1)


LOADERS = [(seq2seq, _summarization), (mt5, _summarization), (masked, _coref), (masked, _any_head), (causal, _ivr), (sparse, _sparse),
           (sparse, _base), (sparse, _body), (sparse, _teacher), (routed, _sparse)]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of each kind, made when it is first asked for."""
    folders: dict[str, Path] = {}

    def folder_of(make) -> Path:
        if make.__name__ not in folders:
            folders[make.__name__] = tmp_path_factory.mktemp(make.__name__)
            make(folders[make.__name__])
        return folders[make.__name__]

    return folder_of


@pytest.mark.parametrize(("make", "load"), LOADERS, ids=lambda one: one.__name__)
def test_three_missing_weights_are_counted_and_named(make, load, kept):
    folder = kept(make)
    load(folder)  # whole, tied weights and all
    files = [file for file in folder.rglob("model.safetensors") if ("base" in file.parts) == (load in (_base, _body)) and "Static" not in str(file)]
    (file,) = files
    whole = file.read_bytes()
    weights = load_file(file)
    lost = sorted(name for name in weights if "layers.0" in name or "layer.0" in name or ".h.0." in name or "block.0" in name)[:3]
    try:
        save_file({name: weight for name, weight in weights.items() if name not in lost}, file, {"format": "pt"})
        with pytest.raises(CheckpointError, match=r"lacks 3 of the model's weights \(.*they would be random numbers") as caught:
            load(folder)
        assert lost[0].split(".", 1)[1] in str(caught.value) and "\n" not in str(caught.value)
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(LabError, match="could not be loaded") as cut:
            load(folder)
        assert "\n" not in str(cut.value)
    finally:
        file.write_bytes(whole)


def test_an_adapter_that_lacks_weights_is_refused(kept, tmp_path):
    from peft import LoraConfig, get_peft_model

    from korlab.summarization.adapters import load_adapter, merge
    from korlab.summarization.models import load_checkpoint, load_tokenizer

    base, folder = kept(seq2seq), tmp_path / "adapter"
    get_peft_model(load_checkpoint(str(base)).model, LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q_proj"])).save_pretrained(folder)
    load_tokenizer(str(base)).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}), "utf-8")
    merge(base, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: weight for name, weight in [*weights.items()][3:]}, folder / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"adapter' lacks 3 of the model's weights"):
        load_adapter(folder)
