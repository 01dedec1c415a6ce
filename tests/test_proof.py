"""Archives and what is proved by them: each of many ways to change a run is caught, also by somebody who makes every hash fit."""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from conftest import ROOT, TINY
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from in_process import execute, korlab
from safetensors.torch import load_file, save_file

from korlab.core.files import sha256
from korlab.experiment.checkpoints import write_manifest
from korlab.experiment.golden import golden
from korlab.experiment.runs import reopen
from korlab.experiment.seals import digest
from korlab.workbench import archives, crates, signatures, verifying
from korlab.workbench.checks import Unchecked

HOME = "runs/sparse/short"


@pytest.fixture(scope="module")
def whole(short, tmp_path_factory) -> Path:
    """A finished run in an archive, and that unpacked beside it as `whole`."""
    place = tmp_path_factory.mktemp("whole")
    crates.archive([reopen(short / "sparse" / "short")], place / "whole.tar.zst")
    archives.unpack(place / "whole.tar.zst", place / "whole")
    return place / "whole"


def content(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def packed(folder: Path) -> Path:
    with open(out := folder.with_suffix(".tar.zst"), "wb") as sink:
        archives.pack(content(folder), sink)
    return out


def edit(file: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file; a change that gives something gives what takes its place."""
    record = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(change(record) or record, ensure_ascii=False, indent=2) + "\n", "utf-8")


def made_to_fit(folder: Path) -> None:
    """What somebody does who can write everything: seals, noted hashes, metadata and manifest say what is there now."""
    run = folder / HOME
    for seal in run.rglob("manifest.json"):
        card = seal.parent / "README.md"
        hidden = card.rename(run / "kept") if card.exists() else None
        write_manifest(seal.parent)
        if hidden:
            hidden.rename(card)
    status = json.loads((run / "status.json").read_text("utf-8"))
    left = {name: one | {"sha256": digest(run / name)} for name, one in status["left"].items() if (run / name).exists()}
    (run / "status.json").write_text(json.dumps(status | {"left": left}, ensure_ascii=False), "utf-8")
    _, record = archives.read_manifest(folder)
    files = {name: path for name, path in content(folder).items() if name != archives.MANIFEST}
    (folder / archives.MANIFEST).write_bytes(archives.manifest_of(files, record["runs"], korlab=record["korlab"], optimizer=False))


def on(path: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / HOME / path, change)


def weights(change: Callable[[dict], object], name: str = "model/model.safetensors") -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = load_file(file := folder / HOME / name)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})

    return changed


def flipped(path: str, place: float = 0.5) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        data = bytearray((file := folder / path).read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        file.write_bytes(data)

    return flip


def first(name: str, **values: float) -> Callable[[dict], None]:
    """Change the first score."""
    return lambda record: record["scores"][0]["measures"][name].update(values)


def lines(path: str, change: Callable[[list[dict]], object]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        file = folder / HOME / path
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        change(rows)
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")

    return changed


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: [change(folder) for change in changes] and None


WORD, BIAS, DENSE = "roberta.embeddings.word_embeddings.weight", "lm_head.bias", "lm_head.dense.weight"


def swapped(record: dict) -> None:
    ids = record["model"]["vocab"]
    one, other = [*ids][10], [*ids][300]
    ids[one], ids[other] = ids[other], ids[one]


def raised(folder: Path) -> None:
    """One item and the mean, in one measure, with the interval around it."""
    items, n = json.loads((folder / HOME / "items/test.json").read_text("utf-8")), 400
    (mode,) = items["scores"]
    place = items["scores"][mode]["hit@10"].index(0.0)
    on("items/test.json", lambda record: record["scores"][mode]["hit@10"].__setitem__(place, 1.0))(folder)
    mean = (sum(items["scores"][mode]["hit@10"]) + 1) / n
    on("metrics.json", first("hit@10", mean=mean))(folder)


def without_the_worst(folder: Path) -> None:
    """An item that was missed is gone, everywhere where means are made."""
    def cut(record: dict) -> None:
        (kinds,) = record["scores"].values()
        place = kinds["ndcg@10"].index(0.0)
        for values in (record["ids"], *kinds.values(), *record["floors"].values()):
            values.pop(place)

    on("items/test.json", cut)(folder)
    (kinds,) = json.loads((folder / HOME / "items/test.json").read_text("utf-8"))["scores"].values()

    def fit(record: dict) -> None:
        for one in (one for one in record["scores"] if one["split"] == "test"):
            one["n"] = 399
            for name, value in one["measures"].items():
                value["n"] = 399
                if not one["baseline"] and name in kinds:
                    value["mean"] = sum(kinds[name]) / 399

    on("metrics.json", fit)(folder)


def renamed(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


def leaked(folder: Path) -> None:
    """A question of the test was learnt from."""
    from korlab.core.text import text_hash
    from korlab.sparse.data import bare

    row = json.loads((folder / HOME / "rankings/test.found.jsonl").read_text("utf-8").splitlines()[0])
    on("train_hashes.json", lambda known: known.append(text_hash(bare(row["text"]))))(folder)


# what is changed -> the change, and the check that tells; hashes are as they were
PLAIN = {
    **{f"a byte of {role} flipped": (flipped(path), "manifest") for role, path in {
        "weights": f"{HOME}/model/model.safetensors", "base weights": f"{HOME}/base/model.safetensors", "the tokenizer": f"{HOME}/model/tokenizer.json",
        "parameters": f"{HOME}/config.json", "scores": f"{HOME}/metrics.json", "items": f"{HOME}/items/hard.json", "golden answers": f"{HOME}/golden.json",
        "predictions": f"{HOME}/rankings/test.found.jsonl", "the data's record": f"{HOME}/data.json", "hashes of training rows": f"{HOME}/train_hashes.json",
        "the history": f"{HOME}/history.jsonl", "the environment": f"{HOME}/environment.json", "the model card": f"{HOME}/model/README.md",
        "the crate": "ro-crate-metadata.json", "the status": f"{HOME}/status.json"}.items()},
    "a byte of the manifest flipped": (flipped("manifest.json", 0.9), "manifest"),
    "a file deleted": (lambda folder: (folder / HOME / "model/modules.json").unlink(), "manifest"),
    "a file renamed": (lambda folder: renamed(folder, f"{HOME}/items/test.json", f"{HOME}/items/Test.json"), "manifest"),
    "a file added": (lambda folder: (folder / HOME / "model/extra.json").write_text("{}"), "manifest"),
    "a file emptied": (lambda folder: (folder / HOME / "history.jsonl").write_bytes(b""), "manifest"),
    "two files swapped": (lambda folder: [renamed(folder, f"{HOME}/{a}", f"{HOME}/{b}") for a, b in (
        ("items/test.json", "x.json"), ("items/hard.json", "items/test.json"), ("x.json", "items/hard.json"))] and None, "manifest"),
    "a file out of the manifest": (lambda folder: edit(folder / "manifest.json", lambda record: record["files"].pop()), "manifest"),
    "a file twice in the manifest": (lambda folder: edit(folder / "manifest.json", lambda record: record["files"].append(record["files"][0])), "manifest"),
    "another role in the manifest": (lambda folder: edit(folder / "manifest.json", lambda record: record["files"][0].update(role="", bytes=1)), "manifest"),
    "another format": (lambda folder: edit(folder / "manifest.json", lambda record: record.update(format="korlab archive 9")), "manifest"),
    "another run in the manifest": (lambda folder: edit(folder / "manifest.json", lambda record: record.update(runs=["runs/sparse/other"])), "runs"),
    "no run in the manifest": (lambda folder: edit(folder / "manifest.json", lambda record: record.update(runs=[])), "runs"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest"),
}

# the same, every hash made to fit
FITTED = {
    "one weight": (weights(lambda t: t[DENSE].__setitem__((0, 0), 9.0)), "golden answers"),
    "all weights scaled": (weights(lambda t: [one.mul_(1.01) for one in t.values()]), "golden answers"),
    "the row of a token": (weights(lambda t: t[WORD][700].mul_(2)), "golden answers"),
    "a bias": (weights(lambda t: t[BIAS].add_(0.01)), "golden answers"),
    "two layers swapped": (weights(lambda t: t.update({a: t[b].clone() for one in [*t] if ".layer.0." in one
                                                       for a, b in ((one, one.replace(".0.", ".1.")), (one.replace(".0.", ".1."), one))})), "golden answers"),
    "half precision": (weights(lambda t: t.update({name: one.half() for name, one in t.items()})), "golden answers"),
    "a weight gone": (weights(lambda t: t.pop(DENSE)), "strict load"),
    "a weight more": (weights(lambda t: t.update(extra=t[BIAS].clone())), "strict load"),
    "a weight renamed": (weights(lambda t: t.update({f"{DENSE}s": t.pop(DENSE)})), "strict load"),
    "a weight cut": (weights(lambda t: t.update({WORD: t[WORD][:-1].clone()})), "strict load"),
    "bytes behind the weights": (lambda folder: (folder / HOME / "model/model.safetensors").open("ab").write(b"\0" * 8) and None, "strict load"),
    "a header that says more": (lambda folder: flipped(f"{HOME}/model/model.safetensors", 0.0)(folder), "strict load"),
    "another architecture": (on("model/config.json", lambda c: c.update(architectures=["RobertaForCausalLM"], is_decoder=True)), "golden answers"),
    "nobody's architecture": (on("model/config.json", lambda c: c.update(architectures=["NobodysModel"])), "strict load"),
    "a layer less": (on("model/config.json", lambda c: c.update(num_hidden_layers=1)), "strict load"),
    "a layer more": (on("model/config.json", lambda c: c.update(num_hidden_layers=3)), "strict load"),
    "another activation": (on("model/config.json", lambda c: c.update(hidden_act="relu")), "golden answers"),
    "other heads": (on("model/config.json", lambda c: c.update(num_attention_heads=2)), "golden answers"),
    "another epsilon": (on("model/config.json", lambda c: c.update(layer_norm_eps=0.1)), "golden answers"),
    "a larger vocabulary": (on("model/config.json", lambda c: c.update(vocab_size=729)), "strict load"),
    "two tokens swapped": (on("model/tokenizer.json", swapped), "vocabulary"),
    "a token renamed": (on("model/tokenizer.json", lambda t: t["model"]["vocab"].update({"잘못": t["model"]["vocab"].pop([*t["model"]["vocab"]][-1])})), "vocabulary"),
    "a token more": (on("model/tokenizer.json", lambda t: t["model"]["vocab"].update({"잘못": len(t["model"]["vocab"])})), "vocabulary"),
    "a token less": (on("model/tokenizer.json", lambda t: t["model"]["vocab"].popitem() and None), "vocabulary"),
    "words cut otherwise": (on("model/tokenizer.json", lambda t: t.update(pre_tokenizer={"type": "WhitespaceSplit"})), "vocabulary"),
    "no special tokens": (on("model/tokenizer.json", lambda t: t.update(post_processor=None)), "vocabulary"),
    "no tokenizer": (lambda folder: [(folder / HOME / "model" / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")] and None, "vocabulary"),
    "golden logits": (on("golden.json", lambda g: g["."]["answers"][0]["logits"][0].__setitem__(0, 1.0)), "golden answers"),
    "golden tokens": (on("golden.json", lambda g: g["."]["tokenizer"]["tokens"].append(1)), "vocabulary"),
    "golden answers of another place": (on("golden.json", lambda g: {"elsewhere": g["."]}), "golden answers"),
    "parameters of model.json": (on("model.json", lambda m: m.update(parameters=511_961)), "parameter count"),
    "vocabulary of model.json": (on("model.json", lambda m: m.update(vocabulary=729)), "vocabulary"),
    "parameters of metrics.json": (on("metrics.json", lambda m: m.update(parameters=500_000)), "parameter count"),
    "a score": (on("metrics.json", first("ndcg@10", mean=0.9)), "scores"),
    "a score with its interval": (on("metrics.json", first("ndcg@10", mean=0.9, low=0.88, high=0.92)), "scores"),
    "an upper end below": (on("metrics.json", first("mrr@10", high=0.1)), "scores"),
    "the n of a score": (on("metrics.json", lambda m: m["scores"][0].update(n=4000)), "scores"),
    "the n of an interval": (on("metrics.json", first("mrr@10", n=4000)), "scores"),
    "the split of a score": (on("metrics.json", lambda m: m["scores"][0].update(split="hard")), "scores"),
    "a score no number": (on("metrics.json", first("mrr@10", mean="high")), "scores"),
    "a score gone": (on("metrics.json", lambda m: m["scores"].pop(0) and None), "scores"),
    "a floor lowered": (on("metrics.json", lambda m: m["scores"][1]["measures"]["ndcg@10"].update(mean=0.2, low=0.1)), "comparisons"),
    "a floor's share that cannot be": (on("metrics.json", lambda m: m["scores"][1]["measures"]["hit@10"].update(mean=0.5981)), "granularity"),
    "a difference": (on("metrics.json", lambda m: m["splits"]["test"]["against"]["BM25 eojeol"]["difference"].update(mean=0.5)), "comparisons"),
    "a p": (on("metrics.json", lambda m: m["splits"]["test"]["against"]["BM25 morphemes"].update(p_value=0.5)), "comparisons"),
    "a floor's items": (on("items/test.json", lambda i: i["floors"]["BM25 morphemes"].__setitem__(0, 0.0)), "comparisons"),
    "an item": (on("items/test.json", lambda i: next(iter(i["scores"].values()))["ndcg@10"].__setitem__(0, 1.0)), "scores"),
    "an item twice": (on("items/test.json", lambda i: i["ids"].__setitem__(1, i["ids"][0])), "scores"),
    "an item of another name": (on("items/test.json", lambda i: i["ids"].__setitem__(1, "test-9999")), "labels"),
    "the worst item gone": (without_the_worst, "labels"),
    "an item and its mean": (raised, "stored predictions"),
    "an end of an interval": (on("metrics.json", first("ndcg@10", high=0.45)), "stored predictions"),
    "what was found": (lines("rankings/test.found.jsonl", lambda rows: rows[0]["found"].update({[*rows[0]["judged"]][0]: 99.0})), "stored predictions"),
    "what is right": (lines("rankings/hard.found.jsonl", lambda rows: rows[0].update(judged={next(iter(rows[0]["found"])): 1})), "stored predictions"),
    "a label gone": (lines("rankings/test.found.jsonl", lambda rows: rows[3].update(judged={key: 0 for key in rows[3]["judged"]})), "labels"),
    "a prediction gone": (lines("rankings/test.found.jsonl", lambda rows: rows.pop() and None), "labels"),
    "a question that was learnt": (leaked, "split isolation"),
    "dev that was learnt": (lambda folder: on("dev_hashes.json", lambda d: d + json.loads((folder / HOME / "train_hashes.json").read_text())[:1])(folder), "split isolation"),
    "train that is the test": (on("data.json", lambda d: d["sha256"].update(train=d["sha256"]["test"])), "split isolation"),
    "fewer rows than items": (on("data.json", lambda d: d["rows"].update(test=100)), "scores"),
    "a rate of learning": (on("config.json", lambda c: c["effective"].update(learning_rate=0.01)), "parameters"),
    "the seed that was given": (on("config.json", lambda c: c["given"].update(seed=7)), "parameters"),
    "a parameter's explanation": (on("config.json", lambda c: next(row for row in c["explained"] if row["name"] == "seed").update(value="7")), "parameters"),
    "the name in the parameters": (both(on("config.json", lambda c: c["effective"].update(name="other")), on("status.json", lambda s: s["config"]["effective"].update(name="other"))),
                                   "parameters"),
    "a model that is not registered": (on("config.json", lambda c: c["effective"].update(model="nobodys")), "records"),
    "a stage that failed": (on("status.json", lambda s: s["stages"]["train"].update(state="failed")), "stages"),
    "a state": (on("status.json", lambda s: s.update(state="running")), "stages"),
    "a record no JSON": (lambda folder: (folder / HOME / "lengths.json").write_text("{") and None, "records"),
    "a file that no stage left": (lambda folder: (folder / HOME / "rankings/better.jsonl").write_text("{}\n") and None, "files"),
    "the crate": (lambda folder: edit(folder / "ro-crate-metadata.json", lambda c: c["@graph"][0].update(name="better")), "metadata"),
    "the data's description": (lambda folder: edit(folder / "croissant/sparse-short.json", lambda c: c.update(name="better")), "metadata"),
    "the Hub's results": (lambda folder: (file := folder / "hub/sparse/short/.eval_results/korlab.yaml").write_text(file.read_text("utf-8").replace("value: 0.3", "value: 0.9")) and None, "metadata"),
}


def changed_by(whole: Path, place: Path, change: Callable[[Path], None], fit: bool) -> Path:
    shutil.copytree(whole, folder := place / "changed")
    change(folder)
    if fit:
        made_to_fit(folder)
    return packed(folder)


def failing(found: verifying.Verification) -> set[str]:
    assert found.code == 1 and found.reached is None or "silver" in {one.tier for one in found.of("failed")}
    return {one.name for one in found.of("failed")}


@pytest.fixture
def archive_alone(monkeypatch):
    """Nothing but the archive is looked at: what its hashes tell need not be told by its runs."""
    monkeypatch.setattr(verifying, "_opened", lambda *_: [])


def test_the_run_itself_passes(whole):
    found = verifying.verify(str(whole.with_suffix(".tar.zst")))
    assert not found.of("failed"), found.of("failed")
    assert {one.name for one in found.of("unchecked")} == {"signature", "root digest"} and found.code == 0 and found.reached == "bronze"


@pytest.mark.parametrize("kind", PLAIN)
def test_what_is_changed_is_caught_by_its_hash(kind, whole, tmp_path, archive_alone):
    change, name = PLAIN[kind]
    assert name in failing(verifying.verify(str(changed_by(whole, tmp_path, change, fit=False))))


@pytest.mark.parametrize("kind", FITTED)
def test_what_is_changed_with_every_hash_made_to_fit_is_caught(kind, whole, tmp_path, monkeypatch):
    def nobody_asks(*_: object) -> str:
        raise Unchecked("too slow for here; test_predicted_and_trained_again asks")

    monkeypatch.setattr(verifying, "inferred", nobody_asks)
    change, name = FITTED[kind]
    tier = "silver" if name == "stored predictions" else "bronze"
    found = verifying.verify(str(changed_by(whole, tmp_path, change, fit=True)), tier)
    assert name in failing(found)
    assert not {"manifest", "packing"} & failing(found), "the hashes do not fit: nothing is tried here"


def tarred(files: list[tuple[tarfile.TarInfo, bytes]], level: int = 6, checksum: bool = True) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for info, data in files:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return zstandard.ZstdCompressor(level=level, write_checksum=checksum).compress(sink.getvalue())


def entries(file: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    raw = zstandard.ZstdDecompressor().stream_reader(file.read_bytes()).read()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


REPACKED = {
    "a later time": lambda files: files[1][0].__setattr__("mtime", 1),
    "an owner": lambda files: files[1][0].__setattr__("uid", 1000),
    "a mode": lambda files: files[1][0].__setattr__("mode", 0o755),
    "another order": lambda files: files.reverse(),
    "a link": lambda files: files.append((named("runs/x.json", tarfile.SYMTYPE, "/etc/passwd"), b"")),
    "a hard link": lambda files: files.append((named("runs/x.json", tarfile.LNKTYPE, "manifest.json"), b"")),
    "a device": lambda files: files.append((named("runs/null", tarfile.CHRTYPE), b"")),
    "a pipe": lambda files: files.append((named("runs/pipe", tarfile.FIFOTYPE), b"")),
    "a path upwards": lambda files: files.append((named("../x.json"), b"{}")),
    "an absolute path": lambda files: files.append((named("/tmp/x.json"), b"{}")),
    "a hidden file": lambda files: files.append((named("runs/.x.json"), b"{}")),
    "a name twice": lambda files: files.append((named("manifest.json"), b"{}")),
    "a name twice in other letters": lambda files: files.append((named("Manifest.json"), b"{}")),
    "a file below a file": lambda files: files.append((named("manifest.json/x"), b"{}")),
}


@pytest.mark.parametrize("kind", REPACKED)
def test_an_archive_that_was_packed_otherwise_is_caught(kind, whole, tmp_path, archive_alone):
    files = entries(whole.with_suffix(".tar.zst"))
    REPACKED[kind](files)
    (tmp_path / "other.tar.zst").write_bytes(tarred(files))
    assert failing(verifying.verify(str(tmp_path / "other.tar.zst"))) & {"packing", "unpacking"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.tar.zst"]


@pytest.mark.parametrize("place", [0.0, 0.000001, 0.00001, 0.1, 0.5, 0.9, 0.999999, 1.0])
def test_a_byte_of_an_archive_is_caught_wherever_it_flips(place, whole, tmp_path, archive_alone):
    shutil.copy(whole.with_suffix(".tar.zst"), tmp_path / "a.tar.zst")
    flipped("a.tar.zst", place)(tmp_path)
    assert failing(verifying.verify(str(tmp_path / "a.tar.zst"))) & {"packing", "unpacking"}


@pytest.mark.parametrize("change", [lambda data: data[:-40], lambda data: data[: len(data) // 2], lambda data: data + b"\0", lambda data: data + data[:100], lambda data: b""])
def test_an_archive_cut_or_lengthened_is_caught(change, whole, tmp_path, archive_alone):
    (tmp_path / "a.tar.zst").write_bytes(change(whole.with_suffix(".tar.zst").read_bytes()))
    assert failing(verifying.verify(str(tmp_path / "a.tar.zst"))) & {"packing", "unpacking"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{name}.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return folder


def all_made_again(folder: Path) -> None:
    """Another model with its own golden answers: bronze has nothing to say against it."""
    FITTED["all weights scaled"][0](folder)
    made_to_fit(folder)
    (folder / HOME / "golden.json").write_text(json.dumps(golden(folder / HOME / "model")), "utf-8")


def test_a_key_or_a_digest_kept_elsewhere_catches_who_rewrites_everything(whole, keys, tmp_path):
    mine = whole.with_suffix(".tar.zst")
    root = sha256(whole / "manifest.json")
    signatures.sign(mine, keys / "mine.pem")
    found = verifying.verify(str(mine), key=keys / "mine.pub", digest=root)
    assert found.code == 0 and not found.of("unchecked") and found.digest == root
    assert failing(verifying.verify(str(mine), key=keys / "other.pub")) == {"signature"}
    other = changed_by(whole, tmp_path, all_made_again, fit=True)
    assert verifying.verify(str(other)).code == 0
    assert failing(verifying.verify(str(other), digest=root)) == {"root digest"}
    shutil.copy(signatures.signature_of(mine), signatures.signature_of(other))
    assert failing(verifying.verify(str(other), key=keys / "mine.pub")) == {"signature"}
    signatures.sign(other, keys / "other.pem")
    assert failing(verifying.verify(str(other), key=keys / "mine.pub")) == {"signature"}


def test_the_same_run_makes_the_same_archive_and_it_works_elsewhere(short, whole, tmp_path, monkeypatch):
    again = tmp_path / "again.tar.zst"
    done = korlab("archive", "sparse/short", "-o", again, runs=short)
    assert done.returncode == 0 and "checkpoints" in done.stderr, done.stderr
    assert again.read_bytes() == whole.with_suffix(".tar.zst").read_bytes()
    assert done.stdout.strip().endswith(sha256(whole / "manifest.json"))
    done = korlab("unpack", again, "--to", tmp_path / "elsewhere", runs=short)
    assert done.returncode == 0, done.stderr
    done = korlab("verify", "short", "--json", runs=tmp_path / "elsewhere" / "runs")
    said = json.loads(done.stdout)
    assert done.returncode == 0 and said["reached"] == "bronze" and said["counts"] == {"passed": 13, "failed": 0, "unchecked": 0}
    (tmp_path / "elsewhere" / HOME / "metrics.json").write_text("{}")
    done = korlab("verify", "short", runs=tmp_path / "elsewhere" / "runs")
    assert done.returncode == 1 and "metrics.json is damaged" in " ".join(done.stdout.split())


def test_no_secret_and_no_pickle_enters_and_checkpoints_only_when_asked(short, tmp_path, monkeypatch):
    shutil.copytree(short / "sparse" / "short", tmp_path / "short")
    run = reopen(tmp_path / "short")
    (run.folder / "train.ipynb").write_text("hf_" + 40 * "a")
    (run.folder / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    _, left = crates.archive([run], tmp_path / "a.tar.zst")
    assert left[".ipynb"] == left[".bin"] == 1 and left["checkpoints"] > 3
    names = [info.name for info, _ in entries(tmp_path / "a.tar.zst")]
    assert not [name for name in names if name.endswith((".pt", ".bin", ".ipynb", ".pth"))]
    crates.archive([run], tmp_path / "b.tar.zst", optimizer=True)
    assert f"{HOME}/checkpoints/checkpoint-1/optimizer.pt" in [info.name for info, _ in entries(tmp_path / "b.tar.zst")]
    monkeypatch.setenv("SOME_API_KEY", "sesame-open-now")
    (run.folder / "history.jsonl").write_text('{"note": "sesame-open-now"}\n')
    with pytest.raises(archives.ArchiveError, match="history.jsonl holds a secret"):
        crates.archive([run], tmp_path / "c.tar.zst")
    assert not list(tmp_path.glob("*c.tar.zst*"))


def test_what_unpacks_to_more_than_there_is_room_for_is_left_in_it(tmp_path, monkeypatch):
    big, many = tarred([(named("runs/zeros.json"), b"\0" * (1 << 22))]), tarred([(named(f"runs/{i}.json"), b"") for i in range(50)])
    monkeypatch.setattr(archives, "_MOST_BYTES", 1 << 21)
    monkeypatch.setattr(archives, "_MOST_FILES", 40)
    for name, data in (("big", big), ("many", many)):
        (tmp_path / f"{name}.tar.zst").write_bytes(data)
        with pytest.raises(archives.ArchiveError, match="more than 40 files, or than"):
            archives.unpack(tmp_path / f"{name}.tar.zst", tmp_path / name)
    long = named("x" * 200)
    long.pax_headers = {"comment": "y" * (1 << 17)}
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(long)
    (tmp_path / "long.tar.zst").write_bytes(zstandard.ZstdCompressor().compress(sink.getvalue()))
    with pytest.raises(archives.ArchiveError, match="no plain file"):
        archives.unpack(tmp_path / "long.tar.zst", tmp_path / "long")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.tar.zst", "long.tar.zst", "many.tar.zst"]


@pytest.mark.parametrize("old, new", [(r"(\d)\.(\d+) \[", r"\1.9\2 ["), (r"\+(\d+)\.\d", r"+\1.95"), (r"\[(\d)", r"[9\1"), (r"\| test \|", "| english |")])
def test_a_figure_of_a_report_that_was_edited_is_caught(old, new, short, tmp_path, monkeypatch):
    """In every row of the tables one after another."""
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path / "runs"))
    shutil.copytree(short / "ivr" / "short", tmp_path / "runs" / "ivr" / "short")
    monkeypatch.setattr(verifying, "_of_run", lambda *_: [])
    done = korlab("report", short / "ivr.ipynb", "--to", tmp_path / "runs" / "ivr" / "short", runs=tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    page = tmp_path / "runs" / "ivr" / "short" / "ivr.md"
    assert verifying.verify(str(page)).code == 0
    told = page.read_text("utf-8").split("\n")
    rows = [i for i, line in enumerate(told) if line.startswith("| test ") and re.search(old, line) and " [" in line]
    assert rows
    for i in rows[:4]:
        page.write_text("\n".join([*told[:i], re.sub(old, new, told[i], count=1), *told[i + 1 :]]), "utf-8")
        assert failing(verifying.verify(str(page))) == {"report"}, told[i]


@pytest.mark.slow
def test_a_merged_adapter_says_its_bases_and_what_they_differ_by(tmp_path, monkeypatch):
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    monkeypatch.chdir(ROOT)
    done = execute("train", tmp_path / "a.ipynb", model="kobart", name="a", adapter="qlora", warmup=0, tracking="none", **TINY)
    assert done.error is None, done.error
    (said,) = [one for one in verifying.verify("a").checks if one.name == "merged adapter"]
    assert said.state == "passed" and "trained on ../base in NF4" in said.said and "four bits had moved them by" in said.said
    tensors = load_file(file := tmp_path / "summarization" / "a" / "adapter" / "adapter_model.safetensors")
    save_file({name: one * 1.5 for name, one in tensors.items()}, file, {"format": "pt"})
    write_manifest(file.parent)
    assert "merged adapter" in failing(verifying.verify("a"))


@pytest.mark.slow
@pytest.mark.parametrize("study", ["sparse", "ivr"])
def test_predicted_and_trained_again(study, short, tmp_path, monkeypatch):
    """Silver and gold of a run, and what only they catch: another model with golden answers of its own."""
    monkeypatch.setenv("KORLAB_RUNS", str(short))
    done = korlab("verify", f"{study}/short", "--tier", "gold", "--json", runs=short)
    said = json.loads(done.stdout)
    assert (done.returncode, said["reached"]) == (0, "gold"), said
    assert "the same weights, bit for bit" in said["checks"][-1]["said"] and "each to the last bit" in said["checks"][-2]["said"]


@pytest.mark.slow
def test_another_model_with_golden_answers_of_its_own_is_caught_by_predicting_again(whole, tmp_path):
    found = verifying.verify(str(changed_by(whole, tmp_path, all_made_again, fit=True)), "silver")
    assert failing(found) == {"predicted again"}
