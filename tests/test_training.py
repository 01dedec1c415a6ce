"""Training: a kill in a save, batches that are halved, and a score of which less is better."""

import itertools
from pathlib import Path

import pytest
import torch
from conftest import TINY, Killed, killed_in_save
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from korlab.core.errors import LabError
from korlab.core.files import read_json, read_jsonl
from korlab.experiment import studies
from korlab.experiment.batches import smaller_batches
from korlab.experiment.training import MemoryFull, Training

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- a kill in a save --------------------------------------------------------------------------------------------

def summarization(folder: Path, note=print):
    """A fine-tuning of eight updates with four evaluations."""
    from korlab.summarization.data import embedded, encode
    from korlab.summarization.models import mini_bart, train_tokenizer
    from korlab.summarization.trainer import ModelTrainer

    rows = embedded().rows["train"][:40]
    tokenizer = train_tokenizer((text for row in rows for text in (row.dialogue, *row.summaries)), 400)
    given = TINY | {"max_steps": 8, "eval_steps": 2, "batch_size": 4, "keep_checkpoints": 9, "tracking": "none"}
    config = studies.configure({k: v for k, v in given.items() if k != "train_rows"})
    torch.manual_seed(0)
    model, encoded = mini_bart(tokenizer, width=32, layers=1), encode(rows, tokenizer).rows
    return ModelTrainer(config, model, tokenizer, encoded, encoded[:4], folder, note)


def sparse(folder: Path, note=print):
    """A curriculum of three phases over twelve updates with six evaluations."""
    from korlab.sparse.models import assemble, mini, train_tokenizer
    from korlab.sparse.scenarios import embedded
    from korlab.sparse.trainer import SparseTrainer, sample

    corpus = embedded(train=10, dev=10, test=10, hard=10)
    tokenizer = train_tokenizer([text for t in corpus.train for text in (t.query, t.positive)], 600)
    torch.manual_seed(0)
    for part in (mini(tokenizer, max_length=48), tokenizer):
        part.save_pretrained(folder / "base")
    config = studies.configure({
        "model": "sparse-ko", "epochs": 6, "eval_steps": 2, "batch_size": 8, "max_length": 48, "curriculum": "v25", "warmup": 0.1,
        "regularizer": "flops", "stop_tokens": "none", "on_collapse": "warn", "keep_checkpoints": 9, "tracking": "none",
    })
    return SparseTrainer(config, assemble(folder / "base", 48), corpus.train[:16], sample(corpus.dev, 4, 8), folder, note=note)


TRAINERS = {make.__name__: make for make in (summarization, sparse)}


def left(folder: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """The log without its times and the Trainer's mean over what one process did, and the weights of the final model."""
    own = ("runtime", "per_second", "seconds", "train_loss")
    log = [{k: v for k, v in row.items() if not any(word in k for word in own)} for row in read_jsonl(folder / "history.jsonl")]
    return log, {f"{file.parent.name}/{name}": weight for file in (folder / "model").rglob("*.safetensors")
                 for name, weight in load_file(file).items()}


@pytest.fixture(scope="module", params=TRAINERS)
def straight(request, tmp_path_factory):
    """A trainer's name, and what it leaves when nothing happens to it."""
    folder = tmp_path_factory.mktemp(request.param)
    TRAINERS[request.param](folder, lambda text: None).train()
    return request.param, left(folder)


@pytest.mark.parametrize("victim", ["checkpoint-4", ".model"])
def test_a_kill_in_a_save_changes_nothing(straight, victim, tmp_path):
    """Killed before the newest checkpoint, or the final model, is sealed, the same training ends as a straight one."""
    name, (log, weights) = straight
    killed_in_save("test_training", name, tmp_path, victim)
    assert not (tmp_path / "model").exists()
    notes: list[str] = []
    TRAINERS[name](tmp_path, notes.append).train()
    found, kept = left(tmp_path)
    assert found == log and kept.keys() == weights.keys()
    assert all(torch.equal(kept[key], weights[key]) for key in weights)
    torn = victim == "checkpoint-4"
    last = {"summarization": 8, "sparse": 12}[name]
    assert f"Going on from checkpoint-{2 if torn else last}." in notes
    assert (tmp_path / "checkpoints" / "torn-checkpoint-4").is_dir() == torn == any("writing it was cut short" in n for n in notes)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.name == "start.safetensors"]
    if name == "sparse":
        assert len({row["tau"] for row in found if "tau" in row}) == 3  # every phase was reached
        assert all({"weight_infonce", "learning_rate"} <= set(row) for row in found if "tau" in row)


# ---- a model of one weight ---------------------------------------------------------------------------------------

class OneWeight(torch.nn.Module):
    """labels = weight × x; a batch above `room` rows does not fit."""

    def __init__(self, room: int = 99) -> None:
        super().__init__()
        self.weight, self.room = torch.nn.Parameter(torch.zeros(1)), room

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return {"loss": ((self.weight * x - labels) ** 2).mean(), "logits": self.weight * x}


class Scripted(Training):
    """One evaluation an update, whose scores are known beforehand."""

    best_by = "eval_bits"

    def __init__(self, folder: Path, scores=(), better="lower", room: int = 99, on_smaller=None, **values) -> None:
        self.scores, self.better = iter(scores), better
        self.train_dataset = [{"x": float(i), "labels": 2.0 * i} for i in range(16)]
        config = studies.configure({
            "max_steps": 6, "eval_steps": 1, "batch_size": 4, "accumulation": 1, "eval_batch_size": 4, "keep_checkpoints": 9,
            "learning_rate": 0.1, "warmup": 0, "device": "cpu", "precision": "fp32", "threads": 1, "tracking": "none", "patience": 2,
        } | values)
        super().__init__(config, OneWeight(room), folder, lambda text: None, dev=bool(scores), on_smaller=on_smaller)

    def parts(self) -> dict:
        given = {"train_dataset": self.train_dataset, "compute_metrics": lambda _: {"bits": next(self.scores)}}
        return given | ({"eval_dataset": self.train_dataset[:4]} if self.dev else {})


@pytest.mark.parametrize("better, best, updates", [("lower", 2, 4), ("higher", 1, 3)])
def test_the_better_score_chooses_the_checkpoint_and_ends_patience(better, best, updates, tmp_path):
    """The same scores, once bits a byte and once points."""
    made = Scripted(tmp_path, [3.0, 1.0, 2.0, 2.5, 0.5, 4.0], better)
    result = made.train()
    assert result["best_model_checkpoint"] == f"checkpoint-{best}"
    assert result["train_metrics"]["updates"] == updates
    assert result["eval_metrics"]["eval_bits"] == [3.0, 1.0][best - 1]
    kept = [load_file(folder / "model.safetensors")["weight"] for folder in (tmp_path / "model", tmp_path / "checkpoints" / f"checkpoint-{best}")]
    assert torch.equal(*kept) and torch.equal(made.model.weight.data, kept[0])


def test_a_run_that_lost_patience_is_not_trained_on_when_its_model_was_not_saved(tmp_path, monkeypatch):
    """Killed between the last checkpoint and the final model."""
    made = Scripted(tmp_path, [3.0, 1.0, 2.0, 2.5])
    monkeypatch.setattr(made, "save", lambda folder: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        made.train()
    result = Scripted(tmp_path, [9.0]).train()
    assert (result["train_metrics"]["updates"], result["best_model_checkpoint"]) == (4, "checkpoint-2")


def test_an_improvement_has_to_be_larger_than_the_threshold_in_its_direction(tmp_path):
    result = Scripted(tmp_path, [3.0, 2.95, 2.9, 2.8], threshold=0.2).train()
    assert result["train_metrics"]["updates"] == 3


def test_of_the_kept_checkpoints_the_lowest_stays(tmp_path):
    result = Scripted(tmp_path, [3.0, 1.0, 2.0, 2.5, 2.5, 4.0], patience=0, keep_checkpoints=2).train()
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert result["best_model_checkpoint"] == "checkpoint-2" and left == {"checkpoint-2", "checkpoint-6"}


# ---- halving -----------------------------------------------------------------------------------------------------

@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 300))
def test_halving_keeps_the_rows_of_an_update_and_comes_to_an_end(batch_size, accumulation, eval_batch_size):
    now = {"batch_size": batch_size, "accumulation": accumulation, "eval_batch_size": eval_batch_size}
    for _ in itertools.count():
        smaller = smaller_batches(**now)
        if smaller is None:
            break
        assert smaller["batch_size"] * smaller["accumulation"] == batch_size * accumulation
        assert smaller["batch_size"] <= max(1, now["batch_size"] // 2)
        assert smaller["eval_batch_size"] == max(1, now["eval_batch_size"] // 2)
        now = smaller
    assert now["batch_size"] == now["eval_batch_size"] == 1


def test_whoever_keeps_the_records_is_told_what_is_in_force_also_after_a_kill(tmp_path):
    told: list[dict] = []
    facts = Scripted(tmp_path, room=1, on_smaller=told.append).train()["train_metrics"]
    assert [values["batch_size"] for values in told] == [2, 1]
    assert (facts["batch_size"], facts["accumulation"], facts["updates"]) == (1, 4, 6)
    assert told[-1] == read_json(tmp_path / "batch.json")
    again = Scripted(tmp_path, on_smaller=told.append)
    assert told[2:] == [told[1]] and again.config.training.accumulation == 4


def test_halved_training_is_the_training_of_small_batches(tmp_path):
    """The order of rows does not depend on the batch, so the weights agree to the last digits."""
    halved, small = Scripted(tmp_path / "a", room=2), Scripted(tmp_path / "b", batch_size=2, accumulation=2, eval_batch_size=2)
    halved.train(), small.train()
    assert torch.equal(halved.model.weight, small.model.weight)


def test_what_cannot_be_divided_is_refused_in_one_sentence(tmp_path):
    made = Scripted(tmp_path, room=2)
    made.indivisible = "rows are each other's negatives"
    with pytest.raises(MemoryFull, match="nothing was halved: rows are each other's negatives") as error:
        made.train()
    assert isinstance(error.value, LabError) and not (tmp_path / "batch.json").exists()
    assert not (tmp_path / "start.safetensors").exists()
