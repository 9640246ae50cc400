"""A headless Chromium, to look at pages: Debian's packages `chromium` and `chromium-driver`."""

from __future__ import annotations

import base64
import importlib.util
import shutil
from pathlib import Path
from typing import Any


def why_no_browser() -> str | None:
    """Return what is missing; None: there is a browser."""
    if importlib.util.find_spec("selenium") is None:
        return "needs selenium: pip install selenium"
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return (
        f"needs {' and '.join(missing)}: apt-get install chromium chromium-driver"
        if missing
        else None
    )


class Browser:
    """A window of Chromium without a screen; close it.

    Raises:
        SystemExit: something is missing.
    """

    def __init__(self) -> None:
        missing = why_no_browser()
        if missing is not None:
            raise SystemExit(missing)
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        options.binary_location = str(shutil.which("chromium"))
        for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver: Any = webdriver.Chrome(options, Service(shutil.which("chromedriver")))

    def open(
        self, path: Path, width: int = 1600, *, dark: bool = False, javascript: bool = True
    ) -> None:
        """Load a page in a window of that width."""
        self.command("Emulation.setScriptExecutionDisabled", value=not javascript)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=1000,
            deviceScaleFactor=1,
            mobile=width < 800,
        )
        self.driver.get(path.as_uri())

    def command(self, name: str, **arguments: Any) -> Any:
        """Send a command of Chromium's own protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript; return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        """Return the elements of a CSS selector."""
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def errors(self) -> list[str]:
        """Return what stands in the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def picture(self, path: Path) -> None:
        """Write all of the page, from its top to its bottom, as a PNG."""
        width, height = self.run(
            "return [innerWidth, document.documentElement.getBoundingClientRect().height]"
        )
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.command("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        """End the browser."""
        self.driver.quit()
