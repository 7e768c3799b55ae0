"""For all tests: property tests have no deadline, since on a shared machine it would be a timed test."""

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
