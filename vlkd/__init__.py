"""vlkd: compress visual-linguistic transformers by knowledge distillation.

The folders, in the order in which data flows: ``scenes`` → ``regions`` → ``data`` → ``models`` →
``objectives`` → ``training`` → ``evaluation`` → ``report``; each imports only from those before it.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vlkd")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
