"""Every limit of the sender, with its reason."""

BATCH_RECORD_BYTES = 1 << 20  # of records; three times as much in memory on the way, and more brings no more points a second
BATCH_BYTES = 4 << 20  # what the server takes
TICK_SECONDS = 0.25  # a point is on its way within half a second
HEARTBEAT_SECONDS = 10.0
SAMPLE_SECONDS = 10.0
FIRST_SAMPLE_SECONDS = 2.0  # so that a short run has a line too
SYNC_SECONDS = 1.0  # power loss costs at most the last second
LOOK_SECONDS = 1.0  # for processes that vanished
TORN_SECONDS = 5.0  # bytes that have not become a record for so long are what a death left of one
FLUSH_SECONDS = 5.0  # fingerprints of data
FIRST_WAIT_SECONDS = 0.5  # back-off, doubled with jitter …
LONGEST_WAIT_SECONDS = 30.0  # … up to here; …
PATIENT_AFTER_SECONDS = 3600.0  # … when the trainers have ended and nothing was taken for an hour, up to …
PATIENT_WAIT_SECONDS = 180.0  # … here: with jitter still below the 300 s in which all has to be over once the server is back
GIVE_UP_SECONDS = 24 * 3600.0  # trainers ended, nothing taken for a day: the journal waits for the next sender on this folder, or `sync`
ANSWER_SECONDS = 30.0  # an answer to points or a heartbeat takes a second at worst; who is silent so long will not answer
ADOPT_AFTER_SECONDS = 15.0  # after the start of a run, and then …
ADOPT_EVERY_SECONDS = 600.0  # … so often: a look for what earlier runs left behind
POISON_TRIES = 20  # a record that makes the server fail (500) so often …
POISON_SECONDS = 600.0  # … and so long, while it takes others, is set aside like one that it refuses
CAPTURE_END_SECONDS = 120.0  # what capture may still take after the trainers have ended
STOP_SECONDS = 10.0  # after a SIGTERM of our own
PACK_BYTES = 256 << 10  # a blob up to this goes into a pack
PACK_TOTAL_BYTES = 3 << 20
ASK_AT_ONCE = 500  # digests in one question for missing blobs
KEEP_SEALED_SECONDS = 24 * 3600.0  # a run's folder after the server sealed it
