"""Where the real data sets for benchmarks lie: $SYNTHGEN_BENCH_DATA, ../shared/data, then .bench-data/.

Nothing is downloaded and nothing is copied into the repository.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def find_bench_file(name: str) -> Path | None:
    """The file called `name`, or None where this machine does not have it."""
    folders = [Path(os.environ["SYNTHGEN_BENCH_DATA"])] if os.environ.get("SYNTHGEN_BENCH_DATA") else []
    folders += [ROOT.parent / "shared" / "data", ROOT / ".bench-data"]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
