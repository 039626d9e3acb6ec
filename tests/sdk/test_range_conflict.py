"""A server that has other points under this writer's record numbers: the sender keeps its own aside and goes on; it never loops."""

from __future__ import annotations

import json
import zlib

from helpers import Shop, until
from server import Request, Server

from sdk import _wire


def test_a_range_that_somebody_else_wrote_is_set_aside_and_the_rest_arrives(shop: Shop, server: Server) -> None:
    """409 range_conflict: said in refused.jsonl, kept as the batch that it was, asked once; all later records are delivered."""
    conflicts: list[tuple[int, int]] = []

    def fault(request: Request):
        if conflicts or not request.path.endswith("/batches"):
            return None
        body = request.body
        if request.headers.get("content-encoding") == "deflate":
            body = zlib.decompress(body)
        elif request.headers.get("content-encoding") == "zstd":
            import zstandard

            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        batch = _wire.decode(body, server.keylists)
        if not batch["frames"]:
            return None
        with server.lock:  # somebody else's points are stored under these numbers
            server.next[batch["writer"]] = batch["last"] + 1
        conflicts.append((batch["first"], batch["last"]))
        fields = {"next": batch["last"] + 1, "first": batch["first"], "last": batch["last"]}
        return 409, {}, {"code": "range_conflict", "message": "other points are stored here", "fields": fields}

    server.faults.append(fault)
    program = """
        import pathlib, sdk, time
        run = sdk.init(project="p")
        sdk.log({"loss": 0.5}, step=0)
        end = time.monotonic() + 60
        while not list(pathlib.Path(JOURNAL).rglob("refused.jsonl")):
            assert time.monotonic() < end, "no conflict came"
            time.sleep(0.05)
        for i in range(1, 50):
            sdk.log({"loss": 1 / (i + 1)}, step=i)
        sdk.finish()
    """
    done = shop.run(program.replace("JOURNAL", repr(str(shop.journal))), server)
    assert done.returncode == 0, done.stderr
    assert until(lambda: bool(server.finishes())), done.stderr
    assert server.points("loss") == [(i, 1 / (i + 1)) for i in range(1, 50)]
    (line,) = [json.loads(line) for path in shop.journal.rglob("refused.jsonl") for line in path.read_text().splitlines()]
    assert ((line["first"], line["last"]), line["status"], line["code"]) == (conflicts[0], 409, "range_conflict")
    (kept,) = shop.journal.rglob("refused/*.batch")
    assert ("loss", 0, 0.5) in [(key, step, value) for _, key, step, _, value in _wire.points(_wire.decode(kept.read_bytes()))]
