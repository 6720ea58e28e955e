"""A small OpenAI-compatible engine over transformers and PEFT, with continuous batching."""
