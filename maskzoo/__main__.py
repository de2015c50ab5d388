"""The program `maskzoo`, also for launchers that want a module."""

from __future__ import annotations

import sys

from maskzoo.signals import end_by_signals


def main() -> None:
    """Run the command line, which signals may end from here to the end of the process."""
    end_by_signals(sys.argv[1:])
    from maskzoo.cli import main as commands

    commands()


if __name__ == "__main__":
    main()
