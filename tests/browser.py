"""A real Chromium for the tests of pages: without a network, with its errors and requests on record."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REQUIRED = "PETL_BENCH_REQUIRE_BROWSER"  # environment: 1 where a missing browser is a failure


class Browser:
    """What the tests do with a page. `driver`: selenium's."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, width: int = 1440, dark: bool = False) -> None:
        """Open a file in a window of this width (pixels), a phone's below 500, and wait until its figures are drawn."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.light(not dark)
        self.driver.get(page.resolve().as_uri())
        self.until(lambda: self.js("return document.querySelectorAll('#chart svg, #chart canvas').length > 0"))

    def light(self, wanted: bool) -> None:
        """What the system says that the user prefers: light or dark."""
        mode = [{"name": "prefers-color-scheme", "value": "light" if wanted else "dark"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": mode})

    def js(self, code: str, *arguments: Any) -> Any:
        """What the code returns; it runs by the driver, which no policy of the page stops."""
        return self.driver.execute_script(code, *arguments)

    def until(self, true: Callable[[], Any], seconds: float = 20) -> Any:
        """Wait until this is true, and return it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := true():
                return found
            time.sleep(0.05)
        raise AssertionError("the page did not come to that")

    def texts(self, selector: str) -> list[str]:
        """The visible texts of all elements that fit."""
        return self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim())", selector)

    def click(self, selector: str) -> None:
        """A real click into the middle of the first element that fits."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.by import By

        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.driver).move_to_element(element).click().perform()

    def hover(self, selector: str) -> None:
        """The pointer over the first element that fits."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.by import By

        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.driver).move_to_element(element).perform()

    def choose(self, selector: str, value: str) -> None:
        """Choose an option, as a user does."""
        self.js(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1]; "
            "e.dispatchEvent(new Event('change', {bubbles: true}))",
            selector,
            value,
        )

    def type(self, selector: str, text: str) -> None:
        """Replace the text of a field by this one."""
        self.js(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1]; "
            "e.dispatchEvent(new Event('input', {bubbles: true}))",
            selector,
            text,
        )

    def complaints(self) -> list[str]:
        """Warnings and errors on the console since the last call."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that pages have asked for since the last call, without data URLs and blank pages."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "about:", "blob:"))]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium that can reach nothing. Skips the test where there is none, unless it is required."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        binary = None
    if not binary or not driver:
        reason = "no Chromium to test pages with: install chromium, chromium-driver, and selenium (the dev extra)"
        (pytest.fail if os.environ.get(REQUIRED) == "1" else pytest.skip)(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    # Every host but this machine's files goes to a proxy that is not there.
    away = ("--proxy-server=http://127.0.0.1:1", "--disable-background-networking", "--no-first-run")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *away):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(running)
    finally:
        running.quit()
