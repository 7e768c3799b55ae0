"""The page in a real browser: no script runs, no request leaves, nothing overflows the window."""

import shutil
import subprocess
from pathlib import Path

import pytest

from synthgen.report.page import ReportContent, render_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]


def open_page(page: Path, profile: Path) -> tuple[str, str]:
    """The document after loading, as the browser serialises it, and what the browser wrote to its log."""
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def test_canaries_stay_text_in_a_real_browser(hostile_content: ReportContent, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text(render_page(hostile_content), encoding="utf-8")
    dom, log = open_page(page, tmp_path / "profile")
    assert "&lt;img src=x onerror=" in dom
    assert "<script" not in dom
    assert 'onerror="' not in dom.replace("&quot;", "'").replace('onerror="alert(1)"&gt;', "")
    assert "Content Security Policy" not in log  # a violation would be logged: the page does not even try


def test_the_policy_would_stop_a_script_that_got_in(content: ReportContent, tmp_path: Path) -> None:
    # The second wall: even if escaping failed, nothing runs and nothing is fetched.
    planted = (
        '<img src="https://example.org/x.png" onerror="document.title=\'ran\'"><script>document.title="ran"</script>'
    )
    page = tmp_path / "index.html"
    page.write_text(render_page(content).replace("<footer>", f"{planted}<footer>"), encoding="utf-8")
    dom, log = open_page(page, tmp_path / "profile")
    assert "<title>ran</title>" not in dom
    assert "Content Security Policy" in log
