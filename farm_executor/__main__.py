"""``python -m farm_executor`` is ``farm-executor``."""

from farm_executor.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
