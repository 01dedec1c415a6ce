"""Shared by all tests: a private place for runs, and one real training that many tests look at."""

import fcntl
import html
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from korlab.sparse.data import Collection

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores

ROOT = Path(__file__).resolve().parent.parent
LONGEST = ("messy_files", "sparse_study", "ivr_faults", "tuning", "training", "peoples_files", "runs", "suite", "tracking", "coref_fill",
           "coref_study", "ivr_model", "ivr_pages", "ivr_steps", "full_paths", "model_cards", "new_study", "sparse_documents", "sparse_e5",
           "trainer", "coref_recall", "rows", "models", "cli", "main_job", "inference", "readme_commands")
SHORT = {
    "sparse": dict(model="sparse-ko", vocab_size=300, max_steps=1, max_length=32, batch_size=4, eval_steps=1, eval_rows=2, warmup=0, negatives=0,
                   train_rows=40, tracking="none", on_collapse="warn"),
    "ivr": dict(model="gpt2-ivr", max_steps=4, pretraining=4, vocab_size=600, train_rows=40, eval_rows=4, block_size=64, eval_steps=2, tracking="none"),
}
TINY = {"max_steps": 6, "train_rows": 60, "eval_steps": 3, "eval_rows": 6, "max_target_length": 24, "vocab_size": 400}


@dataclass(frozen=True)
class Outcome:
    """What a finished process left: exit code and everything it printed."""

    code: int
    text: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that both processes end together; the first trains `quickstart` before another needs it."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def papermill(out: Path, *extra: str, runs: Path, notebook: str = "train") -> Outcome:
    """Run an entry notebook the way a user does, in a process of its own."""
    command = [sys.executable, "-m", "papermill", f"nbs/{notebook}.ipynb", str(out), "--no-progress-bar", *extra]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"KORLAB_RUNS": str(runs)}
    )
    return Outcome(done.returncode, done.stdout + done.stderr)


def flags(**values: object) -> list[str]:
    """`-p name value` for each."""
    return [word for name, value in values.items() for word in ("-p", name, str(value))]


@contextmanager
def trained_once(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder for runs that all test processes share, for one of them at a time."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (runs := shared / name).mkdir(exist_ok=True)
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield runs


def trained(runs: Path, study: str, name: str, **given: object) -> None:
    """A run that is trained in this process, unless it is there."""
    from in_process import execute

    if (runs / study / name / "metrics.json").exists():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KORLAB_RUNS", str(runs))
        patch.chdir(ROOT)
        done = execute("train", runs / f"{study}.ipynb", name=name, **given)
        assert done.error is None, done.error


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the main job, trained once for all tests and test processes: `papermill … -p model kobart`."""
    with trained_once(tmp_path_factory, "runs") as runs:
        folder = runs / "summarization" / "quickstart"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "metrics.json").exists():
            outcome = papermill(folder / "train.ipynb", *flags(model="kobart", name="quickstart"), runs=runs)
            assert outcome.code == 0, outcome.text[-3000:]
    return folder


@pytest.fixture(scope="session")
def recalls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs are, with `recalls` among them: params/coref/one.yaml with shorter windows and fewer questions, trained once."""
    with trained_once(tmp_path_factory, "recalls") as runs:
        trained(runs, "coref", "recalls", model="kf-deberta", entities=1, context_length=64, eval_steps=0.5, questions=100, lambada="none", modes="oracle_len")
    return runs


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs are: one of each study in `SHORT`, trained once."""
    with trained_once(tmp_path_factory, "short") as runs:
        for study, given in SHORT.items():
            trained(runs, study, "short", **given)
    return runs


def all_at_once(model, tokenizer, asked) -> float:
    """The share of windows whose name a masked language model gets wholly right in one pass, as many masks given as it has pieces."""
    import torch

    from korlab.coref.collator import Collator
    from korlab.coref.training import scores

    batch = Collator(tokenizer)(asked)
    with torch.no_grad():
        best = scores(model.eval(), batch).argmax(-1)
    right = torch.split(best == batch["labels"][batch["labels"] != -100], [len(one.target) for one in asked])
    return sum(bool(part.all()) for part in right) / len(asked)


def collection_of(number: int) -> "Collection":
    """The first embedded questions and the passages that answer them, in the order of the whole collection."""
    from korlab.sparse.data import Collection
    from korlab.sparse.scenarios import embedded

    whole = embedded(train=10, dev=10, test=60, hard=10).test
    asked = dict(list(whole.queries.items())[:number])
    needed = {doc for query in asked for doc in whole.qrels[query]}
    corpus = {doc: text for doc, text in whole.corpus.items() if doc in needed}
    return Collection(corpus, asked, {query: whole.qrels[query] for query in asked})


def quoted_in(notebook: Path, texts: Iterable[str], folder: Path, *options: str) -> set[str]:
    """What a report of an executed notebook, as HTML and as Markdown, has in common with some texts: runs of 16 characters and more."""
    from in_process import korlab

    done = korlab("report", str(notebook), "--to", str(folder), *options, runs=folder)
    assert done.returncode == 0, done.stderr
    pages = [html.unescape(re.sub(r"<[^>]+>", "", (folder / f"{notebook.stem}{ending}").read_text("utf-8"))) for ending in (".html", ".md")]
    page = " ".join("\n".join(pages).split())
    parts = {" ".join(text.split())[i : i + 16] for text in texts for i in range(0, max(1, len(text) - 16), 8)}
    return {part for part in parts if len(part) == 16 and part in page}


def in_a_child(work: Callable[[], object]) -> int:
    """Do something in a process of its own, and say how that ended."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            work()
            os._exit(0)
        os._exit(7)
    return os.waitpid(child, 0)[1]


class Killed(Exception):
    """What takes a kill's place where a process of its own would cost too much."""


def dies_after_saving(trainer, step: int) -> None:
    """Let a Trainer end with `Killed` when the checkpoint of an update is saved."""
    save = trainer._save_checkpoint

    def save_and_die(*args):
        save(*args)
        if trainer.state.global_step == step:
            raise Killed

    trainer._save_checkpoint = save_and_die


@pytest.fixture(scope="module")
def one_thread():
    """Small jobs, one core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
