"""``python -m layerweld`` is the command ``layerweld``."""

from layerweld.cli.main import main

main()
