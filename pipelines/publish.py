"""Publishing a run: its data, a commit of exactly the pipeline's own files, a version tag; all of it or none.

Owns the order (data first, verified; branch and tag last and together), the list of files, and the words of commit
and tag. Refuses to publish what is not clean, to commit a file that the pipeline did not write, and to overwrite what
others published meanwhile. A run that is killed anywhere in here has published nothing; the next run does it again.

PipelineError
└── PublishError  nothing was published, and why
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from ruamel.yaml import YAML

from pipelines import dvc
from pipelines.checkout import Checkout, fetch, shared_folder
from pipelines.checkout_data import default_remote, run_dvc
from pipelines.dvc import DirtyError, PipelineError
from pipelines.gate import Gate, Keep, Promote, copied_shares, judge
from pipelines.git import Author, GitError, git, hide_secrets, known_secrets, push, succeeds, write_tag
from pipelines.verdict import read_gain
from pipelines.versioning import DATA_PATH, NAME, State, Version, latest, next_version, read_state
from synthgen.artifacts import digest_of
from synthgen.dataset.acceptance import read_acceptance

__all__ = ["Publication", "PublishError", "publish", "read_trailers", "tag_message", "text_at"]

Line = Callable[[str], object]

OWNED = ("dvc.lock", "plan.yaml", "folds.csv")
METRICS = "metrics"
METRIC_SUFFIXES = (".json", ".csv")
SETTINGS = frozenset({"params.yaml", "dvc.yaml", ".dvc/config", ".dvcignore"})
ACCEPTANCE = Path("data/synthetic/final/acceptance.json")
ATTEMPTS = 3
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", re.ASCII)
_TRAILER = re.compile(r"(Synthgen-[A-Za-z-]+): (.*)")


class PublishError(PipelineError):
    """Nothing was published, and why."""


@dataclass(frozen=True)
class Publication:
    """What became of a run.

    Attributes:
        version: the new version; None where there is none.
        commit: the branch's commit now.
        gate: whether the version may be promoted; None where nothing changed.
        summary: one line for people.
    """

    version: Version | None
    commit: str
    gate: Promote | Keep | None
    summary: str


@dataclass(frozen=True)
class _Findings:
    """What a version's message says about it."""

    gain: Mapping[str, Any] | None
    copied: Mapping[str, float] | None
    decision: Promote | Keep
    state: State


def publish(
    checkout: Checkout,
    run_id: str,
    *,
    author: Author | None = None,
    gate: Gate | None = None,
    on_line: Line = print,
) -> Publication:
    """Publishes what the pipeline made in `checkout`.

    Args:
        checkout: of `isolated_checkout`, after `dvc repro`.
        run_id: names the run in commit and tag: letters, digits, `.`, `_`, `:`, `-`.
        author: who commits and tags.
        gate: limits by which the tag says whether the version may be promoted.
        on_line: gets a line for each step.
    Returns:
        The new version; or none where nothing changed, or nothing that a version is about.
    Raises:
        DirtyError: `dvc status` is not empty.
        PublishError: others changed the same things meanwhile, or the remote refuses.
        CommandError, GitError: DVC or git fails.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise PublishError(f"run id {run_id!r} cannot stand in a commit; use up to 128 letters, digits and . _ : -")
    project, author = checkout.project, author or Author()
    ours = _stage_files(project)
    if not ours:
        return Publication(None, checkout.base, None, "nothing changed, so there is no new version")
    _check_clean(project, "the run")
    _push_data(project, on_line)
    findings = _find_out(project, gate)
    base = checkout.base
    for _ in range(ATTEMPTS):
        base = _follow(checkout, base, ours, on_line)
        last = latest(_published_tags(checkout))
        version = next_version(last, _state_of(project, last), findings.state)
        message = _message(project, version, findings, run_id)
        commit = _commit(project, message, author)
        try:
            is_delivered = _deliver(checkout, base, commit, version, message, author)
        except BaseException:
            git(project, "reset", "--quiet", "--soft", base)  # so that the same checkout can be published again
            raise
        if is_delivered:
            name = f"{NAME}@{version}" if version else "the new state, which is no new version"
            on_line(f"published {name} as {commit[:12]} on {checkout.branch}")
            return Publication(version, commit, findings.decision, message.partition("\n")[0])
        on_line(f"{checkout.remote or 'the repository'} moved while it was pushed to; looking again")
        git(project, "reset", "--quiet", "--soft", base)
    raise PublishError(
        f"{checkout.branch} moved {ATTEMPTS} times while it was pushed to; nothing was published. Run again: "
        "finished stages are kept"
    )


def _paths(text: str) -> list[str]:
    return [path for path in text.split("\0") if path]


def _locked(project: Path) -> dict[str, Any]:
    lock = project / "dvc.lock"
    content = YAML(typ="safe").load(lock.read_text(encoding="utf-8")) if lock.exists() else None
    return (content or {}).get("stages") or {}


def _stage_files(project: Path) -> list[str]:
    """Stages the pipeline's own files; returns those of them that changed.

    Those are: dvc.lock, plan.yaml, folds.csv, tables and records in metrics/, and .gitignore files in which DVC wrote
    its outputs.

    Raises:
        PublishError: another tracked file was changed.
    """
    outputs = [Path(out["path"]) for stage in _locked(project).values() for out in stage.get("outs", [])]
    ignores = {(path.parent / ".gitignore").as_posix() for path in outputs if ".." not in path.parts}
    listed = _paths(
        git(project, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *OWNED, METRICS, *ignores)
    )
    own = sorted(
        {
            path
            for path in listed
            if path in OWNED or path in ignores or (path.startswith(f"{METRICS}/") and path.endswith(METRIC_SUFFIXES))
        }
    )
    if own:
        git(project, "add", "--all", "--", *own)
    if foreign := _paths(git(project, "diff", "--name-only", "-z")):
        raise PublishError(
            f"the run changed {', '.join(foreign)}, which the pipeline does not own; nothing was published. "
            "A stage may write its declared outputs only"
        )
    return _paths(git(project, "diff", "--cached", "--name-only", "--relative", "-z"))


def _check_clean(project: Path, after: str) -> None:
    if dirty := dvc.status(project):
        raise DirtyError(
            f"after {after}, {', '.join(sorted(dirty))} is out of date; nothing was published. "
            "Run again: finished stages are kept"
        )


def _push_data(project: Path, on_line: Line) -> None:
    """Pushes all data, then asks the remote whether it has them: a version without its data is none.

    Not `--run-cache`: a clone needs dvc.lock and these data alone, and DVC (3.67) sends every entry that there ever was
    anew at each push, one by one (1000 entries by ssh on loopback took 225 s), also those whose data are nowhere.

    Raises:
        PublishError: it has not.
    """
    remote = default_remote(project)
    if remote is None:
        on_line("DVC has no default remote: the data of this version are in this machine's cache alone")
        return
    run_dvc(project, "push", "--quiet")
    text = run_dvc(project, "status", "--cloud", "--json")
    try:
        missing = json.loads(text or "{}")
    except json.JSONDecodeError:
        missing = {text.strip()[:200]: ""}
    if missing:
        some = ", ".join(sorted(missing)[:5])
        raise PublishError(f"DVC's remote {remote!r} lacks {some} after the push; nothing was published. Run again")


def _find_out(project: Path, gate: Gate | None) -> _Findings:
    gain = read_gain(project)
    path = project / ACCEPTANCE
    copied = copied_shares(read_acceptance(path)) if path.exists() else None
    texts = {name: (project / name).read_text(encoding="utf-8") for name in ("plan.yaml", "dvc.lock")}
    measured = json.dumps(gain, sort_keys=True) if gain is not None else None
    state = read_state(texts["plan.yaml"], texts["dvc.lock"], measured, _shard_schema(project / DATA_PATH))
    return _Findings(gain, copied, judge(gain, copied, gate), state)


def _shard_schema(folder: Path) -> str:
    """Digest of the columns of the shards in `folder`, which users' code relies on; empty without shards."""
    schemas = {
        tuple((field.name, str(field.type)) for field in pq.read_schema(path))
        for path in (folder.glob("*.parquet") if folder.is_dir() else ())
    }
    return digest_of(sorted(schemas)) if schemas else ""


def _published_tags(checkout: Checkout) -> list[str]:
    if checkout.remote is None:
        return git(checkout.source, "tag", "--list", f"{NAME}@*").split()
    rows = git(checkout.source, "ls-remote", "--refs", "--tags", checkout.remote, f"refs/tags/{NAME}@*").splitlines()
    return [row.partition("refs/tags/")[2] for row in rows]


def text_at(project: Path, revision: str, path: str) -> str | None:
    """A file of `project` as it was in `revision`; None where it was not there."""
    name = f"{revision}:./{path}"
    return git(project, "show", name) if succeeds(project, "cat-file", "-e", name) else None


def tag_message(project: Path, tag: str) -> str:
    """The message of an annotated tag; empty where there is no such tag."""
    return git(project, "for-each-ref", "--format=%(contents)", f"refs/tags/{tag}")


def read_trailers(message: str) -> dict[str, str]:
    """The `Synthgen-...: value` lines that end a message."""
    last = message.rstrip().rpartition("\n\n")[2]
    return {match.group(1): match.group(2) for line in last.splitlines() if (match := _TRAILER.fullmatch(line))}


def _state_of(project: Path, version: Version | None) -> State | None:
    if version is None:
        return None
    plan, lock = (text_at(project, f"refs/tags/{version.tag}", name) for name in ("plan.yaml", "dvc.lock"))
    if plan is None or lock is None:
        return None
    gain = text_at(project, f"refs/tags/{version.tag}", "metrics/gain.json")
    measured = json.dumps(json.loads(gain), sort_keys=True) if gain is not None else None
    schema = read_trailers(tag_message(project, version.tag)).get("Synthgen-Schema", "")
    return read_state(plan, lock, measured, schema)


def _points(gain: Mapping[str, Any]) -> str:
    mean, low, high = (gain[key] for key in ("mean", "low", "high"))
    if mean is None:
        return "unknown"
    return f"{100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def _gain_line(gain: Mapping[str, Any]) -> str:
    parts = [f"balanced accuracy {_points(gain['overall']['balanced_accuracy'])}"]
    parts += [f"recall of {slug} {_points(row['recall'])}" for slug, row in sorted(gain["gain"].items())]
    return "; ".join(parts)


def _message(project: Path, version: Version | None, findings: _Findings, run_id: str) -> str:
    """Commit and tag message. Class names are the user's: one line each, so that none can pose as a trailer."""
    gain, decision = findings.gain, findings.decision
    try:
        verdict = str(gain["verdict"]) if gain else "not measured"
        gained = _gain_line(gain) if gain else "not measured"
    except (KeyError, TypeError) as error:
        raise PublishError(f"metrics/gain.json lacks {error}; run `dvc repro compare` with this version") from error
    trailers = {
        "Synthgen-Run": run_id,
        "Synthgen-Verdict": verdict,
        "Synthgen-Gain": gained,
        "Synthgen-Gate": f"{'promote' if isinstance(decision, Promote) else 'keep'}: {decision.reason}",
        "Synthgen-Schema": findings.state.schema,
    }
    if findings.copied is not None:
        rounded = {name: round(share, 6) for name, share in findings.copied.items()}
        trailers["Synthgen-Copies"] = json.dumps(rounded, sort_keys=True)
    subject = f"{NAME} {version}: {verdict}" if version else f"{NAME}, same version: {verdict}"
    lines = [f"{key}: {' '.join(value.split())}" for key, value in trailers.items() if value]
    text = "\n".join([" ".join(subject.split()), "", *lines]) + "\n"
    return hide_secrets("".join(mark for mark in text if mark == "\n" or mark.isprintable()), known_secrets(project))


def _branch_head(checkout: Checkout) -> str:
    if checkout.remote:
        return fetch(checkout.source, checkout.remote, checkout.branch)
    return git(checkout.source, "rev-parse", "--verify", f"refs/heads/{checkout.branch}").strip()


def _follow(checkout: Checkout, base: str, ours: list[str], on_line: Line) -> str:
    """The branch's commit now; if it moved since `base`, the work is put on top of it.

    Raises:
        PublishError: the others changed what this run read or wrote.
    """
    project = checkout.project
    head = _branch_head(checkout)
    if head == base:
        return base
    theirs = _paths(git(project, "diff", "--name-only", "--relative", "-z", base, head))
    inputs = {dep["path"] for stage in _locked(project).values() for dep in stage.get("deps", [])}
    shared = sorted(
        path
        for path in theirs
        if path in SETTINGS
        or path in ours
        or path in OWNED
        or path.startswith(f"{METRICS}/")
        or (path.endswith(".dvc") and not path.endswith("/.dvc"))
        or any(path == read or path.startswith(f"{read}/") for read in inputs)
    )
    if shared:
        raise PublishError(
            f"{checkout.branch} moved during the run, from {base[:12]} to {head[:12]}, and {', '.join(shared[:5])} "
            "changed there, which this run read or wrote; nothing was published. Run again: finished stages are kept"
        )
    on_line(f"{checkout.branch} moved during the run; nothing that it read or wrote is concerned, so it goes on top")
    # Staged changes come along, and git refuses where that would lose one.
    git(project, "checkout", "--quiet", "--detach", head)
    _check_clean(project, f"putting the run on top of {head[:12]}")
    return head


def _commit(project: Path, message: str, author: Author) -> str:
    who = ("-c", f"user.name={author.name}", "-c", f"user.email={author.email}")
    git(project, *who, "commit", "--quiet", "--no-verify", "--cleanup=verbatim", "-m", message)
    return git(project, "rev-parse", "HEAD").strip()


def _deliver(checkout: Checkout, base: str, commit: str, version: Version | None, message: str, author: Author) -> bool:
    """Pushes branch and tag together; False where somebody else was faster.

    Raises:
        PublishError: it was refused for another reason.
    """
    project = checkout.project
    references = {f"refs/heads/{checkout.branch}": commit}
    if version:
        references[f"refs/tags/{version.tag}"] = write_tag(project, version.tag, commit, message, author)
    target = checkout.remote or str(shared_folder(project).parent)
    before = _published_tags(checkout)
    # From the repository that the worktree belongs to: a remote's address may be relative to it.
    try:
        push(checkout.source, target, references)
    except GitError as error:
        head = _branch_head(checkout)
        if head == commit:
            return True  # the answer got lost, the push did not
        if head != base or _published_tags(checkout) != before or (version and version.tag in before):
            return False
        remedy = "run again: finished stages are kept"
        if checkout.remote is None:
            remedy = (
                "a branch that is checked out in a tree with changes is left alone: commit or stash them there, then "
                + remedy
            )
        raise PublishError(f"{error}\nneither branch nor tag was published; {remedy}") from error
    if checkout.remote:
        fetch(checkout.source, checkout.remote, checkout.branch)
    return True
