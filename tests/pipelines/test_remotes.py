import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.dvc import CommandError, PipelineError
from pipelines.remotes import (
    PullError,
    RemoteError,
    add_remote,
    has_secret,
    list_remotes,
    main,
    masked_url,
    problems_of,
    pull_data,
)
from tests.pipelines.servers import (
    PASSWORD,
    Store,
    free_port,
    local_store,
    needs_module,
    s3_store,
    ssh_store,
    webdav_store,
)

STORES = {"local": local_store, "ssh": ssh_store, "webdav": webdav_store, "s3": s3_store}
REAL_SERVERS = [pytest.param(name, marks=pytest.mark.server) for name in ("ssh", "webdav", "s3")]
SHARD = "data/augmented/real-1.parquet"
DVC_YAML = """\
stages:
  assemble:
    cmd: python write.py
    deps: [write.py]
    outs: [data/augmented]
  report:
    cmd: python -c "from pathlib import Path; Path('index.html').write_text('gain')"
    deps: [data/augmented]
    outs: [index.html]
"""
WRITE = """\
from pathlib import Path
folder = Path("data/augmented")
folder.mkdir(parents=True)
for k in range({n_files}):
    (folder / f"real-{{k}}.parquet").write_bytes(bytes([k, k >> 8]) * {size})
"""


def run(folder: Path, *command: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Nobody's own settings: neither of DVC, nor of git, nor of S3."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "AWS_", "GIT_"))}
    return {
        **kept,
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(folder.parent / "no-dvc-config"),
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site-cache"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.org",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        **more,
    }


def dvc(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-m", "dvc", *arguments, check=check)


@pytest.fixture(scope="module", params=[(3, 500)])
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with this repository's kind of outputs, a folder of shards and a page; no remote yet."""
    folder = tmp_path_factory.mktemp("template") / "project"
    folder.mkdir()
    n_files, size = request.param
    run(folder, "git", "init", "-q", "-b", "main")
    dvc(folder, "init", "-q")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "write.py").write_text(WRITE.format(n_files=n_files, size=size))
    dvc(folder, "repro", "-q")
    return folder


def with_remote(template: Path, parent: Path, store: Store) -> Path:
    """The project with its remote set up, and committed."""
    folder = Path(shutil.copytree(template, parent / "project"))
    assert add_remote(folder, "store", store.url)
    for option, value in store.options.items():
        dvc(folder, "remote", "modify", "store", option, value)
    set_secrets(folder, store)
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-q", "-m", "all")
    return folder


def set_secrets(folder: Path, store: Store) -> None:
    for option, value in store.secrets.items():
        dvc(folder, "remote", "modify", "--local", "store", option, value)


def clone(project: Path, name: str, store: Store) -> Path:
    """What a colleague has: git's files and the address in them, no cache."""
    folder = project.parent / name
    run(project.parent, "git", "clone", "-q", str(project), name)
    set_secrets(folder, store)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = [*(folder / "data" / "augmented").glob("*"), folder / "index.html"]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(autouse=True)
def nobodys_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for what runs inside of this process."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "no-dvc-config"))
    (tmp_path / "empty.ini").touch()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "empty.ini"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "empty.ini"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    folder = tmp_path / "server"
    folder.mkdir()
    with STORES[request.param](folder) as opened:
        yield opened


@pytest.mark.parametrize("store", ["local", *REAL_SERVERS], indirect=True)
def test_what_is_pushed_is_pulled_and_a_tampered_object_is_not(template: Path, store: Store, tmp_path: Path) -> None:
    """Fault 29: the altered object is named, and its bytes reach nobody's folder."""
    project = with_remote(template, tmp_path, store)
    pushed = dvc(project, "push")
    colleague = clone(project, "colleague", store)
    pulled = dvc(colleague, "pull")
    assert contents(colleague) == contents(project)
    assert len(contents(colleague)) == 4
    assert "verify = true" in (colleague / ".dvc" / "config").read_text()

    honest = (project / SHARD).read_bytes()
    digest = hashlib.md5(honest).hexdigest()
    store.replace(digest, honest[:-1] + b"!")
    victim = clone(project, "victim", store)
    with pytest.raises(PullError) as refused:
        pull_data(victim)
    assert refused.value.objects == {SHARD: f"files/md5/{digest[:2]}/{digest[2:]}"}
    assert digest[2:] in str(refused.value)
    assert not (victim / SHARD).exists()

    store.replace(digest, honest)
    pull_data(victim)
    assert contents(victim) == contents(project)

    # Fault 39: the password is nowhere but in the file that git ignores.
    remotes = list_remotes(project)
    assert [(remote.url, remote.verify) for remote in remotes] == [(store.url, True)]
    said = "".join([pushed.stdout, pushed.stderr, pulled.stdout, pulled.stderr, str(refused.value), repr(remotes)])
    assert PASSWORD not in said + run(project, "git", "log", "-p", "--all").stdout


@pytest.mark.slow
@pytest.mark.parametrize("forged", [b"real-9", b"../evil"])
@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_tampered_listing_of_a_folder_is_not_taken(
    template: Path, store: Store, tmp_path: Path, forged: bytes
) -> None:
    """`dvc pull` takes it, `verify true` or not, and writes data/evil.parquet, outside of the output."""
    project = with_remote(template, tmp_path, store)
    dvc(project, "push", "-q")
    (digest,) = (name for name in store.objects() if name.endswith(".dir"))
    assert store.folder
    listing = store.folder / "files" / "md5" / digest[:2] / digest[2:]
    store.replace(digest, listing.read_bytes().replace(b"real-0", forged))
    victim = clone(project, "victim", store)
    # DVC's own reading of the second one ends in a recursion without end: refused all the same.
    with pytest.raises(PipelineError, match=r"data/augmented|nothing was fetched"):
        pull_data(victim)
    assert not list(victim.rglob("*.parquet"))
    assert not list(tmp_path.rglob("evil*"))


def _killed_push(project: Path, store: Store, n_before: int) -> None:
    """`dvc push`, killed with its children as soon as `n_before` objects have come to the remote."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "push", "--jobs", "1"],
        cwd=project,
        env=environment(project),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(store.objects()) < n_before:
        assert process.poll() is None, "the push ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


@pytest.mark.parametrize("template", [(150, 20_000)], indirect=True)
@pytest.mark.parametrize("store", [pytest.param("local", marks=pytest.mark.slow), *REAL_SERVERS[:2]], indirect=True)
def test_a_push_killed_with_kill_9_is_completed_by_the_next(template: Path, store: Store, tmp_path: Path) -> None:
    """Fault 28. Objects appear whole or not at all, and a folder's listing only after all that it lists."""
    project = with_remote(template, tmp_path, store)
    _killed_push(project, store, 5)
    there = store.objects()
    assert 5 <= len(there) < 150
    assert not any(digest.endswith(".dir") for digest in there)
    assert set(there.values()) <= {40_000, 4}

    with pytest.raises(PullError):
        pull_data(clone(project, "early", store))

    dvc(project, "push")
    assert len(store.objects()) == 150 + 2
    colleague = clone(project, "colleague", store)
    dvc(colleague, "pull")
    assert contents(colleague) == contents(project)


@pytest.mark.slow
def test_a_remote_that_is_not_there_is_no_matter_of_objects(template: Path, tmp_path: Path) -> None:
    needs_module("sshfs", "dvc[ssh]")
    project = with_remote(template, tmp_path, Store(f"ssh://127.0.0.1:{free_port()}/kept"))
    shutil.rmtree(project / ".dvc" / "cache")
    shutil.rmtree(project / "data")
    with pytest.raises(CommandError, match=r"nothing was fetched(.|\n)*Connect call failed"):
        pull_data(project)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_without_verify_a_tampered_object_is_taken(template: Path, store: Store, tmp_path: Path) -> None:
    """Why `verify true` is needed: this is what DVC does by itself."""
    project = with_remote(template, tmp_path, store)
    dvc(project, "push", "-q")
    store.replace(hashlib.md5((project / SHARD).read_bytes()).hexdigest(), b"other")
    victim = clone(project, "victim", store)
    dvc(victim, "remote", "modify", "--local", "store", "verify", "false")
    dvc(victim, "pull", "-q")
    assert (victim / SHARD).read_bytes() == b"other"
    assert main(["--project", str(victim), "check"]) == 1


@pytest.fixture(scope="module")
def empty_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty") / "project"
    folder.mkdir()
    run(folder, "git", "init", "-q")
    dvc(folder, "init", "-q")
    (folder / "dvc.yaml").write_text("stages: {}\n")
    return folder


@pytest.fixture
def empty(empty_template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(empty_template, tmp_path / "project"))


def test_init_adds_once_and_check_lists(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = ["--project", str(empty)]
    assert main([*project, "init", "store", "ssh://me@example.org:22/data"]) == 0
    assert main([*project, "init", "--local", "--no-default", "near", "kept"]) == 0
    assert main([*project, "init", "--local", "--no-default", "near", "kept"]) == 0
    assert "near was there" in capsys.readouterr().out
    assert main([*project, "check"]) == 0
    near, store = capsys.readouterr().out.splitlines()
    assert store == "store  ssh://me@example.org:22/data  verify on  default  (.dvc/config)"
    assert near.startswith("near  ")
    assert near.endswith("verify on  (.dvc/config.local)")
    assert "near" not in (empty / ".dvc" / "config").read_text()
    assert main([*project, "init", "store", "ssh://example.org/else"]) == 1
    assert "has the address ssh://me@example.org:22/data already" in capsys.readouterr().err


def test_no_remote_at_all_is_told(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--project", str(empty), "check"]) == 1
    assert "init NAME URL" in capsys.readouterr().err


def test_init_turns_verify_on_for_a_remote_that_was_there(empty: Path) -> None:
    (empty / ".dvc" / "config").write_text("['remote \"store\"']\n    url = s3://bucket/store\n")
    assert not add_remote(empty, "store", "s3://bucket/store/")
    assert [(remote.verify, remote.is_default) for remote in list_remotes(empty)] == [(True, True)]


@pytest.mark.parametrize(
    "url",
    [
        f"https://me:{PASSWORD}@example.org/x",
        f"ssh://me:{PASSWORD}@example.org/x",
        f"webdavs://{PASSWORD}@example.org/x",
        f"webdav://me:{PASSWORD}/with@signs?@example.org/x",
        f"https://example.org/x?sig={PASSWORD}@y",
        f"https://[{PASSWORD}/x",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(RemoteError, match="dvc remote modify --local store") as refused:
        add_remote(tmp_path, "store", url)
    assert PASSWORD not in str(refused.value)
    assert masked_url(url).endswith("://***")


@pytest.mark.parametrize(
    "url",
    [
        "/mnt/kept",
        "../kept@home",
        "ssh://me@example.org:22/a@b",
        "ssh://example.org:22/a@b",
        "s3://bucket/a",
        "gs://b/a",
    ],
)
def test_plain_addresses_hold_no_secret(url: str) -> None:
    assert not has_secret(url)
    assert masked_url(url) == url


@pytest.mark.parametrize(("name", "url"), [("../x", "/a"), ("-f", "/a"), ("Store", "/a"), ("a", "--force"), ("a", "")])
def test_hostile_names_and_addresses_are_refused(tmp_path: Path, name: str, url: str) -> None:
    with pytest.raises(RemoteError):
        add_remote(tmp_path, name, url)


def test_a_secret_in_the_committed_file_is_told_without_saying_it(
    empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As `dvc remote add` and `dvc remote modify` write it.
    (empty / ".dvc" / "config").write_text(
        f"""['remote "dav"']\n    url = webdav://example.org/x\n    verify = true\n    password = {PASSWORD}\n"""
        f"""['remote "web"']\n    url = https://me:{PASSWORD}@example.org/x\n"""
    )
    dav, web = list_remotes(empty)
    assert (dav.tracked_secrets, web.tracked_secrets) == (("password",), ("url",))
    assert "secret (password) in .dvc/config" in problems_of(dav)[0]
    assert main(["--project", str(empty), "check"]) == 1
    shown = capsys.readouterr()
    assert "https://***  verify OFF" in shown.out
    assert PASSWORD not in shown.out + shown.err
