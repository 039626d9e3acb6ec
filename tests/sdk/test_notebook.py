"""In a notebook a run shows itself, live; everywhere else nothing of that is there. The kernel is a real one (ipykernel)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Shop, until
from server import Server
from test_journal import writer

from sdk import _notebook

jupyter_client = pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")


class Notebook:
    """Runs cells and keeps what they show, by display id, as a page would."""

    def __init__(self, shop: Shop, server: Server | None, **env: str) -> None:
        self.manager = jupyter_client.KernelManager(kernel_name="python3")
        self.manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        folder = str(shop.folder)
        kept = shop.environment(server, IPYTHONDIR=folder, JUPYTER_CONFIG_DIR=folder, JUPYTER_RUNTIME_DIR=folder, **env)
        self.manager.start_kernel(env=kept, cwd=str(shop.work), extra_arguments=[])
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.shown: dict[str, list[str]] = {}
        self.results: list[str] = []

    def cell(self, code: str) -> None:
        def hear(message) -> None:
            content = message["content"]
            if message["msg_type"] in ("display_data", "update_display_data"):
                place = content.get("transient", {}).get("display_id", "")
                self.shown.setdefault(place, []).append(content["data"].get("text/html", ""))
            elif message["msg_type"] == "execute_result":
                self.results.append(content["data"].get("text/html", ""))

        answer = self.client.execute_interactive(code, timeout=60, output_hook=hear)
        assert answer["content"]["status"] == "ok", answer["content"]

    @property
    def panels(self) -> list[list[str]]:
        return list(self.shown.values())


@pytest.fixture
def notebook(shop: Shop, server: Server) -> Iterator[Notebook]:
    made = Notebook(shop, server)
    yield made
    made.client.stop_channels()
    made.manager.shutdown_kernel(now=True)


def test_a_run_shows_itself_and_its_last_values_live(notebook: Notebook, shop: Shop, server: Server) -> None:
    """Init shows link and state; the same place is updated while a cell runs, after each cell, and at the end; a second run has its own."""
    notebook.cell("import sdk, time; run = sdk.init(project='digits <b>', name='night & day')")
    (panel,) = notebook.panels
    assert server.url + "/runs/" in panel[0]
    assert "night &amp; day" in panel[0]
    assert "digits &lt;b&gt;" in panel[0]
    assert "running" in panel[0]
    notebook.cell(
        "for i in range(40):\n    sdk.log({'loss': 1 / (i + 1), 'tokens': i * 1000}, step=i); time.sleep(0.05)\n"
        "sdk.log({f'k{i}': 0.5 for i in range(20)}, step=99)"
    )
    (panel,) = notebook.panels
    during = [text for text in panel if "loss" in text and "step 39" not in text]
    assert during, "it was updated while the cell ran"
    assert "0.025<" in panel[-1]
    assert "39,000" in panel[-1]
    assert "and 10 more" in panel[-1]
    notebook.cell("sdk.log({'loss': 0.125}, step=100); sdk.finish()")
    (panel,) = notebook.panels
    assert "0.125<" in panel[-1]
    assert "step 100" in panel[-1]
    assert "finished" in panel[-1]
    notebook.cell("run")
    assert "ended" in notebook.results[-1]
    notebook.cell("sdk.init(project='digits', mode='offline'); sdk.log({'x': 1.0})")
    assert len(notebook.panels) == 2
    assert "kept in" not in notebook.panels[0][-1]
    assert until(lambda: server.finishes())


def test_nothing_happens_without_a_kernel(shop: Shop) -> None:
    """Plain Python does not even import it; IPython without a kernel gets no HTML."""
    program = """
        import sys, sdk
        sdk.init(project="p"); sdk.log({"x": 1.0})
        assert not {"sdk._notebook", "IPython"} & set(sys.modules)
    """
    done = shop.run(program, None, ENCORE_MODE="offline")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    done = shop.run(
        "import IPython, sdk\nsdk.init(project='p'); sdk.log({'x': 1.0})", None, ENCORE_MODE="offline", IPYTHONDIR=str(shop.folder)
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_closed_page_costs_no_training(tmp_path: Path) -> None:
    """What the display does wrong stays there."""

    class Broken:
        def update(self, *_) -> None:
            raise OSError("the page is closed")

    log = writer(tmp_path)
    panel = object.__new__(_notebook.Panel)
    panel.tail, panel.state, panel._shown, panel.handle, panel.html = _notebook.Tail(log), "running", "", Broken(), str
    panel.run, panel._turn = (
        type("R", (), {"name": "n", "id": "i", "url": None, "writer": log, "project": "p"})(),
        __import__("threading").Lock(),
    )
    log.log({"x": 1.0})
    panel.update()
    assert panel.tail.last == {"x": (1.0, 0)}


@pytest.mark.parametrize("mode", ["map", "write"])
def test_the_last_values_are_found_in_dense_and_sparse_records(tmp_path: Path, mode: str) -> None:
    """By the newest bytes alone, in both modes, across segments, and bounded whatever is logged."""
    from types import SimpleNamespace

    from sdk._journal import Writer

    log = Writer(tmp_path, {"id": "a" * 26}, SimpleNamespace(strict=False, journal_mode=mode))
    tail = _notebook.Tail(log)
    tail.look()
    assert tail.last == {}
    log.log({"a": 1, "b": 2.5}, 7)
    tail.look()
    assert tail.last == {"a": (1, 7), "b": (2.5, 7)}
    for i in range(300):
        log.log({f"k{i}": float(i)}, i)
    tail.look()
    assert tail.last["k150"] == (150.0, 150)
    assert len(tail.last) == _notebook.MAX_KEYS
    while log._segments.number < 2:
        log.log({"a": 3, "b": 4.5}, 8)
    log.log({"a": 5, "b": 6.5}, 9)
    tail.look(4 << 20)
    assert tail.last["a"] == (5, 9)
    json.dumps(_notebook.summary(SimpleNamespace(name=None, id="i", url=None, writer=log, project="p"), "running", tail.last))
    assert os.listdir(log.folder)
