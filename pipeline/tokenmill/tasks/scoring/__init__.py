"""`score`, `embed`, `reward` and `rerank`: numbers instead of text."""
