"""The page of a run in a real browser: the buttons of a run that trains, the view of one that has ended."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from support.browser import difference, errors, open_browser, screenshot, wait_until
from support.sweeps import TINY

from splatexp.config.build import build, compose
from splatexp.viewer import ViewerSettings
from splatexp.viewer.serve import serve_viewer
from splatexp.viewer.session import STATUS_SECONDS

pytest.importorskip("viser", reason="the extra `viewer` is not installed")
SMALL = [*TINY, "job_cache=", "threads=1"]
PORT = 18080  # the first port that is tried
TWO_UPDATES = 2.2 * STATUS_SECONDS
VISIBLE = 0.02  # standard deviation or difference of values in [0,1] below which nothing would be seen


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


class Page:
    """The page of a run, as a user operates it."""

    def __init__(self, driver, address: str):
        self.driver = driver
        driver.get("about:blank")
        errors(driver)  # forget those of the page before
        driver.get(address)
        wait_until(lambda: "Renderer" in self.text(), "the control panel is shown")
        self.canvas = driver.find_element("css selector", "canvas[data-engine]")
        wait_until(lambda: self.image().std() > VISIBLE, "the canvas shows the Gaussians")

    def text(self) -> str:
        return self.driver.execute_script("return document.body.innerText")

    def image(self):
        """Return the part of the canvas that no notification covers, [H,W,3] in [0,1]."""
        return screenshot(self.canvas)[:, 320:]

    def step(self) -> int:
        """Return the number of steps that the panel shows."""
        found = re.search(r"step ([\d,]+) of", self.text())
        return int(found[1].replace(",", "")) if found else -1

    def is_paused(self) -> bool:
        return "paused" in self.text() and "Resume" in self.text()

    def click(self, button: str) -> None:
        self.driver.find_element("xpath", f"//button[normalize-space()='{button}']").click()

    def choose(self, dropdown: str, option: str) -> None:
        label = self.driver.find_element("xpath", f"//label[.='{dropdown}']")
        self.driver.find_element("id", label.get_attribute("for")).click()
        path = f"//*[@role='option'][normalize-space()='{option}']"
        options = wait_until(lambda: self.driver.find_elements("xpath", path), f"{dropdown} offers {option}")
        wait_until(options[0].is_displayed, f"the options of {dropdown} are open")
        options[0].click()


@pytest.fixture
def training(browser, tmp_path):
    """A run that trains in a process of its own until it is stopped, and the page that it serves."""
    words = [*SMALL, "steps=1000000", "viewer=true", f"viewer.port={PORT}", "hydra.run.dir=run"]
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    log = tmp_path / "log"
    with open(log, "w") as output:
        command = [sys.executable, "-u", "-m", "splatexp", *words]
        process = subprocess.Popen(command, cwd=tmp_path, env=settings, stdout=output, stderr=output)

    def address() -> str:
        assert process.poll() is None, log.read_text()
        found = re.search(r"viewer: (http://\S+)", log.read_text())
        return found[1] if found else ""

    try:
        yield process, Page(browser, wait_until(address, "the run says its address", 60))
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_run_that_trains_is_paused_stepped_and_stopped(training, browser):
    process, page = training
    for word in ("Pause", "Step", "Mode", "Snapshot", "Cameras", "Crop", "Curves"):
        assert word in page.text(), word
    first = wait_until(lambda: max(page.step(), 0), "the panel shows the step")
    wait_until(lambda: page.step() > first, "the run goes on")
    page.click("Pause")
    wait_until(page.is_paused, "the page says that the run pauses")
    time.sleep(TWO_UPDATES)  # a step that had begun may have been taken
    held = page.step()
    page.click("Step")
    wait_until(lambda: page.step() > held, "the run takes a step")
    time.sleep(TWO_UPDATES)
    assert page.step() == held + 1 and page.is_paused()
    page.click("Resume")
    wait_until(lambda: page.step() > held + 1 and not page.is_paused(), "the run goes on")
    page.click("Pause")
    wait_until(page.is_paused, "the run pauses again")
    assert errors(browser) == []
    process.send_signal(signal.SIGINT)  # ends a paused run too
    assert process.wait(20) == 128 + signal.SIGINT


@pytest.fixture
def finished(tmp_path):
    """The page of Gaussians that are not trained, as `python -m splatexp.view` shows them."""
    run = build(compose([*SMALL, "steps=3", "data.points=600"]))
    scene, state = run.prepare(tmp_path)
    closed = threading.Event()
    settings = ViewerSettings(enabled=True, port=PORT)
    with serve_viewer(settings, scene, run.raster, tmp_path, 3, run.camera, training=False) as session:

        def render():
            while not closed.is_set():
                session.controls.changed.wait(0.02)
                session.controls.changed.clear()
                session.render_pending(3, state.splats, training=False)

        thread = threading.Thread(target=render)
        thread.start()
        yield session.page.address
        closed.set()
        thread.join()


def test_modes_renderers_and_snapshots_of_a_finished_run(finished, browser, tmp_path):
    page = Page(browser, finished)
    assert "step 3 of 3" in page.text() and "Gaussians" in page.text()
    assert not {"Pause", "Step"} & set(page.text().split())
    colour = page.image()
    page.choose("Mode", "depth")
    wait_until(lambda: difference(page.image(), colour) > VISIBLE, "the canvas shows depths")
    assert "world units" in page.text()
    page.click("Snapshot")
    wait_until(lambda: list(tmp_path.glob("snapshots/*depth.png")), "the snapshot is written")
    page.choose("Mode", "colour")
    wait_until(lambda: difference(page.image(), colour) < VISIBLE / 10, "the canvas shows colours again")
    assert errors(browser) == []  # asked before viser's Gaussians, whose geometry three.js complains about
    page.choose("Renderer", "browser")
    wait_until(lambda: "rendered here" in page.text(), "the browser renders")
    wait_until(lambda: 0 < difference(page.image(), colour) < VISIBLE, "it renders the same Gaussians")
    browser.get("about:blank")
