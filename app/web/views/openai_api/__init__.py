"""Views of what clients of the OpenAI API create: batches, fine-tuning jobs, and their files."""
