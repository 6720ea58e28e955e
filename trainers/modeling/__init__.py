"""Models, adapters and tokenizers."""
