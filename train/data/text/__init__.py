"""Text: tokenizers, and batches of tokens."""
