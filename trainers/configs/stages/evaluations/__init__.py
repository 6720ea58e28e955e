"""Configs of the stages that read stored evaluations: no model, no hardware."""
