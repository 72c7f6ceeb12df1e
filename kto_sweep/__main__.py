"""`python -m kto_sweep` is `kto-sweep`."""

from kto_sweep.cli import main

if __name__ == "__main__":
    main()
