"""tokenmill: run LLMs over whole corpora, Parquet in, Parquet out, every row exactly once."""

__version__ = "0.1.0"
