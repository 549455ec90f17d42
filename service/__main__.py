"""`python -m service` is `flywheel`."""

from service.cli import main

main()
