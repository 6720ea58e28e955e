"""The checks with which a training program starts: its own stage, then the later stages of the job."""
