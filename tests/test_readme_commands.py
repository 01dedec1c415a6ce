"""What README tells people to type: short commands are run as they stand, of long ones every option and parameter is looked up, and on request
they are run, too. What needs the Hub says so."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click import Command, UsageError
from conftest import ROOT
from typer.main import get_command
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.core.yamls import read_yaml
from korlab.experiment import studies
from korlab.workbench.terminal import papermill_style

LINES = {
    name: [line.split("  #")[0].strip() for block in re.findall(r"^```bash\n(.*?)^```", (ROOT / name).read_text("utf-8"), re.DOTALL | re.MULTILINE)
           for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    for name in ("README.md", "README.ko.md")
}
SHORT = (  # what is done in a moment and without a network, in this order
    "korlab list", "korlab models", "korlab doctor", "korlab tidy", "korlab new experiment my_first --study sparse", "korlab site",
    "korlab archive quickstart -o quickstart.tar.zst", "korlab verify quickstart.tar.zst", "korlab run params/summarization/0*.yaml --dry-run",
    "korlab summarization summarize quickstart dialogues.csv --to out.csv", "korlab sparse index my/", 'korlab sparse search "환불은 언제까지 되나요"',
    "korlab sparse measure questions.csv", "korlab coref build my/ --out set", "korlab coref freeze my/ --out items.jsonl",
)
ELSEWHERE = ("make run", "make lab", "make test", "pip install .", "korlab new lab my-lab", "source .venv/bin/activate")  # what sets everything up, and test_install.py
OFFLINE = {"korlab ivr init --model gpt2-ivr --size full --data my/": "korlab ivr init"}  # what stands for a command that others go on from
MARKED = {name: [line for line in re.findall(r"^(?:korlab|papermill) .*", (ROOT / name).read_text("utf-8"), re.MULTILINE) if "Hub" in line] for name in LINES}
NAMES = "김민수 이서연 박지훈 최유진 정하늘 강도윤".split()


def test_both_say_the_same_commands():
    words = [[line.split(" ", 2)[:2] for line in lines] for lines in LINES.values()]
    assert words[0] == words[1] and len(words[0]) > 30
    assert {*SHORT} <= {*LINES["README.md"]}


@pytest.fixture(scope="module")
def lab(quickstart, tmp_path_factory):
    """A lab of one's own with files of one's own, and the run that README's first command leaves."""
    folder = tmp_path_factory.mktemp("readme") / "lab"
    done = CliRunner().invoke(command_line(), ["new", "lab", str(folder)])
    assert done.exit_code == 0, done.output
    (folder / "my").mkdir()
    for number, (a, b) in enumerate((a, b) for a in NAMES for b in NAMES if a != b):
        (folder / "my" / f"{number}.txt").write_text(
            f"{a}는 {b}와 함께 연구소를 열었다. 여러 해가 지나는 동안 많은 사람이 연구소를 찾아왔다. 지난달 {a}는 논문 {number}편을 냈고, "
            f"연구소를 맡은 {b}도 이름을 올렸다. 환불은 {number + 3}일까지 된다.", "utf-8")
    (folder / "questions.csv").write_text("질문,문서\n" + "".join(f"논문 {n}편을 낸 사람은?,{n}\n" for n in range(20)), "utf-8")
    (folder / "dialogues.csv").write_text("dialogue\n#Person1#: 책을 어디에 반납하나요?\n", "utf-8")
    shutil.copytree(quickstart, folder / "runs" / "summarization" / "quickstart")
    return folder


def test_short_commands_do_what_they_say(lab, monkeypatch):
    monkeypatch.chdir(lab)
    monkeypatch.delenv("KORLAB_RUNS", raising=False)
    for line in SHORT:
        words = [word for part in shlex.split(line)[1:] for word in (sorted(map(str, lab.glob(part))) if "*" in part else [part])]
        done = CliRunner().invoke(command_line(), papermill_style(words), env={"COLUMNS": "160"})
        assert done.exit_code == 0, f"{line}\n{done.output}"
        assert "Traceback" not in done.output and done.stdout.strip(), line


def offline(part: str) -> list[str]:
    """The commands of a part of README, without those that need a network."""
    told = [line.split("  #")[0].strip() for line in MARKED["README.md"]]
    whole = re.sub(r"\\\n\s*", "", part)
    lines = (OFFLINE.get(line, line) for line in LINES["README.md"] if f"\n{line}" in whole)
    return [line for line in lines if line not in (*ELSEWHERE, *told)]


PARTS = {part.split("\n")[0]: offline(part) for part in (ROOT / "README.md").read_text("utf-8").split("\n## ")}


def test_what_needs_the_hub_says_so_in_both():
    assert len(MARKED["README.md"]) == len(MARKED["README.ko.md"]) == 4
    assert all(re.search("--?size full|-p size full|--background|e5.yaml", line) for line in MARKED["README.md"])
    assert sum(map(len, PARTS.values())) + len(ELSEWHERE) + 4 - len(OFFLINE) == len(LINES["README.md"])


@pytest.mark.slow
@pytest.mark.parametrize("part", [name for name, lines in PARTS.items() if not {*lines} <= {*SHORT}])
def test_all_commands_of_a_part_do_what_they_say(part, lab, tmp_path):
    place = Path(shutil.copytree(lab, tmp_path / "lab", symlinks=True))
    if part == "Run an experiment":  # where `my/` holds dialogues
        shutil.rmtree(place / "my")
        (place / "my").mkdir()
        for file in ("my/train.csv", "my/dev.csv", "my/test.csv", "test.csv"):
            rows = (f"#Person1#: {a}는 책을 {n}일에 반납한다. #Person2#: 알겠습니다.,{a}는 책을 {n}일에 돌려준다." for n, a in enumerate(NAMES * 4, len(file)))
            (place / file).write_text("대화,요약\n" + "".join(f"{row}\n" for row in rows), "utf-8")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("KORLAB_RUNS", None)
    for line in PARTS[part]:
        words = line.replace("runs/coref/NAME", "runs/coref/one")
        done = subprocess.run(words, shell=True, cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def leaf(words: list[str]) -> tuple[Command, list[str]]:
    """The command that some words name, and what is left of them."""
    command = get_command(command_line())
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("line", sorted({line for lines in LINES.values() for line in lines if line.startswith("korlab ")}))
def test_every_option_of_a_command_is_one(line):
    command, words = leaf(papermill_style(shlex.split(line)[1:]))
    try:
        given = command.make_context(command.name, list(words), resilient_parsing=False).params
    except UsageError as error:
        pytest.fail(f"{line}: {error.format_message()}")
    for file in (word for word in words if word.startswith("params/")):
        assert [*ROOT.glob(file)], f"{line}: there is no {file}"
    assert given is not None


@pytest.mark.parametrize("line", sorted({line for lines in LINES.values() for line in lines if line.startswith("papermill ")}))
def test_every_parameter_of_a_notebook_is_one(line):
    words = shlex.split(line)
    assert (ROOT / words[1]).is_file()
    named = {}
    if words[3] == "-f":
        named = read_yaml(ROOT / words[4])
        del words[3:5]
    named |= dict(zip(words[4::3], words[5::3]))
    assert set(words[3::3]) <= {"-p"}
    if words[1] == "nbs/train.ipynb":
        studies.configure({name: int(value) if value.isdigit() else value for name, value in named.items()})
    else:
        cell = (ROOT / words[1]).read_text("utf-8")
        assert all(f'"{name}: ' in cell for name in named), named
