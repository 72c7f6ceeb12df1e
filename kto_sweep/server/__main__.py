"""`python -m kto_sweep.server --home DIR [--port N]`."""

import sys

from kto_sweep.server.main import main

if __name__ == "__main__":
    sys.exit(main())
