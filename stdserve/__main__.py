"""``python -m stdserve``."""

from .cli import main

raise SystemExit(main())
