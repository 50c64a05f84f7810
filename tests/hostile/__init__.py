"""Input that is wrong on purpose: each module yields the cases of a few kinds, `tests/test_hostile.py` tries them."""
