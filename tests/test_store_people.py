"""Annotators and their sign-in."""

import time

from tests.stores import store  # noqa: F401 (fixture)


def test_a_sign_in_lasts_until_its_moment_and_ends_when_told(store):
    who, other = store.annotator("somebody"), store.annotator("other")
    assert store.signed_in(who) is None
    store.sign_in(who, "ada", time.time() + 60)
    assert store.signed_in(who) == "ada" and store.signed_in(other) is None
    store.sign_in(who, "ada", time.time() - 1)
    assert store.signed_in(who) is None
    store.sign_in(who, "ada", time.time() + 60)
    store.sign_out(who)
    assert store.signed_in(who) is None and store.signed_in(99) is None
