"""Verbs that other packages give to the `synthgen` command line, by the entry-point group `synthgen.commands`.

Owns finding them and the order of precedence: a verb of synthgen itself is never replaced. Refuses to know what they
do: each is a function that takes the arguments after the verb and returns an exit status, and the first line of its
docstring says what it is for. Nothing is looked up unless a verb is not synthgen's own, or help is asked for.
"""

from collections.abc import Callable, Collection, Sequence
from importlib.metadata import EntryPoint, entry_points

from synthgen.errors import ConfigError

__all__ = ["GROUP", "Command", "find_command", "list_commands"]

GROUP = "synthgen.commands"

Command = Callable[[Sequence[str]], int]


def find_command(name: str, taken: Collection[str]) -> Command | None:
    """The command `name` of another package; None where there is none, or synthgen has one of that name itself.

    Args:
        name: the first word of the command line.
        taken: synthgen's own verbs.
    Raises:
        ConfigError: it is registered and cannot be loaded.
    """
    if name in taken:
        return None
    found = entry_points(group=GROUP, name=name)
    return _load(next(iter(found))) if found else None


def list_commands(taken: Collection[str]) -> dict[str, str]:
    """Every command of other packages with one line that says what it is for, by name.

    Args:
        taken: synthgen's own verbs.
    """
    return {
        entry.name: _purpose(entry)
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
        if entry.name not in taken
    }


def _load(entry: EntryPoint) -> Command:
    try:
        command = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the command {entry.name!r} is registered as {entry.value} and cannot be loaded ({error}); install what "
            "it needs, such as `pip install 'synthgen[pipelines]'`, or uninstall the package that registers it"
        ) from error
    if not callable(command):
        raise ConfigError(f"the command {entry.name!r} is registered as {entry.value}, which is no function")
    return command  # type: ignore[no-any-return]  # of another package: its signature cannot be checked


def _purpose(entry: EntryPoint) -> str:
    try:
        return (_load(entry).__doc__ or "").strip().partition("\n")[0]
    except ConfigError:
        return f"(cannot be loaded: {entry.value})"
