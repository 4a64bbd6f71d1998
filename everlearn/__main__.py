"""``python -m everlearn``."""

from everlearn.cli.main import main

if __name__ == "__main__":
    main()
