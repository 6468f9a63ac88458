"""`python -m tokenmill` is the `tokenmill` script."""

from tokenmill.cli import main

if __name__ == "__main__":
    main()
