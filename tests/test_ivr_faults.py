"""Vocabulary replacement where something is wrong or cut short: files of people, GGUF files, kills in training, two processes."""

import gzip
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, flags, in_a_child
from kills import watched
from safetensors.torch import load_file

from korlab.core.errors import LabError
from korlab.core.files import read_json, read_jsonl, sha256
from korlab.experiment.models import CheckpointError
from korlab.ivr import training
from korlab.ivr.corpora import Wanted, korean, load_corpora, read_texts
from korlab.ivr.preparing import settle, texts_in
from korlab.ivr.steps import Work, init, prepare

TEXTS = korean(40)


# ---- texts of people ---------------------------------------------------------------------------------------------


def jsonl(texts, key: str = "text") -> str:
    return "\n".join(json.dumps({key: text}, ensure_ascii=False) for text in texts)


def csv(*names: str) -> str:
    return "\n".join([",".join(names), *(",".join([f'"{text}"', *"x" * (len(names) - 1)]) for text in TEXTS)])


READ = {  # name -> content: all of these are the forty texts
    "decomposed.txt": unicodedata.normalize("NFD", "\n".join(TEXTS)).encode(),
    "codepage.txt": "\n".join(TEXTS).encode("cp949"),
    "wide.txt": "\n".join(TEXTS).encode("utf-16"),
    "blank_lines.txt": ("\n\n  \n\t\n".join(TEXTS) + "\n\n").encode(),
    "marked.txt": ("\ufeff" + "\n".join(TEXTS)).encode(),
    "windows.txt": ("\r\n".join(TEXTS) + "\r\n").encode(),
    "old_mac.txt": "\r".join(TEXTS).encode(),
    "marked.jsonl": ("\ufeff" + jsonl(TEXTS)).encode(),
    "array.json": json.dumps(TEXTS, ensure_ascii=False, indent=1).encode(),
    "marked.json": ("\ufeff" + json.dumps([{"본문": text} for text in TEXTS])).encode(),
    "table.csv": csv("내용", "id").encode("cp949"),
    "packed.jsonl.gz": gzip.compress(jsonl(TEXTS).encode()),
    "lines.json": jsonl(TEXTS).encode(),
}


@pytest.mark.parametrize("name", READ)
def test_the_same_texts_come_out_of_every_form(tmp_path, name):
    (tmp_path / name).write_bytes(READ[name])
    texts, report = read_texts(str(tmp_path / name))
    assert texts == TEXTS and report.rows_read == 40 and not report.problems
    assert report.nfc_changed == (40 if name.startswith("decomposed") else 0)


REFUSED = {  # name -> content, the column asked for, what is said of the file
    "nothing.txt": (b"", None, r"is empty \(0 bytes\)"),
    "blank.txt": (b"\n \r\n\t\n", None, "holds nothing but blank lines"),
    "nothing.json": (b"[]", None, "holds no row with named values"),
    "unknown.csv": (csv("본론", "id").encode(), None, r"has no column 'text' \(it has 본론, id\): .* or name that column with --text-key"),
    "asked.csv": (csv("text", "id").encode(), "본문", r"has no column '본문', asked for as text \(it has text, id\)"),
    "asked.jsonl": (jsonl(TEXTS).encode(), "본문", r"has no column '본문', asked for as text \(it has text\)"),
    "asked.json": (json.dumps([{"text": "가"}]).encode(), "본문", r"has no column '본문', asked for as text \(it has text\)"),
    "headless.csv": ('"네, 그래요?"\n'.encode() * 9, None, "seems to have no header"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, name):
    content, column, said = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabError, match=said) as caught:
        read_texts(str(tmp_path / name), column=column)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["csv", "jsonl", "json"])
def test_the_column_that_is_asked_for_is_taken_and_no_other(tmp_path, form):
    """Also where another one has the usual name, and where its own is written another way."""
    rows = [{"text": "no", "Body Text": text} for text in TEXTS]
    lines = {"csv": "text,Body Text\n" + "\n".join(f'no,"{text}"' for text in TEXTS), "jsonl": "\n".join(map(json.dumps, rows)), "json": json.dumps(rows)}
    (tmp_path / f"a.{form}").write_text(lines[form], "utf-8")
    for asked in ("Body Text", "body-text"):
        assert read_texts(str(tmp_path / f"a.{form}"), column=asked)[0] == TEXTS
    assert read_texts(str(tmp_path / f"a.{form}"))[0] == ["no"] * 40


@pytest.mark.parametrize("split", [False, True], ids=["whole", "in splits"])
def test_a_folder_is_read_with_its_folders_and_what_is_not_read_is_told(tmp_path, split):
    parts = {"train/a.txt" if split else "a/a.txt": TEXTS[:20], "b/c/b.txt": TEXTS[20:30], "dev/c.txt" if split else "c.txt": TEXTS[30:]}
    for name, texts in parts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join(texts), "utf-8")
    (tmp_path / "b" / "._b.txt").write_bytes(b"\0\5\x16\7" + b"\0" * 60)  # as macOS leaves them
    (tmp_path / "b" / "empty.txt").write_bytes(b"")
    (tmp_path / "b" / "broken.txt").write_bytes("".join(f"맞는 줄 {i}\n" for i in range(20)).encode() + b"\xff\xfe\x80\n")
    (tmp_path / "b" / "cut.json").write_text('["온전한 글", "잘린', "utf-8")
    found = load_corpora(Wanted(data=str(tmp_path)))
    assert sum(len(found.korean[name]) for name in ("train", "dev", "test")) == 60
    told = [*found.notes, *(note for source in found.sources for note in source["notes"])]
    assert [note.split(": ")[1] for note in told] == ["._b.txt"]
    assert sorted(one["kind"] for source in found.sources for one in source["problems"]) == ["0 bytes", "broken JSON", "undecodable bytes"]
    if split:
        assert {*found.korean["dev"]} == {*TEXTS[30:]}


# ---- GGUF --------------------------------------------------------------------------------------------------------


def permuted(weight, heads: int):
    """Rows of queries and keys in the order in which GGUF files have them."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers": "blk"}


def write_gguf(file: Path, model, tokenizer, rule: str = "gpt-2") -> None:
    """Write a small Llama with byte-level merges as one GGUF file, nothing rounded."""
    import gguf

    c, table = model.config, json.loads(tokenizer.backend_tokenizer.to_str())
    out = gguf.GGUFWriter(str(file), "llama")
    for name, value in (("context_length", c.max_position_embeddings), ("embedding_length", c.hidden_size), ("block_count", c.num_hidden_layers),
                        ("feed_forward_length", c.intermediate_size), ("head_count", c.num_attention_heads), ("vocab_size", c.vocab_size),
                        ("head_count_kv", c.num_key_value_heads), ("rope_dimension_count", c.hidden_size // c.num_attention_heads)):
        getattr(out, f"add_{name}")(value)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(rule)
    out.add_token_list(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get))
    out.add_token_types([1] * (len(tokenizer) - 1) + [3])  # the last one is a control token
    out.add_token_merges([" ".join(pair) for pair in table["model"]["merges"]])
    out.add_eos_token_id(len(tokenizer) - 1)
    out.add_bos_token_id(len(tokenizer) - 1)
    for name, weight in model.state_dict().items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}.get(name.split(".")[-2])
        if name != "lm_head.weight":
            out.add_tensor(name, permuted(weight.numpy(), heads) if heads else weight.numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.fixture(scope="module")
def llama():
    """A small Llama and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from korlab.ivr.corpora import english
    from korlab.ivr.models import train_tokenizer

    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, tie_word_embeddings=True)), train_tokenizer(english()[:100], 500)


def test_a_gguf_file_is_the_model_that_was_written(llama, tmp_path):
    pytest.importorskip("gguf")
    import torch

    from korlab.ivr.bpe import parsed
    from korlab.ivr.models import load

    model, tokenizer = llama
    write_gguf(tmp_path / "Tiny.GGUF", model, tokenizer)
    found = load(str(tmp_path / "Tiny.GGUF"))
    assert found.origin == "GGUF file Tiny.GGUF" and found.model.lm_head.weight is found.model.get_input_embeddings().weight
    assert {*found.model.state_dict()} == {*model.state_dict()}
    assert all(torch.equal(weight, found.model.state_dict()[name]) for name, weight in model.state_dict().items())
    ids = torch.tensor([tokenizer("The list of names. 이름 12")["input_ids"]])
    assert torch.equal(found.model.eval()(ids).logits, model.eval()(ids).logits)
    assert parsed(found.tokenizer.backend_tokenizer.to_str()).pieces == parsed(tokenizer.backend_tokenizer.to_str()).pieces
    assert found.tokenizer("The list of names. 이름 12<|endoftext|>")["input_ids"] == tokenizer("The list of names. 이름 12<|endoftext|>")["input_ids"]
    found.model.save_pretrained(tmp_path / "plain")
    found.tokenizer.save_pretrained(tmp_path / "plain")
    assert torch.equal(load(str(tmp_path / "plain")).model.lm_head.weight, model.lm_head.weight)
    whole = (tmp_path / "Tiny.GGUF").read_bytes()
    for size in (8, 300, len(whole) // 2):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="cut.gguf cannot be read .*copy it again"):
            load(str(tmp_path / "cut.gguf"))


def test_a_gguf_file_s_rule_for_words_is_kept(llama, tmp_path):
    pytest.importorskip("gguf")
    from tokenizers import pre_tokenizers

    from korlab.ivr.models import load

    write_gguf(tmp_path / "smol.gguf", *llama, rule="smollm")
    whole = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    text = "In 2024 there were 1,500 names. 이름 12"
    assert load(str(tmp_path / "smol.gguf")).tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text) == whole.pre_tokenize_str(text)
    write_gguf(tmp_path / "other.gguf", *llama, rule="llama-bpe")
    with pytest.raises(CheckpointError, match="other.gguf cuts words by the rule 'llama-bpe', which is none of gpt-2, .*pass checkpoint=FOLDER"):
        load(str(tmp_path / "other.gguf"))


def test_without_the_package_a_gguf_file_is_one_sentence(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from korlab.ivr import models
    from korlab.ivr.cli import app

    monkeypatch.setattr(models, "find_spec", lambda name: None)
    (tmp_path / "small.gguf").write_bytes(b"GGUF\3\0\0\0")
    done = CliRunner().invoke(app, ["init", "--model", "smollm2-ivr", "--size", "full", "--checkpoint", str(tmp_path / "small.gguf"), "--work", str(tmp_path / "work")])
    assert done.exit_code == 1 and isinstance(done.exception, CheckpointError)
    assert str(done.exception).endswith("small.gguf is read by the package gguf, which is not installed: run `pip install gguf`, or pass checkpoint=FOLDER")
    for name, content, said in (("no.gguf", None, "does not exist"), ("zip.gguf", b"PK\3\4", "does not begin as a GGUF file")):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} {said}"):
            models.load(str(tmp_path / name))


# ---- kills -------------------------------------------------------------------------------------------------------

TINY = dict(model="gpt2-ivr", pretraining=4, vocab_size=600, block_size=64, max_steps=4, eval_rows=4, train_rows=300, batch_size=8, tracking="none")
LEFT = ("base/model", "analysis", "tokenizers/original", "tokenizers/distilled_unigram", "tokenizers/remapped", "initialized_model")
FILES = ("replacement_candidates.csv", "selection_log.md", "selection.json", "remap_rules.yaml", "verified.json", "aligned.json")


def prepare_in(folder: Path) -> Work:
    """All steps before the training."""
    with settle(Work(folder), TINY) as (work, config):
        prepare(work, config, texts_in(work, config))
    return work


def train_in(runs: Path, work: Path, scored: bool = True, **values: object) -> Path:
    """What `korlab ivr train` does in its notebook, without drawing: trains the prepared model and scores it."""
    from korlab.experiment.runs import open_run
    from korlab.ivr.study import STUDY

    os.environ["KORLAB_RUNS"] = str(runs)
    run = open_run(TINY | {"name": "one", "prepared": str(work), "eval_steps": 2} | values)
    texts = STUDY.data(run)
    loaded = STUDY.model(run, texts)
    STUDY.train(run, loaded, texts)
    if scored:
        STUDY.evaluate(run, STUDY.model(run, texts), texts)
    run.finish()
    return run.folder


def killed_again_and_again(folder: Path, work: Callable[[], object], first: int, more: int) -> int:
    """Do it in processes that are killed just before their n-th operation on a file, each later than the one before; how many died."""
    def dying(left: list[int]) -> None:
        def see(*operation: str) -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        watched(folder, see)
        work()

    for kills in itertools.count():
        ended = in_a_child(lambda: dying([first + more * kills]))
        if not ended:
            return kills
        assert ended == signal.SIGKILL, f"after {kills} kills: exit status {ended}"


def seals(folder: Path) -> dict[str, str]:
    """Hashes of everything the steps leave."""
    return {name: sha256(folder / name / "manifest.json") for name in LEFT} | {name: sha256(folder / name) for name in FILES}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, one_thread) -> Path:
    """A folder whose steps are done, never killed; nobody changes it."""
    return prepare_in(tmp_path_factory.mktemp("steps") / "work").folder


def logged(folder: Path) -> list[dict]:
    """The history of a run without what a clock says."""
    return [{name: value for name, value in row.items() if not re.search("runtime|per_second|^eval_seconds", name)} for row in read_jsonl(folder / "history.jsonl")]


def scores(folder: Path) -> dict:
    """What a run was worth: (system, split, measure) -> mean and interval."""
    return {(one["system"], one["split"], name): value for one in read_json(folder / "metrics.json")["scores"] for name, value in one["measures"].items()}


OFTEN = [pytest.param(*some, marks=pytest.mark.slow) for some in ((11, 6), (3, 2))]  # operations before the first kill, and how many more before each further one


@pytest.mark.parametrize(("first", "more"), OFTEN)
def test_steps_that_are_killed_again_and_again_leave_what_unkilled_ones_leave(prepared, tmp_path, first, more):
    """The pretraining of the base too, before, in and after its checkpoints."""
    folder = tmp_path / "work"
    assert killed_again_and_again(folder, lambda: prepare_in(folder), first, more) > 3
    assert seals(folder) == seals(prepared)
    told: list[str] = []
    with settle(Work(folder, note=told.append), {}) as (work, config):
        prepare(work, config, texts_in(work, config))
    assert [line.partition(": ")[2] for line in told] == ["nothing changed"] * 6
    assert not [path for path in folder.rglob(".*") if path.is_dir()]  # no draft is left lying
    assert logged(folder / "base") == logged(prepared / "base")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_an_unkilled_one_ends(prepared, tmp_path):
    straight = train_in(tmp_path / "straight", prepared)
    assert killed_again_and_again(tmp_path / "killed", lambda: train_in(tmp_path / "killed", prepared), 5, 6) > 8
    killed = tmp_path / "killed" / "ivr" / "one"
    assert sha256(killed / "model" / "manifest.json") == sha256(straight / "model" / "manifest.json")
    assert logged(killed) == logged(straight) and scores(killed) == scores(straight)


@pytest.mark.slow
def test_seconds_that_were_spent_before_a_kill_count(prepared, tmp_path, monkeypatch):
    """A clock that gives each update a second: it ends after nine, at the rates of a training that nobody killed."""
    ticks = itertools.count()
    monkeypatch.setattr(training, "_clock", lambda device: float(next(ticks)))
    how = dict(seconds=9.0, max_steps=10_000, eval_steps=3, warmup=0.2, rows_first=0.3, scored=False)
    straight = train_in(tmp_path / "straight", prepared, **how)
    assert killed_again_and_again(tmp_path / "killed", lambda: train_in(tmp_path / "killed", prepared, **how), 66, 18) > 1
    killed = tmp_path / "killed" / "ivr" / "one"
    rows = [read_jsonl(folder / "history.jsonl") for folder in (straight, killed)]
    assert [[(row["step"], row["eval_seconds"]) for row in one if "eval_bpb" in row] for one in rows] == [[(0, 0.0), (3, 3.0), (6, 6.0), (9, 9.0)]] * 2
    assert logged(killed) == logged(straight) and sha256(killed / "model" / "manifest.json") == sha256(straight / "model" / "manifest.json")
    rates = [row["learning_rate"] for row in rows[1] if "loss" in row]
    assert len(rates) == 9 and rates[3:] == sorted(rates[3:], reverse=True), "the rate goes down after the rows had theirs"


@pytest.mark.slow
def test_the_last_command_ends_where_an_unkilled_one_ends(prepared, tmp_path):
    """`korlab ivr train` as a whole process, its kernel killed between two checkpoints."""
    straight = train_in(tmp_path / "straight", prepared)
    shutil.copytree(prepared, tmp_path / "work")
    command = [sys.executable, "-c", "from korlab.cli.main import main; main()", "ivr", "train", "--work", str(tmp_path / "work"), "-p", "eval_steps", "2"]
    run, env = tmp_path / "runs" / "ivr" / "work", os.environ | {"KORLAB_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    begun = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (run / "checkpoints" / "checkpoint-2" / "manifest.json").exists():
        assert begun.poll() is None
        time.sleep(0.01)
    os.kill(read_json(run / "status.json")["pid"], signal.SIGKILL)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    assert not (run / "metrics.json").exists()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sha256(run / "model" / "manifest.json") == sha256(straight / "model" / "manifest.json")
    assert logged(run) == logged(straight) and scores(run) == scores(straight)


# ---- two processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, {"seconds": 2.0, "max_steps": 10_000, "rows_first": 0.5}], ids=["updates", "seconds"])
def test_two_processes_train_the_run_of_one(prepared, tmp_path, values):
    """`accelerate launch` with the file that is shipped: as many updates, nearly the same weights, one set of records, and a run that goes on."""
    shutil.copytree(prepared, tmp_path / "two")
    env = os.environ | {"KORLAB_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    korlab = [str(Path(sys.executable).with_name("korlab")), "ivr", "train", "--work", str(tmp_path / "two"), *flags(eval_steps=2, **values)]
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", "params/ivr/launch/two_processes.yaml"]
    done = subprocess.run([*launch, *korlab], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "runs" / "ivr" / "two"
    notes = [note["text"] for note in read_json(run / "status.json")["notes"]]
    assert [note[:50] for note in notes].count("2 processes share every update of 8 × 1 rows; where"[:50]) == 1 and len(notes) == len({*notes})
    rows = read_jsonl(run / "history.jsonl")
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == sorted({*steps}) and [path.name for path in run.parent.iterdir()] == ["two"]
    assert read_json(run / "train.json")["train_metrics"]["updates"] == steps[-1]
    if values:
        assert 2.0 <= rows[-2]["eval_seconds"] < 3.0  # of both together
        return
    one = train_in(tmp_path / "one", prepared)
    alone = read_jsonl(one / "history.jsonl")
    assert steps == [row["step"] for row in alone if "loss" in row]
    for key in ("loss", "eval_bpb", "eval_bpb_en"):
        assert [row[key] for row in rows if key in row] == pytest.approx([row[key] for row in alone if key in row], rel=1e-3), key
    done = subprocess.run([sys.executable, "-c", "from korlab.cli.main import main; main()", *korlab[1:]], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for key, value in scores(one).items():
        assert scores(run)[key] == pytest.approx(value, rel=5e-3), key


# ---- changes -----------------------------------------------------------------------------------------------------


def test_a_refused_value_takes_nothing_away(prepared, tmp_path):
    from typer.testing import CliRunner

    from korlab.ivr.cli import app

    work = Path(shutil.copytree(prepared, tmp_path / "work"))
    before = seals(work) | {"record": sha256(work / "steps" / "select.json")}
    for budget in ("1.0", "100%", "0", "600", "0.99", "nan", "many"):
        done = CliRunner().invoke(app, ["select", "--work", str(work), "--budget", budget])
        assert isinstance(done.exception, LabError) and f"budget={budget}" in str(done.exception).replace("'", ""), budget
        assert seals(work) | {"record": sha256(work / "steps" / "select.json")} == before
    done = CliRunner().invoke(app, ["remap", "--work", str(work)])
    assert "remap: nothing changed" in done.output, done.output


def test_another_training_starts_from_the_same_base(prepared, tmp_path):
    with settle(Work(tmp_path / "work"), TINY | {"learning_rate": 0.5, "batch_size": 2}) as (work, config):
        init(work, config, texts_in(work, config))
    assert sha256(tmp_path / "work" / "base" / "model" / "model.safetensors") == sha256(prepared / "base" / "model" / "model.safetensors")


def test_other_weights_under_the_same_name_are_another_base(llama, tmp_path):
    """And the same weights under another name are not."""
    model, tokenizer = llama
    folder, told = tmp_path / "checkpoint", []
    model.save_pretrained(folder), tokenizer.save_pretrained(folder)
    def again(place: Path) -> list[str]:
        told.clear()
        values = {"model": "smollm2-ivr", "size": "full", "checkpoint": str(place), "budget": "20", "train_rows": 200}
        with settle(Work(tmp_path / "work", note=told.append), values) as (work, config):
            prepare(work, config, texts_in(work, config))
        return [line for line in told if not line.endswith("nothing changed")]

    assert len(again(folder)) == 5
    assert not again(folder.rename(tmp_path / "moved"))
    other = type(model)(model.config)
    other.save_pretrained(tmp_path / "moved")
    assert [line.split(":")[0] for line in again(tmp_path / "moved")] == ["init", "analyze", "select", "remap", "align"]
    aligned = load_file(tmp_path / "work" / "initialized_model" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert aligned[name].equal(other.state_dict()[name])
