"""Fine-tuning jobs in OpenAI's terms: each is a job of ours with one training stage."""
