"""What a person types: every mistake stops before any work with one sentence, and every value reaches the run."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT, TINY, flags
from in_process import korlab, papermill

from korlab.core.yamls import read_yaml
from korlab.experiment import params, studies
from korlab.sparse import search
from korlab.summarization.data import embedded
from korlab.summarization.dialogues import save_dialogues
from korlab.workbench import comparing, spaces

ENTRY = {  # entry notebook -> what writes its parameters cell
    "train": studies.training_cell,
    "evaluate": studies.evaluation_cell,
    "compare": lambda: params.cell_source({"": comparing.CompareParams}),
    "tune": lambda: params.cell_source({"": spaces.TuneParams}),
    "search": lambda: params.cell_source({"": search.SearchParams}),
}


def cell(notebook: str, tag: str = "parameters") -> str:
    cells = nbformat.read(ROOT / "nbs" / f"{notebook}.ipynb", as_version=4).cells
    tagged = [c.source for c in cells if tag in c.metadata.get("tags", [])]
    assert len(tagged) == 1, f"{notebook}.ipynb has {len(tagged)} cells tagged {tag}"
    return tagged[0]


@pytest.mark.parametrize("notebook", ENTRY)
def test_the_parameters_cell_says_what_the_dataclasses_say(notebook):
    assert cell(notebook) == ENTRY[notebook](), "paste what the function in ENTRY returns"


@pytest.mark.parametrize("notebook", ENTRY)
def test_papermill_understands_every_line_of_a_parameters_cell(notebook):
    """A second equals sign, in a comment, too, would hide a parameter from `papermill --help-notebook`."""
    assert [line for line in cell(notebook).splitlines() if line.count("=") > 1] == []


@pytest.mark.parametrize("notebook", [*ENTRY, "summarize"])
def test_entry_notebooks_have_a_kernel_papermill_can_start(notebook):
    spec = nbformat.read(ROOT / "nbs" / f"{notebook}.ipynb", as_version=4).metadata.kernelspec
    assert (spec.name, spec.language) == ("python3", "python")


MISTAKES = [
    (["-p", "modle", "kobart"], "unknown parameter 'modle': did you mean 'model'?"),
    (["-p", "model", "bert"], "unknown model 'bert'"),
    (["-p", "learning_rate", "abc"], "learning_rate='abc': expected a number"),
    (["-p", "epochs", "-1"], "epochs=-1.0: must be greater than 0"),
    (["-p", "size", "full"], "could not be loaded"),
    (["-p", "data", "data/nothing.csv"], "data/nothing.csv"),
]


@pytest.mark.parametrize("words, sentence", MISTAKES, ids=[m[0][1] + m[0][2] for m in MISTAKES])
def test_a_mistake_stops_papermill_with_one_sentence(words, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    outcome = papermill(tmp_path / "out.ipynb", *words, runs=tmp_path / "runs")
    assert outcome.code == 1
    assert sentence in outcome.text


@pytest.mark.parametrize("given, sentence", [
    ({"scheduler": "constant", "warmup": 100}, "needs scheduler to be something other than 'constant'"),
    ({"max_steps": 5, "epochs": 9}, "needs max_steps to be unset"),
    ({"data_policy": "strict"}, "no effect because data='embedded'"),
    ({"checkpoint": "somewhere"}, "no effect because size='mini'"),
    ({"length_penalty": 0.8}, "no effect because num_beams=1"),
    ({"name": "../elsewhere"}, "a name is a folder's name"),
    ({"name": ""}, "a name is a folder's name"),
])
def test_a_value_without_effect_or_place_is_refused(given, sentence):
    with pytest.raises(params.ParameterError, match=re.escape(sentence)):
        studies.configure(given)


BAD_FILES = {
    "unknown key": (b"model: kobart\nlerning_rate: 1e-3\n", "did you mean 'learning_rate'?"),
    "duplicate key": (b"seed: 1\nseed: 2\n", "line 2: the key 'seed' appears twice"),
    "boolean key": (b"true: 1\n", "put it in quotes"),
    "on is text": (b"tidy: on\n", "tidy='on': expected true or false"),
    "time of day": (b"batch_size: 1:30\n", "batch_size='1:30': expected a whole number"),
    "no number": (b"seed: !!int x\n", "line 1: seed: x cannot be read as int"),
    "unfolds": (b"a: &a [1, 2]\nb: [*a, *a]\n", "line 2: it refers to a list or mapping of another line"),
    "refers to itself": (b"a: &a [*a]\n", "it refers to a list or mapping of another line"),
    "too deep": (b"a: " + b"[" * 3000, "this is not readable YAML"),
    "too long": (b"seed: " + b"9" * 5000 + b"\n", "line 1: seed: 9999"),
    "not a date": (b"name: !!timestamp 2026-13-45\n", "name: 2026-13-45 cannot be read as timestamp"),
    "nested": (b"training:\n  epochs: 3\n", "a parameter is a single value"),
    "not yaml": (b"model: [kobart\n", "this is not readable YAML"),
    "a list": (b"- kobart\n", "expected lines of `name: value`"),
}


@pytest.mark.parametrize("content, sentence", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_experiment_file_stops_korlab_run(content, sentence, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    done = korlab("run", file, runs=tmp_path / "runs")
    assert done.returncode == 1 and done.stderr.startswith("korlab: ")
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_yaml_key_stops_papermill(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: kobart\nlerning_rate: 1e-3\n")
    outcome = papermill(tmp_path / "out.ipynb", "-f", str(file), runs=tmp_path / "runs")
    assert outcome.code == 1 and "unknown parameter 'lerning_rate'" in outcome.text


def test_every_experiment_file_is_valid():
    base = read_yaml(ROOT / "params" / "base.yaml")
    files = sorted(p for p in (ROOT / "params").glob("*/*.yaml"))
    assert files
    for file in files:
        config = studies.configure(base | read_yaml(file))
        assert studies.model(config.run.model).study == file.parent.name


@pytest.mark.parametrize("text, value", [("5e-5", 5e-5), ("5.0e-5", 5e-5), ("0.00005", 5e-5), ("'5e-5'", 5e-5)])
def test_yaml_spellings_of_a_learning_rate(text, value, tmp_path):
    file = tmp_path / "rate.yaml"
    file.write_text(f"learning_rate: {text}\n")
    assert studies.configure(read_yaml(file)).training.learning_rate == value


MEANT = [("batch_size: 010", 10), ("batch_size: 0o10", 8), ("batch_size: 1_000", 1000), ("epochs: 1e-4", 1e-4), ("prefix: yes", "yes"),
         ("prefix: 2026-11-29", "2026-11-29"), ("prefix: '010'", "010"), ("tidy: true", True), ("epochs: ~", None), ("prefix: 1:30", "1:30")]


@pytest.mark.parametrize("line, value", MEANT, ids=[line for line, _ in MEANT])
def test_a_value_in_yaml_means_what_people_mean(line, value, tmp_path):
    """In an experiment, an overlay, after -p, and in what a search writes for others to read."""
    from korlab.core.yamls import write_yaml
    from korlab.workbench.plans import layers

    (file := tmp_path / "mine.yaml").write_text(f"model: kobart\n{line}\n")
    (plain := tmp_path / "plain.yaml").write_text("model: kobart\n")
    name = line.partition(":")[0]
    for values in (layers(file), layers(plain, [file])):
        config = studies.configure(values).flat()
        assert config[name] == (value if value is not None else 2.4) and type(config[name]) in (type(value), float)
    write_yaml(tmp_path / "written.yaml", {name: value})
    assert read_yaml(tmp_path / "written.yaml") == {name: value} == yaml.safe_load((tmp_path / "written.yaml").read_text())


class Notebook:
    """The first cells of an entry notebook in a shell of IPython's, up to where it reads its parameters."""

    def __init__(self, name: str) -> None:
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        cells = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", as_version=4).cells
        self.setup, = [c.source for c in cells if "params.arrived(" in c.source]
        self.parameters = cell(name)
        reading, = [c.source for c in cells if "since()" in c.source]
        self.reading = re.sub(r"^.*since\(\).*$", "taken = since()", reading, flags=re.MULTILINE).split("\n")[1]
        self.shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))

    def run(self, source: str) -> None:
        outcome = self.shell.run_cell(source, store_history=True)
        outcome.raise_error()

    def read(self) -> dict:
        self.run(self.reading)
        return self.shell.user_ns["taken"]

    def run_all(self, **injected: object) -> dict:
        """Every cell in order, papermill's behind the parameters, and what later cells put under the same names."""
        self.run(self.setup)
        self.run(self.parameters)
        if injected:
            self.run("# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in injected.items()))
        taken = self.read()
        self.run("run = study = data = model = found = object()")
        return taken


INJECTED = {
    "train": dict(name="mine", model="kobart", batch_size=4, seed=7, max_steps=30, rouge_mode="char", tidy=True, warmup=0.0, data="x.csv"),
    "evaluate": dict(run="mine", num_beams=4, tidy=False, name="again", data="x.csv"),
    "compare": dict(runs="a,b", baseline="b", split="dev"),
    "tune": dict(experiment="a.yaml", space="b.yaml", trials=7, hours=0.5, seed=3),
    "summarize": dict(run="mine", num_beams=4, tidy=True, length_penalty=2),
    "search": dict(run="mine", k=3, query="우산"),
}


@pytest.fixture(params=INJECTED)
def opened(request) -> tuple[Notebook, dict, dict]:
    """An entry notebook, what its cell says, and what papermill puts in."""
    notebook, cells = Notebook(request.param), {}
    exec(notebook.parameters, cells)
    return notebook, {name: value for name, value in cells.items() if not name.startswith("_")}, INJECTED[request.param]


def test_run_all_a_second_time_keeps_the_parameters(opened):
    notebook, defaults, injected = opened
    assert notebook.run_all(**injected) == defaults | injected
    for again in range(2):
        assert notebook.run_all(**injected) == defaults | injected, f"pass {again + 2}"
    assert notebook.run_all() == defaults, "the injected cell was deleted"
    name, value = next(iter(injected.items()))
    assert notebook.run_all(**{name: "other"}) == defaults | {name: "other"}
    assert notebook.run_all(**{name: value, "modle": 1}) == defaults | {name: value, "modle": 1}
    assert notebook.run_all(**{name: value}) == defaults | {name: value}, "a misspelt name that was corrected stays"


def test_single_cells_run_again(opened):
    """Only the cell that reads; the parameters and it; the first cell alone."""
    notebook, defaults, injected = opened
    assert notebook.run_all(**injected) == notebook.read() == defaults | injected
    notebook.run(notebook.parameters)
    assert notebook.read() == defaults | {name: value for name, value in injected.items() if name not in defaults}
    notebook.run("seen = 3")
    with pytest.raises(params.ParameterError, match="'seen' was assigned after .* run the notebook from its first cell"):
        notebook.read()
    notebook.run(notebook.setup)
    with pytest.raises(params.ParameterError, match="run the cell with the parameters"):
        notebook.read()
    notebook.run(notebook.parameters)
    assert notebook.read() == defaults


def test_a_second_pass_opens_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    notebook, given = Notebook("train"), dict(name="twice", batch_size=4, seed=7, rouge_mode="char", tracking="none")
    notebook.reading = "from korlab.experiment import runs\nheld = runs.open_run(since()); held.close()\ntaken = held.config.flat()"
    for _ in range(2):
        config = notebook.run_all(**given)
        assert {name: config[name] for name in given} == given
    assert [folder.name for folder in (tmp_path / "summarization").iterdir()] == ["twice"]


def owners() -> dict[str, type]:
    """Every dataclass of parameters that a person can set."""
    from korlab.experiment.config import SHARED, EvaluationParams

    own = {name: studies.parameters(name).Params for name in studies.names()}
    return dict(SHARED) | own | {"evaluate": EvaluationParams, "compare": comparing.CompareParams, "tune": spaces.TuneParams,
                                 "search": search.SearchParams}


def test_every_parameter_that_may_be_a_path_says_so():
    """A new one that forgets it would not be expanded."""
    said = {(place, one.name) for place, spec in owners().items() for one in dataclasses.fields(spec) if one.metadata["path"]}
    speak = {(place, one.name) for place, spec in owners().items() for one in dataclasses.fields(spec)
             if re.search(r"\b(folder|file|files|folders|trained run)\b", one.metadata["help"]) and one.name != "name"}
    speak -= {("evaluate", "model"), ("tune", "values"), ("tracker", "tracking_offline"), ("rows", "encoding")}  # speak of one and are none
    assert speak <= said, speak - said
    assert {("rows", "dev_data"), ("rows", "test_data"), ("sparse", "teacher"), ("compare", "runs")} <= said
    for place, name in said:
        one = owners()[place].__dataclass_fields__[name]
        assert params.with_paths({name: one}, {name: "~/my/x"}) == {name: str(Path.home() / "my" / "x")}
        with pytest.raises(params.ParameterError, match=f"{name}='.NOWHERE_SET/x': the environment has no variable"):
            params.with_paths({name: one}, {name: "$NOWHERE_SET/x"})


def test_cleaning_keeps_the_parameters_tag(tmp_path):
    """nbdev_clean deletes cell tags unless told not to; papermill would then silently train the defaults."""
    copy = tmp_path / "lab"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "runs", ".cache", "reports"))
    clean = Path(sys.executable).with_name("nbdev_clean")
    subprocess.run([str(clean)], cwd=copy, check=True, capture_output=True)
    for name in (*ENTRY, "summarize"):
        cells = json.loads((copy / "nbs" / f"{name}.ipynb").read_text())["cells"]
        assert ["parameters"] in [c["metadata"].get("tags") for c in cells]


def test_values_reach_the_run_through_papermill(tmp_path):
    file = tmp_path / "mine.yaml"
    save_dialogues(embedded().rows["train"][:60], tmp_path / "rows.csv")
    file.write_text(f"data: {tmp_path / 'rows.csv'}\nlearning_rate: 5e-4\ntracking: none\nseed: 3\n")
    given = {name: value for name, value in TINY.items() if name != "train_rows"} | {"name": "mine", "seed": 9}
    outcome = papermill(tmp_path / "out.ipynb", "-f", str(file), *flags(**given), runs=tmp_path)
    assert outcome.code == 0, outcome.text[-2000:]
    config = json.loads((tmp_path / "summarization" / "mine" / "config.json").read_text())
    assert (config["effective"]["learning_rate"], config["effective"]["seed"]) == (5e-4, 9)
    injected = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert any("injected-parameters" in c.metadata.get("tags", []) for c in injected.cells)


def test_settings_are_all_read():
    """A key in settings.ini that nothing reads would be a promise nobody keeps."""
    from configparser import ConfigParser
    from dataclasses import fields

    from korlab.core.settings import Settings

    parser = ConfigParser()
    parser.read(ROOT / "settings.ini")
    keys = {key for section in parser.sections() for key in parser[section]}
    assert keys == {f.name for f in fields(Settings)} - {"root"}
    sources = "\n".join(p.read_text() for p in (ROOT / "korlab").rglob("*.py"))
    for key in keys:
        assert f"settings().{key}" in sources or f'preset("{key}")' in sources, f"nothing reads settings().{key}"

