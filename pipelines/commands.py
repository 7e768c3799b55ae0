"""What this package adds to the `synthgen` command line; pyproject.toml registers each function by its verb's name.

Owns the verbs' one line of help. Refuses to import anything heavy before a verb is called, for `synthgen --help` loads
this file, and to parse: the parser is `pipelines.promotion`'s.
"""

from collections.abc import Sequence

__all__ = ["promote", "promoted", "rollback"]


def promote(arguments: Sequence[str]) -> int:
    """Let users take a version: through the gate, or past it with --force REASON."""
    from pipelines.promotion import main

    return main(["promote", *arguments], "synthgen")


def rollback(arguments: Sequence[str]) -> int:
    """Give users the version that was promoted before the present one."""
    from pipelines.promotion import main

    return main(["rollback", *arguments], "synthgen")


def promoted(arguments: Sequence[str]) -> int:
    """Say which version users take now, and who promoted what before."""
    from pipelines.promotion import main

    return main(["promoted", *arguments], "synthgen")
