"""Which full-size models run where there is no time for all."""

from tests.parity import runner
from tests.parity.conftest import FAMILIES, choose

MODELS = [f"test_model[{model}]" for model in (*runner.CONFIGS, *runner.REFINED)]
NAMES = [*MODELS, "test_five_steps[htc_r50]", "test_five_steps[sbr_cnn]"]
ALWAYS = {f"test_model[{model}]" for model in FAMILIES.values()}


def test_all_have_their_turn_and_a_model_of_each_family_at_every_commit() -> None:
    assert set(NAMES) > ALWAYS
    shares = [choose(NAMES, 3, f"{commit:x}") for commit in range(3)]
    others = [name for share in shares for name in share if name not in ALWAYS]
    assert sorted(others) == sorted(set(NAMES) - ALWAYS)
    for share in shares:
        assert set(share) > ALWAYS
        assert len(share) - len(ALWAYS) in (8, 9)


def test_the_commit_alone_decides() -> None:
    commits = ("4135104be", "4135104bf\n")
    assert len({tuple(choose(NAMES, 3, commit)) for commit in commits}) == 2
    assert choose(NAMES[::-1], 3, commits[0])[::-1] == choose(NAMES, 3, commits[0])


def test_one_share_is_all() -> None:
    assert choose(NAMES, 1, "4135104be") == NAMES
