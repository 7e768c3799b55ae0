"""Which version users take: promotion through the gate, override by name, one step back.

Owns the promotion tags `augmented#prod#N` (annotated, at the version's commit, as GTO writes and reads them) and the
record in them: who, what, why. Refuses to promote past the gate without a reason, and to touch branch, tree or data:
a promotion is a tag, published by one push, so that two people at once cannot both write number N.

`synthgen promote VERSION [--force REASON]`, `synthgen rollback`, `synthgen promoted`; the same verbs after `python -m
pipelines.promotion`, where the package's entry points are not installed.

PipelineError
└── PromotionError  there is no such version, or nothing to go back to
"""

import argparse
import getpass
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.checkout import fetch_tags, find_remote, shared_folder
from pipelines.dvc import PipelineError, find_project
from pipelines.gate import Gate, Keep, Promote, judge
from pipelines.git import Author, GitError, answer, git, hide_secrets, known_secrets, push, write_tag
from pipelines.publish import read_trailers, tag_message, text_at
from pipelines.versioning import NAME, Version, parse_tag, parse_version
from synthgen.errors import SynthgenError

__all__ = ["Promotion", "PromotionError", "current", "history", "promote", "roll_back"]

PROMOTE = "promote"
ROLL_BACK = "rollback"
OVERRIDE = "override"
_STAGE = re.compile(r"[a-z][a-z0-9]{0,31}", re.ASCII)
_FIELDS = "%(refname:strip=2)%00%(*objectname)%00%(objectname)%00%(creatordate:unix)%00%(contents)%00"


class PromotionError(PipelineError):
    """There is no such version, or nothing to go back to."""


@dataclass(frozen=True)
class Promotion:
    """One promotion of a stage.

    Attributes:
        version: what was promoted.
        stage: such as `prod`.
        number: counts the promotions of the stage.
        commit: of the version.
        action: `promote`, `override` (past the gate) or `rollback`.
        who: who asked for it.
        reason: why it may be.
    """

    version: Version
    stage: str
    number: int
    commit: str
    action: str
    who: str
    reason: str

    @property
    def tag(self) -> str:
        """`augmented#prod#3`, the name of its git tag."""
        return f"{NAME}#{self.stage}#{self.number}"


@dataclass(frozen=True)
class _Entry:
    promotion: Promotion
    is_withdrawal: bool
    date: int


def _entries(project: Path, stage: str) -> list[_Entry]:
    rows = git(project, "for-each-ref", f"--format={_FIELDS}", "refs/tags").split("\0\n")
    fields = [row.split("\0") for row in rows if row.count("\0") == 4]
    commits = {tag: peeled or own for tag, peeled, own, *_ in fields}
    versions: dict[str, Version] = {}
    for tag, commit in commits.items():
        if version := parse_tag(tag):
            versions[commit] = max(version, versions.get(commit, version))
    pattern = re.compile(rf"{NAME}#{stage}(!?)(?:#(\d{{1,9}}))?", re.ASCII)
    found = []
    for tag, _, _, date, message in fields:
        match = pattern.fullmatch(tag)
        if match and commits[tag] in versions:
            told = read_trailers(message)
            promotion = Promotion(
                version=versions[commits[tag]],
                stage=stage,
                number=int(match.group(2) or 0),
                commit=commits[tag],
                action=told.get("Synthgen-Action", PROMOTE),
                who=told.get("Synthgen-Who", "unknown"),
                reason=told.get("Synthgen-Reason", "unknown"),
            )
            found.append(_Entry(promotion, bool(match.group(1)), int(date or 0)))
    return sorted(found, key=lambda entry: entry.promotion.number)


def _standing(entries: list[_Entry]) -> list[Promotion]:
    """Promotions that still count, oldest first: a step back takes the last one away, whatever it was."""
    stack: list[Promotion] = []
    for entry in entries:
        if entry.is_withdrawal:
            stack = [one for one in stack if one.version != entry.promotion.version]
        elif entry.promotion.action == ROLL_BACK:
            while stack and stack[-1].version != entry.promotion.version:
                stack.pop()
            stack[-1:] = [entry.promotion]
        else:
            stack.append(entry.promotion)
    return stack


def _checked_stage(stage: str) -> str:
    if not _STAGE.fullmatch(stage):
        raise PromotionError(f"stage {stage!r} cannot stand in a tag; use a lowercase word such as prod")
    return stage


def _updated(project: str | Path, remote: str) -> tuple[Path, str | None]:
    folder = find_project(project)
    found = find_remote(folder, remote)
    if found:
        fetch_tags(folder, found)
    return folder, found


def history(project: str | Path, stage: str = "prod", *, remote: str = "origin") -> list[Promotion]:
    """Every promotion of `stage`, steps back among them, oldest first.

    Raises:
        GitError: the remote cannot be asked.
    """
    folder, _ = _updated(project, remote)
    return [entry.promotion for entry in _entries(folder, _checked_stage(stage)) if not entry.is_withdrawal]


def current(project: str | Path, stage: str = "prod", *, remote: str = "origin") -> Promotion | None:
    """What users of `stage` get now; None where nothing was promoted yet.

    Raises:
        GitError: the remote cannot be asked.
    """
    folder, _ = _updated(project, remote)
    standing = _standing(_entries(folder, _checked_stage(stage)))
    return standing[-1] if standing else None


def promote(
    project: str | Path,
    version: str | Version,
    *,
    stage: str = "prod",
    force_reason: str | None = None,
    who: str | None = None,
    gate: Gate | None = None,
    author: Author | None = None,
    remote: str = "origin",
) -> Promotion | Keep:
    """Promotes `version` if the gate lets it pass, or if somebody gives a reason to do it all the same.

    Args:
        project: folder of dvc.yaml in any clone.
        version: such as `v0.1.0`.
        stage: what is promoted to.
        force_reason: why the gate does not count this time; recorded.
        who: asks for it; by default git's user, else the system's.
        gate: the limits.
        author: who tags.
        remote: git remote; where there is none, the tag is written here.
    Returns:
        The promotion (the standing one if that version is promoted already), or `Keep` with what speaks against it.
    Raises:
        PromotionError: there is no such version, or the reason is empty.
        GitError: the remote refuses or cannot be asked.
    """
    wanted = version if isinstance(version, Version) else parse_version(version.removeprefix(f"{NAME}@"))
    if wanted is None:
        raise PromotionError(f"{version!r} is no version; write it like v0.1.0")
    if force_reason is not None and not force_reason.strip():
        raise PromotionError("a promotion past the gate needs a reason; say why")
    folder, target = _updated(project, remote)
    entries = _entries(folder, _checked_stage(stage))
    standing = _standing(entries)
    if standing and standing[-1].version == wanted:
        return standing[-1]
    commit = answer(folder, "rev-parse", "--verify", "--quiet", f"refs/tags/{wanted.tag}^{{commit}}")
    if commit is None:
        raise PromotionError(f"there is no version {wanted}; `git tag --list '{NAME}@*'` lists those that there are")
    decision = _judged(folder, wanted, gate)
    if isinstance(decision, Keep) and force_reason is None:
        return decision
    overridden = isinstance(decision, Keep)
    reason = f"{force_reason} (the gate: {decision.reason})" if overridden else decision.reason
    action = OVERRIDE if overridden else PROMOTE
    promotion = Promotion(wanted, stage, _next_number(entries), commit, action, _asker(folder, who), _line(reason))
    return _write(folder, target, promotion, author, entries)


def roll_back(
    project: str | Path,
    *,
    stage: str = "prod",
    reason: str = "rolled back",
    who: str | None = None,
    author: Author | None = None,
    remote: str = "origin",
) -> Promotion:
    """Gives users of `stage` the version that they had before the present one; again, the one before that.

    Raises:
        PromotionError: there is no earlier one.
        GitError: the remote refuses or cannot be asked.
    """
    folder, target = _updated(project, remote)
    entries = _entries(folder, _checked_stage(stage))
    standing = _standing(entries)
    earlier = [one for one in standing if one.version != standing[-1].version]
    if not earlier:
        present = f"{standing[-1].version} is the only version" if standing else "no version is"
        raise PromotionError(f"{present} promoted to {stage}, so there is none to go back to; promote another one")
    back = earlier[-1]
    text = _line(f"{reason} (it was {standing[-1].version})")
    made = Promotion(back.version, stage, _next_number(entries), back.commit, ROLL_BACK, _asker(folder, who), text)
    return _write(folder, target, made, author, entries)


def _judged(project: Path, version: Version, gate: Gate | None) -> Promote | Keep:
    """The gate's decision on a version as it was published, by the limits of today."""
    text = text_at(project, f"refs/tags/{version.tag}", "metrics/gain.json")
    told = read_trailers(tag_message(project, version.tag)).get("Synthgen-Copies")
    try:
        gain: Any = json.loads(text) if text is not None else None
        copied: Any = json.loads(told) if told is not None else None
    except json.JSONDecodeError as error:
        return Keep(f"what {version} says about itself cannot be read ({error})")
    if copied is not None and not _is_shares(copied):
        return Keep(f"what {version} says about copies of training images cannot be read")
    return judge(gain, copied, gate)


def _is_shares(value: Any) -> bool:
    return isinstance(value, Mapping) and all(type(share) in {int, float} for share in value.values())


def _next_number(entries: list[_Entry]) -> int:
    return max((entry.promotion.number for entry in entries), default=0) + 1


def _asker(project: Path, who: str | None) -> str:
    if who and _line(who):
        return _line(who)
    name, email = (answer(project, "config", key) for key in ("user.name", "user.email"))
    if name:
        return f"{name} <{email}>" if email else name
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _line(text: str) -> str:
    return "".join(mark for mark in " ".join(text.split()) if mark.isprintable())


def _write(
    project: Path, remote: str | None, promotion: Promotion, author: Author | None, entries: list[_Entry]
) -> Promotion:
    lines = [
        f"{NAME} {promotion.version} to {promotion.stage}",
        "",
        f"Synthgen-Action: {promotion.action}",
        f"Synthgen-Version: {promotion.version}",
        f"Synthgen-Who: {promotion.who}",
        f"Synthgen-Reason: {promotion.reason}",
    ]
    message = hide_secrets("\n".join(lines), known_secrets(project))
    # GTO orders promotions by their dates, which count whole seconds: each must be later than the one before.
    later = max((entry.date for entry in entries), default=0) + 1
    made = write_tag(project, promotion.tag, promotion.commit, message, author or Author(), not_before=later)
    target = remote or str(shared_folder(project).parent)
    try:
        push(project, target, {f"refs/tags/{promotion.tag}": made})
    except GitError as error:
        raise PromotionError(
            f"{promotion.tag} was not published, perhaps because somebody else promoted at the same time; look with "
            f"`synthgen promoted`, then run again\n{error}"
        ) from error
    if remote:
        fetch_tags(project, remote)
    return promotion


def _told(promotion: Promotion) -> str:
    return (
        f"{promotion.tag}  {promotion.version}  {promotion.action}  by {promotion.who}: "
        f"{promotion.reason}  ({promotion.commit[:12]})\n"
    )


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description="Says which version users take, and changes it.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--project", default=".", help="folder of dvc.yaml (default: here)")
    common.add_argument("--stage", default="prod", help="what is promoted to (default: prod)")
    common.add_argument("--remote", default="origin", help="git remote (default: origin)")
    asked = argparse.ArgumentParser(add_help=False)
    asked.add_argument("--who", help="who asks for it (default: git's user)")
    commands = parser.add_subparsers(dest="command", required=True)
    forward = commands.add_parser("promote", parents=[common, asked], help="promote a version, through the gate")
    forward.add_argument("version", help="such as v0.1.0")
    forward.add_argument("--force", metavar="REASON", help="promote past the gate; recorded with your name")
    back = commands.add_parser("rollback", parents=[common, asked], help="go back to the version promoted before")
    back.add_argument("--reason", default="rolled back", help="why; recorded")
    commands.add_parser("promoted", aliases=["show"], parents=[common], help="what is promoted, and what was")
    return parser


def main(arguments: list[str], program: str = "python -m pipelines.promotion") -> int:
    """Promotes, goes back or shows; 0 done, 1 error, 2 wrong usage, 3 kept by the gate.

    Args:
        arguments: verb and options.
        program: what the user typed before them, for the usage.
    """
    options = _parser(program).parse_args(arguments)
    where = {"stage": options.stage, "remote": options.remote}
    try:
        if options.command == "promote":
            done = promote(options.project, options.version, force_reason=options.force, who=options.who, **where)
            if isinstance(done, Keep):
                sys.stderr.write(f"{options.version} stays unpromoted: {done.reason}\n")
                return 3
            sys.stdout.write(_told(done))
        elif options.command == "rollback":
            sys.stdout.write(_told(roll_back(options.project, reason=options.reason, who=options.who, **where)))
        else:
            standing = current(options.project, **where)
            sys.stdout.write(f"{options.stage}: {standing.version if standing else 'nothing promoted yet'}\n")
            sys.stdout.writelines(map(_told, history(options.project, **where)))
    except SynthgenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
