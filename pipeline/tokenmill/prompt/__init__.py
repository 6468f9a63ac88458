"""From a row to token ids: templates, tokenizers, cleaning, media."""
