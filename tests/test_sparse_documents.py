"""A person's folder of mixed documents, from files to hits: what is read, how it is cut, where it is found again, and how well."""

import io
import json
import re
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.core.accounts import DataError
from korlab.sparse import documents, library, passages, search
from korlab.sparse.documents import Document, Heading, read_folder
from korlab.sparse.encoders import word_encoder
from korlab.sparse.index import load_index, save_index

FAQ = """번호,질문,답변
1,비밀번호를 잊었어요,로그인 화면에서 메일 주소를 적으면 새 비밀번호를 정하는 링크를 보내 드립니다.
2,영수증은 어디서 받나요,결제 내역에서 내려받을 수 있습니다.
"""
REFUND = "# 환불 안내\n\n## 기간\n\n환불은 물건을 받은 날부터 14일까지 됩니다.\n\n## 예외\n\n주문 제작한 물건과 음식은 환불되지 않습니다.\n"
SHIPPING = """<html><head><meta charset="euc-kr"><title>배송 안내</title><style>.환불 {color: red}</style><script>var 환불 = "언제까지";</script>
</head><body><nav><a>환불</a> <a>기간</a></nav><h1>배송</h1><p>오후 두 시 전에 주문하면 그날 보냅니다. 제주도는 <b>하루</b>가 더
걸립니다.</p><footer>환불 문의 1588</footer></body></html>"""


def korean_pdf(*pages: str) -> bytes:
    """A PDF by hand: an Identity-H font whose codes only its ToUnicode table explains, as word processors write Korean."""
    letters = {letter: f"{number:04X}" for number, letter in enumerate(sorted(set("".join(pages))), 1)}
    table = "\n".join(f"<{code}> <{letter.encode('utf-16-be').hex()}>" for letter, code in letters.items())
    cmap = ("/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /K def /CMapType 2 def\n1 begincodespacerange\n"
            f"<0000> <FFFF>\nendcodespacerange\n{len(letters)} beginbfchar\n{table}\nendbfchar\nendcmap end end")
    kids = " ".join(f"{6 + 2 * i} 0 R" for i in range(len(pages)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
               "<< /Type /Font /Subtype /Type0 /BaseFont /K /Encoding /Identity-H /DescendantFonts [4 0 R] /ToUnicode 5 0 R >>",
               "<< /Type /Font /Subtype /CIDFontType2 /BaseFont /K /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> "
               "/DW 1000 /FontDescriptor << /Type /FontDescriptor /FontName /K /Flags 4 /Ascent 800 /Descent -200 >> >>",
               f"<< /Length {len(cmap)} >>\nstream\n{cmap}\nendstream"]
    for i, text in enumerate(pages):
        drawn = f"BT /F 12 Tf 72 720 Td <{''.join(letters[letter] for letter in text)}> Tj ET" if text else ""
        objects += [f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F 3 0 R >> >> /Contents {7 + 2 * i} 0 R >>",
                    f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream"]
    made, places = "%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(made))
        made += f"{number} 0 obj\n{one}\nendobj\n"
    rows = "".join(f"{place:010} 00000 n \n" for place in places)
    return (f"{made}xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{rows}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\n"
            f"startxref\n{len(made)}\n%%EOF\n").encode()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Mixed documents, and runs of their own."""
    pytest.importorskip("pypdf")
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "my"
    (home / "guides" / "old").mkdir(parents=True)
    (home / "faq.csv").write_bytes(FAQ.replace("\n", "\r\n").encode("cp949"))
    (home / "guides" / "refund.md").write_text(REFUND, "utf-8")
    (home / "guides" / "old" / "shipping.html").write_bytes(SHIPPING.encode("cp949"))
    (home / "manual.pdf").write_bytes(korean_pdf("설치 안내서", "배터리는 뒷면의 덮개를 열고 갈아 끼웁니다"))
    (home / "notice.docx").write_bytes(word(said("휴관 안내", style="제목1") + said("설날에는 문을 닫습니다.")))
    (home / "scan.pdf").write_bytes(korean_pdf("", ""))
    (home / "log.txt").write_text("".join(f"{n}번째 줄에는 오늘 한 일을 적어 두었다. 날씨는 맑았다.\n\n" for n in range(300)) + "보일러 압력은 1.5바로 맞춘다.\n", "utf-8")
    (home / "empty.txt").write_text("")
    (home / "photo.png").write_bytes(b"\x89PNG")
    (home / ".DS_Store").write_bytes(b"x")
    (home / "._faq.csv").write_bytes(b"x")
    return home


def korlab(*words: object, code: int = 0):
    """What `korlab sparse …` says on standard output and standard error."""
    done = CliRunner().invoke(command_line(), ["sparse", *map(str, words)], env={"COLUMNS": "120"})
    assert done.exit_code == code and (done.exception is None or isinstance(done.exception, SystemExit)), done.output + repr(done.exception)
    return done.stdout, done.stderr


# ---- the story -------------------------------------------------------------------------------------------------------


def test_from_a_folder_to_hits_and_a_table_in_three_commands(folder):
    said, told = korlab("index", "my/")
    assert "passages by BM25: " in said and said.rstrip().endswith("indexes/my")
    assert "6 files read (csv 1, txt 1, pdf 1, docx 1, md 1, html 1): 7 documents (2 rows of tables)" in told, told
    assert "2 hidden or temporary ones passed over" in told and "3 files left out" in told
    assert "scan.pdf has no text in its 2 pages, as a scan has none: let an OCR read it" in told
    assert "empty.txt is empty (0 bytes)" in told and "photo.png is no document" in told
    assert "there is no trained encoder, so the index has BM25 alone" in told
    for query, place in {
        "환불은 언제까지 되나요": "guides/refund.md:1-5 (환불 안내)", "음식도 환불되나요?": "guides/refund.md:7-9 (환불 안내 > 예외)",
        "비밀번호가 기억나지 않아요": "faq.csv, row 1", "제주도는 며칠 걸리나요": "guides/old/shipping.html (배송 안내)",
        "배터리를 어떻게 갈지": "manual.pdf, pp. 1-2", "설날에 문을 여나요": "notice.docx (휴관 안내)", "보일러 압력": "log.txt:",
    }.items():
        said, told = korlab("search", query, "-k", 1)
        assert told.startswith("searching 7 documents (") and ", by bm25" in told and "by bm25" in said.splitlines()[0]
        assert place in said.splitlines()[1], said
    rows = json.loads(korlab("search", "보일러 압력", "-k", 2, "--json")[0])
    assert rows[0]["text"].endswith("보일러 압력은 1.5바로 맞춘다.") and rows[0]["where"].endswith("-601") and rows[0]["engine"] == "bm25"

    Path("questions.csv").write_text("question,document\n환불은 언제까지 되나요,refund.md\n비밀번호가 기억나지 않아요,1\n제주도는 며칠 걸리나요,shipping\n"
                                     "배터리를 어떻게 갈지,manual.pdf\n없는 것,none.md\n영수증,faq.csv\n", "utf-8")
    said, told = korlab("measure", "questions.csv")
    assert "4 questions, 7 documents" in said and "bm25" in said and "│ 4 │ 100.0 [100.0, 100.0]" in said
    assert json.loads(korlab("measure", "questions.csv", "--json")[0])[0]["n"] == 4
    assert "2 of 6 rows are left out" in told and "'none.md' is not in the index" in told and "'faq.csv' is a table of 2 rows" in told
    assert "4 questions tell little" in told


def test_the_same_folder_again_is_the_same_place_and_a_changed_one_a_new_index(folder):
    first = korlab("index", "my/")[0]
    assert korlab("index", folder)[0] == first.replace(": ", ", as they were: ", 1)
    (folder / "new.md").write_text("# 주차\n\n지하 주차장은 두 시간까지 무료입니다.\n", "utf-8")
    korlab("index", "my")
    assert "new.md:1-3 (주차)" in korlab("search", "주차는 무료인가요")[0]
    assert [path.name for path in (folder.parent / "runs" / "indexes").iterdir() if path.is_dir()] == ["my"]
    other = folder.parent / "elsewhere" / "my"
    other.mkdir(parents=True)
    (other / "a.txt").write_text("수영장은 월요일에 쉰다.", "utf-8")
    korlab("index", other)
    assert "a.txt:1" in korlab("search", "수영장")[0] and "no passage shares" in korlab("search", "주차")[0]  # the newest alone
    assert "new.md" in korlab("search", "주차", "--index", folder.parent / "runs" / "indexes" / "my")[0]


def test_an_index_named_by_its_folder_is_the_newest_too_and_its_loss_is_told(folder):
    korlab("index", "my", "--to", "kept")
    assert "refund.md" in korlab("search", "환불")[0]
    for path in Path("kept").iterdir():
        path.unlink()
    assert "the newest index" in korlab("search", "환불", code=1)[1]


def test_without_index_or_run_the_search_and_the_measure_say_what_to_do(folder):
    assert "nothing is indexed yet: index the documents first" in korlab("measure", "q.csv", code=1)[1]
    said, told = korlab("search", "환불은 언제까지", "--documents", "my", "-k", 1)
    assert "there is no trained encoder, so the search is BM25's" in told and "refund.md" in said
    korlab("index", "my")
    assert "holds BM25 alone: search with --engine bm25" in " ".join(korlab("search", "환불", "--engine", "hybrid", code=1)[1].split())
    assert "--engine 'dense': choose one of bm25, sparse, hybrid" in korlab("search", "환불", "--engine", "dense", code=1)[1]


# ---- with an encoder -------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(folder, monkeypatch):
    """Word weights in the place of a trained encoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [REFUND, FAQ, "배터리는 뒷면의 덮개를 열고 갈아 끼웁니다", "제주도는 하루가 더 걸립니다 배송"]
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.train_from_iterator(texts * 3, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False))
    found = [word_encoder(texts, PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]"))]
    monkeypatch.setattr("korlab.sparse.encoders.load_encoder", lambda run="latest": found[0])
    monkeypatch.setattr("korlab.sparse.encoders.find_encoder", lambda run="latest": Path("model"))
    return found


def test_a_real_encoder_makes_the_hybrid_usual_and_a_miniature_does_not(folder, encoder):
    korlab("index", "my")
    said, told = korlab("search", "환불은 언제까지 되나요", "-k", 1)
    assert ", by hybrid" in told and "refund.md" in said and "demonstration" not in told
    bm25, sparse = map(int, re.search(r"bm25 (\d+), sparse (\d+); ", said).groups())
    assert bm25 == 1 and said.splitlines()[1].split()[1] == f"{1 / 61 + 1 / (60 + sparse):.4f}"
    assert ", by sparse" in korlab("search", "환불", "--run", "ko")[1]
    Path("q.csv").write_text("질문,문서\n" + "".join(f"환불은 언제까지 되나요{'?' * n},refund\n" for n in range(3)), "utf-8")
    said = korlab("measure", "q.csv")[0]
    assert [name for line in said.splitlines() if line.startswith("│") and (name := line.split("│")[1].strip())] == ["bm25", "sparse", "hybrid"]
    assert "nDCG@10 against" in said and "+0.0 [+0.0, +0.0]" in said

    encoder[0] = replace(encoder[0], mini=True, generated=True, sha256="mini")
    told = korlab("index", "my")[1]
    assert "learnt from generated text" in told and "BM25 is the search to trust" in " ".join(told.split())
    assert ", by bm25" in korlab("search", "환불")[1]
    told = korlab("search", "환불", "--engine", "hybrid")[1]
    assert "learnt from generated text" in told


def test_an_index_of_before_is_searched_by_every_engine(folder, encoder, tmp_path):
    korlab("index", "my", "--to", "now")
    save_index(load_index("now"), "before")  # without words and places
    for engine in ("bm25", "sparse", "hybrid"):
        ids = [[one["id"] for one in json.loads(korlab("search", "환불은 언제까지", "--index", name, "--engine", engine, "--json")[0])]
               for name in ("now", "before")]
        assert ids[0] == ids[1] and ids[0]


def test_codes_of_a_miniature_are_counted_and_not_shown(folder, encoder):
    texts = {"a": "환불은 기간 안에", "b": "배터리는 뒷면의 덮개"}
    words = encoder[0]
    coded = replace(words, mini=True, queries=lambda some: (words.queries(some) + words.queries(["배터리는"]) * 2).tocsr(),
                    documents=lambda some: (words.documents(some) + words.documents(["배터리는"] * len(some)) * 2).tocsr())
    from korlab.sparse.encoders import open_index

    hit = search.Searcher(coded, open_index(coded, texts))("환불은", 2).hits
    shown = {one.id: one for one in hit}
    assert 0 < shown["a"].codes < 1 and not any("배터리" in token for token, _, _ in shown["a"].tokens)
    assert sum(share for _, share, _ in shown["a"].tokens) + shown["a"].codes == pytest.approx(1)
    assert shown["b"].codes == 0  # there the word stands in the passage
    assert "뜻 없는 부호" in search.Hits((shown["a"],))._repr_markdown_()


# ---- whole or not at all ---------------------------------------------------------------------------------------------


def test_a_killed_indexing_leaves_the_index_that_was_there(folder):
    korlab("index", "my", "--to", "kept")
    before = {path.name: path.read_bytes() for path in Path("kept").iterdir()}
    (folder / "new.md").write_text("# 주차\n\n지하 주차장은 무료입니다.\n", "utf-8")
    code = ("import os, signal, sys\nfrom korlab.sparse import index\n"
            "def die(*given): os.kill(os.getpid(), signal.SIGKILL)\nindex._publish = die\n"
            "from korlab.cli.main import command_line\ncommand_line()(['sparse', 'index', 'my', '--to', 'kept'])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert all((Path("kept") / name).read_bytes() == content for name, content in before.items())
    assert "주차" not in korlab("search", "주차", "--index", "kept")[0]
    korlab("index", "my", "--to", "kept")
    assert "new.md" in korlab("search", "주차", "--index", "kept")[0]
    assert len([*Path("kept").iterdir()]) == len(before)  # nothing of the killed one is left


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_page_is_its_content_whatever_it_says_of_its_encoding(tmp_path):
    for name, charset, codec in (("a", "euc-kr", "cp949"), ("b", "utf-8", "cp949"), ("c", "euc-kr", "utf-8"), ("d", "", "utf-16")):
        (tmp_path / f"{name}.html").write_bytes(SHIPPING.replace("euc-kr", charset).replace("그날", "똠방").encode(codec))
    reading = read_folder(tmp_path)
    texts = {one.text for one in reading.documents}
    assert texts == {"배송 안내\n\n배송\n\n오후 두 시 전에 주문하면 똠방 보냅니다. 제주도는 하루가 더 걸립니다."} and len(reading.documents) == 4


def test_html_without_a_body_and_with_odd_nesting_is_read(tmp_path):
    (tmp_path / "a.html").write_text("<p>가<p>나<ul><li>다<li>라</ul><pre>마\n  바</pre>" + "<div>" * 3000 + "사", "utf-8")
    text = read_folder(tmp_path).documents[0].text
    assert text.split("\n\n") == ["가", "나", "다\n라", "마\nbar".replace("bar", "바"), "사"]


def test_korean_in_a_pdf_is_found_on_its_page(tmp_path):
    pytest.importorskip("pypdf")
    (tmp_path / "a.pdf").write_bytes(korean_pdf("첫째 쪽에는 차례가 있습니다", "", "환불은 이레 안에 됩니다"))
    (tmp_path / "broken.pdf").write_bytes(korean_pdf("글")[:200])
    reading = read_folder(tmp_path)
    document, = reading.documents
    assert document.text == "첫째 쪽에는 차례가 있습니다\n\n\n\n환불은 이레 안에 됩니다" and reading.notes == ("a.pdf: 1 of its 3 pages have no text, as pictures have none",)
    assert [one.where for one in passages.cut_document(document, 20, 0)] == ["a.pdf, p. 1", "a.pdf, p. 3"]
    assert reading.left_out["broken.pdf"].startswith("is not readable as PDF")


def word(body: str, before: str = "") -> bytes:
    """A Word document by hand: what lies between the tags of its body."""
    made, office = io.BytesIO(), "http://schemas.openxmlformats.org"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("word/document.xml", f'{before}<w:document xmlns:w="{office}/wordprocessingml/2006/main"><w:body>{body}</w:body></w:document>')
        parts.writestr("_rels/.rels", f'<Relationships xmlns="{office}/package/2006/relationships"><Relationship Id="r" '
                       f'Type="{office}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>')
        parts.writestr("word/styles.xml", f'<w:styles xmlns:w="{office}/wordprocessingml/2006/main"><w:style w:type="paragraph" w:styleId="제목1">'
                       '<w:name w:val="heading 1"/></w:style></w:styles>')
        parts.writestr("word/_rels/document.xml.rels", f'<Relationships xmlns="{office}/package/2006/relationships"><Relationship Id="s" '
                       f'Type="{office}/officeDocument/2006/relationships/styles" Target="styles.xml"/></Relationships>')
    return made.getvalue()


def said(*texts: str, style: str = "") -> str:
    """Paragraphs of a Word document."""
    look = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return "".join(f"<w:p>{look}<w:r><w:t>{text}</w:t></w:r></w:p>" for text in texts)


def test_a_word_document_is_read_as_it_stands_when_its_changes_are_accepted(tmp_path):
    rows = "".join(f"<w:tr>{''.join(f'<w:tc>{said(cell)}</w:tc>' for cell in row)}</w:tr>" for row in (("구분", "기간"), ("책", "7일")))
    changed = "<w:p><w:del><w:r><w:delText>보름</w:delText></w:r></w:del><w:ins><w:r><w:t>이레</w:t></w:r></w:ins><w:r><w:t> 안에 된다.</w:t></w:r></w:p>"
    (tmp_path / "a.docx").write_bytes(word(said("환불 안내", style="제목1") + changed + f"<w:tbl>{rows}</w:tbl>" + said("끝")))
    document, = read_folder(tmp_path).documents
    assert document.text == "환불 안내\n\n이레 안에 된다.\n\n구분 | 기간\n책 | 7일\n\n끝"
    assert [(one.title, one.level) for one in document.headings] == [("환불 안내", 1)]


ENTITIES = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))


@pytest.mark.parametrize(("content", "why"), {
    "entities that multiply": (word(said("&a9;"), f'<!DOCTYPE x [<!ENTITY a0 "가">{ENTITIES}]>'), "is not readable as a Word document (limit on input"),
    "ten thousand tags deep": (word("<w:ins>" * 10_000 + said("가") + "</w:ins>" * 10_000), "is not readable as a Word document (maximum recursion"),
    "a password": (b"\xd0\xcf\x11\xe0" + b"\0" * 600, "is protected by a password, or in the format before 2007: save it as .docx"),
    "half of it": (word(said("가"))[:300], "is not readable as a Word document (File is not a zip file)"),
    "nothing": (b"", "is not readable as a Word document"),
}.values())
def test_a_word_document_made_to_harm_is_left_out_with_its_reason(tmp_path, content, why):
    (tmp_path / "a.docx").write_bytes(content)
    (tmp_path / "b.txt").write_text("나", "utf-8")
    reading = read_folder(tmp_path)
    assert reading.left_out["a.docx"].startswith(why) and len(reading.left_out["a.docx"]) < 300, reading.left_out["a.docx"]


def test_a_word_document_that_unpacks_to_more_than_fits_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("korlab.core.sheets.UNPACKED", 100_000)
    (tmp_path / "a.docx").write_bytes(word(" " * 100_000))
    with pytest.raises(DataError, match=r"a.docx unpacks to 10\d,\d{3} bytes, more than 100,000: divide it"):
        documents.read_file(tmp_path / "a.docx")


def test_a_word_document_brings_no_file_of_the_machine(tmp_path):
    (tmp_path / "secret").write_text("비밀", "utf-8")
    (tmp_path / "a.docx").write_bytes(word(said("가&b;나"), f'<!DOCTYPE x [<!ENTITY b SYSTEM "{(tmp_path / "secret").as_uri()}">]>'))
    assert "비밀" not in read_folder(tmp_path).documents[0].text


def test_a_page_that_draws_more_texts_than_any_page_has_is_left_out(tmp_path):
    """A few kilobytes that would take minutes."""
    import zlib

    drawn = zlib.compress(b"BT /F 12 Tf " + b"(abc) Tj " * 100_001 + b"ET")
    parts = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
             b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Resources << /Font << /F 5 0 R >> >> /Contents 4 0 R >>",
             b"<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream" % (len(drawn), drawn), b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4\n" + b"".join(b"%d 0 obj\n%b\nendobj\n" % (i, one) for i, one in enumerate(parts, 1))
                                     + b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n0\n%%EOF\n")
    (tmp_path / "b.txt").write_text("나", "utf-8")
    reading = read_folder(tmp_path)
    assert reading.left_out["a.pdf"].startswith("draws 100,001 texts on one page, more than 100,000: "), reading.left_out["a.pdf"]


def test_names_and_texts_are_in_one_normal_form(tmp_path):
    import unicodedata
    (tmp_path / unicodedata.normalize("NFD", "환불.txt")).write_text(unicodedata.normalize("NFD", "환불은 됩니다"), "utf-8")
    document, = read_folder(tmp_path).documents
    assert (document.id, document.text) == ("환불.txt", "환불은 됩니다")


def test_a_file_nobody_may_read_and_a_linked_folder_are_told(tmp_path):
    (tmp_path / "a.txt").write_text("글", "utf-8")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    reading = read_folder(tmp_path)
    assert [one.id for one in reading.documents] == ["a.txt"]
    assert reading.left_out == {"loop": "is a link to another folder: name that folder itself", "gone.txt": "cannot be read (No such file or directory)"}


def test_a_table_with_questions_and_answers_in_any_form_is_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "가?", "answer": "나"}\n{"question": "다?", "answer": ""}\n{"x": 1}\n', "utf-8")
    (tmp_path / "b.json").write_text('[{"제목": "가", "본문": "나"}]', "utf-8")
    reading = read_folder(tmp_path)
    assert [(one.id, one.text) for one in reading.documents] == [("a.jsonl:1", "가? 나"), ("a.jsonl:2", "다?"), ("b.json:1", "가 나")]
    assert len(reading.notes) == 1 and "2 of 3 documents are used" in reading.notes[0] and "no id" not in reading.notes[0]


# ---- cutting ---------------------------------------------------------------------------------------------------------

PIECES = st.lists(st.sampled_from(["가나다 ", "환불은 됩니다. ", "\n", "\n\n", "# 제목\n", "x" * 37, " " * 30, "끝!” ", "한 문장이 조금 더 길게 이어진다. "]),
                  max_size=60).map("".join)


@settings(max_examples=150, deadline=None)
@given(PIECES, st.integers(20, 120), st.floats(0, 0.49), st.booleans())
def test_cutting_loses_nothing_and_points_back(text, size, share, headed):
    overlap = min(int(size * share), size // 2 - 1)
    text, found = documents._read_markdown(text) if headed else (text, ())
    document = Document("d", text, "d.md", found, lined=True)
    cut = passages.cut_all([document], size, overlap)
    covered = set()
    for one in cut:
        assert text[one.start : one.start + len(one.text)] == one.text and 0 < len(one.text) <= size
        covered |= set(range(one.start, one.start + len(one.text)))
        lines = one.where.removeprefix("d.md:").split(" ")[0].split("-")
        first, last = int(lines[0]), int(lines[-1])
        assert text.split("\n")[first - 1 : last] == "\n".join(text.split("\n")).split("\n")[first - 1 : last]
        assert one.text in "\n".join(text.split("\n")[first - 1 : last])
    assert all(text[i].isspace() for i in set(range(len(text))) - covered)
    for before, after in zip(cut, cut[1:]):
        assert before.start < after.start and before.start + len(before.text) - after.start <= overlap
    assert len({one.id for one in cut}) == len(cut)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("가나다라마바사", min_size=1, max_size=8), min_size=40, max_size=80), st.integers(40, 90), st.integers(10, 19))
def test_neighbours_share_whole_words_up_to_the_overlap(words, size, overlap):
    text = " ".join(words)
    cut = passages.cut_document(Document("d", text, "d"), size, overlap)
    for before, after in zip(cut, cut[1:]):
        shared = before.start + len(before.text) - after.start
        assert 0 < shared <= overlap and text[after.start - 1] == " " and before.text.endswith(after.text[:shared])


def test_a_heading_opens_a_passage_and_is_searched_with_those_below_it():
    text = "# 환불\n\n## 기간\n\n" + "이레 안에 됩니다. " * 60 + "\n\n## 예외\n\n음식은 안 됩니다.\n"
    text, found = documents._read_markdown(text)
    document = Document("a.md", text, "a.md", found, lined=True)
    cut = passages.cut_document(document, 200, 40)
    assert cut[0].text.startswith("환불\n\n기간") and cut[-1].text.startswith("예외") and cut[-1].context == "환불"
    assert all(one.searched.startswith("환불 > 기간\n") for one in cut[1:-1]) and len(cut) > 3


def test_a_large_text_is_cut_in_time_that_grows_with_it():
    import time
    text = "".join(f"{n}번째 줄이다. 오늘은 날씨가 맑았다.\n" for n in range(120_000))
    assert len(text.encode()) > 5_000_000
    begin = time.process_time()
    cut = passages.cut_document(Document("big.txt", text, "big.txt", lined=True))
    assert time.process_time() - begin < 20 and cut[-1].where.endswith("-120000")


def test_levels_that_skip_and_headings_in_fences():
    text, found = documents._read_markdown("```\n# 아님\n```\n### 셋\n글\n# 하나\n글\n")
    assert found == (Heading(text.index("셋"), 3, "셋"), Heading(text.index("하나"), 1, "하나"))


MARKS = st.lists(st.sampled_from(["가나 ", "**환불**", "[글](x)", "`a`", "# ", "- ", "> ", "1. ", "| ", "|--|--|", "\n", "\n\n", "```", "---", "<!--", "-->", "<b>", "![", "](", "    "]),
                 max_size=40).map("".join)


@settings(max_examples=200, deadline=None)
@given(MARKS)
def test_marks_of_any_page_go_and_its_lines_stay(text):
    said, headings = documents._read_markdown(text)
    assert said.count("\n") == text.count("\n") and [*headings] == sorted(headings)
    assert all(said[one.at:].startswith(one.title) and one.title for one in headings)
    assert [said[: one.at].count("\n") for one in headings] == sorted({said[: one.at].count("\n") for one in headings})
    if not re.search(r"<!--|\]\(|```|---", text):  # comments say nothing, nor do places that links lead to
        assert said.count("가나") == text.count("가나")


def test_a_page_is_shown_as_what_it_says():
    page = "> **환불**은 [여기](https://x.y/z?a=b)에서.\n> 둘째 줄\n\n- [ ] 하나\n  - `둘`\n\n|이름|값|\n|:--|--:|\n|**가**|<br>3|\n\n<div>\n상자 &amp; 글\n</div>\n\n![그림](a.png)\n***\n1. 셋\n"
    assert documents._read_markdown(page)[0].split("\n") == [
        "환불은 여기에서.", "둘째 줄", "", "- [ ] 하나", "- 둘", "", "이름 | 값", "", "가 | 3", "", "", "상자 & 글", "", "", "그림", "", "1. 셋", ""]


def test_hostile_marks_cost_no_more_than_their_length():
    import time
    begin = time.process_time()
    for piece in ("<!--", "[", "**a", "![](", "`", "| ", "> ", "<a ", "- "):
        documents._read_markdown(piece * (60_000 // len(piece)))
    assert time.process_time() - begin < 60


# ---- BM25 as an index ------------------------------------------------------------------------------------------------


def test_kept_words_rank_as_bm25_does(tmp_path):
    from korlab.sparse.bm25 import BM25

    texts = {f"d{i}": f"{w} {v} 이야기" for i, (w, v) in enumerate((w, v) for w in ("환불", "배송", "주차") for v in ("기간", "방법", "기간 기간"))}
    gathered = passages.Gathered(tuple(passages.Passage(key, text, key) for key, text in texts.items()))
    kept = library.build_library(gathered, None, tmp_path / "kept")
    for query in ("환불 기간", "주차 방법과 기간", "이야기", "야구"):
        ours = library.rankings(kept, "bm25", [query], 5)[0]
        theirs = BM25(texts).search([query], 5)[0]
        assert [*ours] == [*theirs] and ours == pytest.approx(theirs, rel=1e-5)


def test_the_package_says_that_it_reads_pdf():
    assert '"pypdf' in (ROOT / "pyproject.toml").read_text("utf-8")
