"""A run of each study, killed before a file operation and started again by the same command, ends as one that nobody killed."""

import pytest
from kills import RUNS, Victim

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """A small run of a study, whose straight end is known."""
    made: dict[str, Victim] = {}

    def of(study: str) -> Victim:
        if study not in made:
            made[study] = Victim(study, tmp_path_factory.mktemp("kills"))
        return made[study]

    return of


CHOSEN = [
    ("summarization", "unlink", "start.safetensors"),  # after the last checkpoint, before the final model
    ("summarization", "open", ".train.json.tmp"),  # between the model and the record of its training
    ("summarization", "open", ".metrics.json.tmp"),
]


@pytest.mark.parametrize(("study", "operation", "file"), CHOSEN)
def test_a_run_killed_at_a_chosen_operation_ends_as_a_straight_one(study, operation, file, victim):
    outcome = victim(study).killed(operation, file)
    assert outcome.verdict == "equal", outcome


def test_status_json_may_be_deleted_as_is_advised_where_it_is_damaged(victim):
    """Nothing is trained further, no row of the history comes twice."""
    made = victim("summarization")
    if not made.folder.exists():  # this test was asked for alone
        made.again(0, "", "")
    (made.folder / "status.json").unlink()
    outcome = made.again(0, "unlink", "status.json")
    assert outcome.verdict == "equal", outcome


@pytest.mark.slow
@pytest.mark.parametrize("study", RUNS)
def test_a_run_killed_anywhere_ends_as_a_straight_one(study, victim):
    outcomes = list(victim(study).everywhere())
    assert len(outcomes) > 90 and not [one for one in outcomes if one.verdict != "equal"]
