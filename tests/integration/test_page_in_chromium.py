"""The page in a headless Chromium: it draws, follows the run, can be used by keyboard, and complains of nothing.

Needs Debian's package chromium and the package playwright; ES_SERVICE_REQUIRE_BROWSER=1 makes their absence a failure.
"""

from __future__ import annotations

import os
import shutil

import pytest

from es_service.config import load
from es_service.data import Baselines
from es_service.directory import RunDirectory
from es_service.page.server import Page
from es_service.tail import Follower, RunTail

CHROMIUM = shutil.which("chromium")
OFFLINE = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = '<img src=x onerror="document.title=1">\n</pre><script>document.title=2</script>'
COMMITS = 100


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if sync_playwright is None or CHROMIUM is None:
        reason = "no browser: pip install playwright, apt-get install chromium"
        if os.environ.get("ES_SERVICE_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
        yield browser
        browser.close()


def add_commit(directory, generation):
    loss = 4 + 4 * 0.95**generation
    directory.log_metrics(
        "commit", generation=generation, seconds=0.5, bits_per_byte=loss, model_bytes=200_000 + 1000 * (generation % 7),
        votes_plus=48 + generation % 5, votes_minus=46, units=100, workers=2, bits_per_member=0.8,
        wire_bits_per_member=1.08,
    )  # fmt: skip
    if generation % 20 == 0:
        directory.log_metrics("evaluation", generation=generation, bits_per_byte=loss + 0.05)
        directory.log_sample(generation=generation, text=f"{generation} {HOSTILE}")


@pytest.fixture
def served(tiny_config, tmp_path):
    (tmp_path / "r").mkdir()
    directory = RunDirectory(tmp_path, "r")
    directory.log_event("worker_ready", worker="worker-1", about=HOSTILE)
    for generation in range(COMMITS):
        add_commit(directory, generation)
    page = Page(tiny_config(deployment__generations=200), directory, 0)
    page.set_baselines(Baselines(4.75, 3.55, 1.94))
    follower = Follower(RunTail(directory), page)
    yield page, directory, follower
    follower.close()


@pytest.fixture
def tab(browser, served):
    """The page, open; at the end nothing may have been complained of, and nothing loaded from elsewhere."""
    tab = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
    tab.set_default_timeout(60_000)
    complaints, requests = [], []
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(served[0].url)
    tab.wait_for_function("() => document.querySelectorAll('#loss circle').length > 0")
    yield tab
    tab.close()
    assert complaints == []
    assert all(url.startswith((served[0].url, "data:")) for url in requests), requests


POINTS = "document.querySelector('{}').getAttribute('points').split(' ').length"


def test_the_charts_show_the_run_and_go_on_with_it(tab, served):
    assert tab.evaluate(POINTS.format("polyline.training")) == COMMITS
    assert tab.locator("#loss circle.held-out").count() == 5
    assert tab.locator("#loss line.level[x1]").count() == 3 + 3  # in the chart and in its legend
    assert "unigram 4.750" in tab.locator("#loss .legend").inner_text()
    assert tab.evaluate(POINTS.format("polyline.speed")) == COMMITS
    assert tab.locator("#votes polygon").count() == 3
    heights = tab.evaluate("document.querySelector('polyline.training').getAttribute('points')").split()
    assert float(heights[0].split(",")[1]) < float(heights[-1].split(",")[1])  # a falling loss falls on the screen
    add_commit(served[1], COMMITS)
    tab.wait_for_function(f"() => {POINTS.format('polyline.training')} == {COMMITS + 1}")
    assert tab.locator("#generation").inner_text() == str(COMMITS + 1)
    assert tab.title().startswith(f"{COMMITS + 1}/200")


def test_text_of_the_run_is_text(tab):
    assert tab.locator("#sample-text").inner_text().startswith("80 <img src=x")
    assert tab.locator("pre *, td *").count() == 0
    assert HOSTILE.split("\n")[0] in tab.locator("#workers td").last.inner_text()
    assert "/200" in tab.title()


def test_everything_can_be_reached_and_read_by_keyboard(tab):
    focused = []
    for _ in range(12):
        tab.keyboard.press("Tab")
        focused.append(
            tab.evaluate(
                "(n => [n.closest('section, details')?.id ?? n.className, getComputedStyle(n).outlineStyle])"
                "(document.activeElement)"
            )
        )
    places = [place for place, _ in focused]
    order = ["skip", "loss", "throughput", "votes", "values", "samples", "samples", "workers", "events"]
    assert places[: len(order)] == order
    assert all(outline == "solid" for _, outline in focused[: len(order)])

    chart = tab.locator("#loss svg[role=slider]")
    chart.focus()
    tab.keyboard.press("Home")
    assert chart.get_attribute("aria-valuetext").startswith(
        "generation 0, training 8.000, held-out 8.050, unigram 4.75"
    )
    tab.keyboard.press("ArrowRight")
    assert chart.get_attribute("aria-valuetext").startswith("generation 1, training 7.800")
    assert tab.locator(".cursor").count() == 3
    tab.keyboard.press("Escape")
    assert tab.locator(".cursor").count() == 0

    tab.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#values tbody tr").first.inner_text().split()[0] == str(COMMITS - 1)
    tab.locator("#sample").focus()
    tab.keyboard.press("Home")
    assert tab.locator("#sample-generation").inner_text() == "0"
    assert tab.locator("#sample-text").inner_text().startswith("0 <img")


def test_themes_motion_and_a_narrow_window(tab, tmp_path):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(ground)
    sizes = {"light": tab.screenshot(path=tmp_path / "light.png", full_page=True)}
    tab.emulate_media(color_scheme="dark", reduced_motion="reduce")
    assert tab.evaluate(ground) != light
    assert tab.evaluate("getComputedStyle(document.querySelector('#state'), '::before').animationName") == "none"
    sizes["dark"] = tab.screenshot(path=tmp_path / "dark.png", full_page=True)
    tab.set_viewport_size({"width": 400, "height": 860})
    tab.wait_for_function("() => document.querySelector('#loss svg[role=slider]').getBoundingClientRect().width < 400")
    assert tab.evaluate("document.documentElement.scrollWidth") == 400
    assert all(len(picture) > 20_000 for picture in sizes.values())


@pytest.fixture
def classifier(tmp_path):
    """The directory and the page of a run of the preset noise-step-digits."""
    (tmp_path / "digits").mkdir()
    directory = RunDirectory(tmp_path, "digits")
    for generation in range(40):
        loss = 0.3 + 3 * 0.9**generation
        directory.log_metrics(
            "commit", generation=generation, seconds=1.5, bits_per_byte=loss, model_bytes=131_072, votes_plus=32,
            votes_minus=30, units=128, workers=2, bits_per_member=1.6, wire_bits_per_member=20.0,
        )  # fmt: skip
        if generation % 10 == 0:
            accuracy = 0.9 - 0.8 * 0.9**generation
            directory.log_metrics("evaluation", generation=generation, bits_per_byte=loss, accuracy=accuracy)
    page = Page(load("noise-step-digits"), directory, 0)
    follower = Follower(RunTail(directory), page)
    yield page
    follower.close()


def test_a_classifier_has_an_accuracy_and_no_bytes(browser, classifier, tmp_path):
    tab = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
    tab.set_default_timeout(60_000)
    tab.goto(classifier.url)
    tab.wait_for_function("() => document.querySelectorAll('#accuracy circle').length === 4")
    tab.locator("summary").click()
    text = tab.locator("body").inner_text()
    assert text.count("bits/label") == 5
    assert text.count("labels/s") == 4
    assert "bytes/s" not in text
    assert "bits/byte" not in text
    assert "share of the perturbations" in text
    assert "accuracy 86.6 % at generation 30" in tab.locator("#held-out-note").inner_text()
    assert tab.locator("#values tbody tr").first.locator("td").nth(3).inner_text() == "86.6 %"
    tab.locator("#accuracy svg[role=slider]").focus()
    tab.keyboard.press("Home")
    assert tab.locator("#accuracy svg[role=slider]").get_attribute("aria-valuetext") == "generation 0, held-out 10.0 %"
    tab.screenshot(path=tmp_path / "classifier.png", full_page=True)
    tab.close()


def test_a_language_model_of_egg_has_no_accuracy(tab):
    assert tab.locator("#accuracy").is_hidden()
    tab.locator("summary").click()
    assert tab.locator("#values th:visible").count() == 7
    assert "bits/byte" in tab.locator("#loss .unit").inner_text()
    assert tab.locator("#throughput .unit").inner_text() == "bytes/s through the model"


def test_the_end_of_the_command_is_said(tab, served):
    served[2].close()
    tab.wait_for_selector("#notice:not([hidden])")
    assert "es-service dashboard r" in tab.locator("#notice").inner_text()
