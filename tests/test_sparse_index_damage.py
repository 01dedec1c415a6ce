"""An index folder that was damaged, or made to do harm: refused in one sentence, or searched as before."""

import copy
import hashlib
import io
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.core.errors import LabError
from korlab.sparse import index as ix
from korlab.sparse import library as lib
from korlab.sparse.encoders import Encoder
from korlab.sparse.passages import Gathered, Passage

TEXTS = {"d1": "서울 지하철 노선", "d2": "부산 지하철 요금", "d3": "휴대용 우산은 가볍다", "d4": "서울 날씨와 우산", "라": "부산 기차"}
NUMBERS = [0, 1, -1, 2, 5, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), float("nan"), float("inf"), -1.5, 1e-45, 1e38]
VALUES = [None, True, False, 0, -1, 3, 10**18, 1.5, "", "x", "../x", "\ud800", [], {}, [1], {"file": "ids-00000000.npy"}]


def vectors(texts) -> csr_matrix:
    """Two tokens of a text's first syllables, and its length."""
    found = np.zeros((len(texts), 12), np.float32)
    for row, text in zip(found, texts):
        row[[ord(text[0]) % 11, ord(text[1]) % 11]] = 1.5, 0.25
        row[11] = len(text) / 8
    return csr_matrix(found)


class Letters:
    """What is needed of a tokenizer."""

    def __len__(self) -> int:
        return 12


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A whole index, words and vectors, with places and documents."""
    passages = tuple(Passage(key, text, f"{key}.md", where=f"{key}.md:1") for key, text in TEXTS.items())
    encoder, folder = Encoder("letters", Letters(), vectors, vectors, sha256="1"), tmp_path_factory.mktemp("index") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lib, "tokenizer_sha256", lambda tokenizer: "2" * 64)
        lib.build_library(Gathered(passages), encoder, folder, source="3")
    return folder


def searched(folder: Path) -> list:
    """Everything a search of both engines says, and what stands beside it."""
    library, index = lib.open_library(folder), ix.load_index(folder)
    words = csr_matrix(np.eye(library.words.vocabulary, dtype=np.float32)[::3])
    found = [library.words.search(words, 9), index.search(vectors(["서울", "우산"]), 9), library.sparse.search(vectors(["부산"]), 9)]
    one = csr_matrix(np.ones((1, library.words.vocabulary), np.float32))
    for id in library.words.ids:
        found.append((id, library.words.text(id), library.place(id), library.document(id), ix.contributions(library.words, one, id)))
    return [found, list(library.terms.terms), library.usual, library.facts.get("weights"), library.facts.get("run")]


# --- mutations --------------------------------------------------------------------------------------------------------


def bytes_mutated(raw: bytes, draw: random.Random) -> bytes:
    """Bits turned, bytes lost, doubled or written over."""
    new, at = bytearray(raw), draw.randrange(len(raw))
    match draw.randrange(6):
        case 0:
            new[at] ^= 1 << draw.randrange(8)
        case 1:
            new[at:] = b""
        case 2:
            new[at:at] = draw.randbytes(draw.choice([1, 4, 8]))
        case 3:
            new[at : at + 8] = draw.choice([b"\0" * 8, b"\xff" * 8, draw.randbytes(8)])
        case 4:
            new[draw.randrange(len(raw)) :] = raw[:at]
        case 5:
            new = bytearray(draw.choice([b"", b"\0" * len(raw), raw[:128], raw + raw]))
    return bytes(new)


def numbers_mutated(raw: bytes, draw: random.Random) -> bytes:
    """An array with another value, order, length, shape or type."""
    array, file = np.load(io.BytesIO(raw)).copy(), io.BytesIO()
    if len(array):
        one, other = draw.randrange(len(array)), draw.randrange(len(array))
    with np.errstate(all="ignore"):
        match draw.randrange(6):
            case 0 if len(array):
                array[one] = np.array(draw.choice(NUMBERS)).astype(array.dtype)
            case 1 if len(array):
                array[one] += array.dtype.type(draw.choice([1, 255]))
            case 2 if len(array):
                array[[one, other]] = array[[other, one]]
            case 3:
                array = draw.choice([array[:-1], np.append(array, array[-1:]), array[:0], array[::-1], np.sort(array)])
            case 4:
                array = array.astype(draw.choice(["<i4", "<i8", "<f4", "<f8", "u1", ">i4", "U3", "?", "<f2", "c8"]))
            case 5:
                array = draw.choice([array.reshape(1, -1), array.reshape(-1, 1), np.array(7), np.array([{}], object)])
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def places_in(value, path=()) -> Iterator[tuple]:
    """The way to every value of a manifest."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else ():
        yield from places_in(value[key], (*path, key))


def manifest_mutated(manifest: dict, draw: random.Random) -> dict:
    """A value that is another, gone, new, or exchanged with its neighbour."""
    new = copy.deepcopy(manifest)
    path = draw.choice(list(places_in(new)))
    holder = new
    for key in path[:-1]:
        holder = holder[key]
    match draw.randrange(4):
        case 0:
            holder[path[-1]] = draw.choice(VALUES)
        case 1:
            del holder[path[-1]]
        case 2:
            other = draw.choice(list(holder))
            holder[path[-1]], holder[other] = holder[other], holder[path[-1]]
        case 3:
            if isinstance(holder[path[-1]], int):
                holder[path[-1]] += draw.choice([-1, 1, 256])
            else:
                holder[draw.choice(["zzz", "texts", "word_rows"])] = holder[path[-1]]
    return new


def sealed(folder: Path, manifest: dict) -> None:
    """Hashes and sizes made to fit."""
    for entry in (files if isinstance(files := manifest.get("files"), dict) else {}).values():
        if isinstance(entry, dict) and isinstance(name := entry.get("file"), str) and "\ud800" not in name and (folder / name).is_file():
            raw = (folder / name).read_bytes()
            entry |= {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    if "sha256" in manifest:
        said = {name: value for name, value in manifest.items() if name != "sha256"}
        manifest["sha256"] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def mutate(folder: Path, draw: random.Random) -> bool:
    """Damage a folder; whether its hashes were made to fit."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    files, fit = sorted(folder.glob("*.npy")), draw.random() < 0.7
    kind = draw.randrange(10)
    if kind < 6:
        file = draw.choice(files)
        file.write_bytes((numbers_mutated if kind < 4 else bytes_mutated)(file.read_bytes(), draw))
    elif kind == 6:
        one, other = draw.sample(files, 2)
        raw = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(raw)
    elif kind < 9:
        manifest = manifest_mutated(manifest, draw)
    elif draw.random() < 0.3:
        draw.choice(files).unlink()
    else:
        raw = (folder / "manifest.json").read_bytes()
        (folder / "manifest.json").write_bytes(bytes_mutated(raw, draw))
        return False
    if fit:
        sealed(folder, manifest)
    elif kind >= 7:
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return fit


def judged(folder: Path, before: list, fit: bool) -> str:
    """What becomes of a search."""
    try:
        after = searched(folder)
    except LabError as error:
        return "refused" if "\n" not in str(error) and len(str(error)) < 900 else f"no sentence: {error}"
    except Exception as error:
        return f"raw {type(error).__name__}: {error}"
    return "the same" if after == before else "another, in range" if fit else "wrong"


def fate(kept: Path, home: Path, before: list, seeds: range) -> Counter:
    """Mutations with these seeds, in a child whose death is counted as well."""
    done, left = Counter[str](), list(seeds)
    while left:
        report, child = home / "report", os.fork()
        if not child:
            _live(kept, home / "folder", before, left, report)
        status = os.waitpid(child, 0)[1]
        said = report.read_text("utf-8").splitlines() if report.exists() else []
        report.unlink(missing_ok=True)
        done.update(said)
        left = left[len(said) :]
        if left:
            done[f"died of {signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else status} at seed {left.pop(0)}"] += 1
    return done


def _live(kept: Path, folder: Path, before: list, seeds: list[int], report: Path) -> None:
    """The child: it never comes back."""
    with open(report, "w", encoding="utf-8") as file:
        for seed in seeds:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(kept, folder)
            said = judged(folder, before, mutate(folder, random.Random(seed)))
            print(" ".join(said.split()) + ("" if said in FATES else f" at seed {seed}"), file=file, flush=True)
    os._exit(0)


FATES = {"refused", "the same", "another, in range"}


def test_no_damage_ends_a_search_or_changes_it_unseen(kept, tmp_path):
    """With hashes that do not fit nothing changes a result; with hashes made to fit only what is in range does."""
    done = fate(kept, tmp_path, searched(kept), range(250))
    assert set(done) == FATES and done["refused"] > 150 and done["another, in range"] < 60, done


def test_the_command_refuses_a_damaged_index_in_one_sentence(kept, tmp_path):
    """It took whatever lay there: the hashes were compared by the notebooks alone."""
    folder = tmp_path / "index"
    shutil.copytree(kept, folder)
    file = next(folder.glob("word_weights-*"))
    file.write_bytes(file.read_bytes()[:-1] + b"@")
    rows = next(folder.glob("word_rows-*"))
    for sentence in ("its sha256 is not the one in manifest.json", "it names documents beyond the 5 there are"):
        done = CliRunner().invoke(command_line(), ["sparse", "search", "지하철", "--index", str(folder), "--engine", "bm25"])
        said = " ".join(done.output.split())
        assert done.exit_code == 1 and said.startswith("korlab: ") and sentence in said and "build the index again, after deleting" in said
        array = np.load(rows)
        with open(rows, "wb") as out:
            np.save(out, np.append(array[:-1], np.int32(2**30)))
        sealed(folder, json.loads((folder / "manifest.json").read_text("utf-8")))


@pytest.mark.slow
def test_twenty_thousand_damages(kept, tmp_path):
    done = fate(kept, tmp_path, searched(kept), range(1000, 21_500))
    print(dict(done))
    assert set(done) == FATES, {what: count for what, count in done.items() if what not in FATES}
