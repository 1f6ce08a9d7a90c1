"""A headless browser that opens pages of a folder, driven over the DevTools protocol.

Its machine-wide profile is not touched: each Browser has a folder of its own, gone when it closes.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAMS = ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",)
PATIENCE = 120  # seconds for an answer


def find():
    """The path of an installed Chromium or Chrome; None where there is none."""
    found = [shutil.which(name) for name in NAMES]
    found += [program for program in PROGRAMS if Path(program).exists()]
    return next((program for program in found if program), None)


class Browser:
    """One tab of a headless browser; a context manager.

    program  path of the browser
    events   every message of the tab since `forget`, a dict with "method" and "params"
    """

    def __init__(self, program):
        import websocket

        self.events = []
        self._count = 0
        self._session = None
        self._profile = tempfile.TemporaryDirectory(prefix="minidsv4-browser-", ignore_cleanup_errors=True)
        words = [program, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={self._profile.name}"]
        words += ["--no-first-run", "--disable-gpu", "--disable-background-networking", "--remote-allow-origins=*"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            words.append("--no-sandbox")  # it refuses root otherwise
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([*words, "about:blank"], **silent)
        address = self._address()
        self._socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        target = self._first_tab()
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._profile.cleanup()

    def _address(self):
        """Where the browser listens: it writes its port and a path into its profile.

        raises  RuntimeError where it ends before, or does not say it within PATIENCE seconds
        """
        told = Path(self._profile.name, "DevToolsActivePort")
        end = time.monotonic() + PATIENCE
        while self._process.poll() is None and time.monotonic() < end:
            lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
            if len(lines) == 2:
                return f"ws://localhost:{lines[0]}{lines[1]}"
            time.sleep(0.05)
        raise RuntimeError(f"the browser {self._process.args[0]} does not listen")

    def _first_tab(self):
        """The target of the blank page."""
        targets = self.ask("Target.getTargets")["targetInfos"]
        return next(target["targetId"] for target in targets if target["type"] == "page")

    def ask(self, method, **params):
        """Send a command and wait for its answer; events that come in between are kept.

        raises  RuntimeError with what the browser says against it
        """
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while (heard := self._hear()).get("id") != self._count:
            pass
        if "error" in heard:
            raise RuntimeError(f"{method}: {heard['error']['message']}")
        return heard["result"]

    def _hear(self):
        """The next message of the browser; an event is kept as well.

        raises  websocket.WebSocketTimeoutException after PATIENCE seconds of silence
        """
        heard = json.loads(self._socket.recv())
        if "method" in heard:
            self.events.append(heard)
        return heard

    def _go(self, address):
        """Load a page and wait until all of it is there."""
        self.ask("Page.navigate", url=address)
        loaded = any(event["method"] == "Page.loadEventFired" for event in self.events)
        while not loaded:
            loaded = self._hear().get("method") == "Page.loadEventFired"

    def load(self, address, width, scheme="light"):
        """Load a page in a window so many pixels wide, light or dark, and wait until it has loaded.

        events then holds what happened since this call
        """
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.paint(scheme)
        self.events.clear()
        self._go("about:blank")  # so that an address with another fragment alone is loaded anew
        self.events.clear()
        self._go(address)

    def paint(self, scheme):
        """Show the page as to somebody who prefers "light" or "dark"."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def run(self, script):
        """The value of a JavaScript expression on the page, a promise's once it is kept."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script[:60]}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def wait_until(self, condition):
        """Wait until a JavaScript expression is true.

        raises  TimeoutError naming it after PATIENCE seconds
        """
        end = time.monotonic() + PATIENCE
        while not self.run(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"not so after {PATIENCE} s: {condition}")
            time.sleep(0.02)

    def press(self, key, code):
        """Press and release a key, by its DOM name and its Windows code."""
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **facts)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **facts)

    def screenshot(self, whole=False):
        """The window as PNG bytes, or the whole page."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"])
