"""What dvc.yaml's stages depend on has to stand in params.yaml: DVC knows no defaults and would fail at that stage.

Owns the comparison of the two files, and the lines that are missing with the values that synthgen would take.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synthgen.config import Config, read_yaml
from synthgen.errors import ConfigError

PARAMS = "params.yaml"
_INTERPOLATED = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")


def check_params_complete(config: Config, folder: Path) -> None:
    """Refuses a params.yaml without something that a stage of dvc.yaml takes from it; fine where there is no dvc.yaml.

    Args:
        config: as read from params.yaml, defaults filled in.
        folder: of both files.
    Raises:
        ConfigError: with the lines to add.
    """
    if not (folder / "dvc.yaml").is_file():
        return
    written = read_yaml(folder / PARAMS)
    missing = sorted({key for key in _params(read_yaml(folder / "dvc.yaml")) if not _has(written, key)})
    if missing:
        lines = "".join(f"\n  {_line(config, key)}" for key in missing)
        raise ConfigError(
            f"{PARAMS} has no {', '.join(missing)}, which stages of dvc.yaml depend on; DVC knows no defaults, so "
            f"write down what you would get:{lines}"
        )


def _params(graph: Any) -> Iterator[str]:
    """Dotted keys of params.yaml that stages name, as parameters or as `${KEY}`."""
    stages = graph.get("stages", {}) if isinstance(graph, Mapping) else {}
    for stage in stages.values():
        for entry in stage.get("params", []) if isinstance(stage, Mapping) else []:
            if isinstance(entry, str):
                yield entry
            elif isinstance(entry, Mapping):
                yield from entry.get(PARAMS) or []
    for found in _INTERPOLATED.findall(json.dumps(stages)):
        if found.partition(".")[0] in Config.model_fields:  # the others are plan.yaml's
            yield found


def _has(values: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _line(config: Config, dotted: str) -> str:
    """`section: {key: value}` with the default; `section: {}` for a whole section."""
    section, _, key = dotted.partition(".")
    value: Any = config.model_dump(mode="json").get(section, {})
    if not key:
        return f"{section}: {{}}" if isinstance(value, dict) else f"{section}: {value}"
    for part in key.split("."):
        value = value.get(part, {}) if isinstance(value, dict) else {}
    return f"{section}: {{{key}: {value}}}"
