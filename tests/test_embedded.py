"""The embedded corpora: the files are the recorded ones, travel with the package, and give the recorded rows."""

import json
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from importlib.resources import files

import pytest
from conftest import ROOT

from korlab.core.templates import embedded_rows
from korlab.sparse.scenarios import embedded
from korlab.summarization.natural import natural
from korlab.summarization.scenarios import generate

# After an intended change of a file or of a generator, print both tables with
#   python tests/test_embedded.py
# and say in the commit that a corpus, and with it every score on it, has changed.
FILES = {
    "coref/data/articles.jsonl": "9c318c31b77a6e6d489e00876d2dfbfc2e7a00d4fbdb3f13bd62453eff75c15a",
    "coref/data/lambada.jsonl": "8f98394eafe4e121bbedaff5a961b2933a86bac935afd6a1e8ddc348e7a39bfa",
    "coref/data/published.jsonl": "ad2d05eb0e75a120039f9e91607f6c9ffb4f2a9410d7db9fd4642cc8e7d0bf45",
    "ivr/data/korean.jsonl": "1ebd6b8f3fed65e1a075a6100ac679634046b0aa076bec824ae16ee092feee0b",
    "ivr/data/written.jsonl": "8b2bd007c933199ed430e0bb03b0362040be27b1a6bdd49009676f1657f4ddf4",
    "sparse/data/themes.jsonl": "484547516624aba164a4d33e5a2d5cc251e782e1d3ca0003a60613fdb515bb40",
    "summarization/data/natural.jsonl": "6dff339134c471164f2faeae3145a54c3a721bb1806bc628e89527d0f9457727",
    "summarization/data/scenarios.jsonl": "7cc3ddb94a0282a7eea2f9e0267c4c7e439701575b40979f141e716ac9ca5287",
}
ROWS = {
    "summarization train": "4cb20e5e6aabd573ba714af0390d24443c6fbc6389759dd0448724b05d379671",
    "summarization dev": "5e02fcb602eae8f3f1dbed18859c471969dde571f860272955f46c32a17834bc",
    "summarization test": "4405b831b101376a84c26dc20c31ebb42f75baae684cf2255c7f512d59fff3c4",
    "summarization hard": "c065cc5cd4a08a0dbd2b6cb684cc35dad41de98ca3b9ccaee02a54fccc6d9cd6",
    "summarization natural": "c35c143fc9f574ef04dd6becddaccf07696f4558e03219d5b88a9db29cdbd54d",
    "sparse train": "704b01b43dc70cf0caac18ac0e00fc76338e7f278a21f535c767e19b0cfcd469",
    "sparse corpus": "0d76e6101abba30c5114f6e0e57b466ffaca5a386aef8f67053ce9a3940c1a57",
    "sparse dev": "eff6b29f2fdfb2a9f45ed2448fae314152dd07e815849b439de6ae5c80fbee0f",
    "sparse test": "04522cdeb38aedb44db9d3b276ffdfb23a67f1b111d0e1d7cd3aca1cd50ebe8f",
    "sparse hard": "13138bc6fb65f43127c038b64357973c7f46f30d55fd4a402267c2d2aa16a05e",
}


def file_digests() -> dict[str, str]:
    found = sorted((ROOT / "korlab").glob("*/data/*.jsonl"))
    return {path.relative_to(ROOT / "korlab").as_posix(): sha256(path.read_bytes()).hexdigest() for path in found}


def digest(rows) -> str:
    return sha256("\n".join(map(repr, rows)).encode()).hexdigest()


def row_digests() -> dict[str, str]:
    dialogues = {**generate(), "natural": natural()}
    found = {f"summarization {split}": digest((d.fname, d.topic, d.dialogue, d.summaries) for d in items)
             for split, items in dialogues.items()}
    made = embedded()
    found["sparse train"] = digest((t.query, t.positive, t.negatives, t.scores, t.kind) for t in made.train)
    found["sparse corpus"] = digest(made.test.corpus.items())
    for name in ("dev", "test", "hard"):
        part = getattr(made, name)
        found[f"sparse {name}"] = digest((key, text, list(part.qrels[key].items()), made.kinds[key]) for key, text in part.queries.items())
    return found


def test_the_files_are_the_recorded_ones():
    assert file_digests() == FILES


def test_the_rows_of_every_split_are_the_recorded_ones():
    assert row_digests() == ROWS


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_found_as_package_data_and_is_written_in_normal_form(file):
    study, _, name = file.split("/")
    rows = embedded_rows(f"korlab.{study}", name)
    text = (files(f"korlab.{study}") / "data" / name).read_text(encoding="utf-8")
    assert text == "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    keys = [next(row[key] for key in ("fname", "name", "kind", "target") if isinstance(row.get(key), str)) for row in rows]
    assert len(set(keys)) == len(keys)


def test_importing_the_chapters_reads_no_file():
    code = ("import korlab.core.templates as t, sys; t.embedded_rows = lambda *_: sys.exit('read at import')\n"
            "import korlab.summarization.scenarios, korlab.summarization.natural, korlab.sparse.scenarios")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_wheel_contains_the_files(tmp_path):
    "Built in a copy, so that nothing of the build is left in the working tree."
    pytest.importorskip("setuptools", "77")
    shutil.copytree(ROOT / "korlab", tmp_path / "korlab", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    code = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    (tmp_path / "dist").mkdir()
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True)
    with zipfile.ZipFile(tmp_path / "dist" / done.stdout.split()[-1]) as wheel:
        names = set(wheel.namelist())
    assert {f"korlab/{file}" for file in FILES} | {"korlab/summarization/natural.py", "korlab/sparse/scenarios.py"} <= names


if __name__ == "__main__":
    print(json.dumps({"FILES": file_digests(), "ROWS": row_digests()}, indent=4))
