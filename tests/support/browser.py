"""A headless Chromium for the tests of pages; where there is none, the test is skipped with a reason."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")  # names of the program, the first found is taken
WINDOW = (1000, 700)  # px
FLAGS = [
    "--headless=new",
    "--no-sandbox",  # tests in containers run as root
    "--disable-dev-shm-usage",  # containers have a small /dev/shm
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",  # WebGL on the processor
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--force-device-scale-factor=1",
    # the pages must work without a network, and a test must not reach beyond this machine
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    f"--window-size={WINDOW[0]},{WINDOW[1]}",
]


def missing() -> str:
    """Return what has to be installed before a browser can be opened, or "" where everything is there."""
    programs = []
    if not any(map(shutil.which, CHROMIUM)):
        programs.append("Chromium")
    if shutil.which("chromedriver") is None:
        programs.append("chromedriver")
    if programs:
        absent = f"{' and '.join(programs)} {'are' if len(programs) > 1 else 'is'} not installed"
        return f"{absent} (Debian: apt-get install chromium chromium-driver)"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed (pip install 'splatexp[dev]')"
    return ""


@contextmanager
def open_browser(folder: Path) -> Iterator[Any]:
    """Open a headless Chromium whose profile lies in `folder`, and close it at the end of the context.

    Yields: the selenium driver. Skips the test where a program or selenium is missing.
    """
    reason = missing()
    if reason:
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, CHROMIUM)))
    for flag in [*FLAGS, f"--user-data-dir={folder}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(shutil.which("chromedriver"))  # without a path selenium would look for one to download
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(20)
    driver.set_script_timeout(20)
    try:
        yield driver
    finally:
        driver.quit()


def errors(driver: Any) -> list[str]:
    """Return the errors that the page has written to the console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def screenshot(element: Any) -> np.ndarray:
    """Return a driver's page or one element as it is seen, [H,W,3] float64 in [0,1]."""
    png = getattr(element, "screenshot_as_png", None) or element.get_screenshot_as_png()
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"), np.float64) / 255


def difference(image: np.ndarray, other: np.ndarray) -> float:
    """Return the mean absolute difference of two screenshots of one size."""
    return float(np.abs(image - other).mean())


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Return the first true value of `condition`.  Raises: AssertionError where there is none in time."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found
