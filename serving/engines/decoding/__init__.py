"""The generation loop of our own engines, whatever library runs the model."""
