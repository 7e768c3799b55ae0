"""Versions of what the stages compute, part by part.

`synthgen plan` writes them to plan.yaml, where dvc.yaml makes them a parameter of the stages concerned: whoever changes
what a part computes raises its number, and only the stages that depend on it run again, also in projects
that use an installed synthgen and have no source code beside their data. A plan with other numbers is refused.
"""

VERSIONS = {
    "dataset": 2,
    "gan": 3,
    "selection": 1,
    "morphs": 1,
    "classifier": 3,
    "metrics": 3,
    "report": 6,
    "probe": 2,
    "search": 1,
    "worth": 1,
}
