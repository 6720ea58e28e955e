"""What programs produce: published in the store first, and committed with the end of their run."""
