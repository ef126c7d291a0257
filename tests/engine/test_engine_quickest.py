import pytest

from step_audio.engine.quickest import TIMED, UNTIL_NEXT, Quickest


def run(quickest, steps, seconds, size=8):
    """What is chosen, where each way takes `seconds`."""
    chosen = []
    for _ in range(steps):
        chosen.append(quickest.choose(size))
        quickest.took(size, chosen[-1], seconds[chosen[-1]])
    return chosen


@pytest.mark.parametrize(("seconds", "best"), [([1, 0.5], 1), ([1, 0.95], 0), ([1, 2], 0), ([1, 0.8, 0.4], 2)])
def test_the_dearer_way_is_taken_where_it_is_worth_it(seconds, best):
    quickest = Quickest(len(seconds))
    trial = TIMED * len(seconds)
    assert set(run(quickest, trial, seconds)) == set(range(len(seconds)))
    assert set(run(quickest, UNTIL_NEXT, seconds)) == {best}


def test_a_load_that_changes_is_noticed():
    quickest = Quickest(2)
    run(quickest, 2 * TIMED + UNTIL_NEXT, [1, 0.5])
    run(quickest, 2 * TIMED, [1, 3])
    assert set(run(quickest, UNTIL_NEXT, [1, 3])) == {0}


def test_steps_of_other_sizes_are_tried_apart():
    quickest = Quickest(2)
    run(quickest, 2 * TIMED, [1, 3], size=1)
    run(quickest, 2 * TIMED, [1, 0.5], size=32)
    assert run(quickest, 1, [1, 1], size=1) == [0]
    assert run(quickest, 1, [1, 1], size=33) == [1]


def test_one_slow_step_does_not_decide():
    quickest = Quickest(2)
    for place in range(2 * TIMED):
        way = quickest.choose(1)
        quickest.took(1, way, 9.0 if place == 2 * TIMED - 1 else [1, 0.5][way])
    assert quickest.choose(1) == 1


def test_a_single_way_is_not_timed():
    assert set(run(Quickest(1), 20, [1])) == {0}
