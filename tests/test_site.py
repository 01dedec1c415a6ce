"""The site of this lab, built once: no link is dead, nothing is loaded, nothing runs but its script, and everything is in it."""

import base64
import hashlib
import json
import os
import re
import urllib.parse
from functools import cache
from html import unescape
from pathlib import Path

import pytest
from conftest import ROOT
from pygments.lexers import TextLexer

from korlab.report import documents, website
from korlab.report.frame import LISTS


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # colours take as long as all the rest
        patch.setattr(documents, "_lexer", lambda language: TextLexer())
        return website.make_site(tmp_path_factory.mktemp("site"), ROOT)


@pytest.fixture(scope="module")
def folder(site):
    return Path(os.path.commonpath(site.pages))


@cache
def text(path):
    return path.read_text("utf-8")


@cache
def ids(path):
    return set(map(unescape, re.findall(r' id="([^"]*)"', text(path))))


def test_every_link_leads_to_a_page_and_to_a_place_in_it(site, folder):
    assert site.dead == ()
    number = 0
    for path in site.pages:
        for link in map(unescape, re.findall(r'<a [^>]*?href="([^"]*)"', text(path))):
            if re.match(r"https?:|mailto:", link):
                continue
            number += 1
            to, _, anchor = urllib.parse.unquote(link).partition("#")
            target = path if not to else (path.parent / to).resolve()
            assert not to.startswith("/") and target.is_file() and target.is_relative_to(folder), f"{path.relative_to(folder)} links to {link}"
            assert not anchor or anchor in ids(target), f"{path.relative_to(folder)} links to {link}"
    assert number > 5000


def test_everything_that_somebody_wrote_has_a_page(site, folder):
    pages = {path.relative_to(folder).as_posix() for path in site.pages}
    assert {f"{name}.html" for name in (*LISTS, "index", "README", "README.ko", "CONTRIBUTING")} <= pages
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("reports/*/*.html")} <= pages
    for path in ROOT.glob("nbs/*/*.ipynb"):
        name = path.relative_to(ROOT).with_suffix(".html").as_posix()
        assert name in pages or f"reports/{name.removeprefix('nbs/')}" in pages, name
    assert sum(name.startswith("api/") for name in pages) == len([p for p in (ROOT / "korlab").rglob("*.py") if not p.name.startswith("_")])


def test_no_page_loads_anything_and_only_the_script_of_the_site_runs(site):
    """The policy of each page names its one style and its one script; what a notebook brought along has neither."""
    for path in site.pages:
        page = text(path)
        sources = re.findall(r'<\w[^<>]*?\s(?:src|srcset|poster|background)="([^"]*)"', page)
        assert all(one.startswith("data:image/") for one in sources) and not re.search(r"<(?:link|iframe|object|embed|base|form)\b", page), path
        [style], scripts = re.findall(r"<style>(.*?)</style>", page, re.DOTALL), re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
        assert not re.search(r"url\(|@import", style) and len(scripts) == 1, path
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
        for name, piece in (("style-src-elem", style), ("script-src", scripts[0])):
            assert f"{name} 'sha256-{base64.b64encode(hashlib.sha256(piece.encode()).digest()).decode()}'" in policy, path
        body = page.partition("<main>")[2].partition("</main>")[0]
        assert not re.search(r"<script|<[^>]*\s(?:on\w+=|href=\"\s*(?:javascript|data):)", body), path


def test_the_language_of_a_page_is_that_of_its_prose(folder):
    said = {name: re.search(r'<html lang="(\w+)"', text(folder / name))[1] for name in (
        "index.html", "README.html", "README.ko.html", "reports/bench/rouge.html", "reports/guides/04_entity_recall.html", "nbs/core/04_text.html",
        "api/core.text.html")}
    assert list(said.values()) == ["ko", "en", "ko", "en", "ko", "en", "en"]


def test_a_part_of_a_korean_word_is_found(folder):
    found = json.loads(re.search(r'<script type="application/json" id="index">(.*?)</script>', text(folder / "search.html"))[1])
    hits = [found["pages"][page][0] for page, _, title, words in found["sections"] if "체크포인" in title + words]
    assert "reports/guides/02_training_system.html" in hits and all((folder / page).is_file() for page, _ in found["pages"])


def test_the_run_table_has_every_run_of_the_committed_reports(folder):
    page = text(folder / "runs.html")
    for path in ROOT.glob("reports/*/*.json"):
        record = json.loads(path.read_text("utf-8"))
        if "scores" in record or "runs" in record:
            assert f'href="{path.relative_to(ROOT).with_suffix(".html").as_posix()}"' in page
