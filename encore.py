"""The SDK under a name that no folder of yours shadows: ``import encore as sdk`` has the same state as ``import sdk``."""

import sys

import sdk

sys.modules[__name__] = sdk
