"""`python -m maskzoo`, for launchers that want a module."""

from __future__ import annotations

from maskzoo.cli import main

if __name__ == "__main__":
    main()
