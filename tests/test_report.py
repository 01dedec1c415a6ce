"""Reports: what must never be in one, what must always be, real runs that fail, and faults while writing."""

import base64
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from korlab.core import files, tables
from korlab.core.settings import root
from korlab.report import clean, conceal, facts, render, site
from korlab.summarization import cards

SECRET = "s3cr3t<&>\"'tok en"
PIXEL = base64.b64encode(base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")).decode()


def error(text="boom"):
    return new_output("error", ename="ValueError", evalue=text, traceback=[f"\x1b[31mValueError\x1b[0m: {text}"])


@pytest.fixture
def rendered(tmp_path):
    def make(*cells, metadata=None, **options):
        file = tmp_path / "run.ipynb"
        file.write_text(json.dumps(new_notebook(cells=list(cells), metadata=metadata or {})), "utf-8")
        made = render.render(file, tmp_path / "out", root=root(), **options)
        return made.html.read_text("utf-8"), made.markdown.read_text("utf-8"), made
    return make


def everywhere(text):
    "A notebook with `text` in every place that reaches a report."
    rich = {"text/html": f"<b title='x'>{text}</b>", "text/markdown": text, "text/plain": repr(text)}
    return [
        new_markdown_cell(f"# {text}\n\n{text}"),
        new_code_cell(f"x = {text!r}", outputs=[
            new_output("stream", name="stdout", text=text[:4]), new_output("stream", name="stderr", text="noise"),
            new_output("stream", name="stdout", text=text[4:] + "\n\x1b[1m" + text + "\x1b[0m"),
            new_output("display_data", rich), new_output("display_data", {"text/plain": json.dumps(text)}),
            new_output("display_data", {"image/png": PIXEL}, metadata={"image/png": {"alt": text}})]),
        new_code_cell("fail()", outputs=[error(text)]),
    ]


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "MY_SECRET", "db_password"])
def test_secrets_never_reach_a_report(rendered, monkeypatch, name):
    monkeypatch.setenv(name, SECRET)
    page, text, made = rendered(*everywhere(SECRET), code=True)
    for content in (page, text):
        assert "***" in content
        for part in ("s3cr3t", "tok en"):
            assert part not in content
    assert len(made.images) == 1


def test_a_secret_in_dotenv_and_a_token_by_its_shape_are_masked(tmp_path):
    (tmp_path / ".env").write_text("# comment\nexport WANDB_API_KEY='abcdefgh123'\nMODE=kobart-mini\n")
    concealed = conceal.concealer(tmp_path, {})
    token = "hf_" + "a1B2" * 9
    assert concealed(f"abcdefgh123 kobart-mini {token} hf_short") == "*** kobart-mini *** hf_short"


def test_paths_of_the_machine_never_reach_a_report(rendered):
    lab, home = str(root()), str(Path.home())
    page, text, _ = rendered(*everywhere(f"{lab}/runs/a {home}/.cache/b '{lab}'"), code=True)
    for content in (page, text):
        assert lab not in content and not re.search(rf"{re.escape(home)}\b", content)
        assert "runs/a" in content and "~/.cache/b" in content


parts = st.lists(st.text("abcxyz.-_가나", min_size=1, max_size=6).filter(lambda p: p.strip(".")), min_size=2, max_size=4)


@given(parts, st.lists(st.text("abcxyz", min_size=1, max_size=6), max_size=3))
def test_any_lab_folder_is_replaced_and_only_as_a_whole(folder, inside):
    lab = "/" + "/".join(folder)
    concealed = conceal.concealer(lab, {"HOME": "/nowhere/at-all"})
    assert concealed(f'"{"/".join([lab, *inside])}"') == f'"{"/".join(inside) or "."}"'
    assert concealed(f"{lab}x/y z{lab}/y") == f"{lab}x/y z{lab}/y"


def test_the_page_needs_nothing_from_outside(rendered, tmp_path):
    (tmp_path / "그림 1.png").write_bytes(base64.b64decode(PIXEL))
    figure = new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure size 1x1>"})
    script = new_output("display_data", {"text/html": "<script src='https://x.y/z.js'></script><i>표</i>"})
    page, text, _ = rendered(new_markdown_cell("# 제목\n\n![로컬](그림%201.png) [링크](https://example.org)"),
                             new_code_cell("plot()", outputs=[figure, script]))
    loading = re.findall(r"<(?:script|link|img|iframe|source|object)\b[^>]*", page)
    assert loading and all('src="data:' in tag for tag in loading)
    assert not re.search(r"@import|url\(", page)
    assert page.count("data:image/png;base64,") == 2
    assert '<html lang="ko">' in page and 'href="https://example.org"' in page
    assert "![로컬](../%EA%B7%B8%EB%A6%BC%201.png)" in text


@pytest.mark.parametrize("source", [
    "![배지](https://img.example.org/a.svg)", "<img src='//a.b/c.png'>", "<link rel=stylesheet href=https://a.b/c.css>",
    "<div style='background:url(https://a.b/c.png)'>x</div>", "![없는 그림](missing.png)"])
def test_anything_a_page_would_load_is_an_error(rendered, source):
    with pytest.raises(clean.ReportError, match="run.ipynb would load .* relative path"):
        rendered(new_markdown_cell(source))


def test_hidden_cells_and_noise_are_gone(rendered):
    def tagged(*tags):
        return new_code_cell("NOISE = 1", metadata={"tags": list(tags)}, outputs=[new_output("stream", text="NOISE")])

    bar = "NOISE:  40%|####      | 4/10 [00:01<00:02, 3.1it/s]"
    page, text, _ = rendered(
        new_markdown_cell("# 제목"), tagged("parameters"), tagged("injected-parameters"), tagged("remove-cell", "x"),
        new_code_cell("#| hide\nNOISE"), new_code_cell("#|hide\nNOISE"), new_code_cell("#| default_exp NOISE"),
        new_code_cell("#| export\nkept = 1\n# 주석", outputs=[
            new_output("stream", name="stderr", text="NOISE"), new_output("stream", text=bar + "\r" + bar + "\n결과\n"),
            new_output("stream", text="NOISE 7it [00:01, 5.0it/s]\n"),
            new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "NOISE"}),
            new_output("display_data", {"text/html": "<progress value='3'></progress> NOISE"}),
            new_output("display_data", {"application/javascript": "NOISE"}),
            new_output("execute_result", {"text/plain": "<Figure size 640x480 NOISE>"})]),
        new_code_cell("NOISE", metadata={"tags": ["remove-input"]}, outputs=[new_output("stream", text="입력은 숨김")]),
        new_code_cell("x = 1", metadata={"tags": ["remove-output"]}, outputs=[new_output("stream", text="NOISE")]),
        code=True)
    for content in (page, text):
        assert "NOISE" not in content and "#|" not in content and "\x1b" not in content
        assert "결과" in content and "입력은 숨김" in content and "# 주석" in content
    assert page.count("<details") == 2 and page.count("<summary>code</summary>") == 2


def test_code_is_folded_in_the_page_and_left_out_of_the_markdown(rendered):
    page, text, _ = rendered(new_code_cell("answer = 42", outputs=[new_output("stream", text="값")]))
    assert "answer" in page and "answer" not in text and "값" in text


def test_objects_with_both_forms_show_html_in_the_page_and_markdown_in_the_text(rendered):
    example = cards.side_by_side([{"fname": "a", "dialogue": "#Person1#: 응", "reference": "가",
                                    "prediction": "#Person1#은 나", "marks": [(0, 9, "swap")]}])
    data = {"text/html": example._repr_html_(), "text/markdown": example._repr_markdown_(), "text/plain": "Examples()"}
    page, text, _ = rendered(new_code_cell("x", outputs=[new_output("execute_result", data)]))
    assert 'class="kl-example"' in page and "<mark" in page and "| 기준 |" not in page
    assert "| 모델 | <b>#Person1#</b><sup>화자 바뀜</sup>은 나 |" in text and "<article" not in text


def test_a_failed_run_says_so_at_the_top(rendered):
    failing = new_code_cell("#| hide\nfail()", execution_count=7, outputs=[error("<b>|파일")])
    page, text, _ = rendered(new_markdown_cell("# 제목"), failing)
    assert page.index('role="alert"') < page.index("<h1") and "실행이 실패했습니다: In [7]" in page
    assert "&lt;b&gt;|파일" in page and "<b>|파일" not in page
    assert text.startswith("> [!CAUTION]\n> **실행이 실패했습니다: In [7]**")
    assert "```text\nValueError: <b>|파일\n```" in text
    page, _, _ = rendered(new_code_cell("1/0", execution_count=1, outputs=[error()]), lang="en")
    assert '<html lang="en">' in page and "This run failed: In [1]" in page


def test_an_announced_error_is_no_failure(rendered):
    announced = new_code_cell("1/0", metadata={"tags": ["raises-exception"]}, outputs=[error("보여 줄 오류")])
    page, text, _ = rendered(announced)
    assert 'role="alert"' not in page and "ValueError: 보여 줄 오류" in page and "ValueError: 보여 줄 오류" in text


def test_empty_boxes_stop_a_report_but_not_that_of_a_failed_run(rendered):
    warning = "UserWarning: Glyph 54620 (\\N{HANGUL SYLLABLE HAN}) missing from font(s) X."
    tofu = new_output("stream", name="stderr", text=warning)
    with pytest.raises(clean.ReportError, match="run.ipynb, cell 1: a figure shows empty boxes.*use_house_style"):
        rendered(new_code_cell("plot()", outputs=[tofu]))
    page, _, _ = rendered(new_code_cell("plot()", outputs=[tofu]), new_code_cell("x", outputs=[error()]))
    assert 'role="alert"' in page


RUN = """
import os, sys
from korlab.core import charts
from tqdm.auto import tqdm
for _ in tqdm(range(3), file=sys.stdout): pass
print("token", os.environ["HF_TOKEN"], os.getcwd())
history = [dict(step=1, loss=2.0, eval_rouge1=30.0), dict(step=2, loss=1.0, eval_rouge1=50.0)]
figure = charts.learning_curves(history, metrics={"eval_rouge1": "ROUGE-1"})
figure
"""


def papermill(folder, *cells):
    "Execute cells for real; returns the output notebook and the exit status."
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    (folder / "in.ipynb").write_text(json.dumps(new_notebook(cells=list(cells), metadata=kernel)), "utf-8")
    environ = os.environ | {"HF_TOKEN": "hf_real_run_secret", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", "-p", "model", "kobart"]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, check=False)
    return folder / "out.ipynb", done.returncode


def test_a_real_run_is_rendered_whole_and_its_failure_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_real_run_secret")
    parameters = new_code_cell("model = 'x'", metadata={"tags": ["parameters"]})
    file, status = papermill(tmp_path, new_markdown_cell("# 실험"), parameters, new_code_cell(RUN),
                             new_code_cell("raise OSError(f'no {model} for ' + os.environ['HF_TOKEN'])"),
                             new_code_cell("print('never')"))
    made = render.render(file, tmp_path / "out", "실험", root=root())
    page, text = made.html.read_text("utf-8"), made.markdown.read_text("utf-8")
    assert status == 1 and made.html.name == "실험.html"
    assert len(made.images) == 1 and page.count("data:image/png") == 1 and 'alt="학습 곡선"' in page
    assert "![학습 곡선](%EC%8B%A4%ED%97%98_files/figure-" in text
    assert "OSError: no kobart for ***" in page and "In [4]" in page
    assert "An Exception was encountered" not in page + text
    assert "hf_real_run_secret" not in page + text and "it/s" not in page + text and "token ***" in text


def test_a_killed_kernel_cannot_pass_for_a_finished_run(tmp_path):
    """papermill marks the killed cell as completed, and whether its number arrived is chance; what follows it tells."""
    kill = new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    file, status = papermill(tmp_path, kill, new_code_cell("run.finish()"))
    made = render.render(file, tmp_path, "killed", root=root())
    assert status != 0
    assert "실행이 끝나지 않았습니다" in made.html.read_text("utf-8")
    assert "실행이 끝나지 않았습니다" in made.markdown.read_text("utf-8")


def test_a_crash_while_writing_leaves_whole_files(rendered, monkeypatch, tmp_path):
    picture = new_code_cell("p", outputs=[new_output("display_data", {"image/png": PIXEL})])
    _, _, made = rendered(new_markdown_cell("# 처음"), picture)
    old = {path: path.read_bytes() for path in (made.html, made.markdown, *made.images)}
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk full")
        return replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises(OSError, match="disk full"):
        rendered(new_markdown_cell("# 다음"), picture)
    now = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert now == old  # nothing half-written, nothing temporary left


def test_an_error_while_rendering_writes_nothing(rendered, monkeypatch, tmp_path):
    monkeypatch.setattr(render, "to_markdown", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rendered(new_markdown_cell("# 제목"))
    assert not (tmp_path / "out").exists()


def test_pictures_of_an_earlier_version_go(rendered):
    def cell(source):
        return new_code_cell(source, outputs=[new_output("display_data", {"image/png": PIXEL})])

    _, _, first = rendered(cell("a"), cell("b"))
    _, _, second = rendered(cell("a"))
    assert len(first.images) == 2 and [path.exists() for path in first.images] == [True, False]
    assert second.images == first.images[:1]


def test_rendering_again_gives_the_same_bytes(rendered):
    run = {"papermill": {"end_time": "2026-01-02T03:04:05+00:00", "duration": 61.4}}
    cells = new_markdown_cell("# 제목"), new_code_cell("x", execution_count=1, outputs=[new_output("stream", text="값")])
    first, second = rendered(*cells, metadata=run), rendered(*cells, metadata=run)
    assert first[:2] == second[:2] and "2026-01-02 · 실행 61초" in first[0] and "2026-01-02 · 실행 61초" in first[1]


@pytest.mark.parametrize(("content", "message"), [(None, "there is no notebook"), ("", "not a readable notebook"),
                                                 ('{"a": 1}', "not a readable notebook")])
def test_a_file_that_is_no_notebook_is_named(tmp_path, content, message):
    file = tmp_path / "run.ipynb"
    if content is not None:
        file.write_text(content)
    with pytest.raises(clean.ReportError, match=rf"run.ipynb.*{message}|{message}.*run.ipynb"):
        render.render(file, tmp_path)


CELL = st.text(max_size=12) | st.integers() | st.floats() | st.none()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=4))
def test_no_content_breaks_a_table(rows):
    "Checked with another Markdown implementation than the one that renders reports."
    tokens = MarkdownIt("commonmark").enable("table").parse(str(tables.pipe_table(rows, ["가", "나"])))
    assert [t.type for t in tokens if t.level == 0] == ["table_open", "table_close"]
    assert sum(t.type == "td_open" for t in tokens) == 2 * len(rows)
    assert sum(t.type == "tr_open" for t in tokens) == 1 + len(rows)


@given(st.text("ab ", min_size=1, max_size=30), st.data())
def test_joining_marks_changes_no_letter_and_keeps_what_was_marked(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8, unique=True)))
    marks = [(a, b, data.draw(st.sampled_from(["wrong", "swap"]))) for a, b in itertools.pairwise(cuts)][::2]
    pieces = cards._segments(text, marks, "x")
    assert "".join(piece for piece, _ in pieces) == text
    kinds = "".join({"": "-", "wrong": "w", "swap": "s"}[kind] * len(piece) for piece, kind in pieces)
    for start, end, kind in marks:
        assert kinds[start:end] == kind[0] * (end - start)
    marked = {i for start, end, _ in marks for i in range(start, end)}
    assert all(i in marked or not text[i].strip() for i, kind in enumerate(kinds) if kind != "-")


def test_how_to_repeat_is_a_command_a_shell_reads_back():
    class Run:
        config, folder = SimpleNamespace(run=SimpleNamespace(model="kobart")), Path("/x/my run")
        given = {"prefix": "요약: it's", "epochs": 2.0}  # noqa: RUF012

        def read(self, name):
            git = {"commit": "abcdef1234", "changed": True}
            return {"python": "3.11.7", "versions": {"torch": "2.13.0"}, "git": git, "seed": 7}

    text = str(facts.how_to_repeat(Run()))
    words = shlex.split(text.split("\n")[1])
    assert words == ["papermill", "nbs/train.ipynb", "out.ipynb", "-p", "model", "kobart", "-p", "prefix", "요약: it's",
                     "-p", "epochs", "2.0"]
    assert "커밋 `abcdef1` (고친 파일 있음)" in text
    assert "씨앗값 7" in text


def test_columns_of_numbers_align_right():
    rows = [["가", 1.25, "84.1–88.0", "3 %", None], ["나", float("nan"), "–", "", None]]
    table = str(tables.pipe_table(rows, list("abcde")))
    assert table.split("\n")[1] == "| :-- | --: | --: | --: | :-- |"


LITERAL = st.text(st.sampled_from("가나 #1*_~`[]<>|$&\\.-+=:!"), max_size=20).map(str.strip)


@settings(max_examples=200, deadline=None)
@given(LITERAL)
def test_escaped_text_reads_as_it_was(text):
    "Any Markdown implementation shows the characters that went in, as one plain paragraph."
    shown = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse("가 " + tables.escape(text))
    children = shown[1].children or []
    assert len(shown) == 3 and {child.type for child in children} <= {"text", "text_special"}
    assert "".join(child.content for child in children) == ("가 " + text).strip()


def test_the_readme_follows_its_notebook(tmp_path):
    index, readme = tmp_path / "nbs" / "index.ipynb", tmp_path / "README.md"
    index.parent.mkdir()
    (index.parent / "train.ipynb").touch()
    cells = [new_markdown_cell("# korlab\n\n[train](train.ipynb)"), new_code_cell("#| hide\nimport secret"),
             new_code_cell("#| eval: true\nprint(1)\n\n\nprint(2)", outputs=[
                 new_output("stream", text="1\n2\n"),
                 new_output("execute_result", {"text/html": "<b>3</b>", "text/plain": "3"})]),
             new_code_cell("!pip install -e .")]
    index.write_text(json.dumps(new_notebook(cells=cells)), "utf-8")
    site.render_readme(index, readme)
    assert readme.read_text("utf-8").split("\n", 2)[2] == (
        "# korlab\n\n[train](nbs/train.ipynb)\n\n```python\nprint(1)\n\n\nprint(2)\n```\n\n"
        "```text\n1\n2\n```\n\n```text\n3\n```\n\n```bash\npip install -e .\n```\n")
    assert site.readme_is_fresh(index, readme)
    readme.write_text(readme.read_text("utf-8") + "edited", "utf-8")
    assert not site.readme_is_fresh(index, readme)


def test_importing_is_light():
    heavy = ["nbconvert", "nbformat", "bs4", "matplotlib", "kiwipiepy", "torch"]
    code = ("import sys, korlab.report.site, korlab.report.facts, korlab.summarization.cards\n"
            f"print([name for name in {heavy} if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_notebook_without_a_run_still_names_model_and_size(rendered):
    shown = new_output("display_data", {"text/markdown": r"### kobart · mini · my\_rows" + "\n\n`runs/x`"})
    heading = new_code_cell("facts.heading(run.title, run.folder)", outputs=[shown], metadata={"tags": ["remove-cell", "title"]})
    made = rendered(new_markdown_cell("# 훈련\n\n> 설명"), heading)[2]
    assert made.markdown.read_text("utf-8").startswith("# kobart · mini · my\\_rows\n")


# ---- long texts and lines -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("printed", ["1%|" * 10_000, "가" * 200_000, "1" * 100_000, "\r" * 100_000, "1%|x| " * 10_000 + "/" * 30_000, " 1%|x|" + " " * 80_000])
def test_what_was_printed_is_cleaned_in_time_by_its_length(printed):
    begun = time.perf_counter()
    clean._plain(printed)
    assert time.perf_counter() - begun < 2


@pytest.mark.parametrize("bar", [
    "  0%|          | 0/10 [00:00<?, ?it/s]", "100%|██████████| 10/10 [00:01<00:00,  9.90it/s]", "map:  50%|█████     | 1.2k/2.4k [00:01<00:01, 900 rows/s]",
    "12it [00:03,  4.00it/s]", "Epoch 1:  25%|██▌       | 1.00M/4.00M [00:00<00:02, 1.1MB/s]", "읽기 7it [00:00, 70.1it/s, loss=0.3]"])
def test_progress_bars_go_and_what_stands_around_stays(bar):
    assert clean._plain(f"앞\n{bar}\n뒤\n{bar}") == "앞\n뒤\n"
    assert clean._plain(f"{bar}\r{bar}\n") == ""


def test_a_page_keeps_its_lines_whatever_a_text_holds():
    """Only LF, CRLF and CR end a line of Markdown: they become `<br>`, and nothing else does."""
    text = "가\u2028나\x0b다\r\n라\r마\n바"
    shown = "가\u2028나\x0b다<br>라<br>마<br>바"
    assert tables._table_text(text, 1) == shown
    row = {"fname": "a", "dialogue": "#Person1#: 가\u2028나\n#Person2#: 다", "reference": text, "prediction": text}
    page = cards.side_by_side([row])._repr_markdown_()
    assert f"| 기준 | {shown} |\n" in page and "> **#Person1#** 가\u2028나\\\n> **#Person2#** 다" in page
    assert cards.side_by_side([row])._repr_html_().count('<p class="kl-turn">') == 2
    code = new_code_cell("#| export\nx = '가\u2028나'\n", outputs=[new_output("execute_result", {"text/plain": "1"}, execution_count=1)])
    assert clean.cleaned(new_notebook(cells=[code])).cells[0].source == "x = '가\u2028나'"


def test_markdown_is_escaped_in_time_by_its_length():
    begun = time.perf_counter()
    tables.escape("\n" * 100_000 + "1. 가")
    assert time.perf_counter() - begun < 2
