"""Every file of a run's folder damaged in every way, and the same command started again: what became of the result."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from conftest import Killed
from kills import RUNS, timeless, values_of

DAMAGES = ("truncated", "flipped", "zeroed", "deleted")
STATES = ("finished", "interrupted", "stopped")  # done; killed after the first checkpoint; stopped between training and evaluation
SEEN = ("noticed", "irrelevant")  # the verdicts that are allowed
_SMALL = {"device": "cpu", "precision": "fp32", "threads": 1, "max_steps": 4}
STUDIES = tuple(dict.fromkeys(name.split()[0] for name in RUNS))


@dataclass(frozen=True)
class Row:
    """What one damage did."""

    study: str
    state: str
    file: str
    damage: str
    verdict: str  # noticed, irrelevant, SILENT, TRACEBACK, or FALSE ADVICE
    sentence: str  # what was said, or what differs


# ---- the command -------------------------------------------------------------------------------------------------


def start(values: Mapping[str, Any], until: str = "") -> Path:
    """What nbs/train.ipynb does, its pages made and not shown; `until` stops after a checkpoint or before a stage."""
    from korlab.experiment.runs import open_run
    from korlab.report import facts, model_cards, pages

    run = open_run(values)
    study = run.study

    def shown(*stages: str) -> None:
        for stage in stages:
            [str(item) for item in pages.displayed(run.study.pages.get(stage, ()), run.study.name, run)]

    try:
        facts.heading(run.title, run.folder)
        data = study.data(run)
        model = study.model(run, data)
        shown("data", "model")
        study.train(run, model, data, callbacks=[_dying()] if until == "checkpoint" else ())
        shown("train")
        if until == "evaluate":
            raise KeyboardInterrupt
        study.evaluate(run, model, data)
        shown("evaluate")
        [str(one) for one in pages.repeat(run)]
        model_cards.write_model_card(run)
        run.finish()
    finally:
        run.close()
    return run.folder


def _dying() -> Any:
    from transformers import TrainerCallback

    class Dying(TrainerCallback):
        """Ends the process's work when the next update begins after a checkpoint."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if list(Path(args.output_dir).glob("checkpoint-*/manifest.json")):
                raise Killed

    return Dying()


def leave(state: str, values: Mapping[str, Any]) -> None:
    """Leave a run in a state."""
    until = {"interrupted": "checkpoint", "stopped": "evaluate"}.get(state, "")
    with contextlib.suppress(Killed, KeyboardInterrupt):
        start(values, until)


# ---- what it left ------------------------------------------------------------------------------------------------

_TIMES = re.compile(r"seconds|runtime|per_second|latency|speed|memory|time|flos|created_at|^p50$|^p95$")
_ASIDE = re.compile(r"(^|/)(\.|torn-|checkpoints/|made_of)|manifest\.json$|^(status|environment|computing|config|batch)\.json$|(^|/)progress\.json$|README\.md$")


def _content(file: Path) -> str:
    body = file.read_bytes()
    with contextlib.suppress(ValueError):
        if file.suffix == ".json":
            body = json.dumps(timeless(json.loads(body), _TIMES), sort_keys=True).encode()
        elif file.suffix == ".jsonl":
            body = json.dumps([timeless(json.loads(line), _TIMES) for line in body.decode().splitlines()], sort_keys=True).encode()
    return hashlib.sha256(body).hexdigest()


def result(folder: Path) -> dict[str, str]:
    """A hash of every file that a run is kept for, times aside; checkpoints are not."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: _content(path) for name, path in sorted(files.items()) if not _ASIDE.search(name)}


# ---- damage ------------------------------------------------------------------------------------------------------


def harm(file: Path, damage: str) -> None:
    """Damage a file; one that is empty can only be deleted."""
    body = bytearray(file.read_bytes())
    file.unlink()
    if damage == "flipped":
        body[len(body) // 2] ^= 1
    if damage != "deleted":
        file.write_bytes(bytes({"truncated": body[: len(body) // 2], "zeroed": bytes(len(body))}.get(damage, body)))


def damageable(folder: Path) -> list[str]:
    """The files of a run, but those that only a living process has."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != ".lock" and path.stat().st_size)


# ---- a try -------------------------------------------------------------------------------------------------------


def _told(values: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """How the command ended, LabError or another's name or nothing, and what was said."""
    from korlab.core.errors import LabError
    from korlab.core.files import read_json

    before = _notes(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            start(values)
    except LabError as error:
        return "LabError", str(error)
    except Exception as error:
        return type(error).__name__, f"{type(error).__name__}: {error} at {traceback.extract_tb(error.__traceback__)[-1]}"
    return "", "; ".join(note["text"] for note in read_json(folder / "status.json").get("notes", []) if note["text"] not in before)


def _notes(folder: Path) -> set[str]:
    try:
        return {note["text"] for note in json.loads((folder / "status.json").read_text("utf-8")).get("notes", [])}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return set()


def _named(sentence: str, folder: Path) -> Path | None:
    """What a sentence says to delete: the first path of the run in it."""
    found = re.search(rf"/{re.escape(folder.name)}(/[^\s,:;()']*)?(?=[\s,:;()'])", sentence)
    return folder.parent / found[0].strip("/") if found else None


_USUAL = re.compile(r"^Computing on|^Going on from checkpoint|^\d+ (Korean rows|processes)|; ", re.M)


def tried(values: Mapping[str, Any], folder: Path, expected: Mapping[str, str], usual: str) -> tuple[str, str]:
    """Start a damaged run again, as it says to where it refuses; the verdict, and what was said."""
    ended, said = _told(values, folder)
    if ended == "LabError":
        named, refused = _named(said, folder), said
        if "delete" not in said or named is None:
            return ("noticed", refused) if "other parameters" in said else ("FALSE ADVICE", f"no path to delete: {refused}")
        shutil.rmtree(named) if named.is_dir() else named.unlink(missing_ok=True)
        ended, said = _told(values, folder)
        if ended:
            return "FALSE ADVICE", f"{refused} THEN {said}"
        differs = _differs(result(folder), expected)
        return ("FALSE ADVICE", f"{refused} THEN {differs}") if differs else ("noticed", refused)
    if ended:
        return "TRACEBACK", said
    new = "; ".join(one for one in said.split("; ") if one not in usual)
    if differs := _differs(result(folder), expected):
        return "SILENT", f"{differs}; said: {new}"
    return ("noticed", new) if new else ("irrelevant", "")


def _differs(found: Mapping[str, str], expected: Mapping[str, str]) -> str:
    names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
    return f"differs: {', '.join(names[:5])}" if names else ""


def apart(work: Callable[[], Any]) -> Any:
    """Do something in a child, and give what it gives; a child that dies is a traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            with os.fdopen(writing, "w", encoding="utf-8") as out:
                json.dump(work(), out)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as given:
        body = given.read()
    os.waitpid(child, 0)
    return json.loads(body) if body else ("TRACEBACK", "the process died")


def made(study: str, base: Path, states: Sequence[str] = STATES) -> tuple[dict[str, Path], dict[str, Any]]:
    """A finished, an interrupted and a stopped run of a study: state -> folder; and what each was given."""
    name = next(name for name in RUNS if name.split()[0] == study)
    short = {key: value for key, value in values_of(name, base / "rows").items() if key not in ("patience", "threshold")}
    folders, values = {}, short | _SMALL | {"name": "run"}
    os.environ["KORLAB_RUNS"] = str(base / "runs")
    for state in ("finished", *(one for one in states if one != "finished")):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            leave(state, values)
        folders[state] = (base / "runs" / study / "run").rename(base / state)
    return folders, values


def rows(
    study: str, base: Path, chosen: Callable[[str, str, str], bool] = lambda state, file, damage: True, states: Sequence[str] = STATES
) -> Iterator[Row]:
    """Every damage to every file of a study's runs that `chosen` takes: (state, file, damage)."""
    folders, values = made(study, base, states)
    expected = result(folders["finished"])
    for state, folder in folders.items():
        def tried_on(file: str, damage: str, source: Path = folder, usual: str = "") -> tuple[str, str]:
            copy = base / "runs" / study / "run"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy)
            if file:
                harm(copy / file, damage)
            return apart(lambda: tried(values, copy, expected, usual))

        verdict, usual = tried_on("", "")  # nothing damaged: what is said then is no notice
        if verdict not in SEEN:
            yield Row(study, state, "", "none", verdict, usual)
        for file in damageable(folder):
            for damage in DAMAGES:
                if chosen(state, file, damage):
                    yield Row(study, state, file, damage, *tried_on(file, damage, usual=usual))


def sampled(study: str, base: Path, most: int = 0) -> list[Row]:
    """Every damage to a study's runs; or `most` of a finished run, evenly chosen, so that each way of damage comes."""
    seen: Iterator[int] = count()
    some = rows(study, base, lambda *_: next(seen) % 37 == 0, STATES[:1])
    return [*islice(some, most)] if most else [*rows(study, base)]
