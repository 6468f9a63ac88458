"""`python -m pipeline` is `tokenmill`."""

from tokenmill.cli import main

if __name__ == "__main__":
    main()
