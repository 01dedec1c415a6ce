"""A config has one part per owner, and settings.ini is checked before anything is read from it."""

from dataclasses import dataclass
from typing import get_type_hints

import pytest

from korlab.core.settings import SettingsError, settings
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
