"""Scans a folder of 32 px images in this process and prints its peak memory in MB: the child of prepare_speed.py.

Imports nothing but the scan, so that the figure is the scan's. Reads VmHWM where there is one: `ru_maxrss` of a child
starts at what its parent held.

python benchmarks/scan_memory.py FOLDER
"""

import re
import resource
import sys
from pathlib import Path

from synthgen.config import PrepareSection, SourceSection
from synthgen.dataset.scan import scan_source
from synthgen.dataset.sources import open_source


def peak_mb() -> float:
    """The most memory that this process held at once, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def main(folder: Path) -> None:
    """Scans `folder`, prints the peak."""
    section = PrepareSection(image_size=32, channels=1)
    source = open_source(SourceSection(type="imagefolder", path="."), folder, section)
    scan_source(source, section, folder.parent / "images.npy", n_workers=1)
    sys.stdout.write(f"{peak_mb():.1f}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
