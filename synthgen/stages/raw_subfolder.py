"""Where a folder that is no class may lie among the raw images: masks, unlabelled images.

Owns that one rule for all settings that name such a folder. Opens nothing.
"""

from pathlib import PurePosixPath

from synthgen.config import SourceSection
from synthgen.errors import ConfigError


def check_raw_subfolder(source: SourceSection, setting: str, given: str, usual: str) -> PurePosixPath:
    """Checks that a folder lies inside `source.path`, the one that dvc.yaml watches, and is not read as a class.

    Args:
        source: for its path and type.
        setting: name of the setting, for the error.
        given: its value, relative to the project's folder.
        usual: name of the folder to propose, with its dot.
    Returns:
        The folder, relative to the project's.
    Raises:
        ConfigError: it lies elsewhere (a change there would change no result), or would be read as a class.
    """
    folder, raw = PurePosixPath(given), PurePosixPath(source.path)
    if not folder.is_relative_to(raw) or folder == raw or ".." in folder.parts:
        raise ConfigError(
            f"{setting} {given!r} does not lie inside source.path {source.path!r}, the folder that `dvc repro` "
            f"watches; move it to {(raw / usual).as_posix()}"
        )
    first = folder.relative_to(raw).parts[0]
    if source.type == "imagefolder" and not first.startswith("."):
        raise ConfigError(
            f"{setting} {given!r} would be read as the class {first!r}; give the folder a name with a dot before it, "
            f"as in {(raw / usual).as_posix()}"
        )
    return folder
