"""The geometry of plots that are drawn as SVG."""
