"""What the tests of reports share: real runs whose bytes can be summed by hand, and a browser to look at pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fedadapt.runs.records import FRAMING, ClientRecord, Direction, LedgerEntry, Outcome, RoundRecord
from fedadapt.runs.store import RunStore


def make_manifest(name: str, planned: int, counts: list[list[int]] | None) -> dict:
    """What a run writes down before its first round, with the keys that a report reads."""
    return {
        "config": {
            "name": name,
            "seed": 7,
            "rounds": planned,
            "adapter": {"name": "parallel", "rank": 4},
            "algorithm": {"name": "fedavg"},
        },
        "seed": 7,
        "plan": [
            {"group": "adapter", "trained": True, "travels": "shared", "values": 1000, "bytes": 4000},
            {"group": "norm_affine", "trained": True, "travels": "frozen", "values": 50, "bytes": 0},
        ],
        "backbone": {"name": "resnet8", "digest": "ab" * 32, "bytes": 280000, "parameters": 70000},
        "data": {
            "name": "digits",
            "class_names": ["zero", "one"],
            "measured_on": "test",
            "client_counts": counts,
        },
        "versions": {"python": "3.11"},
        "hardware": {"machine": "x86_64", "threads": 2},
        "created_at": "2026-01-02T03:04:05+00:00",
    }


def make_round(number: int, metrics: dict[str, float], scale: int = 1) -> RoundRecord:
    """A round of two clients.

    Times `scale`, each downloads 400 bytes of adapters and 100 of framing, and uploads 200 and 100. So a round
    moves 1000 bytes down and 600 up. Client 0 has accuracy 0.25, client 1 has 0.75. Round 0 moves nothing.
    """
    moved = (
        (Direction.DOWNLOAD, "adapter", 400),
        (Direction.DOWNLOAD, FRAMING, 100),
        (Direction.UPLOAD, "adapter", 200),
        (Direction.UPLOAD, FRAMING, 100),
    )
    clients = (0, 1) if number else ()
    return RoundRecord(
        round=number,
        state={"model": {"w": torch.zeros(2)}},
        metrics=metrics,
        clients=tuple(ClientRecord(number, c, Outcome.ACCEPTED, 3, 2, 0.5, 0.25 + 0.5 * c) for c in clients),
        ledger=tuple(
            LedgerEntry(number, c, way, group, num_bytes * scale)
            for c in clients
            for way, group, num_bytes in moved
        ),
        wall_s=2.0,
        cpu_s=3.0,
    )


def create_run(
    path: Path,
    name: str = "small",
    accuracies: tuple[float | None, ...] = (0.1, 0.5, 0.75),
    *,
    planned: int | None = None,
    scale: int = 1,
    counts: list[list[int]] | None = None,
    changes: dict | None = None,
) -> Path:
    """Makes a run directory; one number in `accuracies` is one round from 0, None is a round not measured."""
    rounds = len(accuracies) - 1 if planned is None else planned
    with RunStore.create(path, make_manifest(name, rounds, counts) | (changes or {})) as store:
        for number, accuracy in enumerate(accuracies):
            metrics = {} if accuracy is None else {"accuracy": accuracy, "loss": 1 - accuracy}
            store.commit(make_round(number, metrics, scale))
    return path


@pytest.fixture(name="make_round", scope="session")
def _make_round() -> Callable[..., RoundRecord]:
    return make_round


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`create_run` in a folder of this test; `folder` names the run directory."""

    def make(*arguments, folder: str | None = None, **options) -> Path:
        return create_run(
            tmp_path / (folder or f"run-{len(list(tmp_path.iterdir()))}"), *arguments, **options
        )

    return make


@pytest.fixture(scope="module")
def make_lasting_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`create_run` in folders that last as long as the tests of one file."""
    return lambda *arguments, **options: create_run(
        tmp_path_factory.mktemp("runs") / "run", *arguments, **options
    )


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium that records what pages log and what they ask for."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    programs = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program = next(filter(None, programs), None)
    driver_program = shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("needs chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    yield Browser(driver, tmp_path_factory.mktemp("downloads"))
    driver.quit()


class Browser:
    """Looks at one page after the other; opening the page that is open does nothing.

    Args:
        driver: selenium's.
        downloads: the folder where pages save files.
    """

    def __init__(self, driver, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads
        self.page, self.messages, self.addresses = None, [], []
        behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)

    def open(self, page: Path, *, scheme: str = "light", width: int = 1200) -> None:
        """Shows a file in a colour scheme and width of the window, with every figure drawn."""
        self.prefer(scheme)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        if page == self.page:
            return
        self.log()
        self.requests()
        self.page, self.messages, self.addresses = page, [], []
        self.driver.get(page.as_uri())
        self.wait(lambda: self.ask("document.documentElement.dataset.drawn"))

    def prefer(self, scheme: str) -> None:
        """Sets what the system says of its colours, ``light`` or ``dark``."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def ask(self, script: str):
        """What a script says in the page."""
        return self.driver.execute_script(f"return {script}")

    def wait(self, condition: Callable[[], bool], *ignored: type[Exception]) -> None:
        """Waits until `condition` holds; the limit only stops what hangs."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 400, ignored_exceptions=ignored).until(lambda _: condition())

    def wait_for_reload(self, condition: Callable[[], bool]) -> None:
        """Waits until `condition` holds of a page that reads itself again, and may be away when it is asked."""
        from selenium.common.exceptions import JavascriptException

        self.wait(condition, JavascriptException)

    def press_enter(self, selector: str) -> None:
        """Presses the enter key on the first element that `selector` finds."""
        from selenium.webdriver.common.keys import Keys

        self.driver.find_element("css selector", selector).send_keys(Keys.ENTER)

    def log(self) -> list[str]:
        """What the console was told since the page was opened."""
        self.messages += [entry["message"] for entry in self.driver.get_log("browser")]
        return self.messages

    def requests(self) -> list[str]:
        """The addresses that were asked for since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        self.addresses += [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return self.addresses
