"""The page in a real browser: Chromium, where it and playwright are installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from gradcheck.report.html import render
from tests.report.html.pages import deep, faulty, fixed, healthy, treated, watched

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
# axe.min.js of the package axe-core: where AXE_CORE says, or as axe-playwright-python brings it.
_FOUND = os.environ.get("AXE_CORE") or (importlib.util.find_spec("axe_playwright_python") and files("axe_playwright_python") / "axe.min.js")
AXE = Path(str(_FOUND)) if _FOUND else None
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
PAGES = {
    "treated": lambda: [treated()],
    "fixed": lambda: [fixed()],
    "watched": lambda: [watched()],
    "healthy": lambda: [healthy()],
    "two": lambda: [treated(), healthy()],
    "deep": lambda: [deep(120)],
}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", name="files")
def _files(tmp_path_factory):
    """Address of each page."""
    folder = tmp_path_factory.mktemp("pages")
    for name, make in PAGES.items():
        (folder / f"{name}.html").write_text(render(make()), encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in PAGES}


@contextmanager
def opened(browser, address, **options) -> Iterator[object]:
    """The page, which must say nothing on the console and ask for nothing but itself."""
    context = browser.new_context(**{"viewport": {"width": 1120, "height": 900}} | options)
    context.set_default_timeout(5000)
    context.set_default_navigation_timeout(30_000)  # a machine with other work
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(address)
        yield page
        assert said == []
        assert [url for url in asked if not url.startswith("data:image/png")] == [address]
    finally:
        context.close()


def shown_rows(page):
    return page.locator(".layers-table tbody tr:visible").count()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_without_a_word_on_the_console_and_asks_the_network_for_nothing(browser, files, name, scheme):
    with opened(browser, files[name], color_scheme=scheme) as page:
        assert page.locator("h2").first.is_visible()


def test_a_script_that_is_not_ours_does_not_run(browser, tmp_path):
    """The test for silence can fail: a foreign script makes the browser complain."""
    (tmp_path / "bad.html").write_text(render([healthy()]).replace("</body>", "<script>document.title='evil'</script></body>"))
    with pytest.raises(AssertionError), opened(browser, (tmp_path / "bad.html").as_uri()) as page:
        assert page.title() != "evil"


def test_pointing_at_a_layer_reads_its_numbers(browser, files):
    with opened(browser, files["treated"]) as page:
        chart = page.locator(".chart").nth(0)
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        third = box["x"] + box["width"] * (92 + 896 * 2.5 / 12) / 1000
        page.mouse.move(third, box["y"] + 60)
        tip = page.locator("#tip")
        cells = page.locator(".layers-table tbody tr").nth(2).locator("td").all_inner_texts()
        assert cells[1] in tip.inner_text() and cells[5] in tip.inner_text()
        assert page.evaluate("getComputedStyle(document.querySelector('.cursor')).visibility") == "visible"
        page.mouse.move(5, 5)
        assert tip.is_hidden()


def test_pointing_at_the_heatmap_reads_the_step(browser, files):
    with opened(browser, files["treated"]) as page:
        frame = page.locator(".frame")
        frame.scroll_into_view_if_needed()
        box = frame.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5 / 12, box["y"] + box["height"] * 2.5 / 9)
        assert "step 3: gradient norm about " in page.locator("#tip").inner_text()
        measured = treated().layers[0].snapshots[2].gradient.norm
        said = float(page.locator("#tip").inner_text().split("about ")[1].split()[0])
        assert said == pytest.approx(measured, rel=0.06)  # as near as 252 shades are


def test_arrow_keys_move_over_the_layers(browser, files):
    with opened(browser, files["treated"]) as page:
        slider = page.get_by_role("slider", name="layer")
        assert "gradient norm goes from" in slider.get_attribute("aria-description")
        slider.focus()
        for key, at in (("ArrowRight", 0), ("ArrowRight", 1), ("End", 11), ("ArrowRight", 11), ("ArrowLeft", 10), ("Home", 0)):
            page.keyboard.press(key)
            assert slider.get_attribute("aria-valuenow") == str(at)
        assert "encoder.layers.0.self_attn.q_proj" in slider.get_attribute("aria-valuetext")
        page.keyboard.press("Tab")
        assert page.locator("#tip").is_hidden()


def test_the_table_is_sorted_filtered_and_shown_in_full(browser, files):
    with opened(browser, files["deep"]) as page:
        page.get_by_role("heading", name="Layers (120)").click()
        assert shown_rows(page) == 50
        page.get_by_role("button", name="gradient", exact=True).click()
        values = [float(x) for x in page.locator(".layers-table tbody tr td:nth-child(6)").all_inner_texts() if x]
        assert values == sorted(values)
        page.get_by_role("button", name="gradient", exact=True).click()
        values = [float(x) for x in page.locator(".layers-table tbody tr td:nth-child(6)").all_inner_texts() if x]
        assert values == sorted(values, reverse=True) and len(values) == 120
        assert page.locator("th[aria-sort=descending]").inner_text().startswith("gradient")
        page.get_by_label("filter the layers").fill("norm1")
        assert shown_rows(page) == 15 and "15 of 120 layers" in page.locator(".tools").inner_text()
        page.get_by_label("filter the layers").fill("")
        page.get_by_label("show all 120 layers").check()
        assert shown_rows(page) == 120


def test_another_statistic_can_be_chosen(browser, files):
    with opened(browser, files["treated"]) as page:
        visible = "g.stat:visible"
        assert page.locator(visible).get_attribute("class") == "stat gradient"
        page.get_by_label("update to weight ratio").check()
        assert page.locator(visible).get_attribute("class") == "stat update"


def test_the_theme_is_that_of_the_system_until_the_button_is_pressed(browser, files):
    def background(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    with opened(browser, files["healthy"], color_scheme="dark") as page:
        dark = background(page)
        page.get_by_role("button", name="dark or light").click()
        assert dark == "rgb(15, 20, 25)" and background(page) == "rgb(255, 255, 255)"
        page.get_by_role("button", name="dark or light").click()
        assert background(page) == dark
        page.emulate_media(media="print")
        assert background(page) == "rgb(255, 255, 255)"


def test_links_unfold_what_they_lead_to(browser, files):
    with opened(browser, files["treated"]) as page:
        page.locator(".finding > summary").first.click()
        assert page.locator(".finding").first.get_attribute("open") is None
        page.locator(".headlines a").first.click()
        page.locator(".finding").first.and_(page.locator("[open]")).wait_for()


def test_all_of_it_is_there_without_scripts(browser, files):
    with opened(browser, files["deep"], java_script_enabled=False) as page:
        assert page.locator(".gauges li").count() == 6
        assert page.locator(".chart").nth(0).is_visible() and page.locator("g.stat.gradient image").first.is_visible()
        page.get_by_label("output, root mean square").check()
        assert page.locator("g.stat.output image").first.is_visible() and page.locator("g.stat.gradient image").first.is_hidden()
        page.get_by_role("heading", name="Layers (120)").click()
        assert shown_rows(page) == 50
        page.get_by_label("show all 120 layers").check()
        assert shown_rows(page) == 120
        assert page.locator("#theme").is_hidden() and page.locator(".scripted").is_hidden()


@pytest.mark.skipif(AXE is None, reason="no axe-core")
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, files, name, scheme):
    """The rules of WCAG 2.2 AA and the best practices, with all that is folded opened."""
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)
    try:
        page = context.new_page()
        page.goto(files[name])
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        page.evaluate(AXE.read_text(encoding="utf-8"))
        for width in (1280, 390) if (name, scheme) == ("treated", "light") else (1280,):
            page.set_viewport_size({"width": width, "height": 720})
            found = page.evaluate("async () => (await axe.run()).violations.map((v) => [v.id, v.nodes.map((n) => n.html)])")
            assert found == [], width
    finally:
        context.close()


@pytest.mark.parametrize("width", [1200, 800, 390])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut(browser, files, name, width):
    """Neither at the window's edge, nor in the heading, the verdict and the scores."""
    with opened(browser, files[name], viewport={"width": width, "height": 900}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cut = "(all) => all.filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.outerHTML)"
        assert page.eval_on_selector_all(".bar, .bar h1, .top > *:not(.cure), .headlines li, .gauges li, .sections li", cut) == []


@pytest.mark.parametrize(
    ("name", "order"),
    {
        "deep": ("h1", ".top h2", ".headlines", ".cure", "nav.sections", ".gauges", ".finding"),
        "fixed": ("h1", ".top h2", ".cure pre", "nav.sections", ".proof", ".headlines", ".gauges", ".finding"),
        "treated": ("h1", ".top h2", ".top .message", "nav.sections", ".losses", "section .diff", "section table", ".headlines", ".gauges"),
        "watched": ("h1", ".top h2", ".headlines", "nav.sections", ".losses", ".gauges", ".finding"),
    }.items(),
)
def test_what_was_asked_stands_first_and_what_to_do_above_the_scores(browser, files, name, order):
    with opened(browser, files[name]) as page:
        places = [page.locator(s).first.bounding_box()["y"] for s in order]
        assert places == sorted(places), dict(zip(order, places, strict=True))
        page.get_by_role("link", name="Method and settings").click()
        page.locator(".folded").last.and_(page.locator("[open]")).wait_for()  # wait_for_function needs eval, which the page forbids


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_scrolls_in_one_direction_only(browser, files, name):
    with opened(browser, files[name], viewport={"width": 390, "height": 800}) as page:
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_table_of_layers_fits_a_laptop(browser, tmp_path):
    """Long names, wide shapes and several findings a layer: the column of findings is not cut off."""
    report = deep(12)
    (m,) = report.measurements
    name = "encoder.transformer_blocks.{}.feed_forward_network_contraction"
    wide = {"type": "NonDynamicallyQuantizableLinear", "output_shape": (16, 1024, 12800)}
    layers = tuple(replace(x, name=name.format(i), **wide) for i, x in enumerate(m.layers))
    found = tuple(faulty(code, layers=[x.name for x in layers]) for code in ("GRAD001", "INIT001", "ACT002", "NORM003"))
    address = tmp_path / "page.html"
    address.write_text(render([replace(report, findings=found, measurements=(replace(m, layers=layers),))]), encoding="utf-8")
    with opened(browser, address.as_uri(), viewport={"width": 1200, "height": 900}) as page:
        width, room = page.evaluate("[document.querySelector('.tall').scrollWidth, document.querySelector('.tall').clientWidth]")
        assert width <= room, (width, room)
