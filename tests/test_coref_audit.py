"""The audit of the published claims: what each check finds, to the digit."""

import logging

import pytest
import torch
from transformers.utils import logging as transformers_logging

from korlab.coref import audit
from korlab.coref.articles import embedded
from korlab.coref.models import train_tokenizer
from korlab.coref.windows import windows

transformers_logging.disable_progress_bar()
logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def splits():
    return embedded(3, rows=600, eval_rows=300)


@pytest.fixture(scope="module")
def asked(splits):
    tokenizer = train_tokenizer({one.text for one in splits.train})
    return tokenizer, windows(splits.train[:200], tokenizer, 128)[0]


# the ten checkpoints: epoch, length, Real@1, Real@5, LAMBADA@1, score, items that were used
TABLE = """
396 1 1536 .6292 .7917 .3583 .5967 2400
410 1 2048 .6447 .8084 .3467 .6044 3200
792 2 1536 .6429 .8087 .3633 .6088 2400
820 2 2048 .6459 .8116 .3617 .6103 3200
1188 3 1536 .6613 .8163 .3533 .6154 2400
1230 3 2048 .6512 .8137 .3500 .6096 3200
1584 4 1536 .6633 .8158 .3650 .6196 2400
1640 4 2048 .6578 .8194 .3600 .6169 3200
1980 5 1536 .6675 .8142 .3700 .6222 2400
2050 5 2048 .6578 .8200 .3683 .6196 3200
"""


def test_the_published_table_is_what_was_published_and_says_that_nobody_verified_it():
    expected = [tuple(map(float, line.split())) for line in TABLE.strip().splitlines()]
    found = [(float(one.name.removeprefix("checkpoint-")), one.epoch, one.seq_len, one.real1, one.real5, one.lambada1, one.score, one.used)
             for one in audit.published()]
    assert found == expected
    assert {(one.stated, one.verified) for one in audit.published()} == {(1600, False)}


@pytest.mark.parametrize("share, n, hits", [
    (0.8142, 1600, None), (0.8142, 2400, 1954), (0.6675, 1600, 1068), (0.6675, 2400, 1602), (0.6512, 3200, 2084), (0.6513, 3200, 2084),
    (0.0, 7, 0), (1.0, 7, 7), (0.5, 7, None),
])
def test_grim(share, n, hits):
    assert audit.grim(share, n) == hits


def test_grim_agrees_with_trying_every_number_of_hits():
    for n in (7, 160, 1600, 2400):
        possible = {round(10_000 * k / n + side) for k in range(n + 1) for side in (-1e-7, 1e-7)}
        for share in range(0, 10_001, 7):
            assert (audit.grim(share / 10_000, n) is not None) == (share in possible), (share, n)


def test_eight_rows_of_ten_cannot_be_of_the_stated_number_of_questions():
    found = audit.grains(audit.published())
    assert all(one.used is not None for one in found)
    rows = {one.name for one in found if one.stated is None}
    assert {one.name for one in found} - rows == {"checkpoint-1188", "checkpoint-1230"}


def test_a_file_of_713_mib_has_a_vocabulary_of_130000_and_not_of_51201():
    assert audit.parameters(51_201, rows=1536) == 126_202_881
    assert 4 * audit.parameters(130_000, rows=1536) / 2**20 == pytest.approx(712.58, abs=0.01)
    fits = audit.fitting(713, rows=1536)
    assert (fits[0], fits[-1]) == (129_972, 130_312)
    for size, inside in ((fits[0] - 1, False), (fits[0], True), (fits[-1], True), (fits[-1] + 1, False)):
        assert (round(4 * audit.parameters(size, rows=1536) / 2**20) == 713) == inside
    assert 51_201 not in audit.fitting(713, rows=1536, unit=10**6)


def test_buckets_and_the_pairs_that_move():
    places = [128, 200, 400, 511, 1000, 1500, 2000]
    assert audit.buckets(2001, 512, clamped=False)[places].tolist() == [128, 169, 233, 255, 317, 354, 381]
    assert audit.buckets(2001, 1536)[places].tolist() == [128, 151, 187, 199, 234, 254, 255]
    assert audit.buckets(2001, 2048)[places].tolist() == [128, 149, 181, 192, 223, 241, 254]
    far = [audit.pair_share(torch.arange(length) >= 512) for length in (1536, 2048)]
    moved = [audit.pair_share(audit.buckets(length, 512) != audit.buckets(length, length)) for length in (1536, 2048)]
    assert [round(100 * share, 1) for share in far + moved] == [44.5, 56.3, 83.8, 87.7]


def test_pair_shares_are_those_of_a_square():
    length = 50
    chosen = torch.rand(length, generator=torch.Generator().manual_seed(0)) < 0.4
    places = torch.arange(length)
    assert audit.pair_share(chosen) == pytest.approx(chosen[(places[:, None] - places).abs()].double().mean().item())


def test_the_published_extension_does_not_load_and_ours_loads_as_it_was():
    parent = audit.small_deberta()
    before = {name: weights.clone() for name, weights in parent.state_dict().items()}
    theirs = audit.reload(parent, 1536, "published")
    assert "size mismatch of deberta.encoder.rel_embeddings.weight, (1536, 16) in the file and (512, 16)" in theirs.error
    assert theirs.kept and theirs.agreement < 0.9 and theirs.difference > 0.1
    assert audit.reload(parent, 1536, "keep") == audit.Reload(error="", kept=True, agreement=1.0, difference=0.0)
    assert audit.reload(parent, 1536, "rebucket") == audit.Reload(error="", kept=False, agreement=1.0, difference=0.0)
    assert all(torch.equal(weights, before[name]) for name, weights in parent.state_dict().items())  # a copy was extended


def test_the_stock_collator_never_labels_the_hole_and_ours_always_labels_the_name(asked):
    tokenizer, questions = asked
    assert audit.coverage(questions, tokenizer, batches=2000) == audit.Coverage(batches=2000, stock=0, ours=2000)
    for one in questions[:20]:
        made = audit.side_by_side(one, tokenizer, around=0)
        assert made["stock"] == [("[MASK]", "")]
        assert made["ours"] == [("[MASK]", piece) for piece in tokenizer.convert_ids_to_tokens(one.target)]


def test_syllables_that_know_nothing_score_by_the_published_rule(splits):
    syllables = audit.frequent_syllables(splits.train)
    assert [len(one) for one in syllables] == [1] * 5
    found = audit.inflation(splits.held["unseen"], syllables)
    assert (found.n, found.exact) == (300, 0) and found.published5 >= found.published1 and found.published5 > 60
    name = splits.held["unseen"][0].target
    whole = audit.inflation(splits.held["unseen"][:1], ["없는말", name])
    assert (whole.exact, whole.published1, whole.published5) == (1, 0, 1)


def test_long_texts_say_where_names_are_and_a_window_loses_some():
    samples = audit.long_samples(5, 2000)
    for one in samples:
        assert one.text[one.start : one.end] == one.target and one.text.startswith(one.target, one.antecedent)
        assert one.text.find(one.target, one.antecedent + 1) == one.start, "the second mention is asked"
    near, wide, all_of_it = (audit.view(samples, reach) for reach in (600, 800, 5000))
    assert near.lost == sum(one.distance > 600 for one in samples) > wide.lost == sum(one.distance > 800 for one in samples) > 0
    assert all_of_it.lost == 0 and 0 < near.later <= all_of_it.later


def test_samples_drawn_at_random_share_documents_and_whole_documents_do_not(splits):
    found = audit.leak(splits.train)
    assert found.shared > 0.9 * found.held and found.shared_whole == 0
    assert abs(found.held_whole - found.held) < 5
