"""Fine-tune pretrained models with results that are proven and runs that are exact.

Importing this package imports no torch: names are loaded where they are first used.
"""

__version__ = "0.1.0"
