"""Readable names for runs that were given none: the same on every rank, since they come from the run's id."""

from __future__ import annotations

import hashlib

FIRST = """
amber ancient azure bold brave bright brisk calm candid clear clever coral cosmic crimson crisp curious daring deep eager early fair
fearless fleet fond fresh gentle gilded glad golden grand green hazel honest humble icy indigo ivory jade jolly keen kind late lively
lucid lunar mellow merry mild misty modest nimble noble northern olive patient pearl placid polar proud quick quiet rapid rosy rustic
sable scarlet serene sharp silent silver sincere sleek smooth snowy solar solid southern spry stellar still sunny swift tidal tranquil
true velvet vivid warm wild winter wise witty young zesty
""".split()  # noqa: SIM905 - a list of words reads better as words
SECOND = """
alder aspen badger basin beacon birch bison brook canyon cedar cliff cloud comet condor coral cove crane creek delta dove dune eagle elm
ember falcon fern finch fjord forest fox garnet glade glacier grove harbor hare hawk heron hill ibis island jay juniper kestrel lagoon
lake lark laurel lynx maple marsh marten meadow mesa moon moss oak ocean orca osprey otter owl peak pebble pine planet plover pond prairie
puffin quartz rain raven reef ridge river robin rowan sage sea seal shore sky sparrow spring spruce star stone stork stream summit sun
swallow swan teal tern thicket thrush tide trout valley walnut wave willow wolf wren
""".split()  # noqa: SIM905 - a list of words reads better as words


def readable(run_id: str) -> str:
    """Such as "quiet-heron-417"."""
    number = int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=8).digest(), "little")
    number, first = divmod(number, len(FIRST))
    number, second = divmod(number, len(SECOND))
    return f"{FIRST[first]}-{SECOND[second]}-{number % 900 + 100}"
