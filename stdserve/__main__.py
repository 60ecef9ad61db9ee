"""``python -m stdserve``."""

from .cli import run

run()
