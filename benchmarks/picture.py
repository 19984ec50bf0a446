"""Takes the README's picture: accuracy by bytes moved of the demo's two runs, as a browser draws it.

``python benchmarks/picture.py runs/quickstart.html docs/images/quickstart.png`` (needs Chromium and chromedriver).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

WIDTH, HEIGHT = 900, 3000
SECTION = "//section[h2[starts-with(., 'Accuracy by bytes')]]//figure"


def main(page: Path, out: Path) -> None:
    """Draws `page` at a fixed size in the light scheme and saves that figure."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in (
            "--headless=new",
            "--no-sandbox",
            "--hide-scrollbars",
            "--disable-background-networking",
        ):
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={profile}")
        browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            browser.set_window_size(WIDTH, HEIGHT)
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False},
            )
            browser.get(page.resolve().as_uri())
            out.parent.mkdir(parents=True, exist_ok=True)
            browser.find_element(By.XPATH, SECTION).screenshot(str(out))
        finally:
            browser.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
