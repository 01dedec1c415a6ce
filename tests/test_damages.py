"""Damaged files of a run: noticed or without effect; none in silence, none a traceback. `damages.py` makes and judges them."""

import shutil
from pathlib import Path

import damages
import pytest
from conftest import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

FEW = {"config.json": "deleted", "data.json": "deleted", "model/model.safetensors": "flipped", "predictions/untrained.csv": "flipped",
       "computing.json": "zeroed", "items/test.json": "truncated", "environment.json": "truncated"}


@pytest.fixture
def at_home(monkeypatch, tmp_path) -> Path:
    """In the lab's folder, with runs and caches of its own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    return tmp_path


def test_what_is_damaged_in_a_finished_run_is_noticed_and_made_again(at_home):
    """All at once, so that it is started again once: as many notices, and the result of the run that nothing happened to."""
    folders, values = damages.made("summarization", at_home, ("finished",))
    folder = Path(shutil.copytree(folders["finished"], at_home / "runs" / "summarization" / "run"))
    for file, damage in FEW.items():
        damages.harm(folder / file, damage)
    verdict, said = damages.tried(values, folder, damages.result(folders["finished"]), "")
    assert verdict == "noticed", said
    assert "data.json is missing. Done again: data, model." in said
    assert "model is damaged (model.safetensors is not the file that was saved); it is kept as torn-model. Done again: train." in said
    assert "untrained.csv is damaged or was changed; it is kept as torn-untrained.csv. Done again: model." in said
    assert "computing.json is damaged or was changed; it is kept as torn-computing.json. Done again: model." in said
    assert "items/test.json is damaged or was changed; it is kept as torn-test.json. Done again: evaluate." in said
    assert "config.json is missing, damaged or was changed; it is written again" in said
    assert "environment.json is damaged" in said


@pytest.mark.slow
@pytest.mark.parametrize("study", damages.STUDIES)
def test_no_damage_to_any_file_passes_in_silence(study, at_home):
    bad = [one for one in damages.rows(study, at_home) if one.verdict not in damages.SEEN]
    assert not bad, bad
