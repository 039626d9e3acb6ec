"""Encore by the plug-in points of others: nothing of theirs is imported before one is asked for.

    from sdk.integrations.transformers import EncoreCallback    # Trainer(callbacks=[EncoreCallback()])
    from sdk.integrations.lightning import EncoreLogger         # Trainer(logger=EncoreLogger())
    from sdk.integrations.accelerate import EncoreTracker       # Accelerator(log_with=[EncoreTracker()])

All of them log into the run that is open, and begin one only where none is. A run that the program began, the program ends.
"""
