"""`python -m pipeline` is `tokenmill`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
