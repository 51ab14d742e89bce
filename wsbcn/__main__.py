"""``python -m wsbcn`` is the command ``wsbcn``."""
from .command import main

main()
