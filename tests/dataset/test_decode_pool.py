"""Decoding processes start without the caller's main module, which may take seconds to import."""

import subprocess
import sys

SCRIPT = """
import sys
from pathlib import Path
if __name__ != "__main__":
    (Path(sys.argv[1]) / "imported").touch()
import numpy as np
from synthgen.config import PrepareSection
from synthgen.dataset.raw import ArrayPayload, RawItem, Source
from synthgen.dataset.scan import scan_source

if __name__ == "__main__":
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    items = [RawItem(f"{i:02d}", "a", None, None, ArrayPayload(p)) for i, p in enumerate(pixels)]
    section = PrepareSection(image_size=8, channels=1)
    scan = scan_source(Source(["a"], 60, lambda: iter(items)), section, Path(sys.argv[1]) / "x.npy", n_workers=2)
    print(len(scan.images))
"""


def test_processes_do_not_import_the_main_module(tmp_path):
    script = tmp_path / "heavy_main.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "60"
    assert not (tmp_path / "imported").exists()
