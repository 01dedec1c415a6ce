"""Papermill and `korlab` in this process: torch is imported once, not once a notebook."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import nbformat
import pytest
from conftest import ROOT, Outcome, flags
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_output
from papermill.cli import papermill as command
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets import Type
from traitlets.config import Config
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.workbench.terminal import papermill_style


class _Display(DisplayPublisher):
    """What `display` shows becomes an output of the cell."""

    def publish(self, data, metadata=None, **more):
        self.shell.outputs.append(new_output("display_data", data, metadata=metadata or {}))


class _Result(DisplayHook):
    """What a cell's last line gives becomes an output of the cell."""

    def write_output_prompt(self):
        pass

    def write_format_data(self, format_dict, md_dict=None):
        self.shell.outputs.append(new_output("execute_result", format_dict, metadata=md_dict or {}))


class _Shell(InteractiveShell):
    """A kernel without a process of its own."""

    displayhook_class, display_pub_class = Type(_Result), Type(_Display)
    outputs: list[Any] = []

    def _showtraceback(self, etype, evalue, stb):
        self.outputs.append(new_output("error", ename=etype.__name__, evalue=str(evalue), traceback=list(stb)))


class InProcess(Engine):
    """Every notebook gets a namespace of its own; `until` is what the last cell to be run holds."""

    until = ""
    namespace: dict[str, Any] = {}  # of the notebook that ran last

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **more):
        main, InProcess.namespace = sys.modules["__main__"], {}
        shell = _Shell.instance(user_ns=InProcess.namespace, config=Config(HistoryManager={"enabled": False}))
        try:
            for index, cell in enumerate(nb_man.nb.cells):
                if cell.cell_type == "code" and not cls._run(shell, nb_man, cell, index):
                    break
        finally:
            if run := InProcess.namespace.get("run"):
                getattr(run, "close", bool)()  # as the end of a process lets go of its folder
            _Shell.clear_instance()
            atexit.unregister(shell.atexit_operations)  # which would keep the shell, and all it names, until the end
            sys.modules["__main__"] = main
            for name in ("ps1", "ps2", "ps3"):  # by which others tell that somebody is typing
                vars(sys).pop(name, None)

    @classmethod
    def _run(cls, shell, nb_man, cell, index) -> bool:
        shell.outputs = cell.outputs
        nb_man.cell_start(cell, index)
        good = shell.run_cell(cell.source, store_history=True).success
        cell.execution_count = shell.execution_count - 1
        if not good:
            nb_man.cell_exception(cell, index)
        nb_man.cell_complete(cell, index)
        return good and not (cls.until and cls.until in cell.source)


class UpToData(InProcess):
    """Stops below the page that shows the data."""

    until = 'pages.show(run, "data"'


papermill_engines.register("in-process", InProcess)
papermill_engines.register("up-to-data", UpToData)


@dataclass(frozen=True)
class Done:
    """What a notebook left behind."""

    error: PapermillExecutionError | None  # what stopped it
    page: str  # all that it shows
    names: dict[str, Any] = field(repr=False)  # its namespace


def shown(notebook: Path) -> str:
    """The tables and the prose of an executed notebook."""
    outputs = (output for cell in nbformat.read(notebook, as_version=4).cells for output in cell.get("outputs", ()))
    texts = (output.get("data", {}).get("text/markdown", "") for output in outputs)
    return "\n".join(filter(None, map("".join, texts)))


def _papermill(notebook: str, out: Path, engine: str, *words: str) -> Done:
    error = None
    try:
        command([f"nbs/{notebook}.ipynb", str(out), "--no-progress-bar", "--engine", engine, *words], standalone_mode=False)
    except PapermillExecutionError as found:
        error = found
    return Done(error, shown(out), InProcess.namespace)


def execute(notebook: str, out: Path, engine: str = "in-process", **values: object) -> Done:
    """`papermill nbs/NOTEBOOK.ipynb OUT -p name value …`, in this process."""
    return _papermill(notebook, out, engine, *flags(**values))


@contextmanager
def _as_a_process(runs: Path) -> Iterator[None]:
    """The working folder and the environment of a process, both as they were afterwards; no notebook gets a kernel."""
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setitem(papermill_engines._engines, None, InProcess)
        os.environ["KORLAB_RUNS"] = str(runs)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def papermill(out: Path, *extra: str, runs: Path, notebook: str = "train") -> Outcome:
    """What `conftest.papermill` does, in this process."""
    with _as_a_process(runs):
        error = _papermill(notebook, out, "in-process", *extra).error
    return Outcome(int(error is not None), str(error or ""))


def korlab(*words: object, runs: Path) -> CompletedProcess:
    """`korlab WORDS` and what it left, as `subprocess.run` tells it; what a bug raises is raised."""
    with _as_a_process(runs):
        done = CliRunner().invoke(command_line(), papermill_style([str(word) for word in words]))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return CompletedProcess(words, done.exit_code, done.stdout, done.stderr)
