"""Figures: no empty boxes, colours that stay apart, sizes that fit a report, and faults while saving."""

import itertools
import math
import random
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from korlab.core import charts, plots

ROUGE = {"eval_rouge1": "ROUGE-1", "eval_rouge2": "ROUGE-2", "eval_rougeL": "ROUGE-L"}


def history(n=40):
    return [{"step": 10 * i, "loss": 4 / i, "eval_loss": 5 / i, "eval_rouge1": 2.0 * i, "eval_rouge2": i,
             "eval_rougeL": 1.9 * i, "eval_rouge_sum": 4.9 * i} for i in range(1, n + 1)]


@cache
def gallery():
    numbers = random.Random(1)
    scores = {"시험": [numbers.uniform(0, 100) for _ in range(240)], "어려운 시험": [50.0], "손으로 쓴 대화": [0, 100]}
    systems = {"KoBART mini": 86.2, "첫 발화": 12.8, "학습 전": 1}
    table = [{"system": name, "metric": metric, "value": value, "low": value - 1, "high": value + 1}
             for metric in ("ROUGE-1", "ROUGE-2", "ROUGE-L") for name, value in systems.items()]
    lengths = {"학습": [int(numbers.lognormvariate(5, 0.6)) for _ in range(4000)], "시험": [1, 512, 513]}
    return {"curves": charts.learning_curves(history(), metrics=ROUGE, best_by="eval_rouge_sum"),
            "distribution": charts.score_distribution(scores, top=100), "bars": charts.score_bars(table, top=100),
            "lengths": charts.length_histogram(lengths, limit=512)}


@pytest.mark.parametrize("name", ["curves", "distribution", "bars", "lengths"])
def test_a_figure_is_sharp_at_800_pixels_and_small(name):
    picture = plots.png(gallery()[name])
    width = int.from_bytes(picture[16:20], "big")
    assert 1500 <= width <= 1620
    assert len(picture) < 40_000


def test_hangul_in_a_font_without_hangul_is_an_error(monkeypatch):
    latin = plots.house_rc() | {"font.family": ["DejaVu Sans"]}
    monkeypatch.setattr(plots, "house_rc", lambda: latin)
    with pytest.raises(plots.FontError, match="empty boxes for .*습.*use_house_style"):
        charts.learning_curves(history())


def test_a_letter_no_font_has_is_an_error_wherever_the_figure_is_drawn(tmp_path):
    figure, ax = plots.new_figure(title="그림")
    ax.set_xlabel("에티오피아 문자 \u1200")
    file = tmp_path / "a.png"
    for draw in (lambda: plots.png(figure), lambda: figure.savefig(file), lambda: figure.canvas.print_figure(file)):
        with pytest.raises(plots.FontError, match="empty boxes for \u1200:"):
            draw()


def test_the_guard_passes_other_warnings_on():
    import warnings

    with pytest.warns(RuntimeWarning, match="something else"), plots.no_missing_glyphs():
        warnings.warn("something else", RuntimeWarning, stacklevel=1)


def test_a_house_figure_keeps_its_font_after_settings_changed(tmp_path):
    import matplotlib

    figure, ax = plots.new_figure(title="나중에 그리는 그림")
    with plots.house_style():
        ax.plot([-3, 5], [1, 2])
    before = dict(matplotlib.rcParams)
    ax.set_xlim(-1000, 10)  # new ticks, made at drawing time
    plots.save(figure, tmp_path / "late.png")
    assert {text.get_fontfamily()[0] for text in ax.get_xticklabels()} == {plots.hangul_font()}
    assert dict(matplotlib.rcParams) == before


def test_a_machine_without_hangul_fonts_hears_what_to_install(monkeypatch):
    from matplotlib.font_manager import fontManager

    monkeypatch.setattr(plots, "bundled_fonts", list)
    monkeypatch.setattr(type(fontManager), "get_font_names", lambda self: ["DejaVu Sans"])
    with pytest.raises(plots.FontError, match="pip install koreanize-matplotlib.*apt-get install fonts-nanum"):
        plots.hangul_font.__wrapped__()
    monkeypatch.setattr(type(fontManager), "get_font_names", lambda self: ["Malgun Gothic", "DejaVu Sans"])
    assert plots.hangul_font.__wrapped__() == "Malgun Gothic"


def test_importing_is_light_and_the_font_package_is_never_imported():
    code = ("import sys, korlab.core.charts as c; assert 'matplotlib' not in sys.modules, 'heavy import'\n"
            "c.learning_curves([dict(step=1, loss=1.0)])\n"
            "print([name for name in sys.modules if name.startswith(('koreanize', 'matplotlib.pyplot'))])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Machado, Oliveira & Fernandes 2009, severity 1.0, applied to linear RGB
BLINDNESS = {
    "normal": np.eye(3),
    "protan": np.array([[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]]),
    "deutan": np.array([[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]]),
    "tritan": np.array([[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]]),
}


def oklab(rgb):
    m1 = np.array([[.4122214708, .5363325363, .0514459929], [.2119034982, .6806995451, .1073969566],
                   [.0883024619, .2817188376, .6299787005]])
    m2 = np.array([[.2104542553, .7936177850, -.0040720468], [1.9779984951, -2.4285922050, .4505937099],
                   [.0259040371, .7827717662, -.8086757660]])
    return m2 @ np.cbrt(m1 @ np.clip(rgb, 0, 1))


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_stay_apart(kind):
    def linear(code):
        channels = np.array([int(code[i:i + 2], 16) / 255 for i in (1, 3, 5)])
        return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)

    seen = [oklab(BLINDNESS[kind] @ linear(code)) for code in (*plots.PALETTE, plots.GREY)]
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(gaps) > 0.06  # a just noticeable difference is about 0.02


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.floats(0.1, 20))
def test_labels_keep_their_distance_and_order(heights, gap):
    placed = charts._spread(heights, gap)
    order = sorted(range(len(heights)), key=heights.__getitem__)
    steps = [placed[b] - placed[a] for a, b in itertools.pairwise(order)]
    assert all(step >= gap - 1e-6 for step in steps)
    assert math.isclose(sum(placed), sum(heights), abs_tol=1e-6)  # nothing drifts as a whole


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=60), st.integers(1, 800))
def test_bars_beyond_the_limit_hold_exactly_the_truncated_items(lengths, limit):
    from matplotlib.colors import to_hex

    bars = charts.length_histogram({"대화": lengths}, limit=limit).axes[0].containers[0]
    counted = {color: sum(bar.get_height() for bar in bars if to_hex(bar.get_facecolor()) == color)
               for color in (plots.BLUE, plots.ORANGE)}
    cut = sum(length > limit for length in lengths)
    assert counted == {plots.BLUE: len(lengths) - cut, plots.ORANGE: cut}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_an_open_axis_holds_every_score(scores):
    figure = charts.score_distribution({"시험": scores}, better="lower")
    assert sum(bar.get_height() for bar in figure.axes[0].containers[0]) == len(scores)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_open_edges_grow_and_hold_both_ends(low, spread):
    edges = charts._open_edges(low, low + spread)
    assert edges[0] <= low and low + spread <= edges[-1] and len(edges) <= 30
    assert all(left < right for left, right in itertools.pairwise(edges))


def test_where_lower_is_better_the_lowest_is_kept_and_better_lies_to_the_right():
    rows = [{"step": i, "loss": 4 / i, "eval_error": 1 + (i - 3) ** 2} for i in range(1, 6)]
    for better, best in (("higher", "최고 1"), ("lower", "최고 3")):
        ax = charts.learning_curves(rows, metrics={"eval_error": "오차"}, best_by="eval_error", better=better).axes[1]
        assert best in [text.get_text() for text in ax.texts]
        assert ("낮을수록 좋다" in ax.get_title("left")) == (better == "lower")
    table = [{"system": name, "value": value, "low": value - 0.1, "high": value + 0.1} for name, value in (("가", 1.9), ("나", 2.4))]
    for better, right in (("higher", 2.4), ("lower", 1.9)):
        ax = charts.score_dots(table, label="오차", digits=2, better=better).axes[0]
        across = [ax.transData.transform((value, 0))[0] for value in (1.9, 2.4)]
        assert (1.9, 2.4)[across.index(max(across))] == right
        assert [text.get_text() for text in ax.texts] == ["1.90", "2.40"]


def test_broken_values_are_counted_in_the_figure():
    rows = [*history(3), {"step": 40, "loss": math.nan}, {"step": 50, "loss": math.inf}]
    texts = [text.get_text() for text in charts.learning_curves(rows).axes[0].texts]
    assert "학습 (값 없음 2회)" in texts


def test_a_figure_that_cannot_be_drawn_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    figure, ax = plots.new_figure()
    ax.set_title("\u1200")
    with pytest.raises(plots.FontError):
        plots.save(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
