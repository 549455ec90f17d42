"""`python -m benchmarks.chaos`: kill every process under traffic, and ask the witnesses."""

import sys

from benchmarks.chaos.campaign import main

if __name__ == "__main__":
    sys.exit(main())
