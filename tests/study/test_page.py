"""The page of a study in headless Chromium: a person's pointer and keys, a phone, light and dark."""

from itertools import pairwise

import pytest
from support.browser import open_browser, screenshot, wait_until
from support.study_cases import finished, study

from splatexp.study.report import write


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def open_page(driver, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    path = write(folder, "A study", "adc", study(folder / "runs", seeds=2, scenes=["fox"]))

    def opened(width=1280, height=900, scheme="light"):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.get_log("browser")  # what earlier pages have said
        driver.get(path.as_uri())
        return driver

    return opened


def evaluate(driver, expression):
    """The value of a JavaScript expression."""
    return driver.execute_script(f"return {expression}")


def pixels(element):
    """An element as it is seen, [H,W,3] in [0,255]."""
    return 255 * screenshot(element)


def stage_of(driver):
    """The first pair of images, scrolled into view."""
    from selenium.webdriver.common.by import By

    stage = driver.find_element(By.CSS_SELECTOR, ".stage")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
    return stage


def pointer(driver, element, x, y):
    """Actions whose pointer has moved to a place in an element, as fractions of its size."""
    from selenium.webdriver.common.action_chains import ActionChains

    width, height = element.size["width"], element.size["height"]
    actions = ActionChains(driver, duration=50)
    return actions.move_to_element_with_offset(element, round((x - 0.5) * width), round((y - 0.5) * height))


@pytest.mark.parametrize("width, height", [(360, 740), (1280, 900)])
def test_the_page_fits_and_asks_for_nothing(open_page, width, height):
    paper = {}
    for scheme in ("light", "dark"):
        tab = open_page(width, height, scheme)
        tab.execute_script("document.querySelectorAll('details').forEach((part) => (part.open = true))")
        assert evaluate(tab, "document.documentElement.scrollWidth") <= width
        asked = evaluate(tab, "performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [url for url in asked if not url.startswith("data:")] == [] and tab.get_log("browser") == []
        broken = "[...document.images].filter((i) => !(i.complete && i.naturalWidth)).length"
        wait_until(lambda tab=tab, broken=broken: evaluate(tab, f"{broken} === 0"), "all images are drawn")
        paper[scheme] = evaluate(tab, "getComputedStyle(document.body).backgroundColor")
    assert paper["light"] != paper["dark"]


def test_the_slider_follows_the_pointer_and_the_keys(open_page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    tab = open_page()
    stage = stage_of(tab)
    before = pixels(stage)
    at = round(0.35 * before.shape[1])
    pointer(tab, stage, 0.2, 0.8).click().perform()
    clicked = pixels(stage)
    value = "document.querySelector('.stage input').value"
    assert evaluate(tab, value) == "20"
    assert abs(clicked[:, at - 20 : at] - before[:, at - 20 : at]).mean() > 2  # now the variant lies there
    assert abs(clicked[:, :50] - before[:, :50]).mean() < 0.5  # and here the baseline still does

    drag = pointer(tab, stage, 0.2, 0.8).click_and_hold()
    for start, end in pairwise(round(0.14 * part * stage.size["width"]) for part in range(6)):
        drag.move_by_offset(end - start, 0)
    drag.perform()
    assert evaluate(tab, value) == "90"
    drag.reset_actions()  # which lets go
    pointer(tab, stage, 0.1, 0.8).perform()
    assert evaluate(tab, value) == "90"

    slider = stage.find_element(By.TAG_NAME, "input")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert evaluate(tab, value) == "91"
    assert "91 %" in slider.get_attribute("aria-valuetext")
    assert tab.get_log("browser") == []


def test_the_buttons_change_what_is_compared(open_page):
    from selenium.webdriver.common.by import By

    tab = open_page()
    stage = stage_of(tab)
    buttons = tab.find_element(By.CSS_SELECTOR, ".choose").find_elements(By.TAG_NAME, "button")
    before = pixels(stage)
    buttons[1].click()
    assert stage.find_element(By.CSS_SELECTOR, ".left .tag").text == "truth"
    assert [button.get_attribute("aria-pressed") for button in buttons[:3]] == ["false", "true", "false"]
    after = pixels(stage)
    half = before.shape[1] // 2
    assert abs(after[:, : half - 30] - before[:, : half - 30]).mean() > 2
    assert abs(after[:, half + 30 :] - before[:, half + 30 :]).mean() < 0.5


def test_a_link_opens_what_it_points_into(open_page):
    tab = open_page()
    tab.execute_script("document.querySelectorAll('details').forEach((part) => (part.open = false))")
    tab.execute_script("location.hash = 'changes-1'")
    wait_until(lambda: evaluate(tab, "document.getElementById('changes-1').open"), "the part is open")


def test_what_is_printed_is_open(open_page):
    tab = open_page()
    closed = "document.querySelectorAll('details:not([open], .long)').length"
    before = evaluate(tab, closed)
    tab.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert before > 0 and evaluate(tab, closed) == 0
    tab.execute_script("dispatchEvent(new Event('afterprint'))")
    assert evaluate(tab, closed) == before


def test_names_from_files_do_not_run(driver, tmp_path):
    runs = [
        finished(tmp_path / "a", "<script>window.ran = 1</script>", "<img src=x onerror='window.ran = 1'>"),
        finished(tmp_path / "b", "'\"><svg onload='window.ran = 1'>", "<img src=x onerror='window.ran = 1'>"),
    ]
    path = write(tmp_path / "out", "</title><script>window.ran = 1</script>", runs[0].variant, runs)
    driver.get_log("browser")
    driver.get(path.as_uri())
    assert evaluate(driver, "window.ran") is None and driver.get_log("browser") == []
    assert driver.title == "</title><script>window.ran = 1</script>"
