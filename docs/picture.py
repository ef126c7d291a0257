"""docs/playground.png: the page as it answers, from the small model served here. Needs Chromium; `make picture`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from step_audio_gateway.gateway_process import GatewayProcess
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.assets import embedded_checkpoint
from step_audio_server.launch.ports import free_ports
from step_audio_server.serve import Service
from step_audio_server.settings import ServeSettings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))
from browser import Page, browser  # noqa: E402

PICTURE = ROOT / "docs/playground.png"
RECORDING = ROOT / "examples/sum.wav"
SIZE = 1100, 640  # pixels


def take(url: str, folder: Path) -> str:
    """Asks aloud, and keeps the page as it is when the answer is there, which it returns."""
    with browser(folder, RECORDING.read_bytes()) as driver:
        page = Page(driver)
        page.resize(*SIZE)
        page.scheme("light")
        driver.get(url)
        page.wait(lambda: page.all("#server[data-state=ready]"), "the server's state")
        page.set("temperature", "0")
        page.find("#composer input[type=file]").send_keys(str(RECORDING))
        page.wait(lambda: page.all("#composer .tray .clip"), "the recording")
        page.find("#composer .send").click()
        page.wait_state("done")
        page.find("details.thought summary").click()
        page.js("document.activeElement.blur()")
        page.screenshot(PICTURE)
        return page.text(".answer")


def main() -> None:
    port, grpc, http, metrics = free_ports(4)
    with tempfile.TemporaryDirectory() as folder:
        settings = ServeSettings.create(
            checkpoint=embedded_checkpoint(),
            work_dir=ROOT / ".work" / f"{embedded_checkpoint().name}.step-audio",
            grpc_port=grpc,
            http_port=http,
            metrics_port=metrics,
        )
        with Service(settings, print) as service:
            gateway = GatewayProcess(GatewaySettings.create(port=port, triton=[service.address]))
            gateway.start()
            try:
                take(gateway.url, Path(folder))
            finally:
                gateway.stop()


if __name__ == "__main__":
    main()
