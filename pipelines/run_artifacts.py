"""What a run shows in Prefect's page beside its tables: a picture of samples, and where report and data version are.

Owns their form: the picture is a `data:` address (the page shows it without asking anybody; it drops such pictures in
Markdown, so it has to be an image artifact), small enough for the server's database; links are addresses without
secrets. Refuses to talk to Prefect: `pipelines.tasks` does.
"""

import base64
import io
import re
from pathlib import Path
from urllib.parse import quote, urlsplit

from PIL import Image

from pipelines.verdict import escape_text
from synthgen.artifacts import atomic_file
from synthgen.errors import ArtifactError

__all__ = [
    "MOST_BYTES",
    "keep_report",
    "page_of_version",
    "picture_address",
    "plain_address",
    "report_of",
    "samples_of",
]

MOST_BYTES = 64 * 1024  # of the picture; the page prints its address below it
MOST_PIXELS = 64_000_000
KEPT_REPORTS = 20
TREE = {"github.com": "tree", "gitlab.com": "-/tree"}
_SCP = re.compile(r"(?:[^@/:]+@)?(?P<host>[^@/:]+):(?P<path>(?!//).+)")


def samples_of(project: Path) -> Path | None:
    """The picture of the release's selected samples, a row per class; None where there is none."""
    path = project / "data" / "synthetic" / "final" / "preview.png"
    return path if path.is_file() else None


def report_of(project: Path) -> Path | None:
    """The report page; None where there is none."""
    path = project / "reports" / "index.html"
    return path if path.is_file() else None


def picture_address(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """A picture as `data:image/png;base64,...`, made smaller until it has at most `most_bytes`.

    Raises:
        ArtifactError: no picture, or one of more pixels than a page can show.
    """
    try:
        content = path.read_bytes()
        with Image.open(path, formats=["PNG"]) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                has = f"{opened.width} x {opened.height} pixels"
                raise ArtifactError(f"{path} has {has}, the limit is {MOST_PIXELS}; lower the number of classes")
            opened.load()
            picture = opened.convert("L" if opened.mode in {"1", "L"} else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ArtifactError(f"{path} is no picture ({error}); bring it back with `dvc checkout --force`") from error
    while len(content) > most_bytes:
        factor = min(0.9, 0.95 * (most_bytes / len(content)) ** 0.5)
        size = (int(picture.width * factor), int(picture.height * factor))
        if min(size) < 1:
            raise ArtifactError(f"{path} does not fit into {most_bytes} bytes at any size; raise the limit")
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", optimize=True)
        content = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def keep_report(report: Path, source: Path, name: str) -> Path:
    """Copies a report out of a checkout that will go away; returns the copy, `.synthgen/reports/NAME.html`.

    Args:
        report: the page.
        source: folder of dvc.yaml whose `.synthgen` (git-ignored) keeps the newest `KEPT_REPORTS` of them.
        name: a version or an id.
    """
    folder = source / ".synthgen" / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^A-Za-z0-9@._-]+', '-', name).lstrip('.-')}.html"
    with atomic_file(path) as temporary:
        temporary.write_bytes(report.read_bytes())
    by_age = sorted(folder.glob("*.html"), key=lambda one: one.stat().st_mtime_ns, reverse=True)
    for old in by_age[KEPT_REPORTS:]:
        if old != path:
            old.unlink(missing_ok=True)
    return path


def plain_address(origin: str) -> str:
    """A git address without user, password, query and fragment; one that `git` and `dvc get` take."""
    if "://" not in origin:
        return origin
    parts = urlsplit(origin)
    host = parts.netloc.rpartition("@")[2]
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    # Over ssh the user is a part of the address and no secret; over http it may be a token.
    netloc = f"{user}@{host}" if user and parts.scheme == "ssh" else host
    return parts._replace(netloc=netloc, query="", fragment="").geturl()


def page_of_version(origin: str, tag: str) -> str | None:
    """Where a person can look at a version: a page of the git host, or the repository; None where no page is known.

    Args:
        origin: address of the git repository, or a local folder.
        tag: such as `augmented@v0.1.0`.
    """
    if "://" in origin:
        parts = urlsplit(origin)
        scheme, host, path = parts.scheme, parts.hostname or "", parts.path
    elif found := _SCP.fullmatch(origin):
        scheme, host, path = "ssh", found["host"], found["path"]
    else:
        return Path(origin).expanduser().resolve().as_uri()
    inside = quote(path.strip("/").removesuffix(".git"))
    if host in TREE:
        return f"https://{host}/{inside}/{TREE[host]}/{quote(tag, safe='')}"
    if scheme == "file":
        return Path(path).as_uri()
    return quote(plain_address(origin), safe=":/@[]%") if scheme in {"http", "https"} else None


def labelled(label: str, where: str | Path) -> str:
    """Words of a link: what it is and where, for browsers open no `file:` address from a page; no markup in it."""
    return f"{escape_text(label)}: {escape_text(str(where))}"
