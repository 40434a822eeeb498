"""``python -m layerweld`` is the command ``layerweld``."""

from layerweld.cli import main

main()
