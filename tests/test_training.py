"""Training: kills and damage that change nothing, several processes, halved batches, and numbers that are none."""

import itertools
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, Killed
from hypothesis import given
from hypothesis import strategies as st
from kills import killed_at
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from korlab.core.errors import LabError
from korlab.core.files import read_json, read_jsonl, write_json
from korlab.experiment import studies
from korlab.experiment.batches import smaller_batches
from korlab.experiment.checkpoints import CheckpointDamaged
from korlab.experiment.params import ParameterError
from korlab.experiment.training import Diverged, MemoryFull, Training

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- a kill in a save --------------------------------------------------------------------------------------------

def summarization(folder: Path, note=print, **values):
    """A fine-tuning of eight updates with four evaluations; ten updates make an epoch."""
    from korlab.experiment.models import Loaded
    from korlab.summarization.adapters import make_trainable
    from korlab.summarization.data import embedded, encode
    from korlab.summarization.models import mini_bart, train_tokenizer
    from korlab.summarization.trainer import ModelTrainer

    rows = embedded().rows["train"][:40]
    tokenizer = train_tokenizer((text for row in rows for text in (row.dialogue, *row.summaries)), 400)
    given = TINY | {"max_steps": 8, "eval_steps": 2, "batch_size": 4, "keep_checkpoints": 9, "tracking": "none"}
    config = studies.configure({k: v for k, v in given.items() if k != "train_rows"} | values)
    torch.manual_seed(0)
    model, encoded = mini_bart(tokenizer, width=32, layers=1), encode(rows, tokenizer).rows
    if "adapter" in values:
        model = make_trainable(Loaded(model, tokenizer, "mini"), config, folder).model
    return ModelTrainer(config, model, tokenizer, encoded, encoded[:4], folder, note)


def lora(folder: Path, note=print):
    """The same with an adapter, out of patience after four of eight updates: no later score is 9 points better."""
    return summarization(folder, note, adapter="lora", patience=1, threshold=9.0, learning_rate=0.01)


def sparse(folder: Path, note=print, **values):
    """A curriculum of three phases over twelve updates with six evaluations."""
    from korlab.sparse.models import assemble, mini, train_tokenizer
    from korlab.sparse.scenarios import embedded
    from korlab.sparse.trainer import SparseTrainer, sample

    corpus = embedded(train=10, dev=10, test=10, hard=10)
    tokenizer = train_tokenizer([text for t in corpus.train for text in (t.query, t.positive)], 600)
    torch.manual_seed(0)
    if os.environ.get("RANK", "0") == "0":  # of several processes, one writes what all of them read
        for part in (mini(tokenizer, max_length=48), tokenizer):
            part.save_pretrained(folder / "base")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    config = studies.configure({
        "model": "sparse-ko", "epochs": 6, "eval_steps": 2, "batch_size": 8, "max_length": 48, "curriculum": "v25", "warmup": 0.1,
        "regularizer": "flops", "stop_tokens": "none", "on_collapse": "warn", "keep_checkpoints": 9, "tracking": "none",
    } | values)
    return SparseTrainer(config, assemble(folder / "base", 48), corpus.train[:16], sample(corpus.dev, 4, 8), folder, note=note)


def impatient(folder: Path, note=print):
    """A sparse training of 24 updates at most that is out of patience earlier, within an epoch."""
    return sparse(folder, note, epochs=12, eval_steps=3, patience=1, threshold=9.0, regularizer_warmup=0.1)


TRAINERS = {make.__name__: make for make in (summarization, sparse)}
EARLY = {make.__name__: make for make in (lora, impatient)}


def left(folder: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """The log without its times, and the weights of the final model."""
    own = ("runtime", "per_second", "seconds")
    log = [{k: v for k, v in row.items() if not any(word in k for word in own)} for row in read_jsonl(folder / "history.jsonl")]
    return log, {f"{file.parent.name}/{name}": weight for file in (folder / "model").rglob("*.safetensors")
                 for name, weight in load_file(file).items()}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder that a trainer leaves when nothing happens to it, made when it is first asked for."""
    folders: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            (TRAINERS | EARLY)[name](folders[name], lambda text: None).train()
        return folders[name]

    return folder_of


@pytest.fixture(scope="module", params=TRAINERS)
def straight(request, kept):
    """A trainer's name, and what it leaves when nothing happens to it."""
    return request.param, left(kept(request.param))


def same(folder: Path, other: Path) -> None:
    """Two trainings left the same log, times aside, and the same weights."""
    (log, weights), (log_of_other, weights_of_other) = left(folder), left(other)
    assert log == log_of_other and weights.keys() == weights_of_other.keys()
    assert all(torch.equal(weights[name], weights_of_other[name]) for name in weights)


@pytest.mark.parametrize("victim", ["checkpoint-4", ".model"])
def test_a_kill_in_a_save_changes_nothing(straight, victim, tmp_path):
    """Killed before the newest checkpoint, or the final model, is sealed, the same training ends as a straight one."""
    name, (log, weights) = straight
    killed_at(lambda: TRAINERS[name](tmp_path, lambda text: None).train(), tmp_path, "open", f"{victim}/.manifest.json.tmp")
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


@pytest.mark.parametrize("name", EARLY)
def test_what_ended_early_ends_there_when_it_is_killed_before_its_model_is_saved(name, kept, tmp_path, monkeypatch):
    """Out of patience within an epoch; trained on, it would be another model."""
    straight = kept(name)
    steps = [row["step"] for row in read_jsonl(straight / "history.jsonl") if "eval_runtime" in row]
    assert 0 < steps[-1] < {"lora": 8, "impatient": 24}[name] and len(list((straight / "checkpoints").glob("checkpoint-*"))) == len(steps)
    killed, notes = EARLY[name](tmp_path, lambda text: None), []
    monkeypatch.setattr(killed, "save", lambda folder: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        killed.train()
    result = EARLY[name](tmp_path, notes.append).train()
    assert result["train_metrics"]["updates"] == steps[-1] and f"Going on from checkpoint-{steps[-1]}." in notes
    same(tmp_path, straight)


def test_a_finished_training_told_to_train_again_leaves_what_it_left(kept, tmp_path):
    """As after its status.json was deleted. Nothing is left to train, and no line of the log is doubled."""
    shutil.copytree(kept("lora"), tmp_path / "again")
    made = lora(tmp_path / "again", lambda text: None)
    made.train()
    same(tmp_path / "again", kept("lora"))
    made.evaluate()
    log = read_jsonl(tmp_path / "again" / "history.jsonl")
    assert len([row for row in log if "eval_runtime" in row]) == len({row["step"] for row in log if "eval_runtime" in row}) == 2


# ---- damage ------------------------------------------------------------------------------------------------------

def flip(best: Path) -> None:
    """Change one byte of the weights."""
    file = next(best.glob("*.safetensors"))
    file.write_bytes((body := file.read_bytes())[:-1] + bytes([body[-1] ^ 1]))


def lose_weights(best: Path) -> None:
    """Delete the weights."""
    next(best.glob("*.safetensors")).unlink()


@pytest.mark.parametrize("name, harm, reason", [
    ("summarization", flip, "model.safetensors is not the file that was saved"),
    ("summarization", lose_weights, "model.safetensors is missing"),
    ("summarization", shutil.rmtree, "it has no manifest"),
    ("sparse", flip, "model.safetensors is not the file that was saved"),
    ("sparse", lose_weights, "model.safetensors is missing"),
    ("lora", flip, "adapter_model.safetensors is not the file that was saved"),
])
def test_a_damaged_best_checkpoint_is_made_again(name, harm, reason, kept, tmp_path):
    """Killed before its model was saved, moved, and its best checkpoint damaged; the result is that of a straight run."""
    folder, notes = tmp_path / "moved", []
    shutil.copytree(kept(name), folder)
    shutil.rmtree(folder / "model")
    newest = max((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    best = folder / "checkpoints" / f"checkpoint-{read_json(newest / 'trainer_state.json')['best_global_step']}"
    harm(best)
    (TRAINERS | EARLY)[name](folder, notes.append).train()
    assert any(reason in note for note in notes), notes
    assert all((folder / "checkpoints" / f"torn-{path.name}").is_dir() for path in {best, newest} if harm != shutil.rmtree or path != best)
    assert not any("Going on from" in note for note in notes if newest.name in note)
    same(folder, kept(name))


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


def test_memory_that_is_full_while_beginning_anew_halves_once_more(tmp_path, monkeypatch):
    """oneDNN says so without the words; the trainer of the first half does not fit either."""
    made, make = Scripted(tmp_path, room=3), Scripted.make_trainer
    said = iter(["could not create a memory object"])

    def crowded(self):
        for words in said:
            raise RuntimeError(words)
        return make(self)

    monkeypatch.setattr(Scripted, "make_trainer", crowded)
    result = made.train()
    assert (result["train_metrics"]["batch_size"], result["train_metrics"]["updates"]) == (1, 6)
    assert read_json(tmp_path / "batch.json") == {"batch_size": 1, "accumulation": 4, "eval_batch_size": 1}


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


class First(Scripted):
    """The first checkpoint is the best, because the loss falls and more is better."""

    best_by = "eval_loss"

    def __init__(self, folder: Path, **values) -> None:
        super().__init__(folder, [0.0], "higher", **({"patience": 0} | values))

    def parts(self) -> dict:
        return {"train_dataset": self.train_dataset, "eval_dataset": self.train_dataset[:4]}


class Damaging(TrainerCallback):
    """Damages the first checkpoint while the training goes on."""

    times = 1

    def on_save(self, args, state, control, **_) -> None:
        if state.global_step == 4 and self.times:
            self.times -= 1
            flip(Path(args.output_dir) / "checkpoint-1")


def test_a_best_checkpoint_damaged_while_training_goes_on_is_made_again(tmp_path):
    straight, harmed, notes = First(tmp_path / "straight"), First(tmp_path / "harmed"), []
    expected = straight.train()
    harmed.note = notes.append
    harmed.callbacks.append(damaging := Damaging())
    harmed.trainer.add_callback(damaging)
    result = harmed.train()
    assert (result["best_model_checkpoint"], result["train_metrics"]["updates"]) == ("checkpoint-1", 6)
    assert result["eval_metrics"]["eval_loss"] == expected["eval_metrics"]["eval_loss"]
    assert harmed.model.weight.item() == straight.model.weight.item() != 0
    assert "The best checkpoint has to be made again" in notes[0] and len([note for note in notes if "Skipped" in note]) == 6


def test_a_best_checkpoint_damaged_again_and_again_is_an_error(tmp_path):
    harmed = First(tmp_path)
    harmed.callbacks.append(damaging := Damaging())
    damaging.times = 2
    harmed.trainer.add_callback(damaging)
    with pytest.raises(CheckpointDamaged, match="checkpoint-1 cannot be used because model.safetensors is not the file"):
        harmed.train()


def test_a_checkpoint_under_another_ones_name_is_not_gone_on_from(tmp_path):
    First(tmp_path).train()
    folder, notes = tmp_path / "checkpoints", []
    shutil.rmtree(folder / "checkpoint-6")
    (folder / "checkpoint-3").rename(folder / "checkpoint-6")
    again = First(tmp_path)
    again.note = notes.append
    assert again.train()["train_metrics"]["updates"] == 6
    assert "it was saved at update 3, which is not the one in its name" in notes[0] and "Going on from checkpoint-5." in notes


# ---- numbers that are none ---------------------------------------------------------------------------------------

class Broken(First):
    """Training whose values are made to be what they should not."""

    def __init__(self, folder: Path, forward, **values) -> None:
        self.calls = 0
        super().__init__(folder, **values)
        self.model.forward = lambda x, labels: {"loss": forward(self, x, labels), "logits": self.model.weight * x}


def usual(made, x, labels):
    made.calls += made.model.training
    return ((made.model.weight * x - labels) ** 2).mean()


@pytest.mark.parametrize("forward, message", [
    (lambda m, x, y: usual(m, x, y) * (math.nan if m.calls == 3 else 1), "stopped at update 3: loss is nan; the last finite loss was [0-9.]+, at update 2"),
    (lambda m, x, y: usual(m, x, y) * math.inf, "stopped at update 1: loss is inf; no loss before it was finite"),
    (lambda m, x, y: usual(m, x, y) + (m.model.weight - m.model.weight.detach()).abs().sqrt().sum(),
     "stopped at update 1: gradient norm is (nan|inf); the last finite loss was [0-9.]+, at update 1"),
    (lambda m, x, y: usual(m, x, y) * (1 if m.model.training or m.calls < 4 else math.nan), "stopped at update 4: eval loss is nan; .* at update 4"),
])
def test_a_number_that_is_none_stops_the_training_and_says_what_to_try(forward, message, tmp_path):
    made = Broken(tmp_path, forward, logging_steps=1)
    with pytest.raises(Diverged, match=message + ".*Try a lower learning_rate"):
        made.train()
    for row in read_jsonl(tmp_path / "history.jsonl") if (tmp_path / "history.jsonl").exists() else []:
        assert all(math.isfinite(value) for value in row.values())
    assert all(math.isfinite(weight.item()) for weight in made.model.parameters()) and not (tmp_path / "model").exists()


def test_a_measure_that_is_none_stops_the_training(tmp_path):
    with pytest.raises(Diverged, match="at update 2: eval bits is nan"):
        Scripted(tmp_path, [3.0, math.nan]).train()


class Exploding(TrainerCallback):
    """A step so large that it leaves the numbers behind."""

    def on_step_end(self, args, state, control, model=None, **_) -> None:
        model.weight.data.fill_(math.inf)


def test_weights_that_are_none_are_not_saved(tmp_path):
    """At the very end, with nothing to evaluate on."""
    made = Scripted(tmp_path, max_steps=1)
    made.trainer.add_callback(Exploding())
    with pytest.raises(Diverged, match="at update 1: a value of the weight weight is nan"):
        made.train()
    assert not (tmp_path / "checkpoints" / "checkpoint-1").exists() and not (tmp_path / "model").exists()


@pytest.mark.parametrize("make", [summarization, sparse])
def test_both_studies_stop_at_a_loss_that_is_none(make, tmp_path):
    made = make(tmp_path, lambda text: None)
    with torch.no_grad():
        next(made.model.parameters()).fill_(math.nan)
    with pytest.raises(Diverged, match="stopped at update 1: loss is nan; no loss before it was finite"):
        made.train()


# ---- several processes, several GPUs -----------------------------------------------------------------------------

TOGETHER = {"one": ("First", {"batch_size": 4, "accumulation": 1, "max_steps": None, "epochs": 2}),
            "passes": ("First", {"batch_size": 2, "accumulation": 2, "max_steps": None, "epochs": 2}),
            "summarization": ("summarization", {"batching": "random", "learning_rate": 1e-3}),
            "sparse": ("sparse", {"accumulation": 2, "batch_size": 5})}


def together(folder: Path) -> None:
    """What every process of a training does; the first one keeps the records."""
    torch.set_num_threads(1)
    for name, (make, values) in TOGETHER.items():
        facts = globals()[make](folder / name, **values).train()["train_metrics"]
        if os.environ.get("RANK", "0") == "0":
            write_json(folder / f"{name}.json", facts)


def test_two_processes_train_as_one(tmp_path):
    """As many updates and epochs, and the same weights but for the last digits; each file is written once."""
    code = f"import sys; sys.path.insert(0, 'tests'); import test_training; from pathlib import Path; test_training.together(Path({str(tmp_path / 'two')!r}))"
    (tmp_path / "two").mkdir(), (tmp_path / "one").mkdir()
    (tmp_path / "code.py").write_text(code, "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "code.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "Error" in line) + done.stderr[:4000]
    together(tmp_path / "one")
    for name in TOGETHER:
        one, two = (read_json(tmp_path / many / f"{name}.json") for many in ("one", "two"))
        assert {key: one[key] for key in ("updates", "epochs", "batch_size", "accumulation")} == {
            key: two[key] for key in ("updates", "epochs", "batch_size", "accumulation")}, name
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-2), name
        logs, kept = zip(*(left(tmp_path / many / name) for many in ("one", "two")))
        assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]], name
        for key, weight in kept[0].items():
            torch.testing.assert_close(kept[1][key], weight, rtol=2e-2, atol=2e-3)
    assert read_json(tmp_path / "two" / "one.json")["epochs"] == 2.0


def test_what_processes_cannot_share_is_refused(tmp_path, monkeypatch):
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ParameterError, match="2 processes cannot share .*make accumulation a multiple of 2"):
        Scripted(tmp_path, batch_size=3)
    with pytest.raises(ParameterError, match="make accumulation a multiple of 2 .a batch's passages are each other's negatives"):
        sparse(tmp_path)


@dataclass
class TwoGpus(TrainingArguments):
    """As on a machine where two GPUs are visible to one process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._n_gpu = 2


def test_of_two_visible_gpus_one_is_used_and_the_epochs_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "arguments_class", TwoGpus)
    assert TwoGpus(str(tmp_path), use_cpu=True, per_device_train_batch_size=4).train_batch_size == 8
    made = Scripted(tmp_path, max_steps=None, epochs=2)
    assert made.trainer.args.train_batch_size == 4
    facts = made.train()["train_metrics"]
    assert (facts["updates"], facts["epochs"]) == (8, 2.0)


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
