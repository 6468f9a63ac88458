"""The `score`, `embed`, `reward` and `rerank` tasks, which write numbers instead of text."""
