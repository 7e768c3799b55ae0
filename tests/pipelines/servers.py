"""Real servers for remotes, each on a free loopback port with a folder of its own, ended when its block is left.

Owns sshd (openssh-server), nginx with WebDAV (libnginx-mod-http-dav-ext) and moto's S3 server: configuration, keys and
passwords are made for the test, below its temporary folder. Refuses system services and their configuration. What is
not installed gives a skip that names the package.
"""

import base64
import getpass
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PASSWORD = "Canary-of-a-secret-7f3a"  # must never appear in a log, a report or a commit
SSHD_PRIVILEGES = Path("/run/sshd")

SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/client_key.pub
AllowUsers {user}
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
Subsystem sftp internal-sftp
"""

NGINX_CONFIG = """\
load_module {module};
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{user_line}
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port};
    root {folder}/served;
    location / {{
      auth_basic "dvc";
      auth_basic_user_file {folder}/users;
      dav_methods PUT DELETE MKCOL COPY MOVE;
      dav_ext_methods PROPFIND OPTIONS;
      create_full_put_path on;
      dav_access user:rw;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Store:
    """A remote and how a test reaches behind it.

    Attributes:
        url: address for `dvc remote add`.
        options: what every clone knows (committed).
        secrets: what each user sets with `--local`.
        folder: where the server keeps its objects, if it keeps them in files.
    """

    url: str
    options: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def objects(self) -> dict[str, int]:
        """Digest -> size of every object that is complete under its final name."""
        assert self.folder is not None
        found = {}
        for path in self.folder.rglob("*"):
            digest = path.parent.name + path.name
            if re.fullmatch(r"[0-9a-f]{32}(\.dir)?", digest) and path.is_file():
                found[digest] = path.stat().st_size
        return found

    def replace(self, digest: str, content: bytes) -> None:
        """Puts other bytes in the place of an object, as an intruder would."""
        if self.folder is not None:
            path = self.folder / "files" / "md5" / digest[:2] / digest[2:]
            assert path.is_file()
            path.chmod(0o644)
            path.write_bytes(content)
            return
        key = f"{self.url.removeprefix('s3://')}/files/md5/{digest[:2]}/{digest[2:]}"
        _put(f"{self.options['endpointurl']}/{key}", content)


def _put(address: str, content: bytes) -> None:
    # moto lets anonymous requests touch public buckets only, and looks at no signature.
    scope = "Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    # Any other content type is taken for a form, and its bytes are lost.
    headers = {"Authorization": f"AWS4-HMAC-SHA256 {scope}", "Content-Type": "application/octet-stream"}
    request = urllib.request.Request(address, data=content, method="PUT", headers=headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=20) as answer:
        assert answer.status == 200


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def program(name: str, package: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return found


def needs_module(name: str, package: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install '{package}'")


@contextmanager
def _served(command: list[str], port: int, log: Path) -> Iterator[None]:
    """Runs a server in a group of its own until the block is left."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text(errors="replace")
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert time.monotonic() < deadline, f"{command[0]} did not listen: {log.read_text(errors='replace')}"
            time.sleep(0.05)
        yield
    finally:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, ending)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
                break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def ssh_store(folder: Path) -> Iterator[Store]:
    """openssh's sshd for the running user alone, with a key pair made here."""
    sshd, keygen = program("sshd", "openssh-server"), program("ssh-keygen", "openssh-client")
    needs_module("sshfs", "dvc[ssh]")
    if os.geteuid() == 0:
        # Debian's service makes this empty folder at its start; sshd refuses to run as root without it.
        SSHD_PRIVILEGES.mkdir(mode=0o755, exist_ok=True)
    for key in ("host_key", "client_key"):
        make = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(folder / key)]
        subprocess.run(make, check=True, timeout=60)
    port, user = free_port(), getpass.getuser()
    config = folder / "sshd_config"
    config.write_text(SSHD_CONFIG.format(port=port, folder=folder, user=user))
    kept = folder / "kept"
    kept.mkdir()
    # -D: stays in the foreground; sshd wants its own absolute path.
    with _served([sshd, "-D", "-e", "-f", str(config)], port, folder / "sshd.log"):
        secrets = {"keyfile": str(folder / "client_key")}
        yield Store(f"ssh://{user}@127.0.0.1:{port}{kept}", {}, secrets, kept)


@contextmanager
def webdav_store(folder: Path) -> Iterator[Store]:
    """nginx with the DAV modules behind a user and a password."""
    nginx = program("nginx", "nginx")
    needs_module("webdav4", "dvc[webdav]")
    built = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True, timeout=60).stderr
    modules = re.search(r"--modules-path=(\S+)", built)
    module = Path(modules.group(1) if modules else "/usr/lib/nginx/modules") / "ngx_http_dav_ext_module.so"
    if not module.is_file() or "--with-http_dav_module" not in built:
        pytest.skip("nginx has no DAV modules: apt-get install nginx libnginx-mod-http-dav-ext")
    port, user = free_port(), getpass.getuser()
    (folder / "served" / "store").mkdir(parents=True)
    salt = b"01234567"
    digest = base64.b64encode(hashlib.sha1(PASSWORD.encode() + salt).digest() + salt).decode()
    (folder / "users").write_text(f"dvc:{{SSHA}}{digest}\n")
    user_line = f"user {user};" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(NGINX_CONFIG.format(module=module, folder=folder, port=port, user_line=user_line))
    with _served([nginx, "-e", str(folder / "start.log"), "-c", str(config)], port, folder / "nginx.log"):
        secrets = {"user": "dvc", "password": PASSWORD}
        yield Store(f"webdav://127.0.0.1:{port}/store", {}, secrets, folder / "served" / "store")


@contextmanager
def s3_store(folder: Path) -> Iterator[Store]:
    """moto's stand-in for S3: the protocol as moto understands it, not S3 itself."""
    needs_module("s3fs", "dvc[s3]")
    needs_module("moto", "moto[s3]")
    needs_module("flask_cors", "flask-cors")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with _served([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, folder / "moto.log"):
        _put(f"{address}/bucket", b"")
        secrets = {"access_key_id": "key", "secret_access_key": PASSWORD}
        yield Store("s3://bucket/store", {"endpointurl": address, "region": "us-east-1"}, secrets)


@contextmanager
def local_store(folder: Path) -> Iterator[Store]:
    """A folder."""
    (folder / "kept").mkdir()
    yield Store(str(folder / "kept"), folder=folder / "kept")
