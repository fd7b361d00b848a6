"""Rows of unlike lengths as one tensor."""

from playground.models.batches import pad


def test_rows_are_padded_on_the_right_by_default():
    values, mask = pad([[5, 6, 7], [8]])
    assert values.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_rows_can_be_padded_on_the_left():
    values, mask = pad([[5, 6, 7], [8]], left=True)
    assert values.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_token_0_is_no_padding():
    assert pad([[0, 5], [0]])[1].tolist() == [[1, 1], [1, 0]]
