"""EleutherAI's evaluation harness (lm-eval): its tasks, its models, and its results in our form."""
