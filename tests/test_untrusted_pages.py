"""What somebody else wrote, in a notebook or in data, shows as text in a page and does nothing there."""

import base64
import hashlib
import json
import re
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from korlab.core import accounts, tables
from korlab.core.settings import root
from korlab.coref import fill
from korlab.report import clean, facts, html, pages, render, sanitizing
from korlab.sparse import search
from korlab.summarization import cards

DOT = "data:image/png;base64,AA"
ATTACKS = [
    "<script>alert(1)</script>", "<SCRIPT SRC=data:,alert(1)></SCRIPT>", "<svg onload=alert(1)>", "<svg/onload=alert(1)//",
    f'<img src="{DOT}" onerror=alert(1)>', f'<img src="{DOT}"\nonerror\n=\nalert(1)\n>', "<b onmouseover='alert(1)'>굵게</b>",
    "<a href='javascript:alert(1)'>가</a>", "<a href=' java\tscript:alert(1)'>가</a>", "<a href='&#106;avascript:alert(1)'>가</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>가</a>", "<a href='vbscript:x'>가</a>", "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<base href='//evil.example/'>", "<meta http-equiv=refresh content='0;url=//evil.example'>", "<form action='//evil.example'><button>보내기</button></form>",
    "<button formaction=javascript:alert(1)>누르기</button>", "<svg><a xlink:href='javascript:alert(1)'><text>가</text></a></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x></svg>", "<math><mtext><table><mglyph><style><img src onerror=alert(1)></style></mglyph></table></mtext></math>",
    "<style>b { background: image-set('//evil.example/a.png') }</style>", "<p style=\"background: u\\72l(//evil.example)\">가</p>",
    "<details open ontoggle=alert(1)><summary>가</summary></details>", "<video autoplay onplay=alert(1)></video>", "<input autofocus onfocus=alert(1)>",
    "<template><script>alert(1)</script></template>", "<noscript><p title=\"</noscript><img src=x onerror=alert(1)>\"></noscript>",
    "</title><script>alert(1)</script>", "</code></pre><script>alert(1)</script>", "<!--><svg onload=alert(1)>-->",
    "```\n<svg onload=alert(1)>\n```", "[가](javascript:alert(1))", "[가][1]\n\n[1]: javascript:alert(1)", "<javascript:alert(1)>", "`` ` <svg onload=alert(1)>",
]
LOADING = [
    "<img src=x onerror=alert(1)>", "<img srcset='//evil.example/a.png'>", "<link rel=stylesheet href='//evil.example/a.css'>", "<object data='//evil.example'></object>",
    "<embed src='//evil.example'>", "<svg><use xlink:href='//evil.example/a.svg#b'/></svg>", "<style>@import '//evil.example/a.css';</style>",
    "<body background='//evil.example/a.png'>", "<iframe src='javascript:alert(1)'></iframe>", "<audio src='//evil.example'>",
]
RUNNING = {"script", "svg", "math", "iframe", "object", "embed", "base", "link", "form", "button", "input", "video", "audio", "template", "noscript", "use"}


def harmless(page: str, whole: bool = True) -> BeautifulSoup:
    """Parse a page, and look at every tag and attribute there is."""
    soup = BeautifulSoup(page, "html.parser")
    for tag in soup.find_all(True):
        assert tag.name not in RUNNING, tag
        assert tag.name != "meta" or tag.get("http-equiv", "") in ("", "Content-Security-Policy"), tag
        for name, value in tag.attrs.items():
            said = re.sub(r"[\x00-\x20]", "", unescape(" ".join(value) if isinstance(value, list) else value)).casefold()
            assert not name.startswith("on") and name not in ("srcdoc", "action", "formaction", "srcset", "xlink:href", "background"), tag
            assert name not in ("href", "src") or re.match(r"https?://|mailto:|#|data:image/|[^:/][^:]*$|$", said), tag
            assert name != "style" or not re.search(r"url|image-set|\(|\\", said), tag
    sheets = [tag.get_text() for tag in soup.find_all("style")]
    assert len(sheets) == whole and not re.search(r"url\(|@import|image-set|evil", "".join(sheets))
    return soup


def shown(markdown: str) -> BeautifulSoup:
    """Markdown as a program shows it that lets every tag and every link through."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    parser.validateLink = lambda url: True
    return harmless(parser.render(markdown), whole=False)


def rendered(folder: Path, *cells, metadata=None, **options) -> tuple[BeautifulSoup, BeautifulSoup]:
    file = folder / "run.ipynb"
    file.write_text(json.dumps(new_notebook(cells=list(cells), metadata=metadata or {})), "utf-8")
    made = render.render(file, folder / "out", root=root(), **options)
    for drawing in made.images:
        for tag in BeautifulSoup(drawing.read_text("utf-8"), "html.parser").find_all(True):
            assert tag.name in ("svg", "rect", "text", "title") and set(tag.attrs) <= {"xmlns", "style"} and "(" not in tag.get("style", ""), tag
    return harmless(made.html.read_text("utf-8")), shown(made.markdown.read_text("utf-8"))


@pytest.mark.parametrize("attack", [*ATTACKS, *LOADING])
def test_nothing_in_the_body_of_a_page_runs_or_loads(attack):
    page = html.page(f"<p>앞</p>{attack}<p>뒤</p>", attack, attack)
    soup = harmless(page)
    assert soup.title.get_text() == soup.footer.get_text() == attack and "앞" in soup.main.get_text()
    shown(sanitizing.safe_markdown(f"앞 {attack} 뒤\n\n{attack}\n\n| {attack} |\n"))


def test_the_policy_of_a_page_names_its_one_style():
    soup = harmless(html.page("<style>i { color: red }</style><i>가</i>", "제목", "끝"))
    policy, digest = soup.find("meta", attrs={"http-equiv": True})["content"], hashlib.sha256(soup.style.get_text().encode()).digest()
    assert f"style-src-elem 'sha256-{base64.b64encode(digest).decode()}'" in policy and "default-src 'none'; img-src data:;" in policy
    assert "script-src" not in policy and soup.style.get_text().endswith("i { color: red }\n")


def test_a_notebook_of_somebody_else_does_nothing(tmp_path):
    """Every attack in every place that reaches a page."""
    def output(attack):
        drawing = f'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)">{attack}<a xlink:href="javascript:x"><rect/></a></svg>'
        return [new_output("display_data", data, metadata={kind: {"alt": attack} for kind in data}) for data in (
            {"text/html": attack}, {"text/markdown": attack}, {"image/svg+xml": drawing}, {"text/plain": attack},
        )] + [new_output("stream", text=attack), new_output("error", ename=attack, evalue=attack, traceback=[attack])]

    cells = [new_markdown_cell(f"# {ATTACKS[0]}\n\n> {ATTACKS[2]}")]
    for attack in ATTACKS:
        cells += [new_markdown_cell(f"## {attack}\n\n{attack}"), new_code_cell(attack, outputs=output(attack), metadata={"tags": ["raises-exception"]})]
    head = {"papermill": {"end_time": "<script>1", "duration": "<svg onload=x>", "input_path": "/etc/passwd"}, "title": ATTACKS[0]}
    page, text = rendered(tmp_path, *cells, metadata=head, code=True, title=ATTACKS[2], lead=ATTACKS[4], note=ATTACKS[30])
    assert page.h1.get_text() == text.h1.get_text() == page.title.get_text() == ATTACKS[2]
    for attack in ATTACKS:
        for form in (page, text):
            assert sum(attack.strip() in block.get_text() for block in form.find_all("pre")) >= 2, attack
    failed = new_code_cell("x", outputs=[new_output("error", ename="E", evalue="<svg onload=x>", traceback=[ATTACKS[30]])])
    page, _ = rendered(tmp_path, failed)
    assert "E: <svg onload=x>" in page.find(role="alert").get_text()
    failed["execution_count"] = "<script>"
    (tmp_path / "bad.ipynb").write_text(json.dumps({"cells": [failed], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    with pytest.raises(clean.ReportError, match=r"bad.ipynb is not a readable notebook \(NotebookValidationError\): run it again"):
        render.render(tmp_path / "bad.ipynb", tmp_path, root=root())


@pytest.mark.parametrize("picture", ["/etc/passwd", "../secret.png", "link.png", "secret.txt"])
def test_a_picture_comes_from_the_folder_of_the_run_only(tmp_path, picture):
    (tmp_path / "run").mkdir()
    for file in (tmp_path / "secret.png", tmp_path / "run" / "secret.txt", tmp_path / "run" / "own.png"):
        file.write_bytes(b"SECRET")
    (tmp_path / "run" / "link.png").symlink_to(tmp_path / "secret.png")
    head = {"papermill": {"input_path": str(tmp_path / "secret.png")}}
    page, _ = rendered(tmp_path / "run", new_markdown_cell("![가](own.png)"), metadata=head)
    assert page.img["src"] == "data:image/png;base64,U0VDUkVU"
    with pytest.raises(clean.ReportError, match=f"run.ipynb would load {picture}"):
        rendered(tmp_path / "run", new_markdown_cell(f"![가]({picture})"), metadata=head)


def displays(name: str):
    """Everything that a run shows of names and texts that are not its own."""
    name = " ".join(name.split())
    report = accounts.DataReport(source=name, notes=[name])
    told = {"split": name, "files": [{"name": name, "notes": [name], "encoding": name, "bytes": 1, "sha256": "ab" * 32, "rows_read": 1,
                                      "rows_kept": 0, "left_out": {name: 1}}], "notes": [name], "removed": {
                name: {"times": 1, "rows": 1, "first": name, "near": name}},
            "problems": [{"file": name, "row": 1, "line": 1, "kind": name, "detail": name}]}
    place = {"python": "3.11", "versions": {}, "git": {}, "seed": 7}
    record = {"data": {"notes": [name], "sources": [told]}, "environment": place}
    run = SimpleNamespace(study=SimpleNamespace(name="coref"), given={"prefix": name}, read=record.get, config=SimpleNamespace(run=SimpleNamespace(model=name)),
                          status={"notes": [{"text": name}]})
    yield facts.heading(name, f"runs/{name}")
    yield facts.how_to_repeat(run)
    yield from (item.item if isinstance(item, pages.Quoted) else item for item in pages.sources(run))
    yield pages.notes(run)
    yield report
    yield tables.facts({name: name})
    yield tables.pipe_table([{name: name}])
    yield cards.side_by_side([{"fname": name, "note": name, "dialogue": f"{name}: {name}", "reference": name, "prediction": name, "marks": [(0, 3, "swap")]}])
    yield search.Hits((search.Explained(name, 1.0, name, ((name, 0.6, True), (name, 0.4, False)), ((name, 0.6, name),), 0),))
    words = (fill.Word(0, len(name), 0.5),)
    yield fill.Look(name, (0, len(name)), name, ((0, 1),), words, 0.5, fill.Choice(1, None, 4, name), 9)


def test_names_and_texts_of_data_show_as_they_are(tmp_path):
    attacks = ATTACKS[:26]
    items = [item for attack in attacks for item in displays(attack)]
    assert len(items) == 15 * len(attacks)
    forms = [(kind, "\n\n".join(getattr(item, name)() for item in items if hasattr(item, name)))
             for kind, name in (("text/markdown", "_repr_markdown_"), ("text/html", "_repr_html_"))]
    page, text = rendered(tmp_path, *(new_code_cell("", outputs=[new_output("display_data", dict([one]))]) for one in forms))
    for form in (page, text):
        joined = "".join(form.get_text().split())
        for attack in attacks:
            assert joined.count("".join(attack.split())) >= 20, attack
    assert page.get_text().count(ATTACKS[2]) > 30
    for style in (".kl-example", ".kl-hit", ".kl-look"):
        assert style in page.style.get_text()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["<svg onload=x>", "<b title='`'>", "`", "``", "```", "~~~", "\n", "\n\n", "    ", "> ", "- ", "|", "<div>", "<script>", "</script>",
                                 "](javascript:x)", "[", "가", "\\", "<!--", "-->", "<a href='javascript:x'", ">", "[1]: javascript:x", "&lt;"]), max_size=14).map("".join))
def test_no_arrangement_of_code_and_tags_lets_one_through(text):
    shown(sanitizing.safe_markdown(text))
