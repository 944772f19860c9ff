"""A real browser for tests: headless Chromium, spoken to through chromedriver (the W3C's WebDriver: JSON over HTTP)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]


class Browser:
    """One window. `log` has what the console said and `requests` what the page asked for, since the last call."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        options = {"args": FLAGS, "binary": chromium, "perfLoggingPrefs": {"enableNetwork": True}}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        self.base += f"/session/{session}"

    def open(self, page: Path | str) -> None:
        """Open a file, or a URL."""
        self._send("POST", "/url", {"url": page if isinstance(page, str) else page.resolve().as_uri()})

    def type(self, selector: str, text: str) -> None:
        """Type into an element; into a field for files their path."""
        (found,) = self._send("POST", "/element", {"using": "css selector", "value": selector}).values()
        self._send("POST", f"/element/{found}/value", {"text": text})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function on the page and return what it returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def log(self) -> list[str]:
        return [entry["message"] for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        events = [
            json.loads(entry["message"])["message"] for entry in self._send("POST", "/se/log", {"type": "performance"})
        ]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def devtools(self, command: str, **options: Any) -> Any:
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": options})

    def look_like(self, width: int, height: int, scheme: str = "light", medium: str = "") -> None:
        """Take the size of a screen, a colour scheme and a medium ("print")."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", media=medium, features=features)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _send(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path}: {json.load(error)['value']['message']}") from None


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium, and end it.

    A test that asks for it fails where there is none: those tests run only where somebody asked for the marker.
    """
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.fail("this test needs Chromium: apt-get install chromium chromium-driver", pytrace=False)
    with tempfile.TemporaryDirectory() as home, open(Path(home, "driver.log"), "w+") as log:
        process = subprocess.Popen(
            [driver, "--port=0"], stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "HOME": home, "TMPDIR": home}
        )
        try:
            browser = Browser(_port(process, Path(home, "driver.log")))
            browser.start()
            try:
                yield browser
            finally:
                browser._send("DELETE", "")
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the port that chromedriver has chosen and named in its log."""
    for _ in range(200):
        for line in log.read_text().splitlines():
            if "started successfully on port " in line:
                return int(line.rpartition(" ")[2].rstrip("."))
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"chromedriver does not start: {log.read_text()}")
