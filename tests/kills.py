"""Small runs of every study, killed at each of their file operations and started again: what came out is held against a run nobody killed."""

import gc
import io
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from conftest import collection_of

from korlab.experiment import studies
from korlab.experiment.runs import open_run
from korlab.report.model_cards import write_model_card

NAMES = ["삼성전자", "한국은행", "카카오뱅크", "현대자동차", "포스코", "네이버", "대한항공", "제주도", "이순신", "서울대학교"]
SHORT: dict[str, Any] = {"size": "mini", "name": "one", "tracking": "none", "eval_steps": 2, "eval_rows": 2, "warmup": 0}
STOPS = SHORT | {"max_steps": 8, "patience": 1, "threshold": 99.0, "keep_checkpoints": 2}  # out of patience at the second evaluation
ENDS = SHORT | {"max_steps": 5, "patience": 3, "learning_rate": 0.01, "keep_checkpoints": 1}  # in the middle of the second epoch


@dataclass(frozen=True)
class Outcome:
    """What became of a run that was killed just before a file operation."""

    study: str
    number: int  # of the operation, from 1
    operation: str
    file: str  # in the run's folder
    verdict: str  # equal, differs, or failed
    differs: str  # what does, or what stopped the second attempt


# ---- small runs --------------------------------------------------------------------------------------------------


def _dialogues(folder: Path) -> dict[str, Any]:
    from korlab.summarization.data import embedded
    from korlab.summarization.dialogues import save_dialogues

    rows = sorted(embedded().rows["train"], key=lambda row: len(row.dialogue))[:14]
    for name, part in {"train": rows[:9], "dev": rows[9:11], "test": rows[11:]}.items():
        save_dialogues(part, folder / f"{name}.csv")
    return {"model": "kobart", "vocab_size": 400, "batch_size": 3, "max_source_length": 64, "max_target_length": 8, "rouge_mode": "char"}


def _questions(folder: Path) -> dict[str, Any]:
    from korlab.sparse.data import save_beir

    save_beir(collection_of(20), folder)
    return {"model": "sparse-ko-doc", "vocab_size": 500, "batch_size": 4, "max_length": 32, "negatives": 1, "on_collapse": "warn", "train_rows": 10,
            "regularizer_warmup": 0.1}


def _articles(folder: Path) -> dict[str, Any]:
    texts = [f"올해 {name} 소식이 {number}번 실렸다. 준비가 끝났다고 한다. 행사 이야기를 꺼낸 {name} 관계자가 웃었다." for number in range(3) for name in NAMES]
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), "utf-8")
    return {"model": "kf-deberta", "vocab_size": 400, "batch_size": 8, "train_rows": 20, "questions": 4, "context_length": 48, "beam": 2,
            "modes": "oracle_len", "lambada": "none", "max_entity_freq": 50}


def _texts(folder: Path) -> dict[str, Any]:
    from korlab.ivr.corpora import english, korean

    for language, texts in {"ko": korean(60), "en": english()[:60]}.items():
        for name, part in {"train": texts[:50], "dev": texts[50:54], "test": texts[54:]}.items():
            (folder / language).mkdir(exist_ok=True)
            (folder / language / f"{name}.txt").write_text("\n".join(part), "utf-8")
    return {"model": "gpt2-ivr", "pretraining": 3, "vocab_size": 500, "block_size": 32, "batch_size": 8, "train_rows": 40, "budget": "20",
            "data": str(folder / "ko"), "english": str(folder / "en")}


RUNS: dict[str, tuple[Callable[[Path], dict[str, Any]], dict[str, Any]]] = {
    "summarization": (_dialogues, STOPS),
    "summarization (QLoRA)": (_dialogues, ENDS | {"adapter": "qlora"}),
    "sparse (router)": (_questions, STOPS),
    "coref": (_articles, ENDS),
    "ivr": (_texts, STOPS),
}


def values_of(name: str, folder: Path) -> dict[str, Any]:
    """The parameters of a small run; its data are written into a folder."""
    make, values = RUNS[name]
    folder.mkdir(parents=True)
    return {"data": str(folder)} | make(folder) | values


@contextmanager
def _in(runs: Path) -> Iterator[None]:
    """Runs go to a folder; a vocabulary is proved by fewer random texts and no byte is counted, which takes seconds and writes nothing."""
    import numpy as np

    from korlab.ivr import remapping, scoring

    every, alike = remapping.random_texts, np.full((65536, 256), 1 / 256, np.float32)
    with (patch.dict(os.environ, KORLAB_RUNS=str(runs)), patch.object(remapping, "random_texts", lambda number, seed=0: every(40, seed)),
          patch.object(scoring.ByteTrigrams, "of", lambda texts: scoring.ByteTrigrams(alike))):
        yield


def whole(values: Mapping[str, Any], runs: Path) -> None:
    """What train.ipynb does, but for its pages."""
    with _in(runs), closing(open_run(values)) as run:
        data = run.study.data(run)
        model = run.study.model(run, data)
        run.study.train(run, model, data)
        run.study.evaluate(run, model, data)
        write_model_card(run)
        run.finish()


# ---- processes that stop before every file operation -------------------------------------------------------------


def _changes(event: str, args: tuple) -> tuple[str, str] | None:
    """The operation and the path, where an audit event is about to change what lies on the disk."""
    if event == "open":
        path, mode, flags = args
        writes = set(mode) & set("wax+") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)
        return ("open", _path(path)) if writes and isinstance(path, str | bytes | os.PathLike) else None
    if event == "os.rename":
        return "replace", _path(args[1])
    path = _path(*args[:1], args[-1]) if event in ("os.remove", "os.rmdir", "os.mkdir") else ""
    there = os.path.lexists(path)
    known = {"os.remove": ("unlink", there), "os.rmdir": ("rmdir", there), "os.mkdir": ("mkdir", not there)}
    name, real = known.get(event, ("", False))
    return (name, path) if real else None


def _path(path: Any, folder: int = -1) -> str:
    """A path whole, also where it is told from an open folder on."""
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else "", os.fsdecode(path))


def watched(folder: Path, see: Callable[[str, str], object]) -> None:
    """From now on, tell of each operation and file in a folder before it is done; there is no way back for this process."""
    def hook(event: str, args: tuple) -> None:
        if (found := _changes(event, args)) and found[1].startswith(f"{folder}/"):
            see(found[0], found[1][len(str(folder)) + 1 :])

    sys.addaudithook(hook)


def _apart(work: Callable[[], object], log: Path, before: Callable[[], object] = lambda: None) -> int:
    """Do something in a process of its own, whose words go to a file; its id."""
    if child := os.fork():
        return child
    gc.freeze()  # what was there before need not be looked through again
    try:
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        before()
        work()
        os._exit(0)
    except BaseException:
        log.write_text(traceback.format_exc(), "utf-8")
        os._exit(1)


def paused(work: Callable[[], object], folder: Path) -> Iterator[tuple[int, str, str]]:
    """Do something in a process that stops before each of its file operations in a folder: number, operation, file. Left early, it is killed there."""
    (told, tell), (wait, go) = os.pipe(), os.pipe()

    def watch() -> None:
        os.close(told), os.close(go)
        watched(folder, lambda operation, file: (os.write(tell, f"{operation}\t{file}\n".encode()), os.read(wait, 1)))

    child = _apart(work, folder.with_name(f"{folder.name}.log"), watch)
    os.close(tell), os.close(wait)
    try:
        with open(told, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                operation, file = line.rstrip("\n").split("\t")
                yield number, operation, _anybody(file)
                os.write(go, b".")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(go)


def _anybody(file: str) -> str:
    """A file's name without the process that writes it."""
    return re.sub(r"(?<=/)(\.[^/]+?)\.\d+(?=\.tmp$|/|$)", r"\1", f"/{file}")[1:]


def killed_at(work: Callable[[], object], folder: Path, operation: str, file: str) -> tuple[int, str, str]:
    """Do something in a process that is killed before an operation on a file of that ending is done for the first time."""
    with closing(paused(work, folder)) as points:
        for point in points:
            if point[1] == operation and point[2].endswith(file):
                return point
    raise AssertionError(f"there is no {operation} of {file}")


# ---- what a run left ---------------------------------------------------------------------------------------------

_WAY = re.compile(r"^(status|environment)\.json$|^\.lock$|(^|/)progress\.json$|(^|/)README\.md$")  # cards hold times, versions and a commit
_CLOCK = re.compile(r"seconds|per_second|runtime|memory|^time$|created|latency|speed")


def timeless(value: Any, clock: re.Pattern[str] = _CLOCK) -> Any:
    """A record without what a clock says."""
    if isinstance(value, Mapping):
        return {key: timeless(one, clock) for key, one in value.items() if not clock.search(key)}
    return [timeless(one, clock) for one in value] if isinstance(value, list) else value


def left(folder: Path) -> dict[str, Any]:
    """Everything that a run left and that is not about its way there: path -> content, times aside."""
    found: dict[str, Any] = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name, body = file.relative_to(folder).as_posix(), file.read_bytes()
        if not _WAY.search(name):  # of a manifest, that it is there: what it lists is compared itself, and may hold times
            lines = body.decode().splitlines() if file.suffix == ".jsonl" else [body] if file.suffix == ".json" else []
            found[name] = None if file.name == "manifest.json" else [timeless(json.loads(line)) for line in lines] if lines else body
    return found


def _besides(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """What lies beside what is known, a folder as one."""
    places = {parent.as_posix() for name in known for parent in Path(name).parents}
    firsts = {next(part for part in [*reversed(Path(name).parents), Path(name)] if part.as_posix() not in places).as_posix() for name in names}
    return sorted(_anybody(name) for name in firsts)


# ---- kills -------------------------------------------------------------------------------------------------------


class Victim:
    """A small run of a study: done once in this process, so that those that follow have all that it imports, and then as often as it is killed."""

    def __init__(self, study: str, place: Path) -> None:
        self.study, self.runs, self.log = study, place / "runs", place / "again.log"
        self.values = values_of(study, place / "data")
        self.folder = self.runs / studies.model(self.values["model"]).study / self.values["name"]
        self.work()
        self.straight = left(self.folder)
        shutil.rmtree(self.runs)

    def work(self) -> None:
        """The run, from wherever its folder stands to its end."""
        whole(self.values, self.runs)

    def again(self, number: int, operation: str, file: str) -> Outcome:
        """Start the same command again, and hold what it leaves against what an unkilled run leaves."""
        ended = os.waitpid(_apart(self.work, self.log), 0)[1]
        where = self.study, number, operation, file.partition("/")[2].partition("/")[2]
        if ended:
            return Outcome(*where, "failed", self.log.read_text("utf-8").strip().splitlines()[-1])
        found = left(self.folder)
        other = [name for name in self.straight if name not in found or found[name] != self.straight[name]]
        besides = _besides(found.keys() - self.straight.keys(), self.straight)
        return Outcome(*where, "differs" if other else "equal", "; ".join([*other, *(f"besides {name}" for name in besides)]))

    def killed(self, operation: str, file: str) -> Outcome:
        """Kill the run before an operation on a file, and start it again."""
        shutil.rmtree(self.runs, ignore_errors=True)
        return self.again(*killed_at(self.work, self.runs, operation, file))

    def everywhere(self, most: int = 250) -> Iterator[Outcome]:
        """Start again from what a kill would leave before each operation, or before so many of them, evenly chosen."""
        shutil.rmtree(self.runs, ignore_errors=True)
        total = sum(1 for _ in paused(self.work, self.runs))
        chosen = {round(i * total / min(most, total)) + 1 for i in range(min(most, total))}
        shutil.rmtree(self.runs)
        held = self.runs.with_name("held")
        for point in paused(self.work, self.runs):
            if point[0] in chosen:
                self.runs.rename(held) if self.runs.exists() else held.mkdir()
                shutil.copytree(held, self.runs)
                yield self.again(*point)
                shutil.rmtree(self.runs)
                held.rename(self.runs)


def all_killed(study: str, place: Path, most: int) -> list[Outcome]:
    """A small run killed at each of its operations, or at so many of them."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return [*Victim(study, place).everywhere(most)]
