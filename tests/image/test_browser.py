"""The page of a .gsi file in a real browser: what its canvas shows, pixel by pixel, and what it requests."""

import base64
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from support.browser import difference, errors, open_browser, screenshot, wait_until
from support.gsi_cases import header_of, layer_of

from splatexp.image import viewer
from splatexp.image.codec import decode, gsi
from splatexp.io import image_file

WIDTH, HEIGHT = 300, 200  # px of the file; smaller than the canvas, so that scale 1 shows all of it
VISIBLE = 0.02  # standard deviation of values in [0,1] below which an image would look blank
PIXELS = """
    const canvas = document.querySelector("canvas"), [width, height] = arguments;
    const x = Math.round(canvas.width / 2 - width / 2), y = Math.round(canvas.height / 2 - height / 2);
    const part = Object.assign(document.createElement("canvas"), { width, height });
    part.getContext("2d").drawImage(canvas, -x, -y);
    return part.toDataURL("image/png").split(",")[1];
"""
REQUESTS = "return performance.getEntriesByType('resource').map(entry => entry.name)"
DRAG = """
    const input = document.getElementById(arguments[0]);
    input.value = arguments[1];
    input.dispatchEvent(new Event("input", { bubbles: true }));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture
def page(browser, tmp_path):
    """The page of a file of two layers, and of an original that looks different, open in the browser."""
    header = header_of(WIDTH, HEIGHT, cell_shift=5)
    layers = [layer_of(header, 60, 0, log2=(2.5, 5.0)), layer_of(header, 40, 1, log2=(1.0, 3.5))]
    data = gsi.dump(header, layers)
    (tmp_path / "photo.gsi").write_bytes(data)
    original = 1 - decode.decode(data) / 255
    image_file.write_image(tmp_path / "photo.png", original)
    with viewer.serve(tmp_path / "photo.gsi", original=str(tmp_path / "photo.png")) as address:
        errors(browser)  # forget those of the test before
        browser.get(address)
        wait_until(lambda: requests(browser), "the page has requested an image")
        yield Page(browser, data)
        browser.get("about:blank")  # so that it requests nothing more from the server, which ends here


class Page:
    """The page with a file, as a user operates it."""

    def __init__(self, driver, data: bytes):
        self.driver = driver
        self.data = data
        self.canvas = driver.find_element("css selector", "canvas")

    def press(self, key: str) -> None:
        self.driver.find_element("css selector", "body").send_keys(key)

    def drag(self, slider: str, value: float) -> None:
        self.driver.execute_script(DRAG, slider, value)

    def pixels(self) -> np.ndarray:
        """Return the middle of the canvas, where the image is drawn at scale 1, [H,W,3] uint8."""
        png = base64.b64decode(self.driver.execute_script(PIXELS, WIDTH, HEIGHT))
        return np.asarray(Image.open(BytesIO(png)).convert("RGB"))

    def shows(self, expected: np.ndarray) -> bool:
        return np.array_equal(self.pixels(), expected)


def requests(driver) -> list[dict[str, float]]:
    """Return the parts of the image that the page has requested: x, y, width, height, scale, layers."""
    urls = [urlsplit(url) for url in driver.execute_script(REQUESTS)]
    queries = [parse_qs(url.query) for url in urls if "scale=" in url.query]
    return [{name: float(values[0]) for name, values in query.items()} for query in queries]


def test_the_page_draws_the_pixels_of_the_decoder(page):
    text = page.driver.find_element("css selector", "header").text
    assert f"{WIDTH} × {HEIGHT}" in text and "100 Gaussians" in text and "2 of 2" in text
    assert page.driver.title == "photo.gsi"
    assert screenshot(page.canvas).std() > VISIBLE
    page.press("1")
    wait_until(lambda: page.shows(decode.decode(page.data)), "the canvas shows the decoded image")
    assert errors(page.driver) == []


def test_zooming_requests_a_finer_and_smaller_part(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    fitted, before = requests(page.driver)[-1], screenshot(page.canvas)
    whole = round(WIDTH * fitted["scale"])
    assert (fitted["x"], fitted["y"], fitted["width"]) == (0, 0, whole)
    origin = ScrollOrigin.from_element(page.canvas, 80, 40)  # to the right of and below the middle
    for _ in range(4):
        ActionChains(page.driver).scroll_from_origin(origin, 0, -200).perform()
    wait_until(lambda: requests(page.driver)[-1]["scale"] > 3 * fitted["scale"], "the wheel zooms in")
    part = requests(page.driver)[-1]
    width, height = page.canvas.size["width"], page.canvas.size["height"]
    assert part["x"] > 0 and part["y"] > 0 and part["width"] <= width + 1 and part["height"] <= height + 1
    center = (part["x"] + part["width"] / 2) / part["scale"]
    assert center > WIDTH / 2  # the point under the pointer has stayed there
    wait_until(lambda: difference(screenshot(page.canvas), before) > VISIBLE, "the canvas shows another part")
    page.press("-")
    wait_until(lambda: requests(page.driver)[-1]["scale"] < 0.8 * part["scale"], "the key - zooms out")
    page.press("0")
    wait_until(lambda: requests(page.driver)[-1] == fitted, "the key 0 fits the image into the window")
    assert errors(page.driver) == []


def test_layers_original_and_outlines_are_shown_on_demand(page):
    page.press("1")
    everything = decode.decode(page.data)
    wait_until(lambda: page.shows(everything), "the canvas shows the decoded image")
    page.drag("layers", 1)
    first_layer = decode.decode(page.data, layers=1)
    wait_until(lambda: page.shows(first_layer), "the canvas shows the first layer alone")
    assert "60 Gaussians" in page.driver.find_element("css selector", "header").text
    page.drag("layers", 2)
    wait_until(lambda: page.shows(everything), "the canvas shows both layers again")
    page.driver.find_element("css selector", "input[type=checkbox]").click()
    wait_until(lambda: not page.shows(everything), "the canvas shows the outlines of the Gaussians")
    outlined = (page.pixels() != everything).any(-1).mean()
    assert 0.01 < outlined < 0.6  # lines, not areas
    page.driver.find_element("css selector", "input[type=checkbox]").click()
    page.drag("split", 0.5)
    original = 255 - everything
    left, right = np.s_[:, : WIDTH // 2 - 2], np.s_[:, WIDTH // 2 + 2 :]  # of the white line between them
    wait_until(
        lambda: np.array_equal(page.pixels()[right], original[right]), "the right half is the original"
    )
    assert np.array_equal(page.pixels()[left], everything[left])
    page.drag("split", 1)
    wait_until(lambda: page.shows(original), "the canvas shows the original alone")
    assert errors(page.driver) == []
