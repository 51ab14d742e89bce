"""``python -m wsbcn`` runs the command ``wsbcn``."""
from .command import main

main()
