"""A config has one part per owner, and settings.ini is checked before anything is read from it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from transformers import set_seed

from korlab.core.settings import SettingsError, load_env, root, settings
from korlab.experiment import studies
from korlab.experiment.config import (
    SHARED,
    ComputingParams,
    Config,
    RowParams,
    RunParams,
    TrackingParams,
    TrainingParams,
    config_from,
)
from korlab.experiment.params import ParameterError


@dataclass(frozen=True)
class Own:
    """What a study would declare."""

    depth: int | None = None


def test_a_config_made_by_hand_is_the_one_made_of_its_flat_values():
    by_hand = Config(
        run=RunParams(model="some"), rows=RowParams(data="mine.csv"), computing=ComputingParams(seed=7),
        training=TrainingParams(epochs=2), tracker=TrackingParams(tracking="none"), own=Own(depth=3),
    )
    assert config_from(Own, by_hand.flat()) == by_hand
    assert by_hand.but(seed=8, depth=4).flat() == by_hand.flat() | {"seed": 8, "depth": 4}


def test_the_parts_are_what_their_annotations_say():
    assert {name: get_type_hints(Config)[name] for name in SHARED} == SHARED


@pytest.mark.parametrize("changed, sentence", [
    (("seed = 42", "seed = soon"), "seed must be a whole number, not 'soon'"),
    (("seed = 42", "sead = 42"), "unknown key 'sead'"),
    (("seed = 42", ""), "the key 'seed' is missing"),
])
def test_a_damaged_settings_file_is_one_sentence(changed, sentence, tmp_path):
    text = (settings().root / "settings.ini").read_text(encoding="utf-8")
    assert changed[0] in text
    (tmp_path / "settings.ini").write_text(text.replace(*changed), encoding="utf-8")
    with pytest.raises(SettingsError, match=sentence):
        settings(tmp_path)


BEYOND = {"seed": 2**64, "threads": 100_000, "workers": 10**6, "batch_size": 2**64, "eval_batch_size": 2**64,
          "accumulation": 2**64, "adam_beta2": 1.0, "vocab_size": 2**64, "num_beams": 2**64}


@pytest.mark.parametrize(("name", "value"), BEYOND.items(), ids=BEYOND)
def test_what_no_machine_can_do_is_refused_before_any_work(name, value):
    """Each of these passed the check and ended a training in another library's words, or in a crash."""
    with pytest.raises(ParameterError, match=f"^{name}={value!r}: must be [0-9.]+ or less$"):
        studies.configure({name: value})


def test_the_largest_seed_is_one_that_every_generator_takes(monkeypatch):
    assert studies.configure({"seed": 2**32 - 1}).computing.seed == 4294967295
    set_seed(2**32 - 1)
    monkeypatch.setenv("KORLAB_SEED", str(2**32))
    with pytest.raises(ParameterError, match="seed=4294967296: must be 4294967295 or less"):
        studies.configure({})
@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with the lab's settings.ini, and an environment that says nothing and is put back."""
    text = (settings().root / "settings.ini").read_text(encoding="utf-8")
    (folder := tmp_path / "lab").mkdir()
    (folder / "settings.ini").write_text(text, encoding="utf-8")
    monkeypatch.setattr(os, "environ", os.environ | {"HOME": str(tmp_path)})
    os.environ.pop("KORLAB_RUNS", None)
    monkeypatch.chdir(tmp_path)
    return folder


def changed(lab: Path, old: str, new: str, encoding: str = "utf-8") -> Path:
    """settings.ini with one line changed."""
    text = (lab / "settings.ini").read_text(encoding="utf-8")
    assert old in text
    (lab / "settings.ini").write_text(text.replace(old, new), encoding=encoding)
    return lab


@pytest.mark.parametrize("line, place", [
    ("runs = runs", "lab/runs"), ("runs = ~/big/runs", "big/runs"), ("runs = $HOME/runs", "runs"), ("runs = r%uns", "lab/r%uns"),
    ("runs = ../runs", "runs"),
])
def test_where_runs_are(line, place, lab):
    assert settings(changed(lab, "runs = runs", line)).runs == lab.parent / place
    assert not (lab / "~").exists()


@pytest.mark.parametrize("said, place", [("", "lab/runs"), ("  ", "lab/runs"), ("~/mine", "mine"), ("mine", "mine"), ("/big", "/big")])
def test_where_the_environment_says_runs_are(said, place, lab):
    """An empty variable counts as not set; a relative one starts from where the command was given."""
    os.environ["KORLAB_RUNS"] = said
    assert settings(lab).runs == lab.parent / place


@pytest.mark.parametrize("line, sentence", [
    ("runs =", "settings.ini: the key 'runs' is empty"), ("runs = $NOWHERE/x", "the environment has no variable NOWHERE"),
    ("runs = ~nobody_here/x", "there is no home folder of that name"),
])
def test_a_place_that_cannot_be_meant_is_one_sentence(line, sentence, lab):
    with pytest.raises(SettingsError, match=sentence):
        settings(changed(lab, "runs = runs", line))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp949"])
def test_settings_as_a_korean_windows_editor_saves_them(encoding, lab):
    assert settings(changed(lab, "runs = runs", "runs = 실행", encoding)).runs == lab / "실행"


def test_the_settings_of_another_project_are_passed_over(lab):
    (inner := lab / "theirs" / "deep").mkdir(parents=True)
    (lab / "theirs" / "settings.ini").write_text("[DEFAULT]\nlib_name = theirs\nversion = 0.1\n")
    assert root(inner) == lab


@pytest.mark.parametrize("content", [
    "# 비밀\nHF_TOKEN=green\n".encode("cp949"), "\ufeffHF_TOKEN=green\n".encode(), b"export HF_TOKEN='green'\r\n",
])
def test_env_is_read_however_it_was_saved(content, lab):
    (lab / ".env").write_bytes(content)
    settings(lab)
    assert os.environ["HF_TOKEN"] == "green"
    os.environ["HF_TOKEN"] = "mine"
    load_env(lab / ".env")
    assert os.environ["HF_TOKEN"] == "mine"


def test_a_folder_in_env_is_the_same_wherever_one_stands(lab, monkeypatch):
    (lab / ".env").write_text("KORLAB_RUNS=mine  # on the big disk\n")
    (lab / "nbs").mkdir()
    monkeypatch.chdir(lab / "nbs")
    assert settings().runs == lab / "mine"


def test_what_a_line_of_settings_means(lab):
    """A comment behind a value is none of it; a project with one key of the same name is another; UTF-16 is told."""
    assert settings(changed(lab, "runs = runs", "runs = mine  ; big disk")).runs == lab / "mine"
    (lab / "theirs").mkdir()
    (lab / "theirs" / "settings.ini").write_text("[train]\nparams = 3\nlearning = 1\n")
    assert root(lab / "theirs") == lab
    (lab / "settings.ini").write_text((lab / "settings.ini").read_text("utf-8"), encoding="utf-16")
    with pytest.raises(SettingsError, match="this is no text in UTF-8; save it so"):
        settings(lab)


def test_an_env_that_is_no_text_is_one_sentence(lab):
    (lab / ".env").write_bytes("TEA=green".encode("utf-16"))
    with pytest.raises(SettingsError, match="env: this is no text in UTF-8; save it so"):
        settings(lab)
