"""Fixtures of all unit tests."""

from hypothesis import settings

# A machine may be busy: how long an example takes says nothing about what is tested.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
