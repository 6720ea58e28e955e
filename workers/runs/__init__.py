"""A claimed run, from launch to result."""
