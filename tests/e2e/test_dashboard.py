"""What a browser shows of a job that really ran."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from product import Product, TestedJob

pytestmark = pytest.mark.long
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> str:
    """A Chromium; this test needs one, as others need kubectl."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    assert found, f"none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)"
    return found


@pytest.fixture
def url(installation: Product) -> Iterator[str]:
    command = [sys.executable, "-m", "trireme_cli", "dashboard", "--port", "0"]
    command += ["--kubeconfig", str(installation.local.kubeconfig)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(30)
    assert code == 0, "Ctrl-C is its usual end"


def chart(page: str, key: str) -> str:
    """The card of one chart, as the browser has it."""
    found = re.search(rf'<(figure|section)[^>]*data-chart="{key}".*?</\1>', page, re.DOTALL)
    assert found, f"no chart of {key} in the page"
    return found[0]


def test_a_browser_draws_the_curves_of_a_real_job(
    browser: str, url: str, undisturbed: TestedJob, tmp_path: Path
) -> None:
    page_url = f"{url}#/pretrainjobs/default/{undisturbed.name}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}"]
    command = [browser, *flags, "--virtual-time-budget=10000", "--dump-dom", page_url]
    page = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    for key in ("loss", "tokensPerSecond", "mfu", "gradNorm", "learningRate"):
        drawn = chart(page, key)
        line = re.search(r'class="line" d="([^"]+)"', drawn)
        assert line, f"no line of {key}: {drawn}"
        # The first step of an attempt has no speed yet.
        assert line[1].count("L") >= 50, f"{key} has a point for each of 60 steps"
    assert re.search(r'aria-label="Loss over steps 1 to 60: from [\d.]+ to [\d.]+"', chart(page, "loss"))
    assert 'class="checkpoint"' in chart(page, "loss")
    assert "Productive" in chart(page, "time")
    assert "Succeeded" in page
    assert '<p id="freshness" role="status" class="live">live</p>' in page
