"""The page of a study in headless Chromium: a person's pointer and keys, a phone, light and dark."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from support.study_cases import finished, study

from splatexp.study.report import write


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("needs Chromium")
    with sync.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def opened_page(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    path = write(folder, "A study", "adc", study(folder / "runs", seeds=2, scenes=["fox"]))

    def open_page(width=1280, height=900, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        tab = context.new_page()
        tab.said, tab.asked = [], []
        tab.on("console", lambda message: tab.said.append(message.text))
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto(path.as_uri())
        return tab

    return open_page


def pixels(locator):
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


@pytest.mark.parametrize("width, height", [(360, 740), (1280, 900)])
def test_the_page_fits_and_asks_for_nothing(opened_page, width, height):
    paper = {}
    for scheme in ("light", "dark"):
        tab = opened_page(width, height, scheme)
        tab.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.said == [] and [url[:5] for url in tab.asked if url[:5] != "data:"] == ["file:"]
        broken = "[...document.images].filter((i) => !(i.complete && i.naturalWidth)).length"
        tab.wait_for_function(f"{broken} === 0")
        paper[scheme] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper["light"] != paper["dark"]


def test_the_slider_follows_the_pointer_and_the_keys(opened_page):
    tab = opened_page()
    stage = tab.locator(".stage").first
    stage.scroll_into_view_if_needed()
    box, before = stage.bounding_box(), pixels(stage)
    at = round(0.35 * before.shape[1])
    y = box["y"] + 0.8 * box["height"]
    tab.mouse.click(box["x"] + 0.2 * box["width"], y)
    clicked = pixels(stage)
    value = "document.querySelector('.stage input').value"
    assert tab.evaluate(value) == "20"
    assert abs(clicked[:, at - 20 : at] - before[:, at - 20 : at]).mean() > 2  # now the variant lies there
    assert abs(clicked[:, :50] - before[:, :50]).mean() < 0.5  # and here the baseline still does

    tab.mouse.move(box["x"] + 0.2 * box["width"], y)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.9 * box["width"], y, steps=5)
    assert tab.evaluate(value) == "90"
    tab.mouse.up()
    tab.mouse.move(box["x"] + 0.1 * box["width"], y)
    assert tab.evaluate(value) == "90"  # let go

    tab.keyboard.press("ArrowRight")
    assert tab.evaluate(value) == "91"
    assert "91 %" in stage.locator("input").get_attribute("aria-valuetext")
    assert tab.said == []


def test_the_buttons_change_what_is_compared(opened_page):
    tab = opened_page()
    stage, buttons = tab.locator(".stage").first, tab.locator(".choose").first.locator("button")
    before = pixels(stage)
    buttons.nth(1).click()
    tab.mouse.move(0, 0)
    assert stage.locator(".left .tag").inner_text() == "truth"
    assert [buttons.nth(i).get_attribute("aria-pressed") for i in range(3)] == ["false", "true", "false"]
    after = pixels(stage)
    half = before.shape[1] // 2
    assert abs(after[:, : half - 30] - before[:, : half - 30]).mean() > 2
    assert abs(after[:, half + 30 :] - before[:, half + 30 :]).mean() < 0.5


def test_a_link_opens_what_it_points_into(opened_page):
    tab = opened_page()
    tab.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = false))")
    tab.evaluate("location.hash = 'changes-1'")
    tab.wait_for_function("document.getElementById('changes-1').open")


def test_what_is_printed_is_open(opened_page):
    tab = opened_page()
    closed = "document.querySelectorAll('details:not([open], .long)').length"
    before = tab.evaluate(closed)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert before > 0 and tab.evaluate(closed) == 0
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate(closed) == before


def test_names_from_files_do_not_run(browser, tmp_path):
    runs = [
        finished(tmp_path / "a", "<script>window.ran = 1</script>", "<img src=x onerror='window.ran = 1'>"),
        finished(tmp_path / "b", "'\"><svg onload='window.ran = 1'>", "<img src=x onerror='window.ran = 1'>"),
    ]
    path = write(tmp_path / "out", "</title><script>window.ran = 1</script>", runs[0].variant, runs)
    tab = browser.new_page()
    said = []
    tab.on("console", lambda message: said.append(message.text))
    tab.goto(path.as_uri())
    assert tab.evaluate("window.ran") is None and said == []
    assert tab.title() == "</title><script>window.ran = 1</script>"
