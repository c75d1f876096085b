"""Tables worked by hand."""

from dataclasses import replace

import pytest

from autoprune.search.stopper import Point, count_better, dominates, front_numbers, goes_up, similar


def point(accuracy, trial=0, target=0.5, baseline=False, count=0, **costs):
    return Point(
        trial=trial,
        accuracy=accuracy,
        costs={"flops": target, **costs},
        pinned={"flops": target},
        baseline=baseline,
        count=count,
    )


def test_dominates_needs_one_better_value():
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((0, 3), (1, 2))


def test_front_numbers_of_a_worked_table():
    rows = [(1, 4), (2, 2), (4, 1), (2, 5), (3, 3), (5, 5)]
    assert front_numbers(rows) == [0, 0, 0, 1, 1, 2]


def test_front_numbers_of_one_value_are_its_ranks():
    assert front_numbers([(3.0,), (1.0,), (2.0,), (1.0,)]) == [2, 0, 1, 0]


def test_front_numbers_of_equal_rows_are_equal():
    assert front_numbers([(1, 1), (1, 1), (2, 2)]) == [0, 0, 1]
    assert front_numbers([]) == []


def test_first_trial_goes_up():
    assert goes_up(point(0.1), [], 3)


@pytest.mark.parametrize(
    ("others", "mine", "expected"),
    [
        # n = 2, one place: only the better of two
        ([0.8], 0.9, True),
        ([0.8], 0.7, False),
        # a tie is no reason to stop
        ([0.8], 0.8, True),
        # n = 3, one place
        ([0.8, 0.6], 0.7, False),
        ([0.8, 0.6], 0.81, True),
        # n = 4, ceil(4 / 3) = 2 places
        ([0.8, 0.6, 0.5], 0.7, True),
        ([0.8, 0.75, 0.5], 0.7, False),
        # n = 7, 3 places
        ([0.9, 0.8, 0.6, 0.5, 0.4, 0.3], 0.7, True),
        ([0.9, 0.8, 0.75, 0.5, 0.4, 0.3], 0.7, False),
    ],
)
def test_best_third_goes_up(others, mine, expected):
    assert goes_up(point(mine), [point(a) for a in others], 3) is expected


def test_reduction_of_two_promotes_the_better_half():
    others = [point(a) for a in (0.9, 0.5, 0.4)]
    assert goes_up(point(0.6), others, 2)
    assert not goes_up(point(0.45), others, 2)


def test_baselines_go_up_and_count_as_rivals():
    better = [point(0.9), point(0.8)]
    assert goes_up(point(0.1, baseline=True), better, 3)
    rivals = [point(0.9, baseline=True), point(0.8, baseline=True)]
    assert not goes_up(point(0.7), rivals, 3)


def test_other_targets_are_no_rivals():
    assert goes_up(point(0.5, target=0.25), [point(0.9), point(0.8)], 3)
    assert not goes_up(point(0.5, target=0.49), [point(0.9), point(0.8)], 3)


def test_similar_targets():
    assert similar({"flops": 0.5}, {"flops": 0.52})
    assert not similar({"flops": 0.5}, {"flops": 0.53})
    assert not similar({"flops": 0.5}, {"params": 0.5})


def test_pinned_costs_do_not_make_trade_offs():
    a_little_cheaper = Point(trial=1, accuracy=0.5, costs={"flops": 0.493}, pinned={"flops": 0.5})
    better = Point(trial=2, accuracy=0.9, costs={"flops": 0.4999}, pinned={"flops": 0.5})
    assert not goes_up(a_little_cheaper, [better], 3)


def test_free_costs_do():
    accurate, small = point(0.9, params=0.6), point(0.8, params=0.3)
    worse = point(0.7, params=0.4)
    assert count_better(small, [accurate]) == 1  # same front, less accuracy
    assert count_better(worse, [accurate, small]) == 2  # dominated by small
    # a trial on the first front ranks before every dominated one, however accurate that is
    dominated = point(0.85, params=0.9)
    assert count_better(small, [accurate, dominated]) == 1


def test_costs_within_five_per_cent_are_the_same():
    assert count_better(point(0.7, params=0.399), [point(0.9, params=0.4)]) == 1
    assert front_numbers([(-0.9, 1.0), (-0.7, 1.0)]) == [0, 1]


@pytest.mark.parametrize(
    ("mine", "count", "noise", "expected"),
    [
        # 0.90 leads 0.88 by 0.02; the standard error of 0.89 on 100 samples is 0.0313, on 400 it is 0.0156
        (0.88, 100, 1.0, 0),
        (0.88, 400, 1.0, 1),
        (0.88, 400, 1.5, 0),
        # no tolerance, or no count
        (0.88, 100, 0.0, 1),
        (0.88, 0, 1.0, 1),
    ],
)
def test_a_lead_within_the_noise_is_none(mine, count, noise, expected):
    assert count_better(point(mine, count=count), [point(0.90, count=count)], noise) == expected


def test_the_smaller_of_two_sample_counts_says_how_noisy_it_is():
    assert count_better(point(0.88, count=10_000), [point(0.90, count=100)]) == 0


def test_a_rival_that_is_cheaper_too_ranks_before_in_spite_of_noise():
    mine = point(0.88, count=100, params=0.6)
    assert count_better(mine, [point(0.90, count=100, params=0.6)]) == 0
    assert count_better(mine, [point(0.90, count=100, params=0.3)]) == 1


def test_noise_promotes_what_luck_may_have_put_last():
    others = [point(a, count=359) for a in (0.970, 0.972, 0.975)]
    # four results, two places; the standard error at 0.97 on 359 samples is 0.009
    assert not goes_up(point(0.968, count=359), others, 3, noise=0.0)
    assert goes_up(point(0.968, count=359), others, 3)
    assert not goes_up(point(0.94, count=359), others, 3)


def test_ties_go_up_only_as_long_as_there_are_places():
    # ten results at chance, four places: the first four of them, however they differ by luck
    promoted = []
    for i in range(10):
        mine = point(0.1 - 0.0001 * i, trial=i, count=359)
        went_up = goes_up(
            mine, [replace(point(0.1 - 0.0001 * j, count=359), promoted=promoted[j]) for j in range(i)], 3
        )
        promoted.append(went_up)
    assert promoted == [True, False, False, True, False, False, True, False, False, True]


def test_a_place_is_gone_for_those_who_are_as_good_as_who_has_it():
    # the standard error at 0.9 on 359 samples is 0.016
    others = [replace(point(0.90, count=359), promoted=True), point(0.80, count=359)]
    assert not goes_up(point(0.91, count=359), others, 3)
    assert goes_up(point(0.92, count=359), others, 3), "a lead beyond the noise needs no place of theirs"
    assert goes_up(point(0.91, count=359), others, 3, noise=0.0)
    assert goes_up(point(0.91, count=359), [replace(one, promoted=False) for one in others], 3)


def test_those_who_cost_less_take_places_of_their_own():
    others = [replace(point(0.90, count=359, params=0.3), promoted=True)]
    assert goes_up(point(0.93, count=359, params=0.6), others, 3)
    assert not goes_up(point(0.91, count=359, params=0.3), others, 3)


def test_baselines_take_no_places_from_ties():
    baselines = [replace(point(0.91, baseline=True, count=359), promoted=True) for _ in range(3)]
    assert goes_up(point(0.905, count=359), baselines, 3)
    assert not goes_up(point(0.905, count=359), [replace(one, baseline=False) for one in baselines], 3)
