"""Pre-training of a language model on plain text, before it becomes an embedding model."""
