# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser, on a phone and on paper."""

import shutil
import subprocess

import matplotlib.image
import pytest
from test_report import write_run

from report import main


CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on the PATH")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser") / "run"
    folder.mkdir()
    write_run(folder)
    main([str(folder)])
    return folder / "report.html"


def browse(page, *options):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    subprocess.run([*command, *options, page.as_uri()], check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("width", [500, 1200])
def test_page_is_drawn_and_does_not_reach_beyond_the_screen(page, tmp_path, width):
    """The right edge stays white: a table that is too wide scrolls in a box of its own."""
    browse(page, f"--window-size={width},9000", f"--screenshot={tmp_path / 'page.png'}")
    image = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert image.shape[:2] == (9000, width)
    assert (image[:, -6:] > 0.99).all()
    assert (image < 0.5).any(axis=(1, 2)).sum() > 1500  # rows with text or figures


def test_page_prints(page, tmp_path):
    browse(page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
