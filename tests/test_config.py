"""A config has one part per owner, and settings.ini is checked before anything is read from it."""

from dataclasses import dataclass
from typing import get_type_hints

import pytest
from transformers import set_seed

from korlab.core.settings import SettingsError, settings
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
