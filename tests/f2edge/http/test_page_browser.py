"""The studio in Chromium, over nano: prompt, previews, picture, questions, bars, edits, keyboard, phone, dark, and an attack."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_core_python.selenium import Axe
from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from f2edge.pipeline import FacePipeline
from f2edge.provenance.inspection import find_marks
from f2edge.server.engine_protocol import open_served
from tests.f2edge.http.test_rest import HTTP
from tests.support.serving import eventually, serving

pytestmark = pytest.mark.browser

#: Wherever a browser is in a container, it runs as root and without much shared memory.
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server", "--window-size=1200,900")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(open_served("nano", "auto", 1), HTTP) as thread:
        assert thread.server.http_address is not None
        assert eventually(lambda: thread.server.readiness.ready, 120)
        yield thread.server.http_address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    options = ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options, Service(shutil.which("chromedriver")))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: Chrome, address: str) -> Chrome:
    chromium.get_log("browser")  # type: ignore[no-untyped-call]
    chromium.get(address)
    assert eventually(lambda: text(chromium, "model").startswith("nano"))
    return chromium


def text(browser: Chrome, name: str) -> str:
    return str(browser.find_element(By.ID, name).text)


def put(browser: Chrome, name: str, value: str) -> None:
    field = browser.find_element(By.ID, name)
    field.clear()
    field.send_keys(value)


def draw(browser: Chrome, prompt: str = "a smiling woman with red hair", seed: int = 7) -> None:
    put(browser, "prompt", prompt)
    put(browser, "seed", str(seed))
    browser.find_element(By.ID, "prompt").send_keys(Keys.ENTER)
    assert eventually(lambda: text(browser, "status").startswith(f"seed {seed},")), text(browser, "status")


def picture(browser: Chrome, folder: Path) -> bytes:
    """Download the picture as a person does."""
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    before = set(folder.glob("*.png"))
    browser.find_element(By.ID, "download").click()
    assert eventually(lambda: len(set(folder.glob("*.png")) - before) == 1)
    (found,) = set(folder.glob("*.png")) - before
    return found.read_bytes()


def dataset(browser: Chrome, selector: str, name: str) -> list[Any]:
    return [element.get_attribute(f"data-{name}") for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def violations(browser: Chrome) -> list[str]:
    logged = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in logged if entry["level"] == "SEVERE"]


# Pictures --------------------------------------------------------------------------------------------------------------------------------


def test_a_prompt_becomes_a_picture_through_previews(browser: Chrome, address: str, tmp_path: Path) -> None:
    draw(browser)
    assert int(browser.find_element(By.ID, "picture").get_attribute("data-previews") or 0) >= 4
    data = picture(browser, tmp_path)
    asked = {"prompt": "a smiling woman with red hair", "seed": 7}
    again = httpx.post(f"{address}/v1/generate", json=asked, headers={"accept": "image/png"}, timeout=60, trust_env=False)
    assert np.array_equal(pixels(data), pixels(again.content))
    assert set(find_marks(data).names) >= {"xmp", "watermark"}
    assert len(browser.find_elements(By.CSS_SELECTOR, "#history button")) >= 1
    assert violations(browser) == []


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_a_brushed_edit_leaves_the_rest(browser: Chrome, tmp_path: Path) -> None:
    draw(browser, "a woman", 3)
    before = pixels(picture(browser, tmp_path))
    canvas = browser.find_element(By.ID, "brush")
    put(browser, "change", "a woman with a hat")
    ActionChains(browser).move_to_element_with_offset(canvas, -40, -90).click_and_hold().move_by_offset(80, 0).release().perform()
    browser.find_element(By.CSS_SELECTOR, "#edit button[type=submit]").click()
    assert eventually(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#history button")) == 2), text(browser, "status")
    changed = np.abs(pixels(picture(browser, tmp_path)) - before).max(axis=2)
    assert (changed[72:] <= 12).all()  # the watermark alone
    assert changed[:64].max() > 25
    assert violations(browser) == []


def test_a_region_is_edited_by_its_name_with_the_keyboard_alone(browser: Chrome) -> None:
    draw(browser, "a woman with red hair", 5)
    hair = browser.find_element(By.CSS_SELECTOR, "[data-region=hair]")
    hair.send_keys(Keys.ENTER)
    assert eventually(lambda: hair.get_attribute("aria-pressed") == "true")
    browser.find_element(By.ID, "change").send_keys("a woman with black hair" + Keys.ENTER)
    assert eventually(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#history button")) == 2), text(browser, "status")
    browser.find_element(By.CSS_SELECTOR, "[data-as=curl]").send_keys(Keys.ENTER)
    assert eventually(lambda: "/v1/edit" in text(browser, "copied"))
    browser.find_element(By.CSS_SELECTOR, "[data-as=cli]").send_keys(Keys.ENTER)
    assert eventually(
        lambda: text(browser, "copied").startswith("f2edge edit 'face-5.png' 'a woman with black hair' --region 'hair' --seed ")
    )


def test_a_gallery_of_seeds(browser: Chrome, address: str, tmp_path: Path) -> None:
    put(browser, "prompt", "an old man")
    put(browser, "seed", "20")
    browser.find_element(By.ID, "draw-gallery").click()
    assert eventually(lambda: text(browser, "status") == "6 of 6 faces", 120), text(browser, "status")
    browser.find_elements(By.CSS_SELECTOR, "#gallery button")[3].click()
    data = picture(browser, tmp_path)
    asked = {"prompt": "an old man", "seed": 23}
    again = httpx.post(f"{address}/v1/generate", json=asked, headers={"accept": "image/png"}, timeout=60, trust_env=False)
    assert data == again.content
    assert violated(browser) == []


# Words -----------------------------------------------------------------------------------------------------------------------------------


def test_the_bars_are_those_of_the_api(browser: Chrome, address: str, tmp_path: Path) -> None:
    draw(browser, "a man with glasses", 2)
    browser.find_element(By.ID, "analyze").click()
    assert eventually(lambda: text(browser, "status") == "the attributes are there")
    files = {"image": picture(browser, tmp_path)}
    slots = httpx.post(f"{address}/v1/analyze", files=files, timeout=60, trust_env=False).json()["report"]["slots"]
    known = {(slot["name"], entry["value"]): entry["probability"] for slot in slots for entry in slot["values"]}
    found = list(zip(*(dataset(browser, "#bars dd", name) for name in ("slot", "value", "probability")), strict=True))
    assert {slot for slot, _, _ in found} == {slot["name"] for slot in slots}
    assert all(float(p) == pytest.approx(known[slot, value], abs=1e-9) for slot, value, p in found)


def test_answers_stream(browser: Chrome) -> None:
    draw(browser, "a man with glasses", 2)
    browser.execute_script("""
        window.seen = [];
        new MutationObserver(() => seen.push(document.querySelector("#chat .answer")?.textContent ?? ""))
          .observe(document.getElementById("chat"), {childList: true, subtree: true, characterData: true});""")
    browser.find_element(By.ID, "describe").click()
    assert eventually(lambda: browser.execute_script("return seen.length") >= 4)
    lengths = [len(piece) for piece in browser.execute_script("return seen")]
    assert len(set(lengths)) >= 3
    browser.find_element(By.ID, "question").send_keys("does the person wear glasses?" + Keys.ENTER)
    assert eventually(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#chat .answer")) == 2)
    assert eventually(lambda: browser.find_elements(By.CSS_SELECTOR, "#chat .answer")[1].text != "")


def test_a_picture_from_a_file(browser: Chrome, tmp_path: Path) -> None:
    FacePipeline.load("nano").generate("an old man", seeds=1)[0].image.resize((300, 200)).save(tmp_path / "mine.jpg")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "mine.jpg"))
    assert eventually(lambda: text(browser, "status") == "the picture is open")
    browser.find_element(By.ID, "describe").click()
    assert eventually(lambda: any(element.text for element in browser.find_elements(By.CSS_SELECTOR, "#chat .answer")))


# The frame -------------------------------------------------------------------------------------------------------------------------------


def test_an_attack_in_a_prompt_stays_text(browser: Chrome) -> None:
    attack = "<img src=x onerror='window.hit=1'><script>window.hit=1</script>"
    draw(browser, f"a woman {attack}", 1)
    browser.find_element(By.ID, "question").send_keys(attack + Keys.ENTER)
    assert eventually(lambda: attack in text(browser, "chat"))
    assert browser.execute_script("return window.hit === undefined")
    inline = "const s = document.createElement('script'); s.src = 'data:text/javascript,window.hit=1'; document.body.append(s)"
    browser.execute_script(f"try {{ {inline} }} catch (error) {{}}")
    assert not eventually(lambda: browser.execute_script("return window.hit === 1"), 1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(browser: Chrome, scheme: str) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        draw(browser, "a smiling woman", 4)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        colours = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        back, front = (brightness(colour) for colour in browser.execute_script(colours))
        assert (back > front) is (scheme == "light")
        browser.find_element(By.ID, "analyze").click()
        assert eventually(lambda: text(browser, "status") == "the attributes are there")
        assert violated(browser) == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def violated(browser: Chrome) -> list[tuple[str, Any]]:
    """Return the rules of accessibility that axe finds broken, and where."""
    return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in Axe().run(browser)["violations"]]


def test_axe_finds_nothing(browser: Chrome) -> None:
    assert violated(browser) == []
    draw(browser, "a woman", 4)
    browser.find_element(By.ID, "describe").click()
    assert eventually(lambda: any(element.text for element in browser.find_elements(By.CSS_SELECTOR, "#chat .answer")))
    assert violated(browser) == []


def brightness(colour: str) -> int:
    return sum(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(","))
