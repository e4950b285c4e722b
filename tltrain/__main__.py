"""`python -m tltrain`, the same program as `tltrain`."""

from __future__ import annotations

from tltrain.cli.main import main

if __name__ == "__main__":
    main()
