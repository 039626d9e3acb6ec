"""What a batch of points may be at most (docs/formats.md, *Limits of a batch*). Beyond it the answer is a 4xx that says what to do.

Each is far above what the SDK's sender makes of 1 MiB of records, and low enough that no body makes the server take much memory or time
before it is refused. Sizes are bytes, unless said.
"""

from __future__ import annotations

SENT_BYTES = 4 * 2**20
"""A batch's body as it travels."""
INFLATED_BYTES = 64 * 2**20
"""The same without its content encoding: checked while it inflates, whatever the body claims."""
WINDOW_BYTES = 128 * 2**20
"""A zstd frame's window, which the decoder may have to hold."""
HEADER_BYTES = 16 * 2**20
"""The JSON header."""
HEADER_BRACKETS = 2_000_000
"""``[`` and ``{`` in the header: three bytes of JSON become an object of 64 bytes, so that its length alone bounds nothing."""
DEPTH = 200
"""Levels of lists and objects within each other in a document; the SDK cuts them at 32, the store shows 64."""
KEY_LENGTH = 500
"""Characters of a metric's name."""
KEYS_PER_BATCH = 2**18
"""Names in all frames of a batch together, also where only their hash is sent."""
FRAMES_PER_BATCH = 1024
POINTS_PER_BATCH = 4_000_000
ROWS_PER_FRAME = 4_000_000
DOCS_PER_BATCH = 50_000
HOLES_PER_BATCH = 10_000
"""Each is an event on the run's page."""
RECORDS_PER_BATCH = 2**32
"""last - first + 1: record numbers in columns are u32, counted from first."""
JSON_POINTS = 100_000
"""Points in a batch sent as JSON."""
HEARTBEAT_BYTES = 2 * 2**20
WRITERS_PER_HEARTBEAT = 5000
