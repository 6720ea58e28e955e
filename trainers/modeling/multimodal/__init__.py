"""Models of text and images, of which the stages train, and the engines serve, the text model.

The whole model is loaded: its adapters then have the names that engines expect, and a model that is written
still reads images.
"""
