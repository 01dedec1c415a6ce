"""Entity recall on what people bring: texts, built sets, folders and gold chains, from the file to the report."""

import json
import os
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, quoted_in
from in_process import execute
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.core.accounts import DataError
from korlab.core.files import read_json
from korlab.coref.corpora import RECIPES, build, load_samples
from korlab.coref.models import load
from korlab.coref.recall import baselines
from korlab.coref.splits import load_splits, questions, refuse_recipe
from korlab.coref.stages import _check_rebucket
from korlab.experiment.params import ParameterError
from korlab.experiment.studies import configure

NAMES = ["삼성전자", "한국은행", "카카오뱅크", "현대자동차", "서울대학교", "부산항만공사", "포스코", "네이버", "대한항공", "제주도", "국립중앙박물관", "이순신"]
THINGS = ["새 연구소", "작은 도서관", "기념 전시회", "공개 강연", "장학 사업", "시험 항로", "겨울 축제", "무료 진료소", "나무 심기", "동네 음악회"]
TEXTS = [f"올해 {name} 소식이 신문에 실렸다. {thing} 준비가 끝났다고 한다. 많은 사람이 찾아왔고 질문이 이어졌다. {thing} 이야기를 꺼낸 {name} 관계자가 웃었다."
         for thing in THINGS for name in NAMES]
TINY = dict(model="kf-deberta", max_steps=2, eval_steps=2, eval_rows=4, batch_size=4, questions=8, context_length=64, beam=2, tracking="none")
GOLD = TEXTS[100]


def lines(texts):
    return "\n".join(json.dumps({"본문": text}, ensure_ascii=False) for text in texts)


def config(**values):
    return configure({"model": "kf-deberta", "lambada": "none"} | {name: str(one) if isinstance(one, Path) else one for name, one in values.items()})


def korlab(*words):
    return CliRunner().invoke(command_line(), ["coref", *map(str, words)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """Where the runs of these tests are."""
    runs, before = tmp_path_factory.mktemp("runs"), os.environ.get("KORLAB_RUNS")
    os.environ["KORLAB_RUNS"] = str(runs)
    yield runs
    os.environ.pop("KORLAB_RUNS") if before is None else os.environ.update(KORLAB_RUNS=before)


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """A folder as people have them: decomposed letters, Windows line ends, a text twice, a broken line, an empty file, and what is no data."""
    folder = tmp_path_factory.mktemp("brought")
    (folder / "news.jsonl").write_text(lines([*TEXTS[:60], unicodedata.normalize("NFD", TEXTS[60]), TEXTS[0]]) + '\n{"본문": "끊긴\n', "utf-8")
    (folder / "old.txt").write_bytes(TEXTS[61].replace(". ", ".\r\n").encode("cp949"))
    (folder / "none.txt").touch()
    (folder / "readme.md").touch()
    (folder / "below").mkdir()
    return folder


@pytest.fixture(scope="module")
def made(brought, tmp_path_factory):
    """The set that `korlab coref build` makes of them."""
    return build(tmp_path_factory.mktemp("sets") / "set", RECIPES["plain"], str(brought))


@pytest.fixture(scope="module")
def own(home, brought):
    """A run on somebody's texts, as papermill makes it."""
    done = execute("train", home / "own.ipynb", name="own", data=brought, lambada="none", max_entity_freq=50, **TINY)
    assert done.error is None, done.error
    return SimpleNamespace(folder=home / "coref" / "own", page=done.page)


# ---- a run ---------------------------------------------------------------------------------------------------------


def test_a_run_on_texts_shows_every_row_that_it_lost(own):
    sources = read_json(own.folder / "data.json")["sources"]
    assert [one["split"] for one in sources] == ["train, dev, test"]
    assert sum(one["rows"]["read"] - one["rows"]["kept"] for one in sources) == 1  # the broken line; the empty file is told beside
    assert "| train, dev, test | …/news.jsonl | 63 | 63 | broken JSON |" in own.page
    assert "none.txt" in own.page and "0 bytes" in own.page
    assert "same text again | 1" in own.page
    assert "readme.md" in own.page and "below" in own.page


def test_a_report_can_be_passed_on_without_the_texts(own, home, tmp_path):
    assert len(quoted_in(home / "own.ipynb", TEXTS[:62], tmp_path)) > 10
    assert not quoted_in(home / "own.ipynb", TEXTS[:62], tmp_path, "--no-quotes")


def test_what_another_file_cannot_be_asked_is_told(own, home, tmp_path):
    (tmp_path / "other.jsonl").write_text(lines([*TEXTS[70:80], "이름이 없는 글은 아무것도 묻지 않는다. " * 4]), "utf-8")
    done = execute("evaluate", tmp_path / "out.ipynb", run="own", data=tmp_path / "other.jsonl", context_length=16, modes="strict")
    assert done.error is None, done.error
    assert "no name comes again | 1" in done.page  # as a run says it of what it learns from
    found = read_json(next((home / "coref" / "own" / "evaluations").glob("*/metrics.json")))
    lost, n = found["splits"]["test"]["unasked"], found["scores"][0]["n"]
    assert lost and all(one["n"] == n for one in found["scores"] if one["split"] == "test")
    assert f"질문 {n}개 가운데 {sum(lost.values())}개는 물을 수 없어 틀린 것으로 쳤다" in done.page
    assert "constant" not in {one["system"] for one in found["scores"]}  # what is learnt from is not known here


def gold(places, text=GOLD):
    return json.dumps({"text": text, "clusters": [places]}, ensure_ascii=False)


def test_gold_names_that_training_asked_for_are_scored_and_those_it_lacks_are_not(own, tmp_path):
    known = read_json(own.folder / "train_names.json")[0]
    text = f"{known} 이야기이다. 어제 {known} 이야기가 나왔다."
    later = text.rindex(known)
    (tmp_path / "gold.jsonl").write_text(gold([[0, len(known)], [later, later + len(known)]], text), "utf-8")
    done = execute("evaluate", tmp_path / "out.ipynb", run="own", data=tmp_path / "gold.jsonl", modes="strict")
    assert done.error is None, done.error  # the cap of the run's own names, inherited, is nobody's wish here
    assert "unseen: there is no question of this kind, so it is not scored." in done.page
    assert "1 gold chain with 2 mentions, 1 of them asked about" in done.page


@pytest.mark.parametrize("name, value", [("rule", "source"), ("max_chars", 500)])
def test_an_evaluation_of_the_runs_own_questions_takes_no_other_recipe(own, tmp_path, name, value):
    done = execute("evaluate", tmp_path / "out.ipynb", run="own", **{name: value})
    assert f"{name}={value!r} would have no effect" in str(done.error)


# ---- where questions are from ----------------------------------------------------------------------------------------


def test_a_built_set_is_learnt_from_as_it_is(made, tmp_path):
    whole, splits = load_samples(made), load_splits(config(data=made), tmp_path)
    assert (splits.train, splits.held) == (whole.train, whole.held)
    assert [one["split"] for one in splits.sources] == ["train, dev, test"]
    with pytest.raises(ParameterError, match="max_chars=900 would have no effect: the data hold questions already"):
        load_splits(config(data=made, max_chars=900), tmp_path)


@pytest.mark.parametrize("layout", ["train_{}.txt test_{}.txt", "train/{}.txt test/{}.txt"])
def test_a_folder_says_its_splits_by_files_or_folders(tmp_path, layout):
    for where, some in zip(layout.split(), (TEXTS[:40], [*TEXTS[40:50], "한 번만 나오는 서울의 이야기를 적은 짧지 않은 글이다. 다른 이름은 없다."]), strict=True):
        for i, text in enumerate(some):
            (path := tmp_path / "data" / where.format(i)).parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    (tmp_path / "data" / "readme.md").touch()
    splits = load_splits(config(data=tmp_path / "data"), tmp_path / "run")
    assert {one.text for one in splits.held["test"]} == set(TEXTS[40:50])
    assert {one.text for part in (splits.train, splits.held["dev"]) for one in part} == set(TEXTS[:40])
    assert any("readme.md" in note for note in splits.notes)


def test_a_recipe_is_for_the_texts_among_several_sources(tmp_path):
    (tmp_path / "texts.jsonl").write_text(lines(TEXTS[:30]), "utf-8")
    name, text = "세종", "세종 그리고 다시 세종 이야기"
    (tmp_path / "gold.jsonl").write_text(gold([[0, 2], [text.rindex(name), text.rindex(name) + 2]], text), "utf-8")
    splits = load_splits(config(data=tmp_path / "texts.jsonl", rule="source", test_data=tmp_path / "gold.jsonl"), tmp_path)
    assert [one.target for one in splits.held["test"]] == [name]
    with pytest.raises(ParameterError, match="rule='source' would have no effect"):
        refuse_recipe({"rule": "source"}, [str(tmp_path / "gold.jsonl")])


def test_gold_without_a_question_says_why_and_what_it_lost(tmp_path):
    (tmp_path / "gold.jsonl").write_text("\n".join([gold([[0, 2], [3, 5]]), gold([[0, 9999]]), '{"text": "군집이 없다."}']), "utf-8")
    with pytest.raises(DataError, match=r"nothing can be asked of .*other words 1\. 1 of 3 rows kept; problems: broken mention 1, no clusters 1"):
        questions(config(data="x"), str(tmp_path / "gold.jsonl"), tmp_path / "none")
    with pytest.raises(ParameterError, match="nothing to learn from: give it as test_data"):
        load_splits(config(data=tmp_path / "gold.jsonl"), tmp_path)


def test_an_overlap_names_a_document(tmp_path):
    for name, some in (("a", TEXTS[:30]), ("b", TEXTS[29:40])):
        (tmp_path / f"{name}.jsonl").write_text(lines(some), "utf-8")
    with pytest.raises(DataError, match=f"train and dev share 1 document, one of which begins '{TEXTS[29][:20]}"):
        load_splits(config(data=tmp_path / "a.jsonl", test_data=tmp_path / "b.jsonl", dev_data=tmp_path / "b.jsonl"), tmp_path)


def test_nobody_knows_what_a_strange_model_learnt_most(made):
    held = load_samples(made).held["test"]
    assert "constant" not in baselines([], held) and "constant" in baselines(held, held)


# ---- the terminal ----------------------------------------------------------------------------------------------------


def test_quality_names_lost_rows_and_what_was_not_read(made):
    done = korlab("quality", made)
    assert done.exit_code == 0, done.output
    row = next(line for line in done.stdout.splitlines() if "broken JSON" in line)
    assert "news.jsonl" in row and " 63 " in row
    assert "none.txt" in done.stdout
    assert "below, readme.md" in done.stderr


# ---- what cannot work is refused before it begins ---------------------------------------------------------------------


@pytest.mark.parametrize("values, said", [
    ({"objective": "combined"}, "mask_max=0.0 masks none: set mask_max"),
    ({"objective": "published", "mask_max": 0.0}, "learns from pieces masked at random and from nothing else"),
    ({"mask_min": 0.3}, "mask_min=0.3 is above mask_max=0.0"),
    ({"modes": "strict, exact"}, "there is no 'exact', name some of strict, oracle_len"),
    ({"objective": "combined", "mask_max": 0.2, "mlm_weight": 0.5}, "mlm_weight=0.5 would have no effect because objective='combined'"),
    ({"mlm_weight": 0.5}, "mlm_weight=0.5 would have no effect because mask_max=0.0"),
    ({"batching": "length"}, "choose tokens or random"),
    ({"positions": "keep"}, "positions='keep' would have no effect because size='mini'"),
    ({"objective": "combined", "mask_max": 0.2, "misfits": 0.1}, "misfits=0.1 would have no effect"),
])
def test_a_parameter_that_could_do_nothing_is_refused(values, said):
    with pytest.raises(ParameterError, match=said):
        configure({"model": "kf-deberta"} | values)


def test_distances_are_not_stretched_where_no_longer_text_is_read(own):
    loaded = load(str(own.folder / "model"))
    with pytest.raises(ParameterError, match="positions='rebucket' would have no effect: the checkpoint reads 64 tokens"):
        _check_rebucket(configure(dict(model="kf-deberta", size="full", positions="rebucket", context_length=64)).own, loaded.model)
    _check_rebucket(configure(dict(model="kf-deberta", size="full", positions="rebucket", context_length=128)).own, loaded.model)


def test_every_recipe_of_the_repository_is_possible():
    from korlab.core.yamls import read_yaml

    for file in sorted((ROOT / "params" / "coref").glob("*.yaml")):
        configure(read_yaml(file))


# ---- runs side by side -------------------------------------------------------------------------------------------------


def test_runs_with_and_without_last_nouns_stand_side_by_side(own, home, tmp_path):
    other = home / "coref" / "asked-nouns"
    shutil.copytree(own.folder, other, ignore=shutil.ignore_patterns("evaluations", "model", "checkpoints", "base"))
    found = read_json(other / "metrics.json")
    found["splits"]["test"]["composite"] = 0.25
    (other / "metrics.json").write_text(json.dumps(found), "utf-8")
    done = execute("compare", tmp_path / "out.ipynb", runs="own,asked-nouns")
    assert done.error is None, done.error
    head, row = (next(line for line in done.page.splitlines() if line.startswith(one)) for one in ("| 실행 | composite |", "| asked-nouns | 25.0 |"))
    assert head.count("|") == row.count("|")
