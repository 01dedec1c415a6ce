"""What a reader of vocabulary replacement sees: whole reports of real runs, and the records they are made of."""

import json
import re
import shutil

import pytest
from conftest import ROOT, quoted_in
from in_process import execute, shown

from korlab.core.files import read_json, read_jsonl, write_json
from korlab.experiment.results import stand_in
from korlab.experiment.runs import find_run
from korlab.ivr.bpe import bpe_of, tokenizer
from korlab.ivr.pages import headline, step_rows
from korlab.ivr.pictures import SENTENCE, Cut, exchange_rows, seconds_figure, sentence_figure, vocabulary_map, watched
from korlab.ivr.remapping import remapped
from korlab.ivr.rules import Rule, Rules

TINY = dict(model="gpt2-ivr", max_steps=4, pretraining=4, vocab_size=600, train_rows=40, eval_rows=4, block_size=64, eval_steps=2, tracking="none")
OWN = ["도서관에서 책을 빌렸다.", "내일은 맑을 것이다.", "기차가 늦어서 회의에 늦었다."]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where two runs are, `replaced` and `kept`, trained for a moment through train.ipynb."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KORLAB_RUNS", str(folder))
        for name in ("replaced", "kept"):
            done = execute("train", folder / f"{name}.ipynb", name=name, vocabulary=name, **TINY)
            assert done.error is None, done.error
        yield folder


@pytest.mark.slow
def test_two_trials_of_a_search_end_with_a_scored_best(tmp_path, monkeypatch):
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    (tmp_path / "space.yaml").write_text("learning_rate: {low: 1.0e-3, high: 4.0e-3, log: true}\nrows_first: {low: 0.1, high: 0.4}\n")
    values = " ".join(f"{name}={value}" for name, value in (TINY | {"distilled": False, "max_steps": 2}).items() if name != "model")
    done = execute("tune", tmp_path / "out.ipynb", experiment=str(ROOT / "params" / "ivr" / "replaced.yaml"), space=str(tmp_path / "space.yaml"),
                   name="search", trials=2, values=values)
    assert done.error is None, done.error
    trials = read_json(tmp_path / "ivr" / "search" / "trials.json")["trials"]
    assert [one["state"] for one in trials] == ["complete"] * 2
    best = min(trials, key=lambda one: one["value"])  # bits per byte: lower is better
    run = find_run(f"ivr/search-trial-{best['trial']:03d}")
    assert run.has("metrics") and run.state == "done" and run.config.training.learning_rate == best["learning_rate"]
    assert f"{best['value']:.4f} on dev" in (tmp_path / "ivr" / "search" / "best.yaml").read_text("utf-8")


def test_the_space_that_is_shipped_is_one():
    from korlab.core.yamls import read_yaml
    from korlab.workbench.spaces import load_space

    assert len(load_space(ROOT / "params" / "ivr" / "search" / "mini.yaml", read_yaml(ROOT / "params" / "ivr" / "replaced.yaml"))) == 7


def figures(notebook) -> list[str]:
    """The titles of the pictures that a notebook displays."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [one["data"] for cell in cells for one in cell.get("outputs", []) if "image/png" in one.get("data", {})]
    return ["".join(one["text/plain"]) for one in outputs]


def test_a_report_shows_steps_sentence_map_budget_seconds_states_and_writing(runs):
    text, pictures = shown(runs / "replaced.ipynb"), figures(runs / "replaced.ipynb")
    assert pictures == ["한 문장이 거쳐 간 어휘", "어휘 지도: id마다 한 칸", "어휘를 몇 개 바꾸면", "훈련에 든 시간과 dev 점수", "토큰당 손실",
                        "1바이트에 드는 비트와 95 % 구간"]
    steps = [line.split(" | ") for line in text.splitlines() if re.match(r"\| \d \| ", line)]
    assert [row[1] for row in steps] == ["init", "analyze", "distill-tokenizer", "select", "remap", "align", "train"]
    record = read_json(runs / "ivr" / "replaced" / "steps" / "select.json")
    assert steps[3][2] == f"바꿀 수 있는 {record['facts']['can go']}개 가운데 150개를 골랐다 (지킨 것 {record['facts']['protected']}개)"
    assert len(read_json(runs / "ivr" / "replaced" / "selection.json")["protected"]) == record["facts"]["protected"]
    assert not re.search(r"\| english test \|[^\n]*\|\s*\|$", text, re.MULTILINE), "the English test has no hash"
    assert steps[3][3] == f"{record['seconds']:,.1f}" and steps[6][2].startswith("4번 고쳤고 ")
    for split in ("test", "written", "english"):
        assert [line.split(" | ")[1] for line in text.splitlines() if line.startswith(f"| {split} | ") and " [" in line and "바이트" not in line][1:4] == [
            "훈련한 뒤", "바꾼 직후", "손대기 전"]
    assert "바꾼 직후에 나빠지고" in text and "| 떠난 토큰 | " in text and "| 들어온 토큰 | 한글 한 글자 | " in text
    assert sum(int(line.split(" | ")[2]) for line in text.splitlines() if line.startswith("| 들어온 토큰 | ")) == 150


def test_a_run_that_keeps_its_vocabulary_says_which_steps_it_left_out_and_draws_none_of_them(runs):
    text, pictures = shown(runs / "kept.ipynb"), figures(runs / "kept.ipynb")
    assert pictures == ["훈련에 든 시간과 dev 점수", "토큰당 손실", "1바이트에 드는 비트와 95 % 구간"]
    assert text.count("건너뛰었다: 어휘를 그대로 둔다") == 5 and "바꾼 직후 |" not in text


def test_the_first_line_of_a_report_is_the_result_with_what_was_before(runs):
    run = find_run("replaced")
    found = {(one["system"], one["split"]): one["measures"]["bpb"]["mean"] for one in run.read("metrics")["scores"]}
    for split, language in (("test", "한국어"), ("english", "영어")):
        own, aligned, untouched = (found[system, split] for system in ("gpt2-ivr", "aligned", "untouched"))
        assert re.search(rf"{language} n=\d+, {own:.3f} \[[\d., ]+\] \(손대기 전 {untouched:.3f}, 바꾼 직후 {aligned:.3f}\)", headline(run))
    speed = run.read("metrics")["splits"]["test"]["systems"]
    assert f"속도는 {speed['gpt2-ivr']['bytes_per_second'] / speed['untouched']['bytes_per_second']:.1f}배이다" in headline(run)


def test_a_report_can_be_passed_on_without_the_texts(runs, tmp_path):
    texts = [row["text"] for split in ("test", "written", "english") for row in read_jsonl(runs / "ivr" / "replaced" / "bits" / f"{split}.jsonl")]
    assert len(quoted_in(runs / "replaced.ipynb", texts, tmp_path)) > 50
    assert not quoted_in(runs / "replaced.ipynb", texts, tmp_path, "--no-quotes")
    assert not {"prompt", "written"} & {*read_json(runs / "ivr" / "replaced" / "metrics.json")["splits"]["test"]}


def test_a_comparison_draws_both_from_before_the_first_update(runs):
    done = execute("compare", runs / "compare.ipynb", runs="replaced,kept")
    assert done.error is None, done.error
    text = shown(runs / "compare.ipynb")
    assert "같은 시간을 배우면" in figures(runs / "compare.ipynb") and "작은 모델들의 순위로 진짜 모델의 순위를 말할 수 없다" in text
    for name in ("replaced", "kept"):
        first = next(row for row in read_jsonl(runs / "ivr" / name / "history.jsonl") if "eval_bpb" in row)
        assert (first["step"], first["eval_seconds"]) == (0, 0.0)
        row = next(line for line in text.splitlines() if line.startswith(f"| 한국어 | {name} | "))
        assert row.split(" | ")[4] == f"{first['eval_bpb']:.3f}"
    states = [line.split(" | ")[5] for line in text.splitlines() if line.startswith(("| test | replaced | ", "| test | kept | ")) and " [" in line]
    assert len(states) == 2 and states[1] == "–"  # nothing was aligned where the vocabulary was kept


def test_ones_own_text_in_cp949_is_scored_in_every_state_and_shown_as_it_is(runs, tmp_path):
    own = tmp_path / "mine.txt"
    own.write_bytes("\n".join(OWN).encode("cp949"))
    done = execute("evaluate", runs / "own.ipynb", run="replaced", data=str(own), name="own")
    assert done.error is None, done.error
    folder = runs / "ivr" / "replaced" / "evaluations" / "own"
    found = read_json(folder / "metrics.json")["scores"]
    assert [(one["system"], one["n"]) for one in found if one["split"] == "test"] == [("gpt2-ivr", 3), ("untouched", 3), ("aligned", 3)]
    assert {row["text"] for row in read_jsonl(folder / "bits" / "test.jsonl")} == {*OWN}
    assert [*read_json(folder / "data.json")["rows"]] == ["test", "english test"]  # nothing else was looked at
    assert any("\n" in row["text"] for row in read_jsonl(folder / "bits" / "english.jsonl"))
    assert all(text in done.page for text in OWN) and "&lt;br" not in done.page


@pytest.mark.parametrize(("values", "step", "said"), [
    ({"vocabulary": "fresh"}, "select", "어휘를 처음부터 새로 만든다"), ({"distilled": False}, "distill-tokenizer", "진단이라 하지 않았다"),
    ({"vocabulary": "kept"}, "align", "어휘를 그대로 둔다"),
])
def test_a_step_without_a_record_says_why(tmp_path, monkeypatch, values, step, said):
    monkeypatch.setenv("KORLAB_RUNS", str(tmp_path))
    run = stand_in("by-hand", {"test": [2.0]}, modes=("bits",), model="gpt2-ivr", **values)
    assert {row["did"] for row in step_rows(run)[:6]} == {"기록이 없다: 단계를 적기 전의 실행이다"}
    facts = {"base": "a folder", "tokens": 2000, "merges": 1743, "added": 1, "sha256": "0" * 64}
    write_json(run.path("steps", "init.json"), {"step": "init", "inputs": {}, "outputs": {"tokenizers/original": "0" * 64}, "seconds": 1234.56, "facts": facts})
    rows = {row["step"]: row for row in step_rows(run)}
    assert said in rows[step]["did"] and rows[step]["seconds"] is None
    assert rows["init"]["seconds"] == "1,234.6" and rows["init"]["left"] == "tokenizers/original" and "1,743" in rows["init"]["did"]


def swapped():
    """A base in which `ther` and `er` give their ids to a syllable and its first two bytes."""
    base = bpe_of([("t", "h"), ("e", "r"), ("th", "er")])
    ids, syllable = base.ids, "오".encode()
    first, last = syllable[:2], syllable[2:]
    rules = (Rule(ids[b"er"], b"er", first, ids[first[:1]], ids[first[1:]]), Rule(ids[b"ther"], b"ther", syllable, ids[b"er"], ids[last]))
    return base, remapped(base, Rules(base.sha256, rules))


def test_the_watched_sentence_never_loses_a_byte_and_marks_what_goes_and_what_came():
    base, new = swapped()
    cuts = watched(base, new, texts=("오오", " other"))
    assert [b"".join(one.pieces).decode() for one in cuts] == ["오오 other"] * 3
    assert [one.tokens for one in cuts] == [(6, 3), (6, 5), (2, 5)]
    assert [[piece for piece, edge in zip(one.pieces, one.edge) if edge] for one in cuts] == [[b"ther"], [], ["오".encode()] * 2]
    assert [one.last for one in cuts] == [False, False, True]
    real = watched(base, new)
    assert "".join(SENTENCE) == b"".join(real[0].pieces).decode() and sum(real[0].tokens) == len(tokenizer(base).encode("".join(SENTENCE)).ids)


def test_pictures_take_any_bytes_and_ids_of_any_number():
    base, new = swapped()
    odd = Cut("이상한 것", (b"\xed\xa0", "\U0001F389".encode(), b"$x$\n", b"", "漢字".encode()), (False,) * 5, (2, 3), False)
    assert len(sentence_figure([odd]).axes[0].patches) == 5
    gone = [base.ids[b"er"], base.ids[b"ther"]]
    legend = vocabulary_map(base, gone).legends[0].get_texts()
    assert [text.get_text().split()[-1] for text in legend] == ["1", str(len(base.fixed)), "2"]
    assert [(row[""], row["kind"], row["tokens"]) for row in exchange_rows(base, new)] == [
        ("떠난 토큰", "영어 조각", 2), ("들어온 토큰", "글자의 조각", 1), ("들어온 토큰", "한글 한 글자", 1)]


def test_seconds_of_a_gpu_are_not_called_those_of_a_processor():
    rows = [dict(step=i, eval_seconds=float(i), eval_bpb=3.0 - i) for i in range(2)]
    assert seconds_figure({"a": rows}, processor=False).axes[0].get_xlabel() == "훈련에 든 초"


def test_a_run_that_lost_its_base_is_still_scored_and_says_so(runs, tmp_path):
    own, kept = tmp_path / "mine.txt", runs / "ivr" / "kept"
    own.write_text("\n\n".join(OWN), encoding="utf-8")
    shutil.move(kept / "base", tmp_path / "base")
    done = execute("evaluate", runs / "lost.ipynb", run="kept", data=str(own), name="lost")
    assert done.error is None, done.error
    assert [one["system"] for one in read_json(kept / "evaluations" / "lost" / "metrics.json")["scores"] if one["split"] == "test"] == ["gpt2-ivr"]
    assert "손대기 전의 모델을 찾지 못해 함께 채점하지 못했다" in shown(runs / "lost.ipynb")
